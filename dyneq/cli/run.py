"""``dyneq run``: probes over many checkpoints."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from dyneq.cli import tables
from dyneq.cli.options import json_option, quiet_option, select_option, store_option
from dyneq.errors import DyneqError, UsageError

if TYPE_CHECKING:
    from dyneq.catalog.fanout import Pool
    from dyneq.catalog.names import Entry
    from dyneq.catalog.store import Store
    from dyneq.catalog.work import Task

#: What workers import before their first task.
PRELOAD = (
    "dyneq.catalog.measure",
    "dyneq.catalog.zarr_io",
    "dyneq.probes.spectrum",
    "dyneq.systems.thick",
    "dask.array",
)


@click.command()
@click.argument("probes", nargs=-1, required=True, metavar="PROBE[:PARAMETER=VALUE,...]...")
@select_option
@click.option(
    "--checkpoint", "-c", "checkpoints", multiple=True, metavar="CKPT", help="Instead of --select; repeatable."
)
@click.option("--all", "everything", is_flag=True, help="All checkpoints of the catalog.")
@click.option(
    "--workers", type=int, default=None, envvar="DYNEQ_WORKERS", help="Processes on this machine.  [default: 1]"
)
@click.option("--scheduler", metavar="ADDRESS", envvar="DYNEQ_SCHEDULER", help="A running dask.distributed cluster.")
@click.option(
    "--threads", type=int, envvar="DYNEQ_THREADS", default=1, show_default=True, help="Threads of each worker."
)
@click.option("--batch", type=int, envvar="DYNEQ_BATCH", help="Samples of the pinned batch to use (default: all).")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), envvar="DYNEQ_SEED", help="Seed of all randomness.")
@click.option("--device", envvar="DYNEQ_DEVICE", help="Torch device (default: cpu).")
@click.option("--dtype", type=click.Choice(["float64", "float32"]), envvar="DYNEQ_DTYPE", help="Precision.")
@click.option("--eps", type=float, envvar="DYNEQ_EPS", help="Step of the relaxation (default: the checkpoint's).")
@click.option("--force", is_flag=True, envvar="DYNEQ_FORCE", help="Measure again even what the store has.")
@click.option(
    "--trust", is_flag=True, envvar="DYNEQ_TRUST", help="Unpickle whatever a checkpoint holds: it can run any code."
)
@store_option
@quiet_option
@json_option
def run(
    probes: tuple[str, ...],
    selection: str | None,
    checkpoints: tuple[str, ...],
    everything: bool,
    workers: int | None,
    scheduler: str | None,
    threads: int,
    store: str | None,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """Run probes over many checkpoints; what the store has is found, so an interrupted sweep goes on where it was.

    \b
    dyneq run spectrum root --select 'run=floss-3 and step>=800' --workers 2
    dyneq run spectrum:at=root,depth=[150,800] --all --scheduler tcp://10.0.0.1:8786
    """  # noqa: D301
    if workers is not None and scheduler is not None:
        raise UsageError("--workers computes on this machine and --scheduler on a cluster; give one of the two")
    if sum((selection is not None, bool(checkpoints), everything)) > 1:
        raise UsageError("checkpoints are chosen by one of --select, --checkpoint and --all; leave out the others")
    from dyneq.catalog.store import Store

    home = Store(store)
    # the pool comes first: its workers import while the tasks are prepared
    with _pool(1 if workers is None else workers, scheduler, threads) as pool:
        for notice in pool.notices:
            click.echo(f"dyneq: {notice}", err=True)
        from dyneq.catalog.sweep import plan

        entries, broken = _subjects(home, selection, checkpoints, everything, settings["trust"])
        tasks, known = plan(probes, entries, home, **settings)
        if None in known:
            home.require_writable()
        outcomes = [*_compute(pool, tasks, known, quiet or as_json), *broken]
    failed = [o for o in outcomes if o["status"] == "failed"]
    if as_json:
        status = "failed" if len(failed) == len(outcomes) else "some failed" if failed else "complete"
        click.echo(tables.document("run", outcomes, status))
    else:
        _report(outcomes, home)
    if not failed:
        return 0
    return 1 if len(failed) == len(outcomes) else 3


@contextlib.contextmanager
def _pool(workers: int, scheduler: str | None, threads: int) -> "Iterator[Pool]":
    from dyneq.catalog.cluster import cluster_pool
    from dyneq.catalog.pools import local_pool

    if scheduler is not None:
        with cluster_pool(scheduler, threads, PRELOAD) as pool:
            yield pool
    else:
        with local_pool(workers, threads, PRELOAD) as pool:
            yield pool


def _subjects(
    store: "Store", selection: str | None, checkpoints: tuple[str, ...], everything: bool, trust: bool
) -> "tuple[list[Entry], list[dict[str, Any]]]":
    """Return every checkpoint of the sweep, each digest once, and an outcome for every name that cannot be opened.

    Raises:
        UsageError: If a name stands for nothing, or for a system that has no digest to keep results under.
        DyneqError: If the only name cannot be opened.
    """
    from dyneq.catalog import resolve
    from dyneq.cli.common import named_subjects

    if everything:
        entries = resolve.every_entry(store)
        if not entries:
            raise UsageError(f"the catalog of {store.root} is empty; `dyneq catalog add` fills it")
        return entries, []
    if selection is not None:
        return resolve.selected(store, selection), []
    if not checkpoints and (entries := resolve.default_entries(store)):
        return entries, []
    found: dict[str, Entry] = {}
    broken: list[dict[str, Any]] = []
    for given, opened in named_subjects(checkpoints, None, store, trust):
        try:
            entry = resolve.as_entry(opened())
        except UsageError:
            raise
        except DyneqError as error:
            if len(checkpoints) == 1:
                raise
            told = {"status": "failed", "result": None, "seconds": None, "error": str(error)}
            broken.append({"checkpoint": given, "sha256": None, "probe": "every probe", **told})
            continue
        if entry is None:
            raise UsageError(
                f"{given} is made by a factory, so it has no digest to keep results under; run the probe's own command "
                "on it, with --out"
            )
        found[entry.sha256] = entry
    return list(found.values()), broken


def _compute(pool: "Pool", tasks: "list[Task]", known: list[str | None], quiet: bool) -> list[dict[str, Any]]:
    """Return one plain outcome a task, in the order of the tasks; those whose result is known are not computed."""
    from dyneq.catalog.fanout import Failure, run_all
    from dyneq.catalog.work import perform
    from dyneq.cli.run_display import display

    outcomes: list[dict[str, Any]] = [
        {"checkpoint": t.entry.label, "sha256": t.entry.sha256, "probe": t.probe} for t in tasks
    ]
    for outcome, result in zip(outcomes, known, strict=True):
        if result is not None:
            outcome |= {"status": "found", "result": result, "seconds": 0.0}
    left = [i for i, result in enumerate(known) if result is None]
    counts = {"computed": 0, "found": len(tasks) - len(left), "failed": 0}
    with display(len(tasks), quiet) as update:

        def done(k: int, result: Any) -> None:
            i = left[k]
            if isinstance(result, Failure):
                outcomes[i] |= {"status": "failed", "result": None, "seconds": None, "error": result.sentence}
            else:
                status = "found" if result.found else "computed"
                outcomes[i] |= {"status": status, "result": result.result, "seconds": round(result.seconds, 3)}
            counts[outcomes[i]["status"]] += 1
            update(sum(counts.values()), **counts, last=f"{tasks[i].probe} of {tasks[i].entry.label}")

        run_all(perform, [tasks[i] for i in left], pool, done=done)
    return outcomes


def _report(outcomes: list[dict[str, Any]], store: "Store") -> None:
    rows = [
        (o["probe"], o["checkpoint"], o["sha256"][:12], o["status"], f"{o['seconds']:.1f} s", o["result"])
        for o in outcomes
        if o["status"] != "failed"
    ]
    if rows:
        click.echo(tables.table(("probe", "checkpoint", "digest", "status", "time", "result"), rows))
    failed = [o for o in outcomes if o["status"] == "failed"]
    numbers = {status: sum(o["status"] == status for o in outcomes) for status in ("computed", "found", "failed")}
    told = ", ".join(f"{count} {status}" for status, count in numbers.items())
    click.echo(f"{len(outcomes)} results in {store.root}: {told}")
    for outcome in failed:
        click.echo(f"dyneq: {outcome['probe']} of {outcome['checkpoint']} failed: {outcome['error']}", err=True)
