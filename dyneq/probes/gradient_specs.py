"""Which estimators a probe compares: specs read, the depth of the free phase filled in, nothing named twice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dyneq.errors import UsageError
from dyneq.gradients import registry
from dyneq.gradients.base import Estimator

#: Depth of the free phase where neither a parameter nor a reference states one.
DEPTH = 400


@dataclass(frozen=True)
class Entry:
    """An estimator of a comparison.

    Attributes:
        label: What it is called in tables: the spec as it was given.
        estimator: The estimator, its depth filled in where the spec does not state it.
        role: ``reference``, ``horizon`` (a reference at another depth) or ``estimator``.
        depth: Steps of its relaxation.
    """

    label: str
    estimator: Estimator
    role: str
    depth: int


def entries(
    references: Sequence[str], estimators: Sequence[str], t1: int | None, horizon: int | None = 0
) -> list[Entry]:
    """Return references, horizon and estimators, in this order.

    Args:
        references: Specs; the first is the one that is judged against.
        estimators: Specs; one that is a reference as well is left out, since its cosine with itself says nothing.
        t1: Depth for what does not state its own; the first reference's where None.
        horizon: Another depth of the first reference; 3/8 of its own if None, none if 0.

    Raises:
        UsageError: If a spec is none, there is no reference, one is given twice, or the horizon is not shorter than
            the reference.
    """
    if not references:
        raise UsageError("estimates are compared with a reference, but none was given; give one like --ref bptt400")
    stated = [d for d in map(_stated, references) if d is not None]
    depth = t1 if t1 is not None else (stated[0] if stated else DEPTH)
    out = [_entry(spec, depth, "reference") for spec in references]
    first = out[0]
    short = max(1, round(3 * first.depth / 8)) if horizon is None else horizon
    if short >= first.depth and horizon is not None:
        raise UsageError(
            f"the horizon is a shorter depth than that of the reference {first.label}, but {horizon} steps were asked "
            f"for; choose 1 to {first.depth - 1}, or 0 for none"
        )
    if 0 < short < first.depth:
        plain = {k: v for k, v in first.estimator.to_plain().items() if k != "name"}
        options = {**registry.canonical(first.estimator.name, plain), first.estimator.depth: short}
        other = Entry(_label(first, short), registry.build(first.estimator.name, options), "horizon", short)
        if all(other.estimator.to_plain() != known.estimator.to_plain() for known in out):
            out.append(other)
    _refuse_repetition(out)
    known = [e.estimator.to_plain() for e in out]
    asked = [_entry(spec, depth, "estimator") for spec in estimators]
    _refuse_repetition(asked)
    return [*out, *(e for e in asked if e.estimator.to_plain() not in known)]


def _split(spec: str) -> tuple[str, dict[str, Any]]:
    """Return name and options of a spec, under the names the options have now."""
    name, options = registry.split(spec)
    return name, registry.canonical(name, options)


def _stated(spec: str) -> int | None:
    """Return the depth a spec states itself."""
    name, options = _split(spec)
    option = registry.depth_option(name)
    return int(getattr(registry.build(name, options).params, option)) if option in options else None


def _entry(spec: str, depth: int, role: str) -> Entry:
    name, options = _split(spec)
    option = registry.depth_option(name)
    estimator = registry.build(name, {option: depth, **options})
    return Entry(spec.strip(), estimator, role, int(getattr(estimator.params, option)))


def _label(first: Entry, steps: int) -> str:
    """Return what the reference is called at another depth."""
    estimator = first.estimator
    if estimator.main == estimator.depth:
        return f"{estimator.name}{steps}"
    name = first.label.partition(":")[0]
    return f"{name}:{estimator.depth}={steps}"


def _refuse_repetition(given: Sequence[Entry]) -> None:
    seen: dict[str, str] = {}
    for e in given:
        key = repr(sorted(e.estimator.to_plain().items(), key=lambda item: item[0]))
        if key in seen:
            raise UsageError(f"{seen[key]!r} and {e.label!r} are one and the same estimator; leave one of them out")
        if e.label in seen.values():
            raise UsageError(f"the estimator {e.label!r} is given twice; leave one of them out")
        seen[key] = e.label
