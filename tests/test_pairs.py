"Own pairs: layouts, what is left out and why, held-out pairs."

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from mmgen.app.cli import main
from mmgen.benchmark.pair_scores import held_out_names, score_pairs
from mmgen.data.caption_text import SourceError, SourceNotice
from mmgen.data.pair_layouts import find_pairs
from mmgen.data.pairs import hold_out, load_pairs


def put(path, colour, size=(24, 24)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def pair_folder(folder, source="before/{}", target="after/{}", text="after/{}.txt", n=12, ending=".png"):
    "Pair i goes from (i, 0, 0) to (i, 200, 0)."
    for i in range(n):
        put(folder / (source.format(f"{i:03}") + ending), (i, 0, 0))
        put(folder / (target.format(f"{i:03}") + ".png"), (i, 200, 0))
        if text:
            file = folder / text.format(f"{i:03}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"make it green, {i}\n")
    return folder


LAYOUTS = {
    "before, after": {},
    "text beside the source": {"text": "before/{}.txt"},
    "text in a folder": {"text": "instructions/{}.txt"},
    "text in the folder itself": {"text": "{}.txt"},
    "source, target": {"source": "Source/{}", "target": "Targets/{}", "text": "Targets/{}.caption"},
    "other endings": {"ending": ".jpg"},
    "ai-toolkit": {"source": "control/{}", "target": "images/{}", "text": "images/{}.txt"},
    "ai-toolkit, targets under any name": {"source": "my_control/{}", "target": "my/{}", "text": "my/{}.txt"},
    "musubi-tuner, numbered sources": {"source": "control_images/{}_0", "target": "images/{}", "text": "images/{}.txt"},
    "targets above the sources": {"source": "control/{}", "target": "{}", "text": "{}.txt"},
    "one folder": {"source": "{}_start", "target": "{}_end", "text": "{}.txt"},
    "subfolders": {"source": "before/a/{}", "target": "after/a/{}", "text": "after/a/{}.txt"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_recognised_by_their_names(tmp_path, layout):
    pairs = load_pairs(str(pair_folder(tmp_path, **LAYOUTS[layout])), 100, 8)
    assert len(pairs.names) == 12
    for image, edited, text in zip(pairs.images, pairs.edited, pairs.instructions):
        i = int(text.split(", ")[1])
        assert abs(int(image[0, 0, 0]) - i) < 4 and edited[0, 0].tolist() == [i, 200, 0]


def test_one_instruction_for_all(tmp_path):
    pair_folder(tmp_path, text=None)
    (tmp_path / "instruction.txt").write_text("make it green")
    assert load_pairs(str(tmp_path), 100, 8).instructions == ["make it green"] * 12


@pytest.mark.parametrize(
    "columns",
    [
        ("input_image", "edit_prompt", "edited_image"),
        ("original_image", "edit_prompt", "edited_image"),
        ("control_path", "caption", "image_path"),
        ("edit_image", "prompt", "image"),
        ("input_image_file_name", "instruction", "edited_image_file_name"),
    ],
)
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "pairs.jsonl"])
def test_tables(tmp_path, columns, name):
    pair_folder(tmp_path, text=None)
    rows = [dict(zip(columns, (f"before/{i:03}.png", f"green, {i}", f"after/{i:03}.png"))) for i in range(12)]
    text = "\n".join(map(json.dumps, rows))
    if name.endswith(".csv"):
        text = "\n".join([",".join(columns), *(f'{a},"{b}",{c}' for a, b, c in map(dict.values, rows))])
    (tmp_path / name).write_text(text)
    pairs = load_pairs(str(tmp_path / name if name.startswith("pairs") else tmp_path), 100, 8)
    assert len(pairs.names) == 12 and name in pairs.layout
    assert all(image[0, 0, 0] == int(text[7:]) for image, text in zip(pairs.images, pairs.instructions))


@pytest.mark.parametrize(
    "name, text",
    [
        ("d.toml", '[general]\nresolution = [64, 64]\n[[datasets]]\nimage_directory = "a"\ncontrol_directory = "b"\n'),
        ("t.yaml", "config:\n  process:\n    - datasets:\n        - folder_path: a\n          control_path: b\n"),
    ],
)
def test_configurations_of_other_trainers(tmp_path, name, text):
    pair_folder(tmp_path, "b/{}", "a/{}", "a/{}.txt")
    (tmp_path / name).write_text(text)
    assert len(load_pairs(str(tmp_path / name), 100, 8).names) == 12
    (tmp_path / name).write_text("a = 1" if "toml" in name else "a: 1")
    with pytest.raises(SourceError, match=name):
        load_pairs(str(tmp_path / name), 100, 8)


def test_what_cannot_be_used_is_named_in_one_sentence_and_the_rest_is_used(tmp_path):
    pair_folder(tmp_path)
    put(tmp_path / "after/000.png", (0, 9, 0), (24, 12))
    put(tmp_path / "after/001.png", (1, 0, 0))
    (tmp_path / "before/002.png").unlink()
    (tmp_path / "after/003.png").unlink()
    (tmp_path / "after/004.txt").unlink()
    (tmp_path / "before/005.png").write_bytes((tmp_path / "before/005.png").read_bytes()[:60])
    (tmp_path / "after/006.txt").write_text(" \n")
    put(tmp_path / "after/007.png", (7, 200, 0), (48, 48))  # the same proportions
    with pytest.warns(SourceNotice) as told:
        pairs = load_pairs(str(tmp_path), 100, 8)
    assert sorted(pairs.names) == ["007", "008", "009", "010", "011"]
    (text,) = (str(warning.message) for warning in told if warning.category is SourceNotice)
    assert text.startswith(f"5 pairs of {tmp_path} are used; left out: ")
    for clause in (
        "1 with images of different proportions (000: 24 × 24 and 24 × 12)",
        "1 without a difference between its images at 8 px (001)",
        "1 without a source (002)",
        "1 without a target (003)",
        "2 without an instruction (004; 006)",
        "1 with a file that cannot be read (005: The image 005.png",
    ):
        assert clause in text, text


def test_nothing_to_use_is_an_error(tmp_path):
    pair_folder(tmp_path / "texts", text=None)
    with pytest.raises(SourceError, match="no pairs to use: 12 without an instruction .000; 001; 002 and 9 more"):
        load_pairs(str(tmp_path / "texts"), 9, 8)
    pair_folder(tmp_path / "names", "eins/{}", "zwei/{}", "zwei/{}.txt")
    with pytest.raises(
        SourceError, match="names has eins/, zwei/; pairs need one folder of sources and one of targets"
    ):
        load_pairs(str(tmp_path / "names"), 9, 8)
    pair_folder(tmp_path / "many", "before/{}_0")
    put(tmp_path / "many/before/003_1.png", (3, 0, 0))
    with pytest.warns(
        SourceNotice, match="1 with several sources, of which an editor reads one .003: 003_0.png and 003_1"
    ):
        assert len(load_pairs(str(tmp_path / "many"), 99, 8).names) == 11
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="empty has no folders with images; pairs need"):
        find_pairs(tmp_path / "empty")


def test_held_out_pairs_share_no_image_with_the_others(tmp_path):
    pair_folder(tmp_path, n=40)
    for i in range(0, 40, 2):  # two edits of one source
        put(tmp_path / f"before/{i + 1:03}.png", (i, 0, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs = load_pairs(str(tmp_path), 100, 8, seed=1)
    train, held_out = hold_out(pairs, 100)
    assert len(held_out.names) == 4 and len(train.names) == 36
    assert not {x.tobytes() for x in train.images} & {x.tobytes() for x in held_out.images}
    again = hold_out(load_pairs(str(tmp_path), 100, 8, seed=1), 100)[1]
    other = hold_out(load_pairs(str(tmp_path), 100, 8, seed=2), 100)[1]
    assert again.names == held_out.names != other.names
    assert len(hold_out(pairs.take(range(5)), 100)[1].names) >= 1
    one_image = pairs._replace(images=np.zeros_like(pairs.images))
    assert len(hold_out(one_image, 3)[1].names) == 3
    assert len(hold_out(pairs.take([0]), 3)[1].names) == 0


# results on own pairs


def results(folder, shares, name="{}.png", n=12):
    "The result of pair i goes the share shares[i] of the way; None: no result."
    for i, share in zip(range(n), shares):
        if share is not None:
            put(folder / name.format(f"{i:03}"), (i, round(200 * share), 0))
    return folder


def test_a_folder_of_results_is_judged_by_the_pairs(tmp_path, capsys):
    pairs = pair_folder(tmp_path / "pairs")
    folder = results(tmp_path / "results", [1, 1, 0.5, 0, None, 1, 1, 1, 1, 1, 1, 1])
    (folder / "005.png").write_bytes(b"no picture")
    put(folder / "006.png", (6, 200, 0), (12, 12))  # half the size
    put(folder / "007.png", (7, 200, 0), (24, 12))
    put(folder / "other.png", (0, 0, 0))
    assert main(["bench", "score", str(folder), "--pairs", str(pairs)]) == 0
    assert "9 scored, 2 failed, 1 missing" in capsys.readouterr().out
    content = json.loads((folder / "scores.json").read_text())
    rows = {row["id"]: row for row in content["rows"]}
    skill = {name: row["scores"]["skill"] for name, row in rows.items()}
    assert [skill[name] for name in ("000", "002", "003", "004", "005", "006", "007")] == [1, 0.75, 0, -1, -1, 1, -1]
    assert rows["002"]["scores"]["PSNR"] == pytest.approx(10 * np.log10(255**2 / (100**2 / 3)), abs=1e-4)
    assert rows["004"]["status"] == "missing" and "24 × 12" in rows["007"]["reason"]
    assert content["scores"]["all"]["skill"][0] == pytest.approx(sum(skill.values()) / 12, abs=1e-4)
    assert content["scores"]["all"]["better than a copy"][0] == pytest.approx(8 / 12, abs=1e-4)
    assert content["other_files"] == 1 and "there is no result" in (folder / "index.html").read_text()
    before = (folder / "scores.json").read_bytes()
    assert main(["bench", "score", str(folder), "--pairs", str(pairs)]) == 0
    assert (folder / "scores.json").read_bytes() == before


def test_results_of_held_out_pairs_alone(tmp_path):
    pairs, folder = pair_folder(tmp_path / "pairs"), results(tmp_path / "results", [1, 0, 1])
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(json.dumps({"data": {"held_out": ["000", "002"]}}))
    assert held_out_names(tmp_path / "run") == ["000", "002"]
    content = score_pairs(folder, str(pairs), ["000", "002"], tmp_path / "out")
    assert content["counts"] == {"scored": 2, "failed": 0, "missing": 0} and (tmp_path / "out/index.html").is_file()
    assert content["scores"]["all"]["skill"][0] == 1 and not (folder / "scores.json").exists()


@pytest.mark.parametrize("layout", ["musubi-tuner, numbered sources", "one folder", "subfolders"])
def test_results_are_named_like_the_sources(tmp_path, layout):
    pairs, given = pair_folder(tmp_path / "pairs", **LAYOUTS[layout]), LAYOUTS[layout]["source"]
    name = given.partition("/")[2] or given
    for names in (name, name.rpartition("/")[2]):
        content = score_pairs(results(tmp_path / names.replace("/", "-"), [1] * 12, names + ".png"), str(pairs))
        assert content["counts"]["scored"] == 12 and content["scores"]["all"]["skill"][0] == 1


def test_what_cannot_be_judged_is_one_sentence(tmp_path, capsys):
    pairs = pair_folder(tmp_path / "pairs")
    put(tmp_path / "strange/a.png", (0, 0, 0))
    for words, arguments in (
        (
            "strange holds no result; pictures are named like the source images, such as 000.png, not a.png.",
            ["strange"],
        ),
        ("none is no folder of results.", ["none"]),
        ("is no run on own pairs that held some out", ["strange", "--held-out", str(tmp_path)]),
        ("give one of them", ["strange", "--rows", "3"]),
    ):
        assert main(["bench", "score", str(tmp_path / arguments[0]), "--pairs", str(pairs), *arguments[1:]]) == 1
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error
    assert main(["bench", "score", str(tmp_path / "strange"), "--held-out", "x"]) == 1
