"""A nonnormality result as two tables."""

import numpy as np
import xarray as xr

#: Samples listed.
ROWS = 16


def tables(ds: xr.Dataset) -> str | None:
    """Return the table of the samples that grow most and that of the blocks; None without any."""
    if "growth" not in ds:
        return None
    parts = [_samples(ds)]
    if "kreiss" in ds:
        parts.append(_blocks(ds))
    if "branch_norm" in ds:
        middle = ds["branch_norm"].median("sample")
        listed = ", ".join(f"{name} {float(v):.3g}" for name, v in zip(ds["branch"].values, middle.values, strict=True))
        parts.append(f"  norm_F of the branches' Jacobians, median over samples: {listed}")
    return "\n\n".join(parts)


def _number(value: float, spec: str = ".3g") -> str:
    return "-" if np.isnan(value) else "unbounded" if np.isinf(value) else format(value, spec)


def _with(value: float, error: float) -> str:
    """Return a value with its error, which is left out where it is not known or is mere rounding."""
    small = not error > 1e-6 * max(abs(value), 1.0)
    return _number(value) if small or np.isnan(value) else f"{value:.3g} +- {error:.1g}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return "\n".join("  " + "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in [header, *rows])


def _samples(ds: xr.Dataset) -> str:
    flow, departs = "abscissa" in ds, "relative_departure" in ds
    header = ["sample", "alpha" if flow else "rho", "omega", *(["departure/norm"] if departs else [])]
    header += ["antisymmetric", "asymmetry", "growth", "after n", "kind"]
    growth = ds["growth"].values
    order = np.argsort(-np.where(np.isnan(growth), np.inf, growth), kind="stable")
    rows = []
    for i in order[:ROWS]:
        row = ds.isel(sample=int(i))

        def of(name: str, row: xr.Dataset = row) -> str:
            return _with(float(row[name]), float(row[f"{name}_error"]))

        lead = _number(float(row["abscissa" if flow else "spectral_radius"]), "+.4f" if flow else ".5f")
        cells = [str(int(row["sample"])), lead, _number(float(row["numerical_abscissa"]), "+.3g")]
        cells += [of("relative_departure")] if departs else []
        cells += [of("antisymmetric_share"), of("asymmetry"), _number(float(row["growth"]))]
        rows.append([*cells, _number(float(row["growth_step"]), ".0f"), str(row["growth_status"].item())])
    title = "  whole samples, unbounded and most growing first"
    title += f" ({ROWS} of {len(growth)})" if len(growth) > ROWS else ""
    return f"{title}\n{_table(header, rows)}"


def _blocks(ds: xr.Dataset) -> str:
    flow = "pseudospectral_abscissa" in ds
    levels = [f"{float(level):g}" for level in ds["level"].values] if flow else []
    header = ["sample", "token", "norm", "alpha" if flow else "rho", "Kreiss >=", "max |M^n|", "after n"]
    header += ["max |e^tJ|", "at t", *(f"alpha_{level}" for level in levels)] if flow else []
    rows = []
    for i in range(ds.sizes["block"]):
        row = ds.isel(block=i)
        token = int(row["block_token"])
        cells = [str(int(row["block_sample"])), "-" if token < 0 else str(token), _number(float(row["block_norm"]))]
        cells += [_number(float(row["block_abscissa"]), "+.4f") if flow else _number(float(row["block_radius"]), ".5f")]
        cells += [_number(float(row["kreiss"]), ".4g")]
        cells += [_number(float(row["block_growth"])), _number(float(row["block_growth_step"]), ".0f")]
        if flow:
            cells += [_number(float(row["flow_growth"]), ".4g"), _number(float(row["flow_growth_time"]))]
            cells += [_number(float(v), "+.3g") for v in row["pseudospectral_abscissa"].values]
        rows.append(cells)
    what = "token blocks" if int(ds["block_token"][0]) >= 0 else "whole samples as blocks"
    note = " (alpha_e: the largest abscissa that a change of J of norm e can give)" if flow else ""
    return f"  {what} looked at closely{note}\n{_table(header, rows)}"
