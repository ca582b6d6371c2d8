"""Resuming: bit for bit after kill -9 at any moment, and never into something else."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from doubles import Notes
from run_contents import contents, killed_and_whole

from dyneq.errors import DyneqError, UsageError
from dyneq.systems.checkpoint_io import load_checkpoint
from dyneq.train.loop import Ending, Hooks, resume, start
from dyneq.train.recipe import Recipe
from dyneq.train.run_folder import RunFolder
from dyneq.train.snapshots import Snapshot

Tiny = Callable[..., Recipe]


@pytest.mark.parametrize(
    ("gradient", "dtype", "seed"), [("adjoint:steps=4,relaxation=5", "float32", 0), ("bptt6", "float64", 1)]
)
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(
    tiny: Tiny, tmp_path: Path, gradient: str, dtype: str, seed: int
) -> None:
    run = {"steps": 45, "save_every": 3, "snapshots": [1, 40], "snapshot_every": 11, "dtype": dtype}
    recipe = tiny(gradient, run=run, optimizer={"name": "adamw", "clip": 0.3})
    killed, whole, struck = killed_and_whole(recipe, tmp_path, seed)
    assert len(struck) == 6
    assert len(set(struck)) >= 4  # at different points of the run
    assert contents(killed) == contents(whole)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_interrupted_run_ends_with_the_same_bits(tiny: Tiny, tmp_path: Path, dtype: str) -> None:
    def interrupt(snapshot: Snapshot) -> None:
        raise KeyboardInterrupt

    recipe = tiny("bptt6", run={"steps": 10, "snapshots": [6], "dtype": dtype})  # saved after 4: 5 and 6 are done again
    start(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        start(recipe, tmp_path / "stopped", hooks=Hooks(sink=interrupt))
    assert load_checkpoint(tmp_path / "stopped" / "last.pt").step == 4
    resume(tmp_path / "stopped")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_run_is_not_started_over_another(tiny: Tiny, tmp_path: Path) -> None:
    start(tiny(run={"steps": 2}), tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(UsageError, match=r"--resume .*run, or choose another --run"):
        start(tiny(run={"steps": 3}), tmp_path / "run")
    assert resume(tmp_path / "run").ending is Ending.COMPLETED
    assert contents(tmp_path / "run") == before
    with pytest.raises(DyneqError, match="no run to resume"):
        resume(tmp_path)


def test_nothing_is_left_behind_when_a_run_cannot_begin(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DyneqError, match="fewer evaluation samples"):
        start(tiny(data={"evaluation_samples": 4000}), tmp_path / "run")
    with pytest.raises(DyneqError, match="cannot be made"):
        start(tiny(), tmp_path / "file" / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "text.txt"]


def test_a_second_process_is_kept_out(tiny: Tiny, tmp_path: Path) -> None:
    start(tiny(run={"steps": 2}), tmp_path / "run")
    with RunFolder.open(tmp_path / "run").locked(), pytest.raises(DyneqError, match="another process"):
        resume(tmp_path / "run")


def test_a_changed_text_is_refused(tiny: Tiny, tmp_path: Path, text_file: Path) -> None:
    start(tiny(run={"steps": 4}), tmp_path / "run")
    text_file.write_text(text_file.read_text() + "!")
    with pytest.raises(DyneqError, match="trained on a text with digest"):
        resume(tmp_path / "run")


def test_a_damaged_state_is_refused_and_the_snapshots_stay(tiny: Tiny, tmp_path: Path) -> None:
    start(tiny(run={"steps": 4}), tmp_path / "run")
    last = tmp_path / "run" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(DyneqError, match="truncated"):
        resume(tmp_path / "run")
    last.write_bytes((tmp_path / "run" / "step-000004.pt").read_bytes())
    with pytest.raises(DyneqError, match="holds no optimiser state"):
        resume(tmp_path / "run")


def test_other_circumstances_are_told(tiny: Tiny, tmp_path: Path) -> None:
    start(tiny(run={"steps": 4}), tmp_path / "run")
    log = tmp_path / "run" / "log.jsonl"
    log.write_text(log.read_text().replace(f'"threads": {torch.get_num_threads()}', '"threads": 99'))
    notes = Notes()
    resume(tmp_path / "run", hooks=Hooks(progress=notes))
    assert len(notes.sentences) == 1
    assert "not bit for bit: threads was 99" in notes.sentences[0]
