"""Checks of what a system claims about its structure, by the force alone."""

import torch
from torch import Tensor

from dyneq.errors import DyneqError, UsageError
from dyneq.systems.protocol import System

#: Up to this many tokens every cut is tested in every sample.
ALL_CUTS = 64
#: What two ways of computing the same force may differ by, in units of the last place of state and force.
ROUNDING = 1e3


class CausalityError(DyneqError):
    """A system that declares itself causal is not, or its two-argument force does not agree with its force."""


@torch.no_grad()
def check_causality(system: System, z: Tensor, *, cuts: int = 32) -> None:
    """Verify that F_t does not depend on z_s for s > t, and that the two-argument force is what the protocol says.

    For a cut c, all tokens from c on are displaced. The force on the tokens before c must not change in a single bit: a
    masked token enters a causal block with weight exactly 0, so there is no rounding to allow for. And the force on
    token c is then what ``force(y, z)`` must give for it, up to rounding, when y is the state with every token
    displaced: its own query, key and value from y, those of all others from z.

    Up to :data:`ALL_CUTS` tokens every cut is tested in every sample, which covers every pair of tokens and every token
    of the two-argument force, by ``tokens + 3`` forces. With fewer forces than tokens no test of this kind is complete:
    for longer contexts each of ``cuts`` forces displaces every sample from a cut of its own. These ``cuts * samples``
    cuts are spread evenly over the tokens, so that every pair of tokens further apart than about
    ``tokens / (cuts * samples)`` is separated by some cut in some sample; a leak that stays within such a gap, or
    belongs to a single sample, can then be missed.

    Args:
        system: A system that declares a causal structure.
        z: A state to test at; only elements whose force is finite are judged.
        cuts: How many forces are spent on cuts where there are more than :data:`ALL_CUTS` tokens.

    Raises:
        UsageError: If ``cuts`` is less than 1.
        CausalityError: If a later token changes the force on an earlier one, or the two-argument force is wrong.
    """
    system.require_causal("a computation token by token")
    if cuts < 1:
        raise UsageError(f"a check of causality needs at least one cut, but cuts={cuts} was asked for")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z) * (1 + z.abs())
    f, everywhere = system.force(z), z + noise
    _compare(system, system.force(z, z), f, f, z, "force(z, z) differs from force(z)")
    own, displaced_forces = system.force(everywhere, z), []
    samples, tokens = z.shape[:2]
    index, rows = torch.arange(tokens, device=z.device), torch.arange(samples, device=z.device)
    for cut in _cuts(samples, tokens, cuts).to(z.device):
        later = (index >= cut[:, None]).view(samples, tokens, *[1] * (z.ndim - 2))
        displaced = torch.where(later, everywhere, z)
        g = system.force(displaced)
        changed = ((g != f) & torch.isfinite(f) & ~later).flatten(2).any(2)
        if bool(changed.any()):
            sample, token = (int(i) for i in changed.nonzero()[0])
            size = float((g - f)[sample, token].abs().amax())
            raise CausalityError(
                f"{system.name} declares itself causal, but moving tokens {int(cut[sample])} and later changes the "
                f"force on token {token} by {size:.1e}; the union of token blocks is then not its spectrum: declare "
                "causal=False, or use --method krylov"
            )
        displaced_forces.append((cut, g[rows, cut]))
    what = "force(y, z) at token {token} differs from the force at z with that token taken from y"
    for cut, expected in displaced_forces:
        _compare(system, own[rows, cut], expected, own, everywhere, what, cut)


def _cuts(samples: int, tokens: int, cuts: int) -> Tensor:
    """Return the cut of every sample in every evaluation, ``[evaluation, sample]``; cut 0 displaces all tokens."""
    if tokens <= ALL_CUTS:
        return torch.arange(tokens)[:, None].expand(tokens, samples)
    # float64, so that with as many places as tokens every token is one of them
    places = torch.linspace(0, tokens - 1, cuts * samples, dtype=torch.float64)
    return places.round().long().view(cuts, samples)


def _compare(
    system: System, given: Tensor, expected: Tensor, f: Tensor, z: Tensor, what: str, cut: Tensor | None = None
) -> None:
    """Raise unless two forces agree to the rounding of terms of the size of the state ``z`` and its force ``f``."""
    scale = sum(torch.where(torch.isfinite(x), x, 0.0).abs().amax() for x in (z, f))
    judged = torch.isfinite(expected)
    gap = torch.where(judged, (given - expected).abs(), 0.0)
    wrong = ~(gap <= ROUNDING * torch.finfo(z.dtype).eps * scale)
    if bool(wrong.any()):
        sample = int(wrong.flatten(1).any(1).nonzero()[0])
        place = what.format(token=None if cut is None else int(cut[sample]))
        raise CausalityError(
            f"{place} in {system.name}, by {float(gap[sample].amax() / scale):.1e} relative to state and force, where "
            "only rounding is allowed; correct its two-argument force (a token's own query, key and value come from "
            "the first argument, those of all others from the second), or use --method krylov"
        )
