"""The Editor seam: every editor takes the same arguments and refuses the same mistakes."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import mmgen
from mmgen.app.workbench import edit_image
from mmgen.data import portraits
from mmgen.editing.editor import CopyInput, check_edit, residual_decode
from mmgen.editing.protocol import EditError, Editor
from mmgen.editing.registry import ADVICE, EDITORS, options_of, which_editor
from mmgen.ldm.editors.sdedit import Reconstruction, SDEdit
from mmgen.ldm.pipeline import random_pipeline

PIPELINE = random_pipeline()
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
TEXTS = ["green hair", "smile", ""]
ALL = {
    "copy-input": CopyInput(),
    "reconstruction": Reconstruction(PIPELINE),
    **{f"sdedit, {decoding}": SDEdit(PIPELINE, steps=2, decoding=decoding) for decoding in SDEdit.decodings},
    **{
        name: mmgen.editor(name, model=PIPELINE, steps=2)
        for name in ("ddim-inversion", "edit-friendly-ddpm", "prompt-to-prompt", "flowedit")
    },
}


@pytest.mark.parametrize("name", ALL)
def test_an_editor_returns_images_of_the_same_shape_and_range(name):
    which = ALL[name]
    assert isinstance(which, Editor)
    before = IMAGES.clone()
    result = which.edit(IMAGES, TEXTS, TEXTS, 0.5)
    assert result.shape == IMAGES.shape and result.dtype == torch.float32
    assert result.isfinite().all() and result.abs().max() <= 1
    assert torch.equal(IMAGES, before)
    assert torch.equal(which.edit(IMAGES, TEXTS, TEXTS, 0.5), result)  # seeded


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "change, said",
    [
        (dict(strength=1.2), "strength must lie in 0..1"),
        (dict(strength=-0.1), "strength must lie in 0..1"),
        (dict(images=IMAGES[0]), "must be a float tensor"),
        (dict(images=(IMAGES * 127).to(torch.uint8)), "must be a float tensor"),
        (dict(images=IMAGES * 300), "must lie in"),
        (dict(images=IMAGES * float("nan")), "must lie in"),
        (dict(target="green hair"), "target must be a list of 3"),
        (dict(source=["a"]), "source must be a list of 3"),
    ],
)
def test_bad_input_gets_one_sentence(name, change, said):
    arguments = dict(images=IMAGES, source=TEXTS, target=TEXTS, strength=0.5) | change
    with pytest.raises(EditError, match=said):
        ALL[name].edit(**arguments)


def test_another_size_is_refused_by_a_latent_editor():
    with pytest.raises(EditError, match="32×32"):
        ALL["sdedit, plain"].edit(torch.zeros(1, 3, 64, 64), [""], ["smile"])
    check_edit(torch.zeros(1, 3, 64, 64), [""], ["smile"], None)


def test_strength_zero_reconstructs_and_residual_decoding_returns_the_input():
    plain = ALL["sdedit, plain"].edit(IMAGES, TEXTS, TEXTS, 0.0)
    assert torch.equal(plain, ALL["reconstruction"].edit(IMAGES, TEXTS, TEXTS))
    assert not torch.allclose(plain, IMAGES, atol=0.05)
    assert torch.allclose(ALL["sdedit, residual"].edit(IMAGES, TEXTS, TEXTS, 0.0), IMAGES, atol=1e-5)


def test_strength_is_a_dial():
    z = PIPELINE.encode(IMAGES)
    away = [(PIPELINE.renoise(z, TEXTS, s, steps=4) - z).square().mean().item() for s in (0.1, 0.5, 1.0)]
    assert away[0] < away[1] < away[2]


def test_paired_decoding_returns_the_input_where_the_captions_agree():
    for strength in (0.2, 0.9):
        for guidance in (1.0, 5.0):
            editor = SDEdit(PIPELINE, steps=2, guidance=guidance, decoding="paired")
            assert torch.allclose(editor.edit(IMAGES, TEXTS, TEXTS, strength), IMAGES, atol=1e-4)
    source = SDEdit(PIPELINE, steps=2, decoding="plain").edit(IMAGES / 2, TEXTS[::-1], TEXTS[::-1], 0.5)
    target, paired = (
        SDEdit(PIPELINE, steps=2, decoding=d).edit(IMAGES / 2, TEXTS[::-1], TEXTS, 0.5) for d in ("plain", "paired")
    )
    inside = (target.abs() < 1) & (source.abs() < 1)  # neither was clamped
    assert inside.float().mean() > 0.5 and torch.allclose(
        paired[inside], (IMAGES / 2 + target - source).clamp(-1, 1)[inside], atol=1e-4
    )


def test_an_unknown_decoding_is_refused():
    with pytest.raises(EditError, match="must be one of paired, residual, plain, not 'pared'"):
        SDEdit(PIPELINE, decoding="pared")


def test_residual_decoding_is_the_formula():
    decode = lambda z: z * 0.5
    source, a, b = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.2), torch.full((1, 3, 2, 2), 0.6)
    assert torch.allclose(residual_decode(decode, source, a, b), torch.full_like(source, 0.2))


def test_editors_are_found_by_name():
    assert mmgen.editors()[:12] == [
        "copy-input",
        "reconstruction",
        "sdedit",
        "ddim-inversion",
        "edit-friendly-ddpm",
        "prompt-to-prompt",
        "flowedit",
        "instruct-pix2pix",
        "inversion",
        "styleclip-optimization",
        "styleclip-mapper",
        "styleclip-directions",
    ]
    assert options_of("sdedit")[:2] == ["model", "decoding"] and options_of("copy-input") == []
    assert {"generator", "encoder", "clip", "decoding", "inversion_steps", "alpha", "beta"} <= set(
        options_of("styleclip-directions")
    )
    assert "model" not in options_of("styleclip-optimization")
    assert {"share", "correction", "iterations", "model", "decoding"} <= set(options_of("prompt-to-prompt"))
    with pytest.raises(EditError, match="copy-input has no model; it has no options"):
        mmgen.editor("copy-input", model="x")
    assert mmgen.editor("copy-input").name == "copy-input"
    with pytest.raises(EditError, match="did you mean 'sdedit'"):
        mmgen.editor("sdeditt")
    with pytest.raises(AttributeError):
        mmgen.nothing


@pytest.mark.parametrize(
    "name, said",
    [
        ("StyleCLIP", "did you mean 'styleclip-mapper'\\? Choose from"),
        ("mapper", "did you mean 'styleclip-mapper'"),
        ("zzz", "'zzz'; choose from copy-input"),
        ("", "''; choose from"),
    ],
)
def test_the_closest_editor_is_named(name, said):
    with pytest.raises(EditError, match=said):
        mmgen.editor(name)


def test_an_edit_that_left_the_finite_numbers_gives_no_picture():
    class Lost(CopyInput):
        def edit(self, images, source, target, strength=None):
            return images * float("nan")

    with pytest.raises(EditError, match="result of copy-input is not finite"):
        edit_image(Lost(), np.zeros((8, 8, 3), np.uint8), "", "smile")


def test_one_call_edits_a_file_an_array_or_a_list_as_the_command_does(tmp_path):
    face = portraits.render(portraits.sample(200_000_007), 32)
    Image.fromarray(face).save(tmp_path / "me.png")
    which = SDEdit(PIPELINE, steps=2)
    one = mmgen.edit(tmp_path / "me.png", "green hair", "blue hair", editor=which)
    assert isinstance(one, Image.Image) and one.size == (32, 32)
    assert np.array_equal(one, edit_image(which, face, "blue hair", "green hair"))
    both = mmgen.edit([face, Image.fromarray(face)], "green hair", ["blue hair", "smile"], 0.5, editor=which)
    assert [type(result) for result in both] == [type(one)] * 2 and np.asarray(both[0]).std() > 0
    assert np.array_equal(mmgen.edit(face, "smile", editor="copy-input"), face)
    assert np.array_equal(mmgen.edit(face, "smile", editor="copy-input", at="model"), mmgen.open_image(face, 64))
    assert mmgen.edit([], "smile", [], editor=which) == []
    for arguments, said in (
        (dict(editor=which, steps=3, device="cpu"), "takes no steps, device; give them to mmgen.editor"),
        (dict(editor="copy-input", steps=3), "copy-input has no steps"),
        (dict(editor=which, source=["a", "b"]), "2 captions for 1 images"),
    ):
        with pytest.raises(EditError, match=said):
            mmgen.edit(face, "smile", **arguments)


def test_every_editor_has_advice_and_nothing_at_the_top_needs_torch():
    assert ADVICE.keys() == EDITORS.keys() and which_editor().count("\n") == len(EDITORS) + 1
    code = "import sys, mmgen; mmgen.editors(); mmgen.editor; assert not {'torch', 'numpy'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
