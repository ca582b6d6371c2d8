"""The adjoint flow beside the relaxation, against dense algebra and the plain loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_estimators import ROUNDING, bound, dense_adjoint, flat
from test_nudged import cell, cycling, error, has, jacobians, linear

from dyneq.dynamics.relax import relax
from dyneq.gradients.adjoint import Adjoint, AdjointParams
from dyneq.gradients.base import Mark
from dyneq.gradients.dyadic import Dyadic
from dyneq.gradients.nudged import PhaseParams


@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": True, "final_norm": True, "gelu": "tanh", "resinit": 0.3}, {"resinit": 0.7}]
)
def test_from_a_free_phase_stopped_early_it_reaches_the_dense_adjoint_at_the_root(options):
    system = bound(**options)
    found = Dyadic(PhaseParams(t1=10, t2=200)).gradient(system)
    root = relax(system, 600).z
    condition = torch.linalg.cond(jacobians(system, root)).max()
    assert error(found, system, dense_adjoint(system, root)) < 100 * ROUNDING * condition
    assert found.marks == {}
    assert found.diagnostics["force_residual"].max() < 1e-13 < 1e-4 < found.diagnostics["force_residual_t1"].min()
    assert found.diagnostics["adjoint_residual"].max() < 1e-13


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 6))
def test_random_maps(seed, n):
    system = cell(seed, n)  # contracts by 0.8 a step in the 2-norm, so that 180 steps leave nothing
    found = Dyadic(PhaseParams(t1=5, t2=180)).gradient(system)
    assert error(found, system, dense_adjoint(system, found.state)) < 100 * ROUNDING / 0.2
    assert found.marks == {}


def test_it_is_the_plain_loop():
    system = bound(0, resinit=1.0)
    found = Dyadic(PhaseParams(t1=4, t2=6, adaptive=False)).adjoint(system, Dyadic(PhaseParams(t1=4)).free(system))
    m = relax(system, 4).z.detach()
    d = torch.zeros_like(m)
    for _ in range(6):
        leaf = m.clone().requires_grad_()
        (g,) = torch.autograd.grad(system.loss(leaf).mean(), leaf)
        pulled = (jacobians(system, m).mT @ d.flatten(1)[..., None])[..., 0].view_as(d)
        m, d = (m + system.eps * system.force(m)).detach(), d + system.eps * (pulled - g)
    torch.testing.assert_close(found.a, -d, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(found.at, m, rtol=1e-12, atol=1e-14)
    assert found.cost == 18


def test_at_a_root_it_is_the_transposed_relaxation():
    system = bound()
    params = {"t1": 150}
    for steps in (3, 30):
        expected = Adjoint(AdjointParams(steps=steps, **params)).gradient(system)
        found = Dyadic(PhaseParams(t2=steps, adaptive=False, **params)).gradient(system)
        # the state moves on by rounding alone
        assert error(found, system, flat(expected, system)) < 1e3 * ROUNDING
    assert all(has(Dyadic(PhaseParams(t2=3, **params)).gradient(system), Mark.NUDGE_NOT_SETTLED))


def test_an_unstable_adjoint_is_marked_and_leaves_the_others_alone():
    matrices = torch.stack([torch.diag(torch.tensor([-1.0, 0.4])), torch.diag(torch.tensor([-1.0, -0.4]))]).double()
    g = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    found = Dyadic(PhaseParams(t1=1, t2=400)).gradient(linear(matrices, g))
    reserved = [x or y for x, y in zip(*(has(found, m) for m in _UNSETTLED), strict=True)]
    assert reserved == [True, False]
    torch.testing.assert_close(found.parameters["all"]["x"][1], -g[1] / matrices[1].diagonal() / 2, rtol=1e-6, atol=0)


_UNSETTLED = (Mark.NUDGE_DIVERGED, Mark.NUDGE_NOT_SETTLED)


def test_on_a_cycle_it_says_that_the_state_does_not_rest():
    assert has(Dyadic(PhaseParams(t1=200, t2=100)).gradient(cycling()), Mark.FREE_NOT_CONVERGED) == [True, True]


def test_a_clamp_shortens_the_gradient_it_is_driven_by():
    matrices, g = (
        torch.diag(torch.tensor([-1.0, -0.5])).double().repeat(2, 1, 1),
        torch.tensor([[3.0, 4.0], [0.3, 0.4]]),
    )
    found = Dyadic(PhaseParams(t1=1, t2=800, head_clamp=1.0)).gradient(linear(matrices, g.double()))
    expected = torch.tensor([[0.6, 1.6], [0.3, 0.8]]).double() / 2
    torch.testing.assert_close(found.parameters["all"]["x"], expected, rtol=1e-6, atol=1e-7)
    assert has(found, Mark.CLAMPED) == [True, False]
