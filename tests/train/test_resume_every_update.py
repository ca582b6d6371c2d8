"""Stopping and resuming after every single update ends where a run that was never stopped does."""

from collections.abc import Callable
from pathlib import Path

import pytest
from doubles import StopAt
from run_contents import contents

from dyneq.systems.checkpoint_io import load_checkpoint
from dyneq.train.loop import Ending, Hooks, resume, start
from dyneq.train.recipe import Recipe

Tiny = Callable[..., Recipe]
#: Everything that remembers something: sub-batches, random vectors, a controller, an average, a schedule, a switch that
#: counts, a gate.
FULL = {
    "penalty": {
        "floss": {"samples": 2, "steps": 3, "ramp": 4, "tangents": 2},
        "jacreg": {"controller": "residual", "weight": 0.5, "smoothing": 0.5, "target": 1e-2},
        "spectral": {"samples": 2, "every": 1, "refresh": 3, "further": 10, "bound": 0.5, "form": "total"},
    },
    "optimizer": {"name": "adamw", "lr": 1e-2, "warmup": 2, "schedule": "cosine", "ema": 0.8, "clip": 1.0},
    "switch": [
        {"gradient": {"name": "aep", "t2": 4}, "metric": "force_residual_t1", "above": 1e-6, "patience": 4},
        {"gradient": {"name": "track", "t2": 4}, "at": 9},
    ],
    "stability": {"gate": 0.3, "weight_cap": 5.0},
}
OTHER = {
    "penalty": {"floss": {"samples": None, "steps": 2, "every": 3}, "resreg": {"weight": 0.2}},
    "optimizer": {"schedule": "wsd", "decay": 0.5, "mup_base": 4, "ema": 0.5},
    "stability": {"prewarm": 3, "fuse": None},
}
GUARDED = {
    "penalty": {"spectral": {"samples": 2, "pick": "random", "every": 2, "refresh": 2, "further": 5, "bound": 0.5}},
    "optimizer": {"lr": 0.3, "warmup": 0},
    "guard": {"enabled": True, "every": 1, "samples": 2, "depth": 10, "blow_up": 0.05, "horizon": 5, "recover": 2},
}


@pytest.mark.parametrize(
    ("gradient", "settings", "dtype"),
    [("adjoint:steps=4,relaxation=5", FULL, "float64"), ("bptt5", OTHER, "float32"), ("bptt5", GUARDED, "float64")],
)
def test_a_run_stopped_after_every_update(
    tiny: Tiny, tmp_path: Path, gradient: str, settings: dict[str, dict[str, object]], dtype: str
) -> None:
    steps = 12
    run = {"steps": steps, "save_every": 1, "evaluate_every": 3, "snapshot_every": 5, "batch": 3, "dtype": dtype}
    recipe = tiny(gradient, run=run, **settings)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    start(recipe, whole)
    with pytest.raises(KeyboardInterrupt):
        start(recipe, stopped, hooks=Hooks(progress=StopAt(2)))
    for done in range(1, steps):
        assert load_checkpoint(stopped / "last.pt").step == done
        if done == steps - 1:
            assert resume(stopped).ending is Ending.COMPLETED
            break
        with pytest.raises(KeyboardInterrupt):
            resume(stopped, hooks=Hooks(progress=StopAt(done + 2)))
    found, expected = contents(stopped), contents(whole)
    assert found == expected
    last = load_checkpoint(whole / "last.pt").training["training"]
    if settings is FULL:  # all of it was in use
        log = expected["log.jsonl"]
        assert isinstance(log, list)
        assert last["task"]["switches"] == 2
        assert "switch" in log[4]
        assert len({record.get("penalty_jacreg_weight") for record in log[1:]}) > 3
        assert sum("penalty_spectral" in record for record in log) == steps
        assert max(record.get("penalty_spectral", 0.0) for record in log) > 0
    if settings is GUARDED:
        log = expected["log.jsonl"]
        assert isinstance(log, list)
        assert len({record["guard_lr_share"] for record in log if "guard_lr_share" in record}) > 3
