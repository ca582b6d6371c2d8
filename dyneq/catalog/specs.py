"""Probes with parameters as text: ``spectrum``, ``spectrum:at=root,depth=[150,800]``."""

import json
import typing
from typing import Any

from dyneq.errors import UsageError
from dyneq.probes.base import Params, Probe
from dyneq.probes.registry import get_probe, make_params


def parse_probe(spec: str, seed: int | None = None) -> tuple[Probe, Params]:
    """Return the probe and parameters a spec describes.

    A value is read as JSON (``800``, ``[150,800]``, ``true``), anything else is text. A single value stands for a list
    of one where the parameter is a list.

    Args:
        spec: A probe's name, or ``name:parameter=value,...``.
        seed: Seed for probes that have one and whose spec gives none.

    Raises:
        UsageError: If the text is no spec, or the probe, a parameter or a value is unknown.
    """
    name, colon, rest = spec.partition(":")
    probe = get_probe(name)
    values: dict[str, Any] = {}
    for part in _parts(rest) if colon else []:
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise UsageError(
                f"parameters of a probe are given as name:parameter=value,..., but {spec!r} has {part!r}; write, for "
                "example, spectrum:at=root,depth=[150,800]"
            )
        if key in values:
            raise UsageError(f"{spec!r} sets {key!r} twice; keep one of the two")
        values[key] = _value(value)
    fields = probe.Params.model_fields
    if seed is not None and "seed" in fields:
        values.setdefault("seed", seed)
    for key, value in values.items():
        several = key in fields and typing.get_origin(fields[key].annotation) in (tuple, list)
        if several and not isinstance(value, list):
            values[key] = [value]
    return probe, make_params(probe, values)


def _parts(text: str) -> list[str]:
    """Split at the commas that are not inside brackets or quotes."""
    parts, depth, quoted, begin = [], 0, False, 0
    for i, letter in enumerate(text):
        if letter == '"':
            quoted = not quoted
        elif not quoted:
            depth += (letter in "[{") - (letter in "]}")
            if letter == "," and depth == 0:
                parts.append(text[begin:i])
                begin = i + 1
    return [*parts, text[begin:]]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
