"""Roots against dense solves, closed forms and SciPy, also where the relaxation leaves them."""

import numpy as np
import pytest
import scipy.optimize
import torch

import dyneq
from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.newton import DenseDirection, KrylovDirection, newton
from dyneq.dynamics.relax import relax
from dyneq.dynamics.residuals import residuals
from dyneq.dynamics.roots import find_root
from dyneq.dynamics.status import Status
from dyneq.dynamics.structure import CausalityError
from dyneq.dynamics.trajectory import Recorder
from dyneq.errors import UsageError
from dyneq.linalg.operator import MatrixOperator
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
    assert (roots.correction[roots.found] <= 1e-6).all()
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


@pytest.mark.parametrize(
    ("force", "start", "dtype"),
    [
        (lambda z: torch.exp(-z), 0.5, F64),
        (lambda z: 1 / (1 + z * z), 0.5, F64),
        (lambda z: -((z - 1) ** 2) - 5e-12, 1.5, F64),
        (lambda z: -((z - 1) ** 2) - 5e-6, 1.5, torch.float32),
    ],
    ids=["tail", "power", "ghost64", "ghost32"],
)
@pytest.mark.parametrize("causal", [False, True])
def test_a_small_force_without_a_root_near_is_not_a_root(force, start, dtype, causal):
    shape = (2, 3, 1) if causal else (2, 1)
    system = from_ode(force, torch.full(shape, start, dtype=dtype), token_axis=1 if causal else None, causal=causal)
    roots = find_root(system, depth=800, starts=("relaxed",))
    assert roots.status == [Status.STAGNATED] * 2
    if not causal:
        assert (roots.residual <= roots.tol).all()  # the residual alone would have called it one
        # a tail's correction is 1 and z/2, a minimum of depth d has one of at least sqrt(d)
        assert (roots.correction >= 2e-6).all()


@pytest.mark.parametrize("power", [2, 3])
def test_multiple_roots_are_found_to_the_accuracy_they_allow(power):
    """Rounding moves a root of multiplicity p by eps^(1/p); Newton's correction there is 1/p of what is left."""
    system = from_ode(lambda z: -((z - 1) ** power), torch.full((1, 1), 1.5, dtype=F64))
    roots = find_root(system, depth=800)
    assert roots.found.all()
    assert roots.correction.item() == pytest.approx(abs(roots.z.item() - 1) / power / roots.z.item(), rel=1e-6)


def test_correction_is_the_distance_to_the_root_of_a_linear_system():
    g = torch.Generator().manual_seed(4)
    a = torch.randn(3, 6, 6, generator=g, dtype=F64) + 3 * torch.eye(6, dtype=F64)
    root, guess = torch.randn(2, 3, 6, generator=g, dtype=F64)

    def force(z):
        return ((root - z).unsqueeze(1) @ a.mT).squeeze(1)

    norm = torch.linalg.vector_norm
    expected = norm(guess - root, dim=1) / norm(guess, dim=1)
    least = torch.zeros(3, dtype=F64)
    dense = newton(force, DenseDirection(lambda z: -a), guess, least=least, tol=1e-11, max_iterations=0)
    torch.testing.assert_close(dense.correction, expected)
    torch.testing.assert_close(dense.steepness, torch.linalg.matrix_norm(a))
    assert not dense.converged.any()
    krylov = KrylovDirection(lambda z: MatrixOperator(-a), g, tol=1e-10)
    found = newton(force, krylov, guess, least=least, tol=1e-11, max_iterations=0)
    torch.testing.assert_close(found.correction, expected, rtol=1e-7, atol=0)
    singular = DenseDirection(lambda z: torch.zeros_like(a))
    assert torch.isinf(newton(force, singular, guess, least=least, tol=1e-11, max_iterations=0).correction).all()


def test_a_state_that_ran_away_is_no_root():
    """1e9 - z has its root 1e9 times farther out than the start, beyond what counts as a state of the same problem."""
    jacobian = DenseDirection(lambda z: -torch.ones(2, 1, 1, dtype=F64))
    guess, least = torch.tensor([[1.0], [100.0]], dtype=F64), torch.zeros(2, dtype=F64)
    found = newton(lambda z: 1e9 - z, jacobian, guess, least=least, tol=1e-11)
    assert found.converged.tolist() == [False, True]
    large = from_ode(lambda z: 1e9 - z, torch.zeros(1, 2, dtype=F64))
    assert find_root(large, depth=800).found.all()  # its relaxed state is that large


def test_krylov_finds_no_root_in_a_tail():
    system = from_ode(lambda z: torch.exp(-z), torch.full((1, 800), 0.5, dtype=F64))
    roots = find_root(system, depth=5, starts=("initial",))
    assert roots.status == [Status.STAGNATED]
    assert roots.degenerate.isnan().all()


def test_steepness_is_known_where_newton_took_no_step():
    system = from_ode(lambda z: -2000 * (z - 1), torch.ones(1, 1, dtype=F64), eps=1e-4)
    roots = find_root(system)
    assert roots.steepness.item() == 2000
    assert roots.degenerate.tolist() == [1]
    assert find_root(from_ode(lambda z: -(z - 1), torch.ones(1, 1, dtype=F64))).degenerate.tolist() == [0]


def test_the_same_further_root_is_reported_once():
    system = from_ode(lambda z: z - z**3, torch.tensor([[0.01], [-0.02]], dtype=F64))
    roots = find_root(system, depth=400, explore=True, starts=("relaxed", "initial", "initial"))
    assert [o.sample for o in roots.others] == [0, 1]
    at_zero = from_ode(lambda z: -z - z**3, torch.full((2, 3), 0.5, dtype=F64))
    assert not find_root(at_zero, depth=800, explore=True, starts=("relaxed", "mean", "initial", "random")).others


def test_a_failed_token_keeps_the_roots_before_it():
    """z_t^2 = a - 0.1 sum_{s<t} z_s has no real root once the right side is negative."""
    a = torch.tensor([0.3, 0.05, 0.02], dtype=F64).view(3, 1, 1)
    start = torch.rand(3, 6, 1, generator=torch.Generator().manual_seed(1), dtype=F64)
    system = from_ode(lambda z: a - z**2 - 0.1 * (z.cumsum(1) - z), start, token_axis=1, causal=True)
    roots = find_root(system, starts=("initial",), depth=1)
    for sample in range(3):
        expected = []
        while len(expected) < 6 and (rest := a[sample].item() - 0.1 * sum(expected)) > 0:
            expected.append(rest**0.5)
        known = len(expected)
        assert roots.failed_token[sample].item() == (known if known < 6 else -1)
        assert roots.found[sample].item() == (known == 6)
        torch.testing.assert_close(roots.z[sample, :known, 0].abs(), torch.tensor(expected, dtype=F64))
        torch.testing.assert_close(roots.z[sample, known:], start[sample, known:])
        assert roots.correction[sample].isnan().item() == (known < 6)


def test_starts_that_do_not_exist_are_not_claimed():
    system = from_ode(lambda z: -(z - 1), torch.full((1, 1), 3.0, dtype=F64))
    with pytest.raises(UsageError, match="at least one"):
        find_root(system, starts=())
    early = relax(system, 4000, recorder=Recorder(system.eps, 4000))
    assert early.trajectory.mean is None  # stationary long before half the depth
    roots = find_root(system, relaxation=early, starts=("mean",))
    assert roots.start == ["relaxed"]
    assert roots.relaxation is early
    bare = relax(system, 37)
    roots = find_root(system, relaxation=bare, starts=("mean", "initial"))
    assert roots.relaxation is bare
    assert roots.start == ["initial"]
    with pytest.raises(UsageError, match="trajectory"):
        find_root(system, relaxation=bare, starts=("mean",))


def test_substitution_refuses_a_system_that_is_not_causal_after_all():
    b = torch.zeros(6, 6, dtype=F64)
    b[2, 3], b[3, 2] = 3.0, -3.0
    z0 = torch.zeros(2, 6, 3, dtype=F64)
    z0[1] += 1e12  # diverges: the check then looks at its start
    system = from_ode(lambda z: b @ z - z + z**3 / 100, z0, token_axis=1, causal=True)
    with pytest.raises(CausalityError, match="token 2"):
        find_root(system)
