"""Stabilisers around the update: the fuse that ends a lost run, and the pre-warm that begins one contracting."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dyneq.gradients.base import Gradient
from dyneq.probes.penalties.contribution import Contribution, contribution
from dyneq.probes.penalties.floss import Floss, FlossParams
from dyneq.systems.protocol import System
from dyneq.train.log import Record
from dyneq.train.sections import RESIDUAL_EPS, StabilitySection
from dyneq.train.terms import worst


class Fuse:
    """Counts the updates in a row whose batch was far from settling.

    Args:
        section: The stabilisers of the recipe.

    Attributes:
        count: Updates in a row above the fuse's residual.
    """

    def __init__(self, section: StabilitySection) -> None:
        self._bound, self._after = section.fuse, section.fuse_after
        self.count = 0

    def observe(self, record: Record) -> None:
        """Take note of an update."""
        if self._bound is None:
            return
        found: float = record["force_residual_t1" if "force_residual_t1" in record else "force_residual"]
        self.count = 0 if RESIDUAL_EPS * found <= self._bound else self.count + 1  # NaN counts as far

    def sentence(self, step: int) -> str | None:
        """Return why the run ends here, None if it does not.

        Args:
            step: Updates applied.
        """
        if self._bound is None or self.count < self._after:
            return None
        return (
            f"the fuse blew after update {step}: in {self.count} updates in a row the step residual (median over the "
            f"batch, at eps 0.1) was above {self._bound:g}, so the relaxation has long stopped settling; go back to an "
            "earlier snapshot (`dyneq diagnose` on several finds where it was lost), and add --reg floss"
        )


def bare_numbers(contributions: Mapping[str, Contribution]) -> dict[str, Tensor]:
    """Return what the log says of terms without a task beside them: value and the probe's measure, the largest."""
    return {
        key: value
        for name, c in contributions.items()
        for key, value in (
            (f"penalty_{name}", c.value),
            (f"penalty_{name}_measure", worst(c.measure)),
        )
    }


def prewarm(section: StabilitySection, system: System, gradient: Gradient, generator: torch.Generator) -> Contribution:
    """Return the pre-warm's part of an update: the gradient of floss alone, at weight 1 on the whole batch.

    Args:
        section: The stabilisers of the recipe.
        system: The system.
        gradient: The task's, with the state.
        generator: Source of randomness.
    """
    floss = Floss(FlossParams(weight=1.0, margin=section.prewarm_margin, samples=None, limit=None))
    return contribution(floss, system, gradient.state, torch.ones(()), generator)
