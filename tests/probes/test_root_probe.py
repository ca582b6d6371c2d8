"""The root probe's dataset, findings and figure."""

import json

import numpy as np
import pytest
import torch

import dyneq
from dyneq.dynamics.relax import relax
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


def test_document_is_valid_json_where_relaxations_diverged():
    system = from_ode(lambda z: z * z - 1, torch.tensor([[-1.0], [3.0]], dtype=F64))
    entry = json_entry(run_probe("root", system, depth=800))
    json.dumps(entry, allow_nan=False)
    assert entry["samples"][1]["relaxed_force_residual"] is None
    assert entry["samples"][1]["correction"] <= 1e-6
    assert entry["samples"][0]["degenerate"] is False


def test_steep_jacobians_are_said_and_unformed_ones_unknown():
    steep = from_ode(lambda z: -2000 * (z - 1), torch.ones(1, 1, dtype=F64), eps=1e-4)  # starts at its root
    ds = run_probe("root", steep, depth=10)
    assert json_entry(ds)["samples"][0]["degenerate"] is True
    assert any("above 1000" in f.text and "beware" in f.text for f in get_probe("root").summary(ds))
    wide = from_ode(lambda z: 1 - z, torch.zeros(1, 800, dtype=F64))  # Newton-Krylov
    ds = run_probe("root", wide, depth=10)
    assert json_entry(ds)["found"] == 1
    assert json_entry(ds)["samples"][0]["degenerate"] is None
    assert not any("above 1000" in f.text for f in get_probe("root").summary(ds))


def test_a_decaying_force_is_no_root_and_its_correction_says_why():
    """For F = exp(-z) Newton's correction is 1, whatever z: 1/z of the state."""
    ds = run_probe("root", from_ode(lambda z: torch.exp(-z), torch.full((2, 1), 0.5, dtype=F64)))
    assert (ds["status"] == "stagnated").all()
    assert (ds["force_residual"] < 1e-11).all()
    assert (ds["correction"] > 1e-3).all()
    assert get_probe("root").summary(ds)[0].text == "roots of 0 of 2 samples"


def test_distance_from_a_root_at_zero_is_relative_to_the_start():
    system = from_ode(lambda z: -z - z**3, torch.full((1, 3), 0.5, dtype=F64))
    ds = run_probe("root", system, depth=200, explore=True)
    relaxed = relax(system, 200).z
    scale = 1e-3 * torch.linalg.vector_norm(system.initial_state())
    assert float(ds["distance"][0]) == pytest.approx(float(torch.linalg.vector_norm(relaxed) / scale), rel=1e-9)
    assert ds.sizes["other"] == 0


def test_figure_has_one_point_a_sample():
    ds = run_probe("root", analytic.Lorenz(), depth=100)
    figure = get_probe("root").plot(ds)
    points = sum(len(line.get_xdata()) for line in figure.axes[0].lines)
    assert points == ds.sizes["sample"]
    assert np.isfinite(ds["distance"]).all()
    assert dyneq.__version__ == ds.attrs["creation_library_version"]


def test_distance_has_an_error_bar_that_holds():
    """In single precision, against the known root 2 and the state that was reached."""
    system = from_ode(lambda z: 2.0 - z, torch.ones(1, 4, dtype=torch.float32), eps=0.1)
    ds = run_probe("root", system, depth=10)
    z = relax(system, 10).z.double()
    exact = float(torch.linalg.vector_norm(z - 2) / torch.linalg.vector_norm(torch.full((1, 4), 2.0, dtype=F64)))
    assert ds["distance"].attrs["ancillary_variables"] == "distance_error"
    assert abs(float(ds["distance"][0]) - exact) <= float(ds["distance_error"][0]) < 1e-5
    lost = run_probe("root", from_ode(lambda z: 1 + z**2, torch.zeros(2, 1, dtype=F64), eps=0.01), depth=10)
    assert np.isnan(lost["distance_error"]).all()
