"""The navg probe: does averaging over batches help, or is the error the same in every batch?"""

from typing import Any, ClassVar

import numpy as np
import xarray as xr
from pydantic import Field, model_validator

from dyneq.errors import UsageError
from dyneq.gradients import agreement
from dyneq.gradients.averaging import MOST, averaged_cosine, counts
from dyneq.probes.base import Finding, Params, Probe, Progress, annotate, silent
from dyneq.probes.gradient_dataset import dataset, grouped, put
from dyneq.probes.gradient_sets import collect
from dyneq.probes.gradient_specs import entries
from dyneq.systems.protocol import System


class NavgParams(Params):
    """Parameters of the navg probe."""

    estimator: tuple[str, ...] = Field(("aep", "ep", "phantom5"), description="estimator to average")
    ref: tuple[str, ...] = Field(("bptt400",), description="reference; the first is what estimators are judged by")
    batches: int = Field(16, ge=1, le=MOST, description="disjoint batches the samples are dealt into")
    samples: int | None = Field(None, ge=1, description="samples to use, the first ones; all if null")
    t1: int | None = Field(
        None, ge=1, description="steps of the free phase where a spec states none; those of the first reference if null"
    )
    faithful: float = Field(0.95, gt=0, lt=1, description="cosine from which an estimate is called faithful")
    seed: int = Field(0, ge=0, description="deals samples into batches")

    @model_validator(mode="after")
    def _readable(self) -> "NavgParams":
        if not self.estimator:
            raise UsageError("nothing was given to average; name an --estimator, such as aep")
        entries(self.ref, self.estimator, self.t1)
        if self.samples is not None and self.batches > self.samples:
            raise UsageError(
                f"{self.batches} disjoint batches need as many samples, but {self.samples} are to be used; ask for "
                "fewer --batches or more --samples"
            )
        return self


class NavgProbe(Probe):
    """Bias against variance of gradient estimates: what averaging over batches can and cannot mend."""

    name = "navg"
    version = 1
    Params: ClassVar[type[Params]] = NavgParams
    needs_loss = True
    needs_relaxation = False

    def run(self, system: System, params: NavgParams, progress: Progress = silent) -> xr.Dataset:
        """Measure every estimator on every batch, and the cosine after averaging over n of them.

        Beside the dimensions of a triangulation: ``count``, the n batches averaged over.

        Args:
            system: A system with a loss and parameters.
            params: References, estimators and batches.
            progress: Told how far the measurement is.

        Raises:
            UsageError: If there are fewer samples than batches.
            DyneqError: If the system has no gradient, too many samples diverge, or a reference fails.
        """
        compared = entries(params.ref, params.estimator, params.t1)
        found = collect(
            system, compared, batches=params.batches, samples=params.samples, seed=params.seed, progress=progress
        )
        ds = dataset(found)
        _, gram = grouped(found)
        references = range(ds.sizes["reference"])  # they come first
        averaged = counts(params.batches)
        variables: dict[str, Any] = {}
        for name, same, words in (
            ("same_cosine", True, "the reference's mean over the same n batches"),
            ("mean_cosine", False, "the reference's mean over all batches, the n among them"),
        ):
            ends = [
                [
                    [averaged_cosine(agreement.pair(gram, e, r), n, same=same) for n in averaged]
                    for e in range(ds.sizes["estimator"])
                ]
                for r in references
            ]
            words = f"cosine of the mean over n batches with {words}, mean over all choices of n"
            put(variables, name, ("reference", "estimator", "count", "group"), ends, words, "1")
        ds = ds.assign_coords(count=np.array(averaged)).assign(variables)
        ds["count"].attrs.update(long_name="batches averaged over", units="batches")
        bars = {name: f"{name}_error" for name in ("same_cosine", "mean_cosine")}
        return annotate(ds, bars=bars, roles={}).assign_attrs(faithful=params.faithful)

    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return for every estimator how much of its error is bias, and what averaging can bring."""
        from dyneq.probes.navg_summary import summarize

        return summarize(ds)

    def text(self, ds: xr.Dataset) -> str:
        """Return cosines against n, and bias and variance by group."""
        from dyneq.probes.navg_summary import navg_text

        return navg_text(ds)

    def document(self, ds: xr.Dataset) -> dict[str, Any]:
        """Return the result as plain values."""
        from dyneq.probes.navg_summary import document

        return document(ds)

    def plot(self, ds: xr.Dataset, ax: Any = None) -> Any:
        """Draw cosines against n, and bias and variance; ``ax`` are two."""
        from dyneq.probes.navg_plot import plot_navg

        return plot_navg(ds, ax)
