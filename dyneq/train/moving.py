"""Files of a run folder that are written over as the run goes on, which makes them no snapshots."""

MOVING = ("last.pt", "best.pt", "stable.pt")
