"""A run says what of its recipe it is too short for."""

from collections.abc import Callable
from pathlib import Path

import pytest
from doubles import Notes

from dyneq.train.foretold import before, idle
from dyneq.train.loop import Hooks, start
from dyneq.train.recipe import Recipe

Tiny = Callable[..., Recipe]

CASES = [
    ({"switch": [{"gradient": "aep", "at": 7}]}, "the gradient aep, due from update 7", 7),
    ({"penalty": {"floss": {"start": 6}}}, "the penalty floss, which rests for start=6", 7),
    ({"stability": {"prewarm": 6}, "optimizer": {"warmup": 1}}, "the task's own gradient after stability.prewarm=6", 7),
    ({"optimizer": {"warmup": 7}}, "the full learning rate after optimizer.warmup=7", 7),
]


@pytest.mark.parametrize(("setting", "words", "enough"), CASES)
def test_what_begins_after_the_last_update_is_said(
    tiny: Tiny, setting: dict[str, object], words: str, enough: int
) -> None:
    (found,) = idle(tiny(run={"steps": 6}, **setting))
    assert words in found
    assert found.startswith("run.steps=6 ends the run before ")
    assert idle(tiny(run={"steps": enough}, **setting)) == []


def test_a_run_says_so_as_it_begins(tiny: Tiny, tmp_path: Path) -> None:
    notes = Notes()
    start(tiny(run={"steps": 2}, optimizer={"warmup": 3}), tmp_path / "run", hooks=Hooks(progress=notes))
    assert "ends the run before the full learning rate" in notes.sentences[0]


def test_a_block_that_is_not_causal_says_what_it_learns(tiny: Tiny) -> None:
    block = {"kind": "energy", "channels": 8, "heads": 2, "tokens": 6}
    (found,) = before(tiny(run={"steps": 20}, block=block))
    assert "energy is not causal" in found
    assert "complete masked tokens" in found
    assert before(tiny(run={"steps": 20})) == []
