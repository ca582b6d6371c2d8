"""The named residuals of a state, per sample.

The force residual is THE convergence measure: the step residual shrinks with eps whatever the state does.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.systems.protocol import System

#: Where a sample is judged, sizes are relative to its state, or to this share of the initial state where the state is
#: smaller than that: z = 0 can then be a fixed point.
SMALLEST = 1e-3


def sample_norm(v: Tensor) -> Tensor:
    """Return the 2-norm over everything but the sample axis, ``[sample]``."""
    return torch.linalg.vector_norm(v.flatten(1), dim=1)


@dataclass(frozen=True)
class Residuals:
    """Residuals of one state, each ``[sample]``.

    Attributes:
        force: norm(F)/norm(z), per unit time; independent of eps. Where a sample is judged, norm(z) is never taken
            below a thousandth of norm(z_0) (see :func:`relative_size`).
        step: eps times ``force``, the relative length of one step; never evidence of convergence.
        absolute: norm(F), in units of z per unit time.
    """

    force: Tensor
    step: Tensor
    absolute: Tensor


def least_size(system: System) -> Tensor:
    """Return a thousandth of norm(z_0), the smallest norm that sizes are taken relative to, ``[sample]``."""
    return SMALLEST * sample_norm(system.initial_state().detach())


def relative_size(v: Tensor, z: Tensor, least: Tensor) -> Tensor:
    """Return norm(v)/max(norm(z), least) ``[sample]``: the one measure by which samples are judged; differentiable.

    Args:
        v: Force, step or difference ``[sample, ...]``.
        z: The state it is relative to.
        least: Smallest size of the state, ``[sample]``; of :func:`least_size`, or 0 for the plain quotient.
    """
    size, scale = sample_norm(v), torch.maximum(sample_norm(z), least)
    return torch.where(size == 0, torch.zeros_like(size), size / scale)


def residuals_of(z: Tensor, f: Tensor, eps: float, least: Tensor | None = None) -> Residuals:
    """Return the residuals of a state ``z`` whose force ``f`` is known; differentiable.

    Where z is exactly 0 the plain relative residuals are infinite, or 0 if the force is 0 as well.

    Args:
        z: State ``[sample, ...]``.
        f: Its force.
        eps: Step size.
        least: Smallest norm of z the force is taken relative to, ``[sample]``; None for the plain norm(F)/norm(z).
    """
    absolute = sample_norm(f)
    force = relative_size(f, z, torch.zeros_like(absolute) if least is None else least)
    return Residuals(force, eps * force, absolute)


def residuals(system: System, z: Tensor) -> Residuals:
    """Return the residuals of ``z`` ``[sample, ...]`` by their plain definition; differentiable."""
    return residuals_of(z, system.force(z), system.eps)
