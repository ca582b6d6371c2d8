"""The decompose probe: an update split into the task's gradient and those of penalties."""

from collections.abc import Sequence
from typing import Any, ClassVar

import xarray as xr
from pydantic import Field, model_validator

from dyneq.errors import UsageError
from dyneq.probes.base import Finding, Params, Probe, Progress, silent
from dyneq.probes.decompose_measure import measure
from dyneq.probes.gradient_specs import entries
from dyneq.probes.penalties import registry as penalty_registry
from dyneq.probes.penalties.base import Penalty
from dyneq.systems.protocol import System


class DecomposeParams(Params):
    """Parameters of the decompose probe."""

    gradient: str = Field("bptt150", description="estimator of the task's gradient, such as adjoint or bptt150")
    penalty: tuple[str, ...] = Field(
        ("resreg:0.2", "jacreg:0.1"), description="penalty as name:weight or with options, as in training"
    )
    batches: int = Field(4, ge=1, le=64, description="disjoint batches the samples are dealt into")
    samples: int | None = Field(32, ge=1, description="samples to use, the first ones; all if null")
    t1: int | None = Field(
        None, ge=1, description="steps of the free phase where the gradient states none; 400 if null"
    )
    draws: int = Field(4, ge=1, description="random vectors a penalty that draws any is averaged over; training has 1")
    seed: int = Field(0, ge=0, description="deals samples into batches and draws the vectors")

    @model_validator(mode="after")
    def _readable(self) -> "DecomposeParams":
        entries((self.gradient,), (), self.t1, 0)  # a spec that is none is an error before anything runs
        penalties(self.penalty)
        if self.samples is not None and self.batches > self.samples:
            raise UsageError(
                f"{self.batches} disjoint batches need as many samples, but {self.samples} are to be used; ask for "
                "fewer --batches or more --samples"
            )
        return self


def penalties(specs: Sequence[str]) -> list[Penalty]:
    """Return the penalties that specs describe.

    Raises:
        UsageError: If there is none, a spec is none, or a penalty is given twice.
    """
    if not specs:
        raise UsageError("no penalty is given to set against the task; name at least one, such as --penalty jacreg:0.1")
    found = [penalty_registry.parse(spec) for spec in specs]
    names = [penalty.name for penalty in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the penalty {name!r} is given twice; leave one of them out")
    return found


class DecomposeProbe(Probe):
    """The update split into task and penalties, by parameter group: who drives it?

    Penalties are the measures other probes report, differentiated with respect to the weights at the state the free
    relaxation reached, which is held fixed; weighted and scaled as in training, over the whole batch.
    """

    name = "decompose"
    version = 2
    Params: ClassVar[type[Params]] = DecomposeParams
    needs_loss = True

    def run(self, system: System, params: DecomposeParams, progress: Progress = silent) -> xr.Dataset:
        """Measure; dimensions ``penalty``, ``group``, ``parameter``, ``batch`` and ``sample``.

        Args:
            system: A system with a loss and parameters.
            params: Estimator, penalties and batches.
            progress: Told how far the measurement is.

        Raises:
            UsageError: If there are fewer samples than batches.
            DyneqError: If the system has no gradient or not what a penalty needs, or too many samples diverge.
        """
        from dyneq.probes.decompose_dataset import dataset

        return dataset(
            measure(
                system,
                entries((params.gradient,), (), params.t1, 0)[0],
                penalties(params.penalty),
                batches=params.batches,
                samples=params.samples,
                draws=params.draws,
                seed=params.seed,
                progress=progress,
            )
        )

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return who drives the update, and at which weight a penalty would."""
        from dyneq.probes.decompose_summary import summarize

        return summarize(ds)

    def text(self, ds: xr.Dataset) -> str:
        """Return a table of the penalties, one of the groups, and the parameters that are driven most."""
        from dyneq.probes.decompose_text import tables

        return tables(ds)

    def document(self, ds: xr.Dataset) -> dict[str, Any]:
        """Return the result as plain values."""
        from dyneq.probes.decompose_text import document

        return document(ds)

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw norm ratios and cosines by group; ``ax`` are two."""
        from dyneq.probes.decompose_plot import plot_decomposition

        return plot_decomposition(ds, ax)
