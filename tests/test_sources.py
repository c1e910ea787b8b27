"Images that people bring, data sets, and batches as a function of the step."

import io
import random
import struct
import zlib

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mmgen.data import portraits
from mmgen.data.batches import Batches, cached
from mmgen.data.caption_text import SourceError, SourceNotice
from mmgen.data.images import ImageError, ImageNotice, open_image
from mmgen.data.sources import ImageColumn, Source, load_source, to_arrays

PHOTO = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def stored(image, format="PNG", **options):
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, format, **options)
    return file.getvalue()


def png_header(width, height):
    "A PNG of a few bytes that says it is large."
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_open_image_takes_paths_bytes_files_and_arrays(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(stored(PHOTO))
    with open(path, "rb") as file:
        for source in (
            path,
            str(path),
            path.read_bytes(),
            memoryview(path.read_bytes()),
            file,
            PHOTO,
            Image.fromarray(PHOTO),
        ):
            out = open_image(source)
            assert out.dtype == np.uint8 and np.array_equal(out, PHOTO)


@pytest.mark.parametrize("orientation, turn", [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation(orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(open_image(stored(PHOTO, "PNG", exif=exif)), np.rot90(PHOTO, turn))


def test_exif_with_a_field_of_a_wrong_type_turns_all_the_same():
    "Orientation 6, and ResolutionUnit as text."
    exif = b"Exif\0\0II*\0\x08\0\0\0\2\0" + struct.pack("<HHIHHHHI4sI", 274, 3, 1, 6, 0, 296, 2, 4, b"two\0", 0)
    file = io.BytesIO()
    Image.fromarray(np.dstack([np.arange(64, dtype=np.uint8).reshape(4, 16)] * 3)).save(file, "JPEG", exif=exif)
    assert open_image(file.getvalue()).shape == (16, 4, 3)


def test_transparency_goes_on_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0], rgba[0, 1] = (255, 0, 0, 255), (0, 0, 0, 128)
    out = open_image(stored(rgba))
    assert out[0, 0].tolist() == [255, 0, 0] and out[1, 1].tolist() == [255] * 3 and abs(int(out[0, 1, 0]) - 127) <= 1
    gray_alpha = Image.fromarray(rgba).convert("LA")
    assert open_image(stored(gray_alpha))[1, 1].tolist() == [255] * 3
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.putpixel((1, 0), 1)
    assert open_image(stored(palette, transparency=0)).tolist() == [[[255] * 3, [9, 8, 7]]]


def test_gray_cmyk_bits_and_floats():
    gray = PHOTO[..., 0]
    assert np.array_equal(open_image(stored(gray)), np.repeat(gray[..., None], 3, -1))
    flat = Image.new("RGB", (16, 16), (200, 40, 90))
    assert np.abs(open_image(stored(flat.convert("CMYK"), "JPEG", quality=95)).astype(int) - (200, 40, 90)).max() <= 3
    deep = np.array([[0, 257, 65535]], np.uint16)
    assert open_image(stored(deep))[0, :, 0].tolist() == [0, 1, 255]
    dark = np.array([[0, 200, 257]], np.uint16)  # a dark 16-bit image stays dark
    assert open_image(stored(dark))[0, :, 0].tolist() == [0, 1, 1]
    assert open_image(stored(Image.fromarray(deep), "TIFF"))[0, :, 0].tolist() == [0, 1, 255]
    floats = np.array([[0, 0.5, 1]], np.float32)
    assert open_image(stored(floats, "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    assert open_image(stored(Image.new("1", (2, 2), 1))).min() == 255


def test_animation_gives_the_first_frame():
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "lime")]
    for format in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if format == "WEBP" else {}
        out = open_image(stored(frames[0], format, save_all=True, append_images=frames[1:], **options))
        assert (out == (255, 0, 0)).all(), format


def test_one_pixel():
    dot = stored(Image.new("RGB", (1, 1), (1, 2, 3)))
    assert open_image(dot).shape == (1, 1, 3)
    assert (open_image(dot, size=64) == (1, 2, 3)).all() and open_image(dot, size=64).shape == (64, 64, 3)


def test_size_takes_the_centre_with_antialiasing():
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, :64], wide[:, 128:] = (255, 0, 0), (0, 0, 255)
    wide[::2, 64:128] = 255  # lines that disappear into gray
    for image in (wide, wide.transpose(1, 0, 2)):
        with pytest.warns(ImageNotice, match="fit=crop leaves out 67% of it"):
            out = open_image(image, size=16)[2:-2, 2:-2]
        assert out.shape == (12, 12, 3) and np.abs(out.astype(int) - 127).max() < 12


def test_bad_images_are_one_sentence(tmp_path):
    photo = stored(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    jpeg = stored(PHOTO.repeat(8, 0).repeat(8, 1), "JPEG")
    for data in (photo[: len(photo) // 2], jpeg[: len(jpeg) // 2], photo[:60]):
        with pytest.raises(ImageError, match="damaged or truncated"):
            open_image(data)
    with pytest.raises(ImageError, match="The image is empty"):
        open_image(b"")
    for data in (b"hello", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(ImageError, match="not in an image format|damaged"):
            open_image(data)
    with pytest.raises(ImageError, match="nothing.png does not exist"):
        open_image(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match="cannot be opened"):
        open_image(tmp_path)


@pytest.mark.parametrize("side", [8_500, 12_000, 20_000])
def test_bomb_is_refused_before_decoding(side, recwarn):
    with pytest.raises(ImageError, match="at most 64 million"):
        open_image(png_header(side, side))
    with pytest.raises(ImageError, match="damaged"):
        open_image(png_header(50, 50))
    assert not recwarn.list


@pytest.fixture
def folder(tmp_path):
    for n in range(40):
        Image.new("RGB", (12, 10), (6 * n, 0, 0)).save(tmp_path / f"{n:02}.png")
        (tmp_path / f"{n:02}.txt").write_text(f"shade {n},  red hair\nsmile")
    return tmp_path


def numbers(dataset):
    return [int(t[0].split()[1]) for t in dataset["tags"]]


def test_folder(folder):
    parts = {split: load_source(str(folder), split) for split in ("train", "validation", "test")}
    assert [len(p) for p in parts.values()] == [36, 2, 2]
    assert sorted(sum((numbers(p) for p in parts.values()), [])) == list(range(40))
    assert parts["train"][0]["tags"][1:] == ["red hair", "smile"]
    assert numbers(load_source(str(folder))) == numbers(parts["train"]) != numbers(load_source(str(folder), seed=1))
    assert numbers(load_source(str(folder), images=5)) == numbers(parts["train"])[:5]
    images, tags = to_arrays(parts["train"], 8)
    assert images.shape == (36, 8, 8, 3) and all(
        (i[..., 0] == 6 * int(t[0].split()[1])).all() for i, t in zip(images, tags)
    )
    assert np.array_equal(parts["train"].images(8)[[3, 1]], images[[3, 1]])


def test_folder_with_splits(folder):
    for part in ("train", "val"):
        (folder / part).mkdir()
        for n in range(3):
            for suffix in (".png", ".txt"):
                name = f"{n + (10 if part == 'train' else 0):02}{suffix}"
                (folder / name).rename(folder / part / name)
    with pytest.warns(
        SourceNotice, match="3 images in train/ and 3 images in val/; 34 outside of these folders are left out"
    ):
        assert sorted(numbers(load_source(str(folder), "validation"))) == [0, 1, 2]
    (folder / "train").rename(folder / "Train")
    (folder / "rest").mkdir()
    with pytest.warns(SourceNotice):
        assert sorted(numbers(load_source(str(folder), "train"))) == [10, 11, 12]
    (folder / "Train").rename(folder / "frogs")
    with pytest.raises(SourceError, match="has 3 images in val/, and 37 outside of such folders: move those to train/"):
        load_source(str(folder))
    (folder / "val").rename(folder / "valley")
    assert len(load_source(str(folder))) == 36


def test_bad_folders(folder, tmp_path):
    (folder / "07.txt").unlink()
    with pytest.raises(SourceError, match="1 of 40 images .* 07.png needs 07.txt"):
        load_source(str(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="has no images"):
        load_source(str(tmp_path / "empty"))


def test_broken_image_names_its_row(folder):
    (folder / "03.png").write_bytes((folder / "03.png").read_bytes()[:50])
    with pytest.raises(ImageError, match=r"Row \d+: The image 03.png is damaged"):
        for split in ("train", "validation", "test"):
            to_arrays(load_source(str(folder), split), 8)


def as_parquet(path, **columns):
    datasets.Dataset.from_dict(columns).to_parquet(str(path))
    return str(path)


def test_parquet_with_text_and_raw_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    raw = [stored(np.full((4, 4, 3), n, np.uint8)) for n in range(30)]
    data = load_source(as_parquet(tmp_path / "a.parquet", image=raw, text=[f"number {n}" for n in range(30)]))
    images, texts = to_arrays(data, 4)
    assert len(images) == 26 and all((i == int(t.split()[1])).all() for i, t in zip(images, texts))


def test_columns_are_named(tmp_path):
    with pytest.raises(SourceError, match="has the columns picture, tags; it needs image, and tags or text"):
        load_source(as_parquet(tmp_path / "a.parquet", picture=[b"x"] * 5, tags=[["a"]] * 5))
    with pytest.raises(SourceError, match="has the columns image, label"):
        load_source(as_parquet(tmp_path / "b.parquet", image=[b"x"] * 5, label=[1] * 5))


def test_bad_sources(tmp_path, monkeypatch):
    with pytest.raises(SourceError, match="does not exist"):
        load_source(str(tmp_path / "no.parquet"))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        load_source(str(tmp_path / "bad.parquet"))

    def offline(name):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(SourceError, match="'some/name' is neither portraits.*ConnectionError"):
        load_source("some/name")
    with pytest.raises(SourceError, match="no split 'tra'"):
        load_source(str(tmp_path), "tra")
    with pytest.raises(SourceError, match="images is 0"):
        load_source("portraits", images=0)


def test_rows_that_hold_no_image(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (4, 4)), None], "text": ["a", "b"]}, features=features
    )
    with pytest.raises(ImageError, match="Row 1 has no image"):
        ImageColumn(rows, 4)[[0, 1]]
    datasets.Dataset.from_dict({"image": [5] * 4, "text": list("abcd")}).to_parquet(tmp_path / "numbers.parquet")
    with pytest.raises(SourceError, match="The column image of the data set .*numbers.parquet has no images"):
        load_source(str(tmp_path / "numbers.parquet"))


def test_brackets_and_stars_in_a_name_are_no_pattern(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name, n in (("x[1].parquet", 3), ("x1.parquet", 5), ("x*.parquet", 4)):
        file = io.BytesIO()
        Image.new("RGB", (4, 4)).save(file, "PNG")
        datasets.Dataset.from_dict(
            {"image": [{"bytes": file.getvalue(), "path": None}] * n, "text": ["a"] * n}
        ).to_parquet(tmp_path / name)
    assert [
        sum(len(load_source(str(tmp_path / name), split)) for split in ("train", "validation", "test"))
        for name in ("x[1].parquet", "x*.parquet")
    ] == [3, 4]


def test_saved_dataset_dict(tmp_path):
    def rows(ns):
        images = [stored(np.full((4, 4, 3), n, np.uint8)) for n in ns]
        return datasets.Dataset.from_dict({"image": images, "tags": [[f"n {n}"] for n in ns]})

    datasets.DatasetDict(train=rows(range(5)), test=rows([9])).save_to_disk(str(tmp_path / "d"))
    assert numbers(load_source(str(tmp_path / "d"), "test")) == [9]
    assert sorted(numbers(load_source(str(tmp_path / "d")))) == list(range(5))
    with pytest.raises(SourceError, match="no validation"):
        load_source(str(tmp_path / "d"), "validation")


def test_portraits_are_loaded_in_any_style(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGEN_ROOT", str(tmp_path))
    for data, style in (
        ("portraits", "adventurer"),
        ("portraits:lorelei", "lorelei"),
        ("portraits:mixture", "mixture"),
    ):
        rows = load_source(data, "validation", size=32, images=7)
        assert len(rows) == 7 and rows["seed"] == portraits.seeds(7, "validation", style)
        assert rows[2]["tags"] == portraits.tags(portraits.sample(rows[2]["seed"], style)) != []
        assert to_arrays(rows, 32)[0].shape == (7, 32, 32, 3)
    with pytest.raises(portraits.PortraitError, match="did you mean 'lorelei'"):
        load_source("portraits:lorelai", images=7)


def test_batches_are_a_function_of_the_step():
    columns = {"x": np.arange(10), "y": torch.arange(10) * 2, "z": [str(n) for n in range(10)]}
    a, b = Batches(columns, 4, seed=1), Batches(columns, 4, seed=1)
    later = b.batch(6)
    for step in range(7):
        batch = a.batch(step)
    assert all(torch.equal(batch[k], later[k]) for k in ("x", "y", "index")) and batch["z"] == later["z"]
    assert (
        batch["index"].tolist()
        == a.ids(6)
        == batch["x"].tolist()
        == [int(z) for z in batch["z"]]
        == (batch["y"] // 2).tolist()
    )
    stream = [i for step in range(5) for i in a.ids(step)]
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10)) and stream[:10] != stream[10:]
    assert Batches(columns, 4, seed=2).ids(0) != a.ids(0)
    assert len(Batches(columns, 25, seed=0).ids(3)) == 25 and len(a) == 10


def test_two_processes_take_turns():
    a = Batches({"x": np.arange(16)}, 4, seed=0)
    seen = [i for step in range(2) for rank in range(2) for i in a.batch(2 * step + rank)["x"].tolist()]
    assert sorted(seen) == list(range(16))


def test_transform_draws_by_step():
    def shift(batch, rng):
        return {**batch, "x": batch["x"] + rng.random()}

    a = Batches({"x": np.zeros(8)}, 2, 0, shift)
    first = a.batch(3)["x"]
    random.seed(5)
    assert torch.equal(a.batch(3)["x"], first) and not torch.equal(a.batch(4)["x"], first)


def test_bad_columns():
    with pytest.raises(ValueError, match="one length above 0"):
        Batches({"a": [1], "b": [1, 2]}, 1, 0)
    with pytest.raises(ValueError, match="one length above 0"):
        Batches({"a": []}, 1, 0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        Batches({"a": [1]}, 0, 0)


def test_cache(tmp_path):
    made = []
    make = lambda: made.append(1) or {"z": torch.randn(3)}
    first = cached("z", {"a": 1}, make, tmp_path)
    assert torch.equal(cached("z", {"a": 1}, make, tmp_path)["z"], first["z"]) and len(made) == 1
    file = next(tmp_path.glob("z-*.safetensors"))
    file.write_bytes(file.read_bytes()[:20])
    with pytest.warns(UserWarning, match="damaged"):
        cached("z", {"a": 1}, make, tmp_path)
    assert len(made) == 2


def test_postscript_which_another_program_would_run_is_no_picture():
    with pytest.raises(ImageError, match="not in an image format that Pillow reads"):
        open_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


def test_all_16_bit_greys_become_the_nearest_of_8_bits():
    grey = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(open_image(stored(grey))[..., 0], (grey / 257).round())


def test_a_source_of_ones_own_is_trained_on(folder):
    "Whatever implements the protocol is read, without `datasets` or shards"

    class Flags(Source):
        column_names, streamed = ["image", "text"], False

        def __len__(self):
            return 3

        def __getitem__(self, name):
            return ["red", "green", "blue"]

        def images(self, size, fit="crop"):
            return load_source(str(folder)).images(size, fit)

    images, texts = to_arrays(Flags(), 8)
    assert images.shape == (36, 8, 8, 3) and texts == ["red", "green", "blue"]


def test_the_old_module_is_named_with_its_successor():
    with pytest.raises(ModuleNotFoundError, match=r"import mmgen\.data\.sources \(open_image: mmgen\.data\.images\)"):
        import mmgen.data.loading  # noqa: F401
