"""A sweep over learning rates as a dataset: changes of the loss with intervals, first order, residuals, marks."""

from typing import Any

import numpy as np
import xarray as xr

from dyneq.gradients import agreement
from dyneq.gradients.agreement import Array, Interval, student_interval
from dyneq.gradients.base import Mark
from dyneq.probes.base import CERTIFICATE, COST, EXACT, annotate
from dyneq.probes.lrsweep_measure import BATCH, HELDOUT, Sweep
from dyneq.probes.lrsweep_rules import Judged, judge

_OVER = ("estimator", "lr")


def dataset(found: Sweep, tol: float) -> xr.Dataset:
    """Return the dataset of a sweep.

    Dimensions ``estimator`` (the gradients, the first one the one others are judged by), ``lr``, ``part`` (``batch``,
    the samples the gradients were taken on, and ``heldout``), ``sample``, ``mark`` and ``bound``.

    Args:
        found: What was measured.
        tol: Force residual up to which a sample counts as settled.
    """
    role = np.array(found.role, dtype=object)
    parts = [p for p in (BATCH, HELDOUT) if (role == p).any()]
    change = found.loss - found.base_loss
    means = [student_interval(change[:, :, role == p]) for p in parts]
    judged = judge(change[:, :, role == BATCH], found)
    percent = f"{100 * agreement.LEVEL:g} %"
    variables: dict[str, Any] = {}

    def put(name: str, dims: Any, values: Any, words: str, units: str = "") -> None:
        variables[name] = (dims, values, {"long_name": words, "units": units})

    def put_interval(name: str, dims: tuple[str, ...], ends: Interval, words: str, units: str) -> None:
        put(name, dims, ends.value, words, units)
        words = f"ends of its {percent} interval over samples, of paired differences"
        put(f"{name}_interval", (*dims, "bound"), np.stack([ends.low, ends.high], axis=-1), words, units)
        put(f"{name}_error", dims, ends.error, f"distance to the farther end of its {percent} interval", units)

    every = ("estimator", "lr", "sample")
    put("loss", every, found.loss, "loss after the step, relaxed again", "nats")
    put("residual", every, found.residual, "norm(F)/norm(z) after the step, relaxed again", "1/time")
    put("diverged", every, found.diverged, "whether the relaxation blew up after the step")
    put("base_loss", "sample", found.base_loss, "loss before the step", "nats")
    put("base_residual", "sample", found.base_residual, "norm(F)/norm(z) before the step", "1/time")
    put("sample_role", "sample", role, "batch of the gradient, heldout, or left out because it diverged")
    put("free_status", "sample", _words([s.value for s in found.status]), "how its relaxation ended before the step")
    all_parts = Interval(*(np.stack([getattr(m, k) for m in means]) for k in ("value", "low", "high")))
    put_interval("change", ("part", *_OVER), all_parts, "change of the mean loss by one step", "nats")
    lost = (found.residual > tol) & (found.base_residual <= tol) & ~found.diverged
    put("unsettled", _OVER, lost.sum(2).astype(float), f"samples within {tol:g} before the step, not after", "samples")
    put("blown_up", _OVER, found.diverged.sum(2).astype(float), "samples that diverge after the step", "samples")
    _first_order(put, found)
    _judged(put, put_interval, judged, change, role, parts)
    marked = np.stack([found.marks.get(m, np.zeros((len(found.entries), len(role)), dtype=bool)) for m in Mark])
    put("marked", ("mark", "estimator", "sample"), marked, "whether a reservation applies to a sample's gradient")
    put("refusal", "estimator", _words(found.refusal), "why there is no gradient")
    put("cost", "estimator", found.cost, "forces and products the gradient took; NaN where it does not say", "forces")
    put("seconds", "estimator", found.seconds, "time the gradient took", "s")
    put("depth", "estimator", np.array([float(e.depth) for e in found.entries]), "steps of its relaxation", "steps")
    coords = {
        "estimator": _words([e.label for e in found.entries]),
        "lr": found.lr,
        "part": _words(parts),
        "sample": np.arange(len(role)),
        "mark": _words([m.name.lower() for m in Mark]),
        "bound": _words(["low", "high"]),
    }
    ds = xr.Dataset(variables, coords)
    ds["lr"].attrs.update(long_name="learning rate", units="1")
    bars = {str(n).removesuffix("_error"): str(n) for n in ds.data_vars if str(n).endswith("_error")}
    roles = dict.fromkeys(("residual", "base_residual"), CERTIFICATE)
    roles |= {"cost": COST, "seconds": COST} | dict.fromkeys(("unsettled", "blown_up", "depth", "best_lr"), EXACT)
    return annotate(ds, bars=bars, roles=roles).assign_attrs(
        level=agreement.LEVEL, depth=found.depth, tol=tol, exact_norm=found.exact_norm
    )


def _first_order(put: Any, found: Sweep) -> None:
    """Add what the gradients foretell."""
    slope = -found.scale * found.inner
    promise = -found.scale * found.norm**2
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.where(found.norm > 0, found.inner / (found.norm * found.exact_norm), np.nan)
    exact = f"the exact gradient of the loss after {found.depth} steps"
    put("gradient_norm", "estimator", found.norm, "norm of the gradient", "nats")
    put("scale", "estimator", found.scale, "factor the steps along it were multiplied with", "1")
    put("exact_cosine", "estimator", cosine, f"cosine with {exact}", "1")
    put("slope", "estimator", slope, f"derivative of the change by lr at 0: -<step direction, {exact}>", "nats")
    put("promise", "estimator", promise, "the same if this gradient were exact: -scale norm(g)^2", "nats")
    put("foretold", _OVER, slope[:, None] * found.lr, "change of the loss to first order, lr times slope", "nats")


def _judged(
    put: Any, put_interval: Any, judged: list[Judged], change: Array, role: np.ndarray, parts: list[str]
) -> None:
    """Add the best learning rate of every gradient, what it gives, and what is said of it."""
    best = np.array([j.best for j in judged])
    rates = np.array([j.best_lr for j in judged])
    put("best_lr", "estimator", rates, "learning rate with the lowest loss on the batch; NaN where none is finite", "1")
    put("best_place", "estimator", _words([j.place.value for j in judged]), "where in the grid it lies")
    ends = []
    for part in parts:
        of = change[:, :, role == part]
        rows = [of[e, i] if i >= 0 else np.full(of.shape[2], np.nan) for e, i in enumerate(best)]
        ends.append(student_interval(np.stack(rows)))
    together = Interval(*(np.stack([getattr(m, k) for m in ends]) for k in ("value", "low", "high")))
    put_interval("best_change", ("part", "estimator"), together, "change of the mean loss at the best lr", "nats")
    lag = Interval(*(np.array([float(getattr(j.lag, k)) for j in judged]) for k in ("value", "low", "high")))
    put_interval(
        "lag", ("estimator",), lag, "change at its best lr minus the first gradient's at its own; above 0: less", "nats"
    )
    put("verdict", "estimator", _words([j.verdict.value for j in judged]), "what is said of the gradient")


def _words(values: list[str]) -> Any:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out
