"""Complex nudges: orders of convergence against dense adjoints, the real pair, the domain, and what is refused."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from dyneq.dynamics.relax import relax
from dyneq.errors import DyneqError, UsageError
from dyneq.gradients.aep import Aep
from dyneq.gradients.analytic import require_analytic
from dyneq.gradients.base import Gradient, Mark
from dyneq.gradients.holo import Holo, HoloParams
from dyneq.gradients.nudged import NudgedParams
from dyneq.gradients.registry import parse
from dyneq.gradients.window import Circle
from dyneq.systems.adapters import from_map, from_ode
from dyneq.systems.block import BoundBlock
from dyneq.systems.protocol import System, Time
from dyneq.systems.thick import ThickBlock, ThickConfig

ROUNDING = torch.finfo(torch.float64).eps
#: Steps after which the small blocks are at rest to rounding, free and nudged.
DEEP = {"t1": 90, "t2": 70}


def bound(seed: int = 0, gain: float = 0.3, samples: int = 2, **options: object) -> BoundBlock:
    """A tiny block with random gains and biases; it contracts at small ``gain`` (asserted where it matters)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"vocabulary": 7, "channels": 6, "heads": 2, "tokens": 4, "eps": 0.4, "resinit": gain, **options}
    block = ThickBlock(ThickConfig(**sizes), generator).double()
    with torch.no_grad():
        for p in block.parameters():
            if p.ndim == 1:
                p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype), alpha=0.2)
    tokens = torch.randint(7, (samples, 5), generator=generator)
    return block.bind(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


class Cell(System):
    """The map z -> tanh(W z + b) on states without tokens, with a quartic loss."""

    name, time, eps, has_loss = "cell", Time.MAP, 1.0, True

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(5)
        self.w = (0.4 * torch.randn(4, 4, generator=generator, dtype=dtype)).requires_grad_()
        self.b = torch.randn(4, generator=generator, dtype=dtype).requires_grad_()
        self.target = torch.randn(3, 4, generator=generator, dtype=dtype)

    def force(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return torch.tanh(z @ self.w.mT.to(z.dtype) + self.b) - z

    def initial_state(self) -> Tensor:
        return torch.zeros_like(self.target)

    def loss(self, z: Tensor) -> Tensor:
        gap = z - self.target
        return 0.1 * (gap**2 + 0.3 * gap**4).sum(-1)

    def parameter_groups(self) -> dict[str, dict[str, Tensor]]:
        return {"cell": {"w": self.w, "b": self.b}}


def flat(gradient: Gradient) -> Tensor:
    return torch.cat([p.flatten() for members in gradient.parameters.values() for p in members.values()])


def jacobian(system: System, z: Tensor) -> Tensor:
    """The whole Jacobian ``[entry, entry]`` that torch differentiates itself."""
    return torch.autograd.functional.jacobian(system.force, z).reshape(z.numel(), z.numel())


def dense_adjoint(system: System, z: Tensor) -> tuple[Tensor, Tensor]:
    """The adjoint at ``z`` by a dense solve, and the gradient of the parameters read out with it."""
    parameters = [p for members in system.parameter_groups().values() for p in members.values()]
    z = z.detach().requires_grad_()
    g = torch.autograd.grad(system.loss(z).mean(), z)[0]
    a = torch.linalg.solve(jacobian(system, z.detach()).T, -g.flatten()).view_as(z)
    total = (system.force(z.detach()) * a).sum() + system.loss(z.detach()).mean()
    grads = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    return a, torch.cat([p.flatten() for p in grads if p is not None])


def holo(**options: object) -> Holo:
    return Holo(HoloParams(**{**DEEP, **options}))


def beyond(gradient: Gradient) -> Tensor:
    """Which samples are marked for having been nudged too far."""
    none = torch.zeros(len(gradient.loss), dtype=torch.bool)
    marks = gradient.marks
    return marks.get(Mark.OUTSIDE_LINEAR_RESPONSE, none) | marks.get(Mark.NUDGE_DIVERGED, none)


def relative(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.norm(a - b) / torch.linalg.norm(b))


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize(
    "options", [{}, {"gelu": "tanh"}, {"qk_norm": True, "final_norm": True, "norm_eps": 0.1}], ids=str
)
def test_the_bias_is_of_order_n_in_the_radius(n: int, options: dict[str, object]) -> None:
    system, radii = bound(**options), (0.04, 0.01)
    found = [holo(n=n, r=r, adaptive=False).gradient(system) for r in radii]
    _, expected = dense_adjoint(system, found[0].state)
    errors = [relative(flat(gradient), expected) for gradient in found]
    assert all(not gradient.marks for gradient in found)
    assert errors[-1] > 100 * ROUNDING / radii[-1]  # nudges divide rounding by r: the orders are read above that
    slope = math.log(errors[0] / errors[-1]) / math.log(radii[0] / radii[-1])
    # the next order adds a share of r^N times the ratio of two coefficients, a few percent at the largest radius
    assert abs(slope - n) < 0.1


def test_the_bias_of_eight_nudges_is_of_order_eight() -> None:
    system = bound(samples=1)
    found = [holo(n=8, r=r, adaptive=False).gradient(system) for r in (0.2, 0.1)]
    _, expected = dense_adjoint(system, found[0].state)
    errors = [relative(flat(gradient), expected) for gradient in found]
    assert errors[1] > 100 * ROUNDING / 0.1
    assert abs(math.log2(errors[0] / errors[1]) - 8) < 0.4


@pytest.mark.parametrize(
    "options", [{}, {"t1": 10, "t2": 15}, {"head_clamp": 0.3}, {"adaptive": False, "t2": 40}], ids=str
)
def test_two_nudges_are_the_centred_real_pair(options: dict[str, object]) -> None:
    system = bound(qk_norm=True)
    options = {**DEEP, **options}
    pair = Aep(NudgedParams(beta=0.05, sides=2, **options)).gradient(system)
    two = Holo(HoloParams(n=2, r=0.05, **options)).gradient(system)
    # rounding of states of order 1, divided by r and carried through contracting steps
    assert relative(flat(two), flat(pair)) <= 1000 * ROUNDING / 0.05
    if options["t2"] < 50:  # what follows is at rest to rounding, and rounding chooses the snapshot
        assert torch.equal(two.diagnostics["t2"], pair.diagnostics["t2"])
    assert (Mark.CLAMPED in two.marks) == (Mark.CLAMPED in pair.marks) == ("head_clamp" in options)


def test_two_nudges_stay_in_real_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    system = Cell()

    def force(z: Tensor, context: Tensor | None = None) -> Tensor:
        assert not z.is_complex()
        return functional.softplus(z @ system.w.mT + system.b) - z  # which has no complex form in torch

    monkeypatch.setattr(system, "force", force)
    found = [holo(n=2, r=r).gradient(system) for r in (0.005, 0.0025)]
    _, expected = dense_adjoint(system, found[0].state)
    errors = [relative(flat(gradient), expected) for gradient in found]
    assert not found[0].marks
    assert abs(math.log2(errors[0] / errors[1]) - 2) < 0.1
    with pytest.raises(DyneqError, match="the force of cell at complex states, but it cannot be computed there"):
        holo(n=3).gradient(system)


@pytest.mark.parametrize("n", [5, 6])
def test_the_half_circle_gives_what_the_whole_circle_gives(n: int) -> None:
    system, r, steps = bound(samples=1, gelu="tanh"), 0.3, 30
    estimator = holo(n=n, r=r, t2=steps, adaptive=False)
    free = estimator.free(system)
    found = estimator.adjoint(system, free).a
    z, shape = free.z, free.z.shape
    j = jacobian(system, z).to(torch.complex128)
    total = torch.zeros_like(z, dtype=torch.complex128)
    for k in range(n):
        root = complex(math.cos(2 * math.pi * k / n), math.sin(2 * math.pi * k / n))
        s = z.to(torch.complex128)
        for _ in range(steps):
            with torch.no_grad():
                logits = s @ system.block.head.weight.mT.to(s.dtype)
                p = logits.exp() / logits.exp().sum(-1, keepdim=True)
                g = (p - functional.one_hot(system.targets, 7)) @ system.block.head.weight.to(s.dtype)
                bend = ((j.T - j) @ (s - z).flatten()).view(shape)
                s = s + system.eps * (system.force(s) - r * root * g + bend)
        total += s / root
    expected = -total.real / (n * r) / system.tokens.numel()
    assert relative(found, expected) <= 1000 * ROUNDING / r


def test_harmonics_of_a_circle() -> None:
    # of f(x) = sum_m c_m x^m the n-th roots of unity see c_m + c_(m+n) + ... as the m-th harmonic
    coefficients = [0.5, -1.0, 2.0, 0.25, 3.0, -0.7, 0.1]
    for n in (2, 3, 4, 5):
        circle = Circle(n)
        dtype = {True: torch.complex128, False: torch.float64}
        points = [torch.tensor([p], dtype=dtype[isinstance(p, complex)]) for p in circle.points]
        values = tuple(sum(c * x**m for m, c in enumerate(coefficients)) for x in points)
        for m in range(n):
            assert abs(float(circle.harmonic(values, m)) - sum(coefficients[m::n])) < 1e-13


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    n=st.sampled_from([2, 3, 4]),
    gain=st.sampled_from([0.2, 0.5, 0.8]),
    qk_norm=st.booleans(),
    gelu=st.sampled_from(["erf", "tanh"]),
)
def test_on_random_stable_blocks_the_error_is_what_aliasing_says(
    seed: int, n: int, gain: float, qk_norm: bool, gelu: str
) -> None:
    system = bound(seed, gain, samples=1, channels=4, tokens=4, qk_norm=qk_norm, gelu=gelu)
    estimator = holo(n=n, r=0.04, t1=150, t2=150)
    free = estimator.free(system)
    j = jacobian(system, free.z)
    spectrum = torch.linalg.eigvals(j)
    assume(bool((spectrum.real < -0.3).all()) and bool(((1 + system.eps * spectrum).abs() < 0.8).all()))
    assert float(free.residual.max()) < 1e-12
    estimate = estimator.adjoint(system, free)
    exact = torch.linalg.solve(j.T, -free.g.flatten()).view_as(free.z)
    aliasing = float(estimate.diagnostics["aliasing"])
    too_far = estimate.marks[Mark.OUTSIDE_LINEAR_RESPONSE] | estimate.marks[Mark.NUDGE_DIVERGED]
    assert bool(too_far) or aliasing <= 0.02
    # what the estimate leaves of J^T a = -g is that share of g and what has not settled
    rest = torch.linalg.norm(j.T @ estimate.a.flatten() + free.g.flatten()) / torch.linalg.norm(free.g)
    assume(float(estimate.diagnostics["increment"]) < 1e-9)
    floor = 1e4 * ROUNDING / 0.04
    assert abs(float(rest) - aliasing) <= 1e-6 * aliasing + floor
    amplification = float(torch.linalg.matrix_norm(torch.linalg.inv(j), 2))
    bound_on_error = amplification * (aliasing + floor) * float(torch.linalg.norm(free.g))
    assert float(torch.linalg.norm(estimate.a - exact)) <= 1.01 * bound_on_error


def test_aliasing_falls_with_more_nudges_and_marks_what_is_too_large() -> None:
    system = bound(samples=1, qk_norm=True, final_norm=True)
    by_n = [float(holo(n=n, r=0.01).gradient(system).diagnostics["aliasing"].max()) for n in (2, 4, 6)]
    assert all(later < 0.5 * earlier for earlier, later in itertools.pairwise(by_n))
    assert by_n[-1] < 0.1 * by_n[0]
    for r in (1.0, 30.0):
        assert bool(beyond(holo(n=4, r=r).gradient(system)).all())


def test_states_that_leave_the_domain_of_the_norms_are_marked() -> None:
    # channels that hardly differ: the layer norm's square root has its branch point within reach of the nudges
    system = bound(samples=1, embedding_std=1e-3, norm_eps=1e-9, gain=1e-5)
    with torch.no_grad():
        for name, p in system.block.named_parameters():
            if name.endswith("bias"):
                p.zero_()
    gradient = holo(n=4, r=0.5).gradient(system)
    assert torch.isfinite(gradient.state).all()
    assert torch.isnan(gradient.diagnostics["adjoint_norm"]).all()  # what has no value is not given one
    assert bool(beyond(gradient).all())
    # the same nudges on the real line stay within the domain, and so do smaller ones around the circle
    assert torch.isfinite(holo(n=2, r=0.5).gradient(system).diagnostics["adjoint_norm"]).all()
    assert not beyond(holo(n=4, r=1e-5).gradient(system)).any()


def test_a_map_without_tokens() -> None:
    system = Cell()
    for n in (2, 4):
        found = [holo(n=n, r=r).gradient(system) for r in (0.01, 0.005)]
        assert found[0].diagnostics["force_residual"].max() < 1e-14
        expected = dense_adjoint(system, found[0].state)[1]
        errors = [relative(flat(gradient), expected) for gradient in found]
        assert abs(math.log2(errors[0] / errors[1]) - n) < 0.1


def test_single_precision_reaches_what_its_rounding_allows() -> None:
    system = bound()
    system.block.float()
    single = system.block.bind(system.tokens, system.targets)
    r = 0.05
    found = holo(n=4, r=r).gradient(single)
    assert flat(found).dtype == torch.float32
    assert not found.marks
    a, expected = dense_adjoint(single, found.state)
    # states of norm |z| are rounded by eps |z|, which the contrast divides by N r and the contraction by its rate
    unit = float(torch.finfo(torch.float32).eps) * float(torch.linalg.norm(found.state))
    allowed = unit / (r * single.tokens.numel()) / float(torch.linalg.norm(a))
    assert relative(flat(found), expected) <= 10 * allowed
    assert allowed < 1e-3


def test_specs_and_defaults() -> None:
    assert parse("holo4").to_plain() == parse("holo:n=4,r=0.05,t2=80").to_plain() == Holo().to_plain()
    assert parse("holo2").params.n == 2
    with pytest.raises(UsageError, match="n: "):
        parse("holo1")


def random_state(system: System, seed: int = 0) -> tuple[Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(system.initial_state().shape, generator=generator, dtype=torch.float64), generator


def ode(function: Callable[[Tensor], Tensor], loss: Callable[[Tensor], Tensor] | None = None) -> System:
    return from_ode(function, torch.ones(3, 4, dtype=torch.float64), loss=loss or (lambda z: (z**2).sum(-1)))


def erf_here_tanh_there(z: Tensor) -> Tensor:
    if not z.is_complex():
        return functional.gelu(z) - z
    return 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) - z


def conjugating_norm(z: Tensor) -> Tensor:
    centred = z - z.mean(-1, keepdim=True)
    return centred / (centred.abs().square().mean(-1, keepdim=True) + 0.1).sqrt() - z


@pytest.mark.parametrize("options", [{}, {"gelu": "tanh"}, {"qk_norm": True, "final_norm": True}, {"damping": 0.0}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_blocks_are_analytic_at_random_and_at_relaxed_states(options: dict[str, object], dtype: torch.dtype) -> None:
    system = bound(gain=1.0, **options)
    system.block.to(dtype)
    system = system.block.bind(system.tokens, system.targets)
    z, generator = random_state(system)
    require_analytic(system, z.to(dtype), generator)
    require_analytic(system, relax(system, 100).z, generator)


@pytest.mark.parametrize("function", [torch.sin, lambda z: z**3 - z, lambda z: torch.exp(-(z**2)), lambda z: -2 * z])
def test_analytic_functions_pass(function: Callable[[Tensor], Tensor]) -> None:
    system = ode(function)
    require_analytic(system, *random_state(system))


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (ode(erf_here_tanh_there), "the force .* to be the same at a real state .* differ by .*e-0"),
        (ode(conjugating_norm), "the force .* breaks the Cauchy-Riemann equations"),
        (ode(lambda z: -z.abs() - z), "to be the same at a real state|breaks the Cauchy-Riemann"),
        (ode(lambda z: -z + 1e-3 * z.conj()), "3 of 3 samples it breaks the Cauchy-Riemann equations by up to 2.0e-03"),
        (ode(lambda z: torch.complex(z.real.sin(), z.imag) if z.is_complex() else z.sin()), "breaks the Cauchy"),
        (ode(torch.relu), "cannot be computed there"),
        (from_map(lambda z: functional.softplus(z) / 2, torch.ones(3, 4).double()), "cannot be computed there"),
        (ode(lambda z: -z, lambda z: (z.abs() ** 2).sum(-1)), "the loss .* breaks the Cauchy-Riemann"),
        (ode(lambda z: -z, lambda z: (z.real**2).sum(-1)), "the loss .* breaks the Cauchy-Riemann"),
        (ode(lambda z: -z, lambda z: functional.smooth_l1_loss(z, z * 0, reduction="none").sum(-1)), "the loss"),
    ],
)
def test_what_is_not_continued_is_refused(system: System, message: str) -> None:
    with pytest.raises(DyneqError, match=message) as refusal:
        require_analytic(system, *random_state(system))
    assert "use real nudges (holo2 or aep)" in str(refusal.value)


def test_a_difference_between_the_forms_of_gelu_is_seen_in_single_precision() -> None:
    system = from_ode(erf_here_tanh_there, torch.ones(3, 400), loss=lambda z: (z**2).sum(-1))
    z = torch.randn(3, 400, generator=torch.Generator().manual_seed(0))
    with pytest.raises(DyneqError, match="one form of GELU here and another there"):
        require_analytic(system, z, torch.Generator().manual_seed(0))


def test_samples_that_diverged_are_passed_over() -> None:
    system = bound(samples=3)
    z, generator = random_state(system)
    z[1] = math.inf
    require_analytic(system, z, generator)
    z[:] = math.nan
    require_analytic(system, z, generator)
