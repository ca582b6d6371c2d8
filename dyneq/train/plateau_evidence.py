"""What the log of a run says of its descent, and the numbers that tell one plateau from another."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dyneq.train.log import Record

#: Updates the slope is fitted to: the fewest that decide.
WINDOWS = (100, 200, 400)
#: Fall of the loss, nats an update, below which a run counts as stalled: 0.02 nats in 100 updates.
SLOW = 2e-4
#: Confidence of the interval of the slope.
LEVEL = 0.99
#: Evaluations within the window that the validation loss needs to be a witness.
EVALUATIONS = 4


def number(record: Record, name: str) -> float | None:
    """Return a number of a record, which may be the string a log keeps for one that is not finite; None without one."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def penalty_share(record: Record) -> float | None:
    """Return the share of an update's squared norm that belongs to penalties, <penalties, update>/norm(update)^2.

    Where the record does not state it, it follows from the norm ratios and cosines, with different penalties taken to
    be orthogonal. 0 in an update without penalties; None where it is not defined.
    """
    stated = number(record, "penalty_share")
    if stated is None:
        names = [
            name.removesuffix("_ratio") for name in record if name.startswith("penalty_") and name.endswith("_ratio")
        ]
        pairs = [(number(record, f"{name}_ratio"), number(record, f"{name}_cosine")) for name in names]
        known = [(r, 0.0 if r == 0 else c) for r, c in pairs if r is not None and (r == 0 or c is not None)]
        if len(known) < len(pairs):
            return None
        with_task = sum(r * (c or 0.0) for r, c in known)
        own = sum(r * r for r, _ in known)
        whole = 1 + 2 * with_task + own
        if not math.isfinite(whole) or whole <= 0:
            return None
        stated = (with_task + own) / whole
    return stated if math.isfinite(stated) else None


@dataclass(frozen=True)
class Slope:
    """Slope of the training loss, nats an update: value and interval, over ``n`` updates; and their median loss."""

    value: float
    low: float
    high: float
    n: int
    loss: float


def stretch(records: Iterable[Record]) -> list[Record]:
    """Return the latest records with a finite loss that belong together."""
    taken: deque[Record] = deque(maxlen=max(WINDOWS))
    for record in records:
        act = str(record.get("act", ""))
        back = "rolled_back_to" in record or "rolls back" in act  # older logs have the sentence alone
        if back or "switch" in record or "penalty_prewarm" in record:
            taken.clear()
            continue
        loss, step = number(record, "loss"), number(record, "step")
        if loss is not None and step is not None and math.isfinite(loss) and math.isfinite(step):
            taken.append(record)
    return list(taken)


def slope_of(taken: list[Record]) -> Slope | str:
    """Return the slope over the fewest updates that decide, else over all; a sentence where there are too few."""
    found = None
    for n in WINDOWS:
        if len(taken) < n:
            break
        found = _fit(taken[-n:])
        if found is not None and (found.high < 0 or found.low >= -SLOW):
            return found
    if found is None:
        return f"whether the loss descends takes {WINDOWS[0]} updates of one kind in a row, and there are {len(taken)}"
    return found


def _fit(taken: list[Record]) -> Slope | None:
    step = np.array([number(record, "step") for record in taken], dtype=float)
    loss = np.array([number(record, "loss") for record in taken], dtype=float)
    if not np.all(np.diff(step) > 0) or not np.abs(loss).max() < 1e100:
        return None
    slope, intercept, low, high = (float(v) for v in stats.theilslopes(loss, step, LEVEL))
    rest = loss - intercept - slope * step
    rest = rest - rest.mean()
    power = float(rest @ rest)
    alike = min(max(float(rest[1:] @ rest[:-1]) / power, 0.0), 0.95) if power > 0 else 0.0
    wider = math.sqrt((1 + alike) / (1 - alike))  # of an autoregressive noise of the first order
    return Slope(
        slope, slope - wider * (slope - low), slope + wider * (high - slope), len(taken), float(np.median(loss))
    )


def validation_falls(latest: list[Record]) -> float | None:
    """Return by how much the validation loss falls in 100 updates, None if no fall can be told from its noise."""
    pairs = [(number(r, "step"), number(r, "validation_loss")) for r in latest]
    known = [(s, v) for s, v in pairs if s is not None and v is not None and abs(v) < 1e100]
    if len(known) < EVALUATIONS:
        return None
    step, loss = np.array(known).T
    fit = stats.linregress(step, loss)
    quantile = float(stats.t.ppf(0.5 + LEVEL / 2, len(known) - 2))
    falls = fit.slope + quantile * fit.stderr < 0
    return -100 * float(fit.slope) if falls and fit.slope < -1e-9 else None


def measured_of(latest: list[Record]) -> dict[str, float | None]:
    """Return the numbers that tell the plateaus apart, over the window; None where the log has none."""

    def values(*names: str) -> list[float]:
        found = []
        for record in latest:
            value = next((v for name in names if (v := number(record, name)) is not None), None)
            if value is not None:
                found.append(math.inf if math.isnan(value) else value)
        return found

    def middle(found: list[float]) -> float | None:
        return float(np.median(found)) if found else None

    # medians are of numbers that may be infinite; a share is one of counts
    skipped = values("nudge_skipped")
    shares = [s for record in latest if (s := penalty_share(record)) is not None]
    penalised = any(name == "penalty_share" or name.endswith("_ratio") for record in latest for name in record)
    adjoint = [v for record in latest if (v := number(record, "adjoint_residual")) is not None and not math.isnan(v)]
    rates = [v for record in latest if (v := number(record, "penalty_floss_measure")) is not None and math.isfinite(v)]
    moduli = [
        v
        for record in latest
        for name in ("guard_modulus", "validation_multiplier", "penalty_spectral_measure")
        if (v := number(record, name)) is not None and math.isfinite(v)
    ]
    return {
        "force_residual": middle(values("force_residual_t1", "force_residual")),
        "skipped": float(np.mean(np.array(skipped) > 0)) if skipped else None,
        "penalty_share": float(np.mean(np.clip(shares, 0.0, 1.0))) if shares and penalised else None,
        "adjoint_residual": middle(adjoint),
        "modulus": middle(moduli),
        "contraction_rate": middle(rates),
    }


def pinned(taken: list[Record]) -> float | None:
    """Return what a controller has moved and then left exactly where it is, as one at its bound does."""
    for name in sorted({n for r in taken for n in r if n.startswith("penalty_") and n.endswith("_controller")}):
        weights = [v for r in taken if (v := number(r, name)) is not None]
        stayed = next((i for i, w in enumerate(reversed(weights)) if w != weights[-1]), len(weights))
        if len(weights) // 2 <= stayed < len(weights):
            return weights[-1]
    return None
