"""The contraction rate over a few relaxation steps: what ``ftle`` reports and the penalty ``floss`` uses.

Along the flow it is the rate at which the increments of the state shrink; along tangent vectors, the rates at which k
of them do, orthonormalised at every step (Benettin et al., Meccanica 15, 1980). Both are per unit time, negative where
the relaxation contracts, and differentiable through the steps.
"""

import torch
from torch import Tensor

from dyneq.dynamics.multilinear import Elementary
from dyneq.dynamics.residuals import sample_norm
from dyneq.errors import UsageError
from dyneq.systems.protocol import System

#: An increment below so many units in the last place of the state is rounding: the sample has converged there.
ROUNDING_STEPS = 64


def flow_rate(system: System, z: Tensor, steps: int) -> Tensor:
    """Return log(norm(d_q)/norm(d_0))/(q eps) ``[sample]`` of the increments d of q relaxation steps from ``z``.

    Where d_0 is rounding already the sample rests and has no rate: NaN. Where d_q is, it is taken at that floor, which
    no derivative passes.

    Args:
        system: The system.
        z: State ``[sample, ...]`` the steps begin at; detached.
        steps: Number of steps q.

    Raises:
        UsageError: If no step is asked for.
    """
    _require_steps(steps)
    z = z.detach()
    floor = ROUNDING_STEPS * torch.finfo(z.dtype).eps * system.eps * sample_norm(z)
    sizes = []
    for n in range(steps + 1):
        moved = system.eps * system.force(z)
        if n in (0, steps):
            sizes.append(sample_norm(moved))
        z = z + moved
    first, last = sizes
    moving = first > floor
    # what is not used below must still be finite, or its derivative would make the others NaN
    ratio = torch.maximum(last, floor) / torch.where(moving, first, 1.0)
    rate = torch.where(moving & (ratio > 0), ratio, 1.0).log() / (steps * system.eps)
    return torch.where(moving, rate, torch.nan)


def tangent_rates(system: System, z: Tensor, steps: int, count: int, generator: torch.Generator) -> Tensor:
    """Return the rates ``[vector, sample]`` at which ``count`` tangent vectors grow over q steps from ``z``.

    They are the sums of log abs(R_ii) of a QR at every step, over q eps. Whole samples, not token blocks: the vectors
    see the transient growth that couplings between tokens cause.

    Args:
        system: The system; its force must have a forward-mode derivative, which fused attention has not.
        z: State ``[sample, ...]`` the steps begin at; detached.
        steps: Number of steps q.
        count: Number of vectors k, at most the dimension of a sample.
        generator: Source of the first vectors.

    Raises:
        UsageError: If there are no steps, or no vectors, or more vectors than dimensions.
    """
    _require_steps(steps)
    dim = z[0].numel()
    if not 1 <= count <= dim:
        raise UsageError(
            f"a state of {dim} dimensions has 1 to {dim} tangent vectors, but {count} were asked for; lower tangents"
        )
    z = z.detach()
    noise = torch.randn((z.shape[0], dim, count), generator=generator, dtype=torch.float64).to(z)
    frame = torch.linalg.qr(noise).Q
    smallest = torch.finfo(z.dtype).tiny
    total = torch.zeros((z.shape[0], count), dtype=z.dtype, device=z.device)
    for _ in range(steps):
        images = []
        for k in range(count):
            with Elementary():  # a derivative of a forward-mode product is wrong through torch's own layer norm
                found = torch.func.jvp(system.force, (z,), (frame[:, :, k].view(z.shape),))
            force, product = found[0], found[1]
            images.append(frame[:, :, k] + system.eps * product.flatten(1))
        z = z + system.eps * force
        frame, r = torch.linalg.qr(torch.stack(images, dim=2))
        total = total + r.diagonal(dim1=1, dim2=2).abs().clamp_min(smallest).log()
    return total.T / (steps * system.eps)


def _require_steps(steps: int) -> None:
    if steps < 1:
        raise UsageError(f"a contraction rate is taken over at least 1 step, but {steps} were asked for")
