"""Tracking against the dense adjoint, against the dyadic flow it tends to, and where frozen corrections fail."""

import pytest
import torch
from test_estimators import ROUNDING, bound, dense_adjoint, flat
from test_nudged import cycling, error, has, linear, slope

from dyneq.dynamics.relax import relax
from dyneq.gradients.aep import Aep
from dyneq.gradients.base import Mark
from dyneq.gradients.dyadic import Dyadic
from dyneq.gradients.nudged import NudgedParams, PhaseParams
from dyneq.gradients.track import Track, TrackParams


@pytest.fixture(scope="module")
def rooted():
    """A block, its free phase at a root, and the dense adjoint there."""
    system = bound()
    free = Track(TrackParams(t1=150)).free(system)
    assert free.residual.max() < 1e-14
    return system, free, dense_adjoint(system, free.z)


def test_the_error_falls_with_the_square_of_beta(rooted):
    system, free, exact = rooted
    betas = [3e-2, 1e-2, 3e-3]
    found = [Track(TrackParams(t1=150, t2=80, beta=b)).from_free(system, free) for b in betas]
    errors = [error(g, system, exact) for g in found]
    assert abs(slope(betas, errors) - 2) < betas[0]
    assert errors[1] < 4e-5
    # the mean of the nudged states rests at a distance of the same order, which the read-out state's residual shows
    residuals = [float(g.diagnostics["force_residual"].max()) for g in found]
    assert abs(slope(betas, residuals) - 2) < betas[0]
    assert has(found[0], Mark.FREE_NOT_CONVERGED) == [r > 1e-4 for r in found[0].diagnostics["force_residual"]]
    assert found[2].marks == {}


@pytest.mark.parametrize("seed", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_it_finishes_a_free_phase_stopped_early_where_the_frozen_correction_is_off_by_tens_of_per_cent(seed):
    system = bound(seed, resinit=1.0)
    exact = dense_adjoint(system, relax(system, 600).z)
    frozen = Aep(NudgedParams(t1=10, t2=150)).gradient(system)
    tracked = Track(TrackParams(t1=10, t2=200)).gradient(system)
    assert error(frozen, system, exact) > 0.2
    assert error(tracked, system, exact) < 1e-3
    assert has(frozen, Mark.FREE_NOT_CONVERGED) == [True, True]
    assert tracked.marks == {}
    assert (tracked.diagnostics["force_residual"] < 1e-2 * tracked.diagnostics["force_residual_t1"]).all()


def test_the_read_out_must_be_at_the_mean():
    # at the stopped free state the gain is lost: the same adjoint, read out there, is off by what that state is
    system = bound(0, resinit=1.0)
    exact = dense_adjoint(system, relax(system, 600).z)
    estimator = Track(TrackParams(t1=10, t2=200))
    free = estimator.free(system)
    found = estimator.adjoint(system, free)
    parameters = [p for members in system.parameter_groups().values() for p in members.values()]

    def read_out(z):
        total = (system.force(z) * found.a).sum() + system.loss(z).mean()
        return torch.cat([p.flatten() for p in torch.autograd.grad(total, parameters, retain_graph=True)])

    at_mean = read_out(found.at)
    torch.testing.assert_close(at_mean, flat(estimator.from_free(system, free), system), rtol=1e-10, atol=1e-13)
    distance = torch.linalg.norm(found.at - free.z) / torch.linalg.norm(free.z)
    assert distance > 1e-2
    assert torch.linalg.norm(read_out(free.z) - exact) > 30 * torch.linalg.norm(at_mean - exact)


def test_it_tends_to_the_dyadic_flow_also_before_anything_has_settled():
    # the mean and half the difference over beta are m and d up to O(beta^2), from a state that is no root, at any time
    system = bound(0, resinit=1.0)
    free = Track(TrackParams(t1=4)).free(system)
    limit = Dyadic(PhaseParams(t1=4, t2=15, adaptive=False)).adjoint(system, free)
    betas = [3e-2, 1e-2, 3e-3]
    found = [Track(TrackParams(t1=4, t2=15, beta=b, adaptive=False)).adjoint(system, free) for b in betas]
    for name, reached in (("a", limit.a), ("at", limit.at)):
        distances = [float(torch.linalg.norm(getattr(f, name) - reached)) for f in found]
        assert abs(slope(betas, distances) - 2) < 2 * betas[0]
    assert torch.linalg.norm(limit.at - free.z) > 0.1


def test_the_state_kept_belongs_to_the_snapshot_kept():
    system = bound(0, resinit=1.0)
    estimator = Track(TrackParams(t1=10, t2=40))
    free = estimator.free(system)
    found = estimator.adjoint(system, free)
    assert found.diagnostics["t2"].tolist() == [40, 40]
    short = Track(TrackParams(t1=10, t2=30, adaptive=False)).adjoint(system, free)
    shorter = Track(TrackParams(t1=10, t2=30)).adjoint(system, free)
    assert torch.equal(short.at, shorter.at)
    assert not torch.equal(short.at, found.at)


def test_linearising_less_often_costs_less_and_tends_to_the_same(rooted):
    system, free, exact = rooted
    every = Track(TrackParams(t1=150, t2=80)).from_free(system, free)
    seldom = Track(TrackParams(t1=150, t2=80, every=7)).from_free(system, free)
    assert every.cost - seldom.cost == 80 - 12
    # both rest at the same fixed point of the nudged dynamics, for the deviations from the mean are the same there
    size = torch.linalg.vector_norm(every.state.flatten(1), dim=1) / every.diagnostics["displacement"]
    assert error(seldom, system, flat(every, system)) < 1e2 * ROUNDING * size.max()
    early = Track(TrackParams(t1=10, t2=120, every=5)).gradient(system)
    assert error(early, system, exact) < 1e-3


def test_a_linear_system_is_tracked_from_anywhere():
    matrices = torch.tensor([[[-1.0, 3.0], [0.0, -0.5]], [[-0.3, -1.0], [1.0, -0.3]]], dtype=torch.float64)
    g = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)
    system = linear(matrices, g, x=torch.tensor([[1.0, -1.0], [0.3, 0.7]], dtype=torch.float64))
    found = Track(TrackParams(t1=1, t2=1200, beta=0.5)).gradient(system)
    # everything is linear, so beta does not matter and m reaches the root
    torch.testing.assert_close(found.parameters["all"]["x"], torch.linalg.solve(matrices.mT, -g) / 2)
    torch.testing.assert_close(found.state, torch.linalg.solve(matrices, -system.parameters["x"].detach()))
    assert found.marks == {}


def test_on_a_cycle_it_says_that_the_state_does_not_rest():
    found = Track(TrackParams(t1=200, t2=100)).gradient(cycling())
    assert has(found, Mark.FREE_NOT_CONVERGED) == [True, True]


def test_far_nudges_are_marked(rooted):
    system, free, _ = rooted
    found = Track(TrackParams(t1=150, t2=60, beta=3.0)).from_free(system, free)
    assert any(has(found, Mark.OUTSIDE_LINEAR_RESPONSE))
    assert any(has(Track(TrackParams(t1=150, t2=3)).from_free(system, free), Mark.NUDGE_NOT_SETTLED))
    assert all(has(Track(TrackParams(t1=150, t2=60, head_clamp=1e-3)).from_free(system, free), Mark.CLAMPED))
