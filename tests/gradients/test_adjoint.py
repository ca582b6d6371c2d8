"""The adjoint at roots and by substitution, against dense algebra and finite differences, in float64; and its marks."""

import pytest
import torch
from test_estimators import bound, dense_adjoint, flat

from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.relax import relax
from dyneq.dynamics.structure import CausalityError
from dyneq.dynamics.transposed import MOST_BYTES, require_substitution, solve_transposed
from dyneq.errors import UsageError
from dyneq.gradients.adjoint import Adjoint, AdjointParams
from dyneq.gradients.base import Mark
from dyneq.systems.adapters.function import from_map
from dyneq.systems.protocol import Structure, System
from dyneq.systems.thick import ThickBlock, ThickConfig

EPS = torch.finfo(torch.float64).eps


def dense(system, z):
    """Each sample's whole Jacobian by torch's own differentiation, ``[sample, n, n]``, one sample at a time."""
    out = []
    for i in range(len(z)):
        part = system.select(torch.tensor([i]))
        jacobian = torch.autograd.functional.jacobian(part.force, z[i : i + 1])
        out.append(jacobian.reshape(z[i].numel(), z[i].numel()))
    return torch.stack(out)


def strong(seed, gain=1.5, **options):
    """A block whose branches are strong enough that tokens act on each other and roots may be unstable."""
    system = bound(seed, resinit=1.0, **options)
    with torch.no_grad():
        system.block.attn.wo.weight.mul_(gain)
        system.block.ffn.pj.weight.mul_(gain)
    return system


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "damping": 0.2}, {"heads": 1, "tokens": 6, "damping": -0.5}])
def test_substitution_solves_the_transposed_system(seed, options):
    system = strong(seed, **options)
    z = relax(system, 30).z.detach()
    b = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed), dtype=z.dtype)
    solved = solve_transposed(system, z, b)
    whole = dense(system, z)
    # backward stable: the residual is a few roundings of the sizes of J and a, n of each summed
    left = torch.linalg.vector_norm((whole.mT @ solved.a.flatten(1).unsqueeze(-1)).squeeze(-1) - b.flatten(1), dim=1)
    n = b[0].numel()
    scale = torch.linalg.matrix_norm(whole) * torch.linalg.vector_norm(solved.a.flatten(1), dim=1)
    assert (left <= 10 * n * EPS * scale).all()
    expected = torch.linalg.solve(whole.mT, b.flatten(1))
    error = torch.linalg.vector_norm(solved.a.flatten(1) - expected, dim=1)
    condition = torch.linalg.cond(whole)
    assert (error <= 10 * n * EPS * condition * torch.linalg.vector_norm(expected, dim=1)).all()
    # LAPACK's estimate is a lower bound, and for blocks this small within a factor of three of the truth
    blocks = Linearization(system, z).token_blocks()
    true = torch.linalg.matrix_norm(blocks, torch.inf) * torch.linalg.matrix_norm(torch.linalg.inv(blocks), torch.inf)
    assert (solved.condition <= true * (1 + 1e-9)).all()
    assert (solved.condition >= true / 3).all()
    assert solved.products == 8 + z.shape[1] - 1


def test_substitution_follows_later_tokens_back_to_earlier_ones():
    # the check above could pass with blocks that do not act on each other
    system = strong(0)
    z = relax(system, 30).z.detach()
    b = torch.zeros_like(z)
    b[:, -1] = 1
    a = solve_transposed(system, z, b).a
    assert (torch.linalg.vector_norm(a, dim=2) > 1e-6).all()
    b = torch.zeros_like(z)
    b[:, 0] = 1
    assert torch.linalg.vector_norm(solve_transposed(system, z, b).a[:, 1:]) == 0


@pytest.mark.parametrize("solver", ["relaxation", "gmres", "substitution"])
def test_at_a_root_every_solver_gives_the_dense_adjoint(solver):
    system = bound()
    params = AdjointParams(solver=solver, at="root", t1=20, steps=1500, tol=1e-12)
    gradient = Adjoint(params).gradient(system)
    assert gradient.marks == {}
    assert gradient.diagnostics["force_residual"].max() <= 1e-11 < gradient.diagnostics["force_residual_t1"].min()
    assert gradient.diagnostics["adjoint_residual"].max() <= 1e-12
    expected = dense_adjoint(system, gradient.state)
    # the solve amplifies a relative residual by at most the condition of J, which is below 1e3 here
    assert torch.linalg.norm(flat(gradient, system) - expected) <= 1e-9 * torch.linalg.norm(expected)


def test_at_an_unstable_root_substitution_is_still_the_derivative_of_the_loss_there():
    # found by Newton where the relaxation leaves it: what no iteration of the relaxation could give
    system = strong(11, gain=2.5, eps=0.1)
    gradient = Adjoint(AdjointParams(solver="substitution", at="root", t1=300)).gradient(system)
    assert gradient.marks == {}
    assert torch.linalg.eigvals(dense(system, gradient.state)).real.max() > 0.1
    found = flat(gradient, system)
    parameters = [p for members in system.parameter_groups().values() for p in members.values()]
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    expected = found @ torch.cat([d.flatten() for d in direction])
    start = gradient.state

    def loss_at(shift):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=shift)
            moved = system.block.bind(system.tokens, system.targets, eps=system.eps)
            z = start.clone()
            for _ in range(4):  # Newton with the dense Jacobian, from the root at shift 0
                z = z - torch.linalg.solve(dense(moved, z), moved.force(z).flatten(1)).view_as(z)
            assert moved.force(z).norm() <= 1e-12 * z.norm()
            loss = moved.loss(z).mean()
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=shift)
        return loss

    def slope(h):
        return (8 * (loss_at(h) - loss_at(-h)) - (loss_at(2 * h) - loss_at(-2 * h))) / (12 * h)

    # fourth-order differences: two steps tell their error, 15/16 of their distance is that of the larger step
    coarse, fine = slope(4e-5), slope(2e-5)
    bar = abs(coarse - fine) + 1e-12 * abs(fine) / 2e-5
    assert abs(fine - expected) <= bar
    assert bar < 1e-4 * abs(fine)
    relaxed = Adjoint(AdjointParams(at="root", t1=300, steps=400)).gradient(system)
    assert relaxed.marks[Mark.ADJOINT_NOT_SOLVED].any()  # the transposed relaxation leaves as well


def test_what_is_not_reached_is_marked_sample_by_sample():
    system = bound()
    early = Adjoint(AdjointParams(t1=3, steps=400)).gradient(system)
    assert early.marks.keys() == {Mark.FREE_NOT_CONVERGED}
    assert early.marks[Mark.FREE_NOT_CONVERGED].tolist() == [True, True]
    short = Adjoint(AdjointParams(t1=400, steps=3)).gradient(system)
    assert short.marks.keys() == {Mark.ADJOINT_NOT_SOLVED}
    few = Adjoint(AdjointParams(t1=400, solver="gmres", products=5)).gradient(system)
    assert few.marks.keys() == {Mark.ADJOINT_NOT_SOLVED}
    assert Adjoint(AdjointParams(t1=400, steps=400)).gradient(system).marks == {}
    between = Adjoint(AdjointParams(t1=400, steps=400, t1_tol=2e-16)).gradient(system)
    assert between.diagnostics["force_residual"].max() > 0  # rounding keeps it above what was asked for
    assert between.marks.keys() <= {Mark.FREE_NOT_CONVERGED}


class Fold(System):
    """dz/dt = theta - z^2 with loss z, two samples; at theta = 0 the root z = 0 is a fold. Tokens do not interact."""

    structure = Structure(token_axis=1, causal=True)
    has_loss = True
    name = "fold"

    def __init__(self, theta):
        self.theta = theta

    def force(self, z, context=None):
        return self.theta[:, None, None] - z * z

    def initial_state(self):
        # displaced by the parameter, so that no parameter goes unused
        return self.theta.detach().sqrt()[:, None, None] + torch.zeros(2, 3, 1, dtype=torch.float64)

    def loss(self, z):
        return z.sum((1, 2))

    def parameter_groups(self):
        return {"all": {"theta": self.theta}}


def test_a_fold_is_singular_for_substitution_and_merely_unsolved_for_gmres():
    theta = torch.tensor([0.0, 0.25], dtype=torch.float64, requires_grad=True)
    gradient = Adjoint(AdjointParams(solver="substitution", t1=1)).gradient(Fold(theta))
    assert gradient.marks[Mark.ADJOINT_SINGULAR].tolist() == [True, False]
    assert gradient.diagnostics["adjoint_condition"].tolist() == [float("inf"), 1.0]
    # dz/dtheta = 1/(2 sqrt(theta)) for each of three tokens, over the mean of two samples
    found = gradient.parameters["all"]["theta"]
    assert abs(float(found[1]) - 1.5) <= 1e-15
    assert not torch.isfinite(found[0])
    gmres = Adjoint(AdjointParams(solver="gmres", t1=1)).gradient(Fold(theta))
    assert gmres.marks[Mark.ADJOINT_NOT_SOLVED].tolist() == [True, False]
    assert Mark.ADJOINT_SINGULAR not in gmres.marks


def test_a_root_that_is_not_there_leaves_the_relaxed_state_and_a_mark():
    theta = torch.tensor([0.0, 0.25], dtype=torch.float64, requires_grad=True)
    system = Fold(theta)
    moved = theta.detach().clone()
    moved[0] = -0.01  # past the fold no root is left
    system.theta, system.initial_state = moved.requires_grad_(), lambda: torch.full((2, 3, 1), 0.4, dtype=torch.float64)
    gradient = Adjoint(AdjointParams(solver="substitution", at="root", t1=5)).gradient(system)
    assert gradient.marks[Mark.FREE_NOT_CONVERGED].tolist() == [True, False]
    torch.testing.assert_close(gradient.state[0], relax(system, 5).z[0], rtol=0, atol=0)
    torch.testing.assert_close(gradient.state[1], torch.full((3, 1), 0.5, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("solver", ["relaxation", "gmres", "substitution"])
def test_a_diverged_sample_stays_visible_and_does_not_stop_the_others(solver):
    theta = torch.tensor([0.25, 0.25], dtype=torch.float64, requires_grad=True)
    system = Fold(theta)
    start = torch.full((2, 3, 1), 0.4, dtype=torch.float64)
    start[0] = -30.0  # to the left of the unstable root, so that it runs away
    system.initial_state = lambda: start
    gradient = Adjoint(AdjointParams(solver=solver, t1=200, steps=400, tol=1e-10)).gradient(system)
    assert gradient.marks[Mark.FREE_NOT_CONVERGED].tolist() == [True, False]
    assert gradient.marks[Mark.ADJOINT_NOT_SOLVED].tolist() == [True, False]
    found = gradient.parameters["all"]["theta"]
    assert not torch.isfinite(found[0])
    assert abs(float(found[1]) - 1.5) <= 1e-8


def test_substitution_refuses_what_it_is_not_for():
    generator = torch.Generator().manual_seed(0)
    z0 = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    w = torch.nn.Linear(3, 3).double()
    loose = from_map(lambda z: torch.tanh(w(z.mean(1, keepdim=True) + z)), z0, loss=lambda z: z.sum((1, 2)))
    with pytest.raises(UsageError, match=r"causal over tokens.*solver=gmres"):
        solve_transposed(loose, z0, z0)
    lying = from_map(
        lambda z: torch.tanh(w(z.mean(1, keepdim=True) + z)),
        z0,
        token_axis=1,
        causal=True,
        loss=lambda z: z.sum((1, 2)),
    )
    with pytest.raises(CausalityError):
        solve_transposed(lying, z0, z0)
    big = torch.empty(2, 300, 1024, device="meta")
    with pytest.raises(UsageError, match=r"2\.3 GiB.*solver=gmres"):
        require_substitution(bound(), big)
    assert MOST_BYTES >= 2 * 256 * 512**2 * 4  # the size the project is made for fits


def test_single_precision_is_held_to_what_it_can_reach():
    generator = torch.Generator().manual_seed(0)
    block = ThickBlock(ThickConfig(vocabulary=7, channels=8, heads=2, tokens=5, resinit=0.5, eps=0.3), generator)
    tokens = torch.randint(7, (1, 6), generator=generator)
    system = block.bind(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    double = bound()
    double.block.load_state_dict({k: v.double() for k, v in block.state_dict().items()})
    double = double.block.bind(system.tokens, system.targets, eps=0.3)
    exact = flat(Adjoint(AdjointParams(solver="substitution", at="root")).gradient(double), double)
    for solver in ("gmres", "substitution"):
        gradient = Adjoint(AdjointParams(solver=solver, at="root")).gradient(system)
        assert gradient.marks == {}
        error = torch.linalg.norm(flat(gradient, system).double() - exact) / torch.linalg.norm(exact)
        assert error <= 1e-3  # a residual of 1e-5 of state and adjoint, times a condition of at most a hundred
    assert flat(gradient, system).dtype == torch.float32


def test_cost_counts_forces_and_products():
    system = bound()
    # free phase and its residual, 39 products, force and derivative of the read-out, residual of the adjoint
    assert Adjoint().gradient(system).cost == 60 + 1 + 39 + 3
    assert Adjoint(AdjointParams(solver="substitution")).gradient(system).cost == 61 + (8 + 4) + 3
    assert Adjoint(AdjointParams(at="root")).gradient(system).cost > 103


def test_the_default_takes_no_product_beyond_that_of_its_residual():
    system = bound()
    calls = 0
    linearize = system.linearize

    def counting(z):
        forward, transposed = linearize(z)

        def counted(w):
            nonlocal calls
            calls += 1
            return transposed(w)

        return forward, counted

    system.linearize = counting
    Adjoint().gradient(system)
    assert calls == 39 + 1
