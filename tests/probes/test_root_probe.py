"""The root probe's dataset, findings and figure."""

import numpy as np
import pytest
import torch

import dyneq
from dyneq.probes.registry import get_probe, run_probe
from dyneq.probes.root import json_entry
from dyneq.systems import analytic
from dyneq.systems.adapters import from_ode

F64 = torch.float64


def test_cycling_system_has_its_root_and_the_distance_is_the_radius():
    system = analytic.StuartLandau()
    ds = run_probe("root", system, depth=3000)
    assert (ds["status"] == "converged").all()
    assert (ds["relaxed_status"] == "max_steps").all()
    text = " ".join(f.text for f in get_probe("root").summary(ds))
    assert "roots of 4 of 4 samples" in text
    assert "had not settled" in text


def test_distance_is_relative_to_the_root():
    system = from_ode(lambda z: 2.0 - z, torch.zeros(1, 4, dtype=F64) + 1, eps=0.1)
    ds = run_probe("root", system, depth=10)
    assert float(ds["distance"][0]) == pytest.approx(0.5 * 0.9**10, rel=1e-12)


def test_no_root_and_several_roots_are_said():
    none = from_ode(lambda z: 1 + z**2, torch.zeros(2, 1, dtype=F64), eps=0.01)
    ds = run_probe("root", none, depth=10)
    assert json_entry(ds)["found"] == 0
    assert json_entry(ds)["samples"][0]["distance"] is None
    assert any(f.level == "undetermined" for f in get_probe("root").summary(ds))
    three = from_ode(lambda z: z - z**3, torch.tensor([[0.01]], dtype=F64))
    ds = run_probe("root", three, depth=400, explore=True)
    assert json_entry(ds)["others"][0]["sample"] == 0
    assert any("several roots" in f.text for f in get_probe("root").summary(ds))


def test_figure_has_one_point_a_sample():
    ds = run_probe("root", analytic.Lorenz(), depth=100)
    figure = get_probe("root").plot(ds)
    points = sum(len(line.get_xdata()) for line in figure.axes[0].lines)
    assert points == ds.sizes["sample"]
    assert np.isfinite(ds["distance"]).all()
    assert dyneq.__version__ == ds.attrs["creation_library_version"]
