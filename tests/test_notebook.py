"""docs/first_steps.ipynb from top to bottom in a kernel, with fewer clips; what it uploads arrives
at a Hub on loopback.
"""

import json
import re
from pathlib import Path

import pytest
from hub_server import USER, Hub

from hf_timesformer.data.synthetic import MOTIONS


ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs/first_steps.ipynb"
FEW = "CLIPS_A_CLASS = 4\nEPOCHS = 1"


def pictures_of(cell: dict) -> int:
    """How many pictures a cell shows."""
    return sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def test_the_stored_notebook_is_small_and_holds_no_failure() -> None:
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert NOTEBOOK.stat().st_size < 1_000_000
    outputs = [output for cell in stored["cells"] for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    # one cell installs, and only where the package is missing
    installing = [
        c for c in stored["cells"] if c["cell_type"] == "code" and "%pip" in str(c["source"])
    ]
    assert len(installing) == 1


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    assert re.fullmatch(r"CLIPS_A_CLASS = \d+\nEPOCHS = \d+", parameters.source)
    parameters.source = FEW
    with Hub() as hub:
        # the kernel takes over the environment of this process
        for name, value in hub.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        work = {"metadata": {"path": str(tmp_path)}}
        nbclient.NotebookClient(
            notebook, timeout=240, kernel_name="python3", resources=work
        ).execute()
        published = hub.names(f"{USER}/timesformer-first-steps")
    assert {"config.json", "model.safetensors", "README.md"} <= published
    results = json.loads((tmp_path / "run/eval_test/eval_results.json").read_text())
    assert results["videos_evaluated"] == 8 * len(MOTIONS)
    assert (tmp_path / "attention.mp4").stat().st_size > 1000
    # frames, curve, confusion, attention, timeline
    assert sum(pictures_of(cell) for cell in notebook.cells if cell.cell_type == "code") == 5
    assert len(nbformat.writes(notebook)) < 1_000_000
