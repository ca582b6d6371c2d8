"""Holomorphic equilibrium propagation with the correction of the asymmetry: nudges around a complex circle.

The states z(beta) of the corrected nudged force F(z) - beta g(z) - 2 A(z*)(z - z*) are holomorphic in beta where F and
g are, and z(beta) = z* + beta J^{-T} g + ... . Cauchy's formula gives the derivative from N states on |beta| = r,
    a = -Re[(1/(N r)) sum_k e^{-2 pi i k/N} z(r e^{2 pi i k/N})],
with a bias of order r^N only (Laborieux and Zenke, arXiv:2209.00530). Since z(conj beta) = conj z(beta), only the upper
half of the circle is relaxed, and its real points in real arithmetic: N = 2 is centred real nudging.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from dyneq.dynamics.residuals import sample_norm
from dyneq.gradients.analytic import require_analytic
from dyneq.gradients.base import Mark
from dyneq.gradients.contrast import State, run_contrast
from dyneq.gradients.equilibrium import AdjointEstimate, EquilibriumEstimator
from dyneq.gradients.free import FreePhase
from dyneq.gradients.nudge import Nudge, Skew
from dyneq.gradients.nudged import PhaseParams, phase_estimate
from dyneq.systems.protocol import System

#: Aliasing above which an estimate is marked: its error is that times the condition of J as the adjoint sees it.
ALIASING = 2e-2


class HoloParams(PhaseParams):
    """Options of :class:`Holo`."""

    n: int = Field(4, ge=2, description="nudges N on the circle; 2 is centred real nudging")
    r: float = Field(0.05, gt=0, description="radius of the circle, on the loss summed over samples and tokens")
    t2: int = Field(80, gt=0, description="steps of the nudged phase")


class Holo(EquilibriumEstimator):
    """N complex nudges with the correction frozen at z*: exact at a root up to O(r^N).

    For N > 2 the system's force and loss must accept complex states and be holomorphic there; what is not is refused.

    Diagnostics: those of :class:`EquilibriumEstimator` and of :func:`dyneq.gradients.nudged.phase_estimate`, the worst
    over the nudges; ``aliasing``, norm(J^T a + g)/norm(g) as far as it comes from harmonics of z(beta) that N nudges
    cannot tell from the first, whether the phase has settled or not. That and not linearity is what finite nudges need,
    so it decides whether the states count as outside the window. A complex force is charged as four real ones; the
    check of the continuation is not charged.
    """

    name = "holo"
    main = "n"
    Params = HoloParams
    params: HoloParams

    def adjoint(self, system: System, free: FreePhase) -> AdjointEstimate:
        """Return the estimate -J^{-T} g.

        Raises:
            DyneqError: If N > 2 and the system has no holomorphic continuation.
        """
        n, r, z, eps = self.params.n, self.params.r, free.z, system.eps
        if n > 2:
            require_analytic(system, z, torch.Generator().manual_seed(0))
        nudge, correction = Nudge(system, self.params.head_clamp), Skew(system, z)
        circle = Circle(n)
        betas = [r * p for p in circle.points]
        dtype = torch.complex64 if z.dtype == torch.float32 else torch.complex128
        start = tuple(z.to(dtype) if isinstance(p, complex) else z for p in circle.points)

        def step(state: State) -> State:
            moved = []
            for beta, s in zip(betas, state, strict=True):
                f = system.force(s) - beta * nudge(s) + correction(s - z)
                moved.append(torch.add(s, f, alpha=eps))
            return tuple(moved)

        def read(state: State) -> Tensor:
            return circle.harmonic(_deviations(state, z), 1).mul_(-nudge.scale / r)

        found = run_contrast(step, read, start, t2=self.params.t2, eps=eps, adaptive=self.params.adaptive)
        deviations = _deviations(found.state, z)
        # a product of complex numbers is four of real ones, a correction of a complex state two of a real one
        each = [4 + 2 * Skew.PRODUCTS if d.is_complex() else 1 + Skew.PRODUCTS for d in deviations]
        estimate = phase_estimate(system, z, found, deviations[0], nudge, self.params.t2 * sum(each))
        bent, rest = _nonlinear(system, z, deviations, betas, nudge)
        aliasing = sample_norm(circle.harmonic(rest, 1)) / (r * sample_norm(nudge(z)))
        diagnostics = {
            "nonlinearity": bent,
            "displacement": torch.stack([sample_norm(d) for d in deviations]).amax(0),
            "aliasing": aliasing,
        }
        # states outside the domain of the continuation have no force, which leaves all of this NaN
        marks = {Mark.OUTSIDE_LINEAR_RESPONSE: ~(aliasing <= ALIASING) & ~found.diverged}
        diagnostics, marks = {**estimate.diagnostics, **diagnostics}, {**estimate.marks, **marks}
        cost = estimate.cost + sum(6 if d.is_complex() else 2 for d in deviations)
        return AdjointEstimate(estimate.a, estimate.at, diagnostics, marks, cost)


@torch.no_grad()
def _nonlinear(
    system: System, z: Tensor, deviations: State, betas: list[float | complex], nudge: Nudge
) -> tuple[Tensor, State]:
    """Return the share of the force's response that is not linear, the worst over nudges ``[sample]``, and the rest.

    The rest of a nudge is F(z + d) - F(z) - J d - beta (g(z + d) - g(z)), what acts on its state beside the linear
    response. An exact z(beta) has no first harmonic of it, so the first of N samples is aliased: it is r (J^T a + g).
    """
    product, force, g = system.linearize(z)[0], system.force(z), nudge(z)
    bent, rests = torch.zeros_like(sample_norm(z)), []
    for beta, d in zip(betas, deviations, strict=True):
        if d.is_complex():
            linear = torch.complex(product(d.real.contiguous()), product(d.imag.contiguous()))
        else:
            linear = product(d)
        rest = system.force(z + d) - force - linear
        bent = torch.maximum(bent, sample_norm(rest) / sample_norm(linear))  # NaN wins
        rests.append(rest - beta * (nudge(z + d) - g))
    return bent, tuple(rests)


class Circle:
    """The N-th roots of unity in the closed upper half plane, for functions f with f(conj x) = conj f(x).

    Attributes:
        points: The roots; plain floats where they are real.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        angles = [2 * math.pi * k / n for k in range(1, (n + 1) // 2)]
        self.points: list[float | complex] = [1.0]
        self.points += [-1.0] if n % 2 == 0 else []
        self.points += [complex(math.cos(t), math.sin(t)) for t in angles]

    def harmonic(self, values: State, m: int) -> Tensor:
        """Return the m-th Fourier coefficient of ``values`` at :attr:`points`; real by the symmetry."""
        total = torch.zeros_like(values[0])
        for point, value in zip(self.points, values, strict=True):
            if isinstance(point, complex):
                weight = point.conjugate() ** m  # and the conjugate point adds the conjugate
                total = total + 2 * (weight.real * value.real - weight.imag * value.imag)
            else:
                total = total + point**m * value
        return total / self.n


def _deviations(state: State, z: Tensor) -> State:
    return tuple(s - z for s in state)
