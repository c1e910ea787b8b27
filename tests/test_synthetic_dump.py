"Synthetic dumps: real fields, damage as reported, bytes that depend on the arguments alone."

import gzip
import hashlib
import html
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zstandard
from danbooru_samples import NEW, OLD
from evil_archives import KINDS, evil_archive
from PIL import Image

from mmgen.danbooru import synthetic_dump
from mmgen.danbooru.synthetic_dump import FILE_DAMAGE, LINE_DAMAGE, SyntheticDumpError, write_dump
from mmgen.danbooru.synthetic_posts import CATEGORIES, RATINGS, PostBlock
from mmgen.data import portraits

ALL = {name: n + 2 for n, name in enumerate(LINE_DAMAGE + FILE_DAMAGE)}


def unpacked(path):
    "The files of metadata behind a path, whatever they are packed in: name → bytes"
    path = Path(path)
    data = path.read_bytes()
    if path.suffix == ".gz":
        return {path.stem: gzip.decompress(data)}
    if path.suffix == ".zst":
        return {path.stem: zstandard.ZstdDecompressor().decompressobj().decompress(data)}
    if path.suffix != ".xz":
        return {path.name: data}
    with tarfile.open(path) as archive:
        return {Path(m.name).name: archive.extractfile(m).read() for m in archive}


def everything(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


def tags_of(post):
    "name → category, from either form; and how many names there are with repeats"
    if "tags" in post:
        return {t["name"]: int(t["category"]) for t in post["tags"]}, len(post["tags"])
    named = [
        (name, code) for kind, code in CATEGORIES.items() for name in post[f"tag_string_{kind}"].split(" ") if name
    ]
    return dict(named), len(named)


def audit(planted, folder):
    "The damage of a dump as a reader sees it who knows only the contract"
    seen, posts = Counter(), {}
    for path in planted["metadata"]:
        for content in unpacked(path).values():
            for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")[:-1]:
                try:
                    line = line.decode("utf-8")
                except UnicodeDecodeError:
                    seen["wrong encoding"] += 1
                    continue
                try:
                    post = json.loads(line)
                except ValueError:
                    seen["truncated line" if line.startswith("{") and not line.endswith("}") else "malformed line"] += 1
                    continue
                named, count = tags_of(post)
                if post.get("id") is None:
                    seen["no id"] += 1
                elif not named:
                    seen["no tags"] += 1
                elif int(post["id"]) in posts:
                    seen["duplicate id"] += 1
                else:
                    posts[int(post["id"])] = post
                    seen["overlong tag"] += sum(len(name) > 255 for name in named)
                    seen["HTML entity"] += sum(html.unescape(name) != name for name in named)
                    seen["tags"] += sum(len(name) <= 255 for name in named)
                    seen["repeated tags"] += count - len(named)
    if not planted["files"]["512px"]:
        return seen, posts
    for id, post in posts.items():
        kept = RATINGS[planted["form"]][post["rating"]] == "general" and post["file_ext"] in ("jpg", "png", "gif")
        if not kept or post["is_deleted"] or post["is_banned"] or post["is_flagged"]:
            continue
        states = set()
        for path in (
            folder / f"512px/{id % 1000:04d}/{id}.jpg",
            folder / f"original/{id % 1000:04d}/{id}.{post['file_ext']}",
        ):
            try:
                Image.open(path).convert("RGB")
            except FileNotFoundError:
                states.add("no file")
            except Image.UnidentifiedImageError:
                states.add("not an image")
            except OSError:
                states.add("damaged image")
            else:
                states.add("good")
        assert len(states) == 1, (id, states)
        seen[states.pop()] += 1
    for kind in ("512px", "original"):
        lone = {p.stem for p in (folder / kind).rglob("*.*")} - {str(id) for id in posts}
        assert seen["file without post"] in (0, len(lone))
        seen["file without post"] = len(lone)
    return seen, posts


@pytest.mark.parametrize(
    "form, options",
    [
        ("2017", {}),
        ("2021", {}),
        ("2017", {"files": 3, "compress": "gz", "bom": True}),
        ("2021", {"files": 2, "compress": "zst"}),
        ("2021", {"files": 3, "compress": "tar.xz"}),
    ],
)
def test_damage_is_what_it_says(tmp_path, form, options):
    planted = write_dump(tmp_path / "dump", 400, form=form, size=32, damage=ALL, seed=3, **options)
    seen, posts = audit(planted, tmp_path / "dump")
    assert {name: seen[name] for name in ALL} == ALL == planted["damage"]
    assert (
        len(posts) == planted["posts"] == 400 - sum(ALL[name] for name in LINE_DAMAGE[:5])
        and planted["lines"] == 400 + ALL["duplicate id"]
    )
    assert seen["tags"] == planted["tags"] and seen["good"] == planted["usable"]
    assert seen["repeated tags"] == planted["repeated tags"] and (planted["repeated tags"] > 0) == (form == "2017")
    assert planted["ratings"] == {
        name: sum(RATINGS[form][p["rating"]] == name for p in posts.values()) for name in RATINGS[form].values()
    }
    for flag in ("deleted", "banned", "flagged", "pending"):
        assert planted[flag] == sum(p[f"is_{flag}"] for p in posts.values())
    assert {name: len(ids) for name, ids in planted["ids"].items()} == ALL and planted["files"]["metadata"] == len(
        planted["metadata"]
    )
    struck = [id for ids in planted["ids"].values() for id in ids]
    assert len(set(struck)) == len(struck)
    assert max(len(name) for p in posts.values() for name in tags_of(p)[0]) == 1_000_000


def test_names_of_files(tmp_path):
    old, new = (
        write_dump(tmp_path / "a", 10, images=False, files=2),
        write_dump(tmp_path / "b", 10, form="2021", images=False, files=2, compress="gz"),
    )
    assert [Path(p).name for p in old["metadata"]] == ["2017000000000000", "2017000000000001"]
    assert [Path(p).name for p in new["metadata"]] == ["posts000000000000.json.gz", "posts000000000001.json.gz"]
    packed = write_dump(tmp_path / "c", 10, images=False, files=2, compress="tar.xz")
    assert (
        packed["metadata"] == [str(tmp_path / "c" / "metadata.json.tar.xz")]
        and not (tmp_path / "c" / "metadata").exists()
    )
    with tarfile.open(packed["metadata"][0]) as archive:
        assert archive.getnames() == ["metadata/2017000000000000", "metadata/2017000000000001"]


@pytest.mark.parametrize("form, samples", [("2017", OLD), ("2021", NEW[:1])])
def test_fields_are_those_of_the_public_descriptions(form, samples):
    block = PostBlock(form, 0, 0, 512, 300, 300)
    ours, theirs = [json.loads(block.line(i)) for i in range(300)], [json.loads(line) for line in samples]
    if form == "2017":
        assert {tuple(post) for post in ours} == {tuple(post) for post in theirs}
        for post in ours:
            assert all(
                list(tag) == ["id", "name", "category"] and all(isinstance(v, str) for v in tag.values())
                for tag in post["tags"]
            )
        assert all(isinstance(v, str) for post in ours for name in ("pools", "favs") for v in post[name])
        assert {post["last_commented_at"] == "1970-01-01 00:00:00 UTC" for post in ours} == {True, False}
        assert any(post["pools"] for post in ours) and {post["parent_id"] == "0" for post in ours} == {True}
    else:
        for post in ours:
            assert theirs[0].keys() - post.keys() <= {"pixiv_id", "parent_id"}
        assert {"pixiv_id" in post for post in ours} == {True, False} and not any(
            value is None for post in ours for value in post.values()
        )
        for post in ours:
            assert sorted(post["tag_string"].split()) == sorted(tags_of(post)[0]) and int(post["tag_count"]) == len(
                tags_of(post)[0]
            )
    kinds = {name: type(value) for post in theirs for name, value in post.items()}
    for post in ours:
        assert all(type(value) is kinds[name] for name, value in post.items() if name in kinds)
    for post in ours:
        assert int(post["score"]) == int(post["up_score"]) + int(post["down_score"]) and int(post["down_score"]) <= 0
        assert (
            post["created_at"] <= post["updated_at"] and post["created_at"].endswith(" UTC") and len(post["md5"]) == 32
        )


def test_ids_ascend_with_gaps_and_reach_all_splits(tmp_path):
    planted = write_dump(tmp_path / "dump", 300, images=False)
    ids = [int(json.loads(line)["id"]) for line in Path(planted["metadata"][0]).read_bytes().splitlines()]
    assert ids == sorted(set(ids)) and ids[-1] > 1_000
    assert all(any(low <= id % 1000 < high for id in ids) for low, high in ((0, 900), (900, 950), (950, 1000)))


def test_shares_at_scale(tmp_path):
    planted = write_dump(tmp_path / "dump", 20_000, images=False)
    assert (
        26 < planted["tags"] / 20_000 < 30
        and 0.72 < planted["ratings"]["general"] / 20_000 < 0.76
        and 900 < planted["deleted"] < 1300
    )
    counts, categories = Counter(), Counter()
    for line in Path(planted["metadata"][0]).read_bytes().splitlines():
        named, _ = tags_of(json.loads(line))
        counts.update(named.keys())
        categories.update(named.values())
    assert (
        counts["solo"] == 20_000
        and sum(count == 1 for count in counts.values()) > len(counts) / 4
        and len(counts) > 20_000
    )
    assert set(categories) == set(CATEGORIES.values())


def test_bytes_depend_on_the_arguments_alone(tmp_path):
    one = write_dump(tmp_path / "a", 520, size=16, damage=0.1, files=3, workers=1)
    two = write_dump(tmp_path / "b", 520, size=16, damage=0.1, files=3, workers=2)
    assert everything(tmp_path / "a") == everything(tmp_path / "b") and one["ids"] == two["ids"]
    single = write_dump(tmp_path / "c", 520, size=16, damage=0.1, files=1)
    assert b"".join(Path(p).read_bytes() for p in one["metadata"]) == Path(single["metadata"][0]).read_bytes()
    assert write_dump(tmp_path / "d", 520, seed=1, damage=0.1, images=False)["ids"] != one["ids"]
    for compress in ("gz", "zst", "tar.xz"):
        same = [write_dump(tmp_path / f"{compress}{n}", 20, images=False, compress=compress, files=2) for n in range(2)]
        assert (
            everything(tmp_path / f"{compress}0") == everything(tmp_path / f"{compress}1")
            and same[0]["tags"] == same[1]["tags"]
        )


def test_a_post_shows_and_says_its_portrait(tmp_path):
    planted = write_dump(tmp_path / "dump", 12, size=64)
    posts = [json.loads(line) for line in Path(planted["metadata"][0]).read_bytes().splitlines()]
    for n, post in enumerate(posts):
        face = portraits.sample(n)
        assert {tag.replace(" ", "_") for tag in portraits.tags(face)} <= set(tags_of(post)[0])
        if post["file_ext"] not in ("jpg", "png"):
            continue
        original = tmp_path / f"dump/original/{int(post['id']) % 1000:04d}/{post['id']}.{post['file_ext']}"
        data, (width, height) = original.read_bytes(), (int(post["image_width"]), int(post["image_height"]))
        assert hashlib.md5(data).hexdigest() == post["md5"] and len(data) == int(post["file_size"])
        image = Image.open(io.BytesIO(data)).convert("RGB")
        assert image.size == (width, height) and image.format is None
        side = min(width, height)
        middle = image.crop(
            ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2)
        ).resize((32, 32))
        wanted = Image.fromarray(portraits.render(face, min(side, 256))).resize((32, 32))
        assert np.abs(np.asarray(middle).astype(int) - np.asarray(wanted)).mean() < 8
        small = tmp_path / f"dump/512px/{int(post['id']) % 1000:04d}/{post['id']}.jpg"
        assert small.exists() == (post["rating"] == "s")
        if small.exists():
            square = np.asarray(Image.open(small).convert("RGB")).astype(int)
            bars = (
                (64 - max(1, round(64 * height / max(width, height)))) // 2,
                (64 - max(1, round(64 * width / max(width, height)))) // 2,
            )
            assert square.shape == (64, 64, 3)
            if bars[0] > 8:
                assert square[: bars[0] - 2].max() < 24 and square[bars[0] + 4].max() > 24
            if bars[1] > 8:
                assert square[:, : bars[1] - 2].max() < 24 and square[:, bars[1] + 4].max() > 24


def test_without_originals_or_images(tmp_path):
    planted = write_dump(
        tmp_path / "a", 60, size=16, originals=False, damage={"file without post": 3, "damaged image": 4}
    )
    assert (
        planted["files"]["original"] == 0
        and planted["files"]["512px"] == planted["ratings"]["general"] + 3 - planted["not an image's extension"]
    )
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["512px", "metadata"]
    assert write_dump(tmp_path / "b", 60, images=False, damage=0.2)["damage"]["no file"] == 0


def test_bad_requests(tmp_path):
    for message, arguments in (
        ("no form '2019'; choose 2017 or 2021", {"form": "2019"}),
        ("no compression 'zip'", {"compress": "zip"}),
        ("no damage 'truncated'", {"damage": {"truncated": 1}}),
        ("and, with images, no file", {"damage": {"no file": 1}}),
        ("do not fit into the", {"damage": {"no id": 100}}),
        ("-1 of 'no id'", {"damage": {"no id": -1}}),
    ):
        with pytest.raises(SyntheticDumpError, match=message):
            write_dump(tmp_path / "dump", 100, **{"images": False} | arguments)
    with pytest.raises(SyntheticDumpError, match="n is 0"):
        write_dump(tmp_path / "dump", 0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(SyntheticDumpError, match="is not an empty folder"):
        write_dump(tmp_path / "full", 10)
    assert [p.name for p in tmp_path.rglob("*")] == ["full", "mine.txt"]


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def full(job):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synthetic_dump, "_write_metadata_file", full)
    with pytest.raises(OSError, match="No space left"):
        write_dump(tmp_path / "dump", 10, size=16)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_evil_archives_are_evil(tmp_path, kind):
    path = evil_archive(tmp_path / "a.tar.xz", kind, tmp_path / "outside", b"{}\n")
    with tarfile.open(path) as archive:
        assert archive.extractfile("metadata/2017000000000000").read() == b"{}\n"
        evil = archive.getmembers()[0]
        assert not evil.isreg() or evil.name.startswith(("/", "..", "metadata/..")), kind
