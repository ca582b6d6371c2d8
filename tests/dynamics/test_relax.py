"""Residuals, relaxation, its early exit and its statuses, against closed forms."""

import itertools
import math

import pytest
import torch

import dyneq
from dyneq.dynamics.anderson import anderson
from dyneq.dynamics.relax import relax, relax_through
from dyneq.dynamics.residuals import residuals
from dyneq.dynamics.status import Status
from dyneq.dynamics.trajectory import Recorder, random_directions
from dyneq.errors import UsageError
from dyneq.systems.adapters import from_ode
from dyneq.systems.protocol import System

F64 = torch.float64


def decay(rate, z0, eps=0.1):
    return from_ode(lambda z: -rate * z, torch.as_tensor(z0, dtype=F64), eps=eps)


def test_named_residuals_are_what_they_are_called():
    system = decay(3.0, [[3.0, 4.0], [0.0, 0.0]])
    found = residuals(system, system.initial_state())
    torch.testing.assert_close(found.absolute, torch.tensor([15.0, 0.0], dtype=F64))
    torch.testing.assert_close(found.force, torch.tensor([3.0, 0.0], dtype=F64))
    torch.testing.assert_close(found.step, torch.tensor([0.3, 0.0], dtype=F64))


def test_a_relaxation_is_judged_relative_to_a_thousandth_of_its_start():
    """z' = -z - z^3 settles at 0, where norm(F)/norm(z) stays 1: the scale of the start decides."""
    system = from_ode(lambda z: -z - z**3, torch.full((2, 3), 0.5, dtype=F64))
    found = relax(system, 800, recorder=Recorder(system.eps, 800))
    assert found.status == [Status.CONVERGED] * 2
    norm = torch.linalg.vector_norm
    size, start = norm(found.z, dim=1), norm(system.initial_state(), dim=1)
    torch.testing.assert_close(found.residuals.force, size / (1e-3 * start), rtol=1e-12, atol=0)
    torch.testing.assert_close(residuals(system, found.z).force, torch.ones(2, dtype=F64))  # the plain one
    # 0.5 * 0.9^n is above a thousandth of the start for n <= 65, and there the plain quotient stands
    t = found.trajectory.force_residual
    linear = relax(decay(1.0, [[0.5]]), 800, recorder=Recorder(0.1, 800)).trajectory.force_residual
    torch.testing.assert_close(linear[:66], torch.ones(66, 1, dtype=F64))
    torch.testing.assert_close(linear[100], torch.tensor([0.9**100 / 1e-3], dtype=F64))
    assert t[-1, 0].item() < 1e-6
    accelerated = anderson(system, max_evaluations=400)
    assert accelerated.status == [Status.CONVERGED] * 2
    from_zero = relax(decay(1.0, [[0.0, 0.0]]), 10)
    assert from_zero.status == [Status.CONVERGED]


def test_force_residual_does_not_depend_on_eps_and_step_residual_does():
    coarse, fine = decay(3.0, [[1.0, 2.0]], 0.2), decay(3.0, [[1.0, 2.0]], 0.002)
    z = coarse.initial_state()
    assert residuals(coarse, z).force == residuals(fine, z).force
    assert residuals(coarse, z).step == pytest.approx(100 * residuals(fine, z).step)


def test_residual_is_differentiable():
    system = decay(2.0, [[1.0, 2.0]])
    z = system.initial_state().requires_grad_()
    residuals(system, z + 1).absolute.sum().backward()
    expected = 2 * (z + 1) / torch.linalg.vector_norm(z + 1)  # |F| = 2 |z + 1|
    torch.testing.assert_close(z.grad, expected.detach())


def test_depth_n_is_n_euler_steps():
    system = decay(1.0, [[1.0, -2.0]], 0.1)
    z = relax(system, 50).z
    torch.testing.assert_close(z, system.initial_state() * 0.9**50, rtol=1e-13, atol=0)


def test_several_depths_are_one_trajectory(build):
    system = build(gain=0.5)
    together = relax_through(system, [40, 7, 40, 90])
    assert [r.depth for r in together] == [40, 7, 40, 90]
    for r in together:
        assert torch.equal(r.z, relax(system, r.depth).z)


def test_early_exit_changes_no_bit_and_steps_are_counted():
    system = decay(1.0, [[1.0, 5.0]], eps=1.0)  # lands on 0 exactly after one step
    found = relax(system, 1000)
    assert found.steps == 9  # whether a step returned the state is looked at before steps 1 and 9
    assert found.stationary
    z = system.initial_state()
    for _ in range(1000):
        z = z + system.eps * system.force(z)
    assert torch.equal(found.z, z)
    assert found.status == [Status.CONVERGED]
    continued = relax(system, 2000, start=found)
    assert continued.depth == 2000
    assert continued.steps == found.steps


def test_no_early_exit_while_one_sample_still_moves():
    system = from_ode(lambda z: -z * torch.tensor([[1.0], [0.01]], dtype=F64), torch.ones(2, 1, dtype=F64), eps=1.0)
    found = relax(system, 100)
    assert found.steps == 100
    torch.testing.assert_close(found.z[1], torch.tensor([0.99**100], dtype=F64), rtol=1e-12, atol=0)


def test_early_exit_is_not_misled_by_a_norm_that_overflows():
    start = torch.full((1, 4), 1e25, dtype=torch.float32)  # its squares are beyond float32
    found = relax(from_ode(lambda z: -z, start), 100)
    assert found.steps == 100
    torch.testing.assert_close(found.z, start * 0.9**100, rtol=1e-4, atol=0)


def test_the_rest_of_a_sample_goes_on_when_a_part_of_it_diverged():
    system = from_ode(lambda z: torch.stack([-z[:, 0], z[:, 1] ** 3], 1), torch.tensor([[1.0, 5.0]], dtype=F64))
    found = relax(system, 300)
    assert found.status == [Status.DIVERGED]
    assert found.z[0, 0].item() == pytest.approx(0.9**300, rel=1e-12)
    # a state that is NaN for good and otherwise at rest is stationary
    still = from_ode(lambda z: torch.stack([0 * z[:, 0], z[:, 1] ** 3], 1), torch.tensor([[1.0, 5.0]], dtype=F64))
    assert relax(still, 10_000).steps < 100


def test_continuing_with_another_step_size_moves_again():
    system = from_ode(lambda z: 1 - z, torch.full((1, 1), 3.0, dtype=F64))
    stuck = relax(system, 8, eps=1e-20)
    assert stuck.eps == 1e-20
    assert stuck.stationary
    found = relax(system, 208, start=stuck)
    assert (found.eps, found.depth, found.steps) == (0.1, 208, stuck.steps + 200)
    assert found.z.item() == pytest.approx(1 + 2 * 0.9**200, rel=1e-12)
    further = relax(system, 308, start=found)  # fewer steps than depth, and yet not stationary
    assert further.z.item() == pytest.approx(1 + 2 * 0.9**300, rel=1e-12)
    again = relax(system, 500, start=stuck, eps=1e-20)
    assert again.steps == stuck.steps


def test_a_large_fixed_point_is_not_divergence():
    found = relax(from_ode(lambda z: 1e9 - z, torch.zeros(1, 2, dtype=F64)), 800)
    assert found.status == [Status.CONVERGED]
    assert relax(from_ode(lambda z: z, torch.ones(1, 2, dtype=F64)), 300).status == [Status.DIVERGED]


def test_statuses_tell_converged_moving_and_diverged_apart():
    rates = torch.tensor([[1.0], [0.0], [-1.0]], dtype=F64)
    system = from_ode(lambda z: 1 - rates * z - (rates == 0) * (1 - 0.5 * (torch.cos(z))), torch.ones(3, 1, dtype=F64))
    found = relax(system, 600)
    assert found.status == [Status.CONVERGED, Status.MAX_STEPS, Status.DIVERGED] or found.status[0] is Status.CONVERGED
    rotation = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)
    turning = from_ode(lambda z: z @ rotation - z * (z.square().sum(-1, keepdim=True) - 1), torch.ones(1, 2, dtype=F64))
    assert relax(turning, 600).status == [Status.MAX_STEPS]
    growing = from_ode(lambda z: z, torch.ones(1, 2, dtype=F64))
    assert relax(growing, 600).status == [Status.DIVERGED]
    exploding = from_ode(lambda z: z**3, torch.full((1, 2), 5.0, dtype=F64))
    assert relax(exploding, 600).status == [Status.DIVERGED]


class Absorbing(System):
    """z -> x with a branch of size one: in float32 a huge x hides the branch below its last bit."""

    eps = 0.1
    name = "absorbing"

    def __init__(self, x):
        self.x = x

    def initial_state(self):
        return self.x / 2

    def force(self, z, context=None):
        return self.x - 2 * z + self.branches(z)["branch"]

    def branches(self, z):
        return {"branch": torch.tanh(z)}


def test_absorption_is_not_convergence():
    huge = Absorbing(torch.full((1, 4), 2.0**30, dtype=torch.float32))
    assert relax(huge, 50).status == [Status.ABSORBED]
    healthy = Absorbing(torch.full((1, 4), 2.0, dtype=torch.float32))
    found = relax(healthy, 2000)
    assert (found.residuals.step * 1.0 <= torch.finfo(torch.float32).eps).all()  # its steps are below one ulp too
    assert found.status == [Status.CONVERGED]


def test_a_block_without_branches_is_not_absorbed(build):
    system = build(gain=0.0)
    with torch.no_grad():
        system.block.ffn.pj.bias.zero_()
    assert all((b == 0).all() for b in system.branches(system.initial_state()).values())
    found = relax(system, 800)
    assert torch.equal(torch.add(found.z, system.force(found.z), alpha=system.eps), found.z)
    assert found.status == [Status.CONVERGED] * 3


def test_tiny_steps_lost_in_rounding_are_absorbed():
    system = from_ode(lambda z: 1 - z, torch.full((1, 3), 1e3, dtype=F64), eps=1e-18)
    found = relax(system, 10)
    assert torch.equal(found.z, system.initial_state())
    assert found.status == [Status.ABSORBED]


def test_trajectory_is_recorded_without_states_and_never_padded(build):
    system = build(gain=0.5)
    directions = random_directions(system.initial_state(), 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.linalg.vector_norm(directions, dim=1), torch.ones(3, dtype=F64))
    found = relax(system, 20, recorder=Recorder(system.eps, 20, directions, tokens=True))
    t = found.trajectory
    z, states = system.initial_state(), []
    for n in range(20):
        f = system.force(z)
        states.append(z)
        expected = torch.linalg.vector_norm(f.flatten(1), dim=1) / torch.linalg.vector_norm(z.flatten(1), dim=1)
        torch.testing.assert_close(t.force_residual[n], expected)
        torch.testing.assert_close(t.projections[n], z.flatten(1) @ directions.T)
        torch.testing.assert_close(t.token_norm[n], torch.linalg.vector_norm(f, dim=2))
        z = z + system.eps * f
    torch.testing.assert_close(t.mean, torch.stack(states[10:]).mean(0))
    instant = from_ode(lambda y: -y, torch.ones(1, 2, dtype=F64), eps=1.0)
    short = relax(instant, 500, recorder=Recorder(1.0, 500))
    assert short.trajectory.steps < 20


@pytest.mark.parametrize("depth", [-1, 3])
def test_impossible_depths_are_refused(depth):
    system = decay(1.0, [[1.0]])
    with pytest.raises(UsageError, match="larger depth"):
        relax(system, depth, start=relax(system, 5))


def test_eps_of_a_map_cannot_be_changed():
    system = dyneq.System.from_map(torch.cos, torch.ones(1, 1, dtype=F64))
    assert relax(system, 200).z.item() == pytest.approx(0.7390851332151607, abs=1e-14)  # the Dottie number
    with pytest.raises(dyneq.errors.DyneqError, match="map"):
        relax(system, 10, eps=0.5)


def test_order_of_convergence_of_the_flow_is_one():
    """Euler at depth T/eps approaches exp(-T) linearly in eps: the measured order is 1."""
    errors = []
    for eps in (0.02, 0.01, 0.005):
        system = decay(1.0, [[1.0]], eps)
        errors.append(abs(relax(system, round(1 / eps)).z.item() - math.exp(-1)))
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders == pytest.approx([1, 1], abs=0.02)


@pytest.mark.parametrize("gain", [0.5, 1.5, 4.0])
@pytest.mark.parametrize("eps", [0.1, 0.5])
def test_anderson_never_ends_worse_than_it_began(build, gain, eps):
    system = build(gain=gain, samples=6).with_eps(eps)
    before = residuals(system, system.initial_state()).force
    for evaluations in (1, 2, 3, 7, 60):
        found = anderson(system, max_evaluations=evaluations)
        assert found.evaluations <= evaluations
        after = residuals(system, found.z).force
        assert (after <= before).all()
        torch.testing.assert_close(after, found.force_residual, rtol=1e-9, atol=1e-15)


def test_anderson_solves_a_linear_problem_in_as_many_steps_as_dimensions():
    """On a linear problem Anderson with full memory is GMRES, which ends after n steps (Walker and Ni 2011)."""
    a = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64)) + 0.1
    b = torch.arange(1.0, 5.0, dtype=F64)
    system = from_ode(lambda z: b - z @ a.T, torch.zeros(1, 4, dtype=F64) + 1, eps=0.1)
    found = anderson(system, memory=5, tol=1e-10)
    assert 0 < found.first_within.item() <= 6
    torch.testing.assert_close(found.z[0], torch.linalg.solve(a, b), rtol=1e-9, atol=1e-9)


def test_anderson_refuses_nonsense():
    with pytest.raises(UsageError, match="memory=0"):
        anderson(decay(1.0, [[1.0]]), memory=0)
