"""Reports are what the run records say: known tables and curves, refusals, the committed files byte for byte, the page
in a browser."""

import json
import os
import re

import pytest
import warm
from browser import CHROMIUM, DRIVER, headless
from PIL import Image

from mmgen.base.files import repo_root
from mmgen.base.runs import Run, RunError, load_run, seal_of, verify_run
from mmgen.base.schema import WeightsError
from mmgen.base.weights import package, packaged, save_weights
from mmgen.report.ablations import decoding, languages
from mmgen.report.conclusion import conclusion, paper_claims, which_family
from mmgen.report.guide import best
from mmgen.report.measurements import Measurement, section
from mmgen.report.paired import paired_difference
from mmgen.report.plots import draw_curves
from mmgen.report.records import ReportError, curve, evidence, example, select
from mmgen.report.results import write_results
from mmgen.report.sections import comparison
from mmgen.report.seeds import training_seeds
from mmgen.report.site import PAGES, build, fill, front_table, write_index
from mmgen.report.tables import Column, interval, percent, ratio, table, wilson

REPORTS = repo_root() / "reports"


def make_run(root, run_id="tiny", rows=None, notes=(), pictures=None, outcomes=None, **config):
    "The record of a tiny evaluation."
    with Run("evaluate", {"rows": 100, "prompts": "tags"} | config, root=root, run_id=run_id) as run:
        run.note(notes=list(notes))
        (run.path / "scores.json").write_text(json.dumps(example() if rows is None else rows))
        run.artifact(run.path / "scores.json")
        if outcomes:
            (run.path / "rows.json").write_text(json.dumps(outcomes))
            run.artifact(run.path / "rows.json")
        if pictures:
            Image.new("RGB", (700, 300), "white").save(run.path / "first.jpg")
            (run.path / "pictures.json").write_text(json.dumps(pictures))
            for name in ("first.jpg", "pictures.json"):
                run.artifact(run.path / name)
    return run.path


def row(editor, **changes):
    return example()[1] | {"editor": editor} | changes


def test_a_table_and_a_curve_of_a_small_record(tmp_path):
    make_run(tmp_path)
    records = evidence("tiny", tmp_path)
    text, missing = table(select(records), [Column("reached", percent, "↑"), Column("skill", ratio), Column("KD (*")])
    assert (
        text
        == """| method | family | n | reached ↑ | skill |
| :-- | :-- | --: | --: | --: |
| copy-input | – | 100 | 0.0 (−5.0 … 5.0) | 0.00 (−0.05 … 0.05) |
| sdedit | latent diffusion | 100 | 97.0 (92.0 … 102.0) | 0.80 (0.75 … 0.85) |
| styleclip-mapper | StyleCLIP | 100 | 88.0 (83.0 … 93.0) | 0.20 (0.15 … 0.25) |"""
        and missing == ["KD"]
    )
    assert [(r["strength"], r["own"]) for r in curve(records, "sdedit")] == [(0.5, False), (0.75, True)]
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    draw_curves(axes, records)
    lines = {line.get_label(): line for line in axes.lines}
    assert [text.get_text() for text in axes.texts] == ["styleclip-mapper", "sdedit"]  # from below
    assert [list(map(float, lines["sdedit"].get_xdata())), list(map(float, lines["sdedit"].get_ydata()))] == [
        [1.0, 3.0],
        [80.0, 97.0],
    ]
    assert "copy-input" not in lines


def test_the_first_record_given_answers_and_others_add(tmp_path):
    make_run(tmp_path, "a")
    make_run(
        tmp_path,
        "b",
        [
            row("sdedit", scores={"reached": [0.1, 0.1, 0.1]}),
            row("sdedit:decoding=plain"),
            row("sdedit", prompts="english"),
        ],
        prompts="english",
    )
    both = evidence("a,b", tmp_path)
    assert (
        select(both)["sdedit"]["scores"]["reached"][0] == 0.97
        and select(evidence("b,a", tmp_path))["sdedit"]["scores"]["reached"][0] == 0.1
    )
    assert "| sdedit | 100 | 97.0" in languages(both) and "| sdedit | plain | 100 | 97.0" in decoding(both)


def make_training(root, name, seed, reached, **config):
    with Run("instruct", {"seed": seed, "lr": 1e-3} | config, root, name) as run:
        for kind in ("hair color", "eye color"):
            run.metric(f"{kind}: target reached", reached, n=200)


def test_seeds_are_summed_up_where_nothing_else_differs(tmp_path):
    for seed, reached in enumerate((0.8, 0.9, 1.0)):
        make_training(tmp_path, f"i{seed}", seed, reached)
    text = training_seeds("i0,i1,i2", tmp_path)
    assert (
        "| instruct-pix2pix | reached % ↑ | 90.0 ± 10.0 | 90.0 ± 10.0 | – | – | – |" in text
        and "3 models" in text
        and "200 test portraits" in text
    )
    make_training(tmp_path, "i3", 3, 0.9, lr=2e-3)
    with pytest.raises(ReportError, match="i0 and i3 differ in lr"):
        training_seeds("i0,i3", tmp_path)
    with pytest.raises(ReportError, match="There is no run 'i4'"):
        training_seeds("i0,i4", tmp_path)
    make_run(tmp_path)
    with pytest.raises(
        ReportError, match="Run tiny: a completed training of ldm, instruct, mapper was expected, this is evaluate"
    ):
        training_seeds("tiny", tmp_path)


def test_the_conclusion_follows_the_numbers(tmp_path):
    make_run(tmp_path)
    records = evidence("tiny", tmp_path)
    assert which_family(records).startswith(
        "**Latent diffusion** has the higher skill"
    ) and "does not hold here" in paper_claims(records)
    turned = [
        r | {"editor": {"sdedit": "styleclip-mapper", "styleclip-mapper": "sdedit"}.get(r["editor"], r["editor"])}
        for r in example()
    ]
    make_run(tmp_path, "turned", turned)
    records = evidence("turned", tmp_path)
    assert (
        which_family(records).startswith("**StyleCLIP**")
        and "| holds here | skill: sdedit 0.20" in paper_claims(records)
        and "holds in part: not in reached and skill" in paper_claims(records)
    )
    level = [
        r | {"scores": {"reached": [0.5, 0.4, 0.6], "flips": [0, 0, 0], "skill": [0.5, 0.1, 0.9]}} for r in example()
    ]
    make_run(tmp_path, "level", level)
    assert which_family(evidence("level", tmp_path)).startswith(
        "**Neither family**"
    ) and "undecided here" in paper_claims(evidence("level", tmp_path))


def test_exact_pairs_do_not_stand_for_diffusion(tmp_path):
    make_run(
        tmp_path,
        rows=[
            *example(),
            row(
                "instruct-pix2pix",
                scores={name: [0.99, 0.99, 0.99] for name in ("reached", "skill")} | {"flips": [0, 0, 0]},
            ),
        ],
    )
    records = evidence("tiny", tmp_path)
    assert (
        best(records, "latent diffusion", ("captioned images",))[0] == "sdedit"
        and best(records, "latent diffusion", ("exact pairs",))[0] == "instruct-pix2pix"
    )
    text = conclusion(records)
    assert "| latent diffusion | exact pairs | instruct-pix2pix | 100 |" in which_family(records)
    assert "| latent diffusion from exact pairs (instruct-pix2pix) | skill, hair color |" in text
    assert (
        "| best edits | instruct-pix2pix |" in text
        and "| best edits, trained on captioned images alone | sdedit |" in text
    )


def test_ten_rows_do_not_conclude(tmp_path):
    make_run(tmp_path, rows=[r | {"n": 10} for r in example()])
    text = write_results(evidence("tiny", tmp_path), tmp_path / "out")
    assert "10 edits per method are too few; a conclusion needs 100" in text
    assert "here |" not in text and "higher skill" not in text and "### Goals" not in text


def test_paired_differences_use_the_same_edits(tmp_path):
    editors = {
        "sdedit": {"reached": [1, 1, 1, None], "flips": [0, 1, 0, None], "skill": [0.9, 0.8, 0.7, None]},
        "styleclip-mapper": {"reached": [1, 0, 0], "flips": [0, 0, 0], "skill": [0.5, 0.4, 0.3]},
    }
    outcomes = {"rows": [{"seed": seed} for seed in (1, 1, 2, 3)], "editors": editors}
    difference = paired_difference(outcomes, "sdedit", "styleclip-mapper", "skill")
    assert (round(difference.value, 9), difference.n, difference.sources) == (0.4, 3, 2)
    path = make_run(tmp_path, outcomes=outcomes)
    text = write_results(evidence("tiny", tmp_path), tmp_path / "out")
    assert "| styleclip-mapper | 3 | −66.7 (" in text and "[rows.json](runs/tiny/rows.json)" in text
    (path / "rows.json").write_text("{}")
    with pytest.raises(RunError, match="rows.json has the SHA-256"):
        evidence("tiny", tmp_path)


def test_a_missing_column_is_said_and_so_is_how_to_get_it(tmp_path):
    note = "LPIPS is missing: put lpips' weights of VGG-16 where torch looks for them."
    make_run(
        tmp_path,
        notes=[note],
        rows=[r | {"scores": r["scores"] | {"FD (oracle)": [61.6, "nan", None]}} for r in example()],
    )
    text = comparison(evidence("tiny", tmp_path))
    assert "so not in this table: KD, CLIP score, CLIP direction, LPIPS and identity." in text and f"*{note}*" in text
    assert "| sdedit | latent diffusion | 100 | 61.6 |" in text and "nan" not in text


def test_a_record_changed_by_hand_is_refused(tmp_path):
    path = make_run(tmp_path)
    record = (path / "run.json").read_text()
    (path / "run.json").write_text(record.replace('"rows": 100', '"rows": 500'))
    with pytest.raises(
        RunError, match=r"Run tiny: run.json was changed after the run wrote it; restore it .* or run evaluate again"
    ):
        build("tiny", tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
    (path / "run.json").write_text(record)
    scores = (path / "scores.json").read_text()
    (path / "scores.json").write_text(scores.replace("0.97", "0.99"))
    with pytest.raises(
        RunError,
        match=r"Run tiny: scores.json has the SHA-256 \w{8}…, its record says \w{8}…: one of them was changed by hand",
    ):
        build("tiny", tmp_path / "out", tmp_path)
    (path / "scores.json").unlink()
    with pytest.raises(RunError, match="Run tiny: scores.json is missing"):
        evidence("tiny", tmp_path)


def test_a_record_older_than_seals_is_read_and_said_to_be(tmp_path):
    path = make_run(tmp_path)
    record = load_run(path)
    del record["seal"]
    (path / "run.json").write_text(json.dumps(record))
    assert "no, older than seals" in write_results(evidence("tiny", tmp_path), tmp_path / "out")


def test_the_seal_survives_copies_and_packaging(tmp_path):
    import torch

    with Run("x", {"lr": float("inf")}, root=tmp_path, run_id="x") as run:
        save_weights(run.path / "model", {"w": torch.zeros(2)}, {"a": 1}, "card", run.record)
        with pytest.raises(RunError, match="'seal' is written by the run itself"):
            run.note(seal="mine")
    copy = json.loads((run.path / "model" / "run.json").read_text())
    assert copy["status"] == "completed" and copy["seal"] == seal_of(copy) == verify_run(run.path)["seal"]
    packed = json.loads((package(run.path, "model", "name", tmp_path / "weights") / "run.json").read_text())
    assert packed["seal"] == seal_of(packed)


def test_packaging_again_leaves_no_records_of_before(tmp_path, monkeypatch):
    import torch

    for name in "abc":
        with Run("x", {}, root=tmp_path, run_id=name) as run:
            save_weights(run.path / "model", {"w": torch.zeros(2)}, {"a": 1}, "card", run.record)
    found = lambda folder: sorted(file.name for file in folder.glob("run*.json"))
    assert found(
        package(run.path, "model", "name", tmp_path / "weights", [run.path.parent / "a", run.path.parent / "b"])
    ) == ["run-1.json", "run-2.json", "run.json"]
    assert found(package(run.path, "model", "name", tmp_path / "weights", replace=True)) == ["run.json"]
    before = {p.name: p.read_bytes() for p in (tmp_path / "weights" / "name").iterdir()}
    for name, said in (
        ("name", "Weights named name exist already"),
        ("../evil", "cannot name weights"),
        (".x", "cannot name"),
    ):
        with pytest.raises(WeightsError, match=said):
            package(run.path, "model", name, tmp_path / "weights")
    monkeypatch.setattr(
        "mmgen.base.weights._add_records", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space left"):
        package(run.path, "model", "name", tmp_path / "weights", replace=True)
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "weights" / "name").iterdir()} and [
        *packaged(tmp_path / "weights")
    ] == ["name"] == os.listdir(tmp_path / "weights")


@pytest.mark.parametrize(
    "rows, message",
    [
        ("{", "Run tiny: scores.json is not JSON"),
        ([{"editor": "sdedit"}], "Run tiny: row 0 of scores.json has no 'task' as evaluate writes it"),
        (
            [row("sdedit", scores={"skill": 0.5})],
            r"row 0 of scores.json: 'skill' must be \[value, low, high\], not 0.5",
        ),
    ],
)
def test_scores_that_evaluate_would_not_write(tmp_path, rows, message):
    path = make_run(tmp_path)
    (path / "scores.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))
    record = load_run(path)
    del record["seal"], record["artifacts"][0]["sha256"]
    from mmgen.base.files import sha256

    record["artifacts"][0]["sha256"] = sha256(path / "scores.json")
    (path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ReportError, match=message):
        evidence("tiny", tmp_path)


def test_runs_that_cannot_be_reported(tmp_path):
    make_run(tmp_path)
    with pytest.raises(ReportError, match="There is no run 'tyni' in .*; evaluations there: tiny"):
        evidence("tyni", tmp_path)
    with pytest.raises(ReportError, match="at least one run"):
        evidence(" , ", tmp_path)
    with Run("ldm", root=tmp_path, run_id="model") as run:
        (run.path / "scores.json").write_text("[]")
        run.artifact(run.path / "scores.json")
    with pytest.raises(ReportError, match="Run model: a completed evaluate was expected, this is ldm, completed"):
        evidence("model", tmp_path)


def test_pictures_come_with_a_legend_and_only_from_the_record(tmp_path):
    about = {
        "first": {"file": "first.jpg", "rows": ["source", "exact answer", "sdedit"], "columns": ["green hair"]},
        "failures": {
            "file": "first.jpg",
            "editors": {
                "sdedit": [
                    {"row": 7, "kind": "eye color", "tag": "red eyes", "seed": 200000007, "reached": False, "flips": 2}
                ]
            },
        },
    }
    make_run(tmp_path, pictures=about)
    text = write_results(evidence("tiny", tmp_path), tmp_path / "out")
    assert "![Rows: source, exact answer, sdedit; columns: green hair](figures/first-tiny.jpg)" in text
    assert text.index("figures/results-edits.jpg") < text.index("\n## ")  # before the first section
    assert "| sdedit | eye color → red eyes (row 7, seed 200000007): not reached, 2 flipped |" in text
    sizes = [Image.open(tmp_path / "out" / "figures" / f"{name}.jpg").size for name in ("first-tiny", "failures-tiny")]
    assert all(width > 88 and height > 88 for width, height in sizes)
    make_run(tmp_path, "sly", pictures={"first": about["first"] | {"file": "../tiny/first.jpg"}})
    with pytest.raises(ReportError, match="which is no picture of its record"):
        write_results(evidence("sly", tmp_path), tmp_path / "out")
    make_run(tmp_path, "small", pictures={"first": about["first"] | {"columns": ["green hair"] * 20}})
    with pytest.raises(ReportError, match="700 × 300 pixels, fewer than 20 × 3 tiles"):
        write_results(evidence("small", tmp_path), tmp_path / "out")


def committed():
    "The records that report reads when nothing else is said: of evaluations, of trainings."
    from papermill import inspect_notebook

    found = inspect_notebook(str(repo_root() / "nbs" / "report.ipynb"))
    return [found[name]["default"].strip("'\"") for name in ("runs", "seeds")]


def test_the_committed_reports_are_what_the_records_give(tmp_path):
    runs, seeds = committed()
    build(runs, tmp_path, seeds=seeds)
    made = {f.relative_to(tmp_path).as_posix(): f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    assert {
        "results.md",
        "dataset.md",
        "settings.md",
        "index.html",
        "figures/results-curves.svg",
        "figures/dataset-sheet.jpg",
    } <= set(made)
    stale = [
        name
        for name, content in made.items()
        if not (REPORTS / name).is_file() or (REPORTS / name).read_bytes() != content
    ]
    assert not stale, f"reports/{', reports/'.join(stale)}: not what the records give; run `make reports` and commit"


def test_the_front_page_shows_the_comparison_that_the_records_give():
    readme = (repo_root() / "README.md").read_text("utf-8")
    runs, _ = committed()
    assert fill(readme, {"results": front_table(evidence(runs))}) == readme, "README.md: run `make reports` and commit"
    assert len(readme.splitlines()) <= 150
    with pytest.raises(ValueError, match="has no lines <!-- speed -->"):
        fill(readme, {"speed": ""})


def test_measurements_are_the_last_rows_of_each_key(tmp_path):
    rows = [
        {"way": "b", "n": 2, "PSNR": 20.0},
        {"way": "a", "n": 10, "PSNR": 30.0},
        {"way": "b", "n": 2, "PSNR": 25.0},
        {"way": "b", "n": 1, "PSNR": 1.0},
    ]
    (tmp_path / "demo.jsonl").write_text(
        "\n".join(json.dumps(row | {"command": "python benchmarks/demo.py"}) for row in rows)
    )
    demo = Measurement(
        "Demo", "Text.", "demo", {"way": "way", "n": "n"}, {"PSNR": ("PSNR", ratio), "none": ("never measured", ratio)}
    )
    text = section(demo, tmp_path)
    assert [line for line in text.splitlines() if line.startswith("|")][2:] == [
        "| b | 1 | 1.00 |",
        "| b | 2 | 25.0 |",
        "| a | 10 | 30.0 |",
    ]
    assert "never measured" not in text and text.count("`python benchmarks/demo.py`") == 1
    assert "| b | 13.0 |" in section(demo._replace(key={"way": "way"}, over="n"), tmp_path)
    assert section(demo._replace(match=lambda row: row["way"] == "c"), tmp_path) == ""
    (tmp_path / "demo.jsonl").write_text("{}\n{oops")
    with pytest.raises(ValueError, match="demo.jsonl, line 2 is not JSON"):
        section(demo, tmp_path)


@pytest.mark.notebooks
def test_the_notebook_makes_the_same_page(tmp_path):
    notebook = repo_root() / "nbs" / "report.ipynb"
    code = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or "def " in "".join(cell["source"]) for cell in code)
    environment = os.environ | {"MMGEN_ROOT": str(repo_root())}
    command = ("papermill", notebook, tmp_path / "out.ipynb", "--no-progress-bar", "-r", "out", tmp_path)
    done = warm.run(*command, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "index.html").read_bytes() == (REPORTS / "index.html").read_bytes()


def test_the_reports_are_small_and_their_links_lead_somewhere():
    page = (REPORTS / "index.html").read_text("utf-8")
    texts = [
        page,
        *((REPORTS / f"{name}.md").read_text("utf-8") for name in PAGES if (REPORTS / f"{name}.md").is_file()),
    ]
    links = {
        link
        for text in texts
        for link in re.findall(r'(?:src|href)="([^"]+)"|\]\(([^)\s]+)\)', text)
        for link in link
        if link
    }
    assert not [link for link in links if link.startswith(("http", "/", "file:"))], "the page needs no network"
    for link in links:
        name, _, place = link.partition("#")
        assert not name or name.startswith("data:") or (REPORTS / name).exists(), link
        assert name or f'id="{place}"' in page, link
    assert len(re.findall(r"<img [^>]*alt=\"[^\"]{10,}\"", page)) == page.count("<img ")
    figures = {REPORTS / link for link in links if link.endswith((".svg", ".jpg"))}
    assert sum(f.stat().st_size for f in figures) < 2 * 2**20


def test_a_preliminary_report_is_shown_where_it_is_there(tmp_path):
    (tmp_path / "results.md").write_text("# Results\n\n## Conclusion\n\n[there](preliminary.md)\n")
    assert "#preliminary" not in write_index(tmp_path).split("<main>")[0]
    (tmp_path / "preliminary.md").write_text("# Preliminary experiments\n\n<b>one</b> & two\n")
    page = write_index(tmp_path)
    assert (
        '<a href="#preliminary">Preliminary experiments</a>' in page
        and '<a href="#preliminary">there</a>' in page
        and "&amp; two" in page
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium with chromedriver")
    driver = headless(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(browser, width, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    browser.get((REPORTS / "index.html").as_uri())
    run = browser.execute_script
    run("document.querySelectorAll('details').forEach(d => d.open = true)")
    broken = run(
        (
            "return [...document.images].filter(i => !(i.complete && i.naturalWidth > 0 && "
            "i.getBoundingClientRect().width > 100)).map(i => i.src)"
        )
    )
    hidden = run(
        (
            "return [...document.querySelectorAll('table')].filter(t => !t.checkVisibility() || "
            "t.getBoundingClientRect().height < 30).length"
        )
    )
    assert run("return document.images.length") >= 4 and run("return document.querySelectorAll('table').length") > 15
    assert not broken and hidden == 0
    assert run("return document.documentElement.scrollWidth") <= width, "only tables and figures scroll sideways"
    clipped = run(
        (
            "return [...document.querySelectorAll('table')].filter(t => t.scrollWidth > "
            "t.parentElement.clientWidth + 1 && getComputedStyle(t.parentElement).overflowX != 'auto').length"
        )
    )
    assert clipped == 0
    seen = run(
        (
            "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor].map(c => "
            "c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0))"
        )
    )
    assert (seen[0] < seen[1]) == (scheme == "light") and abs(seen[0] - seen[1]) > 400
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def test_the_interval_of_edits_counts_the_edits_and_not_the_images():
    rows = [json.loads(line) for line in (REPORTS / "inversion.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["edits"] < row["n"])
    expected = interval(wilson(row["edits reached"], row["edits"]), percent)
    for page in ("measurements.md", "results.md"):
        line = next(line for line in (REPORTS / page).read_text().splitlines() if line.startswith(f"| {row['way']} |"))
        assert expected in line, page
