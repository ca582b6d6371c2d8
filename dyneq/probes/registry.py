"""Finding probes, running them with provenance, and reading their results again."""

import contextlib
import inspect
import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

import xarray as xr
from pydantic import ValidationError

from dyneq import plugins
from dyneq.errors import DyneqError, UsageError, nearest
from dyneq.probes.base import Finding, Params, Probe, Progress, silent
from dyneq.probes.provenance import stamp
from dyneq.systems.protocol import System

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUP = plugins.PROBES


def get_probe(name: str) -> Probe:
    """Return a probe by its name.

    Raises:
        UsageError: If there is none, or what is declared as one is no probe.
    """
    return build_probe(name, plugins.load(GROUP, name, "probe"))


def build_probe(name: str, declared: object) -> Probe:
    """Return an instance of what an entry point of ``dyneq.probes`` led to, verified to be a probe.

    Args:
        name: Name of the entry point.
        declared: What it led to.

    Raises:
        UsageError: If it is not a complete Probe subclass of that name.
    """
    problem = None
    if not (isinstance(declared, type) and issubclass(declared, Probe)):
        problem = f"should be a Probe subclass, but is {declared!r}"
    elif inspect.isabstract(declared):
        problem = f"should define {', '.join(sorted(declared.__abstractmethods__))}, but does not"
    elif getattr(declared, "name", None) != name:
        # results are found again by the probe's own name
        problem = f"should have the name {name!r}, but calls itself {getattr(declared, 'name', None)!r}"
    elif not (isinstance(known := getattr(declared, "Params", None), type) and issubclass(known, Params)):
        problem = f"should have Params that extend dyneq.probes.base.Params, but has {known!r}"
    if problem is not None:
        raise UsageError(f"the entry point {name!r} of {GROUP} {problem}; repair or uninstall its package")
    assert isinstance(declared, type)
    try:
        return declared()
    except Exception as error:
        raise UsageError(
            f"the entry point {name!r} of {GROUP} should be made without arguments, but that fails "
            f"({type(error).__name__}: {error}); repair or uninstall its package"
        ) from error


def summary(ds: xr.Dataset) -> list[Finding]:
    """Return what a reader should take away from a result, by the probe that made it.

    Args:
        ds: A result of :func:`run_probe`, also one read from a file.

    Raises:
        UsageError: If the dataset names no probe, one that is not installed, or another version of it.
    """
    return _maker(ds).summary(ds)


def plot(ds: xr.Dataset, ax: Any = None) -> "Figure":
    """Draw a result by the probe that made it and return the figure; in a notebook it shows as the last line of a cell.

    Args:
        ds: A result of :func:`run_probe`, also one read from a file.
        ax: The axes to draw on (one, or a sequence where the probe draws several); a new figure if None.

    Raises:
        UsageError: If the dataset names no probe, one that is not installed, or another version of it.
    """
    figure = _maker(ds).plot(ds, ax)
    if "ipykernel" in sys.modules:
        # a notebook shows a figure made without pyplot only after this import, which pyplot does at its own first one
        with contextlib.suppress(ImportError):
            import_module("matplotlib_inline.backend_inline")
    return figure


def _maker(ds: xr.Dataset) -> Probe:
    """Return the probe that made a result."""
    if not isinstance(ds, xr.Dataset) or not isinstance(ds.attrs.get("probe"), str):
        held = "has no attribute 'probe'" if isinstance(ds, xr.Dataset) else f"is of type {type(ds).__name__}"
        raise UsageError(
            f"a result is a dataset whose attribute 'probe' names what made it, but this one {held}; pass what "
            "dyneq.run_probe returned (most operations of xarray drop attributes: use keep_attrs=True)"
        )
    several = [str(d) for d in ds.get("computed", xr.DataArray(True)).dims] or [
        d for d in ("checkpoint",) if d in ds.dims
    ]
    if "combined_results" in ds.attrs and several:
        raise UsageError(
            f"a probe reads one result at a time, but this dataset combines {ds.attrs['combined_results']} along "
            f"{', '.join(several)}; open one with dyneq.open_result"
        )
    probe = get_probe(ds.attrs["probe"])
    made = ds.attrs.get("probe_version", probe.version)
    if made != probe.version:  # versions count changes of meaning, so it could be read wrongly
        raise UsageError(
            f"the result was made by version {made} of the probe {probe.name!r}, but version {probe.version} is "
            "installed and reads only its own; run the probe again, or install the version that made it"
        )
    return probe


def make_params(probe: Probe, values: dict[str, Any]) -> Params:
    """Return the validated parameters of a probe.

    Raises:
        UsageError: If a name is unknown or a value does not fit.
    """
    known = probe.Params.model_fields
    for name in values:
        if name not in known:
            raise UsageError(f"the probe {probe.name!r} has no parameter {name!r}{nearest(name, known)}")
    try:
        return probe.Params(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the parameters"
        if first["type"] == "value_error":  # the probe's own sentence
            raise UsageError(first["msg"].removeprefix("Value error, ")) from None
        raise UsageError(
            f"the probe {probe.name!r} takes another value for {where}: {first['msg']}, but got {first['input']!r}"
        ) from None


def run_probe(
    probe: str | Probe,
    system: System,
    *,
    provenance: dict[str, Any] | None = None,
    progress: Progress = silent,
    **params: Any,
) -> xr.Dataset:
    """Run a probe on a system and stamp the result with where it came from.

    Args:
        probe: Name or instance.
        system: What is measured.
        provenance: Attributes known to the caller only, such as ``checkpoint_sha256``.
        progress: Told how far the measurement is.
        **params: The probe's parameters; unknown names are errors.

    Raises:
        UsageError: If a parameter is unknown or does not fit, or the system has not what the probe needs.
        DyneqError: If what the probe returns is no dataset over samples.
    """
    probe = get_probe(probe) if isinstance(probe, str) else probe
    checked = make_params(probe, params)
    probe.check(system)
    begun = time.perf_counter()
    ds = probe.run(system, checked, progress)
    if not isinstance(ds, xr.Dataset) or "sample" not in ds.dims:
        found = f"a dataset over {tuple(ds.dims)}" if isinstance(ds, xr.Dataset) else type(ds).__name__
        raise DyneqError(
            f"the probe {probe.name!r} should return an xarray.Dataset with a dimension 'sample', but returned "
            f"{found}; report it to whoever wrote the probe"
        )
    return stamp(ds, probe, checked, system, time.perf_counter() - begun, provenance or {})
