"""Experiment trackers beside the log: TensorBoard, MLflow, or anything with three methods; none can disturb a run."""

import importlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from dyneq.errors import DyneqError, UsageError, nearest
from dyneq.files import write_atomically
from dyneq.train.log import Record
from dyneq.train.progress import Progress
from dyneq.train.recipe import Recipe

if TYPE_CHECKING:
    from dyneq.train.loop import Outcome

#: Seconds a run waits at its end for a tracker to take what is left; an interrupted one waits less.
PATIENCE = 20.0
BRIEF = 2.0


class Tracker(Protocol):
    """What is told how a run proceeds; all three methods are called from one thread of its own.

    Attributes:
        name: What it is called in messages.
    """

    name: str

    def start(self, recipe: Recipe, folder: Path, step: int) -> None:
        """Begin, or continue what the folder already has.

        Args:
            recipe: The resolved recipe.
            folder: The run folder.
            step: Updates already applied; whatever was recorded beyond them will come again.
        """

    def record(self, record: Record) -> None:
        """Take note of one record of the log."""

    def finish(self, outcome: "Outcome | None") -> None:
        """End; the outcome is None if the run was interrupted and may be resumed."""


class TensorBoard:
    """Event files in the run's folder ``tensorboard``: ``tensorboard --logdir runs`` shows them.

    Raises:
        DyneqError: If the package is missing.
    """

    name = "tensorboard"

    def __init__(self) -> None:
        require("tensorboard", "tensorboard")

    def start(self, recipe: Recipe, folder: Path, step: int) -> None:
        """Open a new event file; after a resume it hides the events that will be written again."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1, flush_secs=10)
        if step == 0:
            self._text("recipe", f"```\n{recipe.to_toml()}\n```", 0)

    def record(self, record: Record) -> None:
        """Write numbers as scalars and sentences as text."""
        step = int(record["step"])
        for name, value in _numbers(record).items():
            self._writer.add_scalar(name, value, step)
        for name, sentence in _sentences(record).items():
            self._text(name, sentence, step)

    def finish(self, outcome: "Outcome | None") -> None:
        """Write how the run ended, and close."""
        if outcome is not None:
            self._text("outcome", f"{outcome.ending.value}: {outcome.sentence}", outcome.step)
        self._writer.close()

    def _text(self, name: str, text: str, step: int) -> None:
        self._writer.add_text(name, text, step)


class MLflow:
    """A run of the experiment ``dyneq`` on the server that MLFLOW_TRACKING_URI names, else in the run's ``mlflow.db``.

    Raises:
        DyneqError: If the package is missing.
    """

    name = "mlflow"
    #: Seconds between two batches of numbers.
    interval = 5.0

    def __init__(self) -> None:
        require("mlflow", "mlflow")
        self._waiting: list[tuple[int, float, dict[str, float]]] = []
        self._sent = time.monotonic()

    def start(self, recipe: Recipe, folder: Path, step: int) -> None:
        """Create a run, or continue the one whose id the folder keeps in ``mlflow.json``."""
        from mlflow import MlflowClient

        address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=address)
        kept = folder / "mlflow.json"
        if kept.exists() and (then := json.loads(kept.read_text(encoding="utf-8")))["address"] == address:
            self._run = str(then["run"])
            self._client.update_run(self._run, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "dyneq"
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        self._run = self._client.create_run(experiment, run_name=folder.absolute().name).info.run_id
        for key, value in _flat(recipe.to_plain()).items():
            self._client.log_param(self._run, key, value)
        write_atomically(kept, json.dumps({"address": address, "run": self._run}).encode())

    def record(self, record: Record) -> None:
        """Take the numbers, and send them now and then; sentences become tags."""
        self._waiting.append((int(record["step"]), time.time(), _numbers(record)))
        for name, sentence in _sentences(record).items():
            self._client.set_tag(self._run, f"{name} {record['step']}", sentence)
        if time.monotonic() - self._sent >= self.interval:
            self._send()

    def finish(self, outcome: "Outcome | None") -> None:
        """Send the rest, and say how the run ended."""
        self._send()
        if outcome is None:
            self._client.set_terminated(self._run, "KILLED")
            return
        self._client.set_tag(self._run, "outcome", f"{outcome.ending.value}: {outcome.sentence}")
        self._client.set_terminated(self._run, "FINISHED" if outcome.ending.value == "completed" else "FAILED")

    def _send(self) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(1000 * when), step)
            for step, when, numbers in self._waiting
            for name, value in numbers.items()
        ]
        for first in range(0, len(metrics), 1000):  # a server takes no more at once
            self._client.log_batch(self._run, metrics=metrics[first : first + 1000])
        self._waiting, self._sent = [], time.monotonic()


TRACKERS: dict[str, Callable[[], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow}


def trackers(names: Iterable[str]) -> list[Tracker]:
    """Return the trackers of these names, each once.

    Raises:
        UsageError: If there is none of a name.
        DyneqError: If a package is missing.
    """
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in TRACKERS:
            raise UsageError(f"there is no tracker called {name!r}{nearest(name, TRACKERS)}")
    return [TRACKERS[name]() for name in wanted]


def require(module: str, tracker: str) -> None:
    """Raise unless a module can be imported.

    Raises:
        DyneqError: If it cannot.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise DyneqError(
            f"--track {tracker} needs the package {module}, which cannot be imported ({error}); install "
            "dyneq[trackers], or leave --track out: log.jsonl has every number anyway"
        ) from None


class Tracking:
    """The trackers of a run, each in a thread of its own, so that none can slow the run or break it.

    One that raises is noted once and dropped.

    Args:
        members: The trackers.
        progress: Where a failure is noted.
    """

    def __init__(self, members: Sequence[Tracker], progress: Progress) -> None:
        self._progress = progress
        self._workers = [_Worker(tracker) for tracker in members]

    def start(self, recipe: Recipe, folder: Path, step: int) -> Self:
        """Start every tracker; returns itself, to be entered for the duration of the run."""
        for worker in self._workers:
            worker.start()
            worker.ask(partial(worker.tracker.start, recipe, folder, step))
        return self

    def record(self, record: Record) -> None:
        """Hand every tracker a record."""
        self._drop_failed()
        for worker in self._workers:
            worker.ask(partial(worker.tracker.record, dict(record)))

    def finish(self, outcome: "Outcome | None", patience: float = PATIENCE) -> None:
        """End every tracker and wait a while for it to take what is left."""
        for worker in self._workers:
            worker.ask(partial(worker.tracker.finish, outcome))
            worker.ask(None)
        limit = time.monotonic() + patience
        for worker in self._workers:
            worker.join(max(0.0, limit - time.monotonic()))
            if worker.is_alive():
                self._progress.warn(
                    f"the tracker {worker.tracker.name} has not taken everything after {patience:.0f} s and is left "
                    "behind; log.jsonl has every number"
                )
        self._drop_failed()
        self._workers = []

    def _drop_failed(self) -> None:
        for worker in self._workers:
            if (error := worker.error) is not None:
                first = (str(error).splitlines() or [""])[0][:200]
                self._progress.warn(
                    f"the tracker {worker.tracker.name} failed and is dropped ({type(error).__name__}: {first}); the "
                    "run goes on, and log.jsonl has every number"
                )
        self._workers = [worker for worker in self._workers if worker.error is None]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._workers:  # an exception came before the run could finish them
            self.finish(None, BRIEF)


class _Worker(threading.Thread):
    """Calls one tracker; daemonic, so that one that hangs does not keep the process."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__(name=f"tracker {tracker.name}", daemon=True)
        self.tracker, self.error = tracker, None
        self._asked: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    error: BaseException | None

    def ask(self, act: Callable[[], None] | None) -> None:
        """Queue a call; None ends the thread."""
        self._asked.put(act)

    def run(self) -> None:
        """Do what is asked until something raises."""
        for act in iter(self._asked.get, None):
            try:
                act()
            except BaseException as error:  # somebody else's code, sys.exit() included, and no thread of ours
                self.error = error
                return


def _numbers(record: Record) -> dict[str, float]:
    return {k: float(v) for k, v in record.items() if isinstance(v, int | float) and k != "step"}


def _sentences(record: Record) -> dict[str, str]:
    return {k: v for k, v in record.items() if isinstance(v, str)}


def _flat(values: Any, prefix: str = "") -> dict[str, str]:
    """Return nested settings as one level of texts, each short enough for any server."""
    if isinstance(values, dict):
        return {k: v for key, value in values.items() for k, v in _flat(value, f"{prefix}.{key}".lstrip(".")).items()}
    return {prefix: json.dumps(values)[:500]}
