"""Reading recipes: TOML with what it inherits, and assignments over it, all as plain values."""

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from dyneq.errors import DyneqError, UsageError, nearest
from dyneq.gradients import registry
from dyneq.systems.checkpoint import block_of_kind

RECIPES = "dyneq.train.recipes"
DEFAULT_GRADIENT = "adjoint"


def packaged() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(f.name.removesuffix(".toml") for f in resources.files(RECIPES).iterdir() if f.name.endswith(".toml"))


def inherited(source: str | Path, below: tuple[str, ...], beside: Path | None = None) -> tuple[dict[str, Any], str]:
    """Return the values of a recipe with everything it inherits, and what to call it."""
    text, origin, folder = _read(source, beside)
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the recipe {origin} should be TOML, but is not: {error}") from None
    parent = values.pop("inherits", None)
    if parent is None:
        return values, origin
    if not isinstance(parent, str):
        raise UsageError(f"the recipe {origin} inherits {parent!r}, but 'inherits' takes a recipe's name or file")
    if origin in below:
        raise UsageError(f"the recipe {origin} inherits itself, by way of {' and '.join(below)}; break the circle")
    base, _ = inherited(parent, (*below, origin), folder)
    return _merged(base, values), origin


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's own values over those it inherits, table by table."""
    out = dict(base)
    for key, value in own.items():
        old = base.get(key)
        if not isinstance(old, dict) or not isinstance(value, dict):
            out[key] = value
        elif key == "gradient":  # another estimator has other options
            out[key] = value if "name" in value else {**old, **value}
        elif key == "block" and value.get("kind", old.get("kind")) != old.get("kind"):
            known = block_of_kind(value["kind"]).Config.model_fields  # another kind of block likewise
            out[key] = {k: v for k, v in old.items() if k in known} | value
        else:
            out[key] = _merged(old, value)
    run = out.get("run")
    if "gradient" in own and isinstance(run, dict) and "relaxation" not in own.get("run", {}):
        table = gradient_table(out["gradient"])
        if registry.depth_option(table.get("name", DEFAULT_GRADIENT)) in table:  # the gradient states the depth now
            out["run"] = {k: v for k, v in run.items() if k != "relaxation"}
    return out


def _read(source: str | Path, beside: Path | None) -> tuple[str, str, Path | None]:
    """Return a recipe's text, what to call it, and the folder that names in it are relative to."""
    path = Path(source)
    if path.suffix != ".toml":
        if str(source) not in packaged():
            raise UsageError(
                f"there is no packaged recipe {str(source)!r}{nearest(str(source), packaged())}, "
                "or name a file that ends in .toml"
            )
        return (resources.files(RECIPES) / f"{source}.toml").read_text("utf-8"), repr(str(source)), None
    path = path if beside is None else beside / path
    try:
        return path.read_bytes().decode("utf-8"), str(path), path.parent
    except OSError as error:
        raise DyneqError(f"the recipe {path} cannot be read ({error.strerror or error}); check the path") from None
    except UnicodeDecodeError:
        raise DyneqError(f"the recipe {path} should be UTF-8 text, but is not; name a TOML file") from None


def assign(values: dict[str, Any], assignment: str) -> None:
    """Apply one assignment ``section.key=value`` to the plain values of a recipe, in place.

    Raises:
        UsageError: If it is none.
    """
    key, equals, text = assignment.partition("=")
    parts = key.strip().split(".")
    lengths = (2, 3) if parts[0] == "penalty" else (1, 2) if parts[0] == "gradient" else (2,)
    if not equals or not all(parts) or len(parts) not in lengths:
        raise UsageError(f"--set takes section.key=value, such as optimizer.lr=1e-3, but got {assignment!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    if parts[0] == "penalty":
        _assign_penalty(values, parts[1:], value)
        return
    values["gradient"] = gradient_table(value if parts == ["gradient"] else values.get("gradient", {}))
    section, name = (*parts, "name")[:2]
    if parts != ["gradient"]:
        table = values.setdefault(section, {})
        if not isinstance(table, dict):
            raise UsageError(f"--set {assignment} needs a table [{section}] in the recipe, but it holds {table!r}")
        if section == "gradient":
            (name,) = registry.canonical(table.get("name", DEFAULT_GRADIENT), {name: value})
        values[section] = {**table, name: value}
    # the later of two statements of the depth wins: forget the other one
    depth = registry.depth_option(values["gradient"].get("name", DEFAULT_GRADIENT))
    run = values.get("run")
    if (section, name) == ("run", "relaxation"):
        values["gradient"].pop(depth, None)
    elif section == "gradient" and depth in values["gradient"] and isinstance(run, dict):
        values["run"] = {key: v for key, v in run.items() if key != "relaxation"}


def _assign_penalty(values: dict[str, Any], parts: list[str], value: Any) -> None:
    tables = values.setdefault("penalty", {})
    if not isinstance(tables, dict):
        raise UsageError(
            f"--set penalty.{'.'.join(parts)} needs tables [penalty.NAME] in the recipe, but it holds {tables!r}"
        )
    if len(parts) == 1:
        tables[parts[0]] = value
        return
    name, option = parts
    old = tables.get(name)
    tables[name] = {**(old if isinstance(old, dict) else {}), option: value}


def gradient_table(value: object) -> dict[str, Any]:
    """Return the table of a gradient that is given as a spec or a table, its options under their present names.

    Raises:
        UsageError: If it is neither, or there is no such estimator.
    """
    if isinstance(value, str):
        name, options = registry.split(value)
        value = {"name": name, **options}
    if not isinstance(value, dict):
        raise UsageError(f"the gradient of a recipe should be a spec or a table with a name, but is {value!r}")
    return registry.canonical(value.get("name", DEFAULT_GRADIENT), value)
