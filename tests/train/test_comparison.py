"""The table of a comparison against hand computation, what counts as broken, and the results document."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dyneq.errors import DyneqError, UsageError
from dyneq.train import comparison_document, loop
from dyneq.train.arms import Cell
from dyneq.train.comparison import Interval, rows
from dyneq.train.comparison_result import broken, finish, finished, require_same, summary
from dyneq.train.recipe import Recipe

Tiny = Callable[..., Recipe]
NAN = math.nan


def run(arm: str, seed: int, loss: float, **other: Any) -> dict[str, Any]:
    """A run as `summary` gives it, as far as the table needs it."""
    filled = {
        "lr": 0.1,
        "best_loss": loss,
        "force_residual": 1e-3,
        "unsettled_worst": 0.25,
        "multiplier": 0.99,
        "task": "next token",
        "seconds_per_update": 0.5,
        "seconds": 5.0,
    }
    return {"arm": arm, "seed": seed, "final_loss": loss, "broken": None, "acts": [], **filled, **other}


def test_the_interval_is_students() -> None:
    # t(0.975; 2) = 4.302653 and the deviation of 1, 2, 3 is 1 (any table of Student's t)
    found = Interval.of([1.0, 2.0, 3.0, NAN, math.inf])
    assert (found.mean, found.count) == (2.0, 3)
    assert found.half_width == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    # t(0.975; 1) = 12.706205 and the deviation of 0, 1 is 1/sqrt 2
    assert Interval.of([0.0, 1.0]).half_width == pytest.approx(12.706205 / 2, rel=1e-6)
    assert math.isnan(Interval.of([4.0]).half_width)
    assert math.isnan(Interval.of([NAN]).mean)


def test_a_row_by_hand() -> None:
    acts = [{"step": 3, "act": "x"}, {"step": 5, "act": "y", "rolled_back_to": 2}]
    runs = [
        run("a", 0, 2.0, force_residual=1e-2, seconds_per_update=0.2, seconds=10.0, best_loss=1.5),
        run("a", 1, 3.0, force_residual=3e-1, seconds_per_update=0.9, seconds=40.0, best_loss=2.5, broken="it rose"),
        run("a", 2, 4.0, force_residual=2e-2, seconds_per_update=0.3, seconds=20.0, acts=acts),
    ]
    (row,) = rows(runs)
    assert row == {
        **{"arm": "a", "lr": 0.1, "runs": 3, "broke": 1, "loss": 3.0, "loss_runs": 3},
        "loss_half_width": pytest.approx(4.302653 / 3**0.5, rel=1e-6),
        "best_loss": pytest.approx(8 / 3),
        **{
            "force_residual": 2e-2,
            "force_residual_worst": 3e-1,
            "unsettled": 0.25,
            "multiplier": 0.99,
            "seconds_per_update": 0.3,
            "seconds": 20.0,
            "acts": 2,
            "rollbacks": 1,
        },
    }


def test_a_run_without_a_finite_loss_is_counted_and_not_averaged() -> None:
    (row,) = rows([run("a", 0, NAN, broken="b", best_loss=NAN, force_residual=NAN), run("a", 1, 2.0)])
    assert (row["runs"], row["broke"], row["loss"], row["loss_runs"], row["best_loss"]) == (2, 1, 2.0, 1, 2.0)
    assert math.isnan(row["loss_half_width"])
    assert row["force_residual"] == 1e-3


def test_several_learning_rates_have_a_row_together_and_seeds_stay_the_unit() -> None:
    runs = [
        run("a", seed, loss, lr=lr) for lr, at in ((0.1, (1, 2, 3)), (0.2, (2, 3, 4))) for seed, loss in enumerate(at)
    ]
    small, large, both = rows(runs)
    assert [small["lr"], large["lr"], both["lr"]] == [0.1, 0.2, None]
    assert (both["runs"], both["loss"], both["loss_runs"]) == (6, 2.5, 6)
    # means of the seeds 0, 1, 2 are 1.5, 2.5, 3.5: three values, not six
    assert both["loss_half_width"] == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    runs[0]["final_loss"] = NAN  # a seed without one of its rates has no mean like the others'
    assert math.isnan(rows(runs)[-1]["loss_half_width"])
    assert rows(runs)[-1]["loss_runs"] == 5


def test_differences_are_taken_pair_by_pair() -> None:
    runs = [run("ref", 0, 1.0), run("ref", 1, 5.0), run("ref", 0, 9.0, lr=0.2)]
    runs += [run("a", 0, 1.5), run("a", 1, 5.7), run("a", 2, 100.0)]  # the seed 2 has no partner
    found = {(row["arm"], row["lr"]): row for row in rows(runs, "ref")}
    row = found["a", 0.1]
    assert (row["difference"], row["pairs"]) == (pytest.approx(0.6), 2)
    # the differences are 0.5 and 0.7: deviation 0.2/sqrt 2, t(0.975; 1) = 12.706205
    assert row["difference_half_width"] == pytest.approx(12.706205 * 0.1, rel=1e-6)
    assert found["ref", 0.1]["difference"] == 0.0
    assert found["ref", 0.2]["pairs"] == 1
    alone = rows([run("ref", 0, 1.0), run("b", 0, 1.0, lr=0.3)], "ref")[-1]
    assert (alone["pairs"], math.isnan(alone["difference"])) == (0, True)
    other = rows([run("ref", 0, 1.0), run("energy", 0, 1.0, task="masked token")], "ref")[-1]  # not the same loss
    assert (other["pairs"], math.isnan(other["difference"])) == (0, True)


@pytest.mark.parametrize(
    ("ending", "losses", "residual", "why"),
    [
        ("completed", [3.0, 2.0, 2.29], 0.09, None),
        ("completed", [3.0, 2.0, 2.31], 0.01, "rose from 2.000 to 2.310"),
        ("completed", [3.0, 2.0, 2.4, 1.9], 0.01, "rose from 2.000 to 2.400"),
        ("completed", [3.0, 2.0], 0.11, "does not settle: force residual 1.1e-01"),
        ("completed", [3.0, 2.0], NAN, "does not settle"),
        ("completed", [3.0, NAN], 0.01, "not finite"),
        ("completed", [NAN, math.inf], 0.01, "not finite"),
        ("completed", [3.0, NAN, 2.9], 0.01, "a validation loss was not finite"),
        ("completed", [3.0, math.inf, 2.9], 0.01, "rose from 3.000 to inf"),
        ("non-finite", [3.0, 2.0], 0.01, "ended early: non-finite"),
        ("fuse", [3.0, 2.0], 0.01, "ended early: fuse"),
        ("completed", [], NAN, None),
    ],
)
def test_what_counts_as_broken(ending: str, losses: list[float], residual: float, why: str | None) -> None:
    found = broken(ending, losses, residual)
    assert (found is None) if why is None else (found is not None and why in found)


def test_a_run_that_stopped_settling_once_is_broken_whatever_became_of_it() -> None:
    assert broken("completed", [2.0, 1.9], 1e-3, 0.5) is None
    assert broken("completed", [2.0, 1.9], 1e-3, NAN) is None
    assert "56% of the samples" in (broken("completed", [2.0, 1.9], 1e-3, 0.5625) or "")


def trained(recipe: Recipe, folder: Path) -> dict[str, Any]:
    assert finished(folder) is None
    finish(loop.start(recipe, folder))
    ended = finished(folder)
    assert ended is not None
    return summary(Cell("arm", recipe), folder, ended)


def test_the_summary_of_a_run_is_what_its_log_says(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny(run={"steps": 12, "evaluate_every": 5, "seed": 3}, optimizer={"lr": 5e-3})
    found = trained(recipe, tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    evaluated = {r["step"]: r for r in log if "validation_loss" in r}
    assert list(evaluated) == [5, 10, 12] == found["curve"]["step"]
    assert found["curve"]["validation_loss"] == [r["validation_loss"] for r in evaluated.values()]
    assert found["final_loss"] == evaluated[12]["validation_loss"]
    assert found["best_loss"] == min(found["curve"]["validation_loss"])
    assert found["force_residual"] == evaluated[12]["validation_force_residual"]
    seconds = [r["seconds"] for r in log if "seconds" in r]
    assert len(seconds) == 12
    assert found["seconds_per_update"] == pytest.approx(sum(seconds) / 12)
    assert found["seconds"] == pytest.approx(sum(seconds), abs=0.01)
    assert (found["seed"], found["lr"], found["ending"], found["updates"]) == (3, 5e-3, "completed", 12)
    assert found["recipe"] == recipe.to_plain()
    assert found["with"]["torch"] == log[0]["torch"]


def test_the_time_of_a_guarded_run_has_its_looks(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny(run={"steps": 4}, guard={"enabled": True, "every": 2, "samples": 2, "depth": 10})
    found = trained(recipe, tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert sum("guard_seconds" in r for r in log) == 3  # at the start, after 2 and after 4
    spent = sum(r.get("seconds", 0.0) + r.get("guard_seconds", 0.0) for r in log)
    assert found["seconds"] == pytest.approx(spent, abs=0.01)
    assert found["seconds_per_update"] == pytest.approx(spent / 4)


def test_a_run_that_blows_up_keeps_its_last_finite_loss(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny(run={"steps": 9, "evaluate_every": 1}, optimizer={"lr": 1e30, "warmup": 0})
    found = trained(recipe, tmp_path / "run")
    assert found["ending"] == "non-finite"
    assert found["broken"] == "ended early: non-finite"
    assert found["updates"] < 9
    finite = [loss for loss in found["curve"]["validation_loss"] if math.isfinite(loss)]
    assert found["final_loss"] == finite[-1] if finite else math.isnan(found["final_loss"])


def test_a_folder_with_another_recipe_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    loop.start(tiny(run={"steps": 2}), folder)
    require_same(Cell("arm", tiny(run={"steps": 2})), folder)
    require_same(Cell("arm", tiny()), tmp_path / "absent")
    with pytest.raises(
        UsageError, match=r"another recipe \(it differs in optimizer.lr, run.steps\); choose another --into"
    ):
        require_same(Cell("arm", tiny(run={"steps": 3}, optimizer={"lr": 0.5})), folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DyneqError, match="no run to resume"):
        require_same(Cell("arm", tiny()), tmp_path / "empty")


DOCUMENT: dict[str, Any] = {
    **{"schema": 2, "command": "compare", "command_line": "dyneq compare a", "status": "complete", "failed": []},
    "runs": [run("a", 0, 2.0), {**run("a", 1, 2.5), "final_loss": None}],
}


def test_a_document_reads_back(tmp_path: Path) -> None:
    comparison_document.write(tmp_path / "r.json", DOCUMENT)
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text) == DOCUMENT
    assert sum('"arm"' in line for line in text.splitlines()) == 2  # a run is a line
    found = comparison_document.read(tmp_path / "r.json")
    assert found["runs"][0] == DOCUMENT["runs"][0]
    assert math.isnan(found["runs"][1]["final_loss"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 1}, "has the schema 1, but this version of dyneq reads 2"),
        ({"command": "train"}, "no results document of a comparison"),
        ({"runs": 3}, "is damaged"),
        ({"runs": [{}]}, "damaged: it lacks"),
        ({"runs": [{**run("a", 0, 1.0), "lr": "x"}]}, "damaged: it cannot hold the value 'x' of 'lr'"),
        ({"runs": [{**run("a", 0, 1.0), "acts": 3}]}, "the value 3 of 'acts'"),
        ({"failed": 3}, "is damaged"),
    ],
)
def test_what_is_no_document_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    comparison_document.write(tmp_path / "r.json", {**DOCUMENT, **change})
    with pytest.raises(DyneqError, match=message):
        comparison_document.read(tmp_path / "r.json")


@pytest.mark.parametrize(("content", "message"), [(b"{", "is no JSON"), (b"\xff", "is no JSON"), (b"[]", "no results")])
def test_files_of_other_kinds_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(DyneqError, match=message):
        comparison_document.read(tmp_path / "r.json")
    with pytest.raises(DyneqError, match="cannot be read"):
        comparison_document.read(tmp_path / "absent.json")
