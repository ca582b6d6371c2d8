"""A nudged phase, and which of its snapshots of the contrast to trust, chosen in hindsight for every sample.

The steps of the states cannot say whether the contrast has settled: non-normal transients pass through them. What is
judged is the contrast itself: the path it covers in one unit of time, which in corrected dynamics is what the adjoint
equation lacks, da/dt = J^T a + g. The snapshot where that is least is kept, so that a phase that blows up later still
gives what it had when it was quiet, and is marked. It is compared as it is and not relative to the contrast, to which
that of a blow-up bears one and the same ratio however far it has come.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dyneq.dynamics.residuals import sample_norm

State = tuple[Tensor, ...]

#: Relative path of the contrast over one unit of time above which a nudged phase is called unsettled.
SETTLED = 1e-2
#: Growth of the contrast after the snapshot that was kept, above which the phase is called diverged.
BLOW_UP = 1e3


@dataclass(frozen=True)
class Contrast:
    """What a nudged phase found.

    Attributes:
        a: The contrast ``[sample, ...]`` at the step kept for each sample.
        state: The states of the phase at that step.
        t2: That step ``[sample]``.
        increment: Path of the contrast over the unit of time before it, relative to its norm ``[sample]``.
        settled: Whether that is within :data:`SETTLED`, and the contrast stays so quiet and so near to the end, bool
            ``[sample]``.
        diverged: Whether the phase blew up before or after it, bool ``[sample]``.
    """

    a: Tensor
    state: State
    t2: Tensor
    increment: Tensor
    settled: Tensor
    diverged: Tensor


@torch.no_grad()
def run_contrast(
    step: Callable[[State], State],
    read: Callable[[State], Tensor],
    state: State,
    *,
    t2: int,
    eps: float,
    adaptive: bool,
) -> Contrast:
    """Take ``t2`` steps and return the contrast of the last one, or of the quietest one.

    Args:
        step: One step of all states of the phase, each ``[sample, ...]``.
        read: The contrast a ``[sample, ...]`` of such states.
        state: Where the phase begins; the contrast is 0 there.
        t2: Steps.
        eps: Duration of a step, which says how many make a unit of time.
        adaptive: Whether to keep each sample's quietest snapshot instead of the last.
    """
    window = max(2, min(round(1 / eps), t2))
    a = read(state)
    paths: deque[Tensor] = deque(maxlen=window)
    kept = a
    kept_state, quiet = state, torch.full((len(a),), torch.inf, dtype=a.real.dtype, device=a.device)
    chosen = torch.zeros(len(a), dtype=torch.int64, device=a.device)
    for n in range(1, t2 + 1):
        state = step(state)
        new = read(state)
        paths.append(sample_norm(new - a))
        a = new
        path = torch.stack(tuple(paths)).sum(0)
        # a phase shorter than the window is judged by what there is of it
        better = path <= quiet if adaptive and n >= window else torch.full_like(chosen, n == t2, dtype=torch.bool)
        if n == t2:
            better |= chosen == 0  # nothing was ever quiet enough to compare: keep the end, and let it be marked
        kept = choose(better, a, kept)
        kept_state = tuple(choose(better, s, k) for s, k in zip(state, kept_state, strict=True))
        quiet, chosen = torch.where(better, path, quiet), torch.where(better, n, chosen)
    finite = torch.isfinite(a).flatten(1).all(1)
    size = sample_norm(kept)
    diverged = ~finite | (sample_norm(a) > BLOW_UP * size)
    # what has settled stays: a contrast that has begun to leave its quiet snapshot need not have grown much yet
    stays = (path <= SETTLED * sample_norm(a)) & (sample_norm(a - kept) <= SETTLED * size)
    increment = quiet / size
    return Contrast(kept, kept_state, chosen, increment, (increment <= SETTLED) & stays, diverged)


def choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return ``new`` for the samples of ``mask`` ``[sample]`` and ``old`` for the others, both ``[sample, ...]``."""
    return torch.where(mask.view(-1, *[1] * (new.ndim - 1)), new, old)
