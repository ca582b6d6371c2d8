"""The named residuals of a state, per sample.

The force residual is THE convergence measure: the step residual shrinks with eps whatever the state does.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.systems.protocol import System


def sample_norm(v: Tensor) -> Tensor:
    """Return the 2-norm over everything but the sample axis, ``[sample]``."""
    return torch.linalg.vector_norm(v.flatten(1), dim=1)


@dataclass(frozen=True)
class Residuals:
    """Residuals of one state, each ``[sample]``.

    Attributes:
        force: norm(F)/norm(z), per unit time; independent of eps.
        step: eps norm(F)/norm(z), the relative length of one step; never evidence of convergence.
        absolute: norm(F), in units of z per unit time.
    """

    force: Tensor
    step: Tensor
    absolute: Tensor


def residuals_of(z: Tensor, f: Tensor, eps: float) -> Residuals:
    """Return the residuals of a state ``z`` whose force ``f`` is known; differentiable.

    Where z is exactly 0 the relative residuals are infinite, or 0 if the force is 0 as well.
    """
    absolute, size = sample_norm(f), sample_norm(z)
    force = torch.where(absolute == 0, torch.zeros_like(absolute), absolute / size)
    return Residuals(force, eps * force, absolute)


def residuals(system: System, z: Tensor) -> Residuals:
    """Return the residuals of ``z`` ``[sample, ...]``; differentiable."""
    return residuals_of(z, system.force(z), system.eps)
