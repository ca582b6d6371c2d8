"""Finding estimators and reading their specs: ``bptt400``, ``bptt:steps=400,segment=20``, ``adjoint:solver=gmres``."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import AliasChoices, ValidationError

from dyneq import plugins
from dyneq.errors import UsageError, nearest
from dyneq.gradients.base import Estimator

GROUP = "dyneq.estimators"


def names() -> list[str]:
    """Return the names of the estimators that are installed."""
    return plugins.names(GROUP)


def parse(spec: str) -> Estimator:
    """Return the estimator a spec describes.

    A spec is a name, a name with a number for its main option (``bptt400`` is ``bptt:steps=400``), or a name with
    options (``name:key=value,key=value``).

    Args:
        spec: The text, as on the command line or in a recipe.

    Raises:
        UsageError: If the text is no spec, or the estimator, an option or a value is unknown.
    """
    return build(*split(spec))


def split(spec: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options that a spec gives, shorthand resolved, values still text.

    Raises:
        UsageError: If the text is no spec or there is no such estimator.
    """
    head, colon, tail = spec.strip().partition(":")
    options: dict[str, Any] = {}
    if head not in names():
        short = re.fullmatch(r"([a-z_]+)(\d+)", head)
        if short and short[1] in names():
            head = short[1]
            options[_load(head).main] = short[2]
    for part in tail.split(",") if colon else []:
        key, equals, value = (s.strip() for s in part.partition("="))
        if not equals or not key or not value:
            raise UsageError(
                f"the gradient {spec!r} should read name, nameN or name:key=value,key=value, but {part!r} in it is no "
                "key=value pair; write it like adjoint:steps=40,t1=60"
            )
        if key in options:
            raise UsageError(f"the gradient {spec!r} sets its option {key!r} twice; keep one of the two")
        options[key] = value
    _load(head)
    return head, options


def build(name: str, options: Mapping[str, Any]) -> Estimator:
    """Return the estimator of a name with its options, as :meth:`Estimator.to_plain` gives them.

    Raises:
        UsageError: If the estimator, an option or a value is unknown.
    """
    estimator, options = _load(name), canonical(name, options)
    unknown = sorted(options.keys() - estimator.Params.model_fields.keys())
    if unknown:
        raise UsageError(
            f"the gradient {name!r} has no option {unknown[0]!r}{nearest(unknown[0], estimator.Params.model_fields)}"
        )
    try:
        return estimator(estimator.Params(**options))
    except ValidationError as error:
        raise UsageError(f"the gradient {name!r} cannot take these options: {describe(error)}") from None


def canonical(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options under their present names: some are also accepted, and stored, under an older one.

    Raises:
        UsageError: If there is no such estimator, or an option is given under both names.
    """
    present: dict[str, str] = {}
    for field, info in _load(name).Params.model_fields.items():
        if isinstance(info.validation_alias, AliasChoices):
            present |= {str(choice): field for choice in info.validation_alias.choices}
    renamed: dict[str, Any] = {}
    for key, value in options.items():
        key = present.get(key, key)
        if key in renamed:
            raise UsageError(f"the gradient {name!r} sets its option {key!r} under two names; keep one of the two")
        renamed[key] = value
    return renamed


def depth_option(name: str) -> str:
    """Return the option by which an estimator states the depth of its free relaxation.

    Raises:
        UsageError: If there is no such estimator.
    """
    return _load(name).depth


def describe(error: ValidationError) -> str:
    """Return what a validation error found, as ``option: message, but found value``, in one line."""
    return "; ".join(
        f"{'.'.join(map(str, e['loc']))}: {e['msg'][:1].lower()}{e['msg'][1:]}, but found {e['input']!r}"
        if e["loc"]
        else e["msg"].removeprefix("Value error, ")
        for e in error.errors()
    )


def _load(name: str) -> type[Estimator]:
    found = plugins.load(GROUP, name, "gradient estimator")
    if not (isinstance(found, type) and issubclass(found, Estimator)):
        raise UsageError(f"the entry point {name!r} of {GROUP} should be an Estimator subclass, but is {found!r}")
    return found
