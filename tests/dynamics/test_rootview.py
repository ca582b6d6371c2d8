"""What roots say of stability, against dense eigenvalues of NumPy and closed forms."""

import numpy as np
import pytest
import torch

from dyneq.dynamics.approach import approach
from dyneq.dynamics.roots import find_root
from dyneq.dynamics.rootview import view_roots
from dyneq.systems.adapters.function import from_map, from_ode
from dyneq.systems.analytic import HopfNormalForm, LinearFlow, StuartLandau


def seeded():
    return torch.Generator().manual_seed(0)


@torch.no_grad()
def test_every_token_against_dense_eigenvalues(build):
    system = build(seed=4, gain=1.5)
    roots = find_root(system, depth=200)
    assert roots.found.all()
    view = view_roots(system, roots.z, generator=seeded())
    samples, tokens, channels = roots.z.shape
    for i in range(samples):
        for t in range(tokens):
            block = np.empty((channels, channels))
            for c in range(channels):  # central differences of the force: none of our products
                step = torch.zeros_like(roots.z)
                step[i, t, c] = 1e-6
                block[:, c] = (system.force(roots.z + step) - system.force(roots.z - step))[i, t].numpy() / 2e-6
            mu = np.linalg.eigvals(block)
            assert view.rightmost.mu[i, t].real == pytest.approx(mu.real.max(), abs=1e-6)
            assert view.radius[i, t] == pytest.approx(np.abs(1 + system.eps * mu).max(), abs=1e-6)
            if mu.real.max() < 0:
                steps = -2 * mu.real / np.abs(mu) ** 2
                assert view.critical_eps[i, t] == pytest.approx(steps.min(), abs=1e-5)
            else:
                assert np.isnan(view.critical_eps[i, t])


def test_sides_of_a_flow_and_its_step():
    """Unstable flow; stable flow and step; stable flow, step too large; a pair on the axis."""
    pairs = [0.1 + 1j, -0.5 + 1j, -0.1 + 3j, 0.0 + 1j]
    matrix = torch.tensor([[[m.real, m.imag], [-m.imag, m.real]] for m in pairs], dtype=torch.float64)
    system = LinearFlow(matrix, torch.ones(4, 2, dtype=torch.float64))
    view = view_roots(system, torch.zeros(4, 2, dtype=torch.float64), generator=seeded())
    assert view.flow_side()[:, 0].tolist() == [1, -1, -1, 0]
    assert view.map_side()[:, 0].tolist() == [1, -1, 1, 1]
    assert view.critical_eps[1, 0] == pytest.approx(2 * 0.5 / 1.25, rel=1e-12)
    assert view.critical_eps[2, 0] == pytest.approx(2 * 0.1 / 9.01, rel=1e-12)


def test_a_double_root_is_not_resolved():
    """Its eigenvalue is only known to the root of the rounding, whatever the eigenvalue solver certifies."""
    system = from_ode(lambda z: z * z - 2 * z + 1, torch.full((1, 1), 0.9, dtype=torch.float64))
    root = find_root(system, depth=200)
    assert view_roots(system, root.z, generator=seeded()).flow_side()[0, 0] == 0


def test_map_has_no_critical_step():
    system = from_map(lambda z: -1.2 * z, torch.ones(1, 1, dtype=torch.float64))
    view = view_roots(system, torch.zeros(1, 1, dtype=torch.float64), generator=seeded())
    assert view.flow_side()[0, 0] == view.map_side()[0, 0] == 1
    assert np.isnan(view.critical_eps[0, 0])
    assert view.largest.mu[0, 0] == pytest.approx(-2.2, rel=1e-12)


def test_approach_at_steps_of_each_samples_own():
    """Euler at half of the critical step contracts, above it it does not; the rate is that of the multiplier."""
    system = HopfNormalForm(-0.1, 1.0, z0=torch.full((2, 2), 1e-3, dtype=torch.float64))
    critical = system.critical_step
    step = torch.tensor([critical / 2, 1.5 * critical], dtype=torch.float64)
    way = approach(system, system.initial_state(), torch.zeros(2, 2, dtype=torch.float64), step, 200)
    predicted = np.log(np.abs(1 + step.numpy() * (-0.1 + 1j))) / step.numpy()
    assert way.agrees(predicted).tolist() == [True, False]
    assert way.rate[0] == pytest.approx(predicted[0], rel=1e-3)  # the cubic term is of relative size 1e-6 at the end
    assert way.end[1] > way.begin[1]


def test_following_the_flow_decays_at_the_abscissa():
    system = StuartLandau(-0.05, 2.0, z0=torch.full((1, 2), 1e-3, dtype=torch.float64), eps=0.1)
    assert 0.1 > 2 * 0.05 / (0.05**2 + 4)  # Euler's own step would be too large
    root, step = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64)
    way = approach(system, system.initial_state(), root, step, 400, flow=True)
    assert way.rate[0] == pytest.approx(-0.05, rel=1e-3)
    assert not approach(system, system.initial_state(), root, step, 400).agrees(np.array([-0.05])).any()


def test_arrival_ends_the_simulation():
    system = LinearFlow(-torch.eye(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    root, step = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64)
    way = approach(system, system.initial_state(), root, step, 100000)
    assert way.arrived().all()
    assert way.time[0] < 1000
