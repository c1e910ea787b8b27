"Colours, squares and sources of the images that people bring."

import io
import os
import struct
import warnings

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms

from mmgen.base.settings import FITS
from mmgen.danbooru.images import dump_image
from mmgen.data import images as pictures
from mmgen.data.caption_text import SourceError
from mmgen.data.images import ImageError, ImageNotice, open_image, read_image
from mmgen.data.pairs import load_pairs
from mmgen.data.sources import to_arrays
from mmgen.editing.config import EditConfig
from mmgen.jobs.registry import PRESETS


def fixed(*values):
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(kind, tags):
    "A colour profile by hand (ICC.1:2001). kind: class, colour space and connection space, 4 letters each."
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 79,
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249),
    } | tags
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    head = (
        b"none"
        + struct.pack(">I", 0x02400000)
        + kind
        + struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
        + b"acsp"
        + b"\0" * 28
        + fixed(0.9642, 1, 0.8249)
    )
    return struct.pack(">I", 128 + len(table + body)) + head + b"\0" * (124 - len(head)) + table + body


def icc(gamma, matrix=None):
    "A profile of a gamma curve, and the primaries' XYZ in D50; grey without primaries."
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    if matrix is None:
        tags = {b"kTRC": curve}
    else:
        tags = {letter + b"XYZ": b"XYZ \0\0\0\0" + fixed(*xyz) for letter, xyz in zip((b"r", b"g", b"b"), matrix)} | {
            letter + b"TRC": curve for letter in (b"r", b"g", b"b")
        }
    return profile(b"mntr" + (b"RGB " if matrix else b"GRAY") + b"XYZ ", tags)


ADOBE = icc(
    563 / 256, ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
)  # Adobe RGB (1998)
P3 = icc(
    2.2, ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
)  # Display P3's primaries
LINEAR = icc(1.0)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREEN = (112, 179, 84)  # sRGB (60, 180, 75) in Adobe RGB


def stored(image, format="PNG", **options):
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, format, **options)
    return file.getvalue()


def near(image, colour, by=2):
    return np.abs(np.asarray(image, int).reshape(-1, 3) - colour).max() <= by


@pytest.fixture
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    "format, options, by",
    [
        ("PNG", {}, 1),
        ("JPEG", {"quality": 95}, 2),
        ("WEBP", {"lossless": True}, 1),
        ("TIFF", {}, 1),
        ("AVIF", {"quality": 100}, 6),
    ],
)
def test_adobe_rgb_is_read_as_the_colours_that_it_means(silent, format, options, by):
    flat = Image.new("RGB", (16, 16), GREEN)
    assert near(open_image(stored(flat, format, **options)), GREEN, by)  # without the profile
    assert near(open_image(stored(flat, format, icc_profile=ADOBE, **options)), (60, 180, 75), by)
    assert near(open_image(stored(flat, format, icc_profile=SRGB, **options)), GREEN, by)


def test_profiles_as_another_program_converts_them(silent):
    "Against littleCMS called on its own, and P3's red against the published formula."
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    wanted = ImageCms.profileToProfile(
        Image.fromarray(pixels),
        io.BytesIO(P3),
        ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert np.array_equal(open_image(stored(pixels, icc_profile=P3)), wanted)
    value, to_srgb = (
        np.array([0.6, 0.4, 0.3]) ** 2.2,
        np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]]),
    )
    light = to_srgb @ value
    assert near(
        open_image(stored(Image.new("RGB", (2, 2), (153, 102, 77)), icc_profile=P3)),
        255 * (1.055 * light ** (1 / 2.4) - 0.055),
        2,
    )


def test_profiles_in_other_modes(silent):
    flat, meant = Image.new("RGB", (16, 16), GREEN), (60, 180, 75)
    for image in (flat.convert("RGBA"), flat.convert("P", palette=Image.Palette.ADAPTIVE)):
        assert near(open_image(stored(image, icc_profile=ADOBE)), meant)
    clear = flat.convert("RGBA")
    clear.putalpha(Image.fromarray(np.repeat(np.uint8([[0], [255]]), 8, 0).repeat(16, 1)))
    out = open_image(stored(clear, icc_profile=ADOBE))
    assert near(out[:8], 255, 0) and near(out[8:], meant)
    see_through = Image.new("P", (16, 16), 0)
    see_through.putpalette([*GREEN, 9, 9, 9])
    see_through.putpixel((0, 0), 1)
    out = open_image(stored(see_through, icc_profile=ADOBE, transparency=1))
    assert near(out[0, 0], 255, 0) and near(out[1:], meant)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(
        stored(Image.new("RGB", (8, 4), GREEN), "JPEG", exif=exif, icc_profile=ADOBE, quality=95)
    ).shape == (8, 4, 3)
    assert near(
        open_image(stored(Image.new("RGB", (8, 4), GREEN), "JPEG", exif=exif, icc_profile=ADOBE, quality=95)), meant
    )


def test_grey_profiles(silent):
    "Linear 55/255 is 0.2157 of the light: sRGB 128."
    deep = Image.fromarray(np.full((4, 4), 55 * 257, np.uint16))
    for image in (Image.new("L", (4, 4), 55), Image.new("LA", (4, 4), (55, 255)), deep):
        assert near(open_image(stored(image, icc_profile=LINEAR)), 128, 0)
    assert near(open_image(stored(Image.new("LA", (4, 4), (55, 0)), icc_profile=LINEAR)), 255, 0)
    assert near(
        open_image(stored(Image.new("L", (4, 4), 255), icc_profile=ADOBE)), 255, 0
    )  # a grey image of a program that works in RGB


def test_cmyk_and_lab(silent):
    assert near(open_image(stored(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)), (255, 0, 0))
    lab = Image.frombytes(
        "LAB", (1, 1), bytes((round(0.5 * 255), 0, 0))
    )  # L* 50, no colour: 18.4 % of the light, sRGB 119
    assert near(open_image(stored(lab, "TIFF")), 119)
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (4, 4), (60, 180, 75)),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert near(open_image(stored(lab, "TIFF")), (60, 180, 75), 8)  # Lab of 8 bits is coarse


def cmyk_profile():
    "A CMYK profile with a table of 2⁴ corners (lut8) from ink to Lab; its colours are not the product (1 - C)(1 - K)."
    corners = b""
    for c in (0, 1):
        for m in (0, 1):
            for y in (0, 1):
                for k in (0, 1):
                    light = max(0, 95 - 35 * c - 45 * m - 8 * y - 90 * k)
                    corners += bytes(
                        (
                            round(light * 2.55),
                            max(0, min(255, 128 - 37 * c + 74 * m)),
                            max(0, min(255, 128 - 50 * c + 93 * y)),
                        )
                    )
    ramp = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + ramp * 4 + corners + ramp * 3
    return profile(b"prtrCMYKLab ", {b"A2B0": lut, b"A2B1": lut})


def test_cmyk_with_a_profile(silent):
    ink = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # Lab (60, -37, -50)
    wanted = ImageCms.profileToProfile(
        ink,
        io.BytesIO(cmyk_profile()),
        ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        "RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    for format in ("TIFF", "JPEG"):
        out = open_image(stored(ink, format, icc_profile=cmyk_profile()), 8, fit="pad")
        assert near(out, wanted.getpixel((0, 0)), 3) and not near(out, (0, 255, 255), 40)


@pytest.mark.parametrize(
    "profile, why",
    [
        (b"x", "it is damaged"),
        (ADOBE[:200], "it is damaged"),
        (b"\0" * 300, "it is damaged"),
        (LINEAR, "it is for GRAY images"),
        (cmyk_profile(), "it is for CMYK images"),
    ],
)
def test_profiles_that_cannot_be_used_are_told_and_ignored(profile, why):
    with pytest.warns(
        ImageNotice, match=f"The colour profile of an image is not used: {why}.*; its colours are treated as sRGB."
    ) as told:
        assert near(open_image(stored(Image.new("RGB", (4, 4), GREEN), icc_profile=profile)), GREEN, 0)
    assert len(told) == 1


def rows(images, **columns):
    return datasets.Dataset.from_dict(
        {"image": [{"bytes": data, "path": None} for data in images], "text": ["a"] * len(images), **columns},
        datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
    )


@pytest.mark.parametrize("limit", [4e9, 0])  # in memory; decoded when indexed
def test_what_is_told_of_a_data_set_is_counted(limit):
    images = [stored(Image.new("RGB", (4, 4), GREEN), icc_profile=b"x" if n % 3 == 0 else ADOBE) for n in range(10)]
    with pytest.warns(ImageNotice, match="The colour profiles of 4 of 10 images are not used") as told:
        found, _ = to_arrays(rows(images), 4, limit)
    assert len(told) == 1 and near(found[range(10)][1], (60, 180, 75)) and near(found[range(10)][3], GREEN, 0)
    tall = rows([stored(Image.new("RGB", (10, 30))), stored(Image.new("RGB", (20, 20)))] * 3)
    with pytest.warns(
        ImageNotice,
        match="fit=crop leaves out 34% of the images' area, on average of 6 images; "
        "fit=pad keeps all of it, fit=top the upper part",
    ) as told:
        to_arrays(rows([stored(Image.new("RGB", (10, 30))), stored(Image.new("RGB", (201, 200)))] * 3), 8, limit)
    assert len(told) == 1
    for fit in ("pad", "top"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            to_arrays(tall, 8, limit, fit)


# squares


def person():
    "100 × 300: a head in the upper third."
    image = np.full((300, 100, 3), 235, np.uint8)
    image[10:90, 10:90], image[90:] = (225, 170, 130), (60, 90, 170)
    return image


def head(image):
    return (np.abs(image.astype(int) - (225, 170, 130)).max(-1) < 9).mean()


def test_a_standing_person_keeps_the_head():
    with pytest.warns(
        ImageNotice,
        match=r"is far from square, and fit=crop leaves out 67% of it; fit=pad keeps all of it, fit=top its upper part",
    ):
        assert head(open_image(person(), 64)) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        top, pad, wide = (
            open_image(person(), 64, fit="top"),
            open_image(person(), 64, fit="pad"),
            open_image(person().transpose(1, 0, 2), 64, fit="pad"),
        )
        open_image(person()[:140], 64)  # 29 % are no reason for a warning
        open_image(person())  # nothing is cut off
    assert head(top) == pytest.approx(0.64, abs=0.06)
    assert (
        head(pad) == pytest.approx(0.64 / 9, abs=0.015)
        and (pad[:, :20] == 255).all()
        and (pad[:, -20:] == 255).all()
        and pad.shape == (64, 64, 3)
    )
    assert np.array_equal(wide, pad.transpose(1, 0, 2)) or np.abs(wide.astype(int) - pad.transpose(1, 0, 2)).max() <= 1
    with pytest.warns(ImageNotice):
        centre = open_image(person().transpose(1, 0, 2), 64)
    assert np.array_equal(open_image(person().transpose(1, 0, 2), 64, fit="top"), centre)  # wide: the centre


@pytest.mark.parametrize("fit", FITS)
def test_squares_of_any_shape(fit):
    for shape in ((1, 1, 3), (1, 3_000, 3), (3_000, 1, 3), (7, 5, 3)):
        image = np.full(shape, 90, np.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageNotice)
            out = open_image(image, 16, fit=fit)
        assert out.shape == (16, 16, 3) and set(np.unique(out)) <= {90, 255} and (fit == "pad" or (out == 90).all())


def test_a_dump_keeps_heads_too():
    kept = {
        fit: head(
            np.asarray(Image.open(io.BytesIO(dump_image(stored(person()), 64, fit, trim=False, format="png").data)))
        )
        for fit in FITS
    }
    assert kept["crop"] == 0 and kept["pad"] > 0.05 and kept["top"] > 0.5


def test_every_job_and_edit_have_fit():
    from mmgen.jobs.registry import JOBS

    for job in (*PRESETS, "edit", "pretrained", "prepare_danbooru"):
        config = JOBS[job].presets["small"]
        assert config.fit == "crop" and type(config).choices["fit"] == FITS, job
    with pytest.raises(ValueError, match="edit: fit must be one of crop, pad, top, not 'padd'; did you mean 'pad'"):
        EditConfig(fit="padd")


def test_edit_opens_an_image_as_it_is_told(tmp_path):
    from mmgen.app.workbench import open_source
    from mmgen.editing.editor import CopyInput

    Image.fromarray(person()).save(tmp_path / "a.png")
    for fit in ("pad", "top"):
        assert head(open_source(EditConfig(image=str(tmp_path / "a.png"), source="a", fit=fit), CopyInput())[0]) > 0.05


def test_a_job_trains_on_what_fit_keeps(tmp_path):
    "Images of a folder for training and for validation; the hash in the record is another one."
    from mmgen.data.columns import load_columns
    from mmgen.data.sources import content_sha256
    from mmgen.jobs.registry import config_for

    for n in range(6):
        Image.fromarray(person()).save(tmp_path / f"{n}.png")
        (tmp_path / f"{n}.txt").write_text("a person")
    hashes = set()
    with pytest.warns(ImageNotice, match="fit=crop leaves out 67%") as told:
        for fit in FITS:
            columns, held_out, _ = load_columns(config_for("autoencoder", "smoke", data=str(tmp_path), fit=fit))
            red = (held_out[:, 0] > held_out[:, 2] + 0.3).float().mean()
            assert (head(columns["image"]) > 0.03) == (red > 0.03).item() == (fit != "crop"), fit
            hashes.add(content_sha256(columns["image"]))
    assert len(hashes) == 3 and len([one for one in told if one.category is ImageNotice]) <= 2


def test_images_of_shards_are_fitted_too(tmp_path):
    "Latents that were computed of one square are not taken for those of another."
    from mmgen.data.shards import ShardWriter, shard_schema, write_manifest
    from mmgen.data.sources import load_source

    with ShardWriter(tmp_path, "train", shard_schema()) as writer:
        writer.add(
            {
                "image": [{"bytes": stored(person()), "path": None}] * 2,
                "tags": [["a"]] * 2,
                "id": [1, 2],
                "rating": ["g"] * 2,
                **{name: [1, 1] for name in ("score", "width", "height")},
            }
        )
    write_manifest(tmp_path, {"train": writer.entries}, list(shard_schema().names))
    source = load_source(str(tmp_path))
    assert [head(source.images(32, fit)[:]) > 0.03 for fit in FITS] == [False, True, True]
    assert (
        len({source.images(32, fit).fingerprint for fit in FITS}) == 3
        and source.images(32).fingerprint == source.images(32, "crop").fingerprint
    )
    with pytest.warns(ImageNotice, match="fit=crop leaves out 67%"):
        to_arrays(source, 32)


def test_pairs_keep_heads(tmp_path):
    original = person()
    edited = original.copy()
    edited[92:160, 30:60] = (0, 200, 0)
    picture, edited = ({"bytes": stored(image), "path": None} for image in (original, edited))
    datasets.Dataset.from_dict(
        {"input_image": [picture] * 4, "edited_image": [edited] * 4, "edit_prompt": ["a"] * 4},
        datasets.Features(
            {"input_image": datasets.Image(), "edited_image": datasets.Image(), "edit_prompt": datasets.Value("string")}
        ),
    ).save_to_disk(str(tmp_path / "pairs"))
    with pytest.warns(ImageNotice, match="fit=crop leaves out 67%") as told:
        assert head(load_pairs(str(tmp_path / "pairs"), 4, 32)[0]) == 0
    assert len(told) == 1 and head(load_pairs(str(tmp_path / "pairs"), 4, 32, fit="top")[1]) > 0.5


# sources


@pytest.mark.parametrize(
    "size",
    [
        0,
        -1,
        2.0,
        64.5,
        float("nan"),
        float("inf"),
        "64",
        True,
        None.__class__,
        [8],
        (8, 8),
        {},
        10**30,
        -(10**30),
        10**5000,
        2**31,
        8_001,
        np.float32(8),
        np.array([8]),
        object(),
    ],
    ids=lambda size: type(size).__name__,
)
def test_sizes_that_are_none(size):
    with pytest.raises(
        ImageError, match=r"^size is .*; it must be (a whole number of pixels, or None|from 1 to 8000 pixels)"
    ):
        open_image(person(), size)


def test_sizes_that_are_some(silent):
    for size in (8, np.int64(8), np.uint8(8)):
        assert open_image(person()[:100], size).shape == (8, 8, 3)
    with pytest.raises(ImageError, match="fit is 'centre'; it must be one of crop, pad, top"):
        open_image(person(), 8, fit="centre")
    with pytest.raises(ImageError, match="max_pixels is nan; it must be a number of pixels"):
        open_image(person(), 8, max_pixels=float("nan"))


def test_sources_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    closed = io.BytesIO(b"x")
    closed.close()
    for source, message in (
        (tmp_path / "pipe.png", "The image pipe.png cannot be opened: it is a named pipe, not a file"),
        (tmp_path, "cannot be opened: it is a folder"),
        ("/dev/null", "null cannot be opened: it is a device"),
        (tmp_path / "empty.png", r"The image empty.png is empty \(0 bytes\)"),
        (tmp_path / "gone.png", "gone.png is a link to 'nowhere.png', which does not exist"),
        (
            "https://example.org/a.png",
            "https://example.org/a.png is an address, and images are read from files: download it first",
        ),
        ("", "The path of the image is empty"),
        ("a\0b", "cannot be opened: embedded null byte"),
        ("x" * 300, "cannot be opened: File name too long"),
        (None, "is of the type NoneType; it must be a path, the bytes of a file, an open file"),
        ([1], "is of the type list"),
        (5, "is of the type int"),
        (float("nan"), "is of the type float"),
        (object(), "is of the type object"),
        (io.StringIO("a"), "is a file opened in text mode; open it with mode 'rb'"),
        (closed, "closed file"),
        (np.zeros((4, 4, 3)), r"an array of float64 of shape \(4, 4, 3\); uint8 of shape \(H, W, 3\) is needed"),
        (np.zeros((0, 4, 3), np.uint8), "uint8 of shape"),
        (Image.new("RGB", (0, 4)), "has 0 × 4 pixels"),
    ):
        with pytest.raises(ImageError, match=message):
            open_image(source, 8)


@pytest.mark.parametrize(
    "head, message",
    [
        (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            "a HEIC image, for which Pillow needs a plug-in: pip install pillow-heif",
        ),
        (b"\xff\x0a\xfa\x1f", "a JPEG XL image, .* pip install pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"plain", "not in an image format that Pillow reads"),
    ],
)
def test_files_of_other_kinds_are_named(head, message, monkeypatch):
    monkeypatch.setattr(pictures, "image_formats", lambda: ["PNG", "JPEG"])  # as without plug-ins
    with pytest.raises(ImageError, match=message):
        open_image(head)


def test_plug_ins_of_pillow_are_registered(monkeypatch):
    called = []
    plugin = type("module", (), {"register_heif_opener": staticmethod(lambda: called.append("heif"))})

    def find(name):
        if name == "pillow_heif":
            return plugin
        raise ImportError(name)

    monkeypatch.setattr(pictures.importlib, "import_module", find)
    assert "EPS" not in pictures.image_formats.__wrapped__() and called == ["heif"]


def test_read_image_is_what_open_image_shows():
    assert np.array_equal(read_image(stored(person())), open_image(stored(person())))


def as_bytes(files):
    return pa.array(files, pa.binary())


def as_structs(files):
    return pa.array([{"bytes": file, "path": None} for file in files])


@pytest.mark.parametrize(
    "column",
    [
        as_bytes,
        as_structs,
        lambda files: pa.array(files, pa.large_binary()),
        lambda files: pa.array([{"path": "a.png", "bytes": file} for file in files]),
        lambda files: pa.array([{"bytes": file} for file in files]),
    ],
)
def test_pairs_in_plain_parquet(tmp_path, column):
    "As pandas, DuckDB or Spark write them, without the features of `datasets`"
    files = [stored(Image.new("RGB", (8, 8), (20 * n, 0, 0))) for n in range(4)]
    pairs = {"input_image": column(files), "edit_prompt": list("abcd"), "edited_image": column(files[::-1])}
    pq.write_table(pa.table(pairs), tmp_path / "pairs.parquet")
    images, edited, prompts, back, *_ = load_pairs(str(tmp_path / "pairs.parquet"), 4, 8)
    for image, target, prompt in zip(images, edited, prompts):
        n = "abcd".index(prompt)
        assert (image[..., 0] == 20 * n).all() and (target[..., 0] == 60 - 20 * n).all()
    assert back is None


def test_pairs_without_images_are_refused_in_a_sentence(tmp_path):
    pairs = {"input_image": [1, 2], "edit_prompt": ["a", "b"], "edited_image": [1, 2]}
    pq.write_table(pa.table(pairs), tmp_path / "pairs.parquet")
    with pytest.raises(SourceError, match="column input_image of the set of pairs .* has int64; it needs images: the"):
        load_pairs(str(tmp_path / "pairs.parquet"), 2)
    pairs |= {name: as_bytes([stored(Image.new("RGB", (8, 8)))[:40]] * 2) for name in ("input_image", "edited_image")}
    pq.write_table(pa.table(pairs), tmp_path / "pairs.parquet")
    with pytest.raises(
        SourceError, match="no pairs to use: 2 with a file that cannot be read .row .: The image is not"
    ):
        load_pairs(str(tmp_path / "pairs.parquet"), 2)
