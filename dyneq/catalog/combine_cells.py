"""Laying datasets of different extent over each other on one grid, lazily, with every gap marked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dyneq.catalog.combine_types import cast, common_dtype, nothing_of
from dyneq.catalog.diff_values import same_bits
from dyneq.catalog.plain import text_dtype
from dyneq.errors import UsageError

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Piece:
    """One dataset: its variables, and where along each dimension of the whole its entries are (-1: it has none)."""

    variables: dict[str, xr.Variable]
    places: dict[str, NDArray[np.intp]]


@dataclass(frozen=True)
class Frame:
    """What the datasets have together.

    Attributes:
        pieces: The datasets.
        dims: Every dimension's length in the whole.
        ragged: Dimensions along which the datasets differ.
        coordinates: The index of every dimension that has one.
        variables: Dimensions of every variable that is no index.
        partial: Variables that some datasets lack.
        inner: Variables that are coordinates.
        attributes: Attributes of every variable that all datasets with it agree on.
    """

    pieces: list[Piece]
    dims: dict[str, int]
    ragged: list[str]
    coordinates: dict[str, xr.Variable]
    variables: dict[str, tuple[str, ...]]
    partial: list[str]
    inner: set[str]
    attributes: dict[str, dict[str, Any]]

    @staticmethod
    def of(datasets: Sequence[xr.Dataset]) -> "Frame":
        """Return the frame of datasets.

        Raises:
            UsageError: If a variable has other dimensions, units or kinds of values in another dataset, or coordinates
                are missing or repeated, or cannot be held exactly together.
        """
        names = list(dict.fromkeys(str(d) for ds in datasets for d in ds.dims))
        dims, coordinates, places, ragged = {}, {}, [dict[str, NDArray[np.intp]]() for _ in datasets], []
        for dim in names:
            index, along = _union(dim, datasets)
            dims[dim] = len(along[0])
            for held, place in zip(places, along, strict=True):
                held[dim] = place
            if any((place < 0).any() for place in along):
                ragged.append(dim)
            if index is not None:
                coordinates[dim] = index
        variables: dict[str, tuple[str, ...]] = {}
        attributes: dict[str, dict[str, Any]] = {}
        pieces = []
        for ds, held in zip(datasets, places, strict=True):
            own = {}
            for given, variable in ds.variables.items():
                name = str(given)
                if given in ds.indexes:
                    continue
                found = tuple(map(str, variable.dims))
                order = variables.setdefault(name, found)
                if set(found) != set(order):
                    raise UsageError(
                        f"the variable {name!r} has the dimensions ({', '.join(order)}) in some results and "
                        f"({', '.join(found)}) in others; select results of one kind"
                    )
                attributes[name] = _agreed(name, attributes.get(name), variable.attrs)
                own[name] = variable.to_base_variable().transpose(*order)
            pieces.append(Piece(own, held))
        inner = {str(n) for ds in datasets for n in ds.coords if n not in ds.indexes}
        partial = [name for name in variables if any(name not in piece.variables for piece in pieces)]
        return Frame(pieces, dims, ragged, coordinates, variables, partial, inner, attributes)

    def alike(self, members: Sequence[int], name: str) -> bool:
        """Return whether a variable is the same, entry by entry, in the datasets at these places, or in none."""
        held = [self.pieces[i] for i in members if name in self.pieces[i].variables]
        if len(held) < len(members):
            return not held
        first, *others = held
        one = first.variables[name].values
        for piece in others:
            if not all(np.array_equal(first.places[d], piece.places[d]) for d in self.variables[name]):
                return False
            other = piece.variables[name].values
            kinds = {"text" if text_dtype(v.dtype) else "time" if v.dtype.kind in "mM" else "" for v in (one, other)}
            if len(kinds) > 1 or one.shape != other.shape:
                return False
            if not (one.astype(object) == other.astype(object) if "text" in kinds else same_bits(one, other)).all():
                return False
        return True


def _agreed(name: str, known: dict[str, Any] | None, new: dict[Any, Any]) -> dict[str, Any]:
    if known is None:
        return dict(new)
    if known.get("units", "") != new.get("units", ""):
        raise UsageError(
            f"the variable {name!r} has the units {known.get('units', '')!r} in some results and "
            f"{new.get('units', '')!r} in others; select results of one kind"
        )
    return {k: v for k, v in known.items() if k in new and np.array_equal(new[k], v)}


def _union(dim: str, datasets: Sequence[xr.Dataset]) -> tuple[xr.Variable | None, list[NDArray[np.intp]]]:
    """Return the coordinate of a dimension over all datasets, and where each of them has its entries."""
    having = [ds for ds in datasets if dim in ds.dims]
    indexed = [ds for ds in having if dim in ds.indexes]
    if not indexed:  # entries are told apart by their place alone
        length = max(ds.sizes[dim] for ds in having)
        sizes = [ds.sizes.get(dim, 0) for ds in datasets]
        return None, [np.where(np.arange(length) < n, np.arange(length), -1) for n in sizes]
    if len(indexed) < len(having):
        raise UsageError(f"the dimension {dim!r} has coordinates in only some results; select results of one kind")
    first = indexed[0]
    whole = first.indexes[dim]
    others = [ds.indexes[dim] for ds in indexed if not _equal(ds.indexes[dim], whole)]
    if others and not all(index.is_unique for index in (whole, *others)):
        raise UsageError(f"the coordinates along {dim!r} are repeated and differ between results; select results alike")
    for index in others:
        whole = whole.union(index)  # sorted
    for index in (first.indexes[dim], *others) if others else ():
        at = whole.get_indexer(index) if whole.is_unique else None
        if at is None or (at < 0).any() or not _equal(whole.take(at), index):
            raise UsageError(
                f"the coordinates along {dim!r} are of types that do not hold each other's values exactly "
                f"({', '.join(sorted({str(ds.indexes[dim].dtype) for ds in indexed}))}); select results alike"
            )
    attributes = first[dim].attrs
    values = whole.to_numpy() if others else first[dim].values
    everything = np.arange(len(whole))
    places = []
    for ds in datasets:
        if dim not in ds.dims:
            places.append(np.full(len(whole), -1))
        else:
            places.append(ds.indexes[dim].get_indexer(whole) if others else everything)
    return xr.Variable(dim, values, attributes), places


def _equal(a: Any, b: Any) -> bool:
    """Return whether two indexes have exactly the same entries: 2^53 + 1 is not the floating point number 2^53."""
    # Python compares whole and floating point numbers exactly, NumPy rounds first
    if not a.equals(b):
        return False
    return a.dtype == b.dtype or all(x == y or x != x for x, y in zip(a.tolist(), b.tolist(), strict=True))


def assemble(frame: Frame, grid: Sequence[Sequence[Piece]], shape: dict[str, int], joined: Sequence[str]) -> xr.Dataset:
    """Return one dataset over the grid's dimensions and those of the datasets.

    Args:
        frame: What the datasets have together.
        grid: For every cell, in C order, its datasets from the oldest to the newest; none where nothing was computed.
        shape: Names and lengths of the grid's dimensions.
        joined: Dimensions along which the datasets of one cell are joined; along any other the newest wins.
    """
    across = [d for d in joined if d in frame.ragged]
    variables, coords = dict[str, xr.Variable](), dict(frame.coordinates)
    for name, dims in frame.variables.items():
        ragged = [d for d in dims if d in frame.ragged]
        present = _presence(frame, grid, shape, across, ragged, name)
        built = _built(frame, name, grid, shape, across, bool(present.values.all()))
        built.attrs = frame.attributes[name]
        if name in frame.inner:
            coords[name] = _without_grid(built, present, tuple(shape))
        else:
            variables[name] = built
    for dim in (None, *(d for d in frame.ragged if d not in across)):
        which = "which results were computed" if dim is None else f"which entries along {dim} were computed"
        exists = _presence(frame, grid, shape, across, across if dim is None else [*across, dim])
        exists.attrs = {"long_name": which, "units": ""}
        variables["computed" if dim is None else f"computed_{dim}"] = exists
    for name in frame.partial:
        exists = _presence(frame, grid, shape, across, [d for d in across if d in frame.variables[name]], name)
        exists.attrs = {"long_name": f"which results have {name}", "units": ""}
        variables[f"computed_{name}"] = exists
    return xr.Dataset(variables, coords)


def _product(piece: Piece, dims: Sequence[str], of: Sequence[str]) -> Mask:
    """Return over ``dims`` where a dataset has entries along every dimension in ``of``."""
    mask = np.ones((1,) * len(dims), dtype=bool)
    for axis, dim in enumerate(dims):
        if dim in of:
            mask = mask & np.expand_dims(piece.places[dim] >= 0, [i for i in range(len(dims)) if i != axis])
    return mask


def _presence(
    frame: Frame,
    grid: Sequence[Sequence[Piece]],
    shape: dict[str, int],
    across: Sequence[str],
    dims: Sequence[str],
    name: str | None = None,
) -> xr.Variable:
    """Return over the grid and ``dims`` which entries exist, of one variable or of the results themselves."""
    lengths = tuple(frame.dims[d] for d in dims)
    present = np.zeros((len(grid), *lengths), dtype=bool)
    for i, cell in enumerate(grid):
        for piece in cell:
            own = _product(piece, dims, dims) & (name is None or name in piece.variables)
            np.copyto(present[i, ...], own, where=_product(piece, dims, across))
    return xr.Variable((*shape, *dims), present.reshape(*shape.values(), *lengths))


def _built(
    frame: Frame,
    name: str,
    grid: Sequence[Sequence[Piece]],
    shape: dict[str, int],
    across: Sequence[str],
    complete: bool,
) -> xr.Variable:
    """Return a variable over the grid's dimensions and its own, lazily where the datasets are lazy."""
    dims = frame.variables[name]
    full = tuple(frame.dims[d] for d in dims)
    held = [piece.variables[name] for cell in grid for piece in cell if name in piece.variables]
    dtype = common_dtype(name, held, complete)
    types = sorted({str(v.dtype) for v in held})
    # whole numbers alone share a floating point type only where signed and unsigned ones of 64 bits meet
    gaps = np.result_type(*(v.dtype for v in held)).kind in "biu" if dtype.kind in "fc" else False
    why = "some are missing, which NaN marks" if gaps else f"the results have it as {' and as '.join(types)}"
    lazy = any(v.chunks is not None for v in held)

    def alike(variable: xr.Variable) -> xr.Variable:
        # dask does not guess chunks of text, so that loaded variables beside lazy ones become one chunk here
        return variable.chunk({}) if lazy and variable.chunks is None else variable

    def gap(lengths: tuple[int, ...]) -> xr.Variable:
        return alike(xr.Variable(dims, np.full(lengths, nothing_of(dtype), dtype=dtype)))

    def padded(piece: Piece) -> xr.Variable:
        if name not in piece.variables:
            return nothing
        variable = alike(cast(piece.variables[name], dtype, f"{name!r}: {why}"))
        for axis, dim in enumerate(dims):
            place, length = piece.places[dim], variable.shape[axis]
            if len(place) == length and (place == np.arange(length)).all():
                continue
            one = tuple(1 if i == axis else n for i, n in enumerate(variable.shape))
            longer = xr.Variable.concat([variable, gap(one)], dim)  # the entry after the last is the gap
            variable = longer.isel({dim: np.where(place < 0, length, place)})
        return variable

    def of_cell(cell: Sequence[Piece]) -> xr.Variable:
        found: xr.Variable | None = None
        for piece in cell:
            mask, newer = _product(piece, dims, across), padded(piece)
            found = newer if found is None or mask.all() else xr.Variable(dims, np.where(mask, newer.data, found.data))
        return nothing if found is None else found

    nothing = gap(full)
    return _stacked([of_cell(cell) for cell in grid], shape)


def _stacked(cells: Sequence[xr.Variable], shape: dict[str, int]) -> xr.Variable:
    if not shape:
        return cells[0]
    (dim, length), *rest = shape.items()
    step = math.prod(n for _, n in rest)
    return xr.Variable.concat([_stacked(cells[i * step : (i + 1) * step], dict(rest)) for i in range(length)], dim)


def _without_grid(built: xr.Variable, present: xr.Variable, over: tuple[str, ...]) -> xr.Variable:
    """Return a coordinate without the grid's dimensions if it is the same in every cell that has it."""
    values = built.values.reshape(-1, *built.shape[len(over) :])
    here = present.set_dims(dict(zip(built.dims, built.shape, strict=True))).transpose(*built.dims).values
    here = here.reshape(values.shape)
    first = np.take_along_axis(values, here.argmax(axis=0)[None], axis=0)
    same = (values == first) | ((values != values) & (first != first))
    if not (same | ~here).all():
        return built
    return xr.Variable(built.dims[len(over) :], first[0], built.attrs)
