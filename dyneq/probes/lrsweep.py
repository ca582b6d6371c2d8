"""The lrsweep probe: what one step along several gradients does to the loss, over learning rates."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import xarray as xr
from pydantic import Field, field_validator, model_validator

from dyneq.errors import UsageError
from dyneq.probes.base import Finding, Params, Probe, Progress, silent
from dyneq.probes.gradient_specs import Entry, entries
from dyneq.probes.lrsweep_measure import sweep
from dyneq.probes.stepped_weights import require_block
from dyneq.systems.protocol import System

#: What is compared where nothing is asked for.
GRADIENTS = ("bptt150", "adjoint:solver=gmres", "aep", "ep")
#: Learning rates tried where none are given: 1, 2 and 5 times powers of ten.
RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class LrsweepParams(Params):
    """Parameters of the lrsweep probe."""

    gradient: tuple[str, ...] = Field(
        GRADIENTS, description="gradient to step along, such as aep or bptt150; the first is what others are judged by"
    )
    lr: tuple[float, ...] = Field(RATES, description="learning rate to try")
    direction: Literal["raw", "normalised"] = Field(
        "raw", description="gradients as they are, or all scaled to the norm of the first"
    )
    depth: int | None = Field(
        None,
        ge=1,
        description="steps after which losses are taken, and of free phases no spec states; the first's if null",
    )
    samples: int | None = Field(32, ge=1, description="samples to use, the first ones; all if null")
    heldout: float = Field(0.5, ge=0, lt=1, description="share of them the gradients do not see")
    tol: float = Field(1e-2, gt=0, description="force residual up to which a sample counts as settled")
    seed: int = Field(0, ge=0, description="deals samples into batch and held-out ones")

    @field_validator("lr")
    @classmethod
    def _rates(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        for rate in rates:
            if not 0 < rate < math.inf:
                raise ValueError(f"a learning rate is positive and finite, not {rate}; leave it out")
            if rates.count(rate) > 1:
                raise ValueError(f"the learning rate {rate:g} is given twice; leave one of them out")
        if not rates:
            raise ValueError("no learning rate is given; name at least one --lr, such as --lr 0.1")
        return tuple(sorted(rates))

    @model_validator(mode="after")
    def _readable(self) -> "LrsweepParams":
        compared(self.gradient, self.depth)
        return self


def compared(specs: Sequence[str], depth: int | None) -> list[Entry]:
    """Return the gradients of a sweep, the depth filled in where a spec states none.

    Raises:
        UsageError: If there is none, a spec is none, or two are the same.
    """
    if not specs:
        raise UsageError("no gradient is given to step along; name at least one --gradient, such as bptt150")
    found = entries(specs[:1], specs[1:], depth, 0)
    if len(found) < len(specs):  # what equals the first is left out there
        first = found[0].estimator.to_plain()
        again = next(s for s in specs[1:] if entries((s,), (), found[0].depth, 0)[0].estimator.to_plain() == first)
        raise UsageError(f"{specs[0]!r} and {again!r} are one and the same gradient; leave one of them out")
    return found


class LrsweepProbe(Probe):
    """What one step along each of several gradients of the same batch does to its loss, over learning rates.

    The weights are stepped on copies, the state is relaxed again, and losses are compared sample by sample, on the
    batch the gradients come from and on samples they have not seen. The exact gradient of the loss after the same
    number of steps tells what the change should be to first order.
    """

    name = "lrsweep"
    version = 1
    Params: ClassVar[type[Params]] = LrsweepParams
    needs_loss = True
    needs_relaxation = False

    def check(self, system: System) -> None:
        """Verify that the system has a loss and can be bound again with other weights.

        Raises:
            UsageError: If it has no loss.
            DyneqError: If it is no block bound to tokens.
        """
        super().check(system)
        require_block(system, "a sweep over learning rates")

    def run(self, system: System, params: LrsweepParams, progress: Progress = silent) -> xr.Dataset:
        """Measure; dimensions ``estimator``, ``lr``, ``part`` and ``sample``.

        Args:
            system: A block bound to tokens, with a loss.
            params: Gradients, learning rates, samples.
            progress: Told how far the measurement is.

        Raises:
            DyneqError: If the system is no block or has no gradient, every sample diverges, or the first gradient
                fails. Another gradient that refuses is a row with its reason.
        """
        from dyneq.probes.lrsweep_dataset import dataset

        among = compared(params.gradient, params.depth)
        found = sweep(
            system,
            among,
            params.lr,
            normalised=params.direction == "normalised",
            depth=among[0].depth if params.depth is None else params.depth,
            samples=params.samples,
            heldout=params.heldout,
            seed=params.seed,
            progress=progress,
        )
        return dataset(found, params.tol).assign_attrs(direction=params.direction)

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return which gradient descends how far at which rate, and whether the others lack direction or rate."""
        from dyneq.probes.lrsweep_summary import summarize

        return summarize(ds)

    def text(self, ds: xr.Dataset) -> str:
        """Return a table of the gradients and one of the learning rates."""
        from dyneq.probes.lrsweep_text import tables

        return tables(ds)

    def document(self, ds: xr.Dataset) -> dict[str, Any]:
        """Return the result as plain values."""
        from dyneq.probes.lrsweep_text import document

        return document(ds)

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw the change of the loss and the force residual over learning rates; ``ax`` are two."""
        from dyneq.probes.lrsweep_plot import plot_lrsweep

        return plot_lrsweep(ds, ax)
