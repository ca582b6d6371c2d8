"""Reading a knockout result: sentences and tables for people."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from dyneq.probes.base import Finding

#: What a crossing of each kind means.
_MEANING = {
    "hopf": "a complex pair crosses (Hopf): beyond it the root is left by an oscillation",
    "real": "a real eigenvalue crosses 0 while the root lives on (transcritical or pitchfork): no oscillation",
    "neimark-sacker": "a complex multiplier leaves the unit circle (Neimark-Sacker): beyond it the map oscillates",
    "flip": "a multiplier passes -1 (flip): beyond it the map alternates with period 2",
}
_CRITICALITY = {
    "supercritical": "supercritical: the oscillation grows gently out of the root, as the square root of the distance",
    "subcritical": "subcritical: there is no small stable cycle, the state jumps away, and may be away already before",
    "undetermined": "whether it is super- or subcritical is undetermined",
}


def summarize(ds: xr.Dataset) -> list[Finding]:
    """Return the findings of a knockout result, the first one its one-line summary."""
    findings = [_headline(ds)]
    kind = ds["critical_kind"].values
    for name, meaning in _MEANING.items():
        if len(at := np.flatnonzero(kind == name)):
            findings.append(Finding("fact", f"{_some(at)}: {meaning}"))
    for name, meaning in _CRITICALITY.items():
        if len(at := np.flatnonzero(ds["criticality"].values == name)):
            level = "undetermined" if name == "undetermined" else "fact"
            why = sorted({str(r) for r in ds["lyapunov_reason"].values[at] if r})
            findings.append(Finding(level, f"{_some(at)}: {meaning}" + (f" ({'; '.join(why)})" if why else "")))
    if len(at := np.flatnonzero((kind == "undetermined") | (kind == "lost"))):
        text = "the margin changes sign but not by a clear crossing of one pair; use a finer --alpha grid"
        findings.append(Finding("undetermined", f"{_some(at)}: {text}"))
    if len(at := np.flatnonzero(ds["sign_changes"].values > 1)):
        findings.append(Finding("warning", f"{_some(at)} cross more than once; the crossing nearest to 1 is reported"))
    findings += _ends(ds) + _relaxations(ds)
    if ds.sizes["alpha"] == 1:
        text = "one alpha only: floor and pair are those at it, but no crossing can be looked for; give --alpha twice"
        findings.append(Finding("warning", text))
    return findings


def part_label(ds: xr.Dataset) -> str:
    """Return what was scaled, in words."""
    part = str(ds.attrs["part"])
    known = {"antisymmetric": "antisymmetric part of W_O W_V", "ffn": "feed-forward branch"}
    return known.get(part, part.replace(":", " "))


def _headline(ds: xr.Dataset) -> Finding:
    part, samples = part_label(ds), ds.sizes["sample"]
    alphas = ds["alpha"].values
    kind = ds["critical_kind"].values
    located = np.flatnonzero(np.isfinite(ds["critical_alpha"].values) & (kind != "undetermined"))
    if len(located):
        nearest = int(located[np.abs(ds["critical_alpha"].values[located] - 1).argmin()])
        row = ds.isel(sample=nearest)
        return Finding(
            "fact",
            f"scaling {part}: {len(located)} of {samples} samples cross the stability boundary, nearest to full "
            f"strength {_place(row)} at alpha = {_with_error(row['critical_alpha'], row['critical_alpha_error'])}",
        )
    known = np.isfinite(ds["margin"].values)
    if not known.any():
        return Finding(
            "undetermined", f"scaling {part}: no root was found at any alpha, so nothing is said of stability"
        )
    top = int(np.abs(alphas - 1).argmin())
    margin = ds["margin"].values[top]
    unstable, rooted = int((margin > 0).sum()), int(np.isfinite(margin).sum())
    span = f"alpha from {alphas[0]:g} to {alphas[-1]:g}"
    share = f"at alpha = {alphas[top]:g} the roots of {unstable} of {rooted} samples are unstable"
    if len(alphas) == 1:
        return Finding("fact", f"scaling {part}: {share}")
    unclear = bool(np.isin(kind, ("undetermined", "lost")).any())
    return Finding(
        "undetermined" if unclear else "fact",
        f"scaling {part}, {span}: no {'clear ' if unclear else ''}crossing on the followed roots; {share}",
    )


def _ends(ds: xr.Dataset) -> list[Finding]:
    """Return where branches end, and which samples have none."""
    findings = []
    kind = ds["branch_end_kind"].values
    if len(at := np.flatnonzero(kind == "fold")):
        ends = ds["branch_end"].values[at]
        text = (
            f"{_some(at)}: the followed root meets another one and both vanish (fold) at alpha "
            f"{ends.min():.4f}{f' to {ends.max():.4f}' if len(at) > 1 else ''}; beyond it the state goes elsewhere"
        )
        findings.append(Finding("fact", text))
    if len(at := np.flatnonzero(kind == "lost")):
        text = "the root could not be followed over the whole grid, for a reason not known; use a finer --alpha grid"
        findings.append(Finding("undetermined", f"{_some(at)}: {text}"))
    if len(at := np.flatnonzero(np.isnan(ds["anchor"].values))):
        findings.append(Finding("undetermined", f"{_some(at)}: no root was found (try a larger --depth)"))
    return findings


def _relaxations(ds: xr.Dataset) -> list[Finding]:
    """Return what the relaxations do, and where they disagree with the roots."""
    alphas, status, margin = ds["alpha"].values, ds["status"].values, ds["margin"].values
    settled = (status == "converged").sum(1)
    counts = ", ".join(f"{n} at {a:g}" for a, n in zip(alphas[::-1], settled[::-1], strict=True))
    findings = [Finding("fact", f"relaxations that settle within {ds.attrs['depth']} steps, by alpha: {counts}")]
    with np.errstate(invalid="ignore"):
        restless = (status == "max_steps") & (margin < -ds["error"].values)
    if ds.attrs["time"] == "flow" and restless.any():
        text = "the relaxation moves though the root is stable: slow, or Euler's step is too large (dyneq epsilon)"
        for a, row in zip(alphas[::-1], restless[::-1], strict=True):
            if row.any():
                findings.append(Finding("warning", f"alpha {a:g}, {_some(np.flatnonzero(row))}: {text}"))
    if len(at := np.flatnonzero((status == "diverged").any(0))):
        findings.append(Finding("warning", f"{_some(at)}: a relaxation diverged; its floor is left out"))
    return findings


def knockout_text(ds: xr.Dataset) -> str:
    """Return a table over alpha, largest first, and one of the crossings."""
    samples = ds.sizes["sample"]
    head = ("alpha", "settled", "floor", "oscillation", "roots", "margin", "at")
    rows = []
    for k in range(ds.sizes["alpha"] - 1, -1, -1):
        at = ds.isel(alpha=k)
        margin = at["margin"].values
        rooted = np.isfinite(margin)
        worst = int(np.where(rooted, margin, -np.inf).argmax())
        token = at["mode_token"].values[worst]
        rows.append(
            (
                f"{float(at['alpha']):g}",
                f"{int((at['status'].values == 'converged').sum())} of {samples}",
                _largest(at["floor"].values),
                _largest(at["oscillation"].values),
                f"{int(rooted.sum())} of {samples}",
                _complex(complex(at["mu"].values[worst]), ds.attrs["time"]) if rooted.any() else "-",
                (f"sample {worst}" + (f", token {int(token)}" if token >= 0 else "")) if rooted.any() else "-",
            )
        )
    what = "leading pair" if ds.attrs["time"] == "flow" else "leading multiplier"
    lines = [f"  {part_label(ds)} times alpha; worst sample of each column, {what} at the followed root"]
    lines += _table([(*head[:5], what, head[6]), *rows])
    crossing = np.flatnonzero(np.isfinite(ds["critical_alpha"].values))
    if len(crossing):
        order = crossing[np.argsort(np.abs(ds["critical_alpha"].values[crossing] - 1))]
        entries = [("sample", "token", "critical alpha", "kind", "frequency", "Re c1", "")]
        for s in order[:20]:
            row = ds.isel(sample=int(s))
            c1 = float(row["lyapunov_coefficient"])
            entries.append(
                (
                    str(int(s)),
                    str(int(row["critical_token"])) if float(row["critical_token"]) >= 0 else "-",
                    _with_error(row["critical_alpha"], row["critical_alpha_error"]),
                    str(row["critical_kind"].item()),
                    f"{float(row['frequency']):.4f}",
                    "-"
                    if np.isnan(c1)
                    else _with_error(row["lyapunov_coefficient"], row["lyapunov_coefficient_error"]),
                    str(row["criticality"].item()),
                )
            )
        lines += ["", *_table(entries)]
        if len(order) > 20:
            lines.append(f"  ... and {len(order) - 20} more")
    if "critical_share" in ds:
        lines += ["", *_table(_head_rows(ds))]
    return "\n".join(lines)


def _head_rows(ds: xr.Dataset) -> Sequence[tuple[str, ...]]:
    """Return antisymmetric share and gain of every head where the part is nearest to full strength."""
    full = int(np.abs(ds["alpha"].values - 1).argmin())
    rows = [("head", "gain", "antisymmetric share", "share at the critical alpha nearest to 1")]
    critical = ds["critical_alpha"].values
    nearest = None if np.isnan(critical).all() else int(np.nanargmin(np.abs(critical - 1)))
    for h in range(ds.sizes["head"]):
        at = "-" if nearest is None else f"{float(ds['critical_share'][nearest, h]):.4f}"
        rows.append(
            (str(h), f"{float(ds['gain'][full, h]):.4f}", f"{float(ds['antisymmetric_share'][full, h]):.4f}", at)
        )
    return rows


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _largest(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite.max():.2e}" if len(finite) else "-"


def _complex(mu: complex, kind: str) -> str:
    value = mu if kind == "flow" else 1 + mu
    return f"{value.real:+.4f}" + (f" +- {abs(value.imag):.4f}i" if value.imag else "")


def _place(row: xr.Dataset) -> str:
    token = float(row["critical_token"])
    return f"sample {int(row['sample'])}" + (f", token {int(token)}," if token >= 0 else "")


def _with_error(value: xr.DataArray, error: xr.DataArray) -> str:
    bar = float(error)
    digits = 5 if not bar > 0 else int(np.clip(np.ceil(-np.log10(bar)), 1, 6))
    return f"{float(value):.{digits}f} +- {bar:.1e}"


def _some(at: np.ndarray) -> str:
    listed = ", ".join(str(int(i)) for i in at[:6]) + (", ..." if len(at) > 6 else "")
    return f"sample{'s' if len(at) > 1 else ''} {listed}"
