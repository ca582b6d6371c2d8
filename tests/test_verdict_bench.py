"""Verdicts on systems of known kind: right or undetermined, never wrong. The bench itself is benchmarks/verdicts.py."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


CASES = load("verdict_cases").CASES
BENCH = load("verdicts")
#: Cases that take seconds: one of every kind whose verdict needs no long record.
QUICK = [
    "linear, stable pair",
    "linear, slow pair",
    "linear, step above the critical one",
    "linear, the rightmost mode is not the critical one",
    "Stuart-Landau, r = -0.02, step 0.1",
    "Euler circle of a stable flow",
    "Euler flip, beyond period 2",
    "logistic, r = 2.8",
    "logistic, r = 3.2",
    "Henon",
    "at a saddle",
    "near a saddle",
    "ghost of a saddle-node",
    "on a fold",
    "explosion",
    "random network, gain 0.8",
    "held block",
    "held block, large step",
]


def test_bench_has_twenty_systems_and_several_seeds():
    assert len(CASES) >= 20
    assert len({c.name for c in CASES}) == len(CASES)
    assert all(len(c.seeds) >= 3 for c in CASES if not c.name.startswith("packaged"))
    assert {c.name for c in CASES} >= set(QUICK)


@pytest.mark.parametrize("name", QUICK)
def test_quick_cases_are_right(name):
    """Of these none is even undetermined."""
    case = next(c for c in CASES if c.name == name)
    outcomes = BENCH.judge(case, case.seeds[0])
    assert [o.verdict for o in outcomes if o.verdict not in o.right] == []


def test_a_wrong_verdict_is_called_wrong():
    outcome = BENCH.Outcome("x", 0, 0, frozenset({"slow"}), "chaos", "confirmed")
    assert outcome.wrong
    assert not BENCH.Outcome("x", 0, 0, frozenset({"slow"}), "undetermined", "none").wrong
    table = BENCH.confusion([outcome, outcome])
    assert "| slow" in table
    assert table.splitlines()[-1].split("|")[2].strip() == "2"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_no_case_is_wrong(case):
    wrong = [o for seed in case.seeds for o in BENCH.judge(case, seed) if o.wrong]
    assert wrong == []
