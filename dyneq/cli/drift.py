"""``dyneq drift``: how the diagnostics move over the snapshots of a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dyneq.cli.options import json_option, progress_display, quiet_option, store_option
from dyneq.cli.tables import plain, visible
from dyneq.errors import DyneqError, UsageError

if TYPE_CHECKING:
    from dyneq.catalog.drift import Drift
    from dyneq.catalog.drift_parts import Part
    from dyneq.catalog.drift_runs import Missing, RunSnapshots
    from dyneq.catalog.store import Store


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option(
    "--probe",
    "probes",
    multiple=True,
    metavar="PROBE[:PARAMETER=VALUE,...]",
    help="What is measured of every snapshot: residual, spectrum, or anything --follow takes; repeatable.  [default: "
    "residual and spectrum for one run, residual for several]",
)
@click.option(
    "--follow",
    multiple=True,
    metavar="PROBE[:PARAMETER=VALUE,...]",
    help="What is followed of the gradient, beside residual and spectrum: triangulate (cosine and norm to the exact "
    "gradient), navg (bias, and the cosine averaging tends to), decompose (each penalty's share of the update, k, "
    "cosine of task and update; penalties of the run's recipe if it has any), lrsweep (best one-step change of the "
    "loss, deficit against the exact gradient); repeatable. Cost per snapshot, in units of residual and spectrum "
    "together: triangulate 2.4, navg 3, decompose 0.8 with its default penalties, lrsweep 4 (16 samples, depth 400).  "
    "[default: triangulate for one run, none for several]",
)
@click.option(
    "--depth",
    type=click.IntRange(1),
    default=400,
    show_default=True,
    help="Relaxation steps at which loss and residual are read, from which the root is sought, and over which the "
    "reference gradient is unrolled.",
)
@click.option("--every", type=click.IntRange(1), help="Only snapshots at least so many steps apart.")
@click.option("--last", type=click.IntRange(1), help="Only so many of the last snapshots.")
@click.option("--steps", metavar="STEPS", help="Only these: steps and ranges, as 0,100,400-500.")
@click.option(
    "--batch",
    type=int,
    envvar="DYNEQ_BATCH",
    help="Samples of the pinned batch to use (default: 16; all where only residual is measured).",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    envvar="DYNEQ_SEED",
    help="Seed of all randomness.",
)
@click.option("--device", envvar="DYNEQ_DEVICE", help="Torch device (default: cpu).")
@click.option("--dtype", type=click.Choice(["float64", "float32"]), envvar="DYNEQ_DTYPE", help="Precision.")
@click.option("--eps", type=float, envvar="DYNEQ_EPS", help="Step of the relaxation (default: the snapshots').")
@json_option
@click.option(
    "--out", envvar="DYNEQ_OUT", type=click.Path(path_type=Path), help="Write the dataset: FILE.zarr or FILE.nc."
)
@click.option(
    "--plot", envvar="DYNEQ_PLOT", type=click.Path(path_type=Path), help="Write the figure: FILE.png, .pdf or .svg."
)
@store_option
@click.option("--force", is_flag=True, envvar="DYNEQ_FORCE", help="Measure again even what the store has.")
@click.option(
    "--trust", is_flag=True, envvar="DYNEQ_TRUST", help="Unpickle whatever a snapshot holds: it can run any code."
)
@quiet_option
def drift(
    runs: tuple[str, ...],
    probes: tuple[str, ...],
    follow: tuple[str, ...],
    depth: int,
    every: int | None,
    last: int | None,
    steps: str | None,
    seed: int,
    as_json: bool,
    out: Path | None,
    plot: Path | None,
    store: str | None,
    trust: bool,
    quiet: bool,
    **settings: Any,
) -> int:
    """How loss, residual, abscissa and gradient move over the snapshots of RUN, when they turn, and what came first.

    RUN is a run of the catalog, or the folder of one (a name with a / in it, or in runs/); without it, the run of the
    newest checkpoint. Several: validation loss against cumulative learning rate, compared where that is equal.

    Results are kept in the store: a call that was interrupted goes on where it was.
    """
    from dyneq.catalog.drift_parts import GRADUAL, choose_parts
    from dyneq.catalog.drift_report import Report
    from dyneq.catalog.drift_runs import find_run, newest_run, thin
    from dyneq.catalog.output import DATASET_SUFFIXES, FIGURE_SUFFIXES, check_target, write_dataset, write_figure
    from dyneq.catalog.store import Store

    home = Store(store)
    parts = choose_parts(probes, depth, seed, ("residual",) if len(runs) > 1 else GRADUAL, follow)
    for target, suffixes, option in ((out, DATASET_SUFFIXES, "--out"), (plot, FIGURE_SUFFIXES, "--plot")):
        if target is not None:
            check_target(target, suffixes, option)
    if len(set(runs)) < len(runs):
        raise UsageError(f"a run is named twice ({', '.join(runs)}); name runs that differ")

    def opened(name: str) -> "RunSnapshots":
        return thin(find_run(home, name, trust=trust), steps=steps, every=every, last=last)

    chosen = runs or (newest_run(home),)
    measured, missing = _measure(chosen, opened, parts, home, quiet or as_json, settings)
    report = Report(measured)
    if as_json:
        held = {"schema": 1, "command": "drift", "params": _params(parts, settings), **report.document()}
        held["missing"] = [{"name": m.name, "probe": m.part or None, "reason": m.reason} for m in missing]
        click.echo(json.dumps(plain({**held, "status": "some failed" if missing else "complete"}), allow_nan=False))
    else:
        click.echo("\n".join(map(visible, report.text().split("\n"))))
    for one in missing:
        click.echo(f"dyneq: {one.part + ' of ' if one.part else ''}{one.name} is left out: {one.reason}", err=True)
    if out is not None:
        write_dataset(report.dataset, out)
    if plot is not None:
        write_figure(report.figure(), plot)
    return 3 if missing else 0


def _measure(
    names: tuple[str, ...],
    opened: "Callable[[str], RunSnapshots]",
    parts: "list[Part]",
    store: "Store",
    quiet: bool,
    settings: dict[str, Any],
) -> "tuple[list[Drift], list[Missing]]":
    """Return what became of every run that could be measured, and all that is missing.

    Raises:
        DyneqError: If the only run, or every one, could not be measured.
    """
    from dyneq.catalog.drift import drift as measure_run
    from dyneq.catalog.drift_runs import Missing

    measured: list[Drift] = []
    missing: list[Missing] = []
    for name in names:
        try:
            run = opened(name)
            with progress_display(name, quiet) as progress:
                found = measure_run(run, parts, store=store, progress=progress, **settings)
        except DyneqError as error:
            if len(names) == 1:
                raise
            missing.append(Missing(name, "", str(error)))
            continue
        measured.append(found)
        missing += found.missing
    if not measured:
        reasons = "; ".join(f"{m.name}: {m.reason}" for m in missing)
        raise DyneqError(f"none of the {len(names)} runs could be measured ({reasons})")
    return measured, missing


def _params(parts: "list[Part]", settings: dict[str, Any]) -> dict[str, Any]:
    # penalties taken from a recipe stand with the run they are of
    probes = {p.probe.name: {**p.plain(), **({"penalty": None} if p.trained else {})} for p in parts}
    return {"probes": probes, **{key: value for key, value in settings.items() if key != "force"}}
