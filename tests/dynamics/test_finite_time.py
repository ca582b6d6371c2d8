"""Finite-time exponents against dense singular values and closed forms."""

import math

import pytest
import torch

from dyneq.dynamics.finite_time import finite_time_exponents
from dyneq.dynamics.stepping import Stepper
from dyneq.systems import analytic
from dyneq.systems.adapters import from_ode

F64 = torch.float64


def seeded():
    return torch.Generator().manual_seed(0)


def dense(system, z, steps, scheme):
    """Return log singular values of the explicit product, per step."""
    n, stepper = z[0].numel(), Stepper(system, scheme)
    vectors = torch.eye(n, dtype=F64).view(n, 1, *z.shape[1:]).expand(n, *z.shape)
    for _ in range(steps):
        z, vectors = stepper.advance_with(z, vectors)
    return torch.linalg.svdvals(vectors.flatten(2).permute(1, 2, 0)).log() / steps


@pytest.mark.parametrize("scheme", ["euler", "rk4"])
def test_filling_frame_gives_all_singular_values_of_a_block(build, scheme):
    system = build(samples=2, tokens=3, channels=4)
    z, steps = system.initial_state().detach(), 40
    found = finite_time_exponents(system, z, steps, 4, generator=seeded(), batches=4, scheme=scheme)
    assert found.complete
    assert (found.gain == 0).all()
    expected = dense(system, z, steps, scheme)
    # LAPACK loses what is an ulp of the largest singular value
    seen = (expected - expected[:, :1]) * steps > math.log(1e-6)
    assert seen.sum() > 12
    assert ((found.values - expected).abs() * steps)[seen].max() < 1e-8
    stages = 1 if scheme == "euler" else 4
    assert (found.forces, found.products) == (stages * steps, stages * steps * 12)


@pytest.mark.parametrize(("scheme", "qr_every"), [("euler", 1), ("rk4", 7)])
def test_a_few_vectors_carried_back_bound_the_largest_from_below(build, scheme, qr_every):
    """And they lack what theory allows: (s_4/s_1)^2 times the squared tangent of the angle the first vectors make."""
    system = build(samples=3, tokens=2, channels=6)
    z, steps = system.initial_state().detach(), 73
    options = {"batches": 2, "scheme": scheme, "qr_every": qr_every}
    found = finite_time_exponents(system, z, steps, 3, generator=seeded(), complete=0, **options)
    expected = dense(system, z, steps, scheme)
    # tan^2 is of order dim / count for random vectors; dim^2 is beyond any luck
    allowed = 0.5 * 12**2 * (2 * steps * (expected[:, 3] - expected[:, 0])).exp() / steps
    expected = expected[:, :3]
    assert not found.complete
    assert (found.values <= expected + 1e-12).all()
    assert (expected - found.values <= found.gain + 1e-12).all()  # a scale for what is missing
    assert ((expected - found.values)[:, 0] <= allowed + 1e-12).all()
    assert allowed.max() < 1e-2
    forward = finite_time_exponents(system, z, steps, 3, generator=seeded(), complete=0, backwards=False, **options)
    assert (forward.values < found.values).all()
    assert (found.values - found.gain - forward.values).abs().max() < 1e-12


def test_largest_transient_growth_of_the_shear_at_fourth_order():
    shear = analytic.Shear(10.0)
    errors = []
    for steps in (40, 80):
        found = finite_time_exponents(
            shear,
            shear.initial_state(),
            steps,
            2,
            generator=seeded(),
            batches=4,
            scheme="rk4",
            step=shear.largest_growth_time / steps,
        )
        errors.append(abs(float(found.values[0, 0]) * steps - math.log(shear.largest_growth)))
        # the determinant of exp(A t) is exp(-2 t)
        assert float(found.values[0].sum()) * steps == pytest.approx(-2 * shear.largest_growth_time, abs=1e-6)
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.15)
    assert errors[1] < 1e-7


def test_small_singular_values_are_had_where_no_float_holds_them():
    """A diagonal map over 400 steps: e^200 to e^-800, below the smallest float."""
    rates = torch.tensor([0.5, 0.1, -0.3, -2.0], dtype=F64)
    system = analytic.LinearMap(torch.diag(rates.exp()), torch.zeros(1, 4, dtype=F64))
    found = finite_time_exponents(system, system.initial_state(), 400, 4, generator=seeded())
    assert (found.values[0] - rates).abs().max() < 1e-13


def test_a_lost_direction_and_a_lost_sample_are_not_numbers():
    singular = analytic.LinearMap(torch.tensor([[1.0, 2.0], [2.0, 4.0]], dtype=F64), torch.ones(1, 2, dtype=F64))
    found = finite_time_exponents(singular, singular.initial_state(), 50, 2, generator=seeded(), batches=5)
    # M^50 = 5^49 M, of norm 5^50; the other singular value is 0 and no logarithm of rounding is passed off as its
    assert float(found.values[0, 0]) == pytest.approx(math.log(5), rel=1e-13)
    assert not torch.isfinite(found.values[0, 1])
    start = torch.tensor([[-0.9], [3.0]], dtype=F64)
    leaving = from_ode(lambda z: z * z - 1, start)
    found = finite_time_exponents(leaving, start, 400, 1, generator=seeded())
    assert found.exponents.valid.tolist() == [True, False]
    assert torch.isfinite(found.values[0]).all()
    assert found.values[1].isnan().all()
