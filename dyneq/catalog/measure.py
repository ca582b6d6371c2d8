"""One probe on one subject, through the store: found again if it was measured before, else measured and kept."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dyneq.catalog import results
from dyneq.catalog.resolve import Subject
from dyneq.catalog.results import StoredResult
from dyneq.catalog.store import Store
from dyneq.errors import DyneqError, UsageError
from dyneq.probes.base import Params, Probe, Progress, silent
from dyneq.probes.registry import run_probe
from dyneq.systems.protocol import System

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Settings:
    """How a subject is bound.

    Attributes:
        batch: How many samples of the pinned batch; all if None.
        eps: Step size; the subject's own if None.
        dtype: ``float64`` or ``float32``; the subject's default if None.
        device: Torch device; the subject's default if None.
    """

    batch: int | None = None
    eps: float | None = None
    dtype: str | None = None
    device: str | None = None


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
    probe: Probe,
    params: Params,
    settings: Settings,
    store: Store,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> Measured:
    """Return a probe's result for a subject.

    Args:
        subject: What is measured.
        probe: The probe.
        params: Its parameters.
        settings: How the subject is bound.
        store: Where results are kept. A factory's system has no digest, so its results are not.
        force: Measure again even if there is a result, and keep the new one beside it.
        progress: Told how far the measurement is.

    Raises:
        UsageError: If the subject has not what the probe needs, or cannot be bound so.
        DyneqError: If the probe fails, the store cannot be written to, or the stored result is damaged.
    """
    system = _bind(subject, settings)
    probe.check(system)
    request = subject.request(probe, params, system)
    if request is not None:
        earlier = None if force else results.find(store, request)
        if earlier is not None:
            return Measured(earlier.open().load(), earlier, True)
        store.require_writable()  # before hours of computing, not after
    ds = _run(subject, probe, params, settings, system, progress)
    if request is None:
        return Measured(ds, None, False)
    held = subject.checkpoint
    try:
        stored = results.put(store, request, ds, name=subject.name, step=0 if held is None else held.step, force=force)
    except DyneqError as error:
        return Measured(ds, None, False, error)
    return Measured(ds, stored, False)


def _bind(subject: Subject, settings: Settings) -> System:
    dtype = None if settings.dtype is None else getattr(torch, settings.dtype)
    with torch.no_grad():
        try:
            return subject.bind(settings.batch, eps=settings.eps, dtype=dtype, device=settings.device)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(
                f"the device {settings.device!r} cannot be used ({_first_line(error)}); choose cpu or another"
            ) from error


def _run(
    subject: Subject, probe: Probe, params: Params, settings: Settings, system: System, progress: Progress
) -> "xr.Dataset":
    # what a user's own system raises in mid-run is not a fault of this program: say what it was, without a traceback
    expected: tuple[type[Exception], ...] = (RuntimeError, ArithmeticError, MemoryError)
    if subject.system is not None:
        expected = (Exception,)
    values: dict[str, Any] = {name: getattr(params, name) for name in type(params).model_fields}
    try:
        return run_probe(probe, system, provenance=subject.provenance(settings.batch), progress=progress, **values)
    except DyneqError:
        raise
    except expected as error:
        raise DyneqError(
            f"{subject.name} could not be probed: {type(error).__name__}: {_first_line(error)}; check its force, its "
            "derivatives and the memory at hand"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0].rstrip(".")
