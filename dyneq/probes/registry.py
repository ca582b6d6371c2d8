"""Finding probes and running them with provenance."""

import time
from typing import Any

import xarray as xr
from pydantic import ValidationError

from dyneq import plugins
from dyneq.errors import UsageError, nearest
from dyneq.probes.base import Params, Probe, Progress, silent
from dyneq.probes.provenance import stamp
from dyneq.systems.protocol import System

GROUP = "dyneq.probes"


def get_probe(name: str) -> Probe:
    """Return a probe by its name.

    Raises:
        UsageError: If there is none, or it is no probe.
    """
    probe_type = plugins.load(GROUP, name, "probe")
    if not (isinstance(probe_type, type) and issubclass(probe_type, Probe)):
        raise UsageError(f"the entry point {name!r} of {GROUP} should be a Probe subclass, but is {probe_type!r}")
    return probe_type()


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
    """
    probe = get_probe(probe) if isinstance(probe, str) else probe
    checked = make_params(probe, params)
    probe.check(system)
    begun = time.perf_counter()
    ds = probe.run(system, checked, progress)
    return stamp(ds, probe, checked, system, time.perf_counter() - begun, provenance or {})
