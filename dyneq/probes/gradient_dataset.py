"""A set of gradients as a dataset: inner products, agreement with the references by group, diagnostics, marks, cost."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dyneq.gradients import agreement
from dyneq.gradients.agreement import Interval, Pair
from dyneq.gradients.base import Mark
from dyneq.probes.base import CERTIFICATE, COST, EXACT, annotate
from dyneq.probes.gradient_sets import GradientSet

Array = NDArray[np.float64]

#: The group that holds all parameters.
ALL = "all"
_MEAN = "mean over batches of the cosine with the reference's gradient of the same batch"
_TIMES = "relative to the mean square of the estimate's gradient"
#: Statistics of an estimator against a reference, each with an interval: how it is found, what it is, its unit.
PAIRED: dict[str, tuple[Callable[[Pair], Interval], str, str]] = {
    "cosine": (agreement.mean_of_cosines, _MEAN, "1"),
    "cosine_of_means": (agreement.cosine_of_means, "cosine between the means over all batches", "1"),
    "norm_ratio": (agreement.norm_ratio, "k = norm(g)/norm(g_ref), geometric mean over batches", "1"),
    "limit_cosine": (
        agreement.limit_cosine,
        "cosine between the expected gradients, which averaging over ever more batches tends to; NaN where an expected "
        "gradient cannot be told from 0",
        "1",
    ),
    "bias": (
        lambda p: agreement.error_parts(p, fitted=True).bias,
        f"squared norm of the expected g - s g_ref, s fitted by least squares, {_TIMES}",
        "1",
    ),
    "variance": (
        lambda p: agreement.error_parts(p, fitted=True).variance,
        f"trace of the covariance of g - s g_ref over batches, s fitted by least squares, {_TIMES}",
        "1",
    ),
    "bias_share": (
        lambda p: agreement.error_parts(p, fitted=True).share,
        "share of the squared error of one batch that is bias and stays when batches are averaged, s fitted",
        "1",
    ),
    "raw_bias": (
        lambda p: agreement.error_parts(p, fitted=False).bias,
        "squared norm of the expected g - g_ref, relative to the reference's mean square",
        "1",
    ),
    "raw_variance": (
        lambda p: agreement.error_parts(p, fitted=False).variance,
        "trace of the covariance of g - g_ref over batches, relative to the reference's mean square",
        "1",
    ),
}
_SELF = "mean pairwise cosine between one estimator's gradients of different batches"
#: Diagnostics every result has, NaN where an estimator gives none; and what others are called.
_DIAGNOSTICS = {
    "force_residual": ("norm(F)/norm(z) at the state of the gradient", "1/time"),
    "adjoint_residual": ("norm(J^T a + dL/dz)/norm(dL/dz) of the adjoint a the estimator found", "1"),
    "adjoint_norm": ("norm of the adjoint a", "nats time/state"),
    "displacement": ("norm(z^beta - z*), how far the nudge moved the state", "state"),
    "t2": ("step of the nudged phase that was kept", "steps"),
}
_OTHERS = {
    "force_residual_t1": ("norm(F)/norm(z) after t1 steps, before any refinement", "1/time"),
    "loss_gradient_norm": ("norm of dL/dz", "nats/state"),
    "input_cotangent_norm": ("norm of dL/dz_0", "nats/state"),
    "increment": ("path of the contrast over the unit of time before the step kept, relative", "1"),
    "nonlinearity": ("share of the force's response to the nudge that is not linear", "1"),
}


def grouped(found: GradientSet) -> tuple[list[str], Array]:
    """Return the groups, all parameters first, and their inner products ``[group, estimator, batch, ...]``."""
    groups = list(dict.fromkeys(found.groups))
    groups = [] if groups == [ALL] else groups  # the only group of a plain module is called so itself
    parts = [found.gram.sum(0)]
    parts += [found.gram[np.array(found.groups) == g].sum(0) for g in groups]
    return [ALL, *groups], np.stack(parts)


def dataset(found: GradientSet, *, keep_gram: bool = True) -> xr.Dataset:
    """Return the dataset of a set of gradients.

    Dimensions ``estimator`` (references, horizon and estimators), ``reference``, ``group``, ``parameter``, ``batch``,
    ``sample``, ``mark`` and ``bound`` (the ends of a confidence interval).

    Args:
        found: The gradients.
        keep_gram: Whether the inner products themselves are kept.
    """
    names, gram = grouped(found)
    labels = [e.label for e in found.entries]
    references = [i for i, e in enumerate(found.entries) if e.role == "reference"]
    variables: dict[str, Any] = {}
    over = ("reference", "estimator", "group")
    for name, (statistic, words, unit) in PAIRED.items():
        found_here = [[statistic(agreement.pair(gram, e, r)) for e in range(len(labels))] for r in references]
        put(variables, name, over, found_here, words, unit)
    of_parameters = ("reference", "estimator", "parameter")
    for name in ("cosine", "norm_ratio"):
        statistic, words, unit = PAIRED[name]
        here = [[statistic(agreement.pair(found.gram, e, r)) for e in range(len(labels))] for r in references]
        put(variables, f"parameter_{name}", of_parameters, here, f"{words}, for single parameters", unit)
    put(
        variables,
        "self_cosine",
        ("estimator", "group"),
        [agreement.self_cosine(gram[:, e, :, e, :]) for e in range(len(labels))],
        _SELF,
        "1",
    )
    for name, of, words in (
        ("batch_cosine", agreement.cosines, "cosine with the reference's gradient of the same batch"),
        ("batch_log_norm_ratio", agreement.log_ratios, "log of norm(g)/norm(g_ref) of the same batch"),
    ):
        each = [[of(agreement.pair(gram, e, r)) for e in range(len(labels))] for r in references]
        variables[name] = ((*over, "batch"), np.array(each), {"long_name": words, "units": "1"})
    if keep_gram:
        words = "inner product of two gradients over one parameter"
        dims = ("parameter", "estimator", "batch", "other_estimator", "other_batch")
        variables["gram"] = (dims, found.gram, {"long_name": words, "units": "(nats per token)^2"})
    variables |= _of_samples(found) | _of_estimators(found)
    coords: dict[str, Any] = {
        "estimator": np.array(labels, dtype=object),
        "reference": np.array([labels[r] for r in references], dtype=object),
        "group": np.array(names, dtype=object),
        "parameter": np.array(found.parameters, dtype=object),
        "parameter_group": ("parameter", np.array(found.groups, dtype=object)),
        "batch": np.arange(found.gram.shape[2]),
        "sample": np.arange(len(found.batch)),
        "mark": np.array([m.name.lower() for m in Mark], dtype=object),
        "bound": np.array(["low", "high"], dtype=object),
    }
    if keep_gram:
        coords |= {"other_estimator": coords["estimator"], "other_batch": coords["batch"]}
    ds = xr.Dataset(variables, coords)
    bars = {str(n).removesuffix("_error"): str(n) for n in ds.data_vars if str(n).endswith("_error")}
    roles = dict.fromkeys(("force_residual", "force_residual_t1", "adjoint_residual", "free_residual"), CERTIFICATE)
    roles |= {"cost": COST, "seconds": COST, "batch_of_sample": EXACT, "depth": EXACT}
    return annotate(ds, bars=bars, roles=roles).assign_attrs(
        t1=found.t1, level=agreement.LEVEL, batch_size=int((found.batch == 0).sum())
    )


def put(variables: dict[str, Any], name: str, dims: tuple[str, ...], found: Any, words: str, unit: str) -> None:
    """Add a statistic, its interval and the larger half of it.

    Args:
        variables: What it is added to.
        name: Name of the statistic; the others are called ``name_interval`` and ``name_error``.
        dims: Dimensions of the nested lists, and after them of the arrays of the intervals.
        found: Intervals in nested lists.
        words: What the statistic is.
        unit: Its unit.
    """

    def of(take: Callable[[Interval], Array], nested: Any = found) -> Any:
        return [of(take, x) for x in nested] if isinstance(nested, list) else take(nested)

    percent = f"{100 * agreement.LEVEL:g} %"
    ends = np.stack([np.array(of(lambda x: x.low)), np.array(of(lambda x: x.high))], axis=-1)
    described = {"long_name": words, "units": unit}
    variables[name] = (dims, np.array(of(lambda x: x.value)), described)
    variables[f"{name}_interval"] = (
        (*dims, "bound"),
        ends,
        {"long_name": f"ends of its {percent} interval over batches", "units": unit},
    )
    variables[f"{name}_error"] = (
        dims,
        np.array(of(lambda x: x.error)),
        {"long_name": f"distance to the farther end of its {percent} interval", "units": unit},
    )


def _of_samples(found: GradientSet) -> dict[str, Any]:
    """Return the variables over samples."""
    shape = (len(found.entries), len(found.batch))
    variables: dict[str, Any] = {}
    described = {**_DIAGNOSTICS, **_OTHERS}
    for name in dict.fromkeys([*_DIAGNOSTICS, *found.diagnostics]):
        words, unit = described.get(name, (f"{name} as the estimator reports it", ""))
        values = found.diagnostics.get(name, np.full(shape, np.nan))
        variables[name] = (("estimator", "sample"), values, {"long_name": words, "units": unit})
    marked = np.stack([found.marks.get(m, np.zeros(shape, dtype=bool)) for m in Mark])
    words = "whether a reservation applies to a sample"
    status = np.array([s.value for s in found.status], dtype=object)
    asymmetry = "norm(Jv - J^T v)/norm(Jv) after the free relaxation, mean over random v"
    return {
        **variables,
        "loss": (("estimator", "sample"), found.loss, {"long_name": "loss at that state", "units": "nats"}),
        "marked": (("mark", "estimator", "sample"), marked, {"long_name": words, "units": ""}),
        "batch_of_sample": ("sample", found.batch, {"long_name": "batch of a sample; -1: left out", "units": ""}),
        "free_status": ("sample", status, {"long_name": "how the free relaxation ended", "units": ""}),
        "free_residual": (
            "sample",
            found.free_residual,
            {"long_name": "norm(F)/norm(z) after the free relaxation", "units": "1/time"},
        ),
        "asymmetry": ("sample", found.asymmetry, {"long_name": asymmetry, "units": "1"}),
        "asymmetry_error": ("sample", found.asymmetry_error, {"long_name": "standard error over v", "units": "1"}),
    }


def _of_estimators(found: GradientSet) -> dict[str, Any]:
    """Return the variables over estimators."""

    def words(values: list[str]) -> NDArray[np.object_]:
        return np.array(values, dtype=object)

    cost, unit = found.cost.mean(1), "forces"
    role = words([e.role for e in found.entries])
    depth = np.array([float(e.depth) for e in found.entries])
    long = "forces and products it took, of the batch it was taken of; NaN where it does not say"
    return {
        "role": ("estimator", role, {"long_name": "reference, horizon or estimator", "units": ""}),
        "depth": ("estimator", depth, {"long_name": "steps of its relaxation", "units": "steps"}),
        "refusal": ("estimator", words(found.refusal), {"long_name": "why there is no gradient", "units": ""}),
        "cost": ("estimator", cost, {"long_name": long, "units": unit}),
        "seconds": ("estimator", found.seconds, {"long_name": "time spent, all batches", "units": "s"}),
    }
