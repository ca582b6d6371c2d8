"""Files of a run folder that come and go as the run does, which makes them no snapshots."""

import re

#: Files the guard goes back to, as a pattern of names.
STABLE = "stable-*.pt"
_MOVING = re.compile(r"last\.pt|best\.pt|stable-[0-9]{6,}\.pt")


def stable_name(step: int) -> str:
    """Return the name of the guard's snapshot after ``step`` updates."""
    return f"stable-{step:06d}.pt"


def is_moving(name: str) -> bool:
    """Return whether a file of this name is written over or removed as its run goes on."""
    return _MOVING.fullmatch(name) is not None
