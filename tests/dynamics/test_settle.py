"""A relaxation that leaves converged samples out ends where the plain one does."""

import torch

from dyneq.dynamics.counting import counted
from dyneq.dynamics.relax import relax
from dyneq.dynamics.settle import settle
from dyneq.dynamics.status import Status
from dyneq.systems.adapters.function import from_ode
from dyneq.systems.analytic import LinearFlow, StuartLandau


def test_moving_samples_end_where_the_plain_relaxation_does():
    rates = torch.diag_embed(torch.tensor([[-5.0], [-0.01], [-1.0]], dtype=torch.float64))
    system = LinearFlow(rates, torch.ones(3, 1, dtype=torch.float64))
    late, plain = settle(system, 500, window=100), relax(system, 500)
    assert late.status == [Status.CONVERGED, Status.MAX_STEPS, Status.CONVERGED]
    assert torch.allclose(late.z[1], plain.z[1], rtol=1e-14, atol=0)
    assert torch.allclose(late.residual[1], plain.residuals.force[1], rtol=1e-14, atol=0)
    assert late.steps.tolist()[1] == 500
    assert late.steps[0] < 500


def test_window_statistics_are_those_of_a_plain_loop():
    system = StuartLandau(0.5, 2.0, eps=0.05)
    late = settle(system, 300, window=100)
    z, states, residuals = system.initial_state(), [], []
    for _ in range(300):
        f = system.force(z)
        states.append(z)
        residuals.append(f.norm(dim=1) / z.norm(dim=1))
        z = z + system.eps * f
    assert torch.allclose(late.z, z, rtol=0, atol=1e-12)
    assert torch.allclose(late.mean, torch.stack(states[200:]).mean(0), rtol=0, atol=1e-12)
    expected = torch.stack([torch.stack(part).amax(0) for part in (residuals[200:250], residuals[250:])], dim=1)
    assert torch.allclose(late.halves, expected, rtol=1e-12, atol=0)


@torch.no_grad()
def test_token_statistics(build):
    system = build(seed=1, gain=1.5)
    late = settle(system, 60, window=20)
    z = relax(system, 40).z
    seen = []
    for _ in range(20):
        f = system.force(z)
        seen.append(f.norm(dim=2) / z.norm(dim=2))
        z = z + system.eps * f
    moving = [i for i, s in enumerate(late.status) if s is Status.MAX_STEPS]
    expected = torch.stack([torch.stack(seen[:10]).amax(0), torch.stack(seen[10:]).amax(0)], dim=1)
    assert torch.allclose(late.token_halves[moving], expected[moving], rtol=1e-10, atol=1e-14)


def test_diverged_samples_stay_finite_or_are_named():
    system = from_ode(lambda z: z**3, torch.tensor([[0.1], [2.0]], dtype=torch.float64))
    late = settle(system, 400)
    assert late.status[1] is Status.DIVERGED


def test_counting_counts_every_force():
    calls = []

    def rhs(z):
        calls.append(len(z))
        return -z

    system = counted(from_ode(rhs, torch.ones(4, 2, dtype=torch.float64)))
    calls.clear()
    settle(system, 50, window=10)
    system.select(torch.tensor([0])).force(torch.ones(1, 2, dtype=torch.float64))
    # a selection of a system that cannot restrict itself evaluates everything, but what is asked is one sample of four
    assert system.cost.forces == len(calls) - 1 + 0.25
