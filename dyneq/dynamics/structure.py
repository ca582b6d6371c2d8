"""Checks of what a system claims about its structure, by the force alone."""

import torch
from torch import Tensor

from dyneq.errors import DyneqError
from dyneq.systems.protocol import System


class CausalityError(DyneqError):
    """A system that declares itself causal lets a later token act on an earlier one."""


@torch.no_grad()
def check_causality(system: System, z: Tensor, *, cuts: int = 16) -> None:
    """Verify that F_t does not depend on z_s for s > t, and that the two-argument force agrees with the force.

    Every token from a cut on is displaced; the force on the tokens before it must not change in a single bit. A masked
    token enters a causal block with weight exactly 0, so there is no rounding to allow for.

    Args:
        system: A system that declares a causal structure.
        z: A finite state to test at.
        cuts: How many cuts are tested, spread over the tokens, the first and the last always among them.

    Raises:
        CausalityError: If a later token changes the force on an earlier one, or force(z, z) differs from force(z).
    """
    system.require_causal("the token-diagonal spectrum")
    tokens = z.shape[1]
    f = system.force(z)
    # the terms of the force are of the size of the state; at a fixed point the force itself is only their rounding
    scale = z.abs().amax() + f.abs().amax()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z) * (1 + z.abs())
    positions = torch.linspace(1, tokens - 1, min(cuts, tokens - 1)).round().int().tolist() if tokens > 1 else []
    for cut in positions:
        displaced = z.clone()
        displaced[:, cut:] += noise[:, cut:]
        change = (system.force(displaced)[:, :cut] - f[:, :cut]).abs().flatten(2).amax((0, 2))
        if bool((change > 0).any()):
            token = int(change.argmax())
            raise CausalityError(
                f"{system.name} declares itself causal, but moving tokens {cut} and later changes the force on token "
                f"{token} by {float(change[token]):.1e}; the union of token blocks is then not its spectrum: declare "
                "causal=False, or use --method krylov"
            )
    gap = float((system.force(z, z) - f).abs().amax() / scale)
    if gap > 1e3 * torch.finfo(z.dtype).eps:
        raise CausalityError(
            f"force(z, z) of {system.name} differs from force(z) by {gap:.1e} relative to the state, where only "
            "rounding is allowed; correct its two-argument force, or use --method krylov"
        )
