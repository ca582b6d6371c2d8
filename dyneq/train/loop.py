"""Running a recipe in a folder: starting, resuming after a kill, and how it ended."""

import enum
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dyneq import __version__
from dyneq.errors import DyneqError
from dyneq.probes.penalties.base import Penalty
from dyneq.train import parallel
from dyneq.train.data import corpus_of
from dyneq.train.foretold import before
from dyneq.train.log import Record, TrainingLog, Unwritten, cut_log
from dyneq.train.plateau import Watch
from dyneq.train.progress import Progress, SilentProgress
from dyneq.train.recipe import Recipe
from dyneq.train.run_folder import RunFolder
from dyneq.train.snapshots import Sink, Snapshot, read_state, write_snapshot
from dyneq.train.trackers import Tracker, Tracking
from dyneq.train.trainer import NonFinite, Trainer


class Ending(enum.StrEnum):
    """How a run ended."""

    COMPLETED = "completed"
    """All updates of the recipe were applied."""
    NON_FINITE = "non-finite"
    """A loss, gradient or weight stopped being finite; the last finite weights were kept."""
    FUSE = "fuse"
    """The relaxation was far from settling for too many updates in a row."""
    GUARD = "guard"
    """The guard had to roll back more often than it may."""


@dataclass(frozen=True)
class Outcome:
    """What a run left behind.

    Attributes:
        ending: How it ended.
        sentence: The same for a reader, with what to do.
        step: Updates that were applied.
        snapshot: The last snapshot.
        folder: The run folder.
        seconds: Duration of this process's share.
        metrics: What was measured of the last weights.
        guard: What the guard did, in a sentence; None without one.
    """

    ending: Ending
    sentence: str
    step: int
    snapshot: Path
    folder: Path
    seconds: float
    metrics: dict[str, Any] = field(default_factory=dict)
    guard: str | None = None


@dataclass(frozen=True)
class Hooks:
    """What a caller hands to a run.

    Attributes:
        sink: Told of every snapshot.
        progress: Shows how the run proceeds.
        penalties: Terms beside those of the recipe.
        trackers: Told of every record, beside the log; one that fails is noted and dropped.
    """

    sink: Sink | None = None
    progress: Progress = field(default_factory=SilentProgress)
    penalties: Sequence[Penalty] = ()
    trackers: Sequence[Tracker] = ()


def start(recipe: Recipe, folder: str | Path, *, device: str = "cpu", hooks: Hooks | None = None) -> Outcome:
    """Train a recipe in a new folder.

    Args:
        recipe: A resolved recipe.
        folder: The run folder, which must not exist.
        device: Where to train.
        hooks: Sink, progress and penalties.

    Raises:
        UsageError: If the folder exists.
        DyneqError: If the text or the folder cannot be used.
    """
    with parallel.joined(device) as own_device:
        hooks = _of_this_process(hooks or Hooks())
        # before the folder is made: a text that is missing leaves nothing behind
        trainer = _trainer(recipe, own_device, hooks)
        run = parallel.lead(lambda: RunFolder.create(folder, recipe))
        with run.locked():
            try:
                return _run(trainer, run, hooks)
            except Unwritten:
                raise
            except DyneqError:
                if trainer.step == 0 and parallel.first():  # what cannot even begin leaves nothing behind
                    run.discard()
                raise


def resume(folder: str | Path, *, device: str = "cpu", hooks: Hooks | None = None) -> Outcome:
    """Continue a run where its ``last.pt`` stands, bit for bit as if it had never been stopped.

    The log is cut back to that point. Bits are equal on the same machine, number of threads and torch version; if those
    differ from the log's first line, the progress says so.

    Args:
        folder: The run folder.
        device: Where to train.
        hooks: Sink, progress and penalties; the penalties must be those of the start.

    Raises:
        DyneqError: If there is no run, another process is training in it, its text changed, or a file is damaged.
    """
    with parallel.joined(device) as own_device:
        hooks = _of_this_process(hooks or Hooks())
        run = parallel.lead(lambda: RunFolder.open(folder))
        with run.locked():
            trainer = _trainer(parallel.lead(run.recipe), own_device, hooks)
            if parallel.lead(run.last_file.exists):
                trainer.restore(*read_state(run.last_file))
            return _run(trainer, run, hooks)


def _of_this_process(hooks: Hooks) -> Hooks:
    """Return the hooks, without what only the first of several processes has: sink, progress and trackers."""
    return hooks if parallel.first() else Hooks(penalties=hooks.penalties)


def _trainer(recipe: Recipe, device: str, hooks: Hooks) -> Trainer:
    return Trainer(recipe, corpus_of(recipe.data), device, hooks.penalties)


def _run(trainer: Trainer, run: RunFolder, hooks: Hooks) -> Outcome:
    began, recipe, progress = time.monotonic(), trainer.recipe, hooks.progress
    fresh = trainer.step == 0
    kept = parallel.lead(lambda: cut_log(run.log_file, -1 if fresh else trainer.step))
    with (
        TrainingLog(run.log_file) as log,
        progress.running(recipe.run.steps, trainer.step),
        Tracking(hooks.trackers, progress).start(recipe, run.path, trainer.step) as tracking,
    ):
        header, guard, watch = _header(trainer), trainer.guard, Watch(kept)
        for sentence in before(recipe) if fresh else []:
            progress.note(sentence)
        if fresh:
            log.append(header if guard is None else {**header, **guard.begin(trainer, run)})
            if 0 in recipe.run.snapshots:
                trainer.evaluate()
                _keep(trainer, run, hooks)
        elif kept:
            _tell_difference(kept[0], header, progress)
        snapshot = run.last_file
        ending, sentence = _lost(trainer) or (Ending.COMPLETED, f"all {recipe.run.steps} updates are applied")
        while trainer.step < recipe.run.steps and ending is Ending.COMPLETED:
            try:
                record = trainer.update()
            except NonFinite as broken:
                # what breaks in the very first update is a setting, such as the learning rate, and not a run to rescue
                rescued = None if guard is None or trainer.step == 0 else guard.rescue(trainer, str(broken), run)
                if rescued is None:
                    ending, sentence = _lost(trainer) or (Ending.NON_FINITE, str(broken))
                    trainer.evaluate()
                    log.append({"step": trainer.step + 1, "status": ending.value, "message": sentence})
                    snapshot = _keep(trainer, run, hooks).path
                    _save(trainer, run, log)
                    break
                record = rescued
            due = recipe.snapshot_due(trainer.step)
            if due or trainer.step % recipe.run.evaluate_every == 0:
                record |= trainer.evaluate()
            # an update that was not finite has been answered already
            if (
                guard is not None
                and "loss" in record
                and guard.after(trainer, record, run)
                and "validation_loss" in record
            ):
                # what was measured of weights that are gone is kept under names of its own
                record |= {f"undone_{name}": value for name, value in record.items() if name.startswith("validation_")}
                record |= trainer.evaluate()
            if "validation_loss" in record and recipe.run.best:
                _keep_best(trainer, run)
            lost = _lost(trainer)
            if lost:
                ending, sentence = lost
                record |= {"status": ending.value, "message": sentence}
            plateau = watch.observe(record)
            if plateau is not None:
                record |= {"plateau": plateau.plateau.value, "plateau_why": plateau.sentence}
            log.append(record)
            tracking.record(record)
            progress.update(record)
            if plateau is not None and plateau.told:
                progress.note(f"update {record['step']}: {plateau.sentence}")
            for what in ("switch", "act"):
                if what in record:
                    progress.note(f"update {record['step']}: {record[what]}")
            if due or lost:
                snapshot = _keep(trainer, run, hooks).path
            if due or lost or trainer.step % recipe.run.save_every == 0:
                _save(trainer, run, log)
        if snapshot == run.last_file and parallel.lead(run.snapshot_file(trainer.step).exists):
            snapshot = run.snapshot_file(trainer.step)  # there was nothing left to do
        seconds, told = time.monotonic() - began, None if guard is None else guard.levers.summary()
        outcome = Outcome(ending, sentence, trainer.step, snapshot, run.path, seconds, trainer.metrics, told)
        tracking.finish(outcome)
    return outcome


def _lost(trainer: Trainer) -> tuple[Ending, str] | None:
    """Return how and why a run ends before its last update; None if it goes on."""
    if trainer.guard is not None and trainer.guard.ended is not None:
        return Ending.GUARD, trainer.guard.ended
    blown = trainer.fuse.sentence(trainer.step)
    return None if blown is None else (Ending.FUSE, blown)


def _keep(trainer: Trainer, run: RunFolder, hooks: Hooks) -> Snapshot:
    snapshot = write_snapshot(run.snapshot_file(trainer.step), trainer.checkpoint())
    if hooks.sink is not None:
        hooks.sink(snapshot)
    return snapshot


def _keep_best(trainer: Trainer, run: RunFolder) -> None:
    """Write best.pt if no evaluation before was as good."""
    loss = trainer.metrics["validation_loss"]
    if loss < trainer.best:
        write_snapshot(run.best_file, trainer.checkpoint())
        trainer.best = loss


def _save(trainer: Trainer, run: RunFolder, log: TrainingLog) -> None:
    """Save the state to resume from; never before the log it belongs to is on disk."""
    log.sync()
    write_snapshot(run.last_file, trainer.checkpoint(with_state=True))
    guard = trainer.guard
    if guard is not None:
        parallel.lead(lambda: run.forget_stable(guard.stable_step))


def _header(trainer: Trainer) -> Record:
    return {
        "step": 0,
        "corpus": trainer.corpus.name,
        "corpus_sha256": trainer.corpus.sha256,
        "evaluation_sha256": trainer.evaluation.sha256,
        "parameters": sum(p.numel() for p in trainer.parameters.values()),
        "dyneq": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": str(trainer.device),
        "processes": parallel.size(),
        "guard": "off" if trainer.guard is None else "on",
    }


def _tell_difference(then: Record, now: Record, progress: Progress) -> None:
    then = {"processes": 1, **then}  # older logs do not say
    differing = [key for key in ("dyneq", "torch", "threads", "device", "processes") if then.get(key) != now[key]]
    if differing:
        progress.warn(
            "the run continues, but not bit for bit: "
            + ", ".join(f"{key} was {then.get(key)} and is {now[key]}" for key in differing)
        )
