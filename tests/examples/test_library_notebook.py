"""examples/library.ipynb: valid, without anything of the machine it was written on, and its code runs in order."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "library.ipynb"
STRICT = ["-W", "error", "-W", "ignore:`torch.jit.script` is deprecated:DeprecationWarning"]
RUNNER = """
import json, sys
from pathlib import Path
held = {"__name__": "__main__"}
for cell in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), held)
held["figure"].savefig("five-lines.png")
held["comparison"].savefig("comparison.png")
print(json.dumps([len(held["figure"].axes), type(held["ds"]).__name__]))
"""


@pytest.fixture(scope="module")
def notebook():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def test_it_is_a_notebook_of_format_4_without_outputs(notebook):
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        assert cell["cell_type"] in ("code", "markdown")
        assert isinstance(cell["source"], list)
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_the_first_code_cell_needs_five_lines(notebook):
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    lines = [line for line in "".join(first["source"]).splitlines() if line]
    assert len(lines) == 5
    assert lines[0] == "import dyneq"


def test_its_cells_run_in_order(tmp_path):
    done = subprocess.run(
        [sys.executable, *STRICT, "-c", RUNNER, NOTEBOOK], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    axes, kind = json.loads(last)
    assert axes >= 2
    assert kind == "Dataset"
    assert any("unstable" in line for line in printed)
    for name in ("five-lines.png", "comparison.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
