"""The parts of an update as a dataset: cosines, norm ratios and shares by group and parameter, with intervals."""

from typing import Any

import numpy as np
import xarray as xr

from dyneq.gradients import agreement
from dyneq.gradients.agreement import Array, Interval, student_interval
from dyneq.gradients.base import Mark
from dyneq.probes.base import CERTIFICATE, EXACT, annotate
from dyneq.probes.decompose_measure import Parts, combined, draw_noise
from dyneq.probes.decompose_rules import read
from dyneq.probes.gradient_dataset import ALL
from dyneq.probes.triangulate_rules import Ends

_GEOMETRIC = "geometric mean over batches"


def dataset(found: Parts) -> xr.Dataset:
    """Return the dataset of a decomposition.

    Dimensions ``penalty``, ``group`` (``all`` first), ``parameter``, ``batch``, ``sample``, ``estimator`` (the task's),
    ``mark`` and ``bound``.

    Args:
        found: What was measured.
    """
    by_parameter = combined(found)
    groups = list(dict.fromkeys(found.groups))
    groups = [] if groups == [ALL] else groups  # the only group of a plain module is called so itself
    member = np.array([np.ones(len(found.groups)), *(np.array(found.groups) == g for g in groups)], dtype=float)
    by_group = np.einsum("gp,pbij->gbij", member, by_parameter)
    variables: dict[str, Any] = {}

    def put(name: str, dims: Any, values: Any, words: str, units: str = "") -> None:
        variables[name] = (dims, values, {"long_name": words, "units": units})

    def put_interval(name: str, dims: tuple[str, ...], ends: Interval, words: str, units: str = "1") -> None:
        percent = f"{100 * agreement.LEVEL:g} %"
        put(name, dims, ends.value, words, units)
        limits = np.stack([ends.low, ends.high], axis=-1)
        put(f"{name}_interval", (*dims, "bound"), limits, f"ends of its {percent} interval over batches", units)
        error = np.full(np.shape(ends.value), np.nan)  # none for what is infinite
        known = np.isfinite(ends.value)
        error[known] = Interval(*(x[known] for x in (ends.value, ends.low, ends.high))).error
        put(f"{name}_error", dims, error, f"distance to the farther end of its {percent} interval", units)

    for prefix, gram, over in (("", by_group, "group"), ("parameter_", by_parameter, "parameter")):
        cosine, ratio = _against_task(gram)
        at = ("penalty", over)
        put_interval(f"{prefix}cosine", at, cosine, "cosine of the penalty's gradient with the task's")
        words = f"k = norm(weight g_penalty)/norm(g_task), {_GEOMETRIC}"
        put_interval(f"{prefix}ratio", at, ratio, words)
    at = ("penalty", "group")
    shares, total, alone = _update(by_group)
    put_interval("share", at, student_interval(shares[1:]), "<weight g_penalty, update>/norm(update)^2")
    put_interval("task_share", ("group",), student_interval(shares[0]), "<g_task, update>/norm(update)^2")
    put_interval("task_cosine", ("group",), student_interval(total).clipped(-1, 1), "cosine of task and whole update")
    put_interval(
        "cosine_alone", at, student_interval(alone).clipped(-1, 1), "cosine of task and task plus this penalty"
    )
    ratio = Interval(*(variables["ratio"][1], *np.moveaxis(variables["ratio_interval"][1], -1, 0)))
    put_interval(
        "equal_weight", at, _equal(found.weights, ratio), "weight at which the penalty's norm is that of the task"
    )
    put_interval("task_norm", ("group",), _norm(by_group), f"norm of the task's gradient, {_GEOMETRIC}", "nats")
    put_interval("value", ("penalty",), student_interval(found.values), "value of the penalty, without its weight", "")
    put("weight", "penalty", found.weights, "weight of the penalty")
    put("draws", "penalty", np.array(found.draws, dtype=float), "gradients it was averaged over", "1")
    noise = [_noise(draw_noise(found, p), member) for p in range(len(found.names))]
    words = "share of the penalty's squared norm that is the noise of its random vectors"
    put("draw_noise", at, np.stack(noise), words, "1")
    _samples(put, found)
    coords: dict[str, Any] = {
        "penalty": _words(found.names),
        "group": _words([ALL, *groups]),
        "parameter": _words(found.parameters),
        "parameter_group": ("parameter", _words(found.groups)),
        "batch": np.arange(found.gram.shape[1]),
        "sample": np.arange(len(found.batch)),
        "estimator": _words([found.task.label]),
        "mark": _words([m.name.lower() for m in Mark]),
        "bound": _words(["low", "high"]),
    }
    ds = xr.Dataset(variables, coords)
    bars = {str(n).removesuffix("_error"): str(n) for n in ds.data_vars if str(n).endswith("_error")}
    roles = dict.fromkeys(("force_residual", "free_residual", "draw_noise"), CERTIFICATE)
    ds = annotate(ds, bars=bars, roles=roles | dict.fromkeys(("batch_of_sample", "draws", "weight"), EXACT))
    ds["measure"] = ("penalty", _words(found.what))
    ds["measure"].attrs.update(long_name="what the penalty measures", units="")
    readings = [read(*_ratios(ds, p)) for p in range(len(found.names))]
    ds["reading"] = ("penalty", _words([r.value for r in readings]))
    ds["reading"].attrs.update(long_name="what is said of the penalty, by rules on intervals", units="")
    size = int((found.batch == 0).sum())
    return ds.assign_attrs(t1=found.t1, level=agreement.LEVEL, batch_size=size)


def _ratios(ds: xr.Dataset, p: int) -> tuple[Ends, list[Ends]]:
    found = [Ends.of(ds, "ratio", penalty=p, group=g) for g in range(ds.sizes["group"])]
    return found[0], found[1:]


def _against_task(gram: Array) -> tuple[Interval, Interval]:
    """Return cosine and norm ratio of every penalty to the task, ``[penalty, over]``, from ``[over, batch, i, j]``."""
    squares = np.diagonal(gram, axis1=-2, axis2=-1)
    task, pen = squares[..., :1], squares[..., 1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(np.where(task > 0, task, np.nan)) * np.sqrt(np.where(pen > 0, pen, np.nan))
        cosine = gram[..., 0, 1:] / root
        logs = 0.5 * (np.log(np.where(pen > 0, pen, np.nan)) - np.log(np.where(task > 0, task, np.nan)))
    ratio = _exp(student_interval(np.moveaxis(logs, -1, 0)))
    none = np.moveaxis((pen == 0) & (task > 0), -1, 0).all(-1)  # no logarithm, but a value
    ratio = Interval(*(np.where(none, 0.0, x) for x in (ratio.value, ratio.low, ratio.high)))
    return student_interval(np.moveaxis(cosine, -1, 0)).clipped(-1, 1), ratio


def _update(gram: Array) -> tuple[Array, Array, Array]:
    """Return shares ``[part, group, batch]``, cosines with the whole update and with one penalty's alone."""
    with_update = gram.sum(-1)
    whole, task = with_update.sum(-1), gram[..., 0, 0]
    pen = np.diagonal(gram, axis1=-2, axis2=-1)[..., 1:]
    both = task[..., None] + 2 * gram[..., 0, 1:] + pen
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(whole[..., None] > 0, with_update / whole[..., None], np.nan)
        total = np.where((whole > 0) & (task > 0), with_update[..., 0] / np.sqrt(whole * task), np.nan)
        top = task[..., None] + gram[..., 0, 1:]
        alone = np.where((both > 0) & (task > 0)[..., None], top / np.sqrt(both * task[..., None]), np.nan)
    return np.moveaxis(shares, -1, 0), total, np.moveaxis(alone, -1, 0)


def _exp(found: Interval) -> Interval:
    return Interval(np.exp(found.value), np.exp(found.low), np.exp(found.high))


def _norm(gram: Array) -> Interval:
    task = gram[..., 0, 0]
    with np.errstate(divide="ignore"):
        return _exp(student_interval(0.5 * np.log(np.where(task > 0, task, np.nan))))


def _equal(weights: Array, ratio: Interval) -> Interval:
    """Return weight/k: infinite for a penalty without a gradient."""
    with np.errstate(divide="ignore"):
        return Interval(*(weights[:, None] / x for x in (ratio.value, ratio.high, ratio.low)))


def _noise(parts: Array, member: Array) -> Array:
    excess, whole = (np.einsum("gp,pb->gb", member, x).mean(-1) for x in parts)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where(whole > 0, excess / whole, np.nan)
    return found


def _samples(put: Any, found: Parts) -> None:
    """Add what is known of single samples."""
    put("batch_of_sample", "sample", found.batch, "batch of a sample; -1: left out")
    put("free_status", "sample", _words([s.value for s in found.status]), "how the free relaxation ended")
    put("free_residual", "sample", found.free_residual, "norm(F)/norm(z) at the state of the penalties", "1/time")
    put("force_residual", "sample", found.force_residual, "norm(F)/norm(z) at the state of the task's loss", "1/time")
    put("loss", "sample", found.loss, "loss at that state", "nats")
    none = np.zeros(len(found.batch), dtype=bool)
    marked = np.stack([found.marks.get(m, none) for m in Mark])[:, None]
    put("marked", ("mark", "estimator", "sample"), marked, "whether a reservation applies to the task's gradient")


def _words(values: list[str]) -> Any:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out
