"""From what the user names to something that can be bound and probed."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from dyneq.errors import UsageError, nearest
from dyneq.systems.checkpoint import Checkpoint
from dyneq.systems.checkpoint_io import load_checkpoint
from dyneq.systems.factory import load_system
from dyneq.systems.protocol import System


@dataclass(frozen=True)
class Subject:
    """What a probe is run on: a checkpoint, or a system of the user's own.

    Attributes:
        name: What it is called in messages and tables.
        checkpoint: The checkpoint, None for a system made by a factory.
        system: The system made by a factory, None for a checkpoint.
    """

    name: str
    checkpoint: Checkpoint | None = None
    system: System | None = None

    def bind(
        self,
        batch: int | None = None,
        *,
        eps: float | None = None,
        dtype: torch.dtype | None = None,
        device: str | None = None,
    ) -> System:
        """Return the system to probe.

        Args:
            batch: How many samples of the pinned batch; all if None.
            eps: Step size; the subject's own if None.
            dtype: Precision; float64 for checkpoints if None. A factory's system has its own.
            device: Where it is computed; the CPU for checkpoints if None. A factory's system has its own.

        Raises:
            UsageError: If something is asked of a factory's system that only the factory can decide, or of the batch.
        """
        if self.checkpoint is not None:
            return self.checkpoint.bind(batch, eps=eps, dtype=dtype or torch.float64, device=device or "cpu")
        assert self.system is not None
        if dtype is not None or device is not None:
            raise UsageError(
                f"the factory {self.name} decides dtype and device of its own system; leave out --dtype and --device"
            )
        system = self.system if eps is None else self.system.with_eps(eps)
        if batch is None or batch == system.samples:
            return system
        if not 1 <= batch <= system.samples:
            raise UsageError(f"{self.name} has {system.samples} samples, but --batch {batch} was asked for")
        return system.select(torch.arange(batch, device=system.initial_state().device))

    def identity(self) -> dict[str, Any]:
        """Return ``name``, ``sha256`` and ``step`` as ``--json`` prints them; None where there is none."""
        held = self.checkpoint
        return {"name": self.name, "sha256": held and held.sha256, "step": None if held is None else held.step}

    def provenance(self, batch: int | None) -> dict[str, Any]:
        """Return the attributes a result gets from the checkpoint; empty for a factory's system."""
        if self.checkpoint is None:
            return {"checkpoint": self.name}
        return {
            "checkpoint": self.name,
            "checkpoint_sha256": self.checkpoint.sha256 or "",
            "checkpoint_step": self.checkpoint.step,
            "batch_sha256": self.checkpoint.evaluation.first(batch).sha256,
        }


def reference_names() -> list[str]:
    """Return the names of the packaged reference checkpoints."""
    folder = files("dyneq") / "reference"
    if not folder.is_dir():
        return []
    return sorted(entry.name.removesuffix(".pt") for entry in folder.iterdir() if entry.name.endswith(".pt"))


def open_checkpoint(name: str | Path, *, trust: bool = False) -> Subject:
    """Return what a name on the command line stands for.

    Args:
        name: A path to a checkpoint, the name of a packaged reference checkpoint, or ``module:factory``.
        trust: Unpickle whatever a checkpoint holds.

    Raises:
        UsageError: If nothing is called so.
    """
    text = str(name)
    if Path(text).exists() or Path(text).suffix in (".pt", ".safetensors"):
        checkpoint = load_checkpoint(text, trust=trust)
        return Subject(checkpoint.name, checkpoint)
    if ":" in text:
        return Subject(text, system=load_system(text))
    known = reference_names()
    if text in known:
        checkpoint = load_checkpoint(str(files("dyneq") / "reference" / f"{text}.pt"))
        return Subject(text, checkpoint)
    raise UsageError(
        f"{text!r} is neither a checkpoint file, nor module:factory, nor a packaged reference checkpoint"
        f"{nearest(text, known)}"
    )
