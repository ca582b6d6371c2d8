"""Operators made of other operators: sums, multiples, shifts, compositions, transposes, parts of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from dyneq.linalg.operator import LinearOperator


class _Derived(LinearOperator):
    """An operator that reaches its parts through their public products, so that only they count."""

    def __init__(self, *parts: LinearOperator) -> None:
        first = parts[0]
        for part in parts[1:]:
            kind = (part.batch, part.dim, part.dtype, part.device.type)
            if kind != (first.batch, first.dim, first.dtype, first.device.type):
                raise ValueError(
                    f"Operators to combine must agree in batch, dim, dtype and device: {first!r} against {part!r}."
                )
        super().__init__(batch=first.batch, dim=first.dim, dtype=first.dtype, device=first.device)
        self._parts = parts

    @property
    def has_rmatvec(self) -> bool:
        """Whether every part has a transposed product."""
        return all(part.has_rmatvec for part in self._parts)

    def _leaves(self) -> set[LinearOperator]:
        return set().union(*(part._leaves() for part in self._parts))


class Sum(_Derived):
    """A + B.

    Args:
        left: A.
        right: B.
    """

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        super().__init__(left, right)

    def _matvec(self, v: Tensor) -> Tensor:
        return self._parts[0].matvec(v) + self._parts[1].matvec(v)

    def _rmatvec(self, v: Tensor) -> Tensor:
        return self._parts[0].rmatvec(v) + self._parts[1].rmatvec(v)

    def _matmat(self, v: Tensor) -> Tensor:
        return self._parts[0].matmat(v) + self._parts[1].matmat(v)

    def _rmatmat(self, v: Tensor) -> Tensor:
        return self._parts[0].rmatmat(v) + self._parts[1].rmatmat(v)

    def restrict(self, index: Tensor) -> LinearOperator:
        """Return the same sum of the named batch elements."""
        return Sum(self._parts[0].restrict(index), self._parts[1].restrict(index))


class Composed(_Derived):
    """A B, that is B first.

    Args:
        outer: A.
        inner: B.
    """

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        super().__init__(outer, inner)

    def _matvec(self, v: Tensor) -> Tensor:
        return self._parts[0].matvec(self._parts[1].matvec(v))

    def _rmatvec(self, v: Tensor) -> Tensor:
        return self._parts[1].rmatvec(self._parts[0].rmatvec(v))

    def _matmat(self, v: Tensor) -> Tensor:
        return self._parts[0].matmat(self._parts[1].matmat(v))

    def _rmatmat(self, v: Tensor) -> Tensor:
        return self._parts[1].rmatmat(self._parts[0].rmatmat(v))

    def restrict(self, index: Tensor) -> LinearOperator:
        """Return the same composition of the named batch elements."""
        return Composed(self._parts[0].restrict(index), self._parts[1].restrict(index))


class Shifted(_Derived):
    """A + alpha I.

    Args:
        base: A.
        alpha: The shift.
    """

    def __init__(self, base: LinearOperator, alpha: float) -> None:
        super().__init__(base)
        self.alpha = alpha

    def _matvec(self, v: Tensor) -> Tensor:
        return torch.add(self._parts[0].matvec(v), v, alpha=self.alpha)

    def _rmatvec(self, v: Tensor) -> Tensor:
        return torch.add(self._parts[0].rmatvec(v), v, alpha=self.alpha)

    def _matmat(self, v: Tensor) -> Tensor:
        return torch.add(self._parts[0].matmat(v), v, alpha=self.alpha)

    def _rmatmat(self, v: Tensor) -> Tensor:
        return torch.add(self._parts[0].rmatmat(v), v, alpha=self.alpha)

    def restrict(self, index: Tensor) -> LinearOperator:
        """Return the named batch elements with the same shift."""
        return Shifted(self._parts[0].restrict(index), self.alpha)


class Scaled(_Derived):
    """alpha A.

    Args:
        base: A.
        alpha: The factor.
    """

    def __init__(self, base: LinearOperator, alpha: float) -> None:
        super().__init__(base)
        self.alpha = alpha

    def _matvec(self, v: Tensor) -> Tensor:
        return self.alpha * self._parts[0].matvec(v)

    def _rmatvec(self, v: Tensor) -> Tensor:
        return self.alpha * self._parts[0].rmatvec(v)

    def _matmat(self, v: Tensor) -> Tensor:
        return self.alpha * self._parts[0].matmat(v)

    def _rmatmat(self, v: Tensor) -> Tensor:
        return self.alpha * self._parts[0].rmatmat(v)

    def restrict(self, index: Tensor) -> LinearOperator:
        """Return the named batch elements with the same factor."""
        return Scaled(self._parts[0].restrict(index), self.alpha)


class Transposed(_Derived):
    """A^T.

    Args:
        base: A, which must have a transposed product.
    """

    def __init__(self, base: LinearOperator) -> None:
        super().__init__(base)

    def _matvec(self, v: Tensor) -> Tensor:
        return self._parts[0].rmatvec(v)

    def _rmatvec(self, v: Tensor) -> Tensor:
        return self._parts[0].matvec(v)

    def _matmat(self, v: Tensor) -> Tensor:
        return self._parts[0].rmatmat(v)

    def _rmatmat(self, v: Tensor) -> Tensor:
        return self._parts[0].matmat(v)

    @property
    def has_rmatvec(self) -> bool:
        """Always true: the transposed product of A^T is that of A."""
        return True

    @property
    def T(self) -> LinearOperator:
        """A itself."""
        return self._parts[0]

    def restrict(self, index: Tensor) -> LinearOperator:
        """Return the transposes of the named batch elements."""
        return Transposed(self._parts[0].restrict(index))


class Restricted(_Derived):
    """Some elements of a batch; a product applies the whole batch, with zeros for the others.

    Args:
        base: The whole batch.
        index: Integer tensor of the elements, without repetition.

    Raises:
        ValueError: If `index` is empty.
    """

    def __init__(self, base: LinearOperator, index: Tensor) -> None:
        super().__init__(base)
        if index.numel() == 0:
            raise ValueError(f"A part of {base!r} needs at least one element, got an empty index.")
        self.batch = index.numel()
        self.index = index.to(base.device)

    def _scatter(self, v: Tensor) -> Tensor:
        base = self._parts[0]
        whole = torch.zeros((base.batch, *v.shape[1:]), dtype=v.dtype, device=v.device)
        return whole.index_copy_(0, self.index, v)

    def _matvec(self, v: Tensor) -> Tensor:
        return self._parts[0].matvec(self._scatter(v))[self.index]

    def _rmatvec(self, v: Tensor) -> Tensor:
        return self._parts[0].rmatvec(self._scatter(v))[self.index]

    def _matmat(self, v: Tensor) -> Tensor:
        return self._parts[0].matmat(self._scatter(v))[self.index]

    def _rmatmat(self, v: Tensor) -> Tensor:
        return self._parts[0].rmatmat(self._scatter(v))[self.index]

    def restrict(self, index: Tensor) -> LinearOperator:
        """Return a part of this part, taken from the whole batch directly."""
        return Restricted(self._parts[0], self.index[index.to(self.index.device)])
