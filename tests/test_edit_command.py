"What people expect of `mmgen edit`: nothing of the file is lost, only what was asked changes, many files in one call"

import io
import json
import shlex

import numpy as np
import pytest
from PIL import Image, ImageCms

import mmgen
from mmgen.app.cli import main
from mmgen.data.images import ImageError
from mmgen.data.picture_files import read_picture, with_edit
from mmgen.editing import registry
from mmgen.editing.editor import BaseEditor

ADOBE_LIKE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


class Paint(BaseEditor):
    "Paints the middle of the view; the colour depends on the seed"

    name, size, strength = "paint", 64, 1.0

    def __init__(self, device=None, seed: int = 0):
        self.seed = seed

    def edit(self, images, source, target, strength=None, instruction=None):
        result = images.clone()
        result[:, :, 16:48, 16:48] = -1.0
        result[:, self.seed % 3, 16:48, 16:48] = 1.0
        return result


@pytest.fixture(autouse=True)
def paint(monkeypatch):
    monkeypatch.setitem(registry.REGISTERED, "paint", Paint)


def picture(height=120, width=160, channels=3):
    return np.random.default_rng(0).integers(60, 200, (height, width, channels), np.uint8)


def run(capsys, *arguments, code=0):
    assert main(["edit", *map(str, arguments), "--editor", "paint", "--json"]) == code
    printed = capsys.readouterr()
    return json.loads(printed.out) if code == 0 or printed.out else printed.err


def test_alpha_exif_profile_and_resolution_are_kept(tmp_path, capsys):
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "my cat", 6  # lies on its side
    source = picture(channels=4)
    Image.fromarray(source).save(tmp_path / "me.png", exif=exif, icc_profile=ADOBE_LIKE, dpi=(300, 300))
    result = Image.open(run(capsys, tmp_path / "me.png", "smile")["file"])
    upright = np.rot90(source, -1)
    assert result.size == (120, 160) and result.mode == "RGBA"
    assert result.getexif()[0x010E] == "my cat" and 0x0112 not in result.getexif()
    assert result.info["icc_profile"] == ADOBE_LIKE and round(result.info["dpi"][0]) == 300
    same = (np.asarray(result) == upright).all(-1)
    assert same[:15].all() and same[-15:].all() and not same[70:90, 50:70].any()
    assert (np.asarray(result)[..., 3] >= upright[..., 3]).all()


def test_an_edit_on_transparency_is_seen_over_white():
    stored = np.zeros((8, 8, 4), np.uint8)
    source = read_picture(Image.fromarray(stored))
    wanted = source.pixels.copy()
    wanted[2:4, 2:4] = 10, 200, 90
    result = with_edit(source, wanted)
    assert (np.asarray(result)[5:] == 0).all()
    assert np.abs(np.asarray(read_picture(result).pixels, int) - wanted).max() <= 1
    with pytest.raises(ValueError, match=r"The result is \(4, 4, 3\), and the picture \(8, 8, 3\)"):
        with_edit(source, wanted[:4, :4])


def test_pixels_of_a_wide_profile_stay_as_they_are_stored():
    wide = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    at = lambda tag: next(
        int.from_bytes(wide[i + 4 : i + 8], "big") for i in range(132, 400, 12) if wide[i : i + 4] == tag
    )
    red, green = at(b"rXYZ"), at(b"gXYZ")
    wide[red : red + 20], wide[green : green + 20] = wide[green : green + 20], wide[red : red + 20]  # a known swap
    image = Image.fromarray(picture(16, 16))
    image.info["icc_profile"] = bytes(wide)
    source = read_picture(image)
    assert not np.array_equal(source.pixels, source.stored)
    wanted = source.pixels.copy()
    wanted[:4] = 128, 90, 60
    result = with_edit(source, wanted)
    assert np.array_equal(np.asarray(result)[4:], source.stored[4:])
    assert np.abs(read_picture(result).pixels[:4].astype(int) - (128, 90, 60)).max() <= 3


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif", "bmp"])
def test_every_format_is_written(tmp_path, capsys, suffix):
    Image.fromarray(picture(channels=4)).save(tmp_path / "me.png")
    about = run(capsys, tmp_path / "me.png", "smile", "-o", tmp_path / f"out.{suffix}")
    assert Image.open(about["file"]).size == (160, 120)


def test_nothing_changes_outside_of_box_and_mask(tmp_path, capsys):
    source, mask = picture(), np.zeros((120, 160), np.uint8)
    mask[:, 80:] = 255
    Image.fromarray(source).save(tmp_path / "me.png"), Image.fromarray(mask).save(tmp_path / "m.png")
    options = ["--mask", tmp_path / "m.png", "--box", "0,0,160,60"]
    changed = np.asarray(Image.open(run(capsys, tmp_path / "me.png", "smile", *options)["file"])) != source
    changed = changed.any(-1)
    assert changed[40:60, 80:100].mean() > 0.9 and not changed[60:].any() and not changed[:, :80].any()
    in_python = mmgen.edit(source, "smile", "", editor="paint", mask=mask, box=(0, 0, 160, 60))
    assert np.array_equal((np.asarray(in_python) != source).any(-1), changed)
    small = mmgen.edit(source, "smile", "", editor="paint", mask=mask, at="model")
    assert small.size == (64, 64) and (np.asarray(small)[:, :26] == mmgen.open_image(source, 64)[:, :26]).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"box": "9000,0,5,5"}, "holds no pixel of the picture, which has 160 × 120"),
        ({"box": (1, 2, 0, 4)}, "holds no pixel"),
        ({"box": "left"}, "it must be x,y,width,height in pixels"),
        ({"mask": np.zeros((120, 160), np.uint8)}, "The mask is black all over"),
        ({"mask": np.ones((60, 160), np.uint8)}, "The mask has 160 × 60 pixels and the picture 160 × 120"),
        ({"mask": "none.png"}, "none.png does not exist"),
    ],
)
def test_a_region_that_does_not_fit_is_one_sentence(options, message):
    with pytest.raises(ImageError, match=message):
        mmgen.edit(picture(), "smile", "", editor="paint", **options)


def test_variants_have_the_seeds_from_the_given_one_on(tmp_path, capsys):
    Image.fromarray(picture()).save(tmp_path / "me.png")
    about = run(capsys, tmp_path / "me.png", "smile", "-n", 3, "--seed", 4, "-o", tmp_path / "v.png", "--compare")
    assert [row["seed"] for row in about["files"]] == [4, 5, 6]
    names = [f"v-{i}{part}.png" for i in (1, 2, 3) for part in ("", "-compare")]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names, "me.png"])
    images = [np.asarray(Image.open(row["file"])) for row in about["files"]]
    assert not np.array_equal(images[0], images[1]) and not np.array_equal(images[1], images[2])
    assert Image.open(about["files"][0]["compare"]).size == (160 + 16 + 160, 120)
    assert main(["edit", str(tmp_path / "me.png"), "smile", "-n", "3", "--editor", "copy-input"]) == 1
    assert "copy-input has no seed, so -n 3" in capsys.readouterr().err
    assert main(["edit", str(tmp_path / "me.png"), "smile", "-n", "0"]) == 1


def test_a_result_holds_the_command_that_makes_it_again(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture()).save("me.png")
    first = Image.open(run(capsys, "me.png", "red eyes, smile", "--seed", 2, "--box", "10,10,90,90")["file"])
    command = shlex.split(first.text["mmgen"])
    assert command[:2] == ["mmgen", "edit"] and main([*command[1:], "-o", "again.png"]) == 0
    assert np.array_equal(np.asarray(Image.open("again.png")), np.asarray(first))


def test_a_folder_with_a_broken_file(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "c.jpg"):
        Image.fromarray(picture()).save(folder / name)
    (folder / "b.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not counted")
    about = run(capsys, folder, "smile", code=1)
    assert [row["image"] for row in about["failed"]] == [str(folder / "b.png")]
    assert sorted(p.name for p in (tmp_path / "in-edited").iterdir()) == ["a.png", "c.jpg"]
    assert main(["edit", str(folder), "smile", "--editor", "paint"]) == 1
    printed = capsys.readouterr().err
    assert "2 results; 1 image could not be edited" in printed and "b.png is not in an image format" in printed
    about = run(capsys, f"{folder}/*.jpg", "smile", "-o", tmp_path / "out")
    assert [row["file"] for row in about["files"]] == [str(tmp_path / "out" / "c.jpg")]


def test_folders_that_cannot_be_used(tmp_path, capsys):
    (tmp_path / "empty").mkdir(), (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"x")
    for arguments, message in (
        ([tmp_path / "empty"], "holds no image file"),
        ([f"{tmp_path}/*.jpg"], "No file matches"),
        ([tmp_path / "bad", "-o", tmp_path / "out.png"], "for several images -o names a folder"),
        ([tmp_path / "bad", "-o", tmp_path / "bad"], "is the source image"),
        ([tmp_path / "bad"], "None of 1 images could be edited"),
    ):
        assert message in run(capsys, arguments[0], "smile", *arguments[1:], code=1)


def test_a_small_and_a_long_picture_are_told_of(capsys):
    with pytest.warns(UserWarning, match="The image has 32 × 20 pixels and the model edits 64 × 64"):
        assert mmgen.edit(picture(20, 32), "smile", "", editor="paint").size == (32, 20)
    with pytest.warns(UserWarning, match="with fit=pad it fills 6 of the 64 pixels"):
        assert mmgen.edit(picture(100, 1000), "smile", "", editor="paint", fit="pad").size == (1000, 100)
    with pytest.warns(UserWarning, match="fit=crop leaves out 90%"):
        assert mmgen.edit(picture(100, 1000), "smile", "", editor="paint").size == (1000, 100)


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.strip() == f"mmgen {mmgen.__version__}"


def test_bytes_and_open_images_keep_alpha_too():
    buffer = io.BytesIO()
    Image.fromarray(picture(channels=4)).save(buffer, "PNG")
    for source in (buffer.getvalue(), Image.open(buffer), picture(channels=4)):
        assert mmgen.edit(source, "smile", "", editor="paint").mode == "RGBA"


def test_a_folder_may_hold_the_result_of_one_image(tmp_path, capsys, monkeypatch):
    Image.fromarray(picture()).save(tmp_path / "me.png")
    (tmp_path / "there").mkdir()
    assert run(capsys, tmp_path / "me.png", "smile", "-o", tmp_path / "there")["file"] == str(tmp_path / "there/me.png")
    assert run(capsys, tmp_path / "me.png", "smile", "-o", f"{tmp_path}/new/")["file"] == str(tmp_path / "new/me.png")
    assert "is the source image" in run(capsys, tmp_path / "me.png", "smile", "-o", tmp_path, code=1)
    monkeypatch.chdir(tmp_path / "new")
    assert len(run(capsys, ".", "smile", "-o", tmp_path / "dot")["files"]) == 1
    assert (tmp_path / "dot/me.png").exists()


def test_a_mask_that_allows_everything_is_told():
    source = Image.fromarray(picture())
    clear = Image.new("RGBA", source.size, (0, 0, 0, 0))
    for mask in (Image.new("L", source.size, 255), clear):
        with pytest.warns(UserWarning, match="white all over .*paint black what stays"):
            mmgen.edit(source, "smile", editor=Paint(), mask=mask)


def test_the_first_frame_of_an_animation_is_edited_with_a_warning(tmp_path):
    frames = [Image.fromarray(picture()), Image.new("RGB", (160, 120))]
    frames[0].save(tmp_path / "me.tif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="2 frames or pages; number 1 is read"):
        assert (read_picture(tmp_path / "me.tif").pixels == picture()).all()
