"""Portraits: exact tags, exact edits, splits that do not leak, the same bytes on every run."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

from mmgen.data import portrait_sets
from mmgen.data import portraits as P
from mmgen.data.edits import NEIGHBOUR_OPTIONS, neighbour, neighbours
from mmgen.data.portrait_sets import write_parquet

SEEDS = range(0, 300)


def difference(a, b):
    return int((np.abs(P.render(a, 128).astype(int) - P.render(b, 128).astype(int)).max(-1) > 40).sum())


def test_every_variant_of_every_part_is_in_the_table_and_nothing_else():
    for style in ("adventurer", "lorelei"):
        spec, source = P.table(style), P._style_json(style)["components"]
        for part, variants in spec["parts"].items():
            assert set(variants) == set(source[part]["variants"])
        assert set(source) - set(spec["parts"]) <= {"head"}


def test_covered_parts_show_in_no_pixel_and_others_do():
    face = P.sample(3).replace(glasses=None, details=None, earrings=None)
    for hair, entry in P.table()["parts"]["hair"].items():
        bare = face.replace(hair=hair)
        seen = difference(bare, bare.replace(earrings="variant02"))
        assert (seen == 0) == ("earrings" in entry["hides"]), hair
    closed = {v for v, e in P.table()["parts"]["eyes"].items() if "eyes_color" in e["hides"]}
    for eyes in P.table()["parts"]["eyes"]:
        a = face.replace(hair="short19", eyes=eyes, eyes_color="blue eyes")
        assert (difference(a, a.replace(eyes_color="red eyes")) == 0) == (eyes in closed), eyes


@pytest.mark.parametrize(
    "tag",
    [
        "green hair",
        "pink hair",
        "sunglasses",
        "glasses",
        "long hair",
        "short hair",
        "smile",
        "closed eyes",
        "mohawk",
        "tan",
        "freckles",
    ],
)
def test_change_makes_the_tag_true_and_keeps_every_other_option(tag):
    done = 0
    for seed in SEEDS:
        before = P.sample(seed)
        try:
            after = P.change(before, tag)
        except P.PortraitError:
            continue
        done += 1
        assert tag in P.tags(after)
        changed = [
            k for (k, a), (_, b) in zip((*before.parts, *before.colors), (*after.parts, *after.colors)) if a != b
        ]
        assert len(changed) <= 1
        assert (tag in P.tags(before)) == (not changed)
        if changed and seed < 20:
            assert difference(before, after) > 0
    assert done > 50


def test_removing_an_optional_part():
    face = P.sample(1).replace(glasses="variant04", earrings="variant02")
    assert P.change(face, "no glasses")["glasses"] is None
    assert P.change(face, "no sunglasses") == face
    assert P.change(face, "no earrings")["earrings"] is None


def test_tags_that_cannot_be_shown_get_one_sentence():
    with pytest.raises(P.PortraitError, match="closest tag is 'green hair'"):
        P.change(P.sample(0), "grren hair")
    with pytest.raises(P.PortraitError, match="covered or absent"):
        P.change(P.sample(0).replace(hair="short19"), "green hair")
    with pytest.raises(P.PortraitError, match="did you mean 'lorelei'"):
        P.sample(0, "lorelai")
    with pytest.raises(P.PortraitError, match="has no option 'hat'"):
        P.sample(0)["hat"]


def test_seeds_above_the_test_split_are_refused():
    with pytest.raises(P.PortraitError, match="reserved"):
        P.sample(900_000_000)
    with pytest.raises(P.PortraitError, match="reserved"):
        P.sample(-1)
    with pytest.raises(P.PortraitError, match="99999990 \\+ 20"):
        P.seeds(20, "train", start=99_999_990)


def test_held_out_combinations_occur_in_test_only():
    vocabulary = set(P.vocabulary())
    assert all(combination <= vocabulary for combination in P.held_out())
    for low in (0, P.SPLITS["validation"][0]):
        assert not any(P.is_held_out(P.sample(low + i)) for i in range(1500))
    found = [P.sample(seed) for seed in P.seeds(30, "held_out")]
    assert all(map(P.is_held_out, found))
    single = {tag for seed in range(2000) for tag in P.tags(P.sample(seed))}
    assert all(combination <= single for combination in P.held_out()), "each part alone is seen in training"


def test_another_style_holds_nothing_back():
    "black hair and spiked hair, held out for adventurer, are a lorelei face like any other"
    seen = {frozenset({"black hair", "spiked hair"}) <= set(P.tags(P.sample(seed, "lorelei"))) for seed in range(2000)}
    assert seen == {True, False}


def test_attributes_agree_with_tags():
    for seed in SEEDS:
        face = P.sample(seed)
        found, shown = P.attributes(face), P.tags(face)
        for slot in ("hair_color", "eyes_color", "skin"):
            assert (found[slot] in shown) == (found[slot] is not None)
        assert found["hair_length"] in shown
        assert (found["glasses"] == "variant01") == ("sunglasses" in shown)
        assert len(shown) == len(set(shown))


def test_other_styles_render_and_are_tagged():
    for style in ("lorelei", "mixture"):
        images = np.stack([P.render(P.sample(seed, style), 32) for seed in range(12)])
        assert images.std(axis=0).mean() > 5
    styles = {P.sample(seed, "mixture").style for seed in range(100)}
    assert len(styles) == 8 and "adventurer" not in styles
    assert "black hair" in P.tags(P.sample(0, "lorelei"))


def test_parquet_is_the_same_bytes_with_one_process_or_two(tmp_path):
    which = P.seeds(500, "validation")
    one = write_parquet(tmp_path / "one.parquet", which, workers=1)
    two = write_parquet(tmp_path / "two.parquet", which, workers=2)
    assert one["sha256"] == two["sha256"]
    assert json.loads((tmp_path / "one.json").read_text()) == one
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=str(tmp_path / "one.parquet"), cache_dir=str(tmp_path / "cache"))["train"]
    assert rows.column_names == ["image", "tags", "seed"] and len(rows) == 500
    face = P.sample(rows[42]["seed"])
    assert rows[42]["tags"] == P.tags(face)
    assert (np.asarray(rows[42]["image"].convert("RGB")) == P.render(face)).all()


def test_another_process_may_ask_for_the_same_portraits_at_any_moment(tmp_path, monkeypatch):
    "After each file that one writes the other finds all or nothing: it neither warns nor deletes."
    write, found = portrait_sets.atomic_write, []

    def watched(path, content):
        done = write(path, content)
        with monkeypatch.context() as other:
            other.setattr(portrait_sets, "atomic_write", write)
            found.append(portrait_sets.dataset(4, root=tmp_path)["seed"][:])
        return done

    monkeypatch.setattr(portrait_sets, "atomic_write", watched)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found.append(portrait_sets.dataset(4, root=tmp_path)["seed"][:])
    assert found == 3 * [[0, 1, 2, 3]] and not list(tmp_path.glob(".*.tmp*"))


def test_a_script_without_a_guard_renders_in_parallel(tmp_path):
    "Neither a script that has no `if __name__` nor one that is read from standard input breaks the worker processes."
    script = tmp_path / "script.py"
    script.write_text(
        "print('once')\nfrom mmgen.data.portrait_sets import dataset\nprint(len(dataset(600, size=16, workers=2)))\n"
    )
    for arguments, given in (([str(script)], None), (["-"], script.read_text())):
        environment = os.environ | {"MMGEN_ROOT": str(tmp_path / str(len(arguments[0])))}
        done = subprocess.run(
            [sys.executable, *arguments], input=given, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.stdout.split() == ["once", "600"], done.stderr


def test_neighbours_differ_in_one_option_and_are_the_same_in_parallel():
    faces = range(300)
    for seed in faces:
        one, other = P.sample(seed), neighbour(seed)
        changed = [name for name, value in (*one.parts, *one.colors) if other[name] != value]
        assert len(changed) == 1 and changed[0] in NEIGHBOUR_OPTIONS and not P.is_held_out(other)
    assert np.array_equal(neighbours(faces, 16, workers=2), neighbours(faces, 16, workers=1))
