"""The monotone block (monDEQ): a recurrent matrix with I - W strongly monotone in the Euclidean norm.

F(z) = relu(W z + u) - z, W = (1 - m) I - P^T P + S - S^T (Winston and Kolter, arXiv:2006.08591), u from causal
attention over the input. What holds for any weights, with m' = min(m, 1):

- F has exactly one root (their theorem 1), and the abscissa at every state is at most -m': the nonzero rows of D W are
  those of a principal submatrix W_AA, whose I - W_AA is monotone as well.
- The flow dz/dt = F converges to the root from everywhere. With y = W z + u - (W z* + u), phi_i = relu(..) - relu(..)*
  and V = a/2 |y|^2 + sum_i int_0^{y_i} phi_i, one finds dV/dt <= -a |y|^2 + a |W| |y||phi| - m |phi|^2, negative for
  a < 4 m/|W|^2.
- Euler's step lowers V from everywhere for eps < 2 m/(5 (|W|^2 + 2 m)), by the same V with a = 2 m/|W|^2, whose
  gradient is (1 + a)-Lipschitz; and near every state whose active units do not change for eps < 2 m'/max(1, |I - W|)^2.
"""

from typing import Literal

import torch
from pydantic import Field

from dyneq.systems.parts.recurrent import MonotoneMatrix, Recurrent
from dyneq.systems.rectified import RectifiedBlock, RectifiedConfig


class MonoConfig(RectifiedConfig):
    """Everything that defines a monotone block but its weights."""

    kind: Literal["mono"] = "mono"
    monotonicity: float = Field(0.1, gt=0, description="m: the symmetric part of I - W is at least m")


class MonoBlock(RectifiedBlock):
    """The monotone block; see this module for what is guaranteed."""

    Config = MonoConfig
    config: MonoConfig

    def _matrix(self) -> Recurrent:
        return MonotoneMatrix(self.config.channels, self.config.monotonicity)

    @torch.no_grad()
    def guaranteed_step(self) -> float:
        """Return the step below which Euler's relaxation converges from everywhere, 2 m/(5 (|W|^2 + 2 m))."""
        norm = float(torch.linalg.matrix_norm(self.recurrent.matrix(), 2))
        m = self.config.monotonicity
        return 2 * m / (5 * (norm**2 + 2 * m))

    @torch.no_grad()
    def local_step(self) -> float:
        """Return the step below which no state is locally unstable, 2 min(m, 1)/max(1, |I - W|)^2."""
        w = self.recurrent.matrix()
        size = float(torch.linalg.matrix_norm(torch.eye(len(w), dtype=w.dtype, device=w.device) - w, 2))
        return 2 * min(self.config.monotonicity, 1.0) / max(1.0, size) ** 2
