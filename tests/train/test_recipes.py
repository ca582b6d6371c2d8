"""Every packaged recipe trains, and resumes bit for bit."""

from pathlib import Path
from typing import Any

import pytest
from doubles import StopAt
from run_contents import contents

from dyneq.train.arms import Axes, cells
from dyneq.train.log import read_log
from dyneq.train.loop import Ending, Hooks, resume, start
from dyneq.train.recipe import Recipe, packaged

#: The size of all of them here; nudged phases, and what a switch waits for, are shortened below.
TINY = [
    *("block.channels=8", "block.heads=2", "block.tokens=6", "run.batch=3", "data.evaluation_samples=4"),
    *("run.steps=5", "run.save_every=1", "run.evaluate_every=2", "run.relaxation=8"),
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


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n.endswith("-s0") else n for n in packaged()]
)
def test_every_recipe_trains_and_resumes_bit_for_bit(name: str, tmp_path: Path, text_file: Path) -> None:
    for arm, recipe in tiny(name, text_file).items():
        whole, stopped = tmp_path / f"{arm}-whole", tmp_path / f"{arm}-stopped"
        outcome = start(recipe, whole)
        assert outcome.ending is Ending.COMPLETED, outcome.sentence
        updates = [r for r in read_log(whole / "log.jsonl") if "loss" in r]
        assert [r["step"] for r in updates] == [1, 2, 3, 4, 5]
        for penalty in recipe.penalty:  # of those that apply in every third update, before the stop and after it
            assert f"penalty_{penalty}" in updates[0]
            assert f"penalty_{penalty}" in updates[3]
        with pytest.raises(KeyboardInterrupt):
            start(recipe, stopped, hooks=Hooks(progress=StopAt(2)))  # the second update is done again
        assert resume(stopped).step == 5
        found, expected = contents(stopped), contents(whole)
        for file in ("log.jsonl", "last.pt", "step-000005.pt"):
            assert found[file] == expected[file], (arm, file)


def test_the_switch_of_warm_track_is_made(tmp_path: Path, text_file: Path) -> None:
    (recipe,) = tiny("warm-track", text_file).values()
    assert [recipe.gradient["name"], recipe.switch[0].gradient["name"]] == ["aep", "track"]
    start(recipe, tmp_path / "run")
    told = {r["step"]: r["switch"] for r in read_log(tmp_path / "run" / "log.jsonl") if "switch" in r}
    assert list(told) == [2]
    assert "from update 3 the gradient is track instead of aep" in told[2]


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
