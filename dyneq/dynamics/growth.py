"""Frames of tangent vectors, and how they grow: what all exponents are read from."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.averages import Averages, Plan
from dyneq.errors import UsageError
from dyneq.linalg.graded import GradedProduct


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
        dim: Dimension of the tangent vectors.
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
    dim: int

    @property
    def drift(self) -> Tensor:
        """How far the values are from what half the horizon gave, absolute, ``[sample, k]``.

        What fades as 1/t (directions that are not aligned yet, a transient of the trajectory) is still missing by as
        much as this, and shows in no scatter of batches.
        """
        half = int((self.history_steps - self.steps / 2).abs().argmin())
        before = self.history[half]
        return torch.where(before == self.values, 0.0, (self.values - before).abs())

    @property
    def margin(self) -> Tensor:
        """Within how much of 0 a value cannot be told from 0, nats per step, ``[sample, k]``.

        The largest of three standard errors, twice the drift, and (1 + ln(dim)/2) over the steps averaged: a random
        direction has a share 1/sqrt(dim) of the leading one, so that growth by less than e sqrt(dim) shows nothing.
        """
        least = (1 + math.log(self.dim) / 2) / (self.steps - self.aligning)
        return torch.maximum(3 * self.errors, 2 * self.drift).clamp(min=least)


class Frame:
    """``k`` orthonormal tangent vectors of every sample (or token), held as ``[vector, sample, ...]`` for the products.

    Args:
        like: State ``[sample, ...]``.
        axes: How many leading axes of the state count frames: 1 for samples, 2 for samples and tokens.
        count: Number of vectors k.
        generator: Source of the vectors.

    Attributes:
        vectors: The vectors, to be moved and then orthonormalised.
        dim: Dimension of one of them.
        valid: Which samples have stayed finite, bool ``[sample]``.

    Raises:
        UsageError: If there are not that many dimensions.
    """

    def __init__(self, like: Tensor, axes: int, count: int, generator: torch.Generator) -> None:
        self._batch, self.dim = like.shape[:axes], like.shape[axes:].numel()
        if not 1 <= count <= self.dim:
            what = "the channels of a token" if axes == 2 else "the dimension of a sample's state"
            raise UsageError(f"between 1 and {self.dim} exponents exist ({what}), but {count} were asked for")
        self._shape = (count, *like.shape)
        size = (*self._batch, self.dim, count)
        drawn = torch.randn(size, generator=generator, dtype=torch.float64, device=generator.device)
        self._start = torch.linalg.qr(drawn.to(like))[0]
        self.vectors = self._unfold(self._start)
        self.valid = torch.ones(like.shape[0], dtype=torch.bool, device=like.device)

    def _unfold(self, q: Tensor) -> Tensor:
        return q.movedim(-1, 0).reshape(self._shape)

    def matrices(self) -> Tensor:
        """Return the vectors as the columns of matrices ``[sample, dim, k]`` (or ``[sample, token, dim, k]``)."""
        return self.vectors.reshape(self._shape[0], *self._batch, self.dim).movedim(0, -1)

    def orthonormalise(self, z: Tensor | None = None) -> Tensor:
        """Replace the vectors by orthonormal ones and return the triangular factors R ``[sample, k, k]``.

        A sample whose vectors or state ``z`` are not finite is marked invalid and given a frame that is.
        """
        moved = self.matrices()
        finite = torch.isfinite(moved).flatten(1).all(1)
        if z is not None:
            finite &= torch.isfinite(z).flatten(1).all(1)
        self.valid &= finite
        q, r = torch.linalg.qr(torch.where(self.valid.view(-1, *[1] * (moved.ndim - 1)), moved, self._start))
        self.vectors = self._unfold(q)
        return r


class Growth:
    """A frame that is orthonormalised as a plan says, and the averages of log abs(R_ii).

    Args:
        like: State ``[sample, ...]``.
        axes: How many leading axes of the state count frames: 1 for samples, 2 for samples and tokens.
        count: Number of vectors k.
        plan: When to orthonormalise and what to average.
        generator: Source of the vectors.
        product: Whether to keep the product of all R as well, from which singular values are had.

    Attributes:
        frame: The vectors.
        product: The product of all R, None if it is not kept.
        resolved: False where some abs(R_ii) was lost in the rounding of its column ``[sample, k]``.
        volume: Sums of log abs(R_ii) over all steps ``[sample, k]``, the aligning ones among them.
    """

    def __init__(
        self, like: Tensor, axes: int, count: int, plan: Plan, generator: torch.Generator, *, product: bool = False
    ) -> None:
        self.frame, self.plan = Frame(like, axes, count, generator), plan
        shape = (*like.shape[:axes], count)
        self._averages = Averages(plan, shape, like.device)
        self.resolved = torch.ones(shape, dtype=torch.bool, device=like.device)
        self._rounding = self.frame.dim * torch.finfo(like.dtype).eps
        self.product = GradedProduct((*shape, count), like.device) if product else None
        self.volume = torch.zeros(shape, dtype=torch.float64, device=like.device)

    def after(self, step: int, z: Tensor | None = None) -> None:
        """Orthonormalise after step number ``step``, which led to the state ``z``, if the plan says so."""
        if not self.plan.ends_interval(step):
            return
        r = self.frame.orthonormalise(z)
        diagonal = torch.diagonal(r, dim1=-2, dim2=-1).abs()
        self.resolved &= ~(diagonal < self._rounding * torch.linalg.vector_norm(r, dim=-2))
        logarithm = diagonal.double().log()
        self._averages.add(step, logarithm)
        self.volume += logarithm
        if self.product is not None:
            self.product.multiply(r)

    def finish(self, z: Tensor | None) -> Exponents:
        """Return the exponents, every sample's in descending order; ``z`` is the final state."""
        values, errors, history = self._averages.finish()
        valid = self.frame.valid.view(-1, *[1] * (values.ndim - 1))
        values, errors, history = (torch.where(valid, x, torch.nan) for x in (values, errors, history))
        order = values.argsort(dim=-1, descending=True, stable=True)
        return Exponents(
            values=values.gather(-1, order),
            errors=errors.gather(-1, order),
            history=history.gather(-1, order.expand_as(history)),
            history_steps=torch.tensor(self.plan.rows),
            steps=self.plan.steps,
            z=z,
            valid=self.frame.valid,
            resolved=self.resolved.gather(-1, order) & valid,
            aligning=self.plan.aligning,
            dim=self.frame.dim,
        )
