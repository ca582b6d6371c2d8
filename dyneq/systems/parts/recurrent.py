"""Recurrent matrices that meet a bound by construction: monotone in the Euclidean norm, or of small maximum measure."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from dyneq.systems.parts.copies import shallow_copy


class Recurrent(nn.Module):
    """A square matrix made of free ones, with the bias of the map it belongs to.

    Args:
        channels: Width C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def soften_(self) -> None:
        """Scale freshly drawn matrices, in place, so that W starts with entries that a step of 0.1 can take."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """Return W ``[channel, channel]``."""

    def scaled(self, part: str, alpha: float) -> "Recurrent":
        """Return a stand-in in which the whole matrix or its antisymmetric part is scaled; it may not meet the bound.

        Args:
            part: ``recurrent`` or ``antisymmetric``.
            alpha: Factor.
        """
        return _Scaled(self, part, alpha)


class _Scaled(Recurrent):
    """A recurrent matrix with a part of it scaled; weights are shared."""

    def __init__(self, original: Recurrent, part: str, alpha: float) -> None:
        nn.Module.__init__(self)
        self.original, self.part, self.alpha = shallow_copy(original), part, alpha
        self.bias = original.bias

    def matrix(self) -> Tensor:
        w, alpha = self.original.matrix(), self.alpha
        return alpha * w if self.part == "recurrent" else (1 + alpha) / 2 * w + (1 - alpha) / 2 * w.T


class MonotoneMatrix(Recurrent):
    """W = (1 - m) I - P^T P + S - S^T, so that the symmetric part of I - W is m I + P^T P >= m.

    Winston and Kolter, arXiv:2006.08591.

    Args:
        channels: Width C.
        margin: Monotonicity m > 0.
    """

    def __init__(self, channels: int, margin: float) -> None:
        super().__init__(channels)
        self.p = nn.Parameter(torch.empty(channels, channels))
        self.s = nn.Parameter(torch.empty(channels, channels))
        self.margin = margin

    @torch.no_grad()
    def soften_(self) -> None:
        """Halve both, which leaves |I - W| near 2."""
        self.p.mul_(0.5)
        self.s.mul_(0.5)

    def matrix(self) -> Tensor:
        """Return W ``[channel, channel]``."""
        p, s = self.p, self.s
        return (1 - self.margin) * torch.eye(len(p), dtype=p.dtype, device=p.device) - p.T @ p + s - s.T


class MeasureMatrix(Recurrent):
    """W = T - diag(sum_j |T_ij|) + gamma I, whose l-infinity matrix measure max_i(W_ii + sum_(j != i) |W_ij|) <= gamma.

    Row i gives T_ii - |T_ii| + gamma. Every matrix of measure at most gamma is of this form (Jafarpour et al.,
    arXiv:2106.03194).

    Args:
        channels: Width C.
        measure: Bound gamma < 1 of the measure.
    """

    def __init__(self, channels: int, measure: float) -> None:
        super().__init__(channels)
        self.t = nn.Parameter(torch.empty(channels, channels))
        self.measure = measure

    @torch.no_grad()
    def soften_(self) -> None:
        """Make the absolute row sums of T about 1, whatever the width: they are subtracted on the diagonal."""
        self.t.mul_(len(self.t) ** -0.5)

    def matrix(self) -> Tensor:
        """Return W ``[channel, channel]``."""
        return self.t + torch.diag(self.measure - self.t.abs().sum(1))
