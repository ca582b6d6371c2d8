"""Steps and their tangents: order of convergence on a flow with a closed form, tangents against differences."""

import math

import pytest
import torch

from dyneq.dynamics.stepping import Stepper
from dyneq.errors import DyneqError, UsageError
from dyneq.systems.analytic import Henon, LinearFlow, StuartLandau


def slope(sizes, errors):
    """Return the fitted exponent of errors against sizes."""
    x, y = (torch.tensor([math.log(v) for v in values]) for values in (sizes, errors))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


@pytest.mark.parametrize(("scheme", "order"), [("euler", 1), ("rk4", 4)])
def test_order_of_convergence(scheme, order):
    """State and tangent of a linear flow against its exponential."""
    matrix = torch.tensor([[-0.3, 1.0], [-1.0, -0.5]], dtype=torch.float64)
    system = LinearFlow(matrix, torch.tensor([[1.0, 0.5]], dtype=torch.float64))
    exact = torch.linalg.matrix_exp(matrix)
    sizes, errors, tangents = [], [], []
    for steps in (20, 40, 80):
        stepper = Stepper(system, scheme, 1 / steps)
        z, v = system.initial_state(), torch.eye(2, dtype=torch.float64)[:, None]
        for _ in range(steps):
            z, v = stepper.advance_with(z, v)
        sizes.append(1 / steps)
        errors.append(float((z[0] - exact @ system.initial_state()[0]).norm()))
        tangents.append(float((v[:, 0].T - exact).norm()))
    assert slope(sizes, errors) == pytest.approx(order, abs=0.1)
    assert slope(sizes, tangents) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("scheme", ["euler", "rk4"])
def test_tangent_is_the_derivative_of_the_step(scheme):
    system = StuartLandau(0.5, 2.0, d=0.3, eps=0.1)
    stepper = Stepper(system, scheme)
    z = system.initial_state()
    v = torch.randn(2, *z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved, tangent = stepper.advance_with(z, v)
    assert torch.allclose(moved, stepper.advance(z), rtol=0, atol=1e-14)
    h = 1e-5
    for k in range(2):
        difference = (stepper.advance(z + h * v[k]) - stepper.advance(z - h * v[k])) / (2 * h)
        assert torch.allclose(tangent[k], difference, rtol=0, atol=1e-9)


@torch.no_grad()
def test_token_tangents_use_the_diagonal_blocks(build):
    system = build(seed=2)
    z = system.initial_state().detach()
    v = torch.randn(1, *z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, moved = Stepper(system, tokens_only=True).advance_with(z, v)
    context = z.clone()
    expected = v[0] + system.eps * torch.func.jvp(lambda y: system.force(y, context), (z,), (v[0],))[1]
    assert torch.allclose(moved[0], expected, rtol=0, atol=1e-12)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="is a map"):
        Stepper(Henon(), "rk4")
    with pytest.raises(UsageError, match="is a map"):
        Stepper(Henon(), "euler", 0.5)
    with pytest.raises(DyneqError, match="causal"):
        Stepper(StuartLandau(), tokens_only=True)
