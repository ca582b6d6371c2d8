"""``dyneq spectrum``."""

from typing import TYPE_CHECKING, Any

import click

from dyneq.cli.common import findings, heading, probe_options, run_probe_command

if TYPE_CHECKING:
    import xarray as xr


@click.command()
@probe_options
@click.option("--depth", "depths", type=int, multiple=True, help="Relaxation depth, steps; repeatable (default: 800).")
@click.option(
    "--at",
    type=click.Choice(["relaxed", "root"]),
    default="relaxed",
    show_default=True,
    help="At the relaxed states, or at the root that the deepest of them leads to.",
)
@click.option(
    "--method",
    type=click.Choice(["auto", "token", "krylov", "dense"]),
    default="auto",
    show_default=True,
    help="Token-diagonal blocks (causal systems), whole samples by Krylov-Schur or densely.",
)
@click.option("--count", type=int, default=16, show_default=True, help="Length of the list of leading pairs.")
@click.option("--omega/--no-omega", default=True, show_default=True, help="Also the numerical abscissa.")
def spectrum(depths: tuple[int, ...], at: str, method: str, count: int, omega: bool, seed: int, **common: Any) -> int:
    """Leading eigenvalues of the relaxation map at CKPT, each with its sample, token, residual and condition.

    CKPT is a checkpoint file, a packaged reference checkpoint, or module:factory; without it, all packaged ones.
    """
    from dyneq.probes.spectrum_json import json_entry

    params = {
        "depth": tuple(depths) or (800,),
        "at": at,
        "method": method,
        "count": count,
        "numerical_abscissa": omega,
        "seed": seed,
    }

    def entries(ds: "xr.Dataset") -> list[dict[str, Any]]:
        return [json_entry(ds.isel(depth=i)) for i in range(ds.sizes["depth"])]

    return run_probe_command("spectrum", params, common, show, entries)


def show(ds: "xr.Dataset") -> str:
    """Return a result as it is printed."""
    from dyneq.probes.spectrum_json import json_entry
    from dyneq.probes.spectrum_summary import state_label

    lines = [heading(ds)]
    for i in range(ds.sizes["depth"]):
        state = ds.isel(depth=i)
        entry = json_entry(state)
        lines += ["", f"{state_label(state)}: {_numbers(entry, ds.sizes['sample'])}"]
        if entry["leading"]:
            lines.append("  |multiplier|  mu (per unit time)         sample token  residual  condition  est. error")
        status = entry["samples"]["status"]
        lines += [_row(row, status[row["sample"]] == "converged") for row in entry["leading"]]
    return "\n".join([*lines, "", *findings("spectrum", ds)])


def _numbers(entry: dict[str, Any], samples: int) -> str:
    cost = f"{entry['method']}, {entry['matvecs']} products, {entry['seconds']:.1f} s"
    lines = [f"worst force residual {_sci(entry['force_residual'])}; {cost}"]
    fixed, passing = entry["fixed_points"], entry["passing"]
    if fixed:
        lines.append(f"  {fixed} of {samples} samples at a fixed point: {_extremes(entry)}")
        if entry["abscissa"] is not None:
            step = entry["critical_eps"]
            lines[-1] += "; critical eps " + (
                "undefined (the flow is not stable at all of them)" if step is None else f"{step:.6g}"
            )
    if passing:
        lines.append(f"  {passing['samples']} of {samples} samples passing, not at a fixed point: {_extremes(passing)}")
    return "\n".join(lines)


def _extremes(entry: dict[str, Any]) -> str:
    names = {"abscissa": "abscissa", "spectral_radius": "spectral radius", "numerical_abscissa": "numerical abscissa"}
    return "; ".join(f"{text} {entry[key]:.6g}" for key, text in names.items() if entry[key] is not None)


def _row(row: dict[str, Any], settled: bool) -> str:
    real, imag = row["mu"]
    token = "all" if row["token"] is None else str(row["token"])
    mark = "" if row["converged"] else "  PAIR NOT CONVERGED"
    mark += "" if settled else "  passing state"
    return (
        f"  {row['modulus']:12.8f}  {real:+11.6f} {imag:+11.6f}i   {row['sample']:6d} {token:>5}  "
        f"{_sci(row['residual'])}   {_sci(row['condition'])}    {_sci(row['error'])}{mark}"
    )


def _sci(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1e}"
