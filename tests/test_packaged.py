"""The packaged weights keep what README promises of them, on held-out portraits."""
import numpy as np
import pytest

from mmgen.clip import CLIP
from mmgen.core import psnr, to_float
from mmgen.data import portraits
from mmgen.data.captions import caption
from mmgen.data.edits import edits
from mmgen.ldm.autoencoder import AutoencoderKL
from mmgen.ldm.autoencoder_training import reconstruct
from mmgen.ldm.editing import SDEdit
from mmgen.ldm.pipeline import LatentDiffusion
from mmgen.metrics.oracle import Oracle, accuracy, classes, labels, score_editor
from mmgen.weights import packaged
from mmgen.zero_shot import retrieval

pytestmark = pytest.mark.skipif(not {"autoencoder-portraits", "clip-portraits", "ldm-portraits", "oracle-portraits"} <= set(packaged()),
                                reason="not all weights are packaged")


@pytest.fixture(scope="module")
def faces():
    return [portraits.sample(seed) for seed in portraits.seeds(256, "validation")]


@pytest.fixture(scope="module")
def pixels(faces):
    return np.stack([portraits.render(face) for face in faces])


@pytest.fixture(scope="module")
def oracle():
    return Oracle.load(device="cpu")


def test_reconstructions_are_near_and_keep_every_attribute(faces, pixels, oracle):
    images = to_float(pixels)
    again = reconstruct(AutoencoderKL.load("autoencoder-portraits"), images)
    assert psnr(images, again).mean() >= 32
    truth, names = labels(faces), list(classes())
    before, after = (accuracy(oracle.predict(x), truth, names) for x in (images, again))
    lost = {name: round(before[name] - after[name], 3) for name in names if before[name] - after[name] > 0.02}
    assert not lost


def test_hair_changes_its_colour_and_the_rest_stays(oracle):
    scores, _ = score_editor(oracle, SDEdit(LatentDiffusion.load("ldm-portraits", "cpu")), edits("hair color", 200, "test"), 0.75)
    assert scores["reached"] >= 0.98 and scores["kept"] >= 0.90, scores


def test_clip_finds_the_caption_of_an_image(faces, pixels):
    found = retrieval(CLIP.load("clip-portraits", "cpu"), pixels, [caption(portraits.tags(face)) for face in faces], 256)
    assert min(found["image_to_caption"], found["caption_to_image"]) >= 0.98, found
