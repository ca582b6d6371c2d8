"""Foreign state dicts: from somebody else's ``.pt`` file to a checkpoint of ours, by a mapping."""

import difflib
import re
from fnmatch import fnmatchcase
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from dyneq.catalog.mapping import Mapping
from dyneq.catalog.mapping_schema import MappingFile, Origin
from dyneq.errors import DyneqError
from dyneq.systems.checkpoint import Checkpoint, build_block, load_weights
from dyneq.systems.checkpoint_io import read_plain

#: Nesting, number and length of the names in a state dict: a file may nest a dict in itself without end.
DEPTH_LIMIT, COUNT_LIMIT, NAME_LIMIT = 32, 20_000, 1_000
#: The SQLite index and JSON readers have 64 bits.
_INTEGERS = range(-(2**63), 2**63)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def import_foreign(path: str | Path, mapping: Mapping, *, trust: bool = False) -> Checkpoint:
    """Return the checkpoint that a foreign file holds, read by a mapping.

    Every weight of ours comes from one of theirs or is filled, and everything in their state dict is used as a whole or
    ignored by name. The weights keep their precision; where several meet, they get the smallest that holds all exactly.

    Args:
        path: A file written by ``torch.save``.
        mapping: Where the weights are in it.
        trust: Unpickle whatever the file holds. Only for files of your own: it can run any code.

    Returns:
        The checkpoint, named after the file, with ``imported`` in its recipe: names and digests of mapping and file.

    Raises:
        DyneqError: If the file is missing, damaged or unsafe, or is not what the mapping says.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        raise DyneqError(
            f"the mapping {mapping.path} reads what torch.save wrote, but {path} is not; convert it to .pt"
        )
    held, digest = read_plain(path, trust=trust)
    source = {"source": path.name, "source_sha256": digest}
    origin = {"mapping": mapping.path.name, "mapping_sha256": mapping.sha256, **source}
    try:
        step, metrics = _step(held, mapping.said, path.name), _metrics(held, mapping.said)
        weights = _weights(held, mapping)
        block = build_block(mapping.config)  # now that tensors of its size were found in the file
        load_weights(block, weights)
        for indices in (mapping.evaluation.tokens, mapping.evaluation.targets):
            block.embed(indices)
    except DyneqError as error:
        raise DyneqError(f"{path} cannot be imported with the mapping {mapping.path}: {error}") from None
    return Checkpoint(
        block, mapping.vocabulary, mapping.evaluation, step, metrics, {"imported": origin}, name=path.stem
    )


def _weights(held: object, mapping: Mapping) -> dict[str, Tensor]:
    """Return the tensors of our state dict, all of one dtype, after every check but finiteness of the result."""
    said = mapping.said
    where = said.file.weights
    theirs = _leaves(_at(held, where, "file.weights") if where else held, where)
    taken = {name: _taken(name, origin, theirs) for name, origin in said.weights.items() if origin.source is not None}
    _require_all_used(theirs, said)
    for name, tensor in taken.items():
        if tensor.shape != mapping.shapes[name]:
            raise DyneqError(
                f"the weight {name!r} should have shape {list(mapping.shapes[name])} by [block], but "
                f"{_described(said.weights[name], theirs)} has {list(tensor.shape)}; correct the sizes or this entry"
            )
        if broken := int((~torch.isfinite(tensor)).sum()):
            raise DyneqError(
                f"{said.weights[name].source!r} holds {broken} NaN or infinite values out of {tensor.numel()}: the "
                "training had already broken when it was saved; take an earlier snapshot"
            )
    kinds = {tensor.dtype for tensor in taken.values()}
    dtype = reduce(torch.promote_types, kinds) if kinds else torch.float32
    weights = {}
    for name, shape in mapping.shapes.items():
        origin = said.weights[name]
        if origin.fill is not None:
            weights[name] = torch.full(shape, origin.fill, dtype=torch.float64).to(dtype)
        else:
            weights[name] = taken[name].to(dtype) if origin.scale == 1 else _scaled(taken[name], origin.scale, dtype)
        if not torch.isfinite(weights[name]).all():
            raise DyneqError(f"the scale or fill of {name!r} does not fit into {dtype}; choose a smaller one")
    return weights


def _scaled(tensor: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    return (tensor.double() * scale).to(dtype)


def _leaves(table: object, where: str) -> dict[str, object]:
    """Return what a nested dict holds by dotted name; a dict with other keys than strings counts as one thing."""
    what = f"at {where!r} in the file" if where else "in the file"
    if not _is_table(table):
        raise DyneqError(
            f"a dict from names to tensors was expected {what}, but there is a {type(table).__name__}; "
            "correct file.weights, or save the state_dict() of the model"
        )
    leaves: dict[str, object] = {}
    waiting: list[tuple[str, object, int]] = [("", table, 0)]
    visited = 0
    while waiting:
        prefix, value, depth = waiting.pop()
        visited += 1
        if visited + len(waiting) > COUNT_LIMIT or depth > DEPTH_LIMIT or len(prefix) > NAME_LIMIT:
            raise DyneqError(
                f"a state dict was expected {what}, but it is nested deeper than {DEPTH_LIMIT}, has more than "
                f"{COUNT_LIMIT} entries or names of more than {NAME_LIMIT} characters; correct file.weights"
            )
        if isinstance(value, dict) and _is_table(value):
            waiting += [(f"{prefix}.{key}" if depth else key, below, depth + 1) for key, below in value.items()]
        elif prefix in leaves:
            raise DyneqError(f"{prefix!r} names two things in the file; rename one, so that it is clear which is meant")
        else:
            leaves[prefix] = value
    return leaves


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _at(held: object, where: str, setting: str) -> object:
    """Return what a dotted path leads to; keys may hold dots themselves, as long as one thing only is meant."""
    parts = where.split(".")
    reached: list[dict[int, object]] = [{id(held): held}, *({} for _ in parts)]  # after so many parts of the path
    for start in range(len(parts)):
        for table in reached[start].values():
            for end in range(start + 1, len(parts) + 1):
                if isinstance(table, dict) and (key := ".".join(parts[start:end])) in table:
                    reached[end][id(table[key])] = table[key]
    if len(reached[-1]) == 1:
        return next(iter(reached[-1].values()))
    if reached[-1]:
        raise DyneqError(f"{setting} is {where!r}, but several things in the file are called so; rename one")
    last = max(n for n, there in enumerate(reached) if there)
    keys = [key for table in reached[last].values() if isinstance(table, dict) for key in table]
    near = _close(".".join(parts[last:]), keys)
    raise DyneqError(f"{setting} is {where!r}, but in the file nothing is there{near}; correct the path")


def _close(name: str, known: list[object] | list[str]) -> str:
    # not errors.nearest: these names are somebody else's, and may be thousands, long, or hold line breaks
    names = [str(other) for other in known[:COUNT_LIMIT] if isinstance(other, str) and len(other) <= 300]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" (the nearest is {close[0]!r})" if close else f" (there are {_some(names)})"


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "no names at all"


def _taken(name: str, origin: Origin, theirs: dict[str, object]) -> Tensor:
    """Return the part of their tensor that one of our weights is, not yet scaled."""
    source = origin.source
    assert source is not None
    if source not in theirs:
        raise DyneqError(
            f"{name!r} should come from {source!r}, but the file has none{_close(source, list(theirs))}; correct it"
        )
    tensor = theirs[source]
    if not isinstance(tensor, Tensor):
        raise DyneqError(f"{source!r} should be a tensor, but is of type {type(tensor).__name__}; correct the entry")
    if tensor.dtype not in _DTYPES or tensor.layout is not torch.strided or tensor.is_meta:
        raise DyneqError(
            f"{source!r} should be a dense floating tensor, but is {tensor.dtype} ({tensor.layout}, {tensor.device}); "
            "convert it before saving"
        )
    tensor = tensor.detach()
    if not 0 < tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes():
        raise DyneqError(
            f"{source!r} of shape {list(tensor.shape)} should store each of its values, but stores fewer or none; "
            "save it with .contiguous()"
        )
    for axis, (word, span) in enumerate((("rows", origin.rows), ("columns", origin.columns))):
        if span is not None:
            if tensor.ndim <= axis or span[1] > tensor.shape[axis]:
                raise DyneqError(
                    f"{word} = {span} of {name!r} do not fit {source!r}, which has shape {list(tensor.shape)}; "
                    "correct them"
                )
            tensor = tensor.narrow(axis, span[0], span[1] - span[0])
    if origin.transpose and tensor.ndim != 2:
        raise DyneqError(
            f"{name!r} transposes {source!r}, which should have two axes but has shape {list(tensor.shape)}; "
            "leave transpose out"
        )
    return tensor.mT if origin.transpose else tensor


def _described(origin: Origin, theirs: dict[str, object]) -> str:
    source = theirs[str(origin.source)]
    assert isinstance(source, Tensor)
    cuts = [f"{word} {span}" for word, span in (("rows", origin.rows), ("columns", origin.columns)) if span]
    done = cuts + ["transpose"] * origin.transpose
    return f"{origin.source!r} {list(source.shape)}" + (f" after {' and '.join(done)}" if done else "")


def _require_all_used(theirs: dict[str, object], said: MappingFile) -> None:
    """Raise if something of theirs, or part of a tensor, would be dropped without a word: that is another model."""
    root = f"{said.file.weights}." if said.file.weights else ""
    plain = [where for where in (said.file.step, *said.metrics.values()) if isinstance(where, str)]
    elsewhere = {where.removeprefix(root) for where in plain if where.startswith(root)}
    origins: dict[str, list[Origin]] = {}
    for origin in said.weights.values():
        origins.setdefault(str(origin.source), []).append(origin)
    left = [
        f"{name!r} {list(value.shape)}" if isinstance(value, Tensor) else f"{name!r} ({type(value).__name__})"
        for name, value in sorted(theirs.items())
        if name not in elsewhere
        and not (name in origins and _covers(origins[name], value))
        and not any(fnmatchcase(name, pattern) for pattern in said.ignore.names)
    ]
    if left:
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        raise DyneqError(
            f"the mapping neither uses as a whole nor ignores {', '.join(left[:8])}{more}; "
            "add them to [weights], or to the names of [ignore] if our block does not need them"
        )


def _covers(origins: list[Origin], value: object) -> bool:
    if any(origin.rows is None and origin.columns is None for origin in origins):
        return True
    assert isinstance(value, Tensor)
    seen = torch.zeros(value.shape[:2], dtype=torch.bool)
    for origin in origins:
        region = seen if origin.rows is None else seen[slice(*origin.rows)]
        if origin.columns is not None:
            region = region[:, slice(*origin.columns)]
        region.fill_(True)
    return bool(seen.all())


def _step(held: object, said: MappingFile, file_name: str) -> int:
    if said.file.step_name is not None:
        return _step_in(file_name, said.file.step_name)
    if isinstance(said.file.step, int):
        return said.file.step
    step = _plain(_at(held, str(said.file.step), "file.step"))
    if not isinstance(step, int) or isinstance(step, bool) or step not in _INTEGERS or step < 0:
        raise DyneqError(
            f"the training step at {said.file.step!r} should be an integer from 0 on, but is "
            f"{_value(step)}; correct file.step"
        )
    return step


def _step_in(file_name: str, pattern: str) -> int:
    """Return the one run of digits in a file name that stands where ``{step}`` does in the pattern."""
    before, after = pattern.split("{step}")
    found = [
        run.group()
        for run in re.finditer("[0-9]+", file_name)
        if fnmatchcase(file_name[: run.start()], before) and fnmatchcase(file_name[run.end() :], after)
    ]
    if len(found) != 1 or len(found[0]) > 18:
        what = f"several numbers in it fit ({', '.join(found[:4])})" if len(found) > 1 else "no step is where {step} is"
        raise DyneqError(f"the file's name should fit step_name = {pattern!r}, but {what}; make the pattern fit")
    return int(found[0])


def _metrics(held: object, said: MappingFile) -> dict[str, int | float]:
    metrics: dict[str, int | float] = {}
    for name, where in said.metrics.items():
        value = _plain(_at(held, where, f"metrics.{name}"))
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or (isinstance(value, int) and value not in _INTEGERS)
        ):
            raise DyneqError(
                f"the metric {name!r} at {where!r} should be a number of 64 bits, but is {_value(value)}; correct it"
            )
        metrics[name] = value
    return metrics


def _plain(value: object) -> object:
    """Return a number as Python's own, also out of a tensor of one value; anything else as it is."""
    if isinstance(value, Tensor) and value.numel() == 1 and value.layout is torch.strided and not value.is_meta:
        value = value.detach().reshape(()).item()
    return float(value) if isinstance(value, float) else value


def _value(value: object) -> str:
    short = isinstance(value, float) or (isinstance(value, int) and value in _INTEGERS)
    return repr(value) if short else f"of type {type(value).__name__}"
