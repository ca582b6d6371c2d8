"""Back-propagation through relaxation steps, recomputed in segments.

The states at segment boundaries are stored on the way forward; on the way back each segment is run again with its
graph. With segments of sqrt(N) steps, N steps cost one extra forward pass and O(sqrt N) memory (Chen et al.,
arXiv:1604.06174).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.gradients.base import ParameterList
from dyneq.systems.protocol import System

#: Forces one differentiated step takes: forward, again with its graph, and a transposed product on the way back.
PER_STEP = 3


@dataclass(frozen=True)
class Unrolled:
    """What back-propagation through some steps found beside the parameters' gradient.

    Attributes:
        state: State ``[sample, ...]`` after the last step, detached.
        loss: Loss ``[sample]`` there, detached.
        loss_gradient: dL/dz ``[sample, ...]`` there.
        cotangent: dL/dz ``[sample, ...]`` at the state the steps begin at.
    """

    state: Tensor
    loss: Tensor
    loss_gradient: Tensor
    cotangent: Tensor


def differentiate_steps(
    system: System, parameters: ParameterList, z: Tensor, steps: int, step: float, segment: int | None = None
) -> Unrolled:
    """Take steps z <- z + step F(z), and add the gradient of the mean loss after them to ``parameters``.

    Exact for these steps; the start counts as given, and what the parameters owe to it is left to the caller.

    Args:
        system: A system with a loss.
        parameters: Where the gradient is added.
        z: Start ``[sample, ...]``, detached.
        steps: How many steps, at least 1.
        step: Length of one, in units of time.
        segment: Steps whose graph is held at once; ceil(sqrt(steps)) if None.
    """
    segment = segment or math.isqrt(steps - 1) + 1
    starts = list(range(0, steps, segment))
    boundaries = []
    with torch.no_grad():
        for start in starts:
            boundaries.append(z)
            z = _unroll(system, z, min(segment, steps - start), step)
    with torch.enable_grad():
        leaf = z.requires_grad_()
        loss = system.loss(leaf)
        (cotangent,) = parameters.add(loss.mean(), also=[leaf])
        loss_gradient = cotangent
        for start, boundary in zip(reversed(starts), reversed(boundaries), strict=True):
            leaf = boundary.detach().requires_grad_()
            out = _unroll(system, leaf, min(segment, steps - start), step)
            (cotangent,) = parameters.add(out, cotangent, also=[leaf])
    return Unrolled(z.detach(), loss.detach(), loss_gradient, cotangent)


def _unroll(system: System, z: Tensor, steps: int, step: float) -> Tensor:
    for _ in range(steps):
        z = torch.add(z, system.force(z), alpha=step)
    return z
