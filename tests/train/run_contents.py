"""What a run folder holds, in a form that can be compared bit for bit."""

import hashlib
import json
from pathlib import Path

import torch


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
