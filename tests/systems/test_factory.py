"""``module:factory`` names: what loads, and one sentence for everything that does not."""

import sys

import pytest
import torch

from dyneq.errors import DyneqError, UsageError
from dyneq.systems import analytic
from dyneq.systems.factory import load_system
from dyneq.systems.protocol import System

GOOD = """
import torch
from dyneq import System
import helper_beside

def make(samples=3):
    return System.from_map(torch.cos, torch.zeros(samples, helper_beside.WIDTH))

def needs(argument):
    return make()

def fails():
    raise ValueError("no such weights\\nsecond line")

def leaves():
    raise SystemExit(3)

def wrong():
    return torch.zeros(3)

def mixes():
    return System.from_map(lambda z: z - z.mean(0), torch.arange(6.0).reshape(3, 2))

def crashes():
    return System.from_map(lambda z: z @ z, torch.zeros(3, 2))

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine_subject.py").write_text(GOOD)
    (tmp_path / "helper_beside.py").write_text("WIDTH = 2\n")
    (tmp_path / "mine_broken.py").write_text("import there_is_no_such_package\n")
    (tmp_path / "mine_syntax.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    before = dict(sys.modules), list(sys.path)
    yield tmp_path
    assert sys.path == before[1], "the search path was not restored"
    for name in set(sys.modules) - set(before[0]):
        if name.startswith(("mine_", "helper_beside", "_dyneq_")):
            del sys.modules[name]


@pytest.mark.parametrize("name", ["mine_subject:make", "mine_subject.py:make", "./mine_subject.py:make"])
def test_modules_and_files_of_the_current_folder_load(folder, name):
    system = load_system(name)
    assert system.samples == 3
    assert torch.equal(system.force(torch.zeros(3, 2)), torch.ones(3, 2))


def test_a_file_elsewhere_finds_what_lies_beside_it(folder, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_system(f"{folder}/mine_subject.py:make").samples == 3


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("mine_subject", UsageError, "module:factory or file.py:factory"),
        (":make", UsageError, "module:factory"),
        ("mine_subject:", UsageError, "module:factory"),
        ("mine_subjct:make", UsageError, "no module 'mine_subjct'"),
        ("mine_subject.deeper:make", DyneqError, "mine_subject"),
        ("nowhere.py:make", UsageError, "no file nowhere.py"),
        ("some/where:make", UsageError, "no file some/where"),
        ("mine_subject:maek", UsageError, "did you mean 'make'"),
        ("mine_subject:number", UsageError, "is of type int"),
        ("mine_subject:needs", UsageError, "needs some .*argument"),
        ("mine_broken:make", DyneqError, "there_is_no_such_package"),
        ("mine_broken.py:make", DyneqError, "there_is_no_such_package"),
        ("mine_syntax:make", DyneqError, "SyntaxError"),
        ("mine_syntax.py:make", DyneqError, "SyntaxError"),
        ("mine_subject:fails", DyneqError, "ValueError: no such weights"),
        ("mine_subject:leaves", DyneqError, "SystemExit"),
        ("mine_subject:wrong", DyneqError, "returned Tensor"),
        ("mine_subject:mixes", DyneqError, "should not interact"),
        ("mine_subject:crashes", DyneqError, "fails at its own start"),
    ],
)
def test_every_failure_is_one_sentence(folder, name, kind, message):
    with pytest.raises(kind, match=message) as caught:
        load_system(name)
    assert "\n" not in str(caught.value)
    assert not any(module.startswith("_dyneq_mine_syntax") for module in sys.modules)


FACTORIES = sorted(n for n in analytic.__all__ if n.islower() and not n.startswith("gaussian"))


@pytest.mark.parametrize("name", FACTORIES)
def test_every_analytic_system_loads_by_name(name):
    system = load_system(f"dyneq.systems.analytic:{name}")
    assert isinstance(system, System)
    assert system.samples == 4
    assert system.initial_state().dtype == torch.float64
    assert len(set(map(tuple, system.initial_state().tolist()))) == 4


def test_the_factories_are_the_classes():
    classes = {
        v for v in vars(analytic).values() if isinstance(v, type) and issubclass(v, System) and v.__name__[0].isupper()
    }
    general = {analytic.AnalyticSystem, analytic.AnalyticFlow, analytic.AnalyticMap}
    general |= {analytic.LinearFlow, analytic.LinearMap}
    assert {getattr(analytic, name) for name in FACTORIES} == classes - general
