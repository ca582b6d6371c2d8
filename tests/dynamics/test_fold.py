"""The scalar equation at a fold, against coefficients known by construction."""

import math

import numpy as np
import pytest
import torch

from dyneq.dynamics.fold import read_fold
from dyneq.dynamics.subsystem import TokenSystem
from dyneq.systems.adapters.function import from_ode


def embedded(r, bend, turn):
    """Return s' = r + bend s^2 along one direction of a plane, y' = -3 y along another, and the first direction."""
    along = torch.tensor([math.cos(turn), math.sin(turn)], dtype=torch.float64)
    other = torch.tensor([math.cos(turn + 1.0), math.sin(turn + 1.0)], dtype=torch.float64)  # not orthogonal
    basis = torch.stack([along, other], dim=1)
    inverse = torch.linalg.inv(basis)

    def rhs(z):
        s, y = (z @ inverse.T).unbind(-1)
        return torch.stack([r + bend * s * s, -3 * y], dim=-1) @ basis.T

    return from_ode(rhs, torch.ones(1, 2, dtype=torch.float64)), along


@pytest.mark.parametrize("turn", [0.0, 0.4, 2.0])
@pytest.mark.parametrize("bend", [1.0, -2.0])
def test_coefficients(turn, bend):
    system, along = embedded(1e-3, bend, turn)
    fold = read_fold(system, -0.02 * along[None])
    assert fold.gap == pytest.approx(3.0, rel=1e-10)
    assert fold.linear == pytest.approx(-0.04 * bend, rel=1e-10)
    # a and c change sign with the direction that LAPACK chose; their product does not
    assert fold.constant * fold.quadratic == pytest.approx((1e-3 + bend * 4e-4) * bend, rel=1e-10)
    assert fold.discriminant == pytest.approx(-4 * 1e-3 * bend, rel=1e-9)
    assert fold.aside == pytest.approx(0, abs=1e-10)
    assert fold.ghost == (bend > 0)


def test_passage_time_is_that_of_the_ghost():
    system, along = embedded(1e-4, 1.0, 0.4)
    assert read_fold(system, -0.02 * along[None]).passage == pytest.approx(math.pi / 1e-2, rel=1e-9)


def test_far_from_the_fold_nothing_is_claimed():
    """A state that moves in another direction, and one whose slow direction is not much slower than the rest."""
    system, along = embedded(1e-4, 1.0, 0.0)
    aside = torch.tensor([[-0.02, 0.3]], dtype=torch.float64)
    assert not read_fold(system, aside).ghost
    fast, along = embedded(2.0, 1.0, 0.0)
    assert not read_fold(fast, -0.5 * along[None]).ghost


def test_a_complex_pair_is_no_fold():
    matrix = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    assert (
        read_fold(from_ode(lambda z: z @ matrix.T, torch.ones(1, 2, dtype=torch.float64)), torch.ones(1, 2).double())
        is None
    )


@torch.no_grad()
def test_curvature_of_a_block_is_that_of_finite_differences(build):
    """A layer norm's second derivative is easily wrong; differences of the force know nothing of it."""
    checked = 0
    for seed in range(8):
        system = TokenSystem(block := build(seed=seed), block.initial_state().detach(), [0], [2])
        z = system.initial_state() + 0.3
        fold = read_fold(system, z)
        if fold is None:
            continue
        size, h = z.shape[1], 1e-4
        eye = torch.eye(size, dtype=z.dtype)
        j = torch.stack([(system.force(z + 1e-6 * e) - system.force(z - 1e-6 * e))[0] / 2e-6 for e in eye], 1).numpy()
        mu, right = np.linalg.eig(j)
        nu, left = np.linalg.eig(j.T)
        first = np.abs(mu).argmin()
        q, p = right[:, first].real, left[:, np.abs(nu - mu[first]).argmin()].real
        step = h * torch.tensor(q)[None]
        bend = (system.force(z + step) - 2 * system.force(z) + system.force(z - step))[0].numpy() / h**2
        quadratic = float(p @ bend / (p @ q)) / 2
        assert abs(fold.quadratic) == pytest.approx(abs(quadratic), rel=1e-4, abs=1e-5)
        checked += 1
    assert checked >= 2
