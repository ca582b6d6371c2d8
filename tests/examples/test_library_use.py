"""dyneq.plot and dyneq.summary: the probe is found by the result itself, or one sentence says why not."""

import sys
from importlib import import_module

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import dyneq
from dyneq.catalog.output import read_dataset, write_dataset
from dyneq.errors import DyneqError, UsageError
from dyneq.probes.base import Params, Probe
from dyneq.probes.registry import build_probe, get_probe
from dyneq.systems.analytic import rotation


@pytest.fixture(scope="module")
def ds():
    return dyneq.run_probe("root", rotation(), depth=5)


def test_they_are_the_probes_own(ds):
    assert dyneq.summary(ds) == get_probe("root").summary(ds) != []
    assert isinstance(dyneq.plot(ds), Figure)
    ax = Figure().subplots()
    assert dyneq.plot(ds, ax) is ax.figure
    assert {"plot", "summary"} <= set(dir(dyneq))


@pytest.mark.parametrize("suffix", [".zarr", ".nc"])
def test_a_result_from_a_file_will_do(ds, tmp_path, suffix):
    write_dataset(ds, tmp_path / f"r{suffix}")
    again = read_dataset(tmp_path / f"r{suffix}")
    assert dyneq.summary(again) == dyneq.summary(ds)
    assert isinstance(dyneq.plot(again), Figure)


WRONG = {
    "no dataset": (lambda ds: ds["distance"], "is of type DataArray"),
    "no probe named": (lambda ds: xr.Dataset(ds.data_vars), "has no attribute 'probe'"),
    "no such probe": (lambda ds: ds.assign_attrs(probe="roots"), "no probe called 'roots'; did you mean 'root'"),
    "another version": (
        lambda ds: ds.assign_attrs(probe_version=np.int64(ds.attrs["probe_version"] + 1)),
        "made by version [0-9]+ of the probe 'root', but version [0-9]+ is installed",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("read", [dyneq.summary, dyneq.plot], ids=["summary", "plot"])
def test_what_cannot_be_read_is_one_sentence(ds, kind, read):
    change, words = WRONG[kind]
    with pytest.raises(UsageError, match=words) as caught:
        read(change(ds))
    assert "\n" not in str(caught.value)


def test_in_a_notebook_the_figure_will_show(ds, tmp_path, monkeypatch):
    (tmp_path / "matplotlib_inline").mkdir()
    (tmp_path / "matplotlib_inline" / "backend_inline.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("matplotlib_inline", "matplotlib_inline.backend_inline"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    dyneq.plot(ds)
    assert "matplotlib_inline.backend_inline" not in sys.modules
    monkeypatch.setitem(sys.modules, "ipykernel", import_module("types"))
    dyneq.plot(ds)
    assert "matplotlib_inline.backend_inline" in sys.modules


class Whole(Probe):
    name = "whole"
    Params = Params

    def run(self, system, params, progress=None):
        return self.answer

    def summary(self, ds):
        return []

    def plot(self, ds, ax=None):
        return Figure()


def variant(**members):
    return type("Variant", (Whole,), members)


def failing(self):
    raise ValueError("no")


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (print, "should be a Probe subclass"),
        (Whole(), "should be a Probe subclass"),
        (variant(name="hole"), "should have the name 'whole', but calls itself 'hole'"),
        (variant(Params=dict), "should have Params that extend"),
        (variant(__init__=failing), "made without arguments, but that fails .ValueError: no"),
    ],
)
def test_what_is_no_probe_says_why(declared, words):
    assert isinstance(build_probe("whole", Whole), Whole)
    with pytest.raises(UsageError, match=words):
        build_probe("whole", declared)


@pytest.mark.parametrize("answer", [None, np.zeros(3), xr.Dataset({"a": ("token", [1.0])})])
def test_a_probe_must_return_a_dataset_over_samples(answer):
    with pytest.raises(DyneqError, match=r"should return an xarray\.Dataset with a dimension 'sample'"):
        dyneq.run_probe(variant(answer=answer)(), rotation())
    good = xr.Dataset({"a": ("sample", [1.0])})
    assert dyneq.run_probe(variant(answer=good)(), rotation()).attrs["probe"] == "whole"
