"""Images, captions, tables and folders that are damaged at random: each is read, or refused in one sentence, in time.

Every input is a function of its kind and number, so a failing one can be repeated:
`outcome(*INPUTS[kind](number, folder))`."""

import contextlib
import io
import json
import os
import random
import signal
import socket
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from mmgen.app.targets import wanted_caption
from mmgen.data.caption_text import SourceError, spaced
from mmgen.data.captions import as_tags, caption, known_tags
from mmgen.data.folders import read_folder
from mmgen.data.images import ImageError, open_image
from mmgen.data.portraits import PortraitError
from mmgen.data.sources import load_source
from mmgen.editing.protocol import EditError

SECONDS = 5  # of the processor, for one input
WAIT = 60  # seconds of the clock, so that an input that sleeps is found too
GOOD = (ImageError, SourceError, EditError, PortraitError)


class Hang(BaseException):
    "Not an Exception, so that nothing on the way takes it for a damaged file."


@contextlib.contextmanager
def within(seconds, wait=WAIT):
    "Time of the processor: other work on the machine counts for nothing."

    def stop(number, _):
        raise Hang(f"longer than {seconds} s" if number == signal.SIGPROF else f"waited {wait} s")

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, wait))
    before = [signal.signal(number, stop) for number, *_ in timers]
    for _, timer, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def outcome(call, check=lambda result: True):
    "None where an input is read or refused in a sentence, else what went wrong."
    try:
        with within(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = call()
    except GOOD as e:
        text = str(e)
        return (
            None if text and "\n" not in text and len(text) < 700 and text[-1] in ".)?" else f"message: {text[:200]!r}"
        )
    except (Hang, Exception) as e:
        return f"{type(e).__name__}: {str(e)[:200]}"
    return None if check(result) else f"result: {str(result)[:200]}"


def is_image(size):
    def check(image):
        shape = image.shape if size is None else (size, size, 3)
        return (
            isinstance(image, np.ndarray)
            and image.dtype == np.uint8
            and image.shape == shape
            and shape[2:] == (3,)
            and image.size > 0
        )

    return check


def are_clean(rows):
    "Texts and tags without control characters, no-break spaces, blanks at the ends, networks; no tag is empty."
    words = [word for row in rows for word in (row if isinstance(row, list) else [row])]
    bad = lambda word: (
        word != " ".join(word.split()) or any(c in word for c in "\0\ufeff\u200b\xa0") or "<lora:" in word
    )
    return not any(map(bad, words)) and all(word for row in rows if isinstance(row, list) for word in row)


# images


def _files():
    "Small images in many formats, with profiles, EXIF, palettes and 16 bits."
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (24, 40, 3), np.uint8)).resize((40, 24))
    exif = Image.Exif()
    exif[0x0112] = 6
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for image, format, options in (
        (rgb, "PNG", {}),
        (rgb, "PNG", {"icc_profile": icc}),
        (rgb.convert("RGBA"), "PNG", {}),
        (rgb.convert("P"), "PNG", {"transparency": 0}),
        (Image.fromarray(rng.integers(0, 65536, (24, 40), np.uint16)), "PNG", {}),
        (rgb, "JPEG", {"exif": exif, "icc_profile": icc}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "JPEG", {"progressive": True}),
        (rgb, "WEBP", {"exif": exif}),
        (rgb.convert("RGBA"), "WEBP", {"lossless": True}),
        (rgb.convert("P"), "GIF", {"save_all": True, "append_images": [rgb.convert("P")]}),
        (rgb, "TIFF", {"compression": "tiff_lzw", "icc_profile": icc}),
        (rgb.convert("CMYK"), "TIFF", {}),
        (rgb.convert("F"), "TIFF", {}),
        (rgb, "BMP", {}),
        (rgb, "PPM", {}),
        (rgb, "TGA", {}),
        (rgb, "ICO", {}),
        (rgb, "JPEG2000", {}),
        (rgb, "AVIF", {"exif": exif}),
        (rgb, "PCX", {}),
        (rgb, "SGI", {}),
        (rgb, "DDS", {}),
        (rgb, "QOI", {}),
        (rgb, "MPO", {}),
    ):
        file = io.BytesIO()
        try:
            image.save(file, format, **options)
        except (KeyError, OSError):
            continue  # a Pillow without it
        yield file.getvalue()


FILES = list(_files())


def damaged(data, rng):
    "A file with some bytes changed, cut off, put in or repeated."
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 64) + 1)
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + 1] = rng.randbytes(1)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + rng.randrange(1, 16)]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.randrange(1, 16))
        elif kind == 5:
            data[at : at + 4] = struct.pack(
                rng.choice("<>") + "I", rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 65535, 10**6))
            )
        elif kind == 6:
            data[at:at] = data[at : at + rng.randrange(1, 64)]
    return bytes(data)


def repaired(data):
    "A PNG with right checksums, so that a change gets beyond them."
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    out, at = data[:8], 8
    while at + 12 <= len(data):
        n = struct.unpack(">I", data[at : at + 4])[0]
        body = data[at + 4 : at + 8 + n]
        if len(body) < n + 4:
            break
        out, at = out + data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)), at + 12 + n
    return out + data[at:]


def image(number, folder):
    "A damaged file, as bytes, as a path or in an open file."
    rng = random.Random(f"image {number}")
    data = damaged(rng.choice(FILES), rng)
    if rng.random() < 0.5:
        data = repaired(data)
    size, fit = rng.choice((None, 1, 8, 33)), {"fit": rng.choice(("crop", "pad", "top"))}
    if rng.random() < 0.5:
        return lambda: open_image(data, size, max_pixels=1e6, **fit), is_image(size)
    (folder / "a.png").write_bytes(data)
    return lambda: open_image(str(folder / "a.png"), size, max_pixels=1e6, **fit), is_image(size)


class Odd:
    def __repr__(self):
        return "odd\nobject"


VALUES = (
    None,
    0,
    -1,
    1,
    7,
    2.0,
    -0.5,
    float("nan"),
    float("inf"),
    1e300,
    10**30,
    -(10**30),
    10**5000,
    2**31,
    2**63,
    True,
    False,
    "",
    "64",
    "crop",
    b"64",
    b"",
    [],
    [8],
    (8, 8),
    {},
    {8},
    Odd(),
    object(),
    np.int64(8),
    np.uint8(9),
    np.int8(-4),
    np.float32(8),
    np.bool_(True),
    np.array(8),
    np.zeros((2, 2)),
    range(8),
    len,
    1j,
)


def odd(number, folder):
    "Anything in the place of an image, of its size, its fit or its greatest number of pixels."
    rng = random.Random(f"odd {number}")
    picture = np.zeros((rng.choice((1, 3, 30)), rng.choice((1, 4, 2_000)), 3), np.uint8)
    value, what = VALUES[number // 4 % len(VALUES)], number % 4
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))
    if what == 0:
        return lambda: open_image(picture, value), is_image(int(value) if whole else None)
    if what == 1:
        return lambda: open_image(picture, 8, fit=value), is_image(8)
    if what == 2:
        return lambda: open_image(picture, 8, max_pixels=value), is_image(8)
    arrays = [
        np.zeros(shape, kind)
        for shape, kind in (
            ((4, 4, 3), float),
            ((4,), np.uint8),
            ((0, 4, 3), np.uint8),
            ((4, 4, 4), np.uint8),
            ((4, 4, 5), np.uint8),
            ((2, 4, 4, 3), np.uint8),
            ((4, 4), bool),
            ((4, 4), object),
            ((4, 4, 3), np.uint16),
            ((4, 4, 1), np.uint8),
        )
    ]
    closed = io.BytesIO(FILES[0])
    closed.close()
    if number % 100 == 3:
        return lambda: open_image(Image.new("1", (9_000, 9_000)), 8), is_image(8)
    sources = [
        *VALUES,
        *arrays,
        Image.new("RGB", (0, 4)),
        Image.new("LAB", (4, 4)),
        Image.new("HSV", (4, 4)),
        Image.new("I", (4, 4), 2**31 - 1),
        closed,
        io.StringIO("a"),
        *paths(folder),
    ]
    source = rng.choice(sources)
    return lambda: open_image(source, 8), is_image(8)


def paths(folder):
    "Names that lead to no image file."
    for name, make in (
        ("pipe", os.mkfifo),
        ("folder", os.mkdir),
        ("empty", lambda p: open(p, "w").close()),
        ("link", lambda p: os.symlink("nowhere", p)),
        ("loop", lambda p: os.symlink("loop", p)),
        ("socket", bound),
    ):
        if not os.path.lexists(folder / name):
            make(folder / name)
    return [
        str(folder / name)
        for name in (
            "pipe",
            "folder",
            "empty",
            "link",
            "loop",
            "socket",
            "none",
            "a\0b",
            "x" * 300,
            "\udc83",
            "new\nline.png",
            "folder/",
            "empty/x",
        )
    ] + [
        "/dev/null",
        "/dev/zero",
        "/dev/urandom",
        ".",
        "/",
        " ",
        "~",
        "http://127.0.0.1:1/a.png",
        "https://example.org/a.png?x",
        "file:///etc/hostname",
        "data:image/png;base64,AAAA",
        folder,
        folder / "pipe",
    ]


def bound(path):
    "A socket in the file system; the folder is entered, since a socket's path is short."
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


# words

WORDS = (
    "1girl",
    "green hair",
    "long_hair",
    "(green hair:1.2)",
    "((smile))",
    "[hat]",
    "{bow}",
    "(red hair, hat:1.2)",
    r"saber \(fate\)",
    r"\m/",
    "^_^",
    ":)",
    "BREAK",
    "<lora:a_b:0.8>",
    "{red|blue} hair",
    "__color__",
    "“hat”",
    '"smile"',
    "'",
    '"',
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "\\",
    "|",
    "|||",
    ",",
    ", ",
    ".",
    "\n",
    "\r\n",
    "\n\n",
    "\t",
    "\xa0",
    "\u200b",
    "\ufeff",
    "\u2028",
    "\x00",
    "\x0b",
    "\x1b",
    "&amp;",
    "&#039;",
    "A frog sits on a leaf.",
    "A small dog runs along the beach",
    "这是一只猫。",
    "微笑，长发",
    "حصان",
    "👩‍🦰",
    "x" * 500,
    "  ",
    "no glasses",
    "-1.5",
    "(at 10:30)",
    "2$$",
    "#",
    "%s",
    "{}",
    "{0}",
    "\ue000",
    "(a:1.2",
    "(((((",
    ")))))",
    "<>",
    "<a:b",
    "NaN",
    "null",
)
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp932", "latin-1")


def soup(rng, most=12):
    return rng.choice((" ", "", ", ", "\n", ",")).join(rng.choices(WORDS, k=rng.randrange(most)))


def pictures(folder, names):
    for name in names:
        (folder / name).write_bytes(FILES[0])


def of(folder):
    return lambda: read_folder(
        folder
    ), lambda data: len(data) > 0 and are_clean(data["tags" if "tags" in data.column_names else "text"])


def captions(number, folder):
    "Files of captions beside images."
    rng = random.Random(f"captions {number}")
    pictures(folder, ("0.png", "1.png"))
    for n in range(2):
        data = (soup(rng) or "hat").encode(rng.choice(ENCODINGS), "replace")
        if rng.random() < 0.1:
            data = damaged(data, rng)
        (folder / f"{n}{rng.choice(('.txt', '.txt', '.caption', '.png.txt', '.TXT'))}").write_bytes(data)
    return of(folder)


def words(number, folder):
    "Prompts and rows of tags."
    rng = random.Random(f"words {number}")
    text, source, rows = soup(rng), soup(rng, 5), [as_tags(soup(rng)) for _ in range(3)]
    tags = rng.choice((None, [], ["hat", "green hair"], rows[0]))

    def call():
        return [
            wanted_caption(source, text, tags),
            caption(rows[0], random.Random(0), fixed=rows[1], shuffle=True, dropout=rng.choice((0, 0.5, 1))),
            *known_tags(rows, 1),
            spaced(text),
        ]

    return call, lambda found: all(isinstance(one, str) for one in found)


# tables

POST = {
    "id": 123456,
    "md5": "0" * 32,
    "file_url": "https://example.org/0.png?1",
    "tag_string": "1girl long_hair",
    "tag_string_general": "long_hair",
    "tags": "1girl long_hair",
    "rating": "g",
}
TABLES = {
    "metadata.jsonl": [{"file_name": "0.png", "text": "a frog"}, {"file_name": "1.png", "tags": ["hat", "bow"]}],
    "metadata.csv": [["file_name", "text"], ["0.png", "hat, bow"], ["1.png", "a cat"]],
    "meta_lat.json": {"0": {"caption": "hat", "tags": "bow, cat"}, "1.png": {"tags": "hat"}},
    "captions.json": {"0.png": "a frog on a leaf", "1.png": ["hat", "bow"]},
    "posts.json": [POST, POST | {"file_url": None, "md5": "1"}],
    "data.jsonl": [
        {"filename": "0", "extension": "png", "tags": ["hat", "long_hair"]},
        {"filename": "1", "extension": "png", "tags": "hat bow"},
    ],
    "e621.json": {
        "posts": [
            {
                "id": 5,
                "file": {"md5": "0", "ext": "png", "url": None},
                "tags": {"general": ["long_hair"], "artist": ["x"]},
            }
        ]
    },
    "coco.json": {
        "images": [{"id": 1, "file_name": "0.png"}],
        "annotations": [{"image_id": 1, "caption": "a frog"}, {"image_id": 1, "caption": "a cat"}],
    },
    "karpathy.json": {"images": [{"filename": "0.png", "sentences": [{"raw": "A frog."}, {"raw": "A cat."}]}]},
    "dataset.json": {"labels": [["0.png", 3]]},
    "0.json": POST,
    "0.png.json": {"tags": {"general": ["hat"], "artist": []}},
    ".0_meta.json": {"tags": {"1girl": 0.98, "hat": 0.5}},
    "1.json": {"hat": 0.9, "bow": 0.1},
}
JUNK = (
    None,
    True,
    False,
    0,
    -1,
    3.5,
    float("nan"),
    float("inf"),
    10**400,
    "",
    "hat",
    "0.png",
    "../0.png",
    "/etc/hostname",
    "a\0b",
    "\ud800",
    [],
    [[]],
    {},
    [None],
    {"": None},
    ["hat", 5],
    [["hat"]],
    {"name": "hat"},
    [{"name": "long_hair"}],
    [{"id": 1}],
    {"hat": 0.5},
    {"a": {"b": "c"}},
    "x" * 3_000,
    " ",
    "\n",
    "a\nb",
    ["a frog.", "a cat."],
    "0.png\n",
)


def changed(value, rng, rate=0.15):
    "JSON with some of its values replaced, keys renamed or left out."
    if rng.random() < rate / 3:
        return rng.choice(JUNK)
    if isinstance(value, dict):
        out = {}
        for key, inner in value.items():
            if rng.random() < rate / 2:
                continue
            if rng.random() < rate / 3:
                key = rng.choice(
                    ("", "tags", "text", "file_name", "0.png", "\ud800", "labels", "annotations", "captions")
                )
            out[key] = rng.choice(JUNK) if rng.random() < rate else changed(inner, rng, rate)
        return out
    if isinstance(value, list):
        return [changed(inner, rng, rate) for inner in value for _ in range(rng.choice((1, 1, 1, 1, 0, 2)))]
    return soup(rng, 6) if isinstance(value, str) and rng.random() < rate else value


def written(name, value, rng):
    "A table as text."
    if name.endswith(".csv"):
        return "\n".join(
            rng.choice(",,,,;\t").join(map(str, row))
            for row in (value if isinstance(value, list) else [value])
            if isinstance(row, list)
        )
    if name.endswith(".jsonl") and isinstance(value, list):
        return "\n".join(json.dumps(row) for row in value)
    deep = rng.random() < 0.02
    return "[" * 5_000 + "]" * 5_000 if deep else json.dumps(value, ensure_ascii=rng.random() < 0.5)


def tables(number, folder):
    "Tables of captions, and JSON beside images."
    rng = random.Random(f"tables {number}")
    pictures(folder, ("0.png", "1.png"))
    for n in range(2):
        if rng.random() < 0.5:
            (folder / f"{n}.txt").write_text("hat, bow")
    for name in rng.sample(list(TABLES), rng.choice((1, 1, 1, 2))):
        text = written(name, changed(TABLES[name], rng), rng)
        try:
            data = text.encode(rng.choice(ENCODINGS[:7]), "surrogatepass")
        except UnicodeEncodeError:
            data = text.encode("utf-8", "replace")
        (folder / name).write_bytes(damaged(data, rng) if rng.random() < 0.3 and data else data)
    if number % 10 == 0:
        (folder / "metadata.parquet").write_bytes(damaged(PARQUET, rng))
    named = folder / rng.choice(list(TABLES)) if rng.random() < 0.1 else None
    call, check = of(folder)
    return (lambda: read_folder(folder, named), check) if named else (call, check)


def _parquet():
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({"file_name": ["0.png", "1.png"], "text": ["hat, bow", "cat"]}), file)
    return file.getvalue()


PARQUET = _parquet()


def folders(number, folder):
    "Folders in which names lead to anything."
    rng = random.Random(f"folders {number}")
    names = (
        "0.png",
        "1.jpg",
        "2.webp",
        "a-masklabel.png",
        "0_mask.png",
        "masks/0.png",
        "train/3.png",
        "val/4.png",
        "test/5.png",
        "10_frog/6.png",
        "3_/7.png",
        ".hidden.png",
        "8.heic",
        "9.jxl",
        "x.mp4",
        "0.txt",
        "1.txt",
        "2.caption",
        "a-masklabel.txt",
        "train/3.txt",
        "val/4.txt",
        "metadata.jsonl",
        "posts.json",
        "dataset.json",
        "0.json",
        "alone.txt",
        "Thumbs.db",
        "metadata.csv",
        "new\nline.png",
        "ü.png",
        "ü.txt",
    )
    makers = (
        lambda p: os.mkfifo(p),
        lambda p: os.mkdir(p),
        lambda p: os.symlink("nowhere", p),
        lambda p: os.symlink(p.name, p),
        lambda p: open(p, "w").close(),
        bound,
        lambda p: p.write_bytes(rng.randbytes(40)),
        lambda p: p.write_bytes(b""),
    )
    for name in rng.sample(names, rng.randrange(len(names))):
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        if rng.random() < 0.1:
            rng.choice(makers)(path)
        elif path.suffix in (".png", ".jpg", ".webp", ".heic", ".jxl"):
            path.write_bytes(rng.choice(FILES))
        else:
            path.write_text(
                "hat, bow" if path.suffix in (".txt", ".caption") else json.dumps({"file_name": "0.png", "text": "hat"})
            )
    odd_names = [
        str(folder / "none"),
        "",
        "\0",
        "x" * 5_000,
        "/dev/null",
        str(folder / "0.png"),
        "~nobody/x",
        "portraits:none",
        "a\nb",
    ]
    where = str(folder) if rng.random() < 0.8 else rng.choice(odd_names)
    if number % 2:
        return of(type(folder)(where))
    return lambda: load_source(
        where, rng.choice(("train", "validation"))
    ), lambda data: {"image"} < set(data.column_names)


INPUTS = {image: 1_000, odd: 300, captions: 400, words: 200, tables: 450, folders: 150}  # kind → how many


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def none(name):
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", none)


def bad_ones(kind, numbers, folder):
    found = {}
    for number in numbers:
        place = folder / str(number)
        place.mkdir()
        if wrong := outcome(*kind(number, place)):
            found[number] = wrong
    return found


@pytest.mark.parametrize("kind", INPUTS, ids=lambda kind: kind.__name__)
def test_damaged_inputs_are_read_or_refused_in_a_sentence(kind, tmp_path):
    assert bad_ones(kind, range(0, INPUTS[kind], 4), tmp_path) == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", INPUTS, ids=lambda kind: kind.__name__)
def test_all_damaged_inputs(kind, tmp_path):
    assert sum(INPUTS.values()) >= 2_000
    assert bad_ones(kind, range(INPUTS[kind]), tmp_path) == {}


def test_the_judge_sees_what_is_wrong():
    def forever():
        while True:
            pass

    def bare():
        return {}["x"]

    def lines():
        raise EditError("two\nlines.")

    assert (
        outcome(lambda: 1) is None
        and outcome(bare) == "KeyError: 'x'"
        and outcome(lines).startswith("message")
        and outcome(lambda: 1, lambda x: x == 2) == "result: 1"
    )
    with within(0.05), pytest.raises(Hang):
        forever()
    assert not are_clean(["a\xa0b"]) and not are_clean([["a", ""]]) and are_clean([["a b"], "c"])
