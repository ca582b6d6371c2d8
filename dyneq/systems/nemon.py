"""The non-Euclidean monotone block (NEMON): a recurrent matrix of l-infinity matrix measure at most gamma < 1.

F(z) = relu(W z + u) - z, u from causal attention over the input (Jafarpour et al., arXiv:2106.03194). What holds for
any weights, with c = 1 - max(gamma, 0): F has exactly one root, the flow contracts every distance between two states in
the maximum norm at a rate of at least c, and so does Euler's step, by the factor 1 - c eps, for every
eps <= 1/(1 - min(0, min_i W_ii)).
"""

from typing import Literal

import torch
from pydantic import Field

from dyneq.systems.parts.recurrent import MeasureMatrix, Recurrent
from dyneq.systems.rectified import RectifiedBlock, RectifiedConfig


class NemonConfig(RectifiedConfig):
    """Everything that defines a non-Euclidean monotone block but its weights."""

    kind: Literal["nemon"] = "nemon"
    measure: float = Field(0.9, lt=1, description="gamma: the l-infinity matrix measure of W is at most gamma")


class NemonBlock(RectifiedBlock):
    """The non-Euclidean monotone block; see this module for what is guaranteed."""

    Config = NemonConfig
    config: NemonConfig

    def _matrix(self) -> Recurrent:
        return MeasureMatrix(self.config.channels, self.config.measure)

    @torch.no_grad()
    def guaranteed_step(self) -> float:
        """Return the largest step that contracts in the maximum norm by 1 - (1 - max(gamma, 0)) eps."""
        smallest = float(torch.diagonal(self.recurrent.matrix()).min())
        return 1 / (1 - min(0.0, smallest))
