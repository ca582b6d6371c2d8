"""Finding penalties and reading their specs: ``floss``, ``jacreg:0.1``, ``floss:weight=0.1,steps=8``."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from dyneq import plugins
from dyneq.errors import UsageError, nearest
from dyneq.gradients.registry import describe
from dyneq.probes.penalties.base import Penalty

GROUP = "dyneq.penalties"


def names() -> list[str]:
    """Return the names of the penalties that are installed."""
    return plugins.names(GROUP)


def split(spec: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of a spec, values still text; a bare value is the weight.

    Raises:
        UsageError: If the text is no spec or there is no such penalty.
    """
    name, colon, tail = spec.strip().partition(":")
    name = name.strip()
    load(name)
    options: dict[str, Any] = {}
    for i, part in enumerate(tail.split(",") if colon else []):
        key, equals, value = (s.strip() for s in part.partition("="))
        if not equals and i == 0 and key:
            key, value = "weight", key
        if not key or not value:
            raise UsageError(
                f"the penalty {spec!r} should read name, name:weight or name:key=value,key=value, but {part!r} in it "
                "is neither; write it like jacreg:0.1 or floss:weight=0.1,steps=8"
            )
        if key in options:
            raise UsageError(f"the penalty {spec!r} sets its option {key!r} twice; keep one of the two")
        options[key] = value
    return name, options


def parse(spec: str) -> Penalty:
    """Return the penalty a spec describes.

    Raises:
        UsageError: If the text is no spec, or the penalty, an option or a value is unknown.
    """
    return build(*split(spec))


def build(name: str, options: Mapping[str, Any]) -> Penalty:
    """Return the penalty of a name with its options.

    Raises:
        UsageError: If the penalty, an option or a value is unknown.
    """
    penalty = load(name)
    known = penalty.Params.model_fields
    unknown = sorted(options.keys() - known.keys())
    if unknown:
        raise UsageError(f"the penalty {name!r} has no option {unknown[0]!r}{nearest(unknown[0], known)}")
    try:
        return penalty(penalty.Params(**options))
    except ValidationError as error:
        raise UsageError(f"the penalty {name!r} cannot take these options: {describe(error)}") from None


def load(name: str) -> type[Penalty]:
    """Return the class of a penalty.

    Raises:
        UsageError: If there is none of that name, or it is none.
    """
    found = plugins.load(GROUP, name, "penalty")
    if not (isinstance(found, type) and issubclass(found, Penalty)):
        raise UsageError(f"the entry point {name!r} of {GROUP} should be a Penalty subclass, but is {found!r}")
    return found
