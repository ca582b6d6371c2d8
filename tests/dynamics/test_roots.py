"""Roots against dense solves, closed forms and SciPy, also where the relaxation leaves them."""

import numpy as np
import pytest
import scipy.optimize
import torch

import dyneq
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.relax import relax
from dyneq.dynamics.residuals import residuals
from dyneq.dynamics.roots import find_root
from dyneq.dynamics.status import Status
from dyneq.errors import UsageError
from dyneq.systems.adapters import from_ode

F64 = torch.float64


def test_root_of_a_linear_system_is_the_dense_solution():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 6, 6, generator=g, dtype=F64), torch.randn(3, 6, generator=g, dtype=F64)
    system = from_ode(lambda z: b - (a @ z.unsqueeze(-1)).squeeze(-1), torch.zeros(3, 6, dtype=F64) + 1)
    roots = find_root(system, depth=5)
    assert roots.found.all()
    expected = torch.linalg.solve(a, b)
    bound = np.linalg.cond(a.numpy()) * 1e-11  # the residual accepted, times the conditions
    assert ((roots.z - expected).norm(dim=1) / expected.norm(dim=1) < torch.as_tensor(bound) * 10).all()


def test_unstable_focus_inside_a_cycle_is_found():
    """Stuart-Landau with r = 1: the origin shifted to (3, -2) is unstable and the relaxation circles it."""
    centre = torch.tensor([3.0, -2.0], dtype=F64)
    rotation = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)

    def rhs(z):
        y = z - centre
        return y + 2 * y @ rotation - y * y.square().sum(-1, keepdim=True)

    system = from_ode(rhs, torch.tensor([[3.5, -2.0], [2.0, 1.0]], dtype=F64), eps=0.05)
    assert relax(system, 800).status == [Status.MAX_STEPS] * 2
    roots = find_root(system, depth=800)
    assert roots.found.all()
    torch.testing.assert_close(roots.z, centre.expand(2, 2), atol=1e-10, rtol=0)


@pytest.mark.parametrize("gain", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "attention_bias": True, "gelu": "tanh"}, {"damping": 0.2}])
def test_block_roots_have_the_residual_they_claim(build, gain, options):
    system = build(seed=3, gain=gain, **options)
    roots = find_root(system)
    torch.testing.assert_close(residuals(system, roots.z).force, roots.residual)
    for status, residual in zip(roots.status, roots.residual.tolist(), strict=True):
        assert (status is Status.CONVERGED) == (residual <= 1e-11)
    assert roots.found.any()


def test_root_where_the_block_relaxation_cycles(build):
    """A block whose relaxation does not settle has a root all the same, and SciPy confirms it token by token."""
    system = next(
        s
        for seed in range(40)
        if relax(s := build(seed=seed, gain=5.0, samples=1), 1500).status == [Status.MAX_STEPS]
        and bool(find_root(s).found.all())
        and torch.linalg.eigvals(Linearization(s, find_root(s).z).token_blocks()).real.max() > 0
    )
    roots = find_root(system)
    assert roots.residual.item() < 1e-11
    moving = relax(system, 1500)
    assert moving.residuals.force.item() > 1e-3

    def force(flat):
        with torch.no_grad():
            return system.force(torch.as_tensor(flat).view_as(roots.z)).flatten().numpy()

    near = roots.z.flatten().numpy() * (1 + 1e-4)
    solved = scipy.optimize.root(force, near, method="hybr", tol=1e-13)
    # SciPy's stop rule is 1e-13 relative in z, which the conditioning of the whole Jacobian spoils
    jacobian = Linearization(system, roots.z).dense()[0].numpy()
    allowed = 1e-11 * np.linalg.cond(jacobian) * np.linalg.norm(near)
    assert np.linalg.norm(solved.x - roots.z.flatten().numpy()) < max(allowed, 1e-8)


def test_substitution_and_newton_on_the_whole_sample_agree(build):
    system = build(seed=1, gain=1.0)
    by_token = find_root(system)
    whole = build(seed=1, gain=1.0)
    whole.structure = dyneq.Structure(token_axis=1, causal=False)
    by_sample = find_root(whole)
    assert by_token.token_start is not None
    assert by_sample.token_start is None
    torch.testing.assert_close(by_token.z, by_sample.z, rtol=0, atol=1e-9)


def test_newton_krylov_for_states_too_large_for_dense_jacobians():
    n = 1000
    g = torch.Generator().manual_seed(2)
    w = torch.randn(n, n, generator=g, dtype=F64) * 0.5 / n**0.5
    b = torch.randn(2, n, generator=g, dtype=F64)
    system = from_ode(lambda z: b + torch.tanh(z @ w.T) - z, torch.zeros(2, n, dtype=F64) + 0.1)
    roots = find_root(system, depth=3)
    assert roots.found.all()
    reference = relax(system, 3000, eps=0.5).z
    torch.testing.assert_close(roots.z, reference, rtol=0, atol=1e-9)


def test_no_root_is_said_not_invented():
    system = from_ode(lambda z: 1 + z**2, torch.zeros(2, 1, dtype=F64), eps=0.01)
    roots = find_root(system, depth=10, starts=("relaxed", "mean", "initial", "random"))
    assert roots.status == [Status.STAGNATED] * 2
    assert not roots.found.any()


def test_other_roots_are_reported_with_their_start():
    """z - z^3: the relaxation from 0.01 ends at 1, Newton from the start itself finds the unstable root 0."""
    system = from_ode(lambda z: z - z**3, torch.tensor([[0.01], [-0.02]], dtype=F64))
    roots = find_root(system, depth=400, explore=True)
    torch.testing.assert_close(roots.z, torch.tensor([[1.0], [-1.0]], dtype=F64), rtol=0, atol=1e-9)
    assert roots.start == ["relaxed", "relaxed"]
    origin = [o for o in roots.others if o.start == "initial"]
    assert {o.sample for o in origin} == {0, 1}
    assert all(abs(o.z.item()) < 1e-9 for o in origin)


def test_unknown_start_names_the_nearest():
    system = from_ode(lambda z: -z, torch.ones(1, 1, dtype=F64))
    with pytest.raises(UsageError, match="did you mean 'relaxed'"):
        find_root(system, starts=("relaxd",))


def test_diverged_relaxation_still_gives_a_start():
    """z' = (z - 2)(z + 1)... from 3: the relaxation blows up, the root at 2 is found from the initial state."""
    system = from_ode(lambda z: (z - 2) * (z + 1), torch.tensor([[3.0]], dtype=F64))
    roots = find_root(system, depth=400)
    assert roots.found.all()
    assert roots.z.item() == pytest.approx(2.0, abs=1e-10)
