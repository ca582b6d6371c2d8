"""``dyneq list``: what is installed, what it takes, where it comes from, and what is broken."""

import json
import sys
from importlib.metadata import EntryPoint, EntryPoints, version

import pytest

from dyneq import plugins
from dyneq.gradients.adjoint import AdjointParams
from dyneq.probes.root import RootParams, RootProbe
from dyneq.systems.thick import ThickConfig

BROKEN = {
    "absent": ("no_such_module:X", "ModuleNotFoundError"),
    "renamed": ("json:dumpz", "AttributeError"),
    "quits": ("_broken_quits:X", "SystemExit"),
    "raises": ("_broken_raises:X", "ZeroDivisionError"),
    "odd": ("_broken_odd:X", "Odd: odd"),
    "number": ("math:pi", "should be a"),
    "function": ("json:dumps", "should be a"),
    "other": ("dyneq.probes.root:RootProbe", "should"),
    "described": ("_broken_described:X", "RuntimeError: no default today"),
}
MODULES = {
    "_broken_quits": "import sys; print('bye'); sys.exit(3)",
    "_broken_raises": "1 / 0",
    "_broken_odd": "class Odd(BaseException): pass\nraise Odd('odd')",
    "_broken_described": """
from pydantic import BaseModel, Field
from typing import Literal
from dyneq.gradients.base import Estimator, EstimatorParams
from dyneq.probes.base import Params, Probe
from dyneq.systems.block import EquilibriumBlock
def default():
    raise RuntimeError("no default today")
class P(Params):
    x: int = Field(default_factory=default)
class X(Probe):
    name = "described"
    Params = P
    def run(self, system, params, progress=None): ...
    def summary(self, ds): ...
    def plot(self, ds, ax=None): ...
""",
}


@pytest.fixture
def crowd(tmp_path, monkeypatch):
    """Declare broken plug-ins and a conflict in every group beside the built-in ones."""
    for name, source in MODULES.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = {group: list(plugins.entry_points(group=group)) for group in plugins_groups()}
    for group, entries in found.items():
        entries += [EntryPoint(name, value, group) for name, (value, _) in BROKEN.items()]
        entries += [EntryPoint("both", "json:dumps", group), EntryPoint("both", "json:loads", group)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints(found[group]).select(group=group))


def plugins_groups():
    return (plugins.PROBES, plugins.ESTIMATORS, plugins.SYSTEMS)


def listed(dyneq_run, kind):
    code, out, err = dyneq_run("list", kind, "--json")
    assert code == 0
    assert "Traceback" not in err
    document = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document.keys() == {"schema", "command", "params", "results", "status"}
    assert (document["schema"], document["command"], document["params"]) == (1, "list", {"kind": kind})
    return {result["name"]: result for result in document["results"]}


def test_probes(dyneq_run):
    root = listed(dyneq_run, "probes")["root"]
    assert root["distribution"] == {"name": "dyneq", "version": version("dyneq")}
    assert root["value"] == "dyneq.probes.root:RootProbe"
    assert root["version"] == RootProbe.version
    assert root["needs"] == []
    assert root["error"] is None
    parameters = {p["name"]: p for p in root["parameters"]}
    assert set(parameters) == set(RootParams.model_fields)
    assert parameters["depth"] == {
        **{"name": "depth", "type": "int", "required": False, "default": 800},
        "description": RootParams.model_fields["depth"].description,
    }
    assert parameters["starts"]["type"] == "relaxed|mean|initial|random..."
    assert parameters["starts"]["default"] == ["relaxed", "mean", "initial", "random"]
    code, out, err = dyneq_run("list", "probes")
    assert (code, err) == (0, "")
    assert f"root (version {RootProbe.version})  from dyneq {version('dyneq')}, dyneq.probes.root:RootProbe" in out
    assert "needs: nothing but a force" in out
    assert parameters["depth"]["description"] in out


def test_estimators(dyneq_run):
    adjoint = listed(dyneq_run, "estimators")["adjoint"]
    assert adjoint["needs"] == ["loss"]
    assert adjoint["main"] == "steps"
    fields = AdjointParams.model_fields
    assert {p["name"]: (p["default"], p["description"]) for p in adjoint["parameters"]} == {
        name: (field.default, field.description) for name, field in fields.items()
    }


def test_systems(dyneq_run):
    thick = listed(dyneq_run, "systems")["thick"]
    assert thick["causal"] is True
    parameters = {p["name"]: p for p in thick["parameters"]}
    assert set(parameters) == set(ThickConfig.model_fields) - {"kind"}
    assert parameters["channels"]["required"]
    assert parameters["gelu"]["type"] == "erf|tanh"
    assert "channels        int          required" in dyneq_run("list", "systems")[1]


def test_what_is_packaged_stays_plain(dyneq_run):
    assert dyneq_run("list", "checkpoints") == (0, "after\nbefore\nbptt-twin\nconverges\n", "")
    assert "default" in dyneq_run("list", "recipes")[1].split()
    assert "default" in listed(dyneq_run, "recipes")


def test_recipes_say_what_they_are_for(dyneq_run):
    recipes = listed(dyneq_run, "recipes")
    assert recipes["warm-track"]["gradient"] == ["aep", "track"]
    assert recipes["resreg-frozen-jr"]["penalties"] == ["jacreg", "resreg"]
    assert recipes["floss-s0"]["size"] == {"channels": 128, "heads": 4, "tokens": 64, "batch": 32, "steps": 14000}
    assert recipes["bp"]["block"] == "bp"
    assert (recipes["bptt-rescue"]["runs"], recipes["floss"]["runs"]) == (9, 1)
    assert recipes["bptt-rescue"]["grid"]["penalty.jacreg.ceiling"] == [8, 16, 32]
    assert recipes["ablation"]["arms"] == ["floss-only", "resreg-only", "resreg-frozen-jr"]
    assert all(len(recipe["description"]) > 20 for recipe in recipes.values())
    out = dyneq_run("list", "recipes")[1]
    assert "gradient: aep, then track; penalties: none" in out
    assert "9 runs a seed (penalty.jacreg.ceiling = [8, 16, 32]; optimizer.lr = [0.001, 0.003, 0.006])" in out
    for recipe in recipes.values():
        assert recipe["description"] in out


def test_tokenizers(dyneq_run):
    found = listed(dyneq_run, "tokenizers")
    assert set(found) == {"bpe", "characters"}
    assert found["characters"]["description"] == "A fixed set of characters, each one token."
    assert "causal" not in dyneq_run("list", "tokenizers")[1]


def test_penalties(dyneq_run):
    penalties = listed(dyneq_run, "penalties")
    assert set(penalties) == {"floss", "jacreg", "resreg", "spectral"}
    assert penalties["floss"]["value_is"] == "hinge on the contraction rate, 1/time"
    assert "margin" in {p["name"] for p in penalties["floss"]["parameters"]}
    assert "its value: squared step residual, 1" in dyneq_run("list", "penalties")[1]


#: The built-in probes.
PROBES = {
    *("branches", "census", "cycle", "diagnose", "epsilon", "ftle", "knockout", "mixing", "nonnormality", "residual"),
    *("root", "solver", "spectrum", "triangulate", "navg", "ablation", "lrsweep", "decompose"),
}
ESTIMATORS = {
    *("adjoint", "bptt", "ep", "aep", "holo", "track", "lockin", "dyadic", "phantom", "tbpte", "fa"),
}


@pytest.mark.usefixtures("crowd")
@pytest.mark.parametrize("kind", ["probes", "estimators", "systems"])
def test_broken_ones_are_listed_with_the_reason(dyneq_run, kind):
    results = listed(dyneq_run, kind)
    good = {
        "probes": PROBES,
        "estimators": ESTIMATORS,
        "systems": {"thick", "thin", "energy", "mono", "nemon", "bp"},
    }[kind]
    assert {name for name, result in results.items() if result["error"] is None} == good
    reasons = dict(BROKEN.items())
    if kind != "probes":  # what they lead to is a probe, so already that is wrong here
        reasons["described"] = ("", "should be a subclass of")
    for name, (_, why) in reasons.items():
        assert why in results[name]["error"], name
        assert "\n" not in results[name]["error"]
    code, out, err = dyneq_run("list", kind)
    assert code == 0
    assert "Traceback" not in err
    assert out.count("CANNOT BE USED") == len(BROKEN) + 2
    assert "bye" not in out


@pytest.mark.usefixtures("crowd")
@pytest.mark.parametrize("kind", ["probes", "estimators", "systems"])
def test_a_conflict_names_both(dyneq_run, kind):
    _, out, _ = dyneq_run("list", kind, "--json")
    both = [r for r in json.loads(out)["results"] if r["name"] == "both"]
    assert [r["value"] for r in both] == ["json:dumps", "json:loads"]
    for result in both:
        assert "json:dumps" in result["error"]
        assert "json:loads" in result["error"]


@pytest.mark.usefixtures("crowd")
def test_using_a_conflicting_name_names_both(dyneq_run):
    code, out, err = dyneq_run("both")
    assert (code, out) == (2, "")
    assert "json:dumps" in err
    assert "json:loads" in err
    assert err.count("\n") == 1
