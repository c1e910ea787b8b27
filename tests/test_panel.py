"""What edit.ipynb shows: which image, which captions, which dials."""

import pytest
from PIL import Image

from mmgen.app.panel import side_by_side
from mmgen.app.targets import tags_of, wanted_caption
from mmgen.app.workbench import build_editor, edit_image, open_source
from mmgen.clip.model import CLIP
from mmgen.clip.zero_shot import choose_tags
from mmgen.data import portraits
from mmgen.editing.config import EditConfig
from mmgen.editing.editor import CopyInput
from mmgen.editing.protocol import EditError
from mmgen.ldm.editors.flowedit import FlowEdit
from mmgen.ldm.editors.sdedit import Reconstruction
from mmgen.ldm.pipeline import LatentDiffusion, random_pipeline


def test_an_image_without_tags_is_described(tmp_path):
    face = next(
        face for face in map(portraits.sample, portraits.seeds(50, "test")) if "green hair" in portraits.tags(face)
    )
    Image.fromarray(portraits.render(face, 200)).save(tmp_path / "me.png")
    which = Reconstruction(random_pipeline())
    which.pipeline.text_encoder = CLIP.load("clip-portraits", "cpu")
    image, known = open_source(EditConfig(image=str(tmp_path / "me.png")), which)
    assert image.shape == (32, 32, 3) and "green hair" in known
    assert open_source(EditConfig(image=str(tmp_path / "me.png"), source="smile"), which)[1] == "smile"
    assert open_source(EditConfig(image=str(tmp_path / "me.png")), CopyInput())[1] == ""


def test_a_tag_changes_the_known_caption_and_anything_else_replaces_it():
    assert wanted_caption("brown hair, smile", "green hair") == "green hair, smile"
    assert wanted_caption("brown hair, smile", "a girl in the rain") == "a girl in the rain"
    assert wanted_caption("", "green hair") == "green hair"
    for prompt in ("Green hair", "green_hair", "GREEN  HAIR.", " green hair ,"):
        assert wanted_caption("brown hair, smile", prompt) == "green hair, smile"
    assert (
        wanted_caption("", "Green_hair") == "green hair"
        and wanted_caption("night, blue Car", "No Blue car.", ["blue Car", "night"]) == "night"
    )


def test_a_model_of_other_images_has_its_own_words(tmp_path):
    tags = ["night", "car", "rainy street"]
    assert wanted_caption("night, car", "rainy street", tags) == "rainy street, night, car"
    assert wanted_caption("night, car", "no car", tags) == "night"
    with pytest.warns(UserWarning, match="no tag 'rany street'; did you mean 'rainy street'"):
        assert wanted_caption("night, car", "rany street", tags) == "rany street"
    with pytest.warns(UserWarning, match="did you mean 'green hair'"):
        wanted_caption("brown hair, smile", "gren hair")
    which = Reconstruction(random_pipeline())
    assert tags_of(which) == tags_of(CopyInput()) == list(portraits.vocabulary())
    which.pipeline.tags = tags
    assert tags_of(which) == tags
    which.pipeline.text_encoder = CLIP.load("clip-portraits", "cpu")
    Image.fromarray(portraits.render(portraits.sample(5), 70)).save(tmp_path / "me.png")
    _, known = open_source(EditConfig(image=str(tmp_path / "me.png")), which)
    assert known and set(known.split(", ")) <= set(tags)


def test_clip_finds_tags_whose_groups_it_does_not_know():
    clip, found, true = CLIP.load("clip-portraits", "cpu"), 0, 0
    tags = [tag for tag in portraits.vocabulary() if not tag.startswith("no ")]
    for seed in portraits.seeds(10, "test"):
        face = portraits.sample(seed)
        said = choose_tags(clip, portraits.render(face), tags).split(", ")
        found, true = found + len(set(said) & set(portraits.tags(face))), true + len(said)
        assert set(said) <= set(tags) and len(said) <= 16
    assert found / true > 0.6


def test_the_dials_reach_the_editor(monkeypatch):
    monkeypatch.setattr(LatentDiffusion, "load", classmethod(lambda cls, *given: random_pipeline()))
    which = build_editor(EditConfig(decoding="plain", guidance=3.0, steps=3, seed=5))
    assert build_editor(EditConfig()).steps == FlowEdit(random_pipeline()).steps
    with pytest.raises(EditError, match="flowedit has no alpha; it has model, decoding"):
        build_editor(EditConfig(alpha=2.0))
    assert build_editor(EditConfig(editor="copy-input")).name == "copy-input"
    assert isinstance(which, FlowEdit)
    assert (which.decoding, which.guidance, which.steps, which.seed) == ("plain", 3.0, 3, 5)
    image = portraits.render(portraits.sample(1), 32)
    assert edit_image(which, image, "", "green hair", 0.5).shape == image.shape
    assert side_by_side(image, image, height=64, gap=4).size == (132, 64)
