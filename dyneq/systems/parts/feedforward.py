"""The position-wise feed-forward branch with products of its Jacobian."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dyneq.systems.parts import continuation
from dyneq.systems.parts.copies import shallow_copy, with_weights
from dyneq.systems.protocol import Product

Gelu = Literal["erf", "tanh"]


def gelu_derivative(x: Tensor, form: Gelu) -> Tensor:
    """Return d gelu(x)/dx, elementwise, of the erf or tanh form (Hendrycks and Gimpel, arXiv:1606.08415)."""
    if form == "erf":
        density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * density
    a, b = math.sqrt(2 / math.pi), 0.044715
    th = torch.tanh(a * (x + b * x**3))
    return 0.5 * (1 + th) + 0.5 * x * (1 - th * th) * a * (1 + 3 * b * x * x)


class FeedForward(nn.Module):
    """``pj(gelu(fc(u)))`` on ``[..., channel]``, untied, widened by ``multiple``.

    Args:
        channels: Width C.
        multiple: Hidden width in units of C.
        gelu: Which form of GELU; one form must be used for every computation with the same weights.
        bias: Whether fc and pj have biases.
    """

    def __init__(self, channels: int, multiple: int, gelu: Gelu, bias: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, multiple * channels, bias=bias)
        self.pj = nn.Linear(multiple * channels, channels, bias=bias)
        self.gelu: Gelu = gelu

    def forward(self, u: Tensor) -> Tensor:
        """Return the branch at ``u`` ``[..., channel]``, continued where it is complex."""
        if u.is_complex():
            return continuation.linear(self.pj, continuation.gelu(continuation.linear(self.fc, u), self.gelu))
        approximate = "none" if self.gelu == "erf" else "tanh"
        return self.pj(functional.gelu(self.fc(u), approximate=approximate))

    def scaled(self, alpha: float) -> "FeedForward":
        """Return a copy whose output is scaled, pj with its bias; fc is shared."""
        copy, pj = shallow_copy(self), self.pj
        copy.pj = with_weights(pj, alpha * pj.weight, None if pj.bias is None else alpha * pj.bias)
        return copy

    def linearize(self, u: Tensor) -> tuple[Product, Product]:
        """Return ``v -> J v`` and ``w -> J^T w`` at ``u``."""
        slope = gelu_derivative(self.fc(u), self.gelu)
        fc, pj = self.fc.weight, self.pj.weight
        return (
            lambda v: functional.linear(functional.linear(v, fc).mul_(slope), pj),
            lambda w: torch.matmul(torch.matmul(w, pj).mul_(slope), fc),
        )
