"""Trackers beside the log: told everything once, continued after a resume, and unable to slow or break a run."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles import Notes

from dyneq.errors import DyneqError, UsageError
from dyneq.train import trackers as module
from dyneq.train.log import Record, read_log
from dyneq.train.loop import Ending, Hooks, Outcome, resume, start
from dyneq.train.recipe import Recipe
from dyneq.train.snapshots import Snapshot
from dyneq.train.trackers import Tracker, Tracking, trackers

Tiny = Callable[..., Recipe]


class Fake:
    """Writes down what it is told; raises or waits where it is asked to."""

    name = "fake"

    def __init__(self, fails_in: str = "", wait: threading.Event | None = None) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.threads: set[int] = set()
        self._fails_in, self._wait = fails_in, wait

    def _called(self, method: str, told: object) -> None:
        self.calls.append((method, told))
        self.threads.add(threading.get_ident())
        if self._wait is not None:
            self._wait.wait()
        if method == self._fails_in:
            raise OSError(f"no connection\nin {method}")

    def start(self, recipe: Recipe, folder: Path, step: int) -> None:
        self._called("start", (recipe, folder, step))

    def record(self, record: Record) -> None:
        self._called("record", record)

    def finish(self, outcome: Outcome | None) -> None:
        self._called("finish", outcome)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.pt")}


def test_a_tracker_is_told_what_the_log_is_told(tiny: Tiny, tmp_path: Path) -> None:
    fake, recipe = Fake(), tiny(run={"steps": 6})
    outcome = start(recipe, tmp_path / "run", hooks=Hooks(trackers=[fake]))
    logged = read_log(tmp_path / "run" / "log.jsonl")[1:]
    assert fake.calls == [
        ("start", (recipe, tmp_path / "run", 0)),
        *(("record", record) for record in logged),
        ("finish", outcome),
    ]
    assert fake.threads != {threading.get_ident()}
    assert len(fake.threads) == 1
    start(recipe, tmp_path / "bare")
    assert digests(tmp_path / "bare") == digests(tmp_path / "run")


def test_an_interrupted_run_has_no_outcome_and_is_continued_where_it_stands(tiny: Tiny, tmp_path: Path) -> None:
    def interrupt(snapshot: Snapshot) -> None:
        raise KeyboardInterrupt

    first, second = Fake(), Fake()
    recipe = tiny(run={"steps": 8, "snapshots": [6]})  # saved after 4
    with pytest.raises(KeyboardInterrupt):
        start(recipe, tmp_path / "run", hooks=Hooks(sink=interrupt, trackers=[first]))
    assert first.calls[-1] == ("finish", None)
    resume(tmp_path / "run", hooks=Hooks(trackers=[second]))
    assert second.calls[0][1][2] == 4
    assert [told["step"] for method, told in second.calls if method == "record"] == [5, 6, 7, 8]


@pytest.mark.parametrize("method", ["start", "record", "finish"])
def test_one_that_fails_is_noted_once_and_dropped(tiny: Tiny, tmp_path: Path, method: str) -> None:
    bad, good, notes = Fake(method), Fake(), Notes()
    outcome = start(tiny(run={"steps": 6}), tmp_path / "run", hooks=Hooks(progress=notes, trackers=[bad, good]))
    assert outcome.ending is Ending.COMPLETED
    assert notes.sentences == [
        "the tracker fake failed and is dropped (OSError: no connection); the run goes on, and log.jsonl has every "
        "number"
    ]
    assert [m for m, _ in bad.calls].count(method) == 1
    assert [m for m, _ in good.calls] == ["start", *["record"] * 6, "finish"]
    start(tiny(run={"steps": 6}), tmp_path / "bare")
    assert digests(tmp_path / "bare") == digests(tmp_path / "run")


def test_one_that_hangs_is_left_behind(tiny: Tiny, tmp_path: Path) -> None:
    released, notes = threading.Event(), Notes()
    tracking = Tracking([Fake(wait=released), Fake()], notes).start(tiny(), tmp_path, 0)
    began = time.monotonic()
    for step in range(1, 1000):
        tracking.record({"step": step})
    assert time.monotonic() - began < 1  # handing over waits for nobody
    tracking.finish(None, patience=0.2)
    assert notes.sentences == [
        "the tracker fake has not taken everything after 0 s and is left behind; log.jsonl has every number"
    ]
    released.set()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_package_and_an_unknown_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DyneqError, match=rf"--track {name} needs the package {name}, .* install dyneq\[trackers\]"):
        trackers([name])
    with pytest.raises(UsageError, match=f"no tracker called '{name[:-1]}'; did you mean '{name}'"):
        trackers([name[:-1]])


def test_one_name_is_one_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRACKERS", {"fake": Fake})
    assert len(trackers(["fake", "fake"])) == 1
    found: list[Tracker] = trackers([])
    assert found == []


# the packages themselves


def interrupted_and_resumed(tiny: Tiny, folder: Path, name: str, notes: Notes) -> list[Record]:
    """Run eight updates, interrupted after six of which four are saved; return the records of the log."""

    def interrupt(snapshot: Snapshot) -> None:
        raise KeyboardInterrupt

    recipe = tiny(run={"steps": 8, "snapshots": [6]})
    with pytest.raises(KeyboardInterrupt):
        start(recipe, folder, hooks=Hooks(sink=interrupt, progress=notes, trackers=trackers([name])))
    resume(folder, hooks=Hooks(progress=notes, trackers=trackers([name])))
    return read_log(folder / "log.jsonl")[1:]


@pytest.fixture
def _quiet() -> Iterator[None]:
    """Other people's packages may warn of what they like."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="the package tensorboard is not installed")
@pytest.mark.usefixtures("_quiet")
def test_tensorboard_holds_every_number_once(tiny: Tiny, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    notes = Notes()
    logged = interrupted_and_resumed(tiny, tmp_path / "run", "tensorboard", notes)
    assert notes.sentences == []
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))  # purges what was written again, as the board does
    events.Reload()
    for name in ("loss", "gradient_norm", "lr", "validation_loss"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(r["step"], pytest.approx(r[name], rel=1e-6)) for r in logged if name in r]
        assert shown == expected


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="the package mlflow is not installed")
def test_mlflow_continues_its_run(tiny: Tiny, tmp_path: Path) -> None:
    # in processes of their own, for what mlflow leaves behind in one: handlers, engines, warnings
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tiny(run={"steps": 8, "snapshots": [6]}).to_toml(), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    for part in (MLFLOW_FIRST, MLFLOW_SECOND):
        done = subprocess.run(
            [sys.executable, "-c", MLFLOW_HEAD + part, str(recipe), str(tmp_path / "run")],
            env={**environment, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "the tracker mlflow" not in done.stderr


MLFLOW_HEAD = """
import sys, time
from pathlib import Path
from dyneq.train.loop import Hooks, resume, start
from dyneq.train.log import read_log
from dyneq.train.progress import PlainProgress
from dyneq.train.recipe import load_recipe
from dyneq.train.trackers import trackers

folder = Path(sys.argv[2])
def hooks(sink=None):
    return Hooks(sink=sink, progress=PlainProgress(), trackers=trackers(["mlflow"]))
"""
MLFLOW_FIRST = """
def interrupt(snapshot):
    for _ in range(1200):  # making the database takes mlflow seconds
        if (folder / "mlflow.json").exists():
            break
        time.sleep(0.1)
    raise KeyboardInterrupt
try:
    start(load_recipe(sys.argv[1]), folder, hooks=hooks(interrupt))
except KeyboardInterrupt:
    pass
"""
MLFLOW_SECOND = """
resume(folder, hooks=hooks())
logged = read_log(folder / "log.jsonl")[1:]
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
(experiment,) = client.search_experiments(filter_string="name = 'dyneq'")
(run,) = client.search_runs([experiment.experiment_id])
assert run.info.status == "FINISHED", run.info.status
assert run.info.run_name == folder.name
assert run.data.params["run.steps"] == "8"
assert run.data.tags["outcome"].startswith("completed: all 8 updates")
for name in ("loss", "validation_loss"):
    found = {(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)}
    # what came again after the resume came with the same value
    assert found == {(r["step"], r[name]) for r in logged if name in r}, (name, found)
"""
