"""The knockout probe: what a part of the block does to stability, by scaling it from full strength to nothing."""

import math
import time
from typing import Any, ClassVar

import torch
import xarray as xr
from pydantic import Field, field_validator

from dyneq.dynamics.counting import Cost, counted
from dyneq.dynamics.crossing import Crossing
from dyneq.probes.base import Finding, Params, Probe, Progress, silent
from dyneq.probes.knockout_dataset import (
    assemble,
    crossing_variables,
    head_variables,
    root_variables,
    settling_variables,
)
from dyneq.probes.knockout_measure import by_distance, crossings, follow, heads, pairs_along, settle
from dyneq.probes.knockout_summary import knockout_text, summarize
from dyneq.systems.protocol import System, Time

#: The part whose share in W_O W_V is reported beside its factor.
ANTISYMMETRIC = "antisymmetric"


class KnockoutParams(Params):
    """Parameters of the knockout probe."""

    part: str = Field("attention", description="part scaled: attention, head:3, ffn, antisymmetric")
    alpha: tuple[float, ...] = Field(
        (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), min_length=1, description="factors of the part, 1 is the block as it is"
    )
    depth: int = Field(800, ge=8, description="depth of each relaxation, steps")
    seed: int = Field(0, description="seed of root starts and Krylov start vectors")

    @field_validator("alpha")
    @classmethod
    def _usable(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        for alpha in alphas:
            if not 0 <= alpha < math.inf:
                raise ValueError(f"alpha is a factor from 0 (knocked out) upwards, finite, not {alpha}")
        return tuple(sorted(set(alphas)))


class KnockoutProbe(Probe):
    """Residual floor, oscillation and leading pair at the root as a part is scaled, and the critical factor."""

    name = "knockout"
    version = 1
    Params: ClassVar[type[Params]] = KnockoutParams

    def run(self, system: System, params: KnockoutParams, progress: Progress = silent) -> xr.Dataset:
        """Measure along the factors; dimensions ``alpha``, ``sample`` and, for ``antisymmetric``, ``head``.

        The root is found at the factor nearest to 1 and followed to the others, whatever their order.

        Args:
            system: A system with parts.
            params: The part and its factors.
            progress: Told how far the measurement is.
        """
        begun, cost, alphas = time.perf_counter(), Cost(), list(params.alpha)
        system.scaled(params.part, 1.0)  # an unknown part is an error before anything is computed

        def family(alpha: float) -> System:
            made = counted(system.scaled(params.part, alpha))
            made.cost = cost  # one account for all factors
            return made

        samples, flow = system.samples, system.time is Time.FLOW
        generator = torch.Generator().manual_seed(params.seed)
        settled = []
        for k, alpha in enumerate(alphas):
            progress(f"relaxing with {params.part} times {alpha:g}", 0.4 * k / len(alphas))
            settled.append(settle(family(alpha), params.depth))
        progress("following the roots", 0.4)
        nearest = settled[by_distance(alphas)[0]].relaxation
        roots = follow(family, alphas, params.depth, generator, nearest)
        progress("leading pairs", 0.7)
        pairs = pairs_along(family, alphas, roots, generator)
        variables = settling_variables(settled) | root_variables(roots, pairs, flow)
        progress("critical factors", 0.8)
        found, changes = crossings(family, alphas, roots, variables["margin"][1], generator)
        variables |= crossing_variables(found, changes, len(alphas) > 1, flow)
        if params.part == ANTISYMMETRIC:
            variables |= _shares(system, alphas, found, samples)
        progress("done", 1.0)
        ds = assemble(variables, alphas, samples, cost, time.perf_counter() - begun)
        attributes = {"part": params.part, "eps": system.eps, "time": str(system.time), "depth": params.depth}
        return ds.assign_attrs(attributes)

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return where stability is lost and how, and what the relaxations do beside it."""
        return summarize(ds)

    def text(self, ds: xr.Dataset) -> str:
        """Return a table over the factors and one of the crossings."""
        return knockout_text(ds)

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw the margin at the root and the residuals against the factor; ``ax`` is a pair of axes."""
        from dyneq.probes.knockout_plot import plot_knockout

        return plot_knockout(ds, ax)


def _shares(system: System, alphas: list[float], found: dict[int, Crossing | None], samples: int) -> dict[str, Any]:
    """Return gain and antisymmetric share of the heads, also at the critical factors."""

    def share(alpha: float) -> Any:
        return heads(system.scaled(ANTISYMMETRIC, alpha))[1]

    critical = {}
    for sample, c in found.items():
        if c is not None and math.isfinite(c.alpha_error):
            spread = abs(share(c.alpha + c.alpha_error) - share(c.alpha - c.alpha_error)) / 2
            critical[sample] = share(c.alpha), spread
    return head_variables([heads(system.scaled(ANTISYMMETRIC, a)) for a in alphas], critical, samples)
