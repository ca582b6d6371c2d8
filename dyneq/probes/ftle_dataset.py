"""The dataset of the ftle probe: lists of exponents by sample and by token, with what they are read as."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dyneq.dynamics.dimension import SIGMAS, kaplan_yorke
from dyneq.dynamics.finite_time import FiniteTime
from dyneq.dynamics.lyapunov import Exponents
from dyneq.dynamics.relax import Relaxation
from dyneq.dynamics.status import Status
from dyneq.systems.protocol import System, Time

Floats = NDArray[np.float64]
Variables = dict[str, tuple[tuple[str, ...], Any]]

#: Variables per step and their names per unit time.
_RATES = {
    "exponent": "rate",
    "exponent_error": "rate_error",
    "token_exponent": "token_rate",
    "token_exponent_error": "token_rate_error",
    "finite_time": "finite_time_rate",
}


@dataclass(frozen=True)
class Wanted:
    """How many exponents are computed: of a sample's list, of a frame, and whether token by token."""

    count: int
    frame: int
    tokens: bool
    dim: int


@dataclass(frozen=True)
class Measured:
    """What was found on the samples that could be used, whose indices are ``index``."""

    index: NDArray[np.int64]
    exponents: Exponents
    finite: FiniteTime | None
    diverged: NDArray[np.bool_]
    residual: Floats
    forces: int
    products: int


def dataset(system: System, wanted: Wanted, relaxation: Relaxation, measured: Measured | None) -> xr.Dataset:
    """Return the result over all samples, NaN for those that could not be measured.

    Args:
        system: What was measured.
        wanted: What was asked for.
        relaxation: Where the horizon begins.
        measured: What was found; None where no sample could be used.
    """
    samples = len(relaxation.status)
    status = np.array([s.value for s in relaxation.status], dtype=object)
    final, forces, products = np.full(samples, np.nan), relaxation.steps + 1, 0
    if measured is None:
        found = _nothing(wanted)
        index, lost = np.arange(0), np.zeros(0, dtype=bool)
    else:
        index, lost = measured.index, measured.diverged
        status[index[lost]] = Status.DIVERGED.value
        final[index] = measured.residual
        forces, products = forces + measured.forces, measured.products
        found = _listed(measured, wanted, _moving(relaxation, measured)) | _finite(measured.finite, wanted)
    ds = xr.Dataset({name: (dims, _filled(v, index, lost, samples, dims)) for name, (dims, v) in found.items()})
    ds = ds.assign(
        status=("sample", status),
        force_residual=("sample", relaxation.residuals.force.cpu().double().numpy()),
        final_force_residual=("sample", final),
        forces=forces,
        products=products,
    )
    ds = ds.assign_coords(sample=np.arange(samples), mode=np.arange(wanted.count))
    if "token" in ds.dims:
        ds = ds.assign_coords(token=np.arange(ds.sizes["token"]))
    if measured is not None:
        ds = ds.assign_coords(step=measured.exponents.history_steps.numpy())
    ds["reading"] = ("sample", _readings(ds))
    if system.time is Time.FLOW:
        ds = ds.assign({rate: ds[name] / system.eps for name, rate in _RATES.items() if name in ds})
    return ds


def _readings(ds: xr.Dataset) -> NDArray[np.object_]:
    """Return what the leading exponent of every sample says: expanding, neutral, contracting, or lost."""
    leading, margin = ds["exponent"].values[:, 0], ds["exponent_margin"].values[:, 0]
    words = np.where(np.abs(leading) <= margin, "neutral", np.where(leading > 0, "expanding", "contracting"))
    return np.where(np.isnan(leading), "lost", words).astype(object)


def _moving(relaxation: Relaxation, measured: Measured) -> NDArray[np.bool_]:
    """Return which of the samples measured move on at the end of the horizon as they did where it began."""
    before = relaxation.residuals.force.cpu().double().numpy()[measured.index]
    return (measured.residual > relaxation.tol) & (measured.residual > 0.5 * before)


def _listed(measured: Measured, wanted: Wanted, moving: NDArray[np.bool_]) -> Variables:
    """Return the leading exponents of every sample, and of every token."""
    found = measured.exponents
    values, errors, history = (x.cpu().numpy() for x in (found.values, found.errors, found.history))
    margins = found.margin.cpu().numpy()
    resolved = found.resolved.cpu().numpy().astype(np.float64)
    variables: Variables = {}
    samples, width, k = len(values), values.shape[-1], wanted.count
    complete, reach, tokens = width == wanted.dim, np.full(samples, -np.inf), np.full((samples, width), -1.0)
    if wanted.tokens:
        over = ("sample", "token", "mode")
        variables["token_exponent"] = (over, values[..., :k])
        variables["token_exponent_error"] = (over, errors[..., :k])
        complete = width * values.shape[1] == wanted.dim
        if not complete:  # below the largest of the tokens' last exponents the list of the sample has gaps
            reach = values[..., -1].max(axis=1)
        order = np.argsort(-values.reshape(samples, -1), axis=1, kind="stable")
        tokens = (order // width).astype(np.float64)
        values, errors, margins, resolved = (
            np.take_along_axis(x.reshape(samples, -1), order, axis=1) for x in (values, errors, margins, resolved)
        )
        history = np.take_along_axis(history.reshape(len(history), samples, -1), order[None], axis=2)
    dimension = np.full((samples, 2), np.nan)
    for i in np.flatnonzero(~np.isnan(values).any(axis=1)):
        known = values[i] >= reach[i]
        dimension[i] = kaplan_yorke(
            values[i, known], margins[i, known] / SIGMAS, complete=complete, moving=bool(moving[i])
        )
    listed = ("sample", "mode")
    return variables | {
        "exponent": (listed, values[:, :k]),
        "exponent_error": (listed, errors[:, :k]),
        "exponent_margin": (listed, margins[:, :k]),
        "exponent_token": (listed, tokens[:, :k]),
        "resolved": (listed, resolved[:, :k]),
        "history": (("step", *listed), history[..., :k]),
        "kaplan_yorke": (("sample",), dimension[:, 0]),
        "kaplan_yorke_error": (("sample",), dimension[:, 1]),
    }


def _finite(found: FiniteTime | None, wanted: Wanted) -> Variables:
    if found is None:
        return {}
    over = ("sample", "mode")
    return {
        "finite_time": (over, found.values[:, : wanted.count].cpu().numpy()),
        "finite_time_gain": (over, found.gain[:, : wanted.count].cpu().numpy()),
    }


def _nothing(wanted: Wanted) -> Variables:
    over, none = ("sample", "mode"), np.empty((0, wanted.count))
    names = ("exponent", "exponent_error", "exponent_margin", "exponent_token", "resolved")
    flat: Variables = {name: (("sample",), none[:, 0]) for name in ("kaplan_yorke", "kaplan_yorke_error")}
    return flat | {name: (over, none) for name in names}


def _filled(
    values: Any, index: NDArray[np.int64], lost: NDArray[np.bool_], samples: int, dims: tuple[str, ...]
) -> Floats:
    """Return values of the samples measured among those of all samples, NaN for the others and the lost."""
    axis = dims.index("sample")
    moved = np.moveaxis(np.asarray(values, dtype=np.float64), axis, 0)
    full = np.full((samples, *moved.shape[1:]), np.nan)
    full[index[~lost]] = moved[~lost]
    return np.moveaxis(full, 0, axis)
