"""The tables and the plain values of a sweep over learning rates."""

from typing import Any

import numpy as np
import xarray as xr

from dyneq.gradients.base import Mark
from dyneq.probes.gradient_text import legend, marks_text, number, table
from dyneq.probes.lrsweep_measure import BATCH, HELDOUT
from dyneq.probes.lrsweep_summary import best_ends, change_text
from dyneq.probes.triangulate_rules import Ends


def tables(ds: xr.Dataset) -> str:
    """Return a table of the gradients at their best rates, and the change of the loss at every rate."""
    rows = [e for e in range(ds.sizes["estimator"]) if not ds["refusal"].values[e]]
    role = ds["sample_role"].values
    sizes = " and ".join(f"{int((role == p).sum())} {w}" for p, w in _PARTS.items() if (role == p).any())
    lines = [
        f"  change of the loss by one step, nats per token, on {sizes} samples, relaxed {ds.attrs['depth']} steps; "
        f"{ds.attrs['direction']} directions; [] are {100 * ds.attrs['level']:g} % intervals over samples"
    ]
    heldout = HELDOUT in ds["part"].values
    head = (
        "",
        "|g|",
        "cos exact",
        "slope",
        "best lr",
        "change",
        *(["held out"] if heldout else []),
        "residual",
        "marks",
    )
    lines += table([head, *(_row(ds, e, heldout) for e in rows)])
    notes = legend(ds, rows)
    if notes:
        lines += ["  marks, with the number of samples:", *(f"  {n}" for n in notes)]
    lines += ["", "  change on the batch by learning rate, * best", *table(_by_rate(ds, rows))]
    if (ds["blown_up"].values > 0).any() or (ds["unsettled"].values > 0).any():
        lines.append("  !n: n samples settled before the step and do not after; xn: n samples diverge")
    return "\n".join(lines)


_PARTS = {BATCH: "batch", HELDOUT: "held-out"}


def _row(ds: xr.Dataset, e: int, heldout: bool) -> tuple[str, ...]:
    one = ds.isel(estimator=e)
    best = np.flatnonzero(ds["lr"].values == one["best_lr"].values)
    residual = "-"
    if len(best):
        used = one["residual"].values[best[0]][np.isin(ds["sample_role"].values, [BATCH, HELDOUT])]
        residual = f"{number(float(np.median(used)))} (max {number(float(used.max()))})"
    return (
        str(ds["estimator"].values[e]),
        number(float(one["gradient_norm"])),
        f"{float(one['exact_cosine']):.4f}",
        number(float(one["slope"])),
        f"{float(one['best_lr']):g}",
        change_text(best_ends(ds, e)),
        *([change_text(best_ends(ds, e, HELDOUT))] if heldout else []),
        residual,
        marks_text(ds, e),
    )


def _by_rate(ds: xr.Dataset, rows: list[int]) -> list[tuple[str, ...]]:
    lines = [("lr", *(str(ds["estimator"].values[e]) for e in rows))]
    part = ds["part"].values.tolist().index(BATCH)
    for i, rate in enumerate(ds["lr"].values):
        cells = []
        for e in rows:
            end = Ends.of(ds, "change", part=part, estimator=e, lr=i)
            lost, gone = int(ds["unsettled"].values[e, i]), int(ds["blown_up"].values[e, i])
            star = " *" if rate == ds["best_lr"].values[e] else ""
            cells.append(change_text(end) + star + (f" !{lost}" if lost else "") + (f" x{gone}" if gone else ""))
        lines.append((f"{rate:g}", *cells))
    return lines


def document(ds: xr.Dataset) -> dict[str, Any]:
    """Return gradients, rates and samples as the plain values that --json prints."""
    return {
        "depth": int(ds.attrs["depth"]),
        "direction": str(ds.attrs["direction"]),
        "level": float(ds.attrs["level"]),
        "tol": float(ds.attrs["tol"]),
        "exact_gradient_norm": float(ds.attrs["exact_norm"]),
        "lr": ds["lr"].values.tolist(),
        "gradients": [_gradient(ds, e) for e in range(ds.sizes["estimator"])],
        "samples": {
            "role": ds["sample_role"].values.tolist(),
            "free_status": ds["free_status"].values.tolist(),
            "loss": ds["base_loss"].values.tolist(),
            "force_residual": ds["base_residual"].values.tolist(),
        },
    }


def _gradient(ds: xr.Dataset, e: int) -> dict[str, Any]:
    one = ds.isel(estimator=e)
    parts = ds["part"].values.tolist()
    used = np.isin(ds["sample_role"].values, [BATCH, HELDOUT])
    rates = []
    for i, rate in enumerate(ds["lr"].values):
        residual = one["residual"].values[i][used]
        rates.append(
            {
                "lr": float(rate),
                "foretold": float(one["foretold"].values[i]),
                **{f"change_{p}": _ends(Ends.of(ds, "change", part=k, estimator=e, lr=i)) for k, p in enumerate(parts)},
                "force_residual": {"median": float(np.median(residual)), "max": float(residual.max())},
                "unsettled": int(one["unsettled"].values[i]),
                "diverged": int(one["blown_up"].values[i]),
            }
        )
    counts = one["marked"].values.sum(1)
    return {
        "gradient": str(ds["estimator"].values[e]),
        "refusal": str(one["refusal"].item()) or None,
        "depth": int(one["depth"]),
        "norm": float(one["gradient_norm"]),
        "scale": float(one["scale"]),
        "exact_cosine": float(one["exact_cosine"]),
        "slope": float(one["slope"]),
        "promise": float(one["promise"]),
        "best_lr": float(one["best_lr"]),
        "best_place": str(one["best_place"].item()),
        **{f"best_change_{p}": _ends(best_ends(ds, e, p)) for p in parts},
        "lag": _ends(Ends.of(ds, "lag", estimator=e)),
        "verdict": str(one["verdict"].item()),
        "marks": {m.name.lower(): int(n) for m, n in zip(Mark, counts, strict=True) if n},
        "rates": rates,
    }


def _ends(end: Ends) -> dict[str, float]:
    return {"value": end.value, "low": end.low, "high": end.high}
