"""Frobenius norms and ratios of operators known only through products, from random vectors, with error bars.

For a random vector v of independent signs, E norm(B v)^2 = norm_F(B)^2 (Hutchinson, Commun. Stat. Simul. 18, 1989). The
vectors give independent values, so their scatter is the error bar.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.linalg.operator import LinearOperator

#: Fewer values than this say too little of their own scatter.
FEWEST = 4


@dataclass(frozen=True)
class Estimate:
    """A quantity estimated from random vectors.

    Attributes:
        value: `[batch]`.
        error: One standard error `[batch]`.
    """

    value: NDArray[np.float64]
    error: NDArray[np.float64]


@dataclass(frozen=True)
class Probes:
    """What products with random vectors gave, each `[batch, vectors]`; squares are relative to `scale` squared.

    Attributes:
        forward: norm(A v)^2.
        backward: norm(A^T v)^2.
        difference: norm(A v - A^T v)^2.
        scale: `[batch]`, by which the products were divided, so that no square overflows.
    """

    forward: NDArray[np.float64]
    backward: NDArray[np.float64]
    difference: NDArray[np.float64]
    scale: NDArray[np.float64]

    def frobenius(self) -> Estimate:
        """Return norm_F(A), from products with A and with A^T."""
        found = jackknife(_root, 0.5 * (self.forward + self.backward))
        return Estimate(found.value * self.scale, found.error * self.scale)

    def antisymmetric_share(self) -> Estimate:
        """Return norm_F((A - A^T)/2) / norm_F(A), between 0 and 1; 0 for the zero operator.

        The denominator is norm_F(S)^2 + norm_F(K)^2 of the two parts, from the same vectors as the numerator.
        """
        return jackknife(_ratio_root, 0.25 * self.difference, 0.5 * (self.forward + self.backward))

    def asymmetry(self) -> Estimate:
        """Return the mean of norm(A v - A^T v) / norm(A v) over the vectors.

        It is 2 for every skew operator, which is normal, about 1.43 for a Gaussian random matrix, and 0 for a symmetric
        one: it is no measure of non-normality. NaN where a product vanishes.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.sqrt(self.difference / self.forward)
        return jackknife(_mean, np.where(np.isfinite(ratio), ratio, np.nan))


def random_products(
    op: LinearOperator, vectors: int, *, generator: torch.Generator, minus: LinearOperator | None = None
) -> Probes:
    """Apply A, or A - D, and its transpose to random vectors of signs.

    Args:
        op: A, which must have a transposed product.
        vectors: How many, at least :data:`FEWEST`.
        generator: Source of the vectors.
        minus: D, on the same vectors seen as its own batch (for instance the token-diagonal blocks of A): its batch
            times its dimension is that of A.

    Raises:
        ValueError: If there are too few vectors.
        ArithmeticError: If a product is not finite.
    """
    if vectors < FEWEST:
        raise ValueError(f"An error bar needs at least {FEWEST} random vectors, got {vectors}.")
    pairs = []
    for _ in range(vectors):
        signs = torch.randint(0, 2, (op.batch, op.dim), generator=generator)
        v = (2 * signs - 1).to(op.device, op.dtype)
        forward, backward = op.matvec(v), op.rmatvec(v)
        if minus is not None:
            own = v.reshape(minus.batch, minus.dim)
            forward = forward - minus.matvec(own).reshape(v.shape)
            backward = backward - minus.rmatvec(own).reshape(v.shape)
        pairs.append(_squares(forward.double(), backward.double()))
    sizes = torch.stack([size for size, _ in pairs], 1)
    squares = torch.stack([square for _, square in pairs], 2)
    if not bool(torch.isfinite(sizes).all()):
        bad = sorted({int(i) for i in (~torch.isfinite(sizes)).any(1).nonzero()})
        raise ArithmeticError(f"The products of batch elements {bad[:8]} are not finite; leave them out.")
    scale = sizes.amax(1)
    squares = squares * (sizes / torch.where(scale > 0, scale, 1.0)[:, None]).square()
    first, second, third = (x.cpu().numpy() for x in squares)
    return Probes(first, second, third, scale.cpu().numpy())


def _squares(forward: Tensor, backward: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest entry of both products, and the three squares relative to its square, `[3, batch]`."""
    size = torch.maximum(forward.abs().amax(1), backward.abs().amax(1))
    unit = torch.where(size > 0, size, 1.0)[:, None]
    forward, backward = forward / unit, backward / unit
    return size, torch.stack([x.square().sum(1) for x in (forward, backward, forward - backward)])


def jackknife(function: Callable[..., NDArray[np.float64]], *values: NDArray[np.float64]) -> Estimate:
    """Return a function of the means of values and its standard error by leaving out one at a time.

    The value is the function of the plain means: of a function that is not linear its bias is of the order of the
    squared error.

    Args:
        function: Of as many arrays as there are values, elementwise.
        values: Each `[batch, vectors]`, belonging together along `vectors`.

    Returns:
        The estimate; NaN where a value is.
    """
    count = values[0].shape[1]
    means = [v.mean(axis=1) for v in values]
    left_out = function(*((v.sum(axis=1, keepdims=True) - v) / (count - 1) for v in values))
    error = np.sqrt((count - 1) / count * np.square(left_out - left_out.mean(axis=1, keepdims=True)).sum(axis=1))
    return Estimate(function(*means), error)


def _mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x


def _root(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.maximum(x, 0.0)))


def _ratio_root(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0))
