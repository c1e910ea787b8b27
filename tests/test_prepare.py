"From a dump to a training set: counts equal the planted damage, a stopped run resumes, nothing is done twice."

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from mmgen.base.files import FolderInUse, locked
from mmgen.base.runs import Run, RunError, load_run
from mmgen.danbooru.config import DanbooruConfig
from mmgen.danbooru.prepare import WHY, facts, overview, prepare, record_of, samples
from mmgen.danbooru.synthetic_dump import FILE_DAMAGE, LINE_DAMAGE, write_dump
from mmgen.data.images import ImageError
from mmgen.data.shards import ShardError, Shards
from mmgen.data.sources import load_source
from mmgen.jobs.launch import main


def run(root, **given):
    config = DanbooruConfig(**{"preset": "smoke", "size": 32, "min_tag_count": 2, "out": str(root / "set")} | given)
    with Run("prepare_danbooru", config, root=root / "runs", run_id=f"run-{time.monotonic_ns()}") as record:
        found = prepare(config, record)
    return found, {row["what"]: row["n"] for row in record.record["dropped"]}, record


@pytest.fixture(scope="module", params=["2017", "2021"])
def prepared(request, tmp_path_factory):
    "A dump with 5 % of damage of twelve kinds, and what became of it."
    root = tmp_path_factory.mktemp(request.param)
    planted = write_dump(root / "dump", 480, form=request.param, damage=0.05, size=96, originals=False, files=2)
    return root, planted, *run(root, source=str(root / "dump"))


def test_the_counts_are_the_damage_planted(prepared):
    _, planted, found, dropped, _ = prepared
    assert set(planted["damage"]) == {*LINE_DAMAGE, *FILE_DAMAGE} and all(
        count >= 2 for count in planted["damage"].values()
    )
    assert {name: dropped.get(name, 0) for name in planted["damage"]} == planted["damage"]
    assert found["metadata"]["posts"] == planted["posts"] and found["metadata"]["lines"] == planted["lines"]


def test_every_post_is_either_there_or_has_a_reason(prepared):
    _, planted, found, dropped, record = prepared
    gone = sum(n for what, n in dropped.items() if WHY[what][0] in ("choice", "images"))
    assert (
        found["images"]["images"] + gone == planted["posts"]
        and sum(found["kept"].values()) == found["images"]["images"]
    )
    assert (
        all(row["why"] and row["n"] > 0 for row in record.record["dropped"])
        and record.record["data"]["rows"] == found["images"]["images"]
    )


def test_the_set_trains(prepared, monkeypatch):
    root, _, found, *_ = prepared
    monkeypatch.setenv("MMGEN_ROOT", str(root))
    rows = load_source(str(root / "set"), "train", images=5)
    assert len(rows) == 5 and {"image", "tags"} <= set(rows.column_names)
    main(
        [
            "ldm",
            "preset=smoke",
            f"data={root / 'set'}",
            "size=32",
            "images=50",
            "held_out=0",
            "run_id=trained",
            "device=cpu",
            "edit_images=2",
        ]
    )
    record = json.loads((root / "reports" / "runs" / "trained" / "run.json").read_text())
    assert record["status"] == "completed" and record["data"]["rows"] == 50


def test_a_second_run_does_nothing_again(prepared):
    root, _, found, dropped, _ = prepared
    before = {
        p: p.stat().st_mtime_ns for p in (root / "set").rglob("*.parquet") if p.name.startswith(("train", "part"))
    }
    again, same, _ = run(root, source=str(root / "dump"))
    assert again["images"] == found["images"] and same == dropped
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_what_the_notebook_shows(prepared):
    root, *_ = prepared
    seen = facts(root / "set")
    assert (
        seen["tags"][0][2] >= seen["tags"][-1][2] >= 2
        and seen["ratings"]["general"] > 100
        and seen["per_image"].min() >= 1
    )
    assert len(overview(seen).axes) == 4
    images, tags = samples(root / "set", 6)
    assert images.shape == (6, 32, 32, 3) and len(tags) == 6 and all(tags)


def test_a_set_that_is_there_is_not_changed_by_another_choice(prepared, tmp_path):
    root, *_ = prepared
    content = lambda: {p: p.read_bytes() for p in (root / "set").rglob("*.*") if p.is_file()}
    before = content()
    other = tmp_path / "other" / "dump"
    write_dump(other, 500, form=root.name[:4], size=96, originals=False, files=2)
    for given, said in (
        ({"n": 20}, "made with other posts or files; choose another"),
        ({"rating": "explicit"}, "made with other posts|No post is left"),
        ({"source": str(other)}, "holds the posts of another dump"),
    ):
        with pytest.raises(ValueError, match=said):
            run(root, **{"source": str(root / "dump")} | given)
        assert content() == before
    with locked(root / "set", ".prepare.lock"), pytest.raises(FolderInUse, match="Another run"):
        run(root, source=str(root / "dump"))
    assert content() == before


def test_folders_are_no_patterns_and_no_columns(tmp_path):
    "DuckDB would read rating=general as a column of every post, and set[1] as the folder set1."
    write_dump(tmp_path / "rating=x" / "dump*[1]", 120, size=32, files=1, originals=False, damage=0)
    write_dump(tmp_path / "rating=x" / "dumps1", 30, size=32, files=1, originals=False, damage=0)
    plain, strange = tmp_path / "plain", tmp_path / "rating=general" / "width=5" / "set[1] *"
    one, *_ = run(tmp_path, source=str(tmp_path / "rating=x" / "dump*[1]"), out=str(strange))
    (tmp_path / "rating=x" / "dump*[1]").rename(tmp_path / "dump")
    two, *_ = run(tmp_path, source=str(tmp_path / "dump"), out=str(plain))
    assert (
        one["choice"] == two["choice"]
        and one["choice"]["dropped"]["rating not wanted"] > 0
        and facts(strange)["ratings"] == facts(plain)["ratings"]
    )
    assert Shards(strange).manifest == Shards(plain).manifest


def test_a_table_that_lost_its_end_is_made_again(prepared):
    root, _, found, dropped, _ = prepared
    part = sorted((root / "set" / "metadata" / "posts").iterdir())[-1]
    whole = part.read_bytes()
    part.write_bytes(whole[:-20])
    again, same, _ = run(root, source=str(root / "dump"))
    assert same == dropped and part.read_bytes() == whole
    state = root / "set" / "metadata" / "posts.json"
    text = state.read_text()
    state.write_text(text[:50])
    with pytest.raises(ValueError, match="posts.json is damaged; remove it and the folder posts"):
        run(root, source=str(root / "dump"))
    state.write_text(text)


def test_files_that_nobody_may_read_stop_the_run(prepared, tmp_path, monkeypatch):
    root, *_ = prepared

    def refused(*_, **__):
        try:
            raise PermissionError(13, "Permission denied")
        except PermissionError as e:
            raise ImageError("The image cannot be opened.", "no file") from e

    monkeypatch.setattr("mmgen.danbooru.shards.dump_image", refused)
    with pytest.raises(ShardError, match=r"\.\w+ cannot be read: Permission denied. The same call continues"):
        run(tmp_path, source=str(root / "dump"))

    def nothing(*_, **__):
        raise ImageError("The image is gone.", "no file")

    monkeypatch.setattr("mmgen.danbooru.shards.dump_image", nothing)
    with pytest.raises(ValueError, match="None of the .* chosen images can be used; .*bad.jsonl has the reasons"):
        run(tmp_path, source=str(root / "dump"))


def test_the_same_command_goes_on_under_the_same_name(tmp_path, monkeypatch, capsys):
    write_dump(tmp_path / "dump", 120, size=32, files=1, originals=False, damage=0)
    monkeypatch.setenv("MMGEN_ROOT", str(tmp_path))
    config = DanbooruConfig(preset="smoke", source="dump", out="set", size=32, min_tag_count=2, run_id="mine")
    with pytest.raises(KeyboardInterrupt), record_of(config):
        raise KeyboardInterrupt
    with record_of(config) as run:
        prepare(config, run)
    record = load_run(run.path)
    assert (
        record["status"] == "completed" and "resumed" not in record and record["data"]["rows"] > 50
    )  # nothing had been done
    with pytest.raises(RunError, match="exists already"), record_of(config):
        pass
    few = replace(config, out="few", n=3, run_id="few")
    with record_of(few) as run:
        prepare(few, run)
    assert "no image came into validation" in capsys.readouterr().out
    with pytest.raises(ShardError, match="no rows of the split 'validation'"):  # before it trains
        main(
            [
                "ldm",
                "preset=smoke",
                f"data={tmp_path / 'few'}",
                "size=32",
                "run_id=none",
                "device=cpu",
                "sample_every=0",
            ]
        )
    assert not (tmp_path / "reports" / "runs" / "none" / "metrics.jsonl").exists()


def test_a_killed_run_goes_on_to_the_same_shards(tmp_path):
    write_dump(tmp_path / "dump", 300, damage=0.02, size=96, originals=False)
    code = (
        "import sys\nfrom mmgen.base.runs import Run\nfrom mmgen.danbooru.config import DanbooruConfig\n"
        "from mmgen.danbooru.prepare import prepare\n"
        "config = DanbooruConfig(source=sys.argv[1], out=sys.argv[2], size=32, min_tag_count=2)\n"
        "with Run('prepare_danbooru', config, root=sys.argv[2] + '-runs') as run: prepare(config, run)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "dump")]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    cut = subprocess.Popen([*command, str(tmp_path / "cut")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while (
        not (tmp_path / "cut" / "metadata" / "selection.parquet").exists()
        and cut.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    subprocess.run([*command, str(tmp_path / "cut")], check=True, capture_output=True)
    a, b = Shards(tmp_path / "whole"), Shards(tmp_path / "cut")
    assert a.manifest == b.manifest
    a.verify(), b.verify()


@pytest.mark.parametrize(
    "given, said",
    [
        ({"source": "/nowhere/danbooru"}, "There is no dump at /nowhere/danbooru"),
        (
            {"posts": 30, "source": "synthetic", "rating": "sensitive"},
            "No post is left: .* dropped for 'rating not wanted'",
        ),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, given, said):
    with pytest.raises(ValueError, match=said):
        run(tmp_path, **given)


def test_folders_that_cannot_be_meant_are_said_before_the_metadata_are_read(prepared, tmp_path, monkeypatch):
    root, *_ = prepared
    (tmp_path / "file").touch()
    monkeypatch.setattr("mmgen.danbooru.prepare.write_posts", lambda *_: pytest.fail("read"))
    for given, said in (
        ({"out": str(root / "dump")}, "out is the folder of the dump itself"),
        ({"pictures": "256px"}, "holds no folder 256px"),
        ({"out": str(tmp_path / "file")}, "file is not a folder; choose another path"),
        ({"out": str(tmp_path / "file" / "set")}, "file is not a folder; choose another path"),
    ):
        with pytest.raises(ValueError, match=said):
            run(root, source=str(root / "dump"), **given)
    assert sorted(p.name for p in (root / "dump").iterdir()) == ["512px", "metadata"]
    for given in ({"size": 4}, {"near_duplicates": 11}):
        with pytest.raises(ValueError, match="must be from"):
            DanbooruConfig(**given)


def test_danbooru2021_has_the_new_form_and_the_old_ratings(tmp_path, capsys):
    write_dump(tmp_path / "dump", 300, form="2021", size=64, originals=False)
    metadata = tmp_path / "dump" / "metadata" / "posts000000000000.json"
    text = metadata.read_text().replace('"rating":"s"', '"rating":"q"').replace('"rating":"g"', '"rating":"s"')
    metadata.write_text(text)
    found, _, _ = run(tmp_path, source=str(tmp_path / "dump"))
    assert found["choice"]["safe"] == text.count('"rating":"s"') > 100 and found["kept"]["train"] > 50
    assert (
        facts(tmp_path / "set")["ratings"]["general"] == found["choice"]["safe"]
        and "s is safe" in capsys.readouterr().out
    )


def test_tags_that_look_like_formulas_are_shown(tmp_path):
    seen = {
        "tags": [["$_$", "general", 3], ["a$b", "general", 2]],
        "ratings": {"general": 3},
        "sizes": np.ones((2, 2)),
        "per_image": np.array([1, 2]),
    }
    figure = overview(seen)
    figure.savefig(tmp_path / "figure.png")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [r"a\$b", r"\$_\$"]


def test_other_settings_in_the_same_folder_are_refused(prepared):
    root, *_ = prepared
    with pytest.raises(ValueError, match="size 32, not 48"):
        run(root, source=str(root / "dump"), size=48)
