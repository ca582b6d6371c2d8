"""The cycle probe's dataset, findings, text, JSON and figure."""

import json
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import dyneq
from dyneq.catalog.zarr_io import read_zarr, write_zarr
from dyneq.errors import UsageError
from dyneq.probes.registry import get_probe, run_probe
from dyneq.systems import analytic
from dyneq.systems.adapters import from_map, from_ode

F64 = torch.float64


@pytest.fixture(scope="module")
def oscillator():
    """A Stuart-Landau oscillator, whose flow cycles: one sample that does, one that rests at its unstable root."""
    system = analytic.StuartLandau(eps=0.1, z0=torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=F64))
    return run_probe("cycle", system, depth=400, steps=800)


def texts(ds):
    return " | ".join(f.text for f in get_probe("cycle").summary(ds))


def test_period_exponents_and_multipliers_of_a_known_cycle(oscillator):
    ds, reference = oscillator, analytic.StuartLandau(eps=0.1)
    assert ds["kind"].values.tolist() == ["cycle", "fixed-point"]
    assert "token" not in ds
    one = ds.isel(sample=0)
    assert float(one["period_steps"]) == pytest.approx(2 * math.pi / math.asin(0.2), rel=1e-9)
    assert float(one["period_time"]) == pytest.approx(0.1 * float(one["period_steps"]))
    assert float(one["orbit_period"]) == pytest.approx(reference.period, rel=1e-8)
    assert float(one["of_the_flow"]) == 1
    exact = np.log(reference.floquet_multipliers)
    error = np.abs(one["log_multiplier"].values - exact)
    assert (error <= 3 * np.maximum(one["log_multiplier_error"].values, 1e-9)).all()
    assert float(one["trivial_error"]) < 1e-6
    assert one["multiplier"].dtype.kind == "c"
    # Euler's circle is larger by its own step
    square = 0.5 + (1 - math.sqrt(1 - 0.04)) / 0.1
    assert float(one["orbit_amplitude"]) == pytest.approx(math.sqrt(0.5 / square), rel=1e-2)
    assert float(one["stationary"]) == 1
    assert float(one["second_gap"]) < 1e-6


def test_every_variable_is_described_and_values_have_bars(oscillator):
    for name, variable in oscillator.data_vars.items():
        assert variable.attrs["long_name"], name
        assert "units" in variable.attrs, name
    for name in ("period_steps", "lyapunov", "log_multiplier", "orbit_period", "decay_rate", "zero_one"):
        assert oscillator[name].attrs["ancillary_variables"] in oscillator
    assert oscillator["evaluations"].attrs["role"] == "cost"
    assert oscillator["misfit"].attrs["role"] == "certificate"


def test_the_history_is_of_real_rows_only(oscillator):
    rows = oscillator["history_rows"].values.astype(int)
    step = oscillator["history_step"].values
    assert (np.diff(step) > 0).all()
    for i, n in enumerate(rows):
        assert np.isfinite(oscillator["history_high"].values[:n, i]).all()
        assert np.isnan(oscillator["history_high"].values[n:, i]).all()
    assert rows[0] > rows[1], "what rests is not recorded any longer"
    assert step[-1] == 400 + 512 + 800
    assert (
        (oscillator["history_low"] <= oscillator["history_high"])
        .where(oscillator["history_high"].notnull(), True)
        .all()
    )


def test_cost_counts_forces_and_what_rests_costs_little(oscillator):
    cost = oscillator["evaluations"].values
    # transient, first look, record, second start (half), two exponents
    assert cost[0] >= 400 + 512 + 800 + 400 + 3 * 800
    assert cost[1] < 1100


def test_findings_say_what_it_means(oscillator):
    first = get_probe("cycle").summary(oscillator)[0]
    assert first.text == "of 2 samples: fixed-point 1, cycle 1"
    assert "no depth of relaxation makes them converge" in texts(oscillator)
    assert "there in the flow too" in texts(oscillator)
    assert "all multipliers are below 1" in texts(oscillator)
    table = get_probe("cycle").text(oscillator)
    assert "1 of 2 samples at a fixed point" in table
    assert "31.20" in table


def test_json_is_short_and_valid(oscillator):
    document = get_probe("cycle").document(oscillator)
    assert document["kinds"] == {"fixed-point": 1, "cycle": 1}
    entry = document["samples"][0]
    assert entry["kind"] == "cycle"
    assert entry["token"] is None
    assert entry["of_the_flow"] is True
    assert len(entry["multiplier"]) == 2
    assert len(json.dumps(document)) < 10000


def test_the_figure_shows_history_orbit_and_multipliers(oscillator):
    probe = get_probe("cycle")
    figure = probe.plot(oscillator)
    assert len(figure.axes) == 3
    assert "period 31.2" in figure.axes[1].get_title()
    radius = np.linalg.norm(figure.axes[1].lines[0].get_xydata(), axis=1)
    assert radius.min() > 0.3 * radius.max(), "on 8 random directions of the plane the circle is a round ellipse"
    points = np.concatenate([line.get_xdata() for line in figure.axes[2].lines if line.get_marker() == "o"])
    assert len(points) == 2
    own = Figure().subplots(1, 3)
    assert probe.plot(oscillator, own) is own[0].figure
    with pytest.raises(UsageError, match="three axes"):
        probe.plot(oscillator, Figure().subplots(1, 2))


def test_results_survive_storage(oscillator, tmp_path):
    write_zarr(oscillator, tmp_path / "cycle.zarr")
    again = read_zarr(tmp_path / "cycle.zarr")
    assert again["kind"].values.tolist() == ["cycle", "fixed-point"]
    assert texts(again) == texts(oscillator)
    assert get_probe("cycle").text(again) == get_probe("cycle").text(oscillator)


def test_what_euler_makes_is_said(tmp_path):
    ds = run_probe("cycle", analytic.HopfNormalForm(eps=0.4).select(torch.tensor([0])), depth=300, steps=1000)
    assert ds["kind"].values.tolist() == ["cycle"]
    assert ds.sizes["mode"] == 0
    assert "made by the step eps=0.4" in texts(ds)
    get_probe("cycle").plot(ds)


def test_maps_rest_loss_and_what_is_left_open():
    chaos = run_probe("cycle", analytic.Henon().select(torch.tensor([0])), depth=100, steps=1000)
    assert "chaos" in texts(chaos)
    assert np.isnan(chaos["of_the_flow"]).all()
    lost = run_probe("cycle", from_map(lambda z: z * z, torch.tensor([[1.5], [3.0]], dtype=F64)), depth=50, steps=200)
    assert lost["kind"].values.tolist() == ["diverged", "diverged"]
    assert "grew beyond any fixed point" in texts(lost)
    late = run_probe("cycle", from_map(lambda z: z * 1.05, torch.tensor([[1.0], [0.0]], dtype=F64)), depth=5, steps=600)
    assert late["kind"].values.tolist() == ["diverged", "fixed-point"]
    ghost = from_ode(lambda z: 1e-4 + (z - 2) ** 2, torch.tensor([[1.9]], dtype=F64))
    left = run_probe("cycle", ghost, depth=300, steps=600)
    assert left["kind"].values.tolist() == ["undetermined"]
    assert any(f.level == "undetermined" and "sample 0" in f.text for f in get_probe("cycle").summary(left))
    rest = run_probe("cycle", from_ode(lambda z: 1 - z, torch.ones(1, 3, dtype=F64)), depth=10, steps=200)
    for ds in (chaos, lost, late, left, rest):
        probe = get_probe("cycle")
        probe.plot(ds)
        assert probe.text(ds)
        json.dumps(probe.document(ds))


def test_results_depend_on_the_seed_alone():
    system = analytic.Henon().select(torch.tensor([0]))
    a, b, c = (run_probe("cycle", system, depth=50, steps=400, seed=s) for s in (1, 1, 2))
    for name in ("lyapunov", "zero_one", "orbit_projection", "misfit"):
        assert np.array_equal(a[name].values, b[name].values, equal_nan=True), name
    assert not np.array_equal(a["orbit_projection"].values, c["orbit_projection"].values)


@pytest.mark.slow
def test_the_reference_checkpoint_has_the_cycles_its_manifest_names():
    """Token, and whether it is a true Hopf bifurcation, from an independent analysis of the roots."""
    with open(dyneq.__path__[0] + "/reference/manifest.json") as f:
        pairs = json.load(f)["checkpoints"]["after"]["long_run"]["pairs"]
    known = {p["sample"]: p for p in pairs}
    system = dyneq.open_checkpoint("after").bind(batch=24)
    ds = run_probe("cycle", system, steps=4000)
    for i, kind in enumerate(ds["kind"].values):
        if i not in known:
            assert kind == "fixed-point"
            continue
        unstable = known[i]["mu"][0] > 0 or known[i]["critical_eps"] < 0.1
        assert kind in ({"cycle", "undetermined"} if unstable else {"slow", "fixed-point", "undetermined"})
        if kind == "cycle":
            assert int(ds["token"][i]) == known[i]["token"]
            assert float(ds["of_the_flow"][i]) != (0 if known[i]["mu"][0] > 0 else 1)
    assert int((ds["kind"] == "cycle").sum()) >= 5
    hopf = ds.sel(sample=16)
    assert float(hopf["trivial_error"]) < 1e-6
    assert float(hopf["log_multiplier"][1]) < -0.1


@pytest.mark.slow
def test_multipliers_of_all_tokens_hold_those_of_the_first():
    system = dyneq.open_checkpoint("after").bind(batch=17).select(torch.tensor([16]))
    first = run_probe("cycle", system, steps=2500, multipliers=3)
    whole = run_probe("cycle", system, steps=2500, multipliers=3, all_tokens=True)
    assert int(first["multiplier_token"][0, 0]) == int(whole["multiplier_token"][0, 0]) == 13
    assert float(whole["trivial_error"][0]) < 1e-4
    assert float(whole["log_multiplier"][0, 0]) == pytest.approx(0, abs=1e-4)
