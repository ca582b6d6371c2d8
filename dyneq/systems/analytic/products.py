"""Products of random Gaussian matrices, whose Lyapunov exponents are known.

A new matrix at every step is no map of the state, so this is a sequence rather than a System.
"""

import math

import torch
from scipy.special import digamma, polygamma
from torch import Tensor


def gaussian_matrices(steps: int, size: int, gain: float, *, samples: int = 1, seed: int = 0) -> Tensor:
    """Return independent matrices ``[step, sample, n, n]``, float64, entries N(0, gain^2/n).

    Args:
        steps: Number of factors.
        size: n.
        gain: Scale g of the entries.
        samples: Number of independent products.
        seed: Seed of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    entries = torch.randn(steps, samples, size, size, generator=generator, dtype=torch.float64)
    return entries * (gain / math.sqrt(size))


def gaussian_exponents(size: int, gain: float) -> Tensor:
    """Return the Lyapunov exponents ``[n]`` of the product, nats per step, largest first.

    lambda_i = ln g + (ln(2/n) + psi((n - i + 1)/2))/2 (Newman 1986, Commun. Math. Phys. 103, 121).

    Args:
        size: n.
        gain: Scale g of the entries.
    """
    freedom = torch.arange(size, 0, -1, dtype=torch.float64)
    return math.log(gain) + 0.5 * (math.log(2 / size) + torch.from_numpy(digamma(freedom.numpy() / 2)))


def gaussian_exponent_errors(size: int, steps: int) -> Tensor:
    """Return the standard deviations ``[n]`` of the exponents of a product of ``steps`` factors.

    Every step adds half the logarithm of an independent chi-squared variable with n - i + 1 degrees of freedom to the
    i-th, whose variance is psi'((n - i + 1)/2)/4.

    Args:
        size: n.
        steps: Number of factors.
    """
    freedom = torch.arange(size, 0, -1, dtype=torch.float64)
    return torch.from_numpy(polygamma(1, freedom.numpy() / 2)).div(4 * steps).sqrt()
