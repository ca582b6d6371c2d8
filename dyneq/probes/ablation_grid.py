"""The grid of an ablation: every combination of the values asked for, each a spec of the estimator."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dyneq.errors import UsageError, nearest
from dyneq.gradients import registry

#: Most points of a grid: each costs a whole estimate on every batch.
MOST = 200


@dataclass(frozen=True)
class Grid:
    """Options and their values.

    Attributes:
        base: The spec that the options are added to.
        options: Names of the options that vary.
        values: Values of each, as text.
        points: For each point the index of the value of every option.
        specs: For each point its spec.
    """

    base: str
    options: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    points: tuple[tuple[int, ...], ...]
    specs: tuple[str, ...]


def parse_grid(base: str, asked: Sequence[str]) -> Grid:
    """Return the grid of texts like ``r=0.02,0.05,0.1``.

    Args:
        base: Spec of the estimator, with the options that do not vary.
        asked: One text an option; options of one value are fixed.

    Raises:
        UsageError: If a text is none, names no option of the estimator, has a value it cannot take or one twice, or the
            grid has fewer than two points or more than :data:`MOST`.
    """
    name, fixed = registry.split(base)
    fixed = registry.canonical(name, fixed)
    known = type(registry.build(name, fixed).params).model_fields
    options: dict[str, tuple[str, ...]] = {}
    for text in asked:
        key, equals, rest = (part.strip() for part in text.partition("="))
        values = tuple(v.strip() for v in rest.split(","))
        if not equals or not key or not all(values):
            raise UsageError(f"a grid reads option=value,value, but {text!r} does not; write it like r=0.02,0.05,0.1")
        (key,) = registry.canonical(name, {key: ""})
        if key not in known:
            raise UsageError(f"the estimator {name!r} has no option {key!r} to vary{nearest(key, known)}")
        if key in options or key in fixed:
            raise UsageError(f"the option {key!r} is set twice; name it in one --grid only, and not in --estimator")
        options[key] = values
    count = math.prod(len(v) for v in options.values())
    if count < 2:
        raise UsageError("a grid of one point has nothing to compare; give --grid with several values, like r=0.02,0.1")
    if count > MOST:
        raise UsageError(f"the grid has {count} points, more than {MOST}; give fewer values")
    for key, values in options.items():
        read = [getattr(registry.build(name, {**fixed, key: v}).params, key) for v in values]
        if len({repr(x) for x in read}) < len(read):
            raise UsageError(f"the grid gives a value of {key!r} twice ({','.join(values)}); leave one of them out")
    points = list(itertools.product(*(range(len(v)) for v in options.values())))
    shown = {**fixed, **dict.fromkeys(options)}
    specs = []
    for point in points:
        chosen = {k: options[k][i] for k, i in zip(options, point, strict=True)}
        specs.append(f"{name}:" + ",".join(f"{k}={chosen.get(k, fixed.get(k))}" for k in shown))
    return Grid(base, tuple(options), tuple(options.values()), tuple(points), tuple(specs))


def point_label(grid: Grid, point: tuple[int, ...]) -> str:
    """Return a point as ``n=4 r=0.05``."""
    return " ".join(f"{k}={v[i]}" for k, v, i in zip(grid.options, grid.values, point, strict=True))
