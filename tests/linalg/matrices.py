"""Matrices with known spectra that the tests of every eigensolver share."""

import math

import numpy as np
import torch
from torch import Tensor


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthogonal(n: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator(seed)))[0]


def rotation(theta: float, radius: float = 0.99) -> Tensor:
    c, s = math.cos(theta), math.sin(theta)
    return radius * torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def planted(n: int, thetas: tuple[float, ...], seed: int = 0, rest: float = 0.8) -> Tensor:
    """Return a normal matrix with the given rotations of radius 0.99 and real eigenvalues inside [-rest, rest]."""
    blocks = [rotation(theta) for theta in thetas]
    inner = torch.diag(torch.linspace(-rest, rest, n - 2 * len(thetas), dtype=torch.float64))
    q = orthogonal(n, seed)
    return q @ torch.block_diag(*blocks, inner) @ q.T


def jordan(n: int, value: float, coupling: float) -> Tensor:
    ones = torch.ones(n - 1, dtype=torch.float64)
    return value * torch.eye(n, dtype=torch.float64) + coupling * torch.diag(ones, 1)


def grcar(n: int, superdiagonals: int = 3) -> Tensor:
    out = sum(torch.diag(torch.ones(n - k, dtype=torch.float64), k) for k in range(superdiagonals + 1))
    return out - torch.diag(torch.ones(n - 1, dtype=torch.float64), -1)


def rank_deficient(n: int, rank: int, seed: int = 0) -> Tensor:
    g = generator(seed)
    return (
        torch.randn(n, rank, dtype=torch.float64, generator=g)
        @ torch.randn(rank, n, dtype=torch.float64, generator=g)
        / n
    )


def gaussian(batch: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, n, n, dtype=torch.float64, generator=generator(seed)) / math.sqrt(n)


def zoo(n: int) -> dict[str, Tensor]:
    """Return the list of REFERENCE.md at size `n`, each `[n, n]`."""
    eye = torch.eye(n, dtype=torch.float64)
    return {
        "rotations": planted(n, (0.3, 1.2, math.pi / 2)),
        "jordan": jordan(n, 0.5, 0.3),
        "grcar": grcar(n),
        "repeated": planted(n, (1.2, 1.2)),
        "identity": eye,
        "zero": torch.zeros_like(eye),
        "rank": rank_deficient(n, 3),
    }


def spectrum_distance(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return for each found value the distance to the nearest exact one."""
    return np.abs(found[:, None] - exact[None, :]).min(axis=1)
