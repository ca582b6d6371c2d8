"""What a run folder holds, in a form that can be compared bit for bit, and a run that is killed on its way."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from dyneq.train.recipe import Recipe

DRIVER = Path(__file__).with_name("kill_driver.py")


def plain(held: object) -> object:
    """Nested values, tensors as bytes; torch.save's own bytes also depend on which objects are one and the same."""
    if isinstance(held, torch.Tensor):
        return str(held.dtype), tuple(held.shape), held.numpy().tobytes()
    if isinstance(held, dict):
        return {key: plain(value) for key, value in held.items()}
    return [plain(value) for value in held] if isinstance(held, list | tuple) else held


def contents(folder: Path) -> dict[str, object]:
    """Every file by digest, but the log by its lines without clock times, and what is resumed from by its values."""
    found: dict[str, object] = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    for state in [folder / "last.pt", *folder.glob("stable*.pt")]:
        found[state.name] = plain(torch.load(state, weights_only=True))
    lines = (folder / "log.jsonl").read_text().splitlines()
    found["log.jsonl"] = [{k: v for k, v in json.loads(line).items() if not k.endswith("seconds")} for line in lines]
    return found


def killed_and_whole(recipe: Recipe, folder: Path, seed: int, kills: int | None = None) -> tuple[Path, Path, list[int]]:
    """Run a recipe killed with SIGKILL at random moments, and whole; return both folders and where it was struck."""
    file, killed, whole = (folder / name for name in ("recipe.toml", "killed", "whole"))
    file.write_text(recipe.to_toml(), encoding="utf-8")
    arguments = [file, whole, killed, seed, *([] if kills is None else [kills])]
    done = subprocess.run(
        [sys.executable, DRIVER, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240 if kills is None else None,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return killed, whole, [int(n) for n in done.stdout.split()]
