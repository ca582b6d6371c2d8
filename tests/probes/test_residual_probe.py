"""The residual probe: closed forms of decay, time means on cycles, what it says, and the measure of the penalty."""

import json
import math
from importlib import resources

import numpy as np
import pytest
import torch

import dyneq
from dyneq.dynamics.relax import relax
from dyneq.errors import UsageError
from dyneq.probes.base import CERTIFICATE, COST
from dyneq.probes.registry import get_probe, run_probe
from dyneq.probes.residual_measure import resreg
from dyneq.probes.residual_record import Mean
from dyneq.systems import analytic
from dyneq.systems.adapters import from_map, from_ode
from dyneq.systems.thick import ThickBlock, ThickConfig

F64 = torch.float64


def block(seed=0, samples=3, gain=1.0, dtype=F64, targets=True):
    generator = torch.Generator().manual_seed(seed)
    built = ThickBlock(ThickConfig(vocabulary=13, channels=8, heads=2, tokens=6), generator).to(dtype)
    with torch.no_grad():
        built.attn.wo.weight.mul_(gain)
        built.ffn.pj.weight.mul_(gain)
    tokens = torch.randint(0, 13, (samples, 6), generator=generator)
    return built.bind(tokens, tokens.roll(-1, 1) if targets else None)


def texts(ds):
    return [(f.level, f.text) for f in get_probe("residual").summary(ds)]


def said(ds):
    return " ".join(text for _, text in texts(ds))


@pytest.mark.parametrize("mu", [-0.5, -2.0, -19.0])
def test_the_force_of_a_linear_flow_decays_by_its_multiplier(mu):
    """norm(F) after n steps is abs(1 + eps mu)^n of the first; the root is at 3, so that norm(z) stays put."""
    system = from_ode(lambda z: mu * (z - 3.0), torch.full((2, 4), 4.0, dtype=F64), eps=0.1)
    depths = (0, 8, 16, 40)
    ds = run_probe("residual", system, depth=depths)
    factor = abs(1 + 0.1 * mu)
    expected = abs(mu) * 2.0 * factor ** np.array(depths)  # norm of (1, 1, 1, 1) is 2
    np.testing.assert_allclose(ds["absolute_residual"][:, 0], expected, rtol=1e-10)
    np.testing.assert_allclose(ds["rate"][1:3, 0], math.log(factor), atol=1e-12)
    np.testing.assert_allclose(ds["step_residual"], 0.1 * ds["force_residual"], rtol=1e-14)
    assert np.isnan(ds["rate"][0]).all(), "nothing before depth 0"
    np.testing.assert_allclose(ds["root_distance"][1], 2 * factor**40 / 6, rtol=1e-9)


def test_steps_left_of_an_exponential_decay_are_right():
    system = from_ode(lambda z: -0.05 * (z - 3.0), torch.full((1, 4), 4.0, dtype=F64), eps=0.1)
    ds = run_probe("residual", system, depth=(200, 400))
    assert ds["trend"].values.tolist() == ["falling"]
    # F = -0.05 (1 - 0.005)^n (1, 1, 1, 1), norm(z) -> 6
    total = math.log(1e-6 * 6 / 0.1) / math.log(1 - 0.005)
    # norm(z) is 6.3 at depth 400, so its logarithm is 0.045 off: 9 steps
    assert float(ds["steps_left"][0]) == pytest.approx(total - 400, abs=10)
    assert relax(system, 400 + int(ds["steps_left"][0]) + 10).converged.all()
    assert not relax(system, 400 + int(ds["steps_left"][0]) - 20).converged.any()
    assert "force still falls; at its present rate it needs about" in said(ds)


def test_power_law_decay_is_not_extrapolated():
    """z' = -z^2 at the fold: the force falls as 1/n^2, ever slower; z + 1 keeps norm(z) near 1."""
    system = from_ode(lambda z: -((z - 1.0) ** 2), torch.full((1, 1), 2.0, dtype=F64), eps=0.1)
    ds = run_probe("residual", system, depth=(400, 1600), root=False)
    assert ds["trend"].values.tolist() in (["falling"], ["undetermined"])
    assert np.isnan(ds["steps_left"]).all()


def test_a_cycle_is_level_and_its_time_mean_is_the_root():
    system = analytic.StuartLandau(eps=0.05)
    depth = 3000
    ds = run_probe("residual", system, depth=(0, depth // 2, depth))
    assert (ds["trend"] == "level").all()
    # the mean is 0; over the 24 periods of the window a plain mean leaves a part of one over their number, and the
    # smooth one must leave less than a window of third order would
    periods = depth / 2 * system.eps / system.period
    states = torch.stack(orbit(system, depth)[depth // 2 :])
    plain = torch.linalg.vector_norm(states.mean(0), dim=1).numpy()
    away = ds["root_mean_distance"].values * 1e-3 * torch.linalg.vector_norm(system.initial_state(), dim=1).numpy()
    assert plain.max() > 1e-4
    assert (away < plain.max() / periods**2).all()
    assert "oscillate or sit on a plateau" in said(ds)


def orbit(system, steps):
    states = [system.initial_state()]
    for _ in range(steps - 1):
        states.append(states[-1] + system.eps * system.force(states[-1]))
    return states


@pytest.mark.parametrize("period", [7.3, 40.0])
def test_the_weighted_mean_converges_faster_than_the_plain_one(period):
    """Of cos(2 pi n/period) + 0.25 over n steps: the plain mean is off by 1/n, the weighted one by far less."""
    errors = []
    for n in (200, 400, 800):
        mean = Mean(0, n)
        for step in range(n):
            mean.add(step, torch.tensor([math.cos(2 * math.pi * step / period + 1.0) + 0.25], dtype=F64))
        errors.append(abs(float(mean.value()) - 0.25))
    assert errors[1] < errors[0] / 4 or errors[1] < 1e-13, "faster than second order"
    assert errors[2] < max(errors[1] / 4, 1e-13)
    assert errors[2] < 1e-5


def test_loss_at_mean_and_root_of_a_cycle():
    """Loss |z|^2 of a circle of radius r about 0: r^2 at every state, 0 at the time mean and at the root."""
    flow = analytic.StuartLandau(eps=0.01)
    system = from_ode(flow.rhs, flow.initial_state(), eps=0.01, loss=lambda z: z.square().sum(-1))
    ds = run_probe("residual", system, depth=(100, 4000, 8000))
    radius2 = ds["loss"].values[-1]
    # Euler's circle is larger by O(eps): eps nu^2/2 over r = 0.5 makes 2 nu^2 eps/(2 r) of r = 0.02
    np.testing.assert_allclose(radius2, flow.cycle_radius**2, atol=0.03)
    assert (ds["mean_loss"] < 1e-9).all()
    assert (ds["mean_loss_error"] < 1e-6).all()
    assert (ds["root_loss"] < 1e-20).all()
    assert "loss of the 4 moving samples is 0.0000 on average" in said(ds)
    assert "mean and last state differ in 4 of them" in said(ds)


def test_depths_are_points_of_one_trajectory_and_the_loss_is_the_systems():
    system = block(gain=1.5)
    ds = run_probe("residual", system, depth=(30, 0, 100, 30))
    assert ds["depth"].values.tolist() == [0, 30, 100]
    for i, depth in enumerate((0, 30, 100)):
        z = relax(system, depth).z
        np.testing.assert_allclose(ds["loss"][i], system.loss(z).detach(), rtol=1e-12)
        f = system.force(z).detach()
        norm = torch.linalg.vector_norm
        np.testing.assert_allclose(
            ds["force_residual"][i], norm(f.flatten(1), dim=1) / norm(z.flatten(1), dim=1), rtol=1e-9
        )
    assert ds["forces"].values.tolist() == [2, 34, 106]


def test_the_measure_is_what_the_probe_reports_and_its_gradient_leaves_the_state_alone():
    system = block(gain=1.5)
    ds = run_probe("residual", system, depth=(20,))
    z = relax(system, 20).z.requires_grad_()
    value = resreg(system, z)
    np.testing.assert_allclose(ds["resreg"][0], value.detach(), rtol=1e-12)
    np.testing.assert_allclose(ds["resreg"][0], ds["step_residual"][0] ** 2, rtol=1e-12)
    weight = system.block.attn.wo.weight
    value.sum().backward()
    assert z.grad is None
    gradient = weight.grad[2, 3].item()

    def moved(h):
        with torch.no_grad():
            weight[2, 3] += h
            found = float(resreg(system, z).sum())
            weight[2, 3] -= h
        return found

    # the measure is quadratic in W_O: central differences are exact up to rounding
    h = 1e-3
    assert (moved(h) - moved(-h)) / (2 * h) == pytest.approx(gradient, rel=1e-8)
    assert float(resreg(analytic.LinearFlow(-torch.eye(2, dtype=F64)), torch.zeros(1, 2, dtype=F64))) == 0


def test_a_converged_block_says_that_the_loss_no_longer_depends_on_the_depth():
    ds = run_probe("residual", block(gain=1.0), depth=(0, 1000, 2000))
    assert (ds["trend"] == "converged").all()
    assert "3 of 3 samples have converged" in texts(ds)[0][1]
    assert "no longer depends on the depth" in said(ds)
    np.testing.assert_allclose(ds["mean_loss"], ds["root_loss"], atol=1e-8)
    early = run_probe("residual", block(gain=1.0), depth=(0, 3))
    assert any(level == "warning" and "not that of an equilibrium" in text for level, text in texts(early))


def test_without_a_loss_residuals_are_given_and_it_is_said():
    for system in (block(targets=False), analytic.Henon(), analytic.Lorenz()):
        ds = run_probe("residual", system, depth=(0, 20), root=False)
        assert "loss" not in ds
        assert "has no loss" in said(ds)
        assert np.isfinite(ds["force_residual"]).all()
        assert "root_status" not in ds
        figure = get_probe("residual").plot(ds)
        assert [t.get_text() for t in figure.axes[1].texts] == ["this system has no loss"]


def test_a_map_has_step_one():
    system = from_map(lambda z: 0.5 * z + 1, torch.zeros(1, 3, dtype=F64))
    ds = run_probe("residual", system, depth=(0, 10, 20))
    np.testing.assert_allclose(ds["step_residual"], ds["force_residual"])
    np.testing.assert_allclose(ds["rate"][1:, 0], math.log(0.5), atol=1e-12)


def test_samples_that_overflow_are_left_out_and_named():
    system = from_ode(
        lambda z: z * z - 1, torch.tensor([[-1.5], [3.0]], dtype=F64), loss=lambda z: z.square().sum(1) + 0.5
    )
    ds = run_probe("residual", system, depth=(0, 200, 400))
    assert ds["trend"].values.tolist() == ["converged", "diverged"]
    assert np.isnan(ds["loss"].values[-1, 1])
    assert "1 of 2 samples (1) diverged" in said(ds)
    assert "1 samples whose state overflowed left out" in said(ds)
    everything = from_ode(lambda z: z * z + 1, torch.full((1, 1), 3.0, dtype=F64), loss=lambda z: z.square().sum(1))
    ds = run_probe("residual", everything, depth=(10, 400))
    assert "0 of 1 samples have converged" in texts(ds)[0][1]
    get_probe("residual").plot(ds)
    get_probe("residual").text(ds)


def test_single_precision_and_a_batch_of_one():
    ds = run_probe("residual", block(samples=1, dtype=torch.float32), depth=(0, 100, 400, 800))
    assert ds.attrs["tol"] == 1e-5
    assert ds["trend"].values.tolist() == ["converged"]
    assert np.isnan(ds["rate"][-1]).all(), "rounding is no decay"
    assert (ds["root_status"] == "converged").all()


def test_steps_lost_in_rounding_are_no_convergence():
    system = block(dtype=torch.float32)
    with torch.no_grad():
        system.block.tok.weight.mul_(1e8)
    ds = run_probe("residual", system.block.bind(system.tokens), depth=(0, 100, 400))
    assert (ds["trend"] == "absorbed").all()
    assert (ds["force_residual"][-1] < 1e-6).all()
    assert "frozen by rounding" in said(ds)


def test_packaged_samples_decay_at_the_rate_of_their_leading_pair():
    """The manifest holds mu at their roots: log abs(1 + eps mu) a step where it is slow, no decay where it is Hopf."""
    manifest = json.loads(resources.files("dyneq").joinpath("reference/manifest.json").read_text())
    pairs = {p["sample"]: p for p in manifest["checkpoints"]["after"]["long_run"]["pairs"]}
    samples = [16, 22, 60]
    known = {s: complex(*pairs[s]["mu"]) for s in samples}
    for s in (22, 60):  # the rightmost pair is the one nearest to the unit circle, too: it sets the critical step
        assert -2 * known[s].real / abs(known[s]) ** 2 == pytest.approx(pairs[s]["critical_eps"], rel=1e-6)
    system = dyneq.open_checkpoint("after").bind(batch=64).select(torch.tensor(samples))
    ds = run_probe("residual", system, depth=(600, 1200), root=False)
    assert ds["trend"].values.tolist() == ["level", "falling", "falling"]
    expected = np.log(np.abs([1 + 0.1 * known[s] for s in samples]))
    assert expected[0] > 0, "a Hopf pair grows"
    gap = np.abs(ds["rate"].values[-1] - expected)[1:]
    assert (gap < 3 * ds["rate_error"].values[-1, 1:] + 2e-5).all(), gap
    # one more part in a hundred of the slowest of them would be 3e-5
    assert (gap < 0.01 * np.abs(expected[1:])).all()


def test_depth_zero_alone_and_constant_trajectories():
    ds = run_probe("residual", block(), depth=(0,))
    assert "mean_loss" not in ds
    assert (ds["trend"] == "undetermined").all()
    still = from_ode(lambda z: 0 * z, torch.ones(2, 3, dtype=F64))
    ds = run_probe("residual", still, depth=(0, 50))
    assert (ds["trend"] == "converged").all()
    # the relaxation ends at the first step, but the mean counts the state for all of them
    np.testing.assert_allclose(ds["mean_distance"], 0, atol=1e-15)
    assert np.isnan(ds["rate"]).all()


def test_bad_depths_and_axes_are_errors():
    with pytest.raises(UsageError, match="at least 0 steps, not -1"):
        run_probe("residual", block(), depth=(-1,))
    with pytest.raises(UsageError):
        run_probe("residual", block(), depth=())
    ds = run_probe("residual", block(), depth=(0, 10), root=False)
    with pytest.raises(UsageError, match="two axes, but 1"):
        get_probe("residual").plot(ds, [None])


def test_variables_are_described_and_the_figure_has_a_line_a_sample():
    ds = run_probe("residual", block(), depth=(0, 10, 50))
    for name, variable in ds.data_vars.items():
        assert variable.attrs["long_name"], name
        assert "units" in variable.attrs, name
    assert ds["force_residual"].attrs["role"] == CERTIFICATE
    assert ds["forces"].attrs["role"] == COST
    assert ds["rate"].attrs["ancillary_variables"] == "rate_error"
    figure = get_probe("residual").plot(ds)
    drawn = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    np.testing.assert_allclose(drawn[0].get_ydata(), ds["force_residual"].values[:, 0])
    assert len(drawn) == 3
    assert "depth  converged" in get_probe("residual").text(ds)
