"""The triangulate probe: estimators of the gradient against references, on the same batches, by parameter group."""

from typing import Any, ClassVar

import xarray as xr
from pydantic import Field, model_validator

from dyneq.errors import UsageError
from dyneq.probes.base import Finding, Params, Probe, Progress, silent
from dyneq.probes.gradient_dataset import dataset
from dyneq.probes.gradient_sets import collect
from dyneq.probes.gradient_specs import entries
from dyneq.probes.triangulate_rules import with_readings
from dyneq.probes.triangulate_without import with_arms
from dyneq.systems.protocol import System

#: What is compared where nothing is asked for: the exact adjoint, the corrected estimators, and two negative controls.
ESTIMATORS = ("adjoint:solver=gmres", "ep", "aep", "holo4", "track", "dyadic", "phantom5", "fa")


class TriangulateParams(Params):
    """Parameters of the triangulate probe."""

    ref: tuple[str, ...] = Field(("bptt400",), description="reference; the first is what estimators are judged by")
    estimator: tuple[str, ...] = Field(
        ESTIMATORS, description="estimator, such as aep or holo:n=4,r=0.05; one that is a reference is not repeated"
    )
    batches: int = Field(4, ge=1, le=64, description="disjoint batches the samples are dealt into")
    samples: int | None = Field(12, ge=1, description="samples to use, the first ones; all if null")
    t1: int | None = Field(
        None, ge=1, description="steps of the free phase where a spec states none; those of the first reference if null"
    )
    horizon: int | None = Field(
        None, ge=0, description="another depth of the reference, to see whether it is settled; 3/8 if null, 0: none"
    )
    faithful: float = Field(0.95, gt=0, lt=1, description="cosine from which an estimate is called faithful")
    seed: int = Field(0, ge=0, description="deals samples into batches and draws the vectors of the asymmetry")

    @model_validator(mode="after")
    def _readable(self) -> "TriangulateParams":
        if not self.estimator:
            raise UsageError("nothing was given to compare with the reference; name an --estimator, such as aep")
        entries(self.ref, self.estimator, self.t1, self.horizon)  # a spec that is none is an error before anything runs
        if self.samples is not None and self.batches > self.samples:
            raise UsageError(
                f"{self.batches} disjoint batches need as many samples, but {self.samples} are to be used; ask for "
                "fewer --batches or more --samples"
            )
        return self


class TriangulateProbe(Probe):
    """Estimators of the gradient against a reference by parameter group: direction, scale, bias and noise."""

    name = "triangulate"
    version = 2  # 2: arms with one group removed
    Params: ClassVar[type[Params]] = TriangulateParams
    needs_loss = True
    needs_relaxation = False

    def run(self, system: System, params: TriangulateParams, progress: Progress = silent) -> xr.Dataset:
        """Measure every estimator on every batch.

        Args:
            system: A system with a loss and parameters.
            params: References, estimators and batches.
            progress: Told how far the measurement is.

        Raises:
            UsageError: If there are fewer samples than batches.
            DyneqError: If the system has no gradient, too many samples diverge, or a reference fails. An estimator
                that refuses is a row with its reason.
        """
        compared = entries(params.ref, params.estimator, params.t1, params.horizon)
        found = collect(
            system, compared, batches=params.batches, samples=params.samples, seed=params.seed, progress=progress
        )
        return with_arms(with_readings(dataset(found), params.faithful), found)

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return a reading of every estimator and of the reference itself."""
        from dyneq.probes.triangulate_summary import summarize

        return summarize(ds)

    def text(self, ds: xr.Dataset) -> str:
        """Return the table of estimators and the one of groups."""
        from dyneq.probes.triangulate_text import triangulate_text

        return triangulate_text(ds)

    def document(self, ds: xr.Dataset) -> dict[str, Any]:
        """Return the result as plain values."""
        from dyneq.probes.triangulate_json import document

        return document(ds)

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw cosine and norm ratio by group; ``ax`` are two."""
        from dyneq.probes.triangulate_plot import plot_triangulation

        return plot_triangulation(ds, ax)
