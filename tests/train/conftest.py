"""A text and a recipe small enough to train in a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dyneq.train.recipe import Recipe, resolve


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A text of 4,000 characters out of nine."""
    letters = np.random.default_rng(0).choice(list("abcdefgh "), 4000)
    path = tmp_path / "text.txt"
    path.write_text("".join(letters), encoding="utf-8")
    return path


@pytest.fixture
def tiny(text_file: Path) -> Callable[..., Recipe]:
    """Makes tiny recipes; keyword arguments update the sections."""

    def make(gradient: object = "adjoint:steps=4,relaxation=5", **sections: object) -> Recipe:
        values: dict[str, Any] = {
            "block": {"channels": 8, "heads": 2, "tokens": 6, "resinit": 0.1},
            "data": {"file": str(text_file), "evaluation_samples": 8},
            "optimizer": {"lr": 1e-2, "warmup": 3},
            "run": {"steps": 20, "batch": 3, "evaluate_every": 5, "save_every": 4},
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
        return resolve({**values, "gradient": gradient})

    return make
