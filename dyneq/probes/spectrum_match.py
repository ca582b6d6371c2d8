"""Pairing the leading modes of two spectra, whose place in the list is only a rank."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dyneq.errors import UsageError
from dyneq.probes.base import align, least_cost_pairs, require

_ADDRESS = ("mode_sample", "mode_token")


def match_spectra(a: xr.Dataset, b: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Return two spectra on the same coordinates, their modes paired.

    Modes are paired in each depth with modes of the same sample and token, so that the sum of
    abs(mu_a - mu_b)^2 is least. Those without a partner are left out and counted in the attribute ``unmatched``. The
    coordinates ``mode_first`` and ``mode_second`` are the ranks a pair had, -1 where a depth has fewer pairs than
    another one.

    Args:
        a: A spectrum result.
        b: Another one.

    Raises:
        UsageError: If they have no depth or no sample in common, or blocks of different numbers of tokens.
    """
    for ds in (a, b):
        require(ds, ("mu", *_ADDRESS) if "mode" in ds.dims else (), "spectrum probe")
        if "depth" not in ds.dims:
            raise UsageError("a spectrum has the dimension 'depth', but one of the two has not; use whole results")
    a, b = align(a, b, exclude=("mode",))
    if "mode" not in a.dims or "mode" not in b.dims:
        return a, b
    pairs = [_paired(a.isel(depth=i), b.isel(depth=i)) for i in range(a.sizes["depth"])]
    length = max((len(rows) for rows, _ in pairs), default=0)
    ranks = np.full((2, len(pairs), length), -1)
    for i, (rows, columns) in enumerate(pairs):
        ranks[0, i, : len(rows)], ranks[1, i, : len(rows)] = rows, columns
    return _picked(a, ranks[0], ranks), _picked(b, ranks[1], ranks)


def _paired(a: xr.Dataset, b: xr.Dataset) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the ranks of the paired modes of one depth, in the order of the first."""
    address = [np.stack([ds[name].values for name in _ADDRESS], axis=1) for ds in (a, b)]
    mu = [ds["mu"].values for ds in (a, b)]
    here = [np.flatnonzero(np.isfinite(values)) for values in mu]
    rows: list[int] = []
    columns: list[int] = []
    for place in np.unique(address[0][here[0]], axis=0):
        first, second = (h[(at[h] == place).all(axis=1)] for h, at in zip(here, address, strict=True))
        i, j = least_cost_pairs(np.abs(mu[0][first][:, None] - mu[1][second][None]))
        rows += first[i].tolist()
        columns += second[j].tolist()
    order = np.argsort(np.array(rows, dtype=np.intp))
    return np.array(rows, dtype=np.intp)[order], np.array(columns, dtype=np.intp)[order]


def _picked(ds: xr.Dataset, ranks: NDArray[np.intp], both: NDArray[np.intp]) -> xr.Dataset:
    present = xr.DataArray(ranks >= 0, dims=("depth", "mode"))
    at = {
        "depth": xr.DataArray(np.arange(len(ranks)), dims="depth"),
        "mode": xr.DataArray(np.maximum(ranks, 0), dims=("depth", "mode")),
    }
    total = int(np.isfinite(ds["mu"].values).sum())
    moded = [name for name, v in ds.data_vars.items() if "mode" in v.dims]
    picked = ds[moded].drop_vars(["mode", "depth"], errors="ignore").isel(at).where(present)
    rest = ds.drop_vars([*moded, "mode"], errors="ignore")
    coords = {
        "mode": np.arange(ranks.shape[1]),
        "mode_first": (("depth", "mode"), both[0]),
        "mode_second": (("depth", "mode"), both[1]),
        **{
            name: (("depth", "mode"), picked[name].fillna(-1).values.astype(np.int64), ds[name].attrs)
            for name in _ADDRESS
        },
    }
    variables = {name: (v.dims, v.values, ds[name].attrs) for name, v in picked.data_vars.items()}
    left = {**ds.attrs.get("unmatched", {}), "mode": total - int(present.sum())}
    return rest.assign(variables).assign_coords(coords).assign_attrs(unmatched=left)
