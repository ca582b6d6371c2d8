"""A run killed fifty times, with everything on that remembers something, ends as one that was not."""

from collections.abc import Callable
from pathlib import Path

import pytest
from run_contents import contents, killed_and_whole

from dyneq.systems.checkpoint_io import load_checkpoint
from dyneq.train.recipe import Recipe

KILLS = 50


@pytest.mark.slow
def test_a_run_killed_fifty_times(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = tiny(
        "adjoint:steps=4,relaxation=5",
        penalty={
            "floss": {"samples": 2, "steps": 3, "ramp": 20},
            "jacreg": {"controller": "residual", "weight": 0.5, "target": 1e-2},
            "spectral": {"samples": 2, "refresh": 4, "further": 10, "bound": 0.5},
        },
        optimizer={"lr": 3e-3, "schedule": "cosine", "ema": 0.9},
        switch=[{"gradient": {"name": "aep", "t2": 4}, "metric": "force_residual_t1", "above": 0.0, "patience": 150}],
        run={"steps": 6 * KILLS + 30, "save_every": 3, "snapshot_every": 37, "evaluate_every": 10},
    )
    killed, whole, struck = killed_and_whole(recipe, tmp_path, 0, KILLS)
    assert len(struck) == KILLS
    assert len(set(struck)) > KILLS // 2
    assert load_checkpoint(whole / "last.pt").training["training"]["task"]["switches"] == 1
    assert contents(killed) == contents(whole)
