"""Products of many small matrices whose singular values span more than a floating point number does.

The product is kept row by row as exp(s_i) u_i with unit rows u_i, so nothing over- or underflows; its singular values
come out as logarithms, the small ones as accurate as the large ones, by Jacobi rotations of the rows (Demmel and
Veselic 1992, SIAM J. Matrix Anal. Appl. 13, 1204: what limits them is the condition of the u_i, not of the product).
"""

import torch
from torch import Tensor

#: Sweeps of rotations; the convergence is quadratic, six to ten are usual.
SWEEPS = 40


class GradedProduct:
    """The product R_m ... R_2 R_1 of square matrices ``[..., k, k]``, begun with the identity.

    Args:
        shape: Shape ``[..., k, k]`` of the factors.
        device: Where they are.

    Attributes:
        scale: Logarithms s ``[..., k]`` of the norms of the rows, float64; -inf for rows of zeros.
        rows: The rows divided by their norms ``[..., k, k]``, float64.
    """

    def __init__(self, shape: torch.Size | tuple[int, ...], device: torch.device) -> None:
        self.scale = torch.zeros(shape[:-1], dtype=torch.float64, device=device)
        self.rows = torch.eye(shape[-1], dtype=torch.float64, device=device).expand(shape).contiguous()

    def multiply(self, factor: Tensor) -> None:
        """Multiply from the left by ``factor`` ``[..., k, k]``."""
        factor = factor.double()
        size = factor.abs().log() + self.scale.unsqueeze(-2)
        largest = size.amax(-1)
        weights = factor.sign() * (size - torch.where(largest.isneginf(), 0.0, largest).unsqueeze(-1)).exp()
        self.rows, self.scale = _normalised(weights @ self.rows, largest)

    def log_singular_values(self) -> Tensor:
        """Return the logarithms of the singular values ``[..., k]``, largest first; -inf for zeros."""
        return log_singular_values(self.scale, self.rows)


def log_singular_values(scale: Tensor, rows: Tensor) -> Tensor:
    """Return the logarithms ``[..., k]``, largest first, of the singular values of the matrix diag(exp(scale)) rows.

    Args:
        scale: ``[..., k]``, -inf for rows of zeros.
        rows: ``[..., k, n]`` with rows of norm 1 (or 0).
    """
    batch, (k, n) = rows.shape[:-2], rows.shape[-2:]
    scale, rows = scale.reshape(-1, k).clone(), rows.reshape(-1, k, n).clone()
    # with an odd number of rows, one of them rests in every round
    players = list(range(k + k % 2))
    tolerance = 8 * n**0.5 * torch.finfo(rows.dtype).eps
    for _ in range(SWEEPS):
        cosine = torch.zeros((), dtype=rows.dtype, device=rows.device)
        for _ in range(len(players) - 1):
            # the smaller index first, so that rows stop changing places once they are in order, and all pairs meet
            pairs = [sorted((players[i], players[-1 - i])) for i in range(len(players) // 2)]
            pairs = [pair for pair in pairs if pair[1] < k]
            if pairs:
                cosine = torch.maximum(cosine, _rotate(scale, rows, *torch.tensor(pairs, device=rows.device).T))
            players = [players[0], players[-1], *players[1:-1]]
        if float(cosine) <= tolerance:
            break
    return scale.sort(dim=-1, descending=True).values.view(*batch, k)


def _rotate(scale: Tensor, rows: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Make pairs of rows orthogonal in place, the larger one first; return the largest cosine there was.

    With h, l the unit rows, r <= 1 the ratio of their norms and g their cosine, the rotation by the angle of tangent
    t = r u, u = -2 g/((1 - r^2) + sqrt((1 - r^2)^2 + 4 g^2 r^2)), leaves h - r^2 u l and l + u h, however small r is.
    """
    swap = scale[:, second] > scale[:, first]
    high, low = torch.where(swap, second, first), torch.where(swap, first, second)
    batch = torch.arange(len(scale), device=scale.device).unsqueeze(-1)
    big, small = scale[batch, high], scale[batch, low]
    h, l = rows[batch, high], rows[batch, low]  # noqa: E741 - as in the formula
    g = torch.linalg.vecdot(h, l)
    square = torch.where(small.isneginf(), 0.0, (2 * (small - big)).exp())
    below = (1 - square) + ((1 - square).square() + 4 * g.square() * square).sqrt()
    u = torch.where(below > 0, -2 * g / below, 0.0)
    shrink = -0.5 * torch.log1p(square * u.square())
    new_h, new_l = h - (square * u).unsqueeze(-1) * l, l + u.unsqueeze(-1) * h
    rows[batch, first], scale[batch, first] = _normalised(new_h, big + shrink)
    rows[batch, second], scale[batch, second] = _normalised(new_l, small + shrink)
    return g.abs().amax()


def _normalised(rows: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(rows, dim=-1)
    return rows / torch.where(norm > 0, norm, 1.0).unsqueeze(-1), scale + norm.log()
