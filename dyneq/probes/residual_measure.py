"""The measure behind the residual probe and the penalty ``resreg``."""

import torch
from torch import Tensor

from dyneq.systems.protocol import System


def resreg(system: System, z: Tensor, through: int = 0) -> Tensor:
    """Return norm(eps F(z))^2/(norm(z)^2 + tiny) ``[sample]``, the squared step residual; differentiable.

    The state is detached: with ``through`` 0 the gradient reaches the parameters through the force alone, and asks the
    weights to make this very state a fixed point. With more it is the residual that many steps later, and the gradient
    reaches the parameters through them too, which asks that the residual shrink. ``tiny`` is the smallest normal number
    of the state's type, so that the measure is 0 where state and force are both 0.

    Args:
        system: The system; with ``eps`` 1 for a map.
        z: State ``[sample, ...]``, as it was reached.
        through: Relaxation steps taken from it first.
    """
    z = z.detach()
    for _ in range(through):
        z = z + system.eps * system.force(z)
    step = (system.eps * system.force(z)).flatten(1).square().sum(1)
    return step / (z.flatten(1).square().sum(1) + torch.finfo(z.dtype).tiny)
