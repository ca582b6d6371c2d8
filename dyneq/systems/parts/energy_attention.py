"""The attention of an energy: each token descends what its query finds and what its key gives to others' queries.

E(u) = -(1/beta) sum over heads and tokens t of log sum_s exp(beta q_t k_s), with q = W_Q u, k = W_K u, beta = 1/sqrt(d)
(Hoover et al., arXiv:2302.07253, who leave out s = t). With P the softmax of beta q k^T over the keys,
-dE/du = W_Q^T (P k) + W_K^T (P^T q). The second term, by which a token feels every query that looks at it, is what no
causal attention has: under a causal mask it would carry later tokens' queries back to earlier tokens.
"""

import math

import torch
from torch import Tensor, nn

from dyneq.systems.parts.copies import shallow_copy


class EnergyAttention(nn.Module):
    """Attention of every token to all tokens as the descent of an energy.

    Args:
        channels: Width C.
        heads: Number of heads H, a divisor of C.

    Attributes:
        gain: Factor on the energy and on the branch; 1 unless a copy was scaled.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.wq = nn.Linear(channels, channels, bias=False)
        self.wk = nn.Linear(channels, channels, bias=False)
        self.heads = heads
        self.beta = 1 / math.sqrt(channels // heads)
        self.gain = 1.0

    def _split(self, u: Tensor) -> Tensor:
        return u.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def energy(self, u: Tensor) -> Tensor:
        """Return the energy of each sample ``[sample]`` at ``u`` ``[sample, token, channel]``."""
        q, k = self._split(self.wq(u)), self._split(self.wk(u))
        found = (self.beta * q @ k.transpose(-1, -2)).logsumexp(-1)
        return -self.gain / self.beta * found.sum((-1, -2))

    def forward(self, u: Tensor) -> Tensor:
        """Return -dE/du ``[sample, token, channel]``."""
        q, k = self._split(self.wq(u)), self._split(self.wk(u))
        p = (self.beta * q @ k.transpose(-1, -2)).softmax(-1)
        seen, asked = ((o.transpose(-2, -3)).flatten(-2) for o in (p @ k, p.transpose(-1, -2) @ q))
        descent = torch.matmul(seen, self.wq.weight) + torch.matmul(asked, self.wk.weight)
        return descent if self.gain == 1 else self.gain * descent

    def scaled(self, alpha: float) -> "EnergyAttention":
        """Return a copy of another gain that shares the weights."""
        copy = shallow_copy(self)
        copy.gain = alpha * self.gain
        return copy
