"Bars, one image, the files of a dump, near-duplicates."

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmgen.base.images import psnr, to_float
from mmgen.danbooru.images import InventoryError, content_box, dump_image, files_without_post, inventory
from mmgen.danbooru.near_duplicates import duplicate_counts, near_duplicates, signature
from mmgen.danbooru.synthetic_dump import write_dump
from mmgen.data import portraits
from mmgen.data.images import ImageError

FACES = [Image.fromarray(portraits.render(portraits.sample(seed), 300)) for seed in range(40)]


def stored(image, format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def picture(width, height, seed=0, dark=0.0):
    "Soft colours with grain, a face in the middle; dark: its share of the values, 1 black."
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(70, 250, (4, 4, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    face = FACES[seed % len(FACES)].resize((min(width, height) // 2,) * 2)
    soft.paste(
        face,
        ((width - face.width) // 2, (height - face.height) // 2),
        face.convert("L").point(lambda v: 255 if v < 250 else 0),
    )
    grain = rng.normal(0, 4, (height, width, 3))
    return Image.fromarray(((np.asarray(soft) + grain) * (1 - dark)).clip(0, 255).astype(np.uint8))


def letterboxed(image, colour="black", side=512):
    "As the 512px folder has it, and the box of the picture in it."
    scale = side / max(image.size)
    small = image.resize([max(1, round(s * scale)) for s in image.size], Image.Resampling.LANCZOS)
    square, at = Image.new("RGB", (side, side), colour), ((side - small.width) // 2, (side - small.height) // 2)
    square.paste(small, at)
    return square, (*at, at[0] + small.width, at[1] + small.height)


def opened(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


@pytest.mark.parametrize("colour", ["black", "white", "#204080", "#808080"])
@pytest.mark.parametrize("quality", [60, 85, 95])
def test_bars_end_where_the_picture_begins(colour, quality):
    for seed, size in enumerate([(900, 600), (600, 900), (1000, 980), (1200, 300), (400, 1600), (901, 677)]):
        square, box = letterboxed(picture(*size, seed), colour)
        image = opened(stored(square, quality=quality))
        for found in (content_box(image, size), content_box(image)):
            inner = np.subtract(found, box) * (1, 1, -1, -1)  # how much is lost at each side
            bars = np.array([box[0] > 0, box[1] > 0, box[2] < 512, box[3] < 512])
            if max(box[0], box[1]) < 8 and found == (0, 0, 512, 512):
                continue  # bars thinner than the first look sees
            assert (inner[bars] >= -1).all() and (inner[bars] <= 3).all() and (inner[~bars] == 0).all(), (
                size,
                found,
                box,
            )


def test_the_metadata_find_thin_bars_too():
    square, box = letterboxed(picture(1000, 980), "black")
    assert content_box(opened(stored(square, quality=90)), (1000, 980)) == (0, 6, 512, 506) and box == (0, 5, 512, 507)


def test_pictures_without_bars_stay_whole():
    for seed in range(40):
        for image in (picture(400, 300, seed), picture(300, 400, seed, dark=0.8), FACES[seed]):
            image = opened(stored(image, quality=85))
            assert content_box(image, image.size) == content_box(image) == (0, 0, *image.size)


@pytest.mark.parametrize("shade", [(0, 0, 0), (9, 5, 12)])
def test_dark_portraits_lose_nothing(shade):
    "A face that fades into a black background, which has the bars' colour."
    for seed in range(40):
        face = Image.fromarray((np.asarray(FACES[seed]) * 0.3).astype(np.uint8))
        mask = FACES[seed].convert("L").point(lambda v: 255 if v < 250 else 0)
        for size, at in (
            ((400, 400), (50, 60)),
            ((500, 400), (100, 100)),
            ((320, 480), (10, 180)),
            ((300, 300), (0, 0)),
        ):
            image = Image.new("RGB", size, shade)
            image.paste(face, at, mask)
            whole = opened(stored(image, quality=85))
            assert content_box(whole) == content_box(whole, size) == (0, 0, *size), (seed, size)
            square, box = letterboxed(image)
            found = content_box(opened(stored(square, quality=85)), size)
            assert np.abs(np.subtract(found, box)).max() <= 1, (seed, size)


def test_wrong_metadata_cut_nothing_off():
    image = opened(stored(picture(512, 512), quality=90))
    for original in ((900, 600), (10, 5000), (0, 0), (1, 1), (512, 512)):
        assert content_box(image, original) == (0, 0, 512, 512)
    assert content_box(Image.new("RGB", (512, 512)), None) == (0, 0, 512, 512)
    assert content_box(Image.new("RGB", (5, 3)), (3, 5)) == (0, 0, 5, 3)


def test_crop_and_pad():
    scene = picture(900, 600, 3)
    square, _ = letterboxed(scene)
    crop, pad = (dump_image(stored(square, quality=95), 128, fit, (900, 600), format="png") for fit in ("crop", "pad"))
    exact = scene.crop((150, 0, 750, 600)).resize((128, 128), Image.Resampling.LANCZOS)
    assert psnr(to_float(np.asarray(exact)), to_float(np.asarray(opened(crop.data)))).item() > 28
    padded = np.asarray(opened(pad.data))
    assert padded.shape == (128, 128, 3) and (padded[:20] == 255).all() and (padded[-20:] == 255).all()
    exact = scene.resize((128, 85), Image.Resampling.LANCZOS)
    assert psnr(to_float(np.asarray(exact)), to_float(padded[21:106].copy())).item() > 25


def test_formats_and_their_quality():
    data = stored(picture(512, 512), quality=95)
    jpeg, png = (dump_image(data, format=format) for format in ("jpeg", "png"))
    for made, format in ((jpeg, "JPEG"), (png, "PNG")):
        image = Image.open(io.BytesIO(made.data))
        assert image.format == format and image.size == (256, 256) and image.mode == "RGB"
    assert {component[1:3] for component in Image.open(io.BytesIO(jpeg.data)).layer} == {(1, 1)}  # 4:4:4
    assert psnr(to_float(np.asarray(opened(png.data))), to_float(np.asarray(opened(jpeg.data)))).item() > 38
    assert jpeg.hash == png.hash and jpeg.thumb == png.thumb


def test_the_reduced_decode_of_large_jpegs_keeps_the_quality():
    for seed in range(3):
        data = stored(picture(1600, 2000, seed), quality=92)
        whole = opened(data).resize((256, 256), Image.Resampling.LANCZOS, box=(0, 200, 1600, 1800))
        assert (
            psnr(to_float(np.asarray(whole)), to_float(np.asarray(opened(dump_image(data, format="png").data)))).item()
            > 42
        )
    square, box = letterboxed(picture(2000, 500), side=1100)  # most of it is bars
    made = dump_image(stored(square, quality=95), format="png")
    side = box[3] - box[1]
    exact = square.resize(
        (256, 256), Image.Resampling.LANCZOS, box=((1100 - side) / 2, box[1], (1100 + side) / 2, box[3])
    )
    assert psnr(to_float(np.asarray(exact)), to_float(np.asarray(opened(made.data)))).item() > 26


def test_modes_and_turned_images():
    flat = Image.new("RGB", (80, 80), (200, 40, 90))
    turned = Image.Exif()
    turned[0x0112] = 6
    rgba = Image.new("RGBA", (80, 80), (0, 0, 0, 0))
    for data, colour in (
        (stored(flat.convert("CMYK"), quality=95), (200, 40, 90)),
        (stored(flat.quantize(4), "PNG"), (200, 40, 90)),
        (stored(flat, "WEBP", lossless=True), (200, 40, 90)),
        (stored(flat, "GIF"), (200, 40, 90)),
        (stored(rgba, "PNG"), (255,) * 3),
        (stored(Image.new("L", (80, 80), 77)), (77,) * 3),
        (stored(Image.new("1", (80, 80), 1), "PNG"), (255,) * 3),
        (stored(Image.fromarray(np.full((80, 80), 257 * 9, np.uint16)), "PNG"), (9,) * 3),
    ):
        assert np.abs(np.asarray(opened(dump_image(data, 64).data)).astype(int) - colour).max() <= 4
    half = Image.new("RGB", (80, 40), "red")
    half.paste("blue", (40, 0, 80, 40))
    image = np.asarray(opened(dump_image(stored(half, quality=95, exif=turned), 64, "pad").data)).astype(int)
    assert image[10, 32, 0] > 200 > 50 > image[10, 32, 2] and image[54, 32, 2] > 200  # red above blue


def test_damage_has_a_name(tmp_path):
    good = stored(picture(512, 512), quality=90)
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )
    large = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 9_000, 9_000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", b"")
        + chunk(b"IEND", b"")
    )
    cases = {
        "not an image": [b"", b"<!DOCTYPE html><title>404</title>", b"\x1aE\xdf\xa3 webm", b"PK\x03\x04 frames"],
        "damaged image": [good[: len(good) // 2], good[:30], good[:-500], bomb, large, b"\x89PNG\r\n\x1a\n"],
    }
    for damage, contents in cases.items():
        for n, content in enumerate(contents):
            path = tmp_path / f"{n}.jpg"
            path.write_bytes(content)
            for source in (path, str(path), content):
                with pytest.raises(ImageError) as error:
                    dump_image(source)
                assert error.value.damage == damage and str(error.value).endswith("."), (damage, content[:20])
    for path in (tmp_path / "gone.jpg", tmp_path):
        with pytest.raises(ImageError) as error:
            dump_image(path)
        assert error.value.damage == "no file"


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def test_inventory(tmp_path):
    dump = tmp_path / "dump"
    touch(
        dump,
        "512px/0001/1.jpg",
        "512px/0001/2001.jpg",
        "original/0001/1.png",
        "original/0001/3001.gif",
        "original/0002/2.zip",
    )
    touch(
        dump,
        "512px/0001/5.jpg",
        "512px/0001/notes.txt",
        "512px/0001/7001",
        "512px/README",
        "512px/1000/1000.jpg",
        "original/0001/3001.png",
        "512px/0001/x/1001.jpg",
    )
    found = inventory(dump)
    assert found.files.to_pydict() == {
        "id": [1, 2, 2001, 3001],
        "bytes": [16, 19, 19, 22],
        "path": ["512px/0001/1.jpg", "original/0002/2.zip", "512px/0001/2001.jpg", "original/0001/3001.gif"],
    }
    assert found.counts == {
        "512px": 2,
        "original": 3,
        "link out of the dump": 0,
        "wrong bucket": 1,
        "unreadable name": 5,
        "further file of an id": 1,
    }
    assert inventory(dump, ("original", "512px")).files["path"].to_pylist()[0] == "original/0001/1.png"
    assert inventory(dump, ("original",)).files["id"].to_pylist() == [1, 2, 3001]
    assert files_without_post(found.files, [1, 2, 9]).tolist() == [2001, 3001]


def test_symbolic_links_lead_nowhere_else(tmp_path):
    dump, other = tmp_path / "dump", tmp_path / "dump2"
    touch(dump, "512px/0001/1.jpg", "store/9.jpg")
    touch(other, "9.jpg", "0002/2.jpg", "secret")
    links = dump / "512px" / "0001"
    (links / "1001.jpg").symlink_to(other / "9.jpg")
    (links / "2001.jpg").symlink_to("/etc/passwd")
    (links / "3001.jpg").symlink_to("../../../dump2/secret")
    (links / "4001.jpg").symlink_to("nowhere")
    (links / "5001.jpg").symlink_to("../../store/9.jpg")
    (links / "6001.jpg").symlink_to("6001.jpg")
    (dump / "512px" / "0002").symlink_to(other / "0002")
    found = inventory(dump)
    assert found.files["id"].to_pylist() == [1, 5001] and found.counts["link out of the dump"] == 6
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "512px").symlink_to(dump / "512px")
    with pytest.raises(InventoryError, match="symbolic link"):
        inventory(tmp_path / "third")
    (tmp_path / "alias").symlink_to(dump)  # the dump itself may be named by a link
    assert inventory(tmp_path / "alias").files["id"].to_pylist() == [1, 5001]


def test_no_dump(tmp_path):
    with pytest.raises(InventoryError, match="no folder 512px or original"):
        inventory(tmp_path)
    (tmp_path / "512px").mkdir()
    with pytest.raises(InventoryError, match="0000 to 0999"):
        inventory(tmp_path)


def test_the_files_of_a_synthetic_dump(tmp_path):
    made = write_dump(tmp_path / "dump", 60, seed=2, size=96, damage={"file without post": 4, "no file": 3})
    found = inventory(tmp_path / "dump")
    assert found.counts["512px"] == made["files"]["512px"] and found.counts["original"] == made["files"]["original"]
    assert not set(made["ids"]["no file"]) & set(found.files["id"].to_pylist())
    posts = np.setdiff1d(found.files["id"].to_numpy(), made["ids"]["file without post"])
    assert files_without_post(found.files, posts).tolist() == made["ids"]["file without post"]


def signed(images):
    signs = [signature(image) for image in images]
    return np.array([h for h, _ in signs], np.uint64), np.array([np.frombuffer(t, np.uint8) for _, t in signs])


def test_copies_are_found_and_other_portraits_are_not():
    images = [Image.fromarray(portraits.render(portraits.sample(seed), 256)) for seed in range(200)]
    copies = {
        3: images[3],
        10: opened(stored(images[10], quality=40)),
        20: images[20].resize((120, 120), Image.Resampling.LANCZOS),
        30: images[30].resize((700, 700), Image.Resampling.BICUBIC),
        40: opened(stored(images[40].resize((90, 90)), "WEBP", quality=50)).resize((256, 256)),
    }
    pairs = near_duplicates(*signed(images + list(copies.values())))
    assert pairs[:, :2].tolist() == [[seed, 200 + n] for n, seed in enumerate(copies)]


def test_copies_in_a_dump_of_both_folders():
    "The same picture letterboxed in one file, and as it was posted in the other."
    scenes = [picture(900, 600, seed) for seed in range(12)]
    small = [dump_image(stored(letterboxed(scene)[0], quality=85), original=(900, 600)) for scene in scenes]
    large = [dump_image(stored(scene, "PNG"), original=(900, 600)) for scene in scenes]
    hashes = np.array([image.hash for image in small + large], np.uint64)
    thumbs = np.array([np.frombuffer(image.thumb, np.uint8) for image in small + large])
    assert {(a, b) for a, b, _ in near_duplicates(hashes, thumbs, distance=8).tolist()} >= {
        (n, n + 12) for n in range(12)
    }


@pytest.mark.parametrize("distance", [0, 1, 3, 4, 7, 10])
def test_the_search_finds_what_comparing_all_pairs_finds(distance):
    rng = np.random.default_rng(distance)
    centres = rng.integers(0, 2**64, 60, np.uint64)
    hashes = centres[rng.integers(0, 60, 600)]
    for _ in range(6):
        hashes ^= (rng.random(600) < 0.6) * (np.uint64(1) << rng.integers(0, 64, 600).astype(np.uint64))
    hashes = np.unique(hashes)
    rng.shuffle(hashes)
    bits = np.bitwise_count(hashes[:, None] ^ hashes)
    a, b = np.nonzero(np.triu(bits <= distance, 1))
    assert near_duplicates(hashes, None, distance).tolist() == np.stack([a, b, bits[a, b]], 1).tolist()
    assert distance == 0 or len(a) > 5


def test_equal_signatures_are_paired_with_the_first():
    hashes, thumbs = np.array([5, 9, 5, 5, 5], np.uint64), np.zeros((5, 192), np.uint8)
    thumbs[4] = 200
    assert near_duplicates(hashes, thumbs, 0).tolist() == [[0, 2, 0], [0, 3, 0]]
    assert near_duplicates(hashes, None, 0)[:, :2].tolist() == [[0, 2], [0, 3], [0, 4]]
    assert near_duplicates(hashes, thumbs, 0, tolerance=255)[:, :2].tolist() == [[0, 2], [0, 3], [0, 4]]
    for n in (0, 1):
        assert near_duplicates(hashes[:n], thumbs[:n]).shape == (0, 3)
    with pytest.raises(ValueError, match="0 to 10"):
        near_duplicates(hashes, thumbs, 11)


def test_plain_images_have_one_signature_however_they_are_stored():
    for colour in ("black", "white", "#305070"):
        plain = Image.new("RGB", (256, 256), colour)
        assert signature(plain)[0] == signature(opened(stored(plain, quality=30)))[0]


def test_counts_across_splits():
    splits = np.array(["train", "test", "train", "validation", "train"])
    pairs = np.array([[0, 1, 0], [0, 2, 1], [1, 2, 0], [3, 4, 4]])
    assert duplicate_counts(pairs, splits) == {
        "pairs": 4,
        "later copies": 3,
        "across splits": {"test and train": 2, "train and validation": 1},
    }
    assert duplicate_counts(pairs[:0], splits) == {"pairs": 0, "later copies": 0, "across splits": {}}


def test_an_image_of_the_caller_is_left_alone():
    from mmgen.data.images import open_image, read_image

    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(stored(Image.new("RGB", (40, 20)), exif=exif)))
    assert open_image(image).shape == (40, 20, 3) and image.size == (40, 20)
    assert read_image(stored(Image.new("RGB", (40, 20)), exif=exif)).size == (20, 40)
