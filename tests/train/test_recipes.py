"""Every packaged recipe trains, and resumes bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dyneq.train.arms import Axes, cells
from dyneq.train.log import Record, read_log
from dyneq.train.loop import Ending, Hooks, resume, start
from dyneq.train.progress import Progress
from dyneq.train.recipe import Recipe, packaged

#: The size of all of them here; nudged phases, and what a switch waits for, are shortened below.
TINY = [
    *("block.channels=8", "block.heads=2", "block.tokens=6", "run.batch=3", "data.evaluation_samples=4"),
    *("run.steps=3", "run.save_every=1", "run.evaluate_every=2", "run.relaxation=8"),
]


def tiny(name: str, text: Path) -> dict[str, Recipe]:
    """Return runs of a recipe at a tiny size by the name of their arm: of a grid the first and the last."""
    found = {
        cell.arm: _shortened(cell.recipe) for cell in cells([name], Axes([0], overrides=[*TINY, f"data.file='{text}'"]))
    }
    return found if name.startswith("ablation") else {arm: found[arm] for arm in (next(iter(found)), list(found)[-1])}


def _shortened(recipe: Recipe) -> Recipe:
    switches = [s.model_copy(update={"at": 3 if s.at else None, "gradient": _brief(s.gradient)}) for s in recipe.switch]
    return recipe.model_copy(update={"gradient": _brief(recipe.gradient), "switch": tuple(switches)})


def _brief(gradient: dict[str, Any]) -> dict[str, Any]:
    return {**gradient, "t2": 8} if "t2" in gradient else gradient


class Interrupting(Progress):
    """Stops a run once, after an update and before its state is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, record: Record) -> None:
        if record["step"] == self.step:
            raise KeyboardInterrupt

    def note(self, sentence: str) -> None:
        pass


def numbers(folder: Path) -> list[Record]:
    """The log without the wall-clock time; NaN is written as a string there, so that equal logs are equal."""
    return [{k: v for k, v in record.items() if not k.endswith("seconds")} for record in read_log(folder / "log.jsonl")]


def tensors(held: object) -> object:
    if isinstance(held, torch.Tensor):
        return str(held.dtype), tuple(held.shape), held.numpy().tobytes()
    if isinstance(held, dict):
        return {key: tensors(value) for key, value in held.items()}
    return [tensors(value) for value in held] if isinstance(held, list | tuple) else held


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n.endswith("-s0") else n for n in packaged()]
)
def test_every_recipe_trains_and_resumes_bit_for_bit(name: str, tmp_path: Path, text_file: Path) -> None:
    for arm, recipe in tiny(name, text_file).items():
        whole, stopped = tmp_path / f"{arm}-whole", tmp_path / f"{arm}-stopped"
        outcome = start(recipe, whole)
        assert outcome.ending is Ending.COMPLETED, outcome.sentence
        updates = [r for r in numbers(whole) if "loss" in r]
        assert [r["step"] for r in updates] == [1, 2, 3]
        for penalty in recipe.penalty:
            assert f"penalty_{penalty}" in updates[0]
        with pytest.raises(KeyboardInterrupt):
            start(recipe, stopped, hooks=Hooks(progress=Interrupting(2)))  # the second update is done again
        assert resume(stopped).step == 3
        assert numbers(stopped) == numbers(whole)
        for file in ("last.pt", "step-000003.pt"):
            one, other = (torch.load(folder / file, weights_only=True) for folder in (stopped, whole))
            assert tensors(one) == tensors(other), (arm, file)


def test_the_switch_of_warm_track_is_made(tmp_path: Path, text_file: Path) -> None:
    (recipe,) = tiny("warm-track", text_file).values()
    assert [recipe.gradient["name"], recipe.switch[0].gradient["name"]] == ["aep", "track"]
    start(recipe, tmp_path / "run")
    kinds = [set(r) for r in numbers(tmp_path / "run") if "loss" in r]
    assert kinds[0] != kinds[2]  # another estimator has other diagnostics


@pytest.mark.parametrize("name", sorted(n for n in packaged() if f"{n}-s0" in packaged()))
def test_the_size_s0_is_all_that_s0_changes(name: str) -> None:
    small, large = (cells([n], Axes([0])) for n in (name, f"{name}-s0"))
    assert [c.arm.replace("-s0", "") for c in large] == [c.arm for c in small]
    for one, other in zip(small, large, strict=True):
        s0 = {**one.recipe.block, "channels": 128, "heads": 4, "tokens": 64}
        assert other.recipe.block == s0
        assert other.recipe.penalty == one.recipe.penalty
        assert other.recipe.run.steps == 14000
        assert other.recipe.gradient["name"] == one.recipe.gradient["name"]
        assert (one.recipe.block["channels"], one.recipe.block["tokens"]) == (64, 32)
