"""How much J changes along eigenvectors when its state is displaced: the share of a state's error in eigenvalues."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dyneq.dynamics.linearization import Linearization
from dyneq.linalg.operator import LinearOperator, MatrixOperator
from dyneq.linalg.result import EigenResult


def blocks_of(linearization: Linearization, method: str) -> tuple[LinearOperator, int]:
    """Return the operators whose eigenvalues are sought, and how many a sample has."""
    if method == "token":
        return linearization.token_diagonal(), linearization.z.shape[1]
    return linearization.whole, 1


class Drift:
    """norm((J(z + d) - J(z)) v) of right vectors v, NaN in samples whose displacement d is not finite."""

    def __init__(
        self,
        linearization: Linearization,
        method: str,
        displacement: Tensor,
        operator: LinearOperator,
        matrices: Tensor | None,
    ) -> None:
        there, finite = _displaced(linearization, displacement)
        self._moved, tokens = blocks_of(there, method)
        self._operator = operator
        self._difference = None if matrices is None else self._moved.to_dense().double() - matrices.double()
        self._unknown = (~finite).cpu().numpy().repeat(tokens)

    @property
    def products(self) -> int:
        """Products with the Jacobian at the displaced state."""
        return self._moved.products

    def __call__(self, result: EigenResult, index: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the drifts ``[len(index), k]`` of a result for the blocks ``index``."""
        at = torch.as_tensor(index, device=self._operator.device)
        if self._difference is not None:
            images = MatrixOperator(self._difference[at]).matmat(result.vectors.mT)
        else:
            vectors = torch.nan_to_num(result.vectors).mT  # padding
            images = self._moved.restrict(at).matmat(vectors) - self._operator.restrict(at).matmat(vectors)
        drift = torch.linalg.vector_norm(images, dim=1).double().cpu().numpy()
        return np.where(self._unknown[index][:, None], np.nan, drift)


@torch.no_grad()
def symmetric_drift(
    linearization: Linearization, v: Tensor, displacement: Tensor | None
) -> tuple[NDArray[np.float64], int]:
    """Return norm((S(z + d) - S(z)) v) with S = (J + J^T)/2 for each sample, and the products it took.

    Args:
        linearization: J at z.
        v: Unit vectors ``[sample, dim]``.
        displacement: d, of the shape of z; NaN samples: not known. 0 is returned if None.
    """
    if displacement is None:
        return np.zeros(len(v)), 0
    there, finite = _displaced(linearization, displacement)
    here, moved = linearization.symmetric(), there.symmetric()
    before = here.products
    drift = torch.linalg.vector_norm(moved.matvec(v) - here.matvec(v), dim=1).double()
    return torch.where(finite, drift, torch.nan).cpu().numpy(), here.products - before + moved.products


def _displaced(linearization: Linearization, displacement: Tensor) -> tuple[Linearization, Tensor]:
    """Return J at z + d, at z in samples where d is not known, and where it is, bool ``[sample]``."""
    moved = linearization.z + displacement
    finite = torch.isfinite(moved).flatten(1).all(1)
    shape = (-1,) + (1,) * (moved.ndim - 1)
    there = torch.where(finite.view(shape), moved, linearization.z)
    return Linearization(linearization.system, there), finite
