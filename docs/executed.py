"""Stores an executed experiment for readers: `python docs/executed.py OUT.ipynb reports/executed/NAME.ipynb`.

OUT.ipynb is what papermill wrote. Progress bars, papermill's metadata and the folder of the repository are left out;
consecutive lines of one stream become one output.
"""

import sys
from pathlib import Path

import nbformat

from mmgen.base.files import repo_root


def stored(notebook, root):
    "The notebook without what differs from machine to machine."
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        outputs = []
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr" or "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                continue
            if output.output_type == "stream":
                output.text = output.text.replace(f"{root}/", "")
                if outputs and outputs[-1].output_type == "stream":
                    outputs[-1].text += output.text
                    continue
            outputs.append(output)
        if "outputs" in cell:
            cell.outputs = outputs
    return notebook


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(stored(nbformat.read(source, as_version=4), repo_root()), target)
