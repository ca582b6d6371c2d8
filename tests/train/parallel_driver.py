"""What two processes do for test_parallel, which starts each of them as torchrun would.

usage: parallel_driver.py folder port...
"""

import os
import sys
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from dyneq.errors import DyneqError
from dyneq.gradients.base import Grouped
from dyneq.probes.penalties.base import Measured, Penalty, PenaltyParams
from dyneq.systems.protocol import System
from dyneq.train import parallel
from dyneq.train.data import load_corpus
from dyneq.train.log import Record
from dyneq.train.loop import Hooks, Outcome, resume, start
from dyneq.train.recipe import Recipe, load_recipe
from dyneq.train.trainer import Trainer

UPDATES = 3


def directions(recipe: Recipe) -> list[tuple[Record, Grouped]]:
    """Return the numbers of some updates and what they would move the weights along; the weights stay."""
    trainer = Trainer(recipe, load_corpus(recipe.data.corpus, recipe.data.file, recipe.data.validation))
    found: list[Grouped] = []
    trainer.stepper.apply = lambda direction, norm, lr: found.append(direction)
    return list(zip([trainer.update() for _ in range(UPDATES)], found, strict=True))


class Failing(Penalty):
    """A penalty that fails in one process in its seventh update: by an error, or by killing that process."""

    name, what, units, Params = "failing", "nothing", "1", PenaltyParams

    def __init__(self, rank: int, how: str) -> None:
        super().__init__()
        self.rank, self.how, self.calls = rank, how, count(1)

    def measure(self, system: System, z: Tensor, generator: torch.Generator) -> Measured:
        """Fail, or do nothing."""
        if next(self.calls) == 7 and int(os.environ["RANK"]) == self.rank:
            if self.how == "kill":
                os._exit(9)
            raise DyneqError("this is what went wrong") if self.how == "sentence" else ZeroDivisionError("a bug")
        return Measured(z.new_zeros(len(z)), z.new_zeros(len(z)), z.new_ones(()))


def failure(recipe: Recipe, folder: Path, penalty: Failing) -> str:
    """Return how a run ended that was to fail."""
    try:
        start(recipe, folder, hooks=Hooks(penalties=[penalty]))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "it did not fail"


def weights(outcome: Outcome) -> dict[str, object]:
    """Return what a process knows of a run at its end."""
    return {"step": outcome.step, "metrics": outcome.metrics, "snapshot": str(outcome.snapshot)}


def main() -> None:
    """Do everything, and save what was found in a file for each process."""
    folder, ports = Path(sys.argv[1]), iter(sys.argv[2:])
    torch.set_num_threads(1)
    found: dict[str, object] = {}

    def meet() -> None:
        os.environ["MASTER_PORT"] = next(ports)

    meet()
    with parallel.joined():
        for file in sorted(folder.glob("direction-*.toml")):
            found[file.stem] = directions(load_recipe(file))
        run = load_recipe(folder / "run.toml")
        found["whole"] = weights(start(run, folder / "whole", hooks=Hooks(penalties=[Failing(-1, "")])))
        found["rank"] = parallel.group().rank
    meet()
    found["sentence"] = failure(run, folder / "stopped", Failing(1, "sentence"))
    meet()
    found["resumed"] = weights(resume(folder / "stopped", hooks=Hooks(penalties=[Failing(-1, "")])))
    meet()
    found["exists"] = failure(run, folder / "whole", Failing(-1, ""))
    meet()
    found["bug"] = failure(run, folder / "bug", Failing(0, "bug"))
    meet()
    odd = run.model_copy(update={"run": run.run.model_copy(update={"batch": 3})})
    found["odd"] = failure(odd, folder / "odd", Failing(-1, ""))
    meet()
    other = run.model_copy(update={"run": run.run.model_copy(update={"seed": int(os.environ["RANK"])})})
    found["other"] = failure(other, folder / "other", Failing(-1, ""))
    torch.save(found, folder / f"found-{os.environ['RANK']}.pt")
    meet()
    found["killed"] = failure(run, folder / "killed", Failing(1, "kill"))
    torch.save(found, folder / f"found-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main()
