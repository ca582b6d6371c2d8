"""The Arnoldi factorisation that every Krylov method here is built on, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.linalg.operator import LinearOperator

# The basis is orthogonalised in blocks of this size, so that the passes after the first find it in the cache.
_CACHE_BYTES = 2**21
# Norms below this have lost digits, because their squares underflow in float64: such a vector counts as zero.
_UNDERFLOW = torch.finfo(torch.float64).tiny ** 0.5 / torch.finfo(torch.float64).eps


class Arnoldi:
    """Krylov factorisations A V = V H + v h^T of every operator of a batch, grown together, one vector a step.

    With `size` = j the first j rows of `basis` are V^T, row j is the next direction v, `projected[:, :j, :j]` is H and
    `projected[:, j, :j]` is h. After plain steps h is a multiple of the last unit vector; after a restart it is full.
    Orthogonalisation is classical Gram-Schmidt in two passes ("twice is enough": Giraud, Langou, Rozloznik and van den
    Eshof, Numer. Math. 101, 2005).

    Where A v lies in the space already spanned, the factorisation of that batch element has broken down: its space is
    invariant. It continues from a random direction orthogonal to the space with a zero subdiagonal element, which keeps
    the relation true, lets the rest of the batch go on, and finds further copies of a repeated eigenvalue. Nothing in a
    step waits for the device.

    Args:
        op: The operators.
        steps: Largest size, at most `op.dim`.
        generator: Source of start vectors and of directions after a breakdown.
        start: Start vectors `[batch, dim]`, in place of random ones.

    Attributes:
        op: The operators of the elements still in the batch.
        basis: `[batch, steps + 1, dim]`, orthonormal rows, in the operator's dtype. At size `dim` the last row is zero.
        projected: `[batch, steps + 1, steps]`, float64.
        size: Vectors in the factorisation so far.
        scale: `[batch]`, float64, the largest norm(A v) over the unit vectors v so far, a lower bound of norm(A).
        breakdowns: `[batch]`, how often an element found an invariant space.

    Raises:
        ValueError: If `steps` is not in 1..dim, or `start` has the wrong shape or a row that is zero or not finite.
    """

    def __init__(
        self, op: LinearOperator, steps: int, *, generator: torch.Generator, start: Tensor | None = None
    ) -> None:
        if not 1 <= steps <= op.dim:
            raise ValueError(f"A Krylov space of {op!r} has 1 to {op.dim} steps, got {steps}; choose fewer.")
        self.op = op
        self.steps = steps
        self.generator = generator
        self.size = 0
        self.basis = torch.zeros(op.batch, steps + 1, op.dim, dtype=op.dtype, device=op.device)
        self.projected = torch.zeros(op.batch, steps + 1, steps, dtype=torch.float64, device=op.device)
        self.scale = torch.zeros(op.batch, dtype=torch.float64, device=op.device)
        self.breakdowns = torch.zeros(op.batch, dtype=torch.int64, device=op.device)
        self._draws = 0
        self._noise = self._draw()
        if start is None:
            start = self._noise
        elif start.shape != (op.batch, op.dim) or start.dtype != op.dtype:
            raise ValueError(
                f"{op!r} takes start vectors {op.dtype} [{op.batch}, {op.dim}], got {start.dtype} {list(start.shape)}."
            )
        # Scaled by the largest entry first, or the norm of tiny or huge rows would under- or overflow.
        peak = start.abs().amax(1, keepdim=True)
        if not bool(((peak > 0) & torch.isfinite(peak)).all()):
            raise ValueError(
                "A start vector must be finite and not zero, got one that is not; leave `start` out instead."
            )
        scaled = start / peak
        self.basis[:, 0] = scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True)

    def extend(self, size: int | None = None) -> None:
        """Grow the factorisation to `size` vectors, or to its largest size.

        Args:
            size: Size to reach, `self.steps` if None.
        """
        for _ in range(self.size, self.steps if size is None else size):
            self._step()

    @torch.no_grad()
    def _step(self) -> None:
        j, dim = self.size, self.op.dim
        image = self.op.matvec(self.basis[:, j])
        length = torch.linalg.vector_norm(image, dim=1, dtype=torch.float64)
        torch.maximum(self.scale, length, out=self.scale)
        # Below this, what one pass leaves over is rounding error of the pass and has no direction of its own.
        info = torch.finfo(self.op.dtype)
        smallest = (10 * (j + 1) ** 0.5 * info.eps * length).clamp(min=max(info.tiny / info.eps, _UNDERFLOW))
        fresh = self._fresh()
        for part in self._parts(j + 1):
            self._orthogonalize(part, image, fresh, smallest)
        if j + 1 == dim:
            self.basis[:, dim] = 0
            self.projected[:, dim, j] = 0
        self.size = j + 1

    def _orthogonalize(self, part: slice, image: Tensor, fresh: Tensor, smallest: Tensor) -> None:
        j, dim = self.size, self.op.dim
        # Row vectors times V^T: the layout for which batched matrix products stream V at memory speed.
        rows = self.basis[part, : j + 1]
        vector = image[part, None, :]
        first = torch.bmm(vector, rows.mT)
        vector = torch.baddbmm(vector, first, rows, alpha=-1)
        left_over = torch.linalg.vector_norm(vector, dim=(1, 2), dtype=torch.float64)
        broken = (left_over <= smallest[part])[:, None, None]
        vector = torch.where(broken, fresh[part, None, :], vector)
        second = torch.bmm(vector, rows.mT)
        vector = torch.baddbmm(vector, second, rows, alpha=-1)
        # One pass makes a random direction orthogonal unless the space is nearly full; small problems can afford more.
        if 2 * (j + 1) >= dim:
            third = torch.bmm(vector, rows.mT)
            vector = torch.baddbmm(vector, third, rows, alpha=-1)
            second = second + third
        norm = torch.linalg.vector_norm(vector, dim=2, keepdim=True, dtype=torch.float64)
        self.basis[part, j + 1] = (vector / norm.to(vector.dtype))[:, 0]
        coefficients = first.double() + torch.where(broken, 0.0, second.double())
        self.projected[part, : j + 1, j] = coefficients[:, 0]
        self.projected[part, j + 1, j] = torch.where(broken, 0.0, norm)[:, 0, 0]
        self.breakdowns[part] += broken[:, 0, 0]

    def restart(self, rotation: Tensor, projected: Tensor, coupling: Tensor) -> None:
        """Replace V by V Q, for the orthonormal basis Q of an invariant subspace of H, and keep the next direction v.

        Args:
            rotation: Q `[batch, size, k]` with k < size, float64.
            projected: Q^T H Q `[batch, k, k]`, float64.
            coupling: Q^T h `[batch, k]`, float64.
        """
        k = rotation.shape[2]
        kept = self.combine(rotation.mT)
        follow = self.basis[:, self.size]
        if self.size == self.op.dim:
            # The space was full and had no next direction: any one outside the smaller space will do, uncoupled.
            follow = self._fresh()
            for _ in range(3):
                along = torch.bmm(follow[:, None, :], kept.mT)
                follow = torch.baddbmm(follow[:, None, :], along, kept, alpha=-1)[:, 0]
            follow = follow / torch.linalg.vector_norm(follow, dim=1, keepdim=True)
        self.basis[:, k] = follow
        self.basis[:, :k] = kept
        self.projected.zero_()
        self.projected[:, :k, :k] = projected
        self.projected[:, k, :k] = coupling
        self.size = k

    def combine(self, coefficients: Tensor) -> Tensor:
        """Return V times each row of real `coefficients` `[batch, p, size]`, as `[batch, p, dim]`."""
        rows = self.basis[:, : coefficients.shape[2]]
        return torch.bmm(coefficients.to(device=rows.device, dtype=rows.dtype), rows)

    def select(self, index: Tensor) -> None:
        """Go on with the named batch elements only.

        Args:
            index: Integer tensor of positions in the present batch.
        """
        index = index.to(self.basis.device)
        self.op = self.op.restrict(index)
        self.basis = self.basis[index]
        self.projected = self.projected[index]
        self.scale = self.scale[index]
        self.breakdowns = self.breakdowns[index]
        self._noise = self._noise[index]

    def _parts(self, rows: int) -> Iterator[slice]:
        """Split the batch so that the basis vectors of a part fit the cache; an accelerator takes it whole."""
        batch = self.basis.shape[0]
        size = rows * self.op.dim * self.basis.element_size()
        step = max(1, _CACHE_BYTES // size) if self.basis.device.type == "cpu" else batch
        # Parts of a few elements cost more in calls than they save.
        step = max(step, 16)
        return (slice(low, min(low + step, batch)) for low in range(0, batch, step))

    def _draw(self) -> Tensor:
        noise = torch.randn(
            self.op.batch, self.op.dim, generator=self.generator, dtype=self.op.dtype, device=self.generator.device
        )
        return noise.to(self.op.device)

    def _fresh(self) -> Tensor:
        """Return directions for elements that break down in this step: shifted noise, for it is rarely used."""
        self._draws += 1
        shift = self._draws % self.op.dim
        if shift == 0:
            self._noise = self._draw()
        return self._noise.roll(shift, dims=1)


def check_finite(projected: NDArray[np.float64], elements: NDArray[np.intp]) -> None:
    """Refuse projected matrices that hold NaN or infinity.

    Args:
        projected: `[some, steps + 1, steps]`.
        elements: `[some]`, the names of the batch elements.

    Raises:
        ArithmeticError: If one is not finite.
    """
    bad = elements[~np.isfinite(projected).all(axis=(1, 2))]
    if bad.size:
        raise ArithmeticError(
            f"The operator returned numbers that are not finite for batch elements {bad[:8].tolist()}; leave them out."
        )
