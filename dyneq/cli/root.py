"""``dyneq root``."""

from typing import TYPE_CHECKING, Any

import click

from dyneq.cli.common import findings, heading, probe_options, run_probe_command

if TYPE_CHECKING:
    import xarray as xr


@click.command()
@probe_options
@click.option("--depth", type=int, default=800, show_default=True, help="Depth of the relaxation the starts come from.")
@click.option(
    "--start",
    "starts",
    multiple=True,
    help="Start to try: relaxed, mean, initial or random; repeatable (default: all four, in this order).",
)
@click.option("--explore", is_flag=True, help="Try every start for every sample and report the roots that differ.")
def root(depth: int, starts: tuple[str, ...], explore: bool, seed: int, **common: Any) -> int:
    """A fixed point of every sample of CKPT by Newton's method, also where the relaxation cycles.

    CKPT is a checkpoint file, a packaged reference checkpoint, or module:factory; without it, all packaged ones.
    """
    from dyneq.probes.root import json_entry

    params: dict[str, Any] = {"depth": depth, "explore": explore, "seed": seed}
    if starts:
        params["starts"] = starts
    return run_probe_command("root", params, common, show, lambda ds: [json_entry(ds)])


def show(ds: "xr.Dataset") -> str:
    """Return a result as it is printed."""
    lines = [heading(ds), "", "  sample  root         residual  start     relaxed state  residual  distance to root"]
    for i in range(ds.sizes["sample"]):
        row = ds.isel(sample=i)
        residual, relaxed, distance = (
            f"{float(row[name]):.1e}" for name in ("force_residual", "relaxed_force_residual", "distance")
        )
        lines.append(
            f"  {i:6d}  {row['status'].item():<11}  {residual}   {row['start'].item():<8}  "
            f"{row['relaxed_status'].item():<13}  {relaxed}   {distance}"
        )
    return "\n".join([*lines, "", *findings("root", ds)])
