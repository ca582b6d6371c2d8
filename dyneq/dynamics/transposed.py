"""The transposed linear system J^T a = b of a causal block, solved token by token from the last to the first.

J is block lower triangular over tokens, so J^T is block upper triangular: the last token's equation holds its own block
alone, and each earlier one knows what the later ones contribute. One pass is exact up to rounding.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.structure import check_causality
from dyneq.errors import UsageError
from dyneq.systems.protocol import System

#: Most bytes of token blocks: they are held as matrices, once as they are and once factorised.
MOST_BYTES = 2**30


@dataclass(frozen=True)
class TransposedSolution:
    """The solution of J^T a = b.

    Attributes:
        a: ``[sample, token, channel]``; not finite where a token's block is exactly singular.
        condition: Condition number of every J_tt in the infinity norm as LAPACK estimates it (a lower bound), inf
            where a block is exactly singular, ``[sample, token]``, float64.
        products: Products it took, each on the whole batch: a token-diagonal one for every channel, and one with J^T
            for every token but the first. The factorisations are not counted.
    """

    a: Tensor
    condition: Tensor
    products: int


def require_substitution(system: System, z: Tensor) -> None:
    """Raise unless the transposed system can be solved by substitution at states of the shape of ``z``.

    Raises:
        UsageError: If the system does not declare itself causal, or its blocks are too large to be held.
    """
    if not system.structure.causal:
        raise UsageError(
            f"substitution over tokens needs a block that is causal over tokens, but {system.name} does not declare "
            "one; choose solver=gmres or solver=relaxation"
        )
    samples, tokens = z.shape[:2]
    channels = z.shape[2:].numel()
    held = samples * tokens * channels**2 * z.element_size()
    if held > MOST_BYTES:
        raise UsageError(
            f"substitution over tokens holds a {channels} x {channels} block for each of {samples} x {tokens} tokens, "
            f"which takes {held / 2**30:.1f} GiB where {MOST_BYTES / 2**30:.0f} GiB are allowed; choose solver=gmres, "
            "or a smaller batch"
        )


@torch.no_grad()
def solve_transposed(system: System, z: Tensor, b: Tensor) -> TransposedSolution:
    """Solve J^T a = b at ``z`` by substitution over tokens, each token's dense block by LAPACK.

    Args:
        system: A causal system.
        z: State ``[sample, token, channel]``, finite.
        b: Right-hand side of the same shape, finite.

    Raises:
        UsageError: If the system does not declare itself causal, or its blocks are too large to be held.
        CausalityError: If it declares itself causal but is not.
    """
    require_substitution(system, z)
    check_causality(system, z)
    tokens, channels = z.shape[1:]
    linearization = Linearization(system, z)
    blocks = linearization.token_blocks()
    size = blocks.abs().sum(-1).amax(-1)
    factors, pivots, _ = torch.linalg.lu_factor_ex(blocks)
    del blocks
    a = torch.zeros_like(b)
    for t in range(tokens - 1, -1, -1):
        known = linearization.rmatvec(a)[:, t] if t < tokens - 1 else torch.zeros_like(b[:, t])
        right = (b[:, t] - known).unsqueeze(-1)
        a[:, t] = torch.linalg.lu_solve(factors[:, t], pivots[:, t], right, adjoint=True).squeeze(-1)
    return TransposedSolution(a, _conditions(factors, size), channels + tokens - 1)


def _conditions(factors: Tensor, size: Tensor) -> Tensor:
    """Return norm(A) norm(A^{-1}) in the infinity norm from the LU factors of A ``[sample, token, n, n]``."""
    lu = factors.cpu().numpy()
    estimate = lapack.dgecon if lu.dtype == np.float64 else lapack.sgecon
    norms = size.cpu().numpy()
    condition = np.empty(norms.shape)
    for index in np.ndindex(norms.shape):
        reciprocal, _ = estimate(lu[index], norms[index], norm="I")
        condition[index] = 1 / reciprocal if reciprocal > 0 else np.inf
    return torch.from_numpy(condition)
