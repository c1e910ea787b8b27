"An edit made at a model's size, returned at the size of the image"

import json

import numpy as np
import pytest
import torch
from PIL import Image

import mmgen
from mmgen.app.cli import main
from mmgen.app.workbench import own_size
from mmgen.base.images import to_float
from mmgen.data.portraits import change, render, sample
from mmgen.editing.editor import BaseEditor
from mmgen.editing.lift import METHODS, View, lift
from mmgen.editing.protocol import EditError

FACE = sample(2_000)


class Recolour(BaseEditor):
    "Draws the portrait FACE with green hair, whatever it is given"

    name, size, strength = "recolour", 64, 1.0

    def edit(self, images, source, target, strength=None, instruction=None):
        return to_float(render(change(FACE, "green hair"), self.size)[None]).expand(len(images), -1, -1, -1)


class Nothing(Recolour):
    "Returns its input"

    def edit(self, images, source, target, strength=None, instruction=None):
        return images


def image(options, size):
    return to_float(render(options, size)[None])[0]


def gain(source, answer, result):
    "Share of the squared error of the source that the result removes"
    return 1 - ((result - answer).square().sum() / (source - answer).square().sum()).item()


@pytest.mark.parametrize(
    "tag, least", [("green hair", 0.98), ("blue eyes", 0.98), ("sunglasses", 0.84), ("long hair", 0.73)]
)
def test_an_exact_edit_at_64_px_is_close_to_the_exact_one_at_512(tag, least):
    source, answer = image(FACE, 512), image(change(FACE, tag), 512)
    result = lift(source, image(FACE, 64), image(change(FACE, tag), 64), View.of(512, 512))
    untouched = (source == answer).all(0)
    assert gain(source, answer, result) > least
    assert (result == source).all(0)[untouched].float().mean() > 0.96


def half_black(size, column):
    "White, and black from a column on; where the column lies in a pixel, this is grey"
    whole = torch.ones(3, 512, 512)
    whole[..., column:] = -1
    return whole.unflatten(2, (size, -1)).mean(3)[:, :: 512 // size]


@pytest.mark.parametrize("column", [256, 258, 260, 262])
def test_the_edge_of_a_new_shape_is_found_within_a_pixel_of_the_model(column):
    white, answer = torch.ones(3, 512, 512), half_black(512, column)
    result = lift(white, torch.ones(3, 64, 64), half_black(64, column), View.of(512, 512))
    assert torch.equal(result[..., : column - 8], white[..., : column - 8])
    edge = (result[0, 256] < 0).float().argmax().item()
    assert abs(edge - column) <= 3 and (result - answer)[..., column + 8 :].abs().max() < 0.1


def test_differences_of_a_decoding_next_to_an_edit_stay_out():
    torch.manual_seed(0)
    source, before = image(FACE, 256), image(FACE, 64)
    after = (before + 0.09 * (2 * torch.rand(3, 64, 64) - 1)).clamp(-1, 1)
    assert torch.equal(lift(source, before, after, View.of(256, 256)), source)
    after[:, :16, :16] = -1
    changed = (lift(source, before, after, View.of(256, 256)) != source).any(0)
    assert changed[:60, :60].float().mean() > 0.9 and not changed[80:].any() and not changed[:, 80:].any()


def test_recolouring_by_the_affine_fit_is_better_than_adding_or_enlarging():
    source, answer = image(FACE, 256), image(change(FACE, "green hair"), 256)
    gains = [
        gain(source, answer, lift(source, image(FACE, 64), image(change(FACE, "green hair"), 64), View.of(256, 256), m))
        for m in METHODS
    ]
    assert gains[0] == max(gains) and gains[0] > 0.95


def test_what_was_not_edited_is_the_source_bit_for_bit():
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 256, (300, 200, 3), np.uint8)
    square = np.full((64, 64, 3), 128, np.uint8)
    assert np.array_equal(own_size(whole, square, square), whole)
    result = square.copy()
    result[:20, :20] = 0  # the upper left part of the view, which is the square of 200 px that begins at row 50
    lifted = own_size(whole, square, result)
    changed = (lifted != whole).any(-1)
    assert changed[60:90, 10:40].mean() > 0.9
    assert not changed[:, 100:].any() and not changed[160:].any()


@pytest.mark.parametrize("fit, rows", [("crop", (100, 200)), ("top", (0, 100)), ("pad", (0, 300))])
def test_the_view_is_where_open_image_cuts(fit, rows):
    "A view whose every pixel is edited changes just the part of the image that it shows"
    whole = np.full((300, 100, 3), 200, np.uint8)
    view = mmgen.open_image(whole, 64, fit=fit)
    changed = (own_size(whole, view, np.zeros_like(view), fit) != whole).any(-1).any(1).nonzero()[0]
    assert changed[0] == rows[0] and changed[-1] == rows[1] - 1


def test_edit_returns_the_size_of_the_source_or_of_the_model():
    whole = np.full((90, 140, 3), 255, np.uint8)
    whole[:, 25:115] = render(FACE, 90)
    options = dict(source="", editor=Recolour())
    assert mmgen.edit(whole, "green hair", **options).size == (140, 90)
    assert mmgen.edit(whole, "green hair", at="model", **options).size == (64, 64)
    assert np.array_equal(np.asarray(mmgen.edit(whole, "green hair", source="", editor=Nothing())), whole)
    with pytest.raises(EditError, match="at must be source or model, not 'screen'"):
        mmgen.edit(whole, "green hair", at="screen", **options)


def test_the_command_returns_the_images_own_size(tmp_path, capsys):
    Image.fromarray(render(FACE, 200)).save(tmp_path / "me.png")
    for at, size in (("source", 200), ("model", 64)):
        assert (
            main(["edit", str(tmp_path / "me.png"), "green hair", "--at", at, "--editor", "copy-input", "--json"]) == 0
        )
        assert json.loads(capsys.readouterr().out)["size"] == [size, size]


def test_shapes_and_methods_are_checked():
    x = torch.zeros(3, 8, 8)
    with pytest.raises(ValueError, match="method must be one of affine, add, enlarge, not 'paste'"):
        lift(x, x, x, View.of(8, 8), "paste")
    with pytest.raises(ValueError, match=r"got \(3, 8, 8\), \(3, 8, 8\) and \(3, 4, 4\)"):
        lift(x, x, x[:, :4, :4], View.of(8, 8))
