"""The samples that gradients and updates are measured on, and gradients of several estimators on the same of them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dyneq.dynamics.relax import Relaxation, relax
from dyneq.dynamics.status import Status
from dyneq.errors import DyneqError
from dyneq.gradients.base import Estimator, Gradient
from dyneq.systems.protocol import System


@dataclass(frozen=True)
class Usable:
    """Samples that can be used.

    Attributes:
        system: The first samples of the caller's system, embedded anew so that gradients reach the embedding.
        relaxation: Their free relaxation.
        order: Those of them that did not diverge, in random order.
    """

    system: System
    relaxation: Relaxation
    order: Tensor


def usable_samples(system: System, samples: int | None, depth: int, generator: torch.Generator, fewest: int) -> Usable:
    """Return the first samples of a system, relaxed, and which of them have not diverged.

    Args:
        system: The caller's system; it is left as it is.
        samples: How many to use; all if None.
        depth: Steps of the relaxation.
        generator: Shuffles them.
        fewest: How many are needed.

    Raises:
        DyneqError: If fewer than that are left.
    """
    count = system.samples if samples is None else min(samples, system.samples)
    part = embedded(system, torch.arange(count, device=system.initial_state().device))
    relaxation = relax(part, depth)
    held = torch.tensor([s is not Status.DIVERGED for s in relaxation.status]).nonzero().flatten()
    if len(held) < fewest:
        raise DyneqError(
            f"at least {fewest} sample{'s' if fewest > 1 else ''} must stay finite, but the relaxation of "
            f"{count - len(held)} of {count} diverged within {depth} steps; lower eps, take an earlier snapshot, or "
            "use more samples"
        )
    return Usable(part, relaxation, held[torch.randperm(len(held), generator=generator)])


def embedded(system: System, index: Tensor) -> System:
    """Return some samples of a system bound anew, with gradients whatever the caller's mode."""
    with torch.enable_grad():
        return system.select(index)


def estimate(system: System, estimator: Estimator, shared: dict[Any, Any]) -> Gradient:
    """Return a gradient; estimators with the same free phase share it.

    Args:
        system: What it is the gradient of.
        estimator: How it is estimated.
        shared: Keeps the free phases of this system between calls; empty at the first.
    """
    staged: Any = estimator
    if not (hasattr(staged, "free_key") and hasattr(staged, "from_free")):
        return estimator.gradient(system)
    if staged.free_key not in shared:
        shared[staged.free_key] = staged.free(system)
    found: Gradient = staged.from_free(system, shared[staged.free_key])
    return found
