"""Largest transient growth max over n of norm(M^n) of a map M, matrix-free: a lower bound and the vector showing it.

Non-normal maps amplify some vectors before they contract them; how much, and after how many steps, no eigenvalue tells
(Trefethen and Embree, Spectra and Pseudospectra, 2005, chapters 14 to 16).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.linalg.lanczos import extremal_symmetric
from dyneq.linalg.operator import LinearOperator

#: A sweep that raises no sample's growth by more than this share ends the ascent.
SETTLED = 1e-3
#: Growth that rounding alone can show, in units of the last place.
NOISE = 64
#: Elements whose n lies between two of these are treated together.
LENGTHS = (16, 48, 96)
#: How many steps beyond twice the best n a sweep looks.
MARGIN = 16
#: Dimension of the Krylov spaces that end the search.
KRYLOV = 5
#: How often the neighbours of n are tried, and by what share one must be better to go on.
CLIMBS, CLIMBED = 4, 1e-9
#: Relative tolerance of the squared singular value that ends the search.
TOLERANCE = 1e-6


class Power(LinearOperator):
    """M^n with an exponent of its own for every element of the batch; M = A, or I + eps A.

    Args:
        base: A.
        steps: The exponents, integers `[batch]`, at least 0.
        eps: Step size; None for M = A.
    """

    def __init__(self, base: LinearOperator, steps: Tensor, eps: float | None = None) -> None:
        super().__init__(batch=base.batch, dim=base.dim, dtype=base.dtype, device=base.device)
        self.base, self.steps, self.eps = base, steps.to(base.device), eps
        self._most = int(steps.max())

    def _leaves(self) -> set[LinearOperator]:
        return self.base._leaves()

    def step(self, v: Tensor, *, transposed: bool = False) -> Tensor:
        """Return M v, or M^T v, for `v` `[batch, dim]`."""
        product = self.base.rmatvec(v) if transposed else self.base.matvec(v)
        return product if self.eps is None else torch.add(v, product, alpha=self.eps)

    def _run(self, v: Tensor, transposed: bool) -> Tensor:
        for n in range(self._most):
            v = torch.where((n < self.steps)[:, None], self.step(v, transposed=transposed), v)
        return v

    def _matvec(self, v: Tensor) -> Tensor:
        return self._run(v, False)

    def _rmatvec(self, v: Tensor) -> Tensor:
        return self._run(v, True)


@dataclass(frozen=True)
class Growth:
    """The largest transient growth found, one an element of the batch.

    Attributes:
        value: norm(M^n v) of a unit vector v `[batch]`, at least 1 (n = 0): a lower bound of the largest
            norm(M^n) over all n, whatever the search missed.
        steps: The n `[batch]`.
        residual: norm((M^n)^T M^n v - value^2 v) / (2 value) `[batch]`: a singular value of M^n lies within about this
            of the value. That it is the largest one, of the best n, is not certified. 0 where n = 0; NaN where the n
            changed last.
        at_horizon: Whether n is the last one looked at, so that the growth may go on.
        curve: norm(M^n v) of that v for n = 0 to the horizon `[batch, horizon + 1]`, a lower bound of norm(M^n); NaN
            beyond the last n looked at.
        products: Products with A and its transpose; those with a part of the batch count by their share of it.
    """

    value: NDArray[np.float64]
    steps: NDArray[np.int64]
    residual: NDArray[np.float64]
    at_horizon: NDArray[np.bool_]
    curve: NDArray[np.float64]
    products: int


@torch.no_grad()
def transient_growth(
    op: LinearOperator,
    horizon: int,
    *,
    generator: torch.Generator,
    eps: float | None = None,
    starts: Sequence[int] = (1, 8, 32),
    sweeps: int = 4,
    part: Callable[[Tensor], LinearOperator] | None = None,
) -> Growth:
    """Search the largest growth over n of norm(M^n), M = A or I + eps A.

    Ascent in turns: run a vector forward and take the n at which it is largest; apply M^T as many times, which is a
    step of the power method on (M^n)^T M^n and never lowers the growth at that n; repeat. It begins with the best of a
    few vectors, each made by two such steps with an n of its own, and Lanczos on (M^n)^T M^n, at the n found and at its
    neighbours while they are better, ends it.    Every number is the growth of an explicit vector.

    Args:
        op: A, which must have a transposed product.
        horizon: Largest n.
        generator: Source of random starts.
        eps: Step size; None for M = A.
        starts: The n that the first vectors are made with; those beyond the horizon are left out.
        sweeps: Most turns.
        part: Returns A for some elements of the batch, where that is cheaper than ``op.restrict``: elements whose
            growth takes about as long are treated together.

    Raises:
        ValueError: If the horizon is less than 1.
        ArithmeticError: If a power is not finite.
    """
    if horizon < 1:
        raise ValueError(f"Growth needs a horizon of at least one step, got {horizon}.")
    before = op.products
    best: _Best | None = None
    for n in sorted({min(n, horizon) for n in starts}):
        noise = torch.randn(op.batch, op.dim, generator=generator, dtype=torch.float64).to(op.device, op.dtype)
        power, v = Power(op, torch.full((op.batch,), n), eps), _unit(noise)
        for _ in range(2):
            v = _unit(power.rmatvec(_unit(power.matvec(v))), v)
        found = _forward(power, v, min(horizon, 2 * n + MARGIN))
        best = found if best is None else best.or_better(found)
    assert best is not None
    work = float(op.products - before)
    value, residual = np.ones(op.batch), np.zeros(op.batch)
    steps, curve = np.zeros(op.batch, dtype=np.int64), np.full((op.batch, horizon + 1), np.nan)
    curve[:, 0] = 1.0
    for index in _alike(best.steps):
        whole = len(index) == op.batch
        some = op if whole else (op.restrict if part is None else part)(index)
        counted = some.products
        last, off = _improve(some, best if whole else best.take(index), horizon, eps, sweeps)
        at = index.numpy()
        value[at], steps[at], residual[at] = last.value.cpu().numpy(), last.steps.cpu().numpy(), off.cpu().numpy()
        curve[at, : last.curve.shape[1]] = last.curve.cpu().numpy()
        work += (some.products - counted) * (1 if part is None else len(index) / op.batch)
    return Growth(value, steps, residual, steps == horizon, curve, int(np.ceil(work)))


def _alike(steps: Tensor) -> list[Tensor]:
    """Return the elements of the batch in groups whose growth takes about the same number of steps."""
    classes = torch.bucketize(steps.cpu(), torch.tensor(LENGTHS))
    groups = [(classes == c).nonzero().flatten() for c in range(len(LENGTHS) + 1)]
    return [index for index in groups if len(index)]


def _improve(op: LinearOperator, best: _Best, horizon: int, eps: float | None, sweeps: int) -> tuple[_Best, Tensor]:
    """Return better vectors by sweeps forward and back and by Lanczos, and how far each is from a singular vector."""

    def forward(v: Tensor) -> _Best:
        ahead = min(horizon, 2 * int(best.steps.max()) + MARGIN)
        return _forward(Power(op, best.steps, eps), v, ahead)

    for _ in range(sweeps):
        v = _unit(Power(op, best.steps, eps).rmatvec(_unit(best.peak)), best.start)
        found = forward(v)
        settled = not bool((found.value > (1 + SETTLED) * best.value).any())
        best = best.or_better(found)
        if settled:
            break
    # from n = 0, Lanczos at n = 1 tells: where norm(M) <= 1 nothing ever grows
    unknown = torch.full_like(best.value, torch.nan)
    residual = unknown
    for _ in range(CLIMBS):
        climbed = False
        # Lanczos at the n found, where that has not been done, and at its neighbours
        for offset in (0, 1, -1) if bool(residual.isnan().any()) else (1, -1):
            steps = (best.steps + offset).clamp(1, horizon)
            v, off = _polish(op, best.start, steps, eps)
            found = forward(v)
            better = found.value >= best.value
            climbed |= bool((better & (found.steps != best.steps) & (found.value > (1 + CLIMBED) * best.value)).any())
            # of another n than Lanczos was run for it certifies nothing
            residual = torch.where(better, torch.where(found.steps == steps, off, unknown), residual)
            best = best.or_better(found)
        if not climbed:
            break
    last = forward(best.start)
    residual = torch.where(last.steps == best.steps, residual, unknown)
    return last, torch.where(last.steps == 0, 0.0, residual)


@dataclass(frozen=True)
class _Best:
    """The best vectors so far: growth, its n, the unit vector it starts from, M^n of it, and the curve over n."""

    value: Tensor
    steps: Tensor
    start: Tensor
    peak: Tensor
    curve: Tensor

    def take(self, index: Tensor) -> _Best:
        """Return some elements of the batch."""
        at = index.to(self.value.device)
        return _Best(self.value[at], self.steps[at], self.start[at], self.peak[at], self.curve[at])

    def or_better(self, other: _Best) -> _Best:
        """Return whichever is larger, element by element; the curve is the other's."""
        better = other.value >= self.value
        wide = better[:, None]
        return _Best(
            torch.where(better, other.value, self.value),
            torch.where(better, other.steps, self.steps),
            torch.where(wide, other.start, self.start),
            torch.where(wide, other.peak, self.peak),
            other.curve,
        )


def _unit(v: Tensor, otherwise: Tensor | None = None) -> Tensor:
    """Return v as unit vectors; where it is 0, another one."""
    size = torch.linalg.vector_norm(v, dim=1, keepdim=True)
    unit = v / torch.where(size > 0, size, 1.0)
    return unit if otherwise is None else torch.where(size > 0, unit, otherwise)


def _forward(power: Power, v: Tensor, horizon: int) -> _Best:
    """Return the growth of unit `v` over n = 0 to the horizon, where it is largest."""
    start = peak = v
    norms = [torch.ones(v.shape[0], dtype=torch.float64, device=v.device)]
    above = 1 + NOISE * torch.finfo(v.dtype).eps  # a map that keeps lengths grows by rounding alone
    largest, at = norms[0], torch.zeros(v.shape[0], dtype=torch.int64, device=v.device)
    for n in range(1, horizon + 1):
        v = power.step(v)
        norm = torch.linalg.vector_norm(v, dim=1).double()
        better = norm > above * largest
        largest, at = torch.where(better, norm, largest), torch.where(better, n, at)
        peak = torch.where(better[:, None], v, peak)
        norms.append(norm)
    curve = torch.stack(norms, 1)
    if not bool(torch.isfinite(curve).all()):
        bad = sorted({int(i) for i in (~torch.isfinite(curve)).any(1).nonzero()})
        raise ArithmeticError(f"Powers of batch elements {bad[:8]} are not finite; leave them out or look less far.")
    return _Best(largest, at, start, peak, curve)


def _polish(op: LinearOperator, start: Tensor, steps: Tensor, eps: float | None) -> tuple[Tensor, Tensor]:
    """Return the leading right singular vectors of M^n from vectors near them, and how far each is from being one."""
    power = Power(op, steps, eps)
    pair = extremal_symmetric(
        power.T @ power,
        "largest",
        generator=torch.Generator().manual_seed(0),  # drawn from only if a Krylov space ends early
        subspace=min(KRYLOV, op.dim),
        tol=max(TOLERANCE, 64 * torch.finfo(op.dtype).eps),
        max_restarts=2,
        start=start,
    )
    value = torch.as_tensor(pair.values[:, 0]).clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    residual = torch.as_tensor(pair.residual[:, 0]) / (2 * value)
    return pair.vectors[:, 0].to(start), residual.to(start.device)
