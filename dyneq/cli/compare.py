"""``dyneq compare``: recipes by seeds, one table."""

import json
import math
import platform
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dyneq.cli import tables
from dyneq.cli.options import json_option, quiet_option, store_option
from dyneq.errors import UsageError, nearest

if TYPE_CHECKING:
    from dyneq.catalog.store import Store
    from dyneq.catalog.training import Trained, TrainTask
    from dyneq.train.arms import Cell

COMPARISONS = Path("compare")
#: What workers import before their first task.
PRELOAD = ("dyneq.catalog.training", "dyneq.catalog.checkpoints", "dyneq.train.loop", "dyneq.train.comparison_result")
_LONGEST = 80
_LEGEND = (
    "loss: last finite validation loss, nats per token, mean with 95 % interval over seeds, broken runs included; "
    "residual, worst: force residual\nat the end (median over samples), median and largest over runs; unsettled: the "
    "largest share of samples that did not settle\nin a deep evaluation (run.deep), mean over runs; rho: largest "
    "leading multiplier of finite states in the last, median over runs;\ns/update: mean, time: sum of a run's "
    "updates and looks of the guard; acts: of the guard, rollbacks among them in brackets"
)
_HEAD = [
    "arm",
    "lr",
    "runs",
    "broke",
    "loss",
    "best",
    "residual",
    "worst",
    "unsettled",
    "rho",
    "s/update",
    "time",
    "acts",
]


@click.command()
@click.argument("recipes", nargs=-1, metavar="RECIPE...")
@click.option("--seeds", metavar="N|S,S,...", help="So many seeds from 0 on, or these.  [default: 3]")
@click.option(
    "--seed", "single", type=click.IntRange(0), multiple=True, help="One seed; repeatable, instead of --seeds."
)
@click.option("--lr", "lrs", type=float, multiple=True, help="Learning rate instead of the recipes'; repeatable.")
@click.option("--steps", type=int, help="Updates of every run.")
@click.option("--data", metavar="FILE", help="Train on this UTF-8 text instead of the recipes' corpus.")
@click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Any recipe setting, for all runs.")
@click.option(
    "--workers",
    type=int,
    default=1,
    show_default=True,
    envvar="DYNEQ_WORKERS",
    help="Runs side by side, of one thread each.",
)
@click.option("--into", metavar="DIR", help="Folder of the run folders.  [default: compare/RECIPE+RECIPE...]")
@click.option("--against", metavar="ARM", help="Add the paired difference in loss to this arm.")
@click.option("--out", metavar="FILE.json", help="Keep the results document, with curves.")
@click.option(
    "--show",
    metavar="FILE.json",
    help="Print the table of a results document again, of all its runs or those with --seeds and --lr.",
)
@store_option
@quiet_option
@json_option
def compare(
    recipes: tuple[str, ...],
    seeds: str | None,
    single: tuple[int, ...],
    lrs: tuple[float, ...],
    steps: int | None,
    data: str | None,
    assignments: tuple[str, ...],
    workers: int,
    into: str | None,
    against: str | None,
    out: str | None,
    show: str | None,
    store: str | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Train recipes, each with several seeds, and print one table; what has ended is found, the rest continued.

    A recipe with a [grid] or with [arms.NAME] is one arm for each of its combinations. A run counts as broken if a
    number stopped being finite, the fuse or the guard ended it, a validation loss was more than 0.3 nats above the best
    before it, its force residual at the end (median) is above 0.1, or, with run.deep set, more than half of the
    samples did not settle in one of its deep evaluations. Losses are means over seeds of the last finite
    validation loss, broken runs included, with a 95 % interval by Student's t.

    \b
    dyneq compare no-penalty floss bptt --seeds 3 --lr 3e-3 --lr 6e-3 --workers 2
    dyneq compare bptt-rescue --seeds 0,1 --out rescue.json
    dyneq compare --show rescue.json --against bptt-rescue-ceiling8 --seed 1
    """  # noqa: D301
    if show is not None:
        if recipes:
            raise UsageError("--show prints the table of a file, so it takes no recipes; leave one of the two out")
        given = {"--steps": steps, "--data": data, "--set": assignments, "--into": into, "--out": out}
        unused = [option for option, value in given.items() if value]
        if unused:
            raise UsageError(f"--show prints the table of a file and trains nothing; leave {', '.join(unused)} out")
        chosen = _seeds(seeds, single) if seeds is not None or single else None
        return _show(Path(show), chosen, lrs, against, as_json)
    if not recipes:
        raise UsageError("nothing to compare; name recipes (`dyneq list recipes`) or TOML files, or --show FILE.json")
    from dyneq.catalog.store import Store
    from dyneq.train.arms import Axes, cells

    overrides = [*assignments]
    for key, value in (("data.file", None if data is None else str(Path(data).absolute())), ("run.steps", steps)):
        overrides += [] if value is None else [f"{key}={json.dumps(value)}"]
    chosen = _seeds(seeds, single)
    planned = cells(recipes, Axes(chosen, lrs, overrides))
    _require_arm(against, [cell.arm for cell in planned])
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise UsageError(f"--out {out} is in a folder that does not exist; make it first")
    folder = Path(into) if into is not None else COMPARISONS / _name(recipes)
    home = Store(store)
    tasks = _tasks(planned, folder, str(home.root.absolute()))
    try:
        trained, failed = _train(tasks, home, workers, quiet or as_json)
    except KeyboardInterrupt:
        click.echo("the runs are kept as they stand; the same command continues them", err=True)
        raise
    params = {"recipes": recipes, "seeds": chosen, "lr": lrs, "set": assignments, "steps": steps, "data": data}
    document = _document(params, trained, failed, against, workers)
    if out is not None:
        from dyneq.train import comparison_document

        comparison_document.write(Path(out), document)
    if as_json:
        click.echo(json.dumps(document, allow_nan=False))
    else:
        _print([t.summary for t in trained], against)
    for failure in failed:
        click.echo(f"dyneq: {failure['run']} failed: {failure['error']}", err=True)
    if not failed:
        return 0
    return 3 if trained else 1


def _seeds(listed: str | None, single: tuple[int, ...]) -> list[int]:
    """Return the seeds that were asked for.

    Raises:
        UsageError: If they are none.
    """
    if listed is not None and single:
        raise UsageError("--seeds lists all seeds and --seed gives one; use one of the two")
    if single:
        return list(single)
    text = "3" if listed is None else listed
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts if part) or not any(parts):
        raise UsageError(f"--seeds takes a number of seeds or a list of them, such as 3 or 0,1,2, but got {text!r}")
    numbers = [int(part) for part in parts if part]
    if len(parts) > 1:
        return numbers
    if numbers[0] < 1:
        raise UsageError(f"--seeds {text} asks for no runs at all; ask for at least 1 (`--seed 0` is the seed 0)")
    return list(range(numbers[0]))


def _name(recipes: tuple[str, ...]) -> str:
    name = "+".join(Path(recipe).stem if recipe.endswith(".toml") else recipe for recipe in recipes)
    if len(name) > _LONGEST:
        raise UsageError("so many recipes make no good name of a folder; choose one with --into")
    return name


def _require_arm(against: str | None, arms: list[str]) -> None:
    if against is not None and against not in arms:
        raise UsageError(f"--against: there is no arm called {against!r}{nearest(against, set(arms))}")


def _tasks(planned: "list[Cell]", folder: Path, store: str) -> "list[TrainTask]":
    from dyneq.catalog.training import TrainTask
    from dyneq.train.comparison_result import require_same

    tasks = [TrainTask(cell, str(folder.absolute() / cell.name), store) for cell in planned]
    for task in tasks:
        require_same(task.cell, Path(task.folder))
    return tasks


def _train(
    tasks: "list[TrainTask]", store: "Store", workers: int, quiet: bool
) -> "tuple[list[Trained], list[dict[str, str]]]":
    """Train every run on workers; return those that ended, in the order of the tasks, and those that could not."""
    from dyneq.catalog.fanout import Failure, run_all
    from dyneq.catalog.pools import local_pool
    from dyneq.catalog.training import train_one
    from dyneq.cli.run_display import display

    results: dict[int, Any] = {}
    counts = {"computed": 0, "found": 0, "failed": 0}
    with local_pool(workers, 1, PRELOAD) as pool, display(len(tasks), quiet) as update:
        store.require_writable()
        for notice in pool.notices:
            click.echo(f"dyneq: {notice}", err=True)

        def done(i: int, result: Any) -> None:
            results[i] = result
            counts["failed" if isinstance(result, Failure) else "found" if result.found else "computed"] += 1
            update(len(results), **counts, last=tasks[i].cell.name)
            if not isinstance(result, Failure):
                for note in result.notes:
                    click.echo(f"dyneq: {tasks[i].cell.name}: {note}", err=True)
            if not quiet and not sys.stderr.isatty():  # a log or a pipe: a line for every run
                told = "failed" if isinstance(result, Failure) else _told(result)
                click.echo(f"{len(results)}/{len(tasks)}  {tasks[i].cell.name}: {told}", err=True)

        run_all(train_one, tasks, pool, done=done)
    failed = [
        {"run": task.cell.name, "error": results[i].sentence}
        for i, task in enumerate(tasks)
        if isinstance(results[i], Failure)
    ]
    return [results[i] for i in range(len(tasks)) if not isinstance(results[i], Failure)], failed


def _told(trained: "Trained") -> str:
    run = trained.summary
    broke = "" if run["broken"] is None else f"; broke: {run['broken']}"
    found = "found, " if trained.found else ""
    return f"{found}loss {_number(run['final_loss'], '.3f')} in {_duration(run['seconds'])}{broke}"


def _document(
    params: dict[str, Any], trained: "list[Trained]", failed: list[dict[str, str]], against: str | None, workers: int
) -> dict[str, Any]:
    import torch

    from dyneq import __version__
    from dyneq.train.comparison import rows
    from dyneq.train.comparison_document import SCHEMA

    runs = [t.summary for t in trained]
    status = "complete" if not failed else "some failed" if runs else "failed"
    return tables.plain(
        {
            "schema": SCHEMA,
            "command": "compare",
            "command_line": _command_line(params),
            "made_with": {
                "dyneq": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "threads": 1,
                "workers": workers,
            },
            "params": params,
            "status": status,
            "results": rows(runs, against),
            "failed": failed,
            "runs": runs,
        }
    )


def _command_line(params: dict[str, Any]) -> str:
    words = ["dyneq", "compare", *params["recipes"], "--seeds", ",".join(map(str, params["seeds"]))]
    if len(params["seeds"]) == 1:
        words[-2] = "--seed"
    words += [word for lr in params["lr"] for word in ("--lr", f"{lr:g}")]
    words += [word for text in params["set"] for word in ("--set", text)]
    words += [word for key in ("steps", "data") if params[key] is not None for word in (f"--{key}", str(params[key]))]
    return shlex.join(words)


def _show(path: Path, seeds: list[int] | None, lrs: tuple[float, ...], against: str | None, as_json: bool) -> int:
    from dyneq.train import comparison_document
    from dyneq.train.comparison import rows

    document = comparison_document.read(path)
    for key, wanted in (("seed", seeds), ("lr", lrs or None)):
        if wanted is None:
            continue
        there = sorted({run[key] for run in document["runs"]})
        missing = [value for value in wanted if value not in there]
        if missing:
            raise UsageError(f"{path} has no run with the {key} {missing[0]}; it has {', '.join(map(str, there))}")
        document["runs"] = [run for run in document["runs"] if run[key] in wanted]
    _require_arm(against, [run["arm"] for run in document["runs"]])
    if as_json:
        document["results"] = rows(document["runs"], against)
        click.echo(json.dumps(tables.plain(document), allow_nan=False))
        return 0
    click.echo(document["command_line"])
    _print(document["runs"], against)
    for failure in document["failed"]:
        click.echo(f"dyneq: {failure['run']} failed: {failure['error']}", err=True)
    return 0


def _print(runs: list[dict[str, Any]], against: str | None) -> None:
    from dyneq.train.comparison import rows

    if not runs:
        return
    head = [*_HEAD]
    found = rows(runs, against)
    lines = []
    for row in found:
        cells = [
            row["arm"],
            "all" if row["lr"] is None else f"{row['lr']:g}",
            str(row["runs"]),
            str(row["broke"]),
            _interval(row["loss"], row["loss_half_width"])
            + (f" of {row['loss_runs']}" if row["loss_runs"] < row["runs"] else ""),
            _number(row["best_loss"], ".3f"),
            _number(row["force_residual"], ".1e"),
            _number(row["force_residual_worst"], ".1e"),
            _number(row["unsettled"], ".0%"),
            _number(row["multiplier"], ".3f"),
            _number(row["seconds_per_update"], ".3f"),
            _duration(row["seconds"]),
            str(row["acts"]) + (f" ({row['rollbacks']})" if row["rollbacks"] else ""),
        ]
        if against is not None:
            own = row["arm"] == against
            pairs = row["pairs"]
            shown = f"{_interval(row['difference'], row['difference_half_width'], '+')} ({pairs})" if pairs else "-"
            cells.append("" if own else shown)
        lines.append(cells)
    if against is not None:
        head.append(f"loss - {against} (pairs)")
    click.echo(tables.table(head, lines))
    click.echo(_LEGEND)
    if len(tasks := sorted({run["task"] for run in runs})) > 1:
        click.echo(f"losses of different tasks ({', '.join(tasks)}) are not comparable, and are not paired")
    broken = [run for run in runs if run["broken"] is not None]
    for run in broken:
        click.echo(f"broke: {run['arm']} lr {run['lr']:g} seed {run['seed']}: {run['broken']}")


def _interval(mean: float, half_width: float, sign: str = "") -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:{sign}.3f}" + ("" if math.isnan(half_width) else f" +- {half_width:.3f}")


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
