"""``dyneq list``: what is installed, where it comes from, and what it takes."""

import json
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

import click

from dyneq import plugins
from dyneq.cli.common import plain
from dyneq.errors import UsageError

_GROUPS = {
    "probes": plugins.PROBES,
    "estimators": plugins.ESTIMATORS,
    "systems": plugins.SYSTEMS,
    "penalties": "dyneq.penalties",
    "tokenizers": plugins.TOKENIZERS,
}


@click.command(name="list")
@click.argument("kind", type=click.Choice([*_GROUPS, "recipes", "checkpoints"]))
@click.option("--json", "as_json", is_flag=True, envvar="DYNEQ_JSON", help="Print one JSON document.")
def listing(kind: str, as_json: bool) -> None:
    """Show what is installed: probes, estimators, systems and penalties, with parameters; and what else has a name.

    What cannot be used is listed with the reason.
    """
    if kind in _GROUPS:
        results = [_record(p, d) for p, d in plugins.load_each(_GROUPS[kind], _DESCRIBE[kind])]
    elif kind == "recipes":
        from dyneq.train.recipe_listing import describe_recipe

        results = [describe_recipe(name) for name in _packaged(kind)]
    else:
        results = [{"name": name} for name in _packaged(kind)]
    if as_json:
        document = {"schema": 1, "command": "list", "params": {"kind": kind}, "results": results, "status": "complete"}
        click.echo(json.dumps(plain(document), allow_nan=False))
    elif kind in _GROUPS:
        click.echo("\n\n".join(map(_text, results)) if results else f"no {kind} are installed")
    elif kind == "recipes":
        click.echo("\n\n".join(map(_recipe_text, results)))
    else:
        for result in results:
            click.echo(result["name"])


def _packaged(kind: str) -> list[str]:
    """Return the names of the packaged checkpoints or recipes."""
    from importlib.resources import files

    folder, suffix = ("reference", ".pt") if kind == "checkpoints" else ("train/recipes", ".toml")
    where = files("dyneq").joinpath(folder)
    if not where.is_dir():
        return []
    return sorted(entry.name.removesuffix(suffix) for entry in where.iterdir() if entry.name.endswith(suffix))


def _probe(name: str, declared: object) -> dict[str, Any]:
    from dyneq.probes.registry import build_probe

    probe = build_probe(name, declared)
    needs = [need for need, wanted in (("loss", probe.needs_loss), ("causal", probe.needs_causal)) if wanted]
    return {
        "version": probe.version,
        "needs": needs,
        "parameters": parameters(probe.Params),
        "description": first_line(probe),
    }


def _estimator(name: str, declared: object) -> dict[str, Any]:
    from dyneq.gradients.base import Estimator, EstimatorParams

    estimator = _subclass(name, declared, Estimator, "Params", EstimatorParams)
    if getattr(estimator, "name", None) != name:
        raise UsageError(f"it should have the name {name!r}, but calls itself {getattr(estimator, 'name', None)!r}")
    return {
        "needs": ["loss"],
        "main": estimator.main,
        "parameters": parameters(estimator.Params),
        "description": first_line(estimator),
    }


def _system(name: str, declared: object) -> dict[str, Any]:
    from pydantic import BaseModel

    from dyneq.systems.block import EquilibriumBlock

    block = _subclass(name, declared, EquilibriumBlock, "Config", BaseModel)
    kind = block.Config.model_fields.get("kind")
    if kind is None or kind.default != name:  # a checkpoint finds its block again by this
        raise UsageError(f"its Config should have the field kind: Literal[{name!r}] = {name!r}, but has not")
    given = [p for p in parameters(block.Config) if p["name"] != "kind"]
    return {"causal": block.causal, "parameters": given, "description": first_line(block)}


def _subclass(name: str, declared: object, base: type, attribute: str, model: type) -> Any:
    """Return what was declared, verified to be a complete subclass with a class of its settings."""
    if not (isinstance(declared, type) and issubclass(declared, base)):
        raise UsageError(f"it should be a subclass of {base.__name__}, but is {declared!r}")
    # not inspect.isabstract: a torch module has no abstract metaclass that would see to it
    missing = sorted(n for n in dir(declared) if getattr(getattr(declared, n, None), "__isabstractmethod__", False))
    if missing:
        raise UsageError(f"it should define {', '.join(missing)}, but does not")
    settings = getattr(declared, attribute, None)
    if not (isinstance(settings, type) and issubclass(settings, model)):
        raise UsageError(f"it should have {attribute} that extend {model.__name__}, but has {settings!r}")
    return declared


def _penalty(name: str, declared: object) -> dict[str, Any]:
    from dyneq.probes.penalties.base import Penalty, PenaltyParams

    penalty = _subclass(name, declared, Penalty, "Params", PenaltyParams)
    if getattr(penalty, "name", None) != name:
        raise UsageError(f"it should have the name {name!r}, but calls itself {getattr(penalty, 'name', None)!r}")
    return {
        "value_is": f"{penalty.what}, {penalty.units}",
        "parameters": parameters(penalty.Params),
        "description": first_line(penalty),
    }


def _tokenizer(name: str, declared: object) -> dict[str, Any]:
    from dyneq.systems.vocabulary import Vocabulary

    if not (isinstance(declared, type) and issubclass(declared, Vocabulary)):
        raise UsageError(f"it should be a class that extends Vocabulary, but is {declared!r}")
    if getattr(declared, "kind", None) != name:
        raise UsageError(f"it should have the kind {name!r}, but calls itself {getattr(declared, 'kind', None)!r}")
    return {"parameters": [], "description": first_line(declared)}


_DESCRIBE: dict[str, Callable[[str, Any], dict[str, Any]]] = {
    "probes": _probe,
    "estimators": _estimator,
    "systems": _system,
    "penalties": _penalty,
    "tokenizers": _tokenizer,
}


def parameters(model: Any) -> list[dict[str, Any]]:
    """Return name, type, default and description of every field of a pydantic model, as plain values.

    A field without a default is ``required``; its default is None then.
    """
    from pydantic_core import to_jsonable_python

    return [
        {
            "name": name,
            "type": type_text(field.annotation),
            "required": field.is_required(),
            "default": to_jsonable_python(
                None if field.is_required() else field.get_default(call_default_factory=True, validated_data={}),
                fallback=str,
            ),
            "description": field.description or "",
        }
        for name, field in model.model_fields.items()
    ]


def type_text(annotation: Any) -> str:
    """Return a type as a reader of ``dyneq list`` wants it: ``int...``, ``a|b``, ``float or none``."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(args[0])
    if origin is Literal:
        return "|".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text(a) for a in args)
    if origin is tuple and args[-1] is not Ellipsis:
        return f"({', '.join(map(type_text, args))})"
    if origin in (tuple, list, set, frozenset):
        return f"{type_text(args[0])}..."
    if annotation is type(None):
        return "none"
    return annotation.__name__ if isinstance(annotation, type) and origin is None else str(annotation)


def first_line(documented: Any) -> str:
    """Return the first paragraph of a docstring of its own in one line; empty without one."""
    documented = documented if isinstance(documented, type) else type(documented)
    paragraph = (documented.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(paragraph.split())


def _record(plugin: plugins.Plugin, description: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": {"name": plugin.distribution or None, "version": plugin.version or None},
        "value": plugin.value,
        "error": plugin.error,
        **(description or {}),
    }


def _text(result: dict[str, Any]) -> str:
    package = result["distribution"]
    version = f" (version {result['version']})" if "version" in result else ""
    origin = f"from {package['name']} {package['version']}, " if package["name"] else "from "
    lines = [f"{result['name']}{version}  {origin}{result['value']}"]
    if result["error"] is not None:
        return "\n".join([*lines, f"  CANNOT BE USED: {result['error']}"])
    if result["description"]:
        lines.append(f"  {result['description']}")
    if "needs" in result:
        lines.append(f"  needs: {', '.join(result['needs']) or 'nothing but a force'}")
    elif "value_is" in result:
        lines.append(f"  its value: {result['value_is']}")
    elif "causal" in result:
        lines.append(f"  causal over tokens: {'yes' if result['causal'] else 'no'}")
    rows = [(p["name"], p["type"], _default(p), p["description"]) for p in result["parameters"]]
    widths = [max(len(row[i]) for row in rows) for i in range(3)] if rows else []
    lines += [
        "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def _recipe_text(result: dict[str, Any]) -> str:
    size, several = result["size"], result["runs"]
    held = ", ".join(result["penalties"]) or "none"
    under = "" if result["constraint"] is None else f" under {result['constraint']}"
    lines = [
        result["name"],
        f"  {result['description']}",
        f"  {result['block']}{under} C={size['channels']} H={size['heads']} T={size['tokens']} B={size['batch']}, "
        f"{size['steps']:,} updates; gradient: {', then '.join(result['gradient'])}; penalties: {held}; "
        f"guard {'on' if result['guard'] else 'off'}",
    ]
    if several > 1:
        arms = "; ".join([*result["arms"], *(f"{key} = {values}" for key, values in result["grid"].items())])
        lines.append(f"  {several} runs a seed ({arms}), for dyneq compare")
    return "\n".join(lines)


def _default(parameter: dict[str, Any]) -> str:
    if parameter["required"]:
        return "required"
    value = parameter["default"]
    if value is None:
        return "none"  # the word an option takes for it
    return value if isinstance(value, str) else json.dumps(value)
