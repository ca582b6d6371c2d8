"""Making the packaged reference checkpoints: ``python -m dyneq.train.reference``, or ``make reference``.

They are trained on one thread, so that the same machine, torch and Python give the same digests; the manifest records
what they were made with.
"""

import json
import platform
import sys
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import click
import torch

from dyneq import __version__
from dyneq.errors import DyneqError
from dyneq.files import write_atomically
from dyneq.systems.checkpoint_io import load_checkpoint, save_checkpoint
from dyneq.train.census import long_run
from dyneq.train.loop import Ending, Hooks, start
from dyneq.train.progress import progress_for
from dyneq.train.recipe import load_recipe
from dyneq.train.run_folder import RunFolder

FORMAT = "dyneq-reference/1"
#: Relaxation steps, in float64, after which the manifest says which samples settled.
DEPTH = 2000


@dataclass(frozen=True)
class Planned:
    """One reference checkpoint: a snapshot of a packaged recipe's run, and what it is for."""

    name: str
    recipe: str
    step: int
    role: str


PLAN = (
    Planned("converges", "reference", 300, "its relaxation converges for every sample"),
    Planned("before", "reference", 485, "five updates before its relaxation stops settling"),
    Planned("after", "reference", 490, "the same run when its relaxation has stopped settling"),
    Planned("bptt-twin", "reference-bptt", 490, "the same data, size, seed and steps as `after`, trained by BPTT"),
)


def folder() -> Path:
    """Return where the package keeps its reference checkpoints."""
    return Path(str(resources.files("dyneq"))) / "reference"


def manifest() -> dict[str, Any]:
    """Return the record of the shipped reference checkpoints.

    Raises:
        DyneqError: If the package came without it.
    """
    try:
        return json.loads((folder() / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DyneqError(
            f"the packaged reference checkpoints are incomplete ({error}); install dyneq again, or make them with "
            "python -m dyneq.train.reference"
        ) from error


def make(out: Path, work: Path, quiet: bool = False) -> dict[str, Any]:
    """Train the recipes in ``work``, write the checkpoints and their manifest to ``out``, and return the manifest.

    Raises:
        DyneqError: If a run does not reach its last step.
    """
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    entries = {}
    for recipe_name in dict.fromkeys(planned.recipe for planned in PLAN):
        wanted = [planned for planned in PLAN if planned.recipe == recipe_name]
        steps = max(planned.step for planned in wanted)
        snapshots = [planned.step for planned in wanted]
        recipe = load_recipe(recipe_name, [f"run.steps={steps}", f"run.snapshots={snapshots}"])
        outcome = start(recipe, work / recipe_name, hooks=Hooks(progress=progress_for(quiet)))
        if outcome.ending is not Ending.COMPLETED:
            raise DyneqError(f"the recipe {recipe_name!r} did not reach step {steps}: {outcome.sentence}")
        run = RunFolder(work / recipe_name)
        for planned in wanted:
            checkpoint = load_checkpoint(run.snapshot_file(planned.step))
            file = out / f"{planned.name}.pt"
            entries[planned.name] = {
                "file": file.name,
                "role": planned.role,
                "recipe": planned.recipe,
                "gradient": recipe.gradient,
                "seed": recipe.run.seed,
                "step": checkpoint.step,
                "corpus": checkpoint.evaluation.source["corpus"],
                "corpus_sha256": checkpoint.evaluation.source["sha256"],
                "evaluation_sha256": checkpoint.evaluation.sha256,
                "metrics": checkpoint.metrics,
                "sha256": save_checkpoint(file, checkpoint),
                "long_run": long_run(checkpoint, DEPTH),
            }
    made = {
        "format": FORMAT,
        "made_with": {
            "dyneq": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": 1,
        },
        "checkpoints": {planned.name: entries[planned.name] for planned in PLAN},
    }
    write_atomically(out / "manifest.json", (json.dumps(made, indent=1) + "\n").encode())
    return made


def summary(made: dict[str, Any]) -> str:
    """Return one line a checkpoint: step, loss, what settles, and the pair of the sample that moves most."""
    lines = []
    for name, entry in made["checkpoints"].items():
        far = entry["long_run"]
        line = (
            f"{name:10} step {entry['step']:5} validation loss {entry['metrics']['validation_loss']:.3f} "
            f"unsettled {len(far['unsettled'])}/{far['samples']} (moving {len(far['moving'])}) "
            f"after {far['depth']} steps  {entry['sha256'][:12]}"
        )
        lines.append(line)
        lines.extend(map(_pair_line, far["pairs"]))
    return "\n".join(lines)


def _pair_line(p: dict[str, Any]) -> str:
    re, im = p["mu"]
    if p["critical_eps"] is None:
        cause = "the flow is unstable there"
    else:
        cause = f"critical eps {p['critical_eps']:.3f}, set by token {p['critical_token']}"
    return (
        f"    sample {p['sample']:2} force residual {p['force_residual']:.1e}; at its root ({p['root_residual']:.0e}) "
        f"token {p['token']:2} has mu {re:+.4f} +- {im:.4f}i: {cause}"
    )


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Where to write them.  [default: in the package]")
@click.option("--check", is_flag=True, help="Write nothing; compare the digests with the shipped ones.")
@click.option("--quiet", is_flag=True, help="No progress.")
def main(out: Path | None, check: bool, quiet: bool) -> None:
    """Train the reference checkpoints and write them with their manifest.

    Raises:
        DyneqError: If a run breaks, or a checked digest differs.
    """
    with tempfile.TemporaryDirectory() as work:
        target = Path(work) / "made" if check else out or folder()
        made = make(target, Path(work), quiet)
    click.echo(summary(made))
    if check:
        shipped = manifest()
        differing = [
            name
            for name, entry in made["checkpoints"].items()
            if shipped["checkpoints"].get(name, {}).get("sha256") != entry["sha256"]
        ]
        if differing:
            raise DyneqError(
                f"the digests of {', '.join(differing)} differ from the shipped ones, which were made with "
                f"{shipped['made_with']}, while this is {made['made_with']}; compare their metrics in the manifests"
            )
        click.echo("all digests equal the shipped ones")


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except DyneqError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
