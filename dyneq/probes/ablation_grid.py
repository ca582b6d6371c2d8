"""The grid of an ablation: every combination of the values asked for, each a spec of the estimator.

The estimator itself can be one of the options, ``estimator=aep,track``: every other one has to be an option of all.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dyneq.errors import UsageError, nearest
from dyneq.gradients import registry

#: Most points of a grid: each costs a whole estimate on every batch.
MOST = 200
#: What the estimator is called as an option.
ESTIMATOR = "estimator"


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
    registry.build(name, fixed)
    read = [_read(text) for text in asked]
    estimators = next((values for key, values in read if key == ESTIMATOR), (name,))
    options: dict[str, tuple[str, ...]] = {}
    for key, values in read:
        if key != ESTIMATOR:
            key = _known(estimators, key)
        if key in options or key in fixed:
            raise UsageError(f"the option {key!r} is set twice; name it in one --grid only, and not in --estimator")
        options[key] = values
    count = math.prod(len(v) for v in options.values())
    if count < 2:
        raise UsageError("a grid of one point has nothing to compare; give --grid with several values, like r=0.02,0.1")
    if count > MOST:
        raise UsageError(f"the grid has {count} points, more than {MOST}; give fewer values")
    for key, values in options.items():
        taken = [_value(estimators, fixed, key, v) for v in values]
        if len({repr(x) for x in taken}) < len(taken):
            raise UsageError(f"the grid gives a value of {key!r} twice ({','.join(values)}); leave one of them out")
    points = list(itertools.product(*(range(len(v)) for v in options.values())))
    shown = {**fixed, **dict.fromkeys(k for k in options if k != ESTIMATOR)}
    specs = []
    for point in points:
        chosen = {k: options[k][i] for k, i in zip(options, point, strict=True)}
        given = ",".join(f"{k}={chosen.get(k, fixed.get(k))}" for k in shown)
        specs.append(f"{chosen.get(ESTIMATOR, name)}:{given}".removesuffix(":"))
    return Grid(base, tuple(options), tuple(options.values()), tuple(points), tuple(specs))


def _read(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the option and the values of a text.

    Raises:
        UsageError: If it is none.
    """
    key, equals, rest = (part.strip() for part in text.partition("="))
    values = tuple(v.strip() for v in rest.split(","))
    if not equals or not key or not all(values):
        raise UsageError(f"a grid reads option=value,value, but {text!r} does not; write it like r=0.02,0.05,0.1")
    return key, values


def _known(estimators: Sequence[str], key: str) -> str:
    """Return the name of an option that all estimators have.

    Raises:
        UsageError: If one has no such option, or is none.
    """
    for name in estimators:
        (key,) = registry.canonical(name, {key: ""})
        known = type(registry.build(name, {}).params).model_fields
        if key not in known:
            raise UsageError(f"the estimator {name!r} has no option {key!r} to vary{nearest(key, known)}")
    return key


def _value(estimators: Sequence[str], fixed: dict[str, str], key: str, value: str) -> object:
    """Return what an option takes a value for.

    Raises:
        UsageError: If an estimator cannot take it, or one of the options that are fixed.
    """
    if key == ESTIMATOR:
        return registry.build(value, fixed).name
    return [getattr(registry.build(name, {**fixed, key: value}).params, key) for name in estimators]


def point_label(grid: Grid, point: tuple[int, ...]) -> str:
    """Return a point as ``n=4 r=0.05``."""
    return " ".join(f"{k}={v[i]}" for k, v, i in zip(grid.options, grid.values, point, strict=True))
