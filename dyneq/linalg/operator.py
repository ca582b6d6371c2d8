"""A batch of real square linear operators, known only through their products with vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float64)


class LinearOperator(ABC):
    """`batch` independent real `dim` x `dim` operators that are applied together.

    A subclass implements `_matvec` and, where it can, `_rmatvec`, both on real tensors `[batch, dim]` of the operator's
    dtype; it may override `_matmat` and `_rmatmat` where many columns at once are cheaper. Shapes, dtypes, complex
    input and the count of products are dealt with here, once. The Krylov methods apply operators under `torch.no_grad`,
    so an operator that differentiates inside a product enables gradients itself.

    Args:
        batch: Number of operators.
        dim: Number of rows, and of columns, of each.
        dtype: `torch.float32` or `torch.float64`.
        device: Where the vectors live.

    Raises:
        ValueError: If a size is not positive or the dtype is not a supported real one.
    """

    def __init__(self, *, batch: int, dim: int, dtype: torch.dtype, device: torch.device | str) -> None:
        if batch < 1 or dim < 1:
            raise ValueError(f"An operator needs at least one batch element and one dimension, got {batch=}, {dim=}.")
        if dtype not in _DTYPES:
            raise ValueError(f"An operator works in float32 or float64, got {dtype}; convert its weights first.")
        self.batch = batch
        self.dim = dim
        self.dtype = dtype
        self.device = torch.device(device)
        self._count = 0

    @abstractmethod
    def _matvec(self, v: Tensor) -> Tensor:
        """Apply A to real `v` `[batch, dim]`."""

    def _rmatvec(self, v: Tensor) -> Tensor:
        """Apply the transpose of A to real `v` `[batch, dim]`."""
        raise NotImplementedError(
            f"{type(self).__name__} has no transposed product; give it a `_rmatvec`, or ask for nothing that needs A^T."
        )

    def _matmat(self, v: Tensor) -> Tensor:
        """Apply A to the columns of real `v` `[batch, dim, k]`."""
        return torch.stack([self._matvec(column) for column in v.unbind(-1)], dim=-1)

    def _rmatmat(self, v: Tensor) -> Tensor:
        """Apply the transpose of A to the columns of real `v` `[batch, dim, k]`."""
        return torch.stack([self._rmatvec(column) for column in v.unbind(-1)], dim=-1)

    @property
    def has_rmatvec(self) -> bool:
        """Whether the transposed product is available."""
        return type(self)._rmatvec is not LinearOperator._rmatvec

    @property
    def products(self) -> int:
        """Real products with the whole batch so far, A and A^T together; `k` columns count as `k`.

        An operator made of others (a sum, a transpose, ...) reports the products of the operators it was made of.
        """
        return sum(leaf._count for leaf in self._leaves())

    def _leaves(self) -> set[LinearOperator]:
        """Return the operators whose products are counted."""
        return {self}

    def matvec(self, v: Tensor) -> Tensor:
        """Return A v for real or complex `v` `[batch, dim]`; a complex one costs two products.

        Raises:
            ValueError: If shape, dtype or device of `v` do not fit.
        """
        self._check(v, columns=False)
        return self._apply(self._matvec, v, 1)

    def rmatvec(self, v: Tensor) -> Tensor:
        """Return A^T v (the transpose, not the conjugate) for real or complex `v` `[batch, dim]`.

        Raises:
            ValueError: If shape, dtype or device of `v` do not fit.
            NotImplementedError: If the operator has no transposed product.
        """
        self._check(v, columns=False)
        self._need_rmatvec()
        return self._apply(self._rmatvec, v, 1)

    def matmat(self, v: Tensor) -> Tensor:
        """Return A V for real or complex `v` `[batch, dim, k]`.

        Raises:
            ValueError: If shape, dtype or device of `v` do not fit.
        """
        self._check(v, columns=True)
        return self._apply(self._matmat, v, v.shape[2])

    def rmatmat(self, v: Tensor) -> Tensor:
        """Return A^T V for real or complex `v` `[batch, dim, k]`.

        Raises:
            ValueError: If shape, dtype or device of `v` do not fit.
            NotImplementedError: If the operator has no transposed product.
        """
        self._check(v, columns=True)
        self._need_rmatvec()
        return self._apply(self._rmatmat, v, v.shape[2])

    def to_dense(self) -> Tensor:
        """Return the matrices `[batch, dim, dim]`, from `dim` products with the unit vectors."""
        eye = torch.eye(self.dim, dtype=self.dtype, device=self.device)
        return self.matmat(eye.expand(self.batch, -1, -1))

    def restrict(self, index: Tensor) -> LinearOperator:
        """Return the operators of the batch that the integer tensor `index` names, as an operator of their own.

        It applies the whole batch, with zeros for the rest, and so saves the work on vectors but not the product.
        """
        from dyneq.linalg.algebra import Restricted

        return Restricted(self, index)

    @property
    def T(self) -> LinearOperator:
        """The transposed operators.

        Raises:
            NotImplementedError: If the operator has no transposed product.
        """
        from dyneq.linalg.algebra import Transposed

        self._need_rmatvec()
        return Transposed(self)

    def symmetric_part(self) -> LinearOperator:
        """Return (A + A^T)/2; one application costs two products of A.

        Raises:
            NotImplementedError: If the operator has no transposed product.
        """
        return 0.5 * (self + self.T)

    def shift(self, alpha: float) -> LinearOperator:
        """Return A + alpha I."""
        from dyneq.linalg.algebra import Shifted

        return Shifted(self, alpha)

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, other: LinearOperator) -> LinearOperator: ...
    def __matmul__(self, other: Tensor | LinearOperator) -> Tensor | LinearOperator:
        from dyneq.linalg.algebra import Composed

        if isinstance(other, LinearOperator):
            return Composed(self, other)
        return self.matmat(other) if other.ndim == 3 else self.matvec(other)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        from dyneq.linalg.algebra import Sum

        return Sum(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return self + (-1.0) * other if isinstance(other, LinearOperator) else NotImplemented

    def __mul__(self, alpha: float) -> LinearOperator:
        from dyneq.linalg.algebra import Scaled

        return Scaled(self, float(alpha)) if isinstance(alpha, int | float) else NotImplemented

    def __rmul__(self, alpha: float) -> LinearOperator:
        return self * alpha

    def __neg__(self) -> LinearOperator:
        return -1.0 * self

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch={self.batch}, dim={self.dim}, dtype={self.dtype}, device={self.device})"

    def _apply(self, product: Callable[[Tensor], Tensor], v: Tensor, columns: int) -> Tensor:
        if v.is_complex():
            return torch.complex(self._apply(product, v.real, columns), self._apply(product, v.imag, columns))
        out = product(v)
        if out.shape != v.shape or out.dtype != self.dtype:
            raise ValueError(
                f"The product of {type(self).__name__} should return {tuple(v.shape)} {self.dtype}, "
                f"it returned {tuple(out.shape)} {out.dtype}; correct the product."
            )
        self._count += columns
        return out

    def _check(self, v: Tensor, *, columns: bool) -> None:
        expected = f"[{self.batch}, {self.dim}{', k' if columns else ''}]"
        if v.ndim != 2 + columns or v.shape[:2] != (self.batch, self.dim):
            raise ValueError(f"{self!r} takes a tensor {expected}, got {list(v.shape)}; reshape it to that.")
        real = v.real.dtype if v.is_complex() else v.dtype
        if real != self.dtype:
            raise ValueError(f"{self!r} takes {self.dtype} or its complex form, got {v.dtype}; convert the tensor.")
        if v.device.type != self.device.type:
            raise ValueError(f"{self!r} takes tensors on {self.device}, got one on {v.device}; move the tensor.")

    def _need_rmatvec(self) -> None:
        if not self.has_rmatvec:
            raise NotImplementedError(
                f"{self!r} has no transposed product; give it a `_rmatvec`, or ask for nothing that needs A^T."
            )


class MatrixOperator(LinearOperator):
    """The operators of explicit matrices.

    Args:
        matrix: `[batch, dim, dim]` or one `[dim, dim]`, float32 or float64.

    Raises:
        ValueError: If the matrices are not square or the dtype is not supported.
    """

    def __init__(self, matrix: Tensor) -> None:
        matrix = matrix[None] if matrix.ndim == 2 else matrix
        if matrix.ndim != 3 or matrix.shape[1] != matrix.shape[2]:
            raise ValueError(f"MatrixOperator takes square matrices [batch, dim, dim], got {list(matrix.shape)}.")
        super().__init__(batch=matrix.shape[0], dim=matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
        self.matrix = matrix

    def _matvec(self, v: Tensor) -> Tensor:
        # As row vectors: batched matrix-vector products run several times slower than vector-matrix ones on a CPU.
        return torch.bmm(v[:, None, :], self.matrix.mT)[:, 0, :]

    def _rmatvec(self, v: Tensor) -> Tensor:
        return torch.bmm(v[:, None, :], self.matrix)[:, 0, :]

    def _matmat(self, v: Tensor) -> Tensor:
        return torch.bmm(self.matrix, v)

    def _rmatmat(self, v: Tensor) -> Tensor:
        return torch.bmm(self.matrix.mT, v)

    def to_dense(self) -> Tensor:
        """Return the matrices themselves `[batch, dim, dim]`, at no cost in products."""
        return self.matrix


class CallableOperator(LinearOperator):
    """Operators given by functions on real tensors `[batch, dim]`.

    Args:
        matvec: Returns A v.
        rmatvec: Returns A^T v; without it nothing that needs the transpose is available.
        batch: Number of operators.
        dim: Number of rows, and of columns, of each.
        dtype: `torch.float32` or `torch.float64`.
        device: Where the vectors live.
    """

    def __init__(
        self,
        matvec: Callable[[Tensor], Tensor],
        rmatvec: Callable[[Tensor], Tensor] | None = None,
        *,
        batch: int,
        dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__(batch=batch, dim=dim, dtype=dtype, device=device)
        self._forward = matvec
        self._transposed = rmatvec

    @property
    def has_rmatvec(self) -> bool:
        """Whether a transposed product was given."""
        return self._transposed is not None

    def _matvec(self, v: Tensor) -> Tensor:
        return self._forward(v)

    def _rmatvec(self, v: Tensor) -> Tensor:
        return super()._rmatvec(v) if self._transposed is None else self._transposed(v)
