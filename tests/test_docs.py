"""What the README and the docs show is run: Python blocks as they stand, and the commands' options against --help."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

#: torch's own forward mode compiles its decompositions on first use.
TORCH_OWN = "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(code, id=f"{page.name}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]
COMMANDS = sorted(
    {
        line.split("#")[0].strip("$ \n")
        for page in PAGES
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL)
        for line in block.splitlines()
        if line.startswith("$ dyneq")
    }
)


def test_pages_have_something_to_run():
    assert len(BLOCKS) >= 3
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("code", BLOCKS)
def test_python_block_runs(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", TORCH_OWN, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists_with_its_options(command):
    words = shlex.split(command)
    name = words[1:3] if words[1] in ("catalog", "results") else words[1:2]
    shown = subprocess.run(
        [sys.executable, "-m", "dyneq", *name, "--help"], capture_output=True, text=True, check=True
    ).stdout
    for option in [w for w in words if w.startswith("--")]:
        assert re.search(rf"{option}\b", shown), f"{option} is not an option of {' '.join(name)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_exist(page):
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert missing == []
