"""The layers import downwards only, and the root links are never imported by their bare names."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dyneq"
#: Highest first; the last two share a level and do not know each other.
LAYERS = [["cli"], ["report"], ["catalog"], ["train"], ["probes"], ["gradients"], ["dynamics"], ["linalg", "systems"]]
RANK = {name: level for level, names in enumerate(LAYERS) for name in names}
LINKS = {"probes", "catalog", "cli"}


def imported(path: Path) -> set[str]:
    """Return the absolute names of the modules a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert PACKAGE not in path.parents, f"{path} imports relatively; imports of the package are absolute"
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def violations(path: Path, layer: str) -> list[str]:
    bad = []
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "dyneq" and len(parts) > 1 and parts[1] in RANK:
            other = parts[1]
            if other != layer and RANK[other] <= RANK[layer]:
                bad.append(f"{path.relative_to(ROOT)} ({layer}) imports {name} ({other})")
    return bad


@pytest.mark.parametrize("layer", sorted(RANK))
def test_layer_imports_downwards_only(layer):
    files = sorted((PACKAGE / layer).rglob("*.py"))
    assert files
    assert [v for path in files for v in violations(path, layer)] == []


def test_an_upward_import_is_found(monkeypatch, tmp_path):
    """The check itself can fail: a file of linalg that imports a probe, and one that imports its neighbour."""
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    sample = tmp_path / "sample.py"
    sample.write_text("from dyneq.probes import base\nimport dyneq.systems.thick\nimport dyneq.errors\n")
    assert len(violations(sample, "linalg")) == 3  # the probe twice (module and name), the neighbour once


def test_shared_modules_import_no_layer():
    for path in set(PACKAGE.glob("*.py")) - {PACKAGE / "__main__.py"}:
        eager = {
            f"{node.module}"
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dyneq.")
        }
        assert all(name.split(".")[1] not in RANK for name in eager), path


def test_nobody_imports_the_root_links_bare():
    files = [p for p in ROOT.rglob("*.py") if not {".venv", *LINKS} & set(p.relative_to(ROOT).parts[:1])]
    assert len(files) > 20
    bare = {str(p.relative_to(ROOT)): {n for n in imported(p) if n.split(".")[0] in LINKS} for p in files}
    assert {path: names for path, names in bare.items() if names} == {}


@pytest.mark.parametrize("link", sorted(LINKS))
def test_root_links(link):
    path = ROOT / link
    assert path.is_symlink()
    assert path.readlink() == Path("dyneq") / link
    assert path.resolve() == (PACKAGE / link).resolve()
