"""The contraction rate: against known linear systems, finite differences, and what ftle reports."""

import math

import pytest
import torch

from dyneq.errors import UsageError
from dyneq.probes.contraction import flow_rate, tangent_rates
from dyneq.probes.registry import run_probe
from dyneq.systems.adapters import from_ode
from tests.dynamics.conftest import build


def linear(matrix, z0, eps=0.1):
    return from_ode(lambda z: z @ matrix.T, z0, eps=eps)


def test_the_rate_of_a_single_mode_is_that_of_the_map():
    matrix = torch.diag(torch.tensor([-0.7, -3.0], dtype=torch.float64))
    z0 = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    expected = torch.tensor([math.log(1 - 0.07), math.log(1 - 0.3)], dtype=torch.float64) / 0.1
    torch.testing.assert_close(flow_rate(linear(matrix, z0), z0, 9), expected, rtol=1e-12, atol=0)


def test_tangent_rates_are_the_logarithms_of_volume_growth():
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(5, 5, generator=generator, dtype=torch.float64) - 2 * torch.eye(5, dtype=torch.float64)
    z0 = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    rates = tangent_rates(linear(matrix, z0), z0, 7, 5, torch.Generator().manual_seed(0))
    # a frame that fills the space grows in volume by the determinant of the product, whatever the frame was
    step = torch.eye(5, dtype=torch.float64) + 0.1 * matrix
    expected = torch.linalg.slogdet(step).logabsdet / 0.1
    torch.testing.assert_close(rates.sum(0), expected.expand(2), rtol=1e-12, atol=1e-12)


def test_the_leading_tangent_is_the_product_of_the_maps_jacobians():
    system = build(samples=2)
    z = system.initial_state().detach()
    rate = tangent_rates(system, z, 4, 1, torch.Generator().manual_seed(1))[0].detach()
    noise = torch.randn((2, z[0].numel(), 1), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    vector, state = noise / torch.linalg.norm(noise, dim=1, keepdim=True), z
    for _ in range(4):
        for i in range(2):
            one = system.select(torch.tensor([i]))
            jacobian = torch.autograd.functional.jacobian(one.force, state[i : i + 1]).reshape(z[0].numel(), -1)
            vector[i] = vector[i] + system.eps * jacobian @ vector[i]
        state = (state + system.eps * system.force(state)).detach()
    expected = torch.linalg.norm(vector, dim=1).log().flatten() / (4 * system.eps)
    torch.testing.assert_close(rate, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("measure", ["flow", "tangents"])
def test_the_gradient_agrees_with_finite_differences(measure):
    system = build(samples=2)
    block = system.block
    z = (system.initial_state() * 0.9).detach()
    names = [n for n, _ in block.named_parameters() if n.split(".")[0] in ("attn", "ffn", "ln1", "ln2")]
    weights = dict(block.named_parameters())
    generator = torch.Generator().manual_seed(5)
    direction = {n: torch.randn(weights[n].shape, generator=generator, dtype=torch.float64) for n in names}

    def value():
        if measure == "flow":
            return flow_rate(system, z, 8).sum()
        return tangent_rates(system, z, 8, 2, torch.Generator().manual_seed(2)).sum()

    gradients = torch.autograd.grad(value(), [weights[n] for n in names], allow_unused=True)
    slope = sum(float((g * direction[n]).sum()) for n, g in zip(names, gradients, strict=True) if g is not None)

    def shifted(h):
        with torch.no_grad():
            for n in names:
                weights[n].add_(direction[n], alpha=h)
            found = float(value())
            for n in names:
                weights[n].sub_(direction[n], alpha=h)
        return found

    h = 1e-4  # fourth order: error about h^4, rounding about 1e-13 / h
    found = (8 * (shifted(h) - shifted(-h)) - (shifted(2 * h) - shifted(-2 * h))) / (12 * h)
    assert slope != 0
    assert abs(found - slope) <= 1e-7 * abs(slope)


def test_a_sample_at_rest_has_no_rate_and_sends_no_gradient():
    system = build(samples=2, gain=0.1)
    z = system.initial_state().detach()
    with torch.no_grad():
        for _ in range(2000):
            rested = z + system.eps * system.force(z)
            if torch.equal(rested, z):
                break
            z = rested
    mixed = torch.stack([z[0], system.initial_state().detach()[1]])
    rate = flow_rate(system, mixed, 6)
    assert bool(torch.isnan(rate[0]))
    assert bool(torch.isfinite(rate[1]))
    weight = system.block.attn.wo.weight
    (gradient,) = torch.autograd.grad(rate[1], weight)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.norm()) > 0


def test_ftle_reports_the_measure_at_the_same_state():
    system = build(samples=3)
    ds = run_probe("ftle", system, depth=5, horizon=40, rate_steps=6)
    z = system.initial_state().detach()
    with torch.no_grad():
        for _ in range(5):
            z = z + system.eps * system.force(z)
        expected = flow_rate(system, z, 6)
    torch.testing.assert_close(torch.from_numpy(ds["contraction_rate"].values), expected, rtol=1e-12, atol=0)


def test_what_cannot_be_asked_is_refused():
    system = build(samples=1)
    z = system.initial_state().detach()
    with pytest.raises(UsageError, match="at least 1 step"):
        flow_rate(system, z, 0)
    with pytest.raises(UsageError, match="tangent vectors"):
        tangent_rates(system, z, 3, 0, torch.Generator())
