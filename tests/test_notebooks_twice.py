"""Run All, change a parameter, Run All: every notebook with parameters in one kernel, twice."""

import dataclasses
import json

import nbformat
import pytest
from nbclient import NotebookClient
from test_experiments import EXPERIMENTS, FEW, NOTEBOOKS, needs

from mmgen.jobs.registry import JOBS

pytestmark = pytest.mark.notebooks
QUICK = {"edit"}  # the others are slow
AGAIN = {"prepare_danbooru": {"out": "data/danbooru-again"}}  # a folder of another seed's dump is not written over


def sets(values):
    return "\n".join(f"{name} = {value!r}" for name, value in values.items())


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in EXPERIMENTS])
def test_run_all_twice(name, tmp_path, monkeypatch):
    needs(name)
    monkeypatch.setenv("MMGEN_ROOT", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job = JOBS[EXPERIMENTS[name]]
    smoke = FEW.get(name) or ({"preset": "smoke"} if "smoke" in job.presets else {})
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    parameters = next(cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
    given = parameters.source
    notebook.cells = cells
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    with client.setup_kernel():
        for seed in (0, 3):
            parameters.source = f"{given}\n{sets(smoke | {'seed': seed} | (AGAIN.get(name, {}) if seed else {}))}"
            for at, cell in enumerate(cells):
                client.execute_cell(cell, at)
        parameters.source = f"{given}\nstepz = 5"  # a name of nothing is still said, after two runs
        client.execute_cell(parameters, 0)
        with pytest.raises(Exception, match="has no parameter 'stepz'"):
            client.execute_cell(next(c for c in cells if "config_from_notebook" in c.source), 1)
    records = [json.loads(file.read_text()) for file in (tmp_path / "reports" / "runs").glob("*/run.json")]
    assert sorted(record["seed"] for record in records) == [0, 3]
    assert all(record["status"] == "completed" for record in records)
    assert {f.name for f in dataclasses.fields(job.config)} == records[0]["config"].keys()
