"""mmgen.jobs.registry: what can be set, what is refused and what a notebook's parameters cell says."""

import dataclasses
import inspect
import json
import logging
import symtable
from dataclasses import replace

import papermill
import pytest
import torch

from mmgen.base.files import repo_root
from mmgen.base.runs import Run
from mmgen.jobs import registry as presets
from mmgen.jobs.registry import PRESETS, config_for, config_from_notebook, parameters_cell
from mmgen.ldm.autoencoder import AutoencoderKL
from mmgen.ldm.autoencoder_train import AutoencoderTask
from mmgen.ldm.unet import UNet2DConditionModel
from mmgen.training.config import Job
from mmgen.training.loop import train

JOBS = sorted(PRESETS)


def notebook_globals(job, **injected):
    "The globals after a notebook's parameters cell and the cell that papermill injects below it."
    return run_cells({}, parameters_cell(job), *[f"# Parameters\n{assignments(injected)}"] * bool(injected))


def assignments(values):
    return "\n".join(f"{name} = {value!r}" for name, value in values.items())


def run_cells(names, *cells):
    "The globals as IPython keeps them after more cells, when the cell that calls config_from_notebook runs."
    names = names or {"In": [""], "Out": {1: 2}, "_dh": [], "__name__": "__main__", "pytest": pytest, "exit": exit}
    for cell in cells:
        exec(cell if "%" not in cell else "", names)
    return names | {"In": [*names["In"], *cells, "config = config_from_notebook(job, globals())\nconfig"]}


def test_every_job_has_the_four_presets():
    assert JOBS == ["autoencoder", "clip", "encoder", "identity", "instruct", "ldm", "mapper", "oracle", "stylegan2"]
    for job, named in PRESETS.items():
        assert list(named) == ["smoke", "small", "gpu", "paper"]
        assert all(config.preset == name and config.job == job for name, config in named.items())
        assert len({type(config) for config in named.values()}) == 1


@pytest.mark.parametrize("job", JOBS)
def test_configs_are_frozen_flat_and_fit_json(job):
    for config in PRESETS[job].values():
        values = dataclasses.asdict(config)
        assert all(v is None or type(v) in (bool, int, float, str) for v in values.values())
        assert json.loads(json.dumps(values)) == values
        assert type(config)(**values) == config
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.steps = 1


def test_smoke_is_small():
    for job in JOBS:
        config = PRESETS[job]["smoke"]
        assert config.images == 64 and config.steps <= 10 and config.size <= 64


def test_none_keeps_the_preset_and_values_override_it():
    assert config_for("ldm") == PRESETS["ldm"]["small"]
    assert config_for("ldm", "gpu", steps=None, lr=None) == PRESETS["ldm"]["gpu"]
    config = config_for("ldm", "gpu", steps=7, lr=1)
    assert config == dataclasses.replace(PRESETS["ldm"]["gpu"], steps=7, lr=1.0)
    assert type(config.lr) is float


@pytest.mark.parametrize(
    "job, preset, overrides, parts",
    [
        ("lmd", "small", {}, ["no job 'lmd'", "did you mean 'ldm'?", "autoencoder"]),
        ("ldm", "smal", {}, ["no ldm preset 'smal'", "did you mean 'small'?", "smoke, small, gpu, paper"]),
        ("ldm", "SMOKE", {}, ["did you mean 'smoke'?"]),
        ("ldm", 3, {}, ["no ldm preset 3"]),
        ("ldm", ["small"], {}, ["no ldm preset ['small']"]),
        ("ldm", "small", {"stesp": 5}, ["ldm has no field 'stesp'", "closest is 'steps'"]),
        ("ldm", "small", {"learning_rate": 5.0}, ["closest is 'lr'"]),
        ("ldm", "small", {"resolution": 5}, ["closest is 'size'"]),
        ("ldm", "small", {"Batch_Size": 5}, ["closest is 'batch_size'"]),
        ("oracle", "small", {"unet_channels": "1"}, ["oracle has no field 'unet_channels'"]),
        ("oracle", "small", {"nonsense": None}, ["oracle has no field 'nonsense'"]),
        ("ldm", "small", {"steps": "5"}, ["steps must be int, not str '5'"]),
        ("ldm", "small", {"steps": 5.0}, ["steps must be int, not float 5.0"]),
        ("ldm", "small", {"steps": True}, ["steps must be int, not bool True"]),
        ("ldm", "small", {"lr": True}, ["lr must be float, not bool True"]),
        ("ldm", "small", {"lr": "1e-3"}, ["lr must be float, not str '1e-3'"]),
        ("ldm", "small", {"tensorboard": 1}, ["tensorboard must be bool, not int 1", "write True or False"]),
        ("ldm", "small", {"run_id": 20261123}, ["run_id must be str, not int 20261123", "-r run_id 20261123"]),
        ("ldm", "small", {"unet_channels": [96, 192]}, ["unet_channels must be str, not list [96, 192]"]),
        (
            "ldm",
            "small",
            {"unet_channels": "96;192"},
            ["unet_channels must be a list of int like '96,128', not '96;192'"],
        ),
        ("ldm", "small", {"unet_channels": ""}, ["must be a list of int like '96,128', not ''"]),
        ("ldm", "small", {"unet_channels": "0,-32"}, ["0,-32"]),
        ("ldm", "small", {"attention_levels": "0,2"}, ["its levels are 0 to 1"]),
        ("ldm", "small", {"prediction": "epsilon"}, ["must be one of eps, v, flow", "did you mean 'eps'?"]),
        ("ldm", "small", {"mixed_precision": "bf-16"}, ["did you mean 'bf16'?"]),
        ("ldm", "small", {"steps": 0}, ["steps must be 1 or more, not 0"]),
        ("ldm", "small", {"lr": float("nan")}, ["lr must be finite, 0 or more"]),
        ("ldm", "small", {"lr": float("inf")}, ["lr must be finite, 0 or more"]),
        ("ldm", "small", {"edit_strength": 1.5}, ["edit_strength must be from 0 to 1, not 1.5"]),
        ("ldm", "small", {"caption_dropout": -0.1}, ["caption_dropout must be from 0 to 1"]),
        ("clip", "small", {"text_heads": 7}, ["must be a multiple of text_heads=7"]),
        ("clip", "small", {"patch": 7}, ["must be a multiple of patch=7"]),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(job, preset, overrides, parts):
    with pytest.raises(ValueError) as e:
        config_for(job, preset, **overrides)
    assert all(part in str(e.value) for part in parts), str(e.value)
    assert "\n" not in str(e.value)


def test_a_limit_can_be_lifted():
    assert config_for("ldm", max_seconds=float("inf")).max_seconds == float("inf")
    assert config_for("ldm", max_seconds=60).max_seconds == 60.0
    assert config_for("oracle", held_out=0, warmup=0, sample_every=0).warmup == 0


def test_the_loop_gets_every_field_that_it_knows():
    arguments = set(inspect.signature(train).parameters) - {"task", "data", "run", "explode"}
    for choices in PRESETS.values():
        for config in choices.values():
            assert set(config.loop) == arguments
    assert PRESETS["ldm"]["paper"].loop["lr_batch"] == 28 and PRESETS["ldm"]["paper"].loop["schedule"] == "constant"


def test_paper_preset_is_section_4_3():
    ldm, autoencoder = PRESETS["ldm"]["paper"], PRESETS["autoencoder"]["paper"]
    assert (ldm.size, ldm.images, ldm.batch_size, ldm.warmup, ldm.optimizer) == (256, 300_000, 8, 10_000, "adamw")
    assert ldm.text_encoder == "openai/clip-vit-large-patch14"
    unet = ldm.unet_config(latent_channels=4, context_width=768)
    assert unet["block_out_channels"] == (320, 640, 1280, 1280)
    assert unet["down_block_types"] == ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    assert unet["up_block_types"] == ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    assert autoencoder.factor == 8 and autoencoder.model_config["block_out_channels"] == (128, 256, 512, 512)
    assert autoencoder.lr == pytest.approx(4.5e-6 * 2 * 12) and not autoencoder.learn_logvar


@pytest.mark.parametrize("preset", ["smoke", "small", "gpu", "paper"])
def test_autoencoder_configs_describe_models(preset):
    config = PRESETS["autoencoder"][preset]
    with torch.device("meta"):
        model = AutoencoderKL.from_config(config.model_config)
    assert model.factor == config.factor == 8
    known = {f for f in inspect.signature(AutoencoderKL.__init__).parameters}
    assert set(config.model_config) <= known


def test_loss_config_fits_the_autoencoders_task():
    config = PRESETS["autoencoder"]["paper"]
    assert set(config.loss_config) <= set(inspect.signature(AutoencoderTask.__init__).parameters)
    assert config.loss_config["logvar"] == "fixed" and config.loss_config["disc_weight"] == 0.5
    assert dataclasses.replace(config, learn_logvar=True).loss_config["logvar"] == "learned"


@pytest.mark.parametrize("preset", ["smoke", "small", "gpu", "paper"])
def test_unet_configs_describe_models(preset):
    with torch.device("meta"):
        model = UNet2DConditionModel(**PRESETS["ldm"][preset].unet_config(4, 768))
    count = sum(p.numel() for p in model.parameters())
    assert count == 859_520_964 if preset == "paper" else 10_000 < count < 300_000_000  # paper: SD 1.x's size


@pytest.mark.parametrize("job", JOBS)
def test_parameters_cell_has_one_line_per_field(job):
    cell = parameters_cell(job)
    lines = [line for line in cell.splitlines() if not line.startswith("#")]
    small = PRESETS[job]["small"]
    names = [line.split(":")[0] for line in lines]
    assert sorted(names) == sorted(f.name for f in dataclasses.fields(small)) and len(set(names)) == len(names)
    assert lines[0].startswith('preset: str = "small" ')
    assert all(" = None " in line for line in lines[1:])
    assert all(len(line.split("#", 1)[1].strip()) > 10 and len(line) <= 120 for line in lines), cell
    assert config_from_notebook(job, notebook_globals(job)) == small


def notebook_of(job):
    return repo_root() / "nbs" / f"{presets.JOBS[job].notebook}.ipynb"


@pytest.mark.parametrize("job", presets.JOBS)
def test_papermill_reads_every_line_of_the_parameters_cell(job, caplog):
    with caplog.at_level(logging.WARNING):
        found = papermill.inspect_notebook(str(notebook_of(job)))
    assert not caplog.records
    fields = {f.name: presets.plain_type(f).__name__ for f in dataclasses.fields(presets.JOBS[job].config)}
    assert {name: p["inferred_type_name"] for name, p in found.items()} == fields
    assert all(p["help"] for p in found.values())


@pytest.mark.parametrize("job", presets.JOBS)
def test_no_other_cell_of_a_notebook_binds_a_parameter(job):
    names = {f.name for f in dataclasses.fields(presets.JOBS[job].config)} | {"fit"}  # of pictures, in some jobs
    for cell in json.loads(notebook_of(job).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code" or "parameters" in cell["metadata"].get("tags", []):
            continue
        symbols = symtable.symtable("".join(cell["source"]), "cell", "exec").get_symbols()
        bound = {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}
        assert not bound & names, f"{notebook_of(job).name} {''.join(cell['source'])}"


def test_comments_come_from_the_most_derived_class():
    comments, headings = presets.field_comments(presets.JOBS["ldm"].config)
    assert comments["batch_size"] == "latents per step" and comments["lr"] == "peak learning rate"
    assert headings["seed"] == "the run" and headings["unet_channels"] == headings["norm_groups"] == "UNet"
    assert all(comments[f.name] for f in dataclasses.fields(Job))


@pytest.mark.parametrize("job", JOBS)
def test_notebook_parameters_become_a_config(job):
    config = config_from_notebook(job, notebook_globals(job, preset="smoke", steps=3, lr=1, run_id="x"))
    assert config == config_for(job, "smoke", steps=3, lr=1.0, run_id="x")
    assert config_from_notebook(job, {"preset": None}) == PRESETS[job]["small"]


@pytest.mark.parametrize("job", presets.JOBS)
def test_run_all_twice_takes_the_parameters_cell_again(job):
    seed = lambda names: config_from_notebook(job, names).seed
    rest = "known, which = 'brown hair', 3\nlines = ['a']", "for row in range(3): pass", "result = 0.5", "limit = 7"
    cell = parameters_cell(job)
    once = run_cells({}, cell, "%matplotlib inline")
    assert seed(once) == 0
    again = run_cells(
        run_cells(once, *rest),
        cell.replace("seed: int = 0", "seed: int = 5").replace("seed: int = None", "seed: int = 5"),
    )
    assert seed(again) == 5
    assert seed(run_cells(run_cells(again, *rest), cell)) == 0, "a parameter that is taken back"
    assert seed(run_cells(run_cells(again, *rest))) == 5, "the configuration's cell alone"
    assert seed(run_cells(run_cells(again, *rest), "seed = 8")) == 8, "a cell that sets one parameter"
    with pytest.raises(ValueError, match=f"{job} has no parameter 'sead'; the closest is 'seed'"):
        seed(run_cells(run_cells(once, *rest), cell + "\nsead = 5"))
    with pytest.raises(ValueError, match=f"{job} has no parameter 'sead'; the closest is 'seed'"):
        seed(run_cells(run_cells(once, *rest), cell, "# Parameters\nseed = 1\nsead = 5"))


def test_a_parameter_that_is_no_literal_is_not_passed_over():
    with pytest.raises(ValueError, match="ldm: data must be str, not PosixPath"):
        config_from_notebook(
            "ldm", run_cells({}, parameters_cell("ldm") + "\nimport pathlib\ndata = pathlib.PosixPath('mine')")
        )
    assert config_from_notebook("ldm", run_cells({}, parameters_cell("ldm") + "\nsteps = 2*1_000")).steps == 2_000


@pytest.mark.parametrize(
    "name, value, closest",
    [
        ("stpes", 3, "steps"),
        ("bach_size", None, "batch_size"),
        ("sized", [64], "size"),
        ("runid", {"a": 1}, "run_id"),
        ("sampler_step", "x", "sampler_steps"),
        ("Seed", 1.5, "seed"),
        ("learning_rate", 1e-3, "lr"),
        ("devices", True, "device"),
    ],
)
def test_an_unknown_notebook_parameter_is_an_error(name, value, closest):
    with pytest.raises(ValueError, match=f"ldm has no parameter '{name}'; the closest is") as e:
        config_from_notebook("ldm", notebook_globals("ldm", **{name: value}))
    assert f"the closest is '{closest}'" in str(e.value)


def test_a_wrongly_typed_notebook_parameter_is_an_error():
    with pytest.raises(ValueError, match="ldm: size must be int, not str 'big'"):
        config_from_notebook("ldm", notebook_globals("ldm", size="big"))
    with pytest.raises(ValueError, match="no ldm preset 5"):
        config_from_notebook("ldm", notebook_globals("ldm", preset=5))


@pytest.mark.parametrize("job", JOBS)
def test_preset_table_names_every_field_that_is_set(job):
    table = presets.preset_table(job).splitlines()
    assert table[0] == f"| {job} | smoke | small | gpu | paper |"
    assert len({line.count("|") for line in table}) == 1
    assert f"| steps | {' | '.join(str(c.steps) for c in PRESETS[job].values())} |" in table


@pytest.mark.parametrize("job", presets.JOBS)
def test_the_notebooks_parameters_cell_is_the_generated_one(job):
    cells = json.loads(notebook_of(job).read_text(encoding="utf-8"))["cells"]
    tagged = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert tagged == [parameters_cell(job)]


def test_a_seed_that_no_generator_takes_is_said():
    with pytest.raises(ValueError, match=r"edit: seed must be less than 2\*\*63"):
        config_for("edit", seed=2**63)


def test_the_small_ldm_is_bound_to_steps_on_slow_processors_too():
    small, gpu = config_for("ldm"), config_for("ldm", "gpu")
    assert small.max_seconds / small.steps >= 0.6  # seconds of a step; slow ones of two cores take 0.33
    assert small.steps >= 2_000 and gpu.max_seconds == 400.0


def test_a_resumed_run_keeps_its_own_settings(tmp_path):
    first = presets.config_for("clip", "smoke", data="mine", steps=7, max_seconds=float("inf"), run_id="r")
    with Run("clip", first, tmp_path, "r") as run:
        pass
    (run.path / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    for place in (run.path, run.path / "checkpoints" / "checkpoint-3"):
        again = presets.config_for("clip", resume_from=str(place), steps=9)
        assert again == replace(first, run_id=None, resume_from=str(place), steps=9)
    assert presets.config_for("clip", "small", resume_from=str(run.path)).data == "portraits", "another preset"
    assert presets.config_for("ldm", resume_from=str(run.path)).preset == "small", "a run of another job"
    (run.path / "run.json").write_text("{}")
    assert presets.config_for("clip", resume_from=str(run.path)).preset == "small"
