"""Stand-ins a run is given in tests: progress that listens or interrupts, and a penalty that breaks."""

import math

import torch
from torch import Tensor

from dyneq.errors import DyneqError
from dyneq.probes.penalties.base import Measured, Penalty, PenaltyParams
from dyneq.systems.protocol import System
from dyneq.train.log import Record
from dyneq.train.progress import Progress


class Notes(Progress):
    """Keeps the sentences."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def update(self, record: Record) -> None:
        pass

    def note(self, sentence: str) -> None:
        self.sentences.append(sentence)


class StopAt(Notes):
    """Interrupts a run when an update was applied but not saved yet."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def update(self, record: Record) -> None:
        if record["step"] == self.step:
            raise KeyboardInterrupt


class Poison(Penalty):
    """A penalty whose gradient is not finite in some of its updates, or whatever ``value`` makes of it there."""

    name, what, units, Params = "poison", "nothing", "1", PenaltyParams

    def __init__(self, *calls: int, value: float = math.nan) -> None:
        super().__init__()
        self.poisoned, self.value, self.calls = set(calls), value, 0

    def measure(self, system: System, z: Tensor, generator: torch.Generator) -> Measured:
        self.calls += 1
        w = system.parameter_groups()["head"]["head.weight"][0, 0]
        value = (w * (self.value if self.calls in self.poisoned else 0.0)).expand(len(z))
        return Measured(value, value.detach(), z.new_ones(()))


class Refusal(Poison):
    """A penalty that cannot be computed in some of its updates."""

    def measure(self, system: System, z: Tensor, generator: torch.Generator) -> Measured:
        found = super().measure(system, z, generator)
        if self.calls in self.poisoned:
            raise DyneqError("the products are not finite; try less")
        return found
