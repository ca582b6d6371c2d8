"""What a probe is: a named, versioned measurement of a system that returns an xarray dataset.

Its dataset says of every data variable

- ``long_name`` and ``units``;
- ``ancillary_variables``: the name of the variable that holds its error bar, an absolute half-width in the same units
  that broadcasts to it, NaN where it is not known;
- ``role``, where it is no measured value: :data:`COST`, :data:`CERTIFICATE` or :data:`EXACT`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from dyneq.errors import UsageError
from dyneq.systems.protocol import System

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Told what is being done and how far it is (0 to 1).
Progress = Callable[[str, float], None]

#: ``role`` of what a result took: seconds, products. It differs from run to run and means nothing for the result.
COST = "cost"
#: ``role`` of what tells how far other variables can be trusted: residuals, conditions.
CERTIFICATE = "certificate"
#: ``role`` of flags, labels and counts kept as floating point numbers: any difference is a real one.
EXACT = "exact"


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
        needs_relaxation: Whether the system must relax; False for what looks at loss and gradient alone.
        overrides: Common options of the command line (``eps``) that a parameter of the same name takes the place of.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    Params: ClassVar[type[Params]]
    needs_loss: ClassVar[bool] = False
    needs_causal: ClassVar[bool] = False
    needs_relaxation: ClassVar[bool] = True
    overrides: ClassVar[frozenset[str]] = frozenset()

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

    def text(self, ds: xr.Dataset) -> str | None:
        """Return the body of a printed result, between heading and findings; None for a table of its variables."""
        return None

    def document(self, ds: xr.Dataset) -> dict[str, Any] | None:
        """Return a result as the plain values ``--json`` prints; None for all variables of the dataset.

        NaN and infinity may stay in it: they are printed as null. The findings are added to it.
        """
        return None

    def match(self, a: xr.Dataset, b: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
        """Return two results of this probe on the same coordinates, so that they can be compared entry by entry.

        By default :func:`align`. A probe some of whose dimensions are mere ranks pairs their entries here. What has no
        counterpart is left out, and the attribute ``unmatched`` of each dataset returned says how many entries along
        which dimension.

        Args:
            a: A result of this probe.
            b: Another one.
        """
        return align(a, b)

    def check(self, system: System) -> None:
        """Verify that a system has what this probe needs.

        Raises:
            UsageError: If it does not.
        """
        if self.needs_relaxation and not system.relaxes:
            raise UsageError(
                f"the probe {self.name!r} looks at a relaxation, but {system.name} computes its output in one pass and "
                "does not relax; ask for its loss or gradient (triangulate, navg), or choose a block that relaxes"
            )
        if self.needs_loss and not system.has_loss:
            raise UsageError(f"the probe {self.name!r} needs a loss, but {system.name} has none; bind it with targets")
        if self.needs_causal and not system.structure.causal:
            raise UsageError(
                f"the probe {self.name!r} needs a block that is causal over tokens, but {system.name} is not"
            )


def annotate(ds: xr.Dataset, *, bars: Mapping[str, str], roles: Mapping[str, str]) -> xr.Dataset:
    """Return a dataset whose variables name their error bars and roles.

    Args:
        ds: A result.
        bars: From a variable to the one that holds its error bar; left out where one of them is not in the dataset.
        roles: From a variable to :data:`COST`, :data:`CERTIFICATE` or :data:`EXACT`.
    """
    for name, bar in bars.items():
        if name in ds.data_vars and bar in ds.data_vars:
            ds[name].attrs["ancillary_variables"] = bar
    for name, role in roles.items():
        if name in ds.data_vars:
            ds[name].attrs["role"] = role
    return ds


def align(a: xr.Dataset, b: xr.Dataset, exclude: Collection[str] = ()) -> tuple[xr.Dataset, xr.Dataset]:
    """Return two datasets with the entries that both have along every dimension they share.

    Args:
        a: A dataset.
        b: Another one.
        exclude: Dimensions left as they are.

    Returns:
        Both, with the attribute ``unmatched``: how many entries along each dimension were left out of it.

    Raises:
        UsageError: If a dimension without coordinates has different lengths, or one with coordinates has nothing in
            common.
    """
    shared = [str(d) for d in a.dims if d in b.dims and d not in exclude]
    for dim in shared:
        if (dim in a.indexes) != (dim in b.indexes):
            raise UsageError(f"the dimension {dim!r} has coordinates in only one of the results; compare results alike")
        if dim in a.indexes:
            repeated = not (a.indexes[dim].is_unique and b.indexes[dim].is_unique)
            if repeated and not a.indexes[dim].equals(b.indexes[dim]):
                raise UsageError(f"coordinates along {dim!r} are repeated and differ, so its entries cannot be paired")
        elif a.sizes[dim] != b.sizes[dim]:
            raise UsageError(
                f"the dimension {dim!r} has no coordinates and {a.sizes[dim]} entries in one result but "
                f"{b.sizes[dim]} in the other; compare results of the same shape"
            )
    first, second = xr.align(a, b, join="inner", copy=False, exclude=frozenset(exclude))
    for dim in shared:
        if a.sizes[dim] and b.sizes[dim] and not first.sizes[dim]:
            raise UsageError(
                f"the results have no {dim} in common ({_few(a, dim)} and {_few(b, dim)}), so nothing can be compared; "
                f"compare results that share some"
            )
    return tuple(  # type: ignore[return-value]
        now.assign_attrs(unmatched={d: n for d in shared if (n := before.sizes[d] - now.sizes[d])})
        for before, now in ((a, first), (b, second))
    )


def require(ds: xr.Dataset, names: Collection[str], what: str) -> None:
    """Verify that a dataset is a whole result, with the variables that tell its entries apart.

    Raises:
        UsageError: If one is missing.
    """
    for name in names:
        if name not in ds.variables:
            raise UsageError(
                f"a result of the {what} should have the variable {name!r}, but has none; use whole results"
            )


def _few(ds: xr.Dataset, dim: str) -> str:
    values = [str(v) for v in ds[dim].values[:3]]
    return ", ".join(values) + (", ..." if ds.sizes[dim] > 3 else "")


def least_cost_pairs(distance: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the rows and columns paired so that the sum of their squared distances is least.

    As many pairs as the shorter side has. Of plain distances the sum would be the same for many pairings of points on a
    line, among them ones that pair the first of one side with the last of the other.

    Args:
        distance: ``[rows, columns]``, finite.
    """
    from scipy.optimize import linear_sum_assignment

    largest = distance.max(initial=0.0)
    # squares of very large or very small distances do not fit
    return linear_sum_assignment((distance / largest) ** 2 if largest > 0 else distance)
