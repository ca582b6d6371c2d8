"""A tied Hopfield memory: relu(u Xi) Xi^T, which descends an energy (Krotov and Hopfield, arXiv:1606.01164)."""

import torch
from torch import Tensor, nn

from dyneq.systems.parts.continuation import linear, relu
from dyneq.systems.parts.copies import shallow_copy
from dyneq.systems.protocol import Product


class HopfieldMemory(nn.Module):
    """``relu(u Xi) Xi^T`` on ``[..., channel]``, which is -dE/du of E(u) = -|relu(u Xi)|^2 / 2.

    It has no holomorphic continuation, and complex states are refused.

    Args:
        channels: Width C.
        multiple: Number of patterns in units of C.

    Attributes:
        gain: Factor on the energy and on the branch; 1 unless a copy was scaled.
    """

    def __init__(self, channels: int, multiple: int) -> None:
        super().__init__()
        self.xi = nn.Linear(channels, multiple * channels, bias=False)  # its weights are Xi^T
        self.gain = 1.0

    def energy(self, u: Tensor) -> Tensor:
        """Return the energy of every token ``[...]``."""
        return -0.5 * self.gain * torch.relu(self.xi(u)).square().sum(-1)

    def forward(self, u: Tensor) -> Tensor:
        """Return -dE/du, of the shape of ``u``."""
        recalled = torch.matmul(relu(linear(self.xi, u)), self.xi.weight)
        return recalled if self.gain == 1 else self.gain * recalled

    def scaled(self, alpha: float) -> "HopfieldMemory":
        """Return a copy of another gain that shares the patterns."""
        copy = shallow_copy(self)
        copy.gain = alpha * self.gain
        return copy

    def linearize(self, u: Tensor) -> tuple[Product, Product]:
        """Return ``v -> J v`` and ``w -> J^T w`` at ``u``; J = Xi D Xi^T is symmetric, D the active patterns."""
        xi = self.xi.weight
        active = (self.xi(u) > 0).to(xi.dtype).mul_(self.gain)

        def product(v: Tensor) -> Tensor:
            return torch.matmul(nn.functional.linear(v, xi).mul_(active), xi)

        return product, product
