"""Steps of many tangent vectors, forwards and transposed, against the plain stepper and dense algebra."""

import pytest
import torch

from dyneq.dynamics.stepping import Stepper
from dyneq.dynamics.tangent import TangentStepper
from dyneq.systems import analytic
from dyneq.systems.adapters import from_ode

F64 = torch.float64


def systems(build):
    wide = torch.randn(9, 9, generator=torch.Generator().manual_seed(3), dtype=F64)
    start = torch.randn(2, 9, generator=torch.Generator().manual_seed(4), dtype=F64)
    return {
        "block": build(samples=2, tokens=3),
        "few components, by rows": analytic.Lorenz(eps=0.01),
        "many components, by jvp": from_ode(lambda z: torch.tanh(z @ wide) - z, start),
    }


KINDS = ["block", "few components, by rows", "many components, by jvp"]


@pytest.mark.parametrize("scheme", ["euler", "rk4"])
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_move_as_the_plain_stepper_moves_them(build, kind, scheme):
    system = systems(build)[kind]
    z = system.initial_state().detach()
    v = torch.randn(3, *z.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    expected = Stepper(system, scheme).advance_with(z, v)
    found = TangentStepper(system, scheme).advance_with(z, v)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-13 * (1 + b.abs().max())


def test_token_vectors_move_as_the_plain_stepper_moves_them(build):
    system = systems(build)["block"]
    z = system.initial_state().detach()
    v = torch.randn(3, *z.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    expected = Stepper(system, tokens_only=True).advance_with(z, v)[1]
    assert (TangentStepper(system, tokens_only=True).advance_with(z, v)[1] - expected).abs().max() <= 1e-13


@pytest.mark.parametrize("scheme", ["euler", "rk4"])
@pytest.mark.parametrize("kind", KINDS)
def test_pulling_back_is_the_transpose_of_moving(build, kind, scheme):
    """<w, M v> = <M^T w, v> for every sample."""
    system = systems(build)[kind]
    z = system.initial_state().detach()
    v, w = torch.randn(2, 4, *z.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    stepper = TangentStepper(system, scheme)
    moved, pulled = stepper.advance_with(z, v)[1], stepper.pull_back(z, w)
    left, right = ((a * b).flatten(2).sum(-1) for a, b in ((w, moved), (pulled, v)))
    assert (left - right).abs().max() <= 1e-12 * (w.flatten(2).norm(dim=-1) * moved.flatten(2).norm(dim=-1)).max()


def test_a_component_that_nothing_moves_has_a_row_of_zeros():
    system = from_ode(lambda z: torch.stack([z[:, 1], torch.ones_like(z[:, 0])], -1), torch.ones(1, 2, dtype=F64))
    v = torch.eye(2, dtype=F64)[:, None]
    moved = TangentStepper(system).advance_with(system.initial_state(), v)[1]
    assert torch.equal(moved[:, 0], torch.tensor([[1.0, 0.0], [0.1, 1.0]], dtype=F64))
