"""The solver probe: what it reports, and that nothing it is given makes it fail."""

import json
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import dyneq
from dyneq.cli.generic import entry
from dyneq.errors import DyneqError, UsageError
from dyneq.probes.registry import get_probe, run_probe
from dyneq.systems import analytic
from dyneq.systems.adapters import from_map, from_ode

F64 = torch.float64


def text_of(ds):
    return " | ".join(f.text for f in get_probe("solver").summary(ds))


def measure(system, **params):
    return run_probe("solver", system, **params)


# --- the probe ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cycling():
    """A cycle around an unstable root, and a sample next to it: Euler never settles, others find the root."""
    return measure(analytic.StuartLandau(eps=0.05), max_evaluations=300, euler_eps=(0.05, 0.1))


def test_what_never_converges_is_told_with_who_finds_the_root(cycling):
    euler = cycling.isel(solver=cycling["kind"].values == "euler")
    assert np.isnan(euler["evaluations"]).all()
    assert (euler["outcome"] == "stalled").all()
    assert (cycling.sel(solver="root finder")["reached"] == 4).all()
    text = text_of(cycling)
    assert "4 of 4 samples (0, 1, 2, 3) never get there by Euler's method" in text
    assert "the root finder 4" in text
    assert "does not mean that the fixed point is stable" in text


def test_cheapest_solver_is_the_one_whose_slowest_sample_is_first():
    system = from_ode(lambda z: 1.0 - z, torch.tensor([[1.5], [4.0]], dtype=F64), eps=0.1)
    ds = measure(system, euler_eps=(0.1, 0.5, 0.9), memory=(1,), anderson_eps=(0.1,), root=False)
    goal = ds.sel(target=1e-6)
    i = int(goal["worst_evaluations"].values.argmin())
    text = text_of(ds)
    assert f"cheapest solver that reaches force residual 1e-06 for all 2 samples: {ds['solver'].values[i]}" in text
    assert (ds["reached"] == 2).all()
    np.testing.assert_array_equal(goal["median_evaluations"], np.median(goal["evaluations"], axis=1))
    assert "euler eps=0.1, the system's own relaxation, gets 2 of 2" in text


def test_median_counts_those_that_never_arrive():
    start = torch.tensor([[0.0], [0.5], [-0.5]], dtype=F64)
    system = from_ode(lambda z: z - z**3, start, eps=0.1)  # starts at its root 0, or goes to +-1
    ds = measure(system, euler_eps=(2.5,), memory=(), max_evaluations=60, target=(1e-6,))
    euler = ds.sel(solver="euler eps=2.5", target=1e-6)
    assert int(euler["reached"]) == 1  # the one that never moves
    assert float(euler["median_evaluations"]) == math.inf
    assert float(euler["worst_evaluations"]) == math.inf


def test_diverging_steps_are_named():
    system = from_ode(lambda z: -30 * (z - 1), torch.tensor([[1.5], [2.0]], dtype=F64), eps=0.01)
    ds = measure(system, euler_eps=(0.01, 0.2), memory=(2,), anderson_eps=(0.01,))
    assert (ds.sel(solver="euler eps=0.2")["outcome"] == "diverged").all()
    assert "euler eps=0.2 diverges in 2 of 2 samples (0, 1): its step is too large" in text_of(ds)
    assert (ds.sel(solver="euler eps=0.01")["outcome"] == "reached").all()


def test_a_map_is_iterated_as_it_is():
    system = from_map(lambda z: 0.5 * torch.cos(z), torch.tensor([[0.1], [0.9]], dtype=F64))
    ds = measure(system)
    assert ds["solver"].values.tolist() == ["iteration", "anderson(2)", "anderson(5)", "anderson(10)", "root finder"]
    assert (ds["solver_eps"] == 1).all()
    assert (ds["reached"] == 2).all()
    assert "a map has no step to choose" in text_of(ds)
    with pytest.raises(UsageError, match="iterated with step 1 only"):
        measure(system, euler_eps=(0.3,))


@pytest.mark.parametrize(
    "params",
    [{"target": ()}, {"target": (0.0,)}, {"memory": (0,)}, {"euler_eps": (-1.0,)}, {"max_evaluations": 0}],
)
def test_bad_parameters_are_errors(params):
    with pytest.raises(DyneqError):
        measure(analytic.FlipFlow(), **params)


def test_no_solver_left_is_an_error():
    with pytest.raises(UsageError, match="no solver is left"):
        measure(analytic.FlipFlow(), euler_eps=(), memory=(), root=False)


def test_samples_that_overflow_everywhere_do_not_stop_the_probe():
    system = from_ode(lambda z: z**3 + 1e3, torch.full((1, 1), 50.0, dtype=F64), eps=0.1)
    ds = measure(system, max_evaluations=50)
    assert (ds.isel(solver=ds["kind"].values == "euler")["outcome"] == "diverged").all()
    json.dumps(entry("solver", ds), default=str)
    get_probe("solver").plot(ds)
    get_probe("solver").text(ds)


def test_single_precision_says_what_it_cannot_resolve():
    system = from_ode(lambda z: 1.0 - z, torch.full((1, 2), 3.0), eps=0.2)
    ds = measure(system, max_evaluations=60, target=(1e-2, 1e-9))
    assert "may be below what float32 resolves" in text_of(ds)
    assert int(ds.sel(solver="euler eps=0.2")["reached"].sel(target=1e-2)) == 1


def test_variables_are_described_and_the_document_is_json(cycling):
    for name, variable in cycling.data_vars.items():
        assert variable.attrs["long_name"], name
        assert "units" in variable.attrs, name
    assert cycling["seconds"].attrs["role"] == "cost"
    assert cycling["target"].values.tolist() == [1e-2, 1e-4, 1e-6]
    document = entry("solver", cycling)
    assert [m["solver"] for m in document["solvers"]] == cycling["solver"].values.tolist()
    assert "never)" in get_probe("solver").text(cycling)


def test_history_is_bounded_and_never_padded():
    system = from_ode(lambda z: 1.0 - z, torch.tensor([[1.5], [4.0]], dtype=F64), eps=0.5)
    ds = measure(system, euler_eps=(0.5,), memory=(), root=False, max_evaluations=5000)
    assert ds.sizes["evaluation"] <= 100
    after = ds["history"].isel(solver=0).where(ds["evaluation"] > 64, drop=True)
    assert np.isnan(after).all()


def test_figure(cycling):
    probe = get_probe("solver")
    figure = probe.plot(cycling)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 2
    with pytest.raises(UsageError, match="two axes"):
        probe.plot(cycling, ax=[figure.axes[0]])


def test_packaged_checkpoint_has_samples_only_other_solvers_bring_home():
    system = dyneq.open_checkpoint("after").bind().select(torch.tensor([9, 16]))  # one settles, one is a true Hopf
    ds = measure(system, euler_eps=(0.05, 0.1), memory=(5,), anderson_eps=(0.2,), max_evaluations=800)
    euler = np.isfinite(ds["evaluations"].isel(solver=ds["kind"].values == "euler").sel(target=1e-6).values)
    assert euler[:, 0].all()
    assert not euler[:, 1].any()
    assert (ds.sel(solver="root finder")["reached"] == 2).all()
    assert "1 of 2 samples (1) never get there by Euler's method" in text_of(ds)


def test_anderson_stalls_where_there_is_no_root():
    system = from_ode(lambda z: 1 + z**2, torch.full((1, 1), 0.3, dtype=F64), eps=0.05)
    ds = measure(system, euler_eps=(0.05,), memory=(2,), anderson_eps=(0.05,), max_evaluations=200)
    assert ds.sel(solver="anderson(2) eps=0.05")["outcome"].values.tolist() == ["stalled"]
    assert ds.sel(solver="root finder")["outcome"].values.tolist() == ["no root"]
    text = text_of(ds)
    assert "no solver reaches" in text
    assert "stalls in 1 of 1 samples (0) at a force residual of" in text
    assert "whether they have a fixed point at all is not known" in text
