"""What came of one run of a comparison, read from its folder as plain values."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dyneq.errors import UsageError
from dyneq.files import write_atomically
from dyneq.train.arms import Cell
from dyneq.train.foretold import task
from dyneq.train.log import Record, read_log
from dyneq.train.loop import Ending, Outcome
from dyneq.train.run_folder import RunFolder

#: Nats by which a validation loss is above the best before it from which the run counts as broken.
RISE = 0.3
#: Force residual after T1 steps (median over the pinned batch) above which a run counts as broken: ten times the 1e-2
#: that runs which train well still have.
UNSETTLED = 0.1
#: Share of samples that do not settle in a deep evaluation above which a run counts as broken.
LOST = 0.5


def finished(folder: Path) -> dict[str, Any] | None:
    """Return how a run in a folder ended, None if it has not ended yet or says so in no way that can be read."""
    try:
        found = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    complete = isinstance(found, dict) and found.keys() >= {"ending", "message", "step"}
    return found if complete and found["ending"] in list(Ending) else None


def finish(outcome: Outcome) -> None:
    """Write down that a run has ended and how, so that it is not trained again.

    Raises:
        DyneqError: If it cannot be written.
    """
    document = {
        "ending": outcome.ending.value,
        "message": outcome.sentence,
        "step": outcome.step,
        # strings for what JSON has no numbers for, as in the log
        "metrics": {key: value if math.isfinite(value) else str(value) for key, value in outcome.metrics.items()},
    }
    write_atomically(outcome.folder / "outcome.json", json.dumps(document, allow_nan=False).encode())


def summary(cell: Cell, folder: Path, ended: dict[str, Any]) -> dict[str, Any]:
    """Return what a comparison keeps of a run that has ended.

    Losses are validation losses on the pinned batch in nats per token, residuals its force residuals after T1 steps,
    times those of updates and of the guard's looks, without evaluations and saving.

    Args:
        cell: What was asked for.
        folder: The run folder.
        ended: What :func:`finished` returned.

    Returns:
        ``arm``, ``lr``, ``seed``, ``task`` (next token, or masked token), ``recipe`` (plain), ``ending``, ``message``,
        ``steps`` (asked for), ``updates`` (applied), ``final_loss`` (the last that is finite) with ``final_step``,
        ``best_loss`` with ``best_step``, ``force_residual`` (median over samples) and ``force_residual_max`` at the
        end, ``unsettled`` (share of the samples of deep evaluations that did not settle, at the end) and
        ``unsettled_worst`` (the largest of all evaluations), ``multiplier`` (the largest leading multiplier in the last
        deep evaluation), ``curve`` (``step``, ``validation_loss``, ``validation_force_residual``,
        ``validation_unsettled`` and ``validation_multiplier`` of every evaluation), ``seconds`` in all and
        ``seconds_per_update`` (their mean, since penalties and looks are not in every update), ``acts`` of the guard
        (``step``, ``act``, and ``rolled_back_to`` where it did), ``broken`` (why, see :func:`broken`; None if it did
        not), ``with`` (versions and threads of the run). Unknown numbers are NaN.

    Raises:
        DyneqError: If the log cannot be read.
    """
    log = read_log(RunFolder(folder).log_file)
    evaluations = _evaluations(log, ended)
    losses = [e["validation_loss"] for e in evaluations]
    finite = [e for e in evaluations if math.isfinite(e["validation_loss"])]
    best = min(finite, key=lambda e: e["validation_loss"], default=_NOTHING)
    last, final = evaluations[-1] if evaluations else _NOTHING, finite[-1] if finite else _NOTHING
    times = [float(r["seconds"]) for r in log if "seconds" in r]
    seconds = sum(times) + sum(float(r["guard_seconds"]) for r in log if "guard_seconds" in r)
    return {
        "arm": cell.arm,
        "lr": cell.lr,
        "seed": cell.seed,
        "task": task(cell.recipe),
        "ending": ended["ending"],
        "message": ended["message"],
        "steps": cell.recipe.run.steps,
        "updates": ended["step"],
        "final_loss": final["validation_loss"],
        "final_step": final["step"],
        "best_loss": best["validation_loss"],
        "best_step": best["step"],
        "force_residual": last["validation_force_residual"],
        "force_residual_max": last["validation_force_residual_max"],
        "unsettled": last["validation_unsettled"],
        "multiplier": last["validation_multiplier"],
        "unsettled_worst": max((e["validation_unsettled"] for e in evaluations), default=math.nan),
        "broken": broken(
            ended["ending"],
            losses,
            last["validation_force_residual"],
            max((e["validation_unsettled"] for e in evaluations), default=math.nan),
        ),
        "seconds_per_update": seconds / len(times) if times else math.nan,
        "seconds": round(seconds, 2),
        "acts": [
            {name: record[name] for name in ("step", "act", "rolled_back_to") if name in record}
            for record in log
            if "act" in record
        ],
        "curve": {
            name: [e[name] for e in evaluations]
            for name in (
                *("step", "validation_loss", "validation_force_residual"),
                *("validation_unsettled", "validation_multiplier"),
            )
        },
        "with": {key: log[0].get(key) for key in ("dyneq", "torch", "threads", "device", "corpus", "corpus_sha256")}
        if log
        else {},
        "recipe": cell.recipe.to_plain(),
    }


def broken(ending: str, losses: Sequence[float], residual: float, unsettled: float = math.nan) -> str | None:
    """Return why a run counts as broken, None if it does not.

    A run is broken if it did not apply all its updates (a number that was not finite, the fuse, or the guard ended it),
    if its last validation loss or one before is not finite, if at an evaluation the loss was more than 0.3 nats above
    the best before it, if at its end the force residual after T1 steps (median over the pinned batch) is above 0.1, or
    if, where evaluations relax deeply (``run.deep``), more than half of the samples did not settle at one of them. What
    became of it later does not count.

    Args:
        ending: How it ended.
        losses: Validation losses, in order.
        residual: Force residual at the end.
        unsettled: Largest share of samples that did not settle in a deep evaluation; NaN if there was none.
    """
    if ending != Ending.COMPLETED:
        return f"ended early: {ending}"
    if losses and not math.isfinite(losses[-1]):
        return "its last validation loss is not finite"
    best = math.inf
    for loss in losses:
        if math.isnan(loss):
            return "a validation loss was not finite"
        if loss - best > RISE:
            return f"its validation loss rose from {best:.3f} to {loss:.3f}"
        best = min(best, loss)
    if losses and not residual <= UNSETTLED:
        return f"it does not settle: force residual {residual:.1e} at the end"
    if unsettled > LOST:
        return f"it stopped settling: {unsettled:.0%} of the samples did not at one evaluation"
    return None


_NOTHING: dict[str, Any] = {
    "step": None,
    "validation_loss": math.nan,
    "validation_force_residual": math.nan,
    "validation_force_residual_max": math.nan,
    "validation_unsettled": math.nan,
    "validation_multiplier": math.nan,
}


def _evaluations(log: Sequence[Record], ended: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every evaluation of a run, with the one of the weights that were kept when a number was not finite."""
    names = [name for name in _NOTHING if name != "step"]
    found = [
        {"step": record["step"], **{name: float(record.get(name, math.nan)) for name in names}}
        for record in log
        if "validation_loss" in record
    ]
    metrics, known = ended.get("metrics", {}), bool(found) and found[-1]["step"] == ended["step"]
    if ended["ending"] == Ending.NON_FINITE and "validation_loss" in metrics and not known:
        found.append({"step": ended["step"], **{name: float(metrics.get(name, math.nan)) for name in names}})
    return found


def require_same(cell: Cell, folder: Path) -> None:
    """Verify that a folder, if it is there, holds this very run.

    Raises:
        DyneqError: If it holds something else.
        UsageError: If it holds a run of another recipe.
    """
    if not folder.exists():
        return
    then, now = RunFolder.open(folder).recipe().model_dump(mode="json"), cell.recipe.model_dump(mode="json")
    differing = sorted(_differences(then, now))
    if differing:
        raise UsageError(
            f"{folder} holds a run of another recipe (it differs in {', '.join(differing[:3])}"
            f"{' and more' if len(differing) > 3 else ''}); choose another --into, or remove that folder"
        )


def _differences(then: Any, now: Any, where: str = "") -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in then.keys() | now.keys():
            yield from _differences(then.get(key), now.get(key), f"{where}.{key}" if where else key)
    elif then != now:
        yield where
