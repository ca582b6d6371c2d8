"""Many results of one probe as one dataset: along the checkpoints, and along whatever was asked for differently."""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import xarray as xr

from dyneq.catalog.combine_cells import Frame, Piece, assemble
from dyneq.errors import DyneqError, UsageError

#: Entries of a request beside its parameters.
_BINDING = ("eps", "dtype", "device", "batch")


@dataclass(frozen=True)
class Labelled:
    """A result and what it answers.

    Attributes:
        ds: The dataset; its variables may be lazy.
        checkpoint: ``sha256``, ``name``, ``run`` and ``step``; the last two may be None.
        request: ``params`` (a dict) and ``eps``, ``dtype``, ``device``, ``batch``.
        created_at: When it was made, ISO 8601; without a zone it is UTC.
    """

    ds: xr.Dataset
    checkpoint: dict[str, Any]
    request: dict[str, Any]
    created_at: str


def combine(results: Sequence[Labelled]) -> xr.Dataset:
    """Return results of one probe as one dataset.

    Its dimensions are ``checkpoint`` (the first 12 hexadecimal digits of the SHA-256, more where those are not
    distinct; with the coordinates ``run``, ``step`` and ``checkpoint_name``), then every entry of the requests that
    differs (``seed``, ``alpha``, ``eps``, ``dtype``, ...), then those of the results. Of equal requests the newest
    wins. Values that are lists, or of several types, are labels of text. A name that is taken by a variable gets
    ``_requested`` appended.

    A parameter that lists the coordinates of a dimension the results have (``depth`` of a spectrum) is no new
    dimension: results that differ only there are joined along it, the newest winning where several have an entry. Where
    a variable without that dimension differs between results to be joined, joining would lose all but one of its
    values, and the parameter becomes the new dimension ``<name>_requested``; to know it, such variables are loaded.

    What was not computed is NaN, or empty text; whole numbers and booleans become floating point numbers where there is
    such a gap. The boolean ``computed`` says over the new dimensions, and the joined ones, which results exist;
    ``computed_<dim>`` which entries along a dimension in which the results differ; ``computed_<variable>`` which
    results have a variable that others lack.

    Args:
        results: At least one.

    Raises:
        UsageError: If there is none, they are of different probes or versions, or their variables do not fit together.
        DyneqError: If what a result is labelled with is incomplete, or a whole number would be rounded.
    """
    if not results:
        raise UsageError("there are no results to combine; select at least one")
    _check_one_probe(results)
    ordered = [r for _, r in sorted(enumerate(results), key=lambda item: (_moment(item[1]), item[0]))]
    requests = [_entries(r.request) for r in ordered]
    frame = Frame.of([r.ds for r in ordered])
    checkpoints = _checkpoints(ordered)
    joined = _lossless(_joined(ordered, requests), frame, ordered, requests)
    differing = _differing(requests, joined)
    masks = {"computed", *(f"computed_{name}" for name in (*frame.ragged, *frame.partial))}
    own = {"checkpoint", "checkpoint_name", *masks}
    taken = {*own, *frame.dims, *frame.variables}
    if clash := sorted(own & {*frame.dims, *frame.variables}):
        raise UsageError(f"the results have a variable or dimension {clash[0]!r} already; combine single results")
    levels = {_free(key[1], taken): (key, _level([r.get(key) for r in requests])) for key in differing}
    rows = {digest: i for i, digest in enumerate(checkpoints)}
    cells: dict[tuple[int, ...], list[Piece]] = defaultdict(list)
    for piece, held, request in zip(frame.pieces, ordered, requests, strict=True):
        at = [level.places[_canonical(request.get(key))] for key, level in levels.values()]
        cells[rows[held.checkpoint["sha256"]], *at].append(piece)
    shape = {"checkpoint": len(checkpoints), **{name: len(level.places) for name, (_, level) in levels.items()}}
    grid = [cells.get(at, []) for at in itertools.product(*(range(n) for n in shape.values()))]
    ds = assemble(frame, grid, shape, [d for d in joined if d in frame.dims])
    new = {name: (name, level.coordinate, _described(name)) for name, (_, level) in levels.items()}
    return ds.assign_coords({**_labels(checkpoints, taken), **new}).assign_attrs(_attributes(ordered))


def _described(name: str) -> dict[str, str]:
    return {"long_name": f"{name.removesuffix('_requested')} as it was asked for"}


def _check_one_probe(results: Sequence[Labelled]) -> None:
    count: dict[str, int] = defaultdict(int)
    for held in results:
        attributes = held.ds.attrs
        count[f"{attributes.get('probe', 'unknown')} version {attributes.get('probe_version', 'unknown')}"] += 1
    if len(count) > 1:
        listed = ", ".join(f"{name} ({n} {'results' if n > 1 else 'result'})" for name, n in sorted(count.items()))
        raise UsageError(f"results of one version of one probe combine, but these are of {listed}; select one of them")


def _moment(held: Labelled) -> datetime:
    try:
        moment = datetime.fromisoformat(held.created_at)
    except (TypeError, ValueError):
        raise DyneqError(
            f"a result should say when it was made as ISO 8601, but says {held.created_at!r}; rebuild the index"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _entries(request: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """Return every entry of a request by where it is and its name."""
    params = request.get("params")
    if not isinstance(params, dict):
        raise DyneqError(f"a request should have a dict 'params', but has {params!r}; rebuild the index")
    entries = {("params", str(k)): v for k, v in params.items()}
    return entries | {("binding", k): request.get(k) for k in _BINDING}


def _canonical(value: Any) -> str:
    """Return a text that is equal for equal values: 1 and 1.0, a tuple and a list; not 0.0 and -0.0."""

    def whole(v: Any) -> Any:
        if isinstance(v, list | tuple):
            return [whole(x) for x in v]
        if isinstance(v, dict):
            return {str(k): whole(x) for k, x in v.items()}
        # minus zero stays as it is: the store keeps the results of both
        return int(v) if isinstance(v, float) and v.is_integer() and (v or math.copysign(1, v) > 0) else v

    return json.dumps(whole(value), sort_keys=True, ensure_ascii=False)


def _joined(results: Sequence[Labelled], requests: Sequence[dict[tuple[str, str], Any]]) -> set[str]:
    """Return the parameters that list the coordinates of a dimension, in every result."""

    def lists(name: str, ds: xr.Dataset, value: Any) -> bool:
        if name not in ds.dims or name not in ds.indexes:
            return False
        given = value if isinstance(value, list | tuple) else [value]
        return {_canonical(v) for v in given} == {_canonical(v) for v in ds.indexes[name].tolist()}

    names = {name for request in requests for place, name in request if place == "params"}
    pairs = list(zip(results, requests, strict=True))
    return {n for n in names if all(lists(n, held.ds, request.get(("params", n))) for held, request in pairs)}


def _lossless(
    names: set[str], frame: Frame, results: Sequence[Labelled], requests: Sequence[dict[tuple[str, str], Any]]
) -> set[str]:
    """Return the parameters along which joining loses no value of a variable that lacks their dimension."""
    keys = dict.fromkeys(key for request in requests for key in request)
    newest = dict[tuple[str, ...], int]()
    cells: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, (held, request) in enumerate(zip(results, requests, strict=True)):
        newest[held.checkpoint["sha256"], *(_canonical(request.get(key)) for key in keys)] = i
    for i in newest.values():
        apart = [_canonical(requests[i].get(key)) for key in keys if key not in {("params", n) for n in names}]
        cells[results[i].checkpoint["sha256"], *apart].append(i)
    lossy = set[str]()
    for members in cells.values():
        differing = {n for n in names if len({_canonical(requests[i].get(("params", n))) for i in members}) > 1}
        for name, dims in frame.variables.items():
            lacking = differing - set(dims) - lossy
            if lacking and not frame.alike(members, name):
                lossy |= lacking
    return names - lossy


def _differing(requests: Sequence[dict[tuple[str, str], Any]], joined: set[str]) -> list[tuple[str, str]]:
    keys = dict.fromkeys(key for request in requests for key in request)
    free = [key for key in keys if not (key[0] == "params" and key[1] in joined)]
    return [key for key in free if len({_canonical(request.get(key)) for request in requests}) > 1]


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_requested"
    taken.add(name)
    return name


@dataclass(frozen=True)
class _Level:
    """The values of a new dimension: where each of them is, and its coordinate."""

    places: dict[str, int]
    coordinate: np.ndarray[Any, Any]

    @staticmethod
    def of(values: list[Any], coordinate: np.ndarray[Any, Any]) -> "_Level":
        return _Level({_canonical(v): i for i, v in enumerate(values)}, coordinate)


def _level(given: Sequence[Any]) -> _Level:
    distinct = {_canonical(v): v for v in given}
    values = list(distinct.values())
    if all(type(v) is bool for v in values) or all(type(v) in (int, float) for v in values):
        values.sort()
        numbers = np.array(values)
        # whole numbers that a coordinate cannot hold exactly become labels, and zeros told apart by their sign
        exact = numbers.dtype.kind in "bif" and list(map(_canonical, numbers.tolist())) == list(map(_canonical, values))
        if exact and len(set(numbers.tolist())) == len(values):
            return _Level.of(values, numbers)
    texts = {c: v if isinstance(v, str) else c for c, v in distinct.items()}
    if len(set(texts.values())) < len(texts):  # the text "1" beside the number 1
        texts = {c: c for c in texts}
    order = sorted(texts, key=lambda c: texts[c])
    return _Level.of([distinct[c] for c in order], np.array([texts[c] for c in order], dtype=object))


def _checkpoints(results: Sequence[Labelled]) -> dict[str, dict[str, Any]]:
    """Return the checkpoints by their digests, ordered by run, step and name; the newest result's label wins."""
    found: dict[str, dict[str, Any]] = {}
    for held in results:
        digest = held.checkpoint.get("sha256")
        if not isinstance(digest, str) or not digest:
            raise DyneqError(
                f"a result should name its checkpoint's sha256, but that of {held.checkpoint.get('name')!r} is "
                f"{digest!r}; combine results of checkpoints"
            )
        found[digest] = held.checkpoint

    def place(digest: str) -> tuple[str, int, str, str]:
        label = found[digest]
        step = label.get("step")
        return str(label.get("run") or ""), -1 if step is None else int(step), str(label.get("name") or ""), digest

    return {digest: found[digest] for digest in sorted(found, key=place)}


def _labels(checkpoints: dict[str, dict[str, Any]], taken: set[str]) -> dict[str, Any]:
    digests, labels = list(checkpoints), list(checkpoints.values())
    length = 12
    while len({d[:length] for d in digests}) < len(digests):
        length += 1
    steps = [label.get("step") for label in labels]
    known = all(step is not None for step in steps)
    step = np.array([np.nan if s is None else s for s in steps], dtype=np.int64 if known else np.float64)

    def text(values: list[Any]) -> np.ndarray[Any, Any]:
        return np.array(["" if v is None else str(v) for v in values], dtype=object)

    def name(wanted: str) -> str:
        while wanted in taken:
            wanted = f"checkpoint_{wanted}"
        return wanted

    long = {"long_name": "first digits of the checkpoint's SHA-256"}
    return {
        "checkpoint": ("checkpoint", text([d[:length] for d in digests]), long),
        name("run"): ("checkpoint", text([label.get("run") for label in labels]), {"long_name": "training run"}),
        name("step"): ("checkpoint", step, {"long_name": "training step", "units": "steps"}),
        "checkpoint_name": ("checkpoint", text([label.get("name") for label in labels]), {"long_name": "checkpoint"}),
    }


def _attributes(results: Sequence[Labelled]) -> dict[str, Any]:
    """Return the attributes all results share, with the parameters all of them share."""

    def shared(held: Sequence[dict[Any, Any]], equal: Callable[[Any, Any], bool]) -> dict[str, Any]:
        first, *others = held
        return {k: v for k, v in first.items() if all(k in o and equal(o[k], v) for o in others)}

    attributes = shared([held.ds.attrs for held in results], np.array_equal)
    params = shared([held.request["params"] for held in results], lambda a, b: _canonical(a) == _canonical(b))
    return {**attributes, "params": json.dumps(params), "combined_results": len(results)}
