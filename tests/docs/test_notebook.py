"""The notebook of the documentation runs: small every time, as published under ``slow``."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
import robustode
from nbclient import NotebookClient

DOCS = Path(__file__).parents[2] / "docs"
SMALL = {
    "SAMPLES = 300": "SAMPLES = 12",
    "EPOCHS = 30": "EPOCHS = 2",
    "[0.02, 0.05, 0.1, 0.15]": "[0.1]",
    "[0.1, 0.2, 0.3, 0.4]": "[0.2]",
}


@pytest.mark.parametrize(
    "changes", [pytest.param(SMALL, id="small"), pytest.param({}, id="published", marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("default")  # those of Jupyter's own client
def test_the_notebook_runs(changes, monkeypatch):
    notebook = nbformat.read(DOCS / "notebook.ipynb", as_version=4)
    for old, new in changes.items():
        (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
        cell.source = cell.source.replace(old, new)
    # The kernel is a process of its own: it imports the package that is tested here.
    places = [str(Path(robustode.__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, places)))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel draws into the notebook
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(DOCS)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.get("data", {}) for output in outputs]
    tables = "".join(data.get("text/html", "") for data in shown)
    assert [word for word in ("worst-case", "my-node", "ch-node") if word not in tables] == []
    assert any("image/png" in data for data in shown)
