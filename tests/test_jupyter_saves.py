"""A notebook that JupyterLab opens and saves, with nbdev's hook, is byte for byte what is committed."""

import json
import shutil

import pytest
from jupyter_server.services.contents.filemanager import FileContentsManager
from nbdev.clean import clean_jupyter

from mmgen.base.files import repo_root

ROOT = repo_root()
NOTEBOOKS = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
LANGUAGE = {"name": "python", "version": "3.11.9", "mimetype": "text/x-python", "file_extension": ".py"}


@pytest.mark.parametrize("folder", sorted({p.parent for p in NOTEBOOKS}), ids=lambda p: str(p.relative_to(ROOT)))
def test_saving_changes_nothing(folder, tmp_path):
    shutil.copy(ROOT / "settings.ini", tmp_path)
    manager = FileContentsManager(root_dir=str(tmp_path))
    for file in (p for p in NOTEBOOKS if p.parent == folder):
        shutil.copy(file, tmp_path)
        model = manager.get(file.name, content=True)
        metadata = model["content"]["metadata"]  # JupyterLab adds what the kernel says about itself
        metadata["language_info"] = LANGUAGE
        metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
        for cell in model["content"]["cells"]:
            cell["metadata"] |= {"trusted": True, "collapsed": False, "execution": {"iopub.status.idle": "now"}}
        clean_jupyter(path=str(tmp_path / file.name), model=model)
        manager.save(model, file.name)
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.relative_to(ROOT)


def test_no_picture_is_stored_in_two_formats():
    for file in NOTEBOOKS:
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                assert len([kind for kind in output.get("data", {}) if kind.startswith("image/")]) < 2, file.name
