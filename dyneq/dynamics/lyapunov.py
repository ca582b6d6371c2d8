"""Leading Lyapunov exponents of a relaxation by QR, with error bars and a convergence history.

The method is that of Benettin, Galgani, Giorgilli and Strelcyn (1980, Meccanica 15, 9), as Shimada and Nagashima (1979)
have it: tangent vectors are carried along the trajectory and orthonormalised, and the i-th exponent is the mean of
log abs(R_ii). Of causal blocks a product of the tangent map is block lower triangular over tokens, so the exponents of
the whole are those of the products of its token-diagonal blocks, all tokens together.

These are estimates of ASYMPTOTIC exponents, one (sample, or token) each. The finite-time exponents of a whole product,
logarithms of its singular values, are another thing: see :mod:`dyneq.dynamics.ftle`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.averages import Averages, Plan
from dyneq.dynamics.stepping import Scheme
from dyneq.dynamics.tangent import TangentStepper
from dyneq.errors import UsageError
from dyneq.systems.protocol import System


@dataclass(frozen=True)
class Exponents:
    """Leading exponents; with ``[sample, token, k]`` in the place of ``[sample, k]`` where they are per token.

    Attributes:
        values: Exponents ``[sample, k]``, nats per STEP, largest first, float64: means of log abs(R_ii) over the steps
            after the first fifth, which is left to the tangent vectors to align. -inf where a direction is mapped
            to exactly 0; NaN where the sample did not stay finite.
        errors: Standard errors ``[sample, k]`` by batch means (see :class:`dyneq.dynamics.averages.Averages`); NaN
            where the value is not finite.
        history: ``[row, sample, k]``, at most 256 rows: the values as they would be had the horizon ended there.
        history_steps: Steps at which it would have ended, int64 ``[row]``.
        steps: Steps taken, the aligning ones among them.
        z: Final state; None for a product of given matrices.
        valid: Whether the sample stayed finite, bool ``[sample]``.
        resolved: False where some abs(R_ii) was lost in the rounding of its column, bool ``[sample, k]``: the value is
            then an upper bound at best. Orthonormalise more often.
        aligning: Steps at the beginning that no value is taken from.
    """

    values: Tensor
    errors: Tensor
    history: Tensor
    history_steps: Tensor
    steps: int
    z: Tensor | None
    valid: Tensor
    resolved: Tensor
    aligning: int


@torch.no_grad()
def lyapunov_exponents(
    system: System,
    z: Tensor,
    steps: int,
    count: int,
    *,
    generator: torch.Generator,
    warmup: int = 0,
    qr_every: int = 1,
    batches: int = 20,
    scheme: Scheme = "euler",
    step: float | None = None,
) -> Exponents:
    """Return the leading exponents of every sample, of the whole state.

    Costs ``steps * (1 + count)`` forces or products by Euler's scheme, four times that by Runge-Kutta's.

    Args:
        system: What is stepped.
        z: State the horizon begins at ``[sample, ...]``.
        steps: Length of the horizon in steps.
        count: How many exponents k; at most the dimension of a sample's state.
        generator: Source of the first tangent vectors.
        warmup: Steps taken before the horizon begins.
        qr_every: Steps between orthonormalisations.
        batches: Number of batches of the error bars.
        scheme: Euler's step (the relaxation; the map, for a map) or Runge-Kutta's.
        step: Step size, time units; the system's eps if None.

    Raises:
        UsageError: If a number does not fit the state or the horizon.
    """
    stepper = TangentStepper(system, scheme, step)
    return _along(stepper, z, steps, count, generator, warmup, Plan.of(steps, qr_every, batches))


@torch.no_grad()
def token_exponents(
    system: System,
    z: Tensor,
    steps: int,
    count: int,
    *,
    generator: torch.Generator,
    warmup: int = 0,
    qr_every: int = 1,
    batches: int = 20,
    scheme: Scheme = "euler",
    step: float | None = None,
) -> Exponents:
    """Return the leading exponents of every token ``[sample, token, k]``, from products of token-diagonal maps.

    The union over tokens is the list of the whole sample's asymptotic exponents. Arguments, cost and errors as in
    :func:`lyapunov_exponents`, ``count`` being at most the number of channels.

    Raises:
        DyneqError: If the system is not causal.
        UsageError: If a number does not fit the state or the horizon.
    """
    stepper = TangentStepper(system, scheme, step, tokens_only=True)
    return _along(stepper, z, steps, count, generator, warmup, Plan.of(steps, qr_every, batches))


@torch.no_grad()
def product_exponents(
    matrices: Tensor, count: int, *, generator: torch.Generator, qr_every: int = 1, batches: int = 20
) -> Exponents:
    """Return the leading exponents of products of given matrices, nats per factor.

    Args:
        matrices: Factors ``[step, sample, n, n]``, the first applied first.
        count: How many exponents, at most n.
        generator: Source of the first tangent vectors.
        qr_every: Factors between orthonormalisations.
        batches: Number of batches of the error bars.

    Raises:
        UsageError: If a number does not fit the matrices.
    """
    steps, samples, n = matrices.shape[:3]
    plan = Plan.of(steps, qr_every, batches)
    frame = _Frame(matrices.new_empty(samples, n), 1, count, plan, generator)
    for i, matrix in enumerate(matrices):
        # frames are held as [vector, sample, n]
        frame.vectors = torch.einsum("sij,vsj->vsi", matrix, frame.vectors)
        frame.after(i + 1)
    return frame.finish(None)


def _along(
    stepper: TangentStepper, z: Tensor, steps: int, count: int, generator: torch.Generator, warmup: int, plan: Plan
) -> Exponents:
    if warmup < 0:
        raise UsageError(f"steps before the horizon cannot be negative, but {warmup} were asked for; use 0 or more")
    frame = _Frame(z, 2 if stepper.tokens_only else 1, count, plan, generator)
    z = z.detach()
    for _ in range(warmup):
        z = stepper.advance(z)
    for i in range(steps):
        z, frame.vectors = stepper.advance_with(z, frame.vectors)
        frame.after(i + 1, z)
    return frame.finish(z)


class _Frame:
    """Tangent vectors ``[vector, sample, ...]`` that are orthonormalised as a plan says, and the sums of their growth.

    Args:
        like: State ``[sample, ...]``.
        axes: How many leading axes of the state count products: 1 for samples, 2 for samples and tokens.
        count: Number of vectors.
        plan: When to orthonormalise and what to average.
        generator: Source of the vectors.
    """

    def __init__(self, like: Tensor, axes: int, count: int, plan: Plan, generator: torch.Generator) -> None:
        batch, inner = like.shape[:axes], like.shape[axes:]
        self.dim = inner.numel()
        if not 1 <= count <= self.dim:
            what = "the channels of a token" if axes == 2 else "the dimension of a sample's state"
            raise UsageError(f"between 1 and {self.dim} exponents exist ({what}), but {count} were asked for")
        self.plan, self._batch, self._shape = plan, batch, (count, *like.shape)
        drawn = torch.randn(*batch, self.dim, count, generator=generator, dtype=torch.float64, device=generator.device)
        self._start = torch.linalg.qr(drawn.to(like))[0]
        self.vectors = self._unfold(self._start)
        self.averages = Averages(plan, (*batch, count), like.device)
        self.valid = torch.ones(like.shape[0], dtype=torch.bool, device=like.device)
        self.resolved = torch.ones(*batch, count, dtype=torch.bool, device=like.device)
        self._rounding = self.dim * torch.finfo(like.dtype).eps

    def _unfold(self, q: Tensor) -> Tensor:
        return q.movedim(-1, 0).reshape(self._shape)

    def after(self, step: int, z: Tensor | None = None) -> None:
        """Orthonormalise after step number ``step`` if the plan says so."""
        if not self.plan.ends_interval(step):
            return
        moved = self.vectors.reshape(self._shape[0], *self._batch, self.dim).movedim(0, -1)
        finite = torch.isfinite(moved).flatten(1).all(1)
        if z is not None:
            finite &= torch.isfinite(z).flatten(1).all(1)
        self.valid &= finite
        ok = self.valid.view(-1, *[1] * (moved.ndim - 1))
        # a sample that is lost keeps a frame that is at least finite, and is left out in the end
        q, r = torch.linalg.qr(torch.where(ok, moved, self._start))
        diagonal = torch.diagonal(r, dim1=-2, dim2=-1).abs()
        self.resolved &= ~(diagonal < self._rounding * torch.linalg.vector_norm(r, dim=-2))
        self.averages.add(step, diagonal.double().log())
        self.vectors = self._unfold(q)

    def finish(self, z: Tensor | None) -> Exponents:
        """Return what was found, every sample's values in descending order."""
        values, errors, rows = self.averages.finish()
        valid = self.valid.view(-1, *[1] * (values.ndim - 1))
        values, errors = torch.where(valid, values, torch.nan), torch.where(valid, errors, torch.nan)
        order = values.argsort(dim=-1, descending=True, stable=True)
        history = torch.where(valid, rows, torch.nan)
        return Exponents(
            values=values.gather(-1, order),
            errors=errors.gather(-1, order),
            history=history.gather(-1, order.expand_as(history)),
            history_steps=torch.tensor(self.plan.rows),
            steps=self.plan.steps,
            z=z,
            valid=self.valid,
            resolved=self.resolved.gather(-1, order) & valid,
            aligning=self.plan.aligning,
        )
