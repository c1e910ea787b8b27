"""Each experiment notebook through papermill with the smoke preset, as a user runs it, and the mistakes users make."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import warm
from PIL import Image

from mmgen.base.files import repo_root
from mmgen.base.weights import packaged
from mmgen.data import portraits
from mmgen.jobs.registry import JOBS, parameters_cell

pytestmark = pytest.mark.notebooks
NOTEBOOKS = repo_root() / "nbs"
EXPERIMENTS = {row.notebook: job for job, row in JOBS.items()}
NEEDS = {
    "train_ldm": {"autoencoder-portraits", "clip-portraits"},
    "train_instruct": {"autoencoder-portraits", "clip-portraits"},
    "edit": {"ldm-portraits"},
    "evaluate": {"ldm-portraits"},
    "paper_figures": {"ldm-portraits", "mapper-portraits", "directions-portraits"},
    "train_encoder": {"stylegan2-portraits", "autoencoder-portraits"},
    "train_mapper": {"stylegan2-portraits", "encoder-portraits", "clip-portraits", "identity-portraits"},
    "train_directions": {"stylegan2-portraits", "clip-portraits"},
}
FEW = {"train_directions": {"images": 2, "samples": 50}}  # the others have a preset smoke


def papermill(name, root, **parameters):
    """Runs a notebook with its outputs below `root`; the finished process and the run's record.

    train_oracle by the command and in a kernel, as a user does; the others by the same command without a kernel."""
    arguments = [
        part
        for key, value in parameters.items()
        for part in ("-r" if isinstance(value, str) else "-p", key, str(value))
    ]
    command = [NOTEBOOKS / f"{name}.ipynb", root / "out.ipynb", "--no-progress-bar", *arguments]
    where = {"cwd": root, "env": os.environ | {"MMGEN_ROOT": str(root), "OMP_NUM_THREADS": "1"}, "timeout": 600}
    if name == "train_oracle":
        program = Path(sys.executable).parent / "papermill"
        done = subprocess.run([program, *command], capture_output=True, text=True, **where)
    else:
        done = warm.run("papermill", *command, **where)
    found = sorted((root / "reports" / "runs").glob("*/run.json"))
    return done, json.loads(found[-1].read_text()) if found else None


def needs(name):
    missing = NEEDS.get(name, set()) - set(packaged())
    if missing:
        pytest.skip(f"{', '.join(sorted(missing))} not packaged")


@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if n != "edit"])
def test_smoke(name, tmp_path):
    needs(name)
    done, record = papermill(name, tmp_path, **FEW.get(name, {"preset": "smoke"}))
    assert done.returncode == 0, done.stderr[-3000:]
    assert record["status"] == "completed" and (name in FEW or record["config"]["preset"] == "smoke")
    assert record["metrics"] and all(m["n"] for m in record["metrics"])
    assert (tmp_path / "reports" / "runs" / record["run_id"] / "index.html").is_file()
    if name.startswith("train_"):
        assert record["figures"], "a picture to look at"
    for entry in (*record["figures"], *record["artifacts"]):
        assert (tmp_path / "reports" / "runs" / record["run_id"] / entry["file"]).stat().st_size == entry["bytes"]
    assert str(tmp_path) not in json.dumps(record), "a record names no folder of the machine"


def test_edit_an_image_of_ones_own(tmp_path):
    needs("edit")
    picture = np.random.default_rng(0).integers(0, 255, (300, 200, 4), dtype=np.uint8)
    Image.fromarray(picture, "RGBA").save(tmp_path / "me.png")
    done, record = papermill("edit", tmp_path, image=str(tmp_path / "me.png"), prompt="green hair", run_id="mine")
    assert done.returncode == 0, done.stderr[-3000:]
    result = np.asarray(Image.open(tmp_path / "reports" / "runs" / "mine" / "result.png"))
    assert result.shape == (300, 200, 4) and (result[..., 3] >= picture[..., 3]).all() and result[..., :3].std() > 5
    assert {"result.png", "source_and_result.jpg"} <= {e["file"] for e in (*record["artifacts"], *record["figures"])}
    assert str(tmp_path / "reports" / "runs" / "mine" / "result.png") in (tmp_path / "out.ipynb").read_text(), (
        "the notebook says where the result is"
    )


def own_images(folder):
    "A folder of pictures with their tags beside them, fewer than a run likes to show"
    folder.mkdir()
    for seed in range(40):
        face = portraits.sample(seed)
        Image.fromarray(portraits.render(face, 80)).save(folder / f"{seed}.png")
        (folder / f"{seed}.txt").write_text(", ".join(portraits.tags(face)))


def judged(root, name):
    "A run on data of one's own has numbers and pictures, in its record, on its page and in its notebook."
    folder = root / "reports" / "runs" / name
    record, page, notebook = (
        json.loads((folder / "run.json").read_text()),
        (folder / "index.html").read_text(),
        (root / "out.ipynb").read_text(),
    )
    assert record["metrics"] and all(
        m["name"].replace("&", "&amp;").replace("'", "&#x27;") in page for m in record["metrics"]
    )
    assert 0 < page.count('<img src="data:image/jpeg;base64,') <= notebook.count('"image/jpeg"'), "each figure is shown"
    assert "knows no tag" not in notebook
    if name in ("train_ldm", "train_mapper"):
        assert {"held-out loss", "CLIP score of edits"} <= {m["name"] for m in record["metrics"]}


def test_a_small_folder_of_ones_own_from_autoencoder_to_edit(tmp_path):
    "README, 'Your own tagged images'"
    own_images(tmp_path / "mine")
    for name, given in (
        ("train_autoencoder", {}),
        ("train_clip", {}),
        (
            "train_ldm",
            {
                "autoencoder": "reports/runs/train_autoencoder/autoencoder",
                "text_encoder": "reports/runs/train_clip/clip-portraits",
                "sample_images": 32,
                "edit_images": 16,
            },
        ),
    ):
        done, _ = papermill(name, tmp_path, preset="smoke", data="mine", run_id=name, **given)
        assert done.returncode == 0, done.stderr[-3000:]
        judged(tmp_path, name)
    done, _ = papermill(
        "edit", tmp_path, model="reports/runs/train_ldm/model", image="mine/3.png", prompt="green hair", run_id="edited"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "reports" / "runs" / "edited" / "result.png").stat().st_size > 0


def test_a_small_folder_of_ones_own_from_generator_to_edit(tmp_path):
    "Your own tagged images, the StyleCLIP way; generator and encoder have 16 pixels, CLIP sees 64"
    own_images(tmp_path / "mine")
    made = lambda job, folder: f"reports/runs/train_{job}/{folder}"
    networks = {
        "generator": made("stylegan2", "generator"),
        "encoder": made("encoder", "encoder"),
        "clip": made("clip", "clip-portraits"),
    }
    some = lambda *names: {name: networks[name] for name in names}
    for name, given in (
        ("train_clip", {}),
        ("train_stylegan2", {}),
        ("train_encoder", {"size": 16, "edit_weight": 0.0} | some("generator")),
        ("train_mapper", {"size": 16, "identity": "none"} | networks),
        ("train_directions", FEW["train_directions"] | some("generator", "clip")),
    ):
        preset = {} if name == "train_directions" else {"preset": "smoke", "data": "mine"}
        done, _ = papermill(name, tmp_path, run_id=name, **preset, **given)
        assert done.returncode == 0, done.stderr[-3000:]
        judged(tmp_path, name)
    for editor, model in (
        ("styleclip-mapper", made("mapper", "mapper")),
        ("styleclip-directions", made("directions", "directions")),
    ):
        done, _ = papermill(
            "edit",
            tmp_path,
            editor=editor,
            model=model,
            image="mine/3.png",
            prompt="green hair",
            run_id=editor,
            **networks,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert Image.open(tmp_path / "reports" / "runs" / editor / "result.png").size == (80, 80)


@pytest.mark.parametrize(
    "name, parameters, said",
    [
        ("train_oracle", {"stpes": 3}, "oracle has no parameter 'stpes'; the closest is 'steps'"),
        ("train_autoencoder", {"preset": "smal"}, "did you mean 'small'"),
        (
            "train_autoencoder",
            {"preset": "smoke", "init_from": "autoencoder-portraits"},
            "autoencoder-portraits does not fit AutoencoderKL",
        ),
        (
            "train_ldm",
            {"preset": "smoke", "init_from": "autoencoder-portraits"},
            "autoencoder-portraits does not fit UNet2DConditionModel",
        ),
        ("train_ldm", {"preset": "smoke", "edit_tags": "gren hair"}, "the closest tag is 'green hair'"),
        ("train_clip", {"steps": "ten"}, "clip: steps must be int, not str 'ten'"),
        ("edit", {"strength": 1.5}, "edit: strength must be from 0 to 1, not 1.5"),
        ("edit", {"prompt": " "}, "The prompt is empty"),
        ("edit", {"image": "nothing.png"}, "nothing.png"),
        ("edit", {"alpha": 2.0}, "flowedit has no alpha; it has model, decoding"),
        (
            "train_encoder",
            {"preset": "smoke", "size": 32},
            "the generator stylegan2-portraits makes images of 64 px; size is 32",
        ),
        (
            "train_mapper",
            {"preset": "smoke", "prompt": "green hair", "pair_weight": 1.0},
            "pair_weight is for a mapper of many prompts",
        ),
    ],
)
def test_a_mistake_ends_the_run_with_one_sentence(name, parameters, said, tmp_path):
    if name == "edit" and "strength" not in parameters:
        needs(name)
    done, _ = papermill(name, tmp_path, **parameters)
    assert done.returncode != 0 and said in done.stderr, done.stderr[-2000:]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_notebook_is_parameters_one_call_and_pictures(name):
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1 and "".join(tagged[0]["source"]).strip() == parameters_cell(EXPERIMENTS[name]).strip()
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    assert not any(line.startswith(("def ", "class ")) for text in code for line in text.split("\n"))
    assert not any(c.get("outputs") for c in cells)
