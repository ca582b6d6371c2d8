"""What a probe is: a named, versioned measurement of a system that returns an xarray dataset."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import xarray as xr
from pydantic import BaseModel, ConfigDict

from dyneq.errors import UsageError
from dyneq.systems.protocol import System

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Told what is being done and how far it is (0 to 1).
Progress = Callable[[str, float], None]


def silent(what: str, share: float) -> None:
    """Ignore progress."""


class Params(BaseModel):
    """Parameters of a probe: immutable, and unknown names are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Finding:
    """One sentence a reader takes away from a result.

    Attributes:
        level: ``fact``, ``warning`` (read the numbers with care) or ``undetermined``.
        text: The sentence.
    """

    level: str
    text: str


class Probe(ABC):
    """A measurement of a system, found through the entry-point group ``dyneq.probes``.

    Attributes:
        name: Name on the command line.
        version: Raised whenever results change meaning or value.
        Params: The probe's parameters.
        needs_loss: Whether the system must have a loss.
        needs_causal: Whether the system must be causal over tokens.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    Params: ClassVar[type[Params]]
    needs_loss: ClassVar[bool] = False
    needs_causal: ClassVar[bool] = False

    @abstractmethod
    def run(self, system: System, params: Any, progress: Progress = silent) -> xr.Dataset:
        """Measure a system.

        Args:
            system: What is measured.
            params: An instance of this probe's ``Params``.
            progress: Told how far the measurement is.
        """

    @abstractmethod
    def summary(self, ds: xr.Dataset) -> list[Finding]:
        """Return what a reader should take away from a result."""

    @abstractmethod
    def plot(self, ds: xr.Dataset, ax: Any = None) -> "Figure":
        """Draw a result and return the figure; ``ax`` (one, or a sequence where it has several) if given."""

    def check(self, system: System) -> None:
        """Verify that a system has what this probe needs.

        Raises:
            UsageError: If it does not.
        """
        if self.needs_loss and not system.has_loss:
            raise UsageError(f"the probe {self.name!r} needs a loss, but {system.name} has none; bind it with targets")
        if self.needs_causal and not system.structure.causal:
            raise UsageError(
                f"the probe {self.name!r} needs a block that is causal over tokens, but {system.name} is not"
            )
