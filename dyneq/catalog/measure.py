"""One probe on one subject, through the store: found again if it was measured before, else measured and kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dyneq.catalog import results
from dyneq.catalog.resolve import Subject
from dyneq.catalog.results import StoredResult
from dyneq.catalog.store import Store
from dyneq.errors import DyneqError, UsageError
from dyneq.probes.base import Params, Probe, Progress, silent
from dyneq.probes.registry import get_probe, make_params, run_probe
from dyneq.systems.protocol import System

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Measured:
    """What a probe found.

    Attributes:
        dataset: The result.
        stored: Where it is kept; None for a system that has no digest to keep it under, and while :attr:`unsaved`.
        found: Whether it was measured before and only read now.
        unsaved: Why a result that was just computed could not be stored; None if it was, or needed not be.
    """

    dataset: "xr.Dataset"
    stored: StoredResult | None
    found: bool
    unsaved: DyneqError | None = None


def measure(
    subject: Subject,
    probe: Probe | str,
    params: Params | Mapping[str, Any] | None = None,
    *,
    batch: int | None = None,
    eps: float | None = None,
    dtype: str | None = None,
    device: str | None = None,
    store: Store | str | Path | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Measured:
    """Return a probe's result for a subject.

    Args:
        subject: What :func:`dyneq.open_checkpoint` gave. A factory's system has no digest, so its results are not
            stored.
        probe: A probe, or its name.
        params: Its parameters; the defaults where none are given.
        batch: How many samples of the pinned batch; all if None.
        eps: Step size; the subject's own if None.
        dtype: ``float64`` or ``float32``; the subject's default if None.
        device: Torch device; the subject's default if None.
        store: The store, or its folder; ``DYNEQ_STORE`` or ``.dyneq`` if None.
        force: Measure again even if there is a result, and keep the new one beside it.
        progress: Told how far the measurement is.

    Raises:
        UsageError: If the subject has not what the probe needs, or a name or value is not one that fits.
        DyneqError: If the probe fails, the store cannot be written to, or the stored result is damaged.
    """
    if batch is not None and type(batch) is not int:
        raise UsageError(f"batch is a number of samples, not {batch!r}; give a whole number")
    if eps is not None and type(eps) not in (int, float):
        raise UsageError(f"eps is a step size, not {eps!r}; give a number")
    probe = get_probe(probe) if isinstance(probe, str) else probe
    params = params if isinstance(params, Params) else make_params(probe, dict(params or {}))
    home = store if isinstance(store, Store) else Store(store)
    system = _bind(subject, batch, eps, dtype, device)
    probe.check(system)
    request = subject.request(probe, params, system)
    if request is not None:
        earlier = None if force else results.find(home, request)
        if earlier is not None:
            # it may have been measured under another name of the same checkpoint
            return Measured(earlier.open().load().assign_attrs(checkpoint=subject.name), earlier, True)
        home.require_writable()  # before hours of computing, not after
    ds = _run(subject, probe, params, system, subject.provenance(batch), progress)
    if request is None or subject.checkpoint is None:
        return Measured(ds, None, False)
    try:
        stored = results.put(
            home, request, ds, name=subject.name, run=subject.run, step=subject.checkpoint.step, force=force
        )
    except DyneqError as error:
        return Measured(ds, None, False, error)
    return Measured(ds, stored, False)


def _bind(subject: Subject, batch: int | None, eps: float | None, dtype: str | None, device: str | None) -> System:
    if dtype not in (None, "float32", "float64"):
        raise UsageError(f"a precision is float64 or float32, not {dtype!r}; choose one of the two")
    with torch.no_grad():
        try:
            precision = None if dtype is None else getattr(torch, dtype)
            return subject.bind(batch, eps=eps, dtype=precision, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(
                f"the device {device!r} cannot be used ({_first_line(error)}); choose cpu or another"
            ) from error


def _run(
    subject: Subject, probe: Probe, params: Params, system: System, provenance: dict[str, Any], progress: Progress
) -> "xr.Dataset":
    # what a user's own system or probe raises in mid-run is not a fault of this program: say what it was
    foreign = subject.system is not None or not type(probe).__module__.startswith("dyneq.")
    expected = (Exception,) if foreign else (RuntimeError, ArithmeticError, MemoryError)
    values: dict[str, Any] = {name: getattr(params, name) for name in type(params).model_fields}
    try:
        return run_probe(probe, system, provenance=provenance, progress=progress, **values)
    except DyneqError:
        raise
    except expected as error:
        raise DyneqError(
            f"probing {subject.name} with {probe.name!r} failed ({type(error).__name__}: {_first_line(error)}); check "
            "the system's force and derivatives, the probe, and the memory at hand"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0].rstrip(".")
