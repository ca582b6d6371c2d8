"""The estimators against plain unrolling, dense algebra and finite differences, in float64."""

import pytest
import torch
from torch import Tensor

from dyneq.dynamics.relax import relax
from dyneq.errors import DyneqError
from dyneq.gradients.adjoint import Adjoint, AdjointParams
from dyneq.gradients.base import Gradient
from dyneq.gradients.bptt import Bptt, BpttParams
from dyneq.systems.block import BoundBlock
from dyneq.systems.protocol import System
from dyneq.systems.thick import ThickBlock, ThickConfig

ROUNDING = torch.finfo(torch.float64).eps


def bound(seed: int = 0, **options: object) -> BoundBlock:
    """A tiny block, residual branches small enough that its relaxation contracts (asserted where it matters)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"vocabulary": 7, "channels": 8, "heads": 2, "tokens": 5, "resinit": 0.5, "eps": 0.3, **options}
    block = ThickBlock(ThickConfig(**sizes), generator).double()
    tokens = torch.randint(7, (2, 6), generator=generator)
    return block.bind(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def flat(gradient: Gradient, system: System) -> Tensor:
    """All parameters' gradients as one vector, in the order of ``parameter_groups``."""
    groups = system.parameter_groups()
    return torch.cat([gradient.parameters[g][n].flatten() for g, members in groups.items() for n in members])


def plain_unroll(system: BoundBlock, steps: int) -> Tensor:
    """The gradient by torch's own differentiation of the whole unroll."""
    parameters = [p for members in system.parameter_groups().values() for p in members.values()]
    z = system.initial_state()
    for _ in range(steps):
        z = z + system.eps * system.force(z)
    grads = torch.autograd.grad(system.loss(z).mean(), parameters, retain_graph=True)
    return torch.cat([g.flatten() for g in grads])


def dense_adjoint(system: BoundBlock, z: Tensor) -> Tensor:
    """The equilibrium gradient at ``z`` by a dense solve with the Jacobian that torch differentiates itself."""
    parameters = [p for members in system.parameter_groups().values() for p in members.values()]
    z = z.detach().requires_grad_()
    g = torch.autograd.grad(system.loss(z).mean(), z)[0]
    jacobian = torch.autograd.functional.jacobian(system.force, z.detach()).reshape(z.numel(), z.numel())
    a = torch.linalg.solve(jacobian.T, -g.flatten()).view_as(z)
    total = (system.force(z.detach()) * a).sum() + system.loss(z.detach()).mean()
    return torch.cat([p.flatten() for p in torch.autograd.grad(total, parameters, retain_graph=True)])


@pytest.mark.parametrize(("steps", "segment"), [(1, None), (7, None), (20, 3), (20, 20), (9, 50)])
@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "final_norm": True, "gelu": "tanh"}])
def test_bptt_equals_plain_unrolling(steps: int, segment: int | None, options: dict[str, object]) -> None:
    system = bound(**options)
    expected = plain_unroll(system, steps)
    found = flat(Bptt(BpttParams(steps=steps, segment=segment)).gradient(system), system)
    # the same sums in another order: at most one rounding for each of the steps x tokens x samples addends
    assert torch.linalg.norm(found - expected) <= steps * 10 * ROUNDING * torch.linalg.norm(expected)


def test_bptt_includes_the_path_through_the_initial_state() -> None:
    # with one step from z_0 = x the state is (1 - eps (1 + c)) x + eps x + ..., so leaving the path through z_0 out
    # would leave eps * (cotangent) of it only: a factor of order eps in the embedding's gradient
    system = bound()
    found = Bptt(BpttParams(steps=1)).gradient(system)
    x = system.initial_state().detach().requires_grad_()
    z = x + system.eps * system.block.force(x, system.x.detach())
    without_input = torch.autograd.grad(system.loss(z).mean(), x)[0]
    z = x.detach() + system.eps * system.block.force(x.detach(), x)
    through_input = torch.autograd.grad(system.loss(z).mean(), x)[0]
    expected = (without_input + through_input).sum(0)
    torch.testing.assert_close(found.parameters["emb"]["pos.weight"], expected, rtol=1e-12, atol=1e-15)
    assert torch.linalg.norm(without_input) > torch.linalg.norm(through_input)


def test_bptt_holds_the_graph_of_one_segment_only() -> None:
    system = bound()

    def most_saved(steps: int, segment: int) -> int:
        alive: set[int] = set()
        peak = 0

        class Saved:
            """Stands for one tensor autograd keeps, as long as it keeps it."""

            def __init__(self, tensor: Tensor) -> None:
                nonlocal peak
                self.tensor = tensor.detach()  # an output kept with its graph would keep itself alive
                alive.add(id(self))
                peak = max(peak, len(alive))

            def __del__(self) -> None:
                alive.discard(id(self))

        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            Bptt(BpttParams(steps=steps, segment=segment)).gradient(system)
        return peak

    assert most_saved(40, 5) == most_saved(20, 5)
    assert most_saved(40, 10) > 1.8 * most_saved(40, 5)


OPTIONS = [
    {},
    {"qk_norm": True, "final_norm": True, "resinit": 0.2},
    {"damping": 0.5},
    {"gelu": "tanh", "ffn_bias": False, "attention_bias": True, "widening": 2, "norm_eps": 1e-3},
    {"attention": "fused"},
    {"constraint": "specnorm", "spectral_bound": 0.6},
    {"constraint": "rstr", "product_norm": 0.5, "antisymmetric_share": 0.3},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_adjoint_at_a_root_equals_the_dense_solve(options: dict[str, object]) -> None:
    system = bound(**options)
    gradient = Adjoint(AdjointParams(steps=400, relaxation=400)).gradient(system)
    assert gradient.diagnostics["force_residual"].max() < 1e-14
    assert gradient.diagnostics["adjoint_residual"].max() < 1e-13
    expected = dense_adjoint(system, gradient.state)
    # the solve amplifies a relative residual by at most the condition of J, which is below 1e3 here
    found = flat(gradient, system)
    assert torch.linalg.norm(found - expected) <= 1e-10 * torch.linalg.norm(expected)


@pytest.mark.parametrize("options", OPTIONS)
def test_adjoint_is_the_derivative_of_the_loss_at_the_root(options: dict[str, object]) -> None:
    system = bound(**options)
    gradient = Adjoint(AdjointParams(steps=400, relaxation=400)).gradient(system)
    assert gradient.diagnostics["force_residual"].max() < 1e-14
    assert gradient.diagnostics["adjoint_residual"].max() < 1e-13
    found = flat(gradient, system)
    generator = torch.Generator().manual_seed(1)
    parameters = [p for members in system.parameter_groups().values() for p in members.values()]
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    expected = found @ torch.cat([d.flatten() for d in direction])

    def loss_at(shift: float) -> Tensor:
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=shift)
            moved = system.block.bind(system.tokens, system.targets, eps=system.eps)
            loss = moved.loss(relax(moved, 400).z).mean()
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=shift)
        return loss

    # central differences of fourth order: error h^4 ~ 1e-14 times a fifth derivative, plus rounding 1e-16 / h
    h = 3e-4
    slope = (8 * (loss_at(h) - loss_at(-h)) - (loss_at(2 * h) - loss_at(-2 * h))) / (12 * h)
    assert abs(slope - expected) <= 1e-8 * abs(expected)


def test_bptt_tends_to_the_adjoint() -> None:
    system = bound()
    exact = flat(Adjoint(AdjointParams(steps=1500, relaxation=1500)).gradient(system), system)
    errors = [
        float(torch.linalg.norm(flat(Bptt(BpttParams(steps=n)).gradient(system), system) - exact)) for n in (20, 40, 80)
    ]
    # the unrolled gradient converges geometrically, so doubling the depth squares the error's factor
    assert errors[1] < 0.1 * errors[0]
    assert errors[2] < 0.1 * errors[1] ** 2 / errors[0] or errors[2] < 1e-13


def test_gmres_and_the_transposed_relaxation_agree() -> None:
    system = bound()
    relaxed = Adjoint(AdjointParams(steps=1500, relaxation=200)).gradient(system)
    solved = Adjoint(AdjointParams(solver="gmres", tol=1e-12, relaxation=200)).gradient(system)
    assert solved.diagnostics["adjoint_residual"].max() <= 1e-12
    torch.testing.assert_close(flat(solved, system), flat(relaxed, system), rtol=1e-9, atol=1e-13)


def test_a_short_adjoint_reports_its_own_residual() -> None:
    system = bound()
    gradient = Adjoint(AdjointParams(steps=3, relaxation=200)).gradient(system)
    z = gradient.state.clone().requires_grad_()
    g = torch.autograd.grad(system.loss(z).mean(), z)[0].flatten(1)
    whole = torch.autograd.functional.jacobian(system.force, gradient.state).flatten(3).flatten(0, 2)
    jacobian = whole.view(g.numel(), g.numel())
    # three steps from a = 0 are a truncated Neumann series, here summed densely
    m = torch.eye(g.numel(), dtype=torch.float64) + system.eps * jacobian.T
    a = system.eps * (g.flatten() + m @ g.flatten() + m @ m @ g.flatten())
    residual = (jacobian.T @ a).view_as(g) + g
    expected = torch.linalg.norm(residual, dim=1) / torch.linalg.norm(g, dim=1)
    torch.testing.assert_close(gradient.diagnostics["adjoint_residual"], expected, rtol=1e-11, atol=0)
    assert expected.min() > 0.1


@pytest.mark.parametrize("estimator", [Bptt(), Adjoint()])
def test_what_has_no_gradient_is_refused(estimator: Bptt | Adjoint) -> None:
    system = bound()
    block, tokens, targets = system.block, system.tokens, system.targets
    with pytest.raises(DyneqError, match="bind it with targets"):
        estimator.gradient(block.bind(tokens))
    with torch.no_grad():  # its input is then cut off from the embeddings
        blind = block.bind(tokens, targets)
    with pytest.raises(DyneqError, match="parameter 'tok"):
        estimator.gradient(blind)
    block.attn.wq.weight.requires_grad_(False)
    with pytest.raises(DyneqError, match="frozen"):
        estimator.gradient(block.bind(tokens, targets))


@pytest.mark.parametrize("estimator", [Bptt(), Adjoint()])
def test_a_bound_system_serves_twice_and_leaves_no_gradients_behind(estimator: Bptt | Adjoint) -> None:
    system = bound()
    first, second = estimator.gradient(system), estimator.gradient(system)
    assert torch.equal(flat(first, system), flat(second, system))
    assert all(p.grad is None for p in system.block.parameters())
    assert first.parameters.keys() == system.parameter_groups().keys()
    assert not first.state.requires_grad
    assert not first.loss.requires_grad
