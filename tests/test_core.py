"""mmgen.base.images: conversion, grids, roots, devices, seeding, atomic files."""

import hashlib
import os
import random

import numpy as np
import pytest
import torch

from mmgen.base import files
from mmgen.base import images as core


def test_uint8_float_round_trip_is_exact():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8))
    images[0, 0, :2, 0] = torch.tensor([0, 255], dtype=torch.uint8)
    x = core.to_float(images)
    assert x.shape == (3, 3, 5, 7) and x.dtype == torch.float32 and x.is_contiguous()
    assert x[0, 0, 0, 0] == -1 and x[0, 0, 0, 1] == 1
    assert torch.equal(core.to_uint8(x), images)
    assert torch.equal(core.to_float(images.numpy()), x)
    assert torch.equal(core.to_float(images[0].numpy()), x[:1])


def test_to_uint8_clips_and_rounds():
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, float("nan"), float("inf"), -float("inf")])
    assert core.to_uint8(x[None, None, None].expand(1, 3, 1, 8))[0, 0, :, 0].tolist() == [
        0,
        0,
        128,
        255,
        255,
        0,
        255,
        0,
    ]
    assert core.to_uint8(torch.zeros(3, 2, 4, dtype=torch.bfloat16)).shape == (1, 2, 4, 3)


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((1, 4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_to_float_says_what_it_wants(bad):
    with pytest.raises(ValueError, match="to_float wants uint8 of shape"):
        core.to_float(bad)


@pytest.mark.parametrize("bad", [torch.zeros(1, 4, 4, 3), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)])
def test_to_uint8_says_what_it_wants(bad):
    with pytest.raises(ValueError, match="to_uint8 wants floats of shape"):
        core.to_uint8(bad)


def test_image_grid_places_each_image():
    values = np.arange(5, dtype=np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (5, 4, 6, 3))
    grid = core.image_grid(images, cols=3, pad=1)
    assert grid.shape == (2 * 4 + 1, 3 * 6 + 2, 3) and grid.dtype == np.uint8
    for n in range(5):
        y, x = (n // 3) * 5, (n % 3) * 7
        assert (grid[y : y + 4, x : x + 6] == n).all()
    assert (grid[4] == 255).all() and (grid[5:, 14:] == 255).all()
    assert np.array_equal(core.image_grid(core.to_float(images), cols=3, pad=1), grid)
    assert np.array_equal(core.image_grid(list(images), cols=3, pad=1), grid)
    assert core.image_grid(images[:2], cols=8, pad=0).shape == (4, 12, 3)
    with pytest.raises(ValueError, match="no images"):
        core.image_grid([])


def test_show_grid_is_a_figure_with_titles(tmp_path):
    fig = core.show_grid(np.zeros((3, 8, 8, 3), np.uint8), cols=2, titles=["a", "b", "c"])
    assert [ax.get_title() for ax in fig.axes] == ["a", "b", "c", ""]
    fig.savefig(tmp_path / "grid.jpg")
    assert (tmp_path / "grid.jpg").stat().st_size > 500
    with pytest.raises(ValueError, match="1 titles for 3 images"):
        core.show_grid(np.zeros((3, 8, 8, 3), np.uint8), titles=["a"])


def test_repo_root_does_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("MMGEN_ROOT", raising=False)
    here = files.repo_root()
    assert (here / "settings.ini").exists()
    monkeypatch.chdir(here / "nbs")
    assert files.repo_root() == here
    monkeypatch.chdir(tmp_path)
    assert files.repo_root() == here  # through the file of the module
    other = tmp_path / "fork"
    (other / "deep").mkdir(parents=True)
    (other / "settings.ini").write_text("[DEFAULT]\nlib_name = mmgen\ntitle = %(nothing)s\n")
    monkeypatch.chdir(other / "deep")
    assert files.repo_root() == other
    (other / "settings.ini").write_text("not an ini file")
    assert files.repo_root() == here
    monkeypatch.setenv("MMGEN_ROOT", str(tmp_path))
    assert files.repo_root() == tmp_path


def test_repo_root_outside_a_clone_is_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("MMGEN_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "__file__", str(tmp_path / "site-packages" / "core.py"))
    assert files.repo_root() == tmp_path


def test_seed_everything():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    core.seed_everything(5)
    first = draw()
    core.seed_everything(5)
    assert draw() == first
    core.seed_everything(6)
    assert all(a != b for a, b in zip(draw(), first))


def test_pick_device():
    assert core.pick_device("cpu").type == "cpu"
    assert core.pick_device() == core.pick_device("auto")
    with pytest.raises(ValueError, match="'gpu' is not a device; use cpu"):
        core.pick_device("gpu")
    with pytest.raises(ValueError, match="cuda:99 is not available"):
        core.pick_device("cuda:99")


def test_atomic_write_keeps_the_old_file_on_an_error(tmp_path):
    file = tmp_path / "deep" / "a.bin"
    files.atomic_write(file, b"one")
    assert files.sha256(file) == hashlib.sha256(b"one").hexdigest()

    def disk_full(temp):
        assert temp.parent == file.parent and temp != file
        temp.write_bytes(b"tw")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        files.atomic_write(file, disk_full)
    with pytest.raises(KeyboardInterrupt):
        files.atomic_write(file, lambda temp: (_ for _ in ()).throw(KeyboardInterrupt))
    assert file.read_bytes() == b"one" and os.listdir(file.parent) == ["a.bin"]
    files.atomic_write(file, lambda temp: temp.write_bytes(b"two"))
    assert file.read_bytes() == b"two" and os.listdir(file.parent) == ["a.bin"]


def test_psnr_of_a_known_error():
    x, error = torch.zeros(2, 3, 8, 8), torch.tensor([0.2, 0.02])[:, None, None, None]
    assert torch.allclose(core.psnr(x, x + error), torch.tensor([20.0, 40.0]))
    assert core.psnr(x + 1, x + 5).min() > 100  # what lies outside is clamped


def test_a_place_that_cannot_be_written_is_said_before_the_work(tmp_path):
    (tmp_path / "note.txt").write_text("x")
    assert (
        files.check_writable(str(tmp_path / "new" / "deep" / "a.png")).name == "a.png"
        and not (tmp_path / "new").exists()
    )
    with pytest.raises(ValueError, match="is a folder; name a file in it"):
        files.check_writable(tmp_path)
    with pytest.raises(ValueError, match="note.txt is not a folder"):
        files.check_writable(tmp_path / "note.txt" / "a.png")
