"""The ablation probe: a grid over the options of one estimator at one checkpoint."""

from typing import Any, ClassVar

import numpy as np
import xarray as xr
from pydantic import Field, model_validator

from dyneq.errors import UsageError
from dyneq.probes.ablation_effects import compare, indistinguishable
from dyneq.probes.ablation_grid import Grid, parse_grid, point_label
from dyneq.probes.base import Finding, Params, Probe, Progress, silent
from dyneq.probes.gradient_dataset import dataset
from dyneq.probes.gradient_sets import collect
from dyneq.probes.gradient_specs import Entry, entries
from dyneq.systems.protocol import System

#: Change of a cosine, and of log k, below which an option is said to do nothing.
SMALL = {"cosine": 0.02, "log_norm_ratio": 0.1}


class AblationParams(Params):
    """Parameters of the ablation probe."""

    estimator: str = Field("holo", description="estimator whose options vary, with those that do not: holo:t2=80")
    grid: tuple[str, ...] = Field(
        ("n=2,4", "r=0.02,0.1", "t2=20,60"),
        description="option and its values, such as r=0.02,0.05,0.1 or estimator=aep,track",
    )
    ref: str = Field("bptt400", description="reference")
    batches: int = Field(6, ge=1, le=64, description="disjoint batches the samples are dealt into")
    samples: int | None = Field(12, ge=1, description="samples to use, the first ones; all if null")
    t1: int | None = Field(
        None, ge=1, description="steps of the free phase where a spec states none; those of the reference if null"
    )
    faithful: float = Field(0.95, gt=0, lt=1, description="cosine from which an estimate is called faithful")
    seed: int = Field(0, ge=0, description="deals samples into batches")

    @model_validator(mode="after")
    def _readable(self) -> "AblationParams":
        _entries(self)
        if self.samples is not None and self.batches > self.samples:
            raise UsageError(
                f"{self.batches} disjoint batches need as many samples, but {self.samples} are to be used; ask for "
                "fewer --batches or more --samples"
            )
        return self


def _entries(params: AblationParams) -> tuple[Grid, list[Entry]]:
    grid = parse_grid(params.estimator, params.grid)
    return grid, entries([params.ref], grid.specs, params.t1)


class AblationProbe(Probe):
    """A grid over the options of one gradient estimator: which of them matter, for direction and for scale."""

    name = "ablation"
    version = 1
    Params: ClassVar[type[Params]] = AblationParams
    needs_loss = True
    needs_relaxation = False

    def run(self, system: System, params: AblationParams, progress: Progress = silent) -> xr.Dataset:
        """Measure the estimator at every point of the grid, on the same batches.

        Beside the dimensions of a triangulation, with one estimator a point: ``option``, those that vary.

        Args:
            system: A system with a loss and parameters.
            params: Estimator, grid, reference and batches.
            progress: Told how far the measurement is.

        Raises:
            UsageError: If there are fewer samples than batches.
            DyneqError: If the system has no gradient, too many samples diverge, or the reference fails.
        """
        grid, compared = _entries(params)
        found = collect(
            system, compared, batches=params.batches, samples=params.samples, seed=params.seed, progress=progress
        )
        ds = dataset(found).assign_attrs(faithful=params.faithful, base=params.estimator)
        shown = ["", *(point_label(grid, p) for p in grid.points)]
        index = np.array([[-1] * len(grid.options), *grid.points])
        names = np.array(grid.options, dtype=object)
        ds = ds.assign_coords(option=names).assign(
            point=("estimator", np.array(shown, dtype=object), {"long_name": "options of the point", "units": ""}),
            value_index=(
                ("estimator", "option"),
                index,
                {"long_name": "which of its values an option has; -1 for the reference", "units": ""},
            ),
        )
        measured = {"cosine": ds["batch_cosine"], "log_norm_ratio": ds["batch_log_norm_ratio"]}
        for name, array in measured.items():
            values = array.values[0, 1:, 0]
            effects = [compare(values, index[1:], o, SMALL[name]) for o in range(len(grid.options))]
            what = {"cosine": "the cosine", "log_norm_ratio": "log k"}[name]
            ds = ds.assign(
                {
                    f"{name}_effect": (
                        "option",
                        np.array([str(e.effect) for e in effects], dtype=object),
                        {"long_name": f"what an option does to {what}", "units": ""},
                    ),
                    f"{name}_change": (
                        "option",
                        np.array([e.largest for e in effects]),
                        {"long_name": f"largest mean change of {what} when this option alone changes", "units": "1"},
                    ),
                    f"{name}_change_bound": (
                        "option",
                        np.array([e.high for e in effects]),
                        {"long_name": "largest change within any of the joint intervals", "units": "1"},
                    ),
                }
            )
        cosines = ds["batch_cosine"].values[0, :, 0]
        mean = np.where(np.isfinite(cosines).all(1), cosines.mean(1), -np.inf)
        mean[0] = -np.inf
        best = int(mean.argmax())
        tied = np.zeros(len(mean), dtype=bool)
        if np.isfinite(mean[best]):
            tied[1:] = indistinguishable(cosines[1:], best - 1)
        words = "whether a point's cosine cannot be told from the best one's"
        return ds.assign(tied=("estimator", tied, {"long_name": words, "units": ""})).assign_attrs(
            best=best if np.isfinite(mean[best]) else -1
        )

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return the best point and which options matter."""
        from dyneq.probes.ablation_summary import summarize

        return summarize(ds)

    def text(self, ds: xr.Dataset) -> str:
        """Return the table of the grid."""
        from dyneq.probes.ablation_summary import ablation_text

        return ablation_text(ds)

    def document(self, ds: xr.Dataset) -> dict[str, Any]:
        """Return the result as plain values."""
        from dyneq.probes.ablation_summary import document

        return document(ds)

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw cosine and norm ratio of every point; ``ax`` are two."""
        from dyneq.probes.ablation_plot import plot_ablation

        return plot_ablation(ds, ax)
