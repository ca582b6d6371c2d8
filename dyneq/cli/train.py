"""``dyneq train``: train a recipe, or resume a run."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dyneq.cli.options import json_option, quiet_option, store_option
from dyneq.cli.tables import plain
from dyneq.errors import DyneqError, UsageError
from dyneq.files import is_folder

if TYPE_CHECKING:
    from dyneq.train.loop import Hooks, Outcome
    from dyneq.train.progress import Progress
    from dyneq.train.recipe import Recipe
    from dyneq.train.trackers import Tracker

RUNS = Path("runs")


@click.command()
@click.option("--recipe", metavar="NAME|FILE", help="A packaged recipe or a TOML file.  [default: default]")
@click.option("--data", metavar="FILE", help="Train on this UTF-8 text instead of the recipe's corpus.")
@click.option("--gradient", metavar="SPEC", help="Such as adjoint, bptt60 or adjoint:solver=gmres,tol=1e-6.")
@click.option(
    "--reg",
    "regularisers",
    metavar="SPEC",
    multiple=True,
    help="Penalty, as floss, jacreg:0.1, floss:steps=8,margin=0.5.",
)
@click.option(
    "--guard/--no-guard", default=None, help="Watch the run and act before it breaks.  [default: the recipe's]"
)
@click.option("--steps", type=int, help="Updates in all.")
@click.option("--seed", type=int, envvar="DYNEQ_SEED", help="Seed of the weights and of the batches.")
@click.option("--dtype", metavar="float32|float64", envvar="DYNEQ_DTYPE", help="Precision of everything.")
@click.option(
    "--set", "assignments", metavar="KEY=VALUE", multiple=True, help="Any recipe setting, as optimizer.lr=1e-3."
)
@click.option(
    "--track", "tracked", metavar="NAME", multiple=True, help="Log to tensorboard or mlflow too (dyneq[trackers])."
)
@click.option("--run", "folder", metavar="DIR", help="Run folder; a bare name is a folder in runs/.")
@click.option("--resume", metavar="RUN", help="Continue this run folder where it stopped, bit for bit.")
@click.option("--device", default="cpu", show_default=True, envvar="DYNEQ_DEVICE", help="Where to train.")
@store_option
@quiet_option
@json_option
def train(
    recipe: str | None,
    data: str | None,
    gradient: str | None,
    regularisers: tuple[str, ...],
    guard: bool | None,
    steps: int | None,
    seed: int | None,
    dtype: str | None,
    assignments: tuple[str, ...],
    tracked: tuple[str, ...],
    folder: str | None,
    resume: str | None,
    device: str,
    store: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train a small equilibrium block on text: snapshots and log in a run folder, names in the catalog.

    \b
    dyneq train --reg floss
    dyneq train --recipe default --gradient bptt60 --steps 200
    dyneq train --resume runs/default-bptt-0
    """  # noqa: D301
    overrides = _overrides(data, gradient, guard, steps, seed, dtype)
    source = click.get_current_context().get_parameter_source
    fixed = ("recipe", "data", "gradient", "regularisers", "guard", "steps", "seed", "dtype", "assignments", "folder")
    if resume is not None and any(source(name) is ParameterSource.COMMANDLINE for name in fixed):
        raise UsageError(
            "--resume continues a run with the recipe it was started with, so it goes with none of --recipe, --data, "
            "--gradient, --reg, --guard, --steps, --seed, --dtype, --set and --run; drop them, or start a new run"
        )
    from dyneq.train import loop, parallel
    from dyneq.train.progress import progress_for
    from dyneq.train.recipe import load_recipe
    from dyneq.train.trackers import trackers

    _check_device(device)
    followers = trackers(tracked)
    progress = progress_for(quiet or as_json)
    path = None if resume is None else _folder(resume)
    with _among_processes(device):
        try:
            if path is not None:
                outcome = loop.resume(path, device=device, hooks=_hooks(path, store, progress, followers))
            else:
                resolved = load_recipe(recipe, [*assignments, *overrides], regularisers)
                path = _folder(folder or _default_name(recipe, resolved))
                outcome = loop.start(resolved, path, device=device, hooks=_hooks(path, store, progress, followers))
        except KeyboardInterrupt:
            if path is not None and path.is_dir() and parallel.first():
                click.echo(f"continue with --resume {path}", err=True)
            raise
        if parallel.first():
            _report(outcome, as_json)
        if outcome.ending is not loop.Ending.COMPLETED:
            raise DyneqError(outcome.sentence)


@contextmanager
def _among_processes(device: str) -> Iterator[None]:
    """Join the processes that torchrun started, if it did; of them only the first says what went wrong.

    Raises:
        Exit: In the others instead of an error.
    """
    from dyneq.train import parallel

    speaks = True
    try:
        with parallel.joined(device):
            speaks = parallel.first()
            yield
    except (DyneqError, KeyboardInterrupt) as error:
        if speaks:
            raise
        raise click.exceptions.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from None


def _hooks(path: Path, store: str | None, progress: "Progress", followers: "Sequence[Tracker]") -> "Hooks":
    """Return what the run is given: its progress, and the catalog as the place its snapshots are told to."""
    from dyneq.catalog.checkpoints import snapshot_sink
    from dyneq.catalog.store import Store
    from dyneq.train.loop import Hooks

    def complain(sentence: str) -> None:
        click.echo(f"dyneq: {sentence}", err=True)

    return Hooks(
        sink=snapshot_sink(Store(store), path.absolute().name, complain), progress=progress, trackers=followers
    )


def _overrides(
    data: str | None, gradient: str | None, guard: bool | None, steps: int | None, seed: int | None, dtype: str | None
) -> list[str]:
    """Return the options as assignments, applied after ``--set``."""
    # JSON strings are TOML strings, so that a path or a spec is never read as a TOML value
    file = None if data is None else str(Path(data).absolute())
    settings = {
        "data.file": file,
        "gradient": gradient,
        "guard.enabled": guard,
        "run.steps": steps,
        "run.seed": seed,
        "run.dtype": dtype,
    }
    return [f"{key}={json.dumps(value)}" for key, value in settings.items() if value is not None]


def _folder(name: str) -> Path:
    path = Path(name)
    bare = path.name == name and name not in (".", "..")
    return RUNS / name if bare and not is_folder(path) else path


def _default_name(source: str | None, recipe: "Recipe") -> str:
    return f"{Path(source or 'default').stem}-{recipe.gradient['name']}-{recipe.run.seed}"


def _check_device(name: str) -> None:
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"the device {name!r} cannot be used ({first}); leave --device out for the CPU") from None


def _report(outcome: "Outcome", as_json: bool) -> None:
    from dyneq.systems.checkpoint_io import load_checkpoint

    kept = load_checkpoint(outcome.snapshot)
    results: list[dict[str, Any]] = [
        {
            "run": str(outcome.folder),
            "snapshot": str(outcome.snapshot),
            "step": outcome.step,
            "seconds": round(outcome.seconds, 3),
            **outcome.metrics,
            **({} if outcome.guard is None else {"guard": outcome.guard}),
        }
    ]
    if as_json:
        document = {
            "schema": 1,
            "command": "train",
            "checkpoint": {"name": kept.name, "sha256": kept.sha256, "step": kept.step},
            "params": kept.recipe,
            "results": results,
            "status": outcome.ending.value,
        }
        click.echo(json.dumps(plain(document), allow_nan=False))
        return
    click.echo(f"{outcome.ending.value} after {outcome.step} updates in {outcome.seconds:.0f} s")
    if outcome.guard is not None:
        click.echo(outcome.guard)
    if outcome.metrics:
        unit = kept.vocabulary.unit if kept.block.mask is None else f"masked {kept.vocabulary.unit}"
        further = outcome.metrics.get("validation_loss_per_character")
        aside = "" if further is None else f" ({further:.4f} per character)"
        click.echo(
            f"validation loss {outcome.metrics['validation_loss']:.4f} nats per {unit}{aside}; force residual after "
            f"{kept.recipe['run']['relaxation']} steps: median {outcome.metrics['validation_force_residual']:.1e}, "
            f"worst sample {outcome.metrics['validation_force_residual_max']:.1e}"
        )
    click.echo(str(outcome.snapshot))
