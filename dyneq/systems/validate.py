"""Checks that something offered as a System keeps the protocol's promises, before anything is computed with it."""

import torch
from torch import Tensor

from dyneq.errors import DyneqError
from dyneq.systems.protocol import System, Time

_DTYPES = (torch.float32, torch.float64)


@torch.no_grad()
def check_system(system: System) -> None:
    """Check shape, dtype, finiteness, repeatability and independence of samples of a system's force at its start.

    Costs 2 + 2 log2(samples) force evaluations. Independence is tested for every ordered pair of samples: sets of
    samples that share a bit of their index are moved together, and the force on all the others must stay the same.

    Args:
        system: The system to check.

    Raises:
        DyneqError: If it breaks a promise; the message names which.
    """
    name, z = system.name, system.initial_state()
    if not isinstance(z, Tensor) or z.ndim < 2 or not z.numel() or z.dtype not in _DTYPES:
        found = f"{list(z.shape)} of {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
        raise DyneqError(
            f"the initial state of {name} should be a float32 or float64 tensor [sample, ...] with at least two axes, "
            f"but is {found}; return z_0 as one row a sample"
        )
    if not torch.isfinite(z).all():
        raise DyneqError(f"the initial state of {name} is not finite; start it from finite numbers")
    if system.time is Time.MAP and system.eps != 1:
        raise DyneqError(f"{name} is a map, so its eps should be 1, but is {system.eps}; declare it a flow or drop eps")
    if not system.eps > 0:
        raise DyneqError(f"eps of {name} should be positive, but is {system.eps}; the usual value is 0.1")
    force = system.force(z)
    if not isinstance(force, Tensor) or force.shape != z.shape or force.dtype != z.dtype:
        found = f"{list(force.shape)} of {force.dtype}" if isinstance(force, Tensor) else type(force).__name__
        raise DyneqError(
            f"force(z) of {name} should have the shape and dtype of z, {list(z.shape)} of {z.dtype}, but is {found}; "
            "return one number for each of z"
        )
    if not torch.isfinite(force).all():
        bad = int((~torch.isfinite(force)).flatten(1).any(1).sum())
        raise DyneqError(
            f"the force of {name} at its start is not finite in {bad} of {len(z)} samples; check its weights"
        )
    if not torch.equal(system.force(z), force):
        raise DyneqError(
            f"two evaluations of the force of {name} at the same state differ, but it should depend on that alone; "
            "switch off dropout and other randomness (module.eval())"
        )
    _check_independence(system, z, force)


def _check_independence(system: System, z: Tensor, force: Tensor) -> None:
    samples = z.shape[0]
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = z + 1e-2 * (1 + z.square().mean().sqrt()) * noise.to(z)
    index = torch.arange(samples, device=z.device)
    # kernels may sum in another order, never by more than some roundings of the largest term
    rounding = 100 * torch.finfo(z.dtype).eps * torch.maximum(force.abs().max(), z.abs().max())
    for bit in range((samples - 1).bit_length()):
        for side in (0, 1):
            chosen = (index >> bit & 1) == side
            where = chosen.view(-1, *[1] * (z.ndim - 1))
            change = (system.force(torch.where(where, moved, z)) - force).abs().flatten(1).amax(1)
            # a NaN made by another sample's move is a dependence too, so the comparison asks for "not small"
            affected = (~chosen) & ~(change <= rounding)
            if affected.any():
                first = int(affected.nonzero()[0])
                raise DyneqError(
                    f"the samples of {system.name} should not interact, but the force on sample {first} changes by "
                    f"{float(change[first]):.1e} when others move; remove what mixes them (batch normalisation in "
                    "training mode, means over the batch)"
                )
