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
#: Tables by which a recipe describes several runs, which ``dyneq compare`` trains.
VARIED = ("arms", "grid")


def packaged() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(f.name.removesuffix(".toml") for f in resources.files(RECIPES).iterdir() if f.name.endswith(".toml"))


def inherited(source: str | Path, below: tuple[str, ...], beside: Path | None = None) -> tuple[dict[str, Any], str]:
    """Return the values of a recipe with everything it inherits, and what to call it.

    A recipe inherits from one other or from several, of which the later ones count more; what it states itself counts
    most.

    Args:
        source: A TOML file or the name of a packaged recipe.
        below: What the recipes that led here are called.
        beside: Folder that a file's name is relative to.

    Raises:
        DyneqError: If a file cannot be read.
        UsageError: If there is no such recipe, it is no TOML, or recipes inherit in a circle.
    """
    text, origin, folder = _read(source, beside)
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the recipe {origin} should be TOML, but is not: {error}") from None
    parents = values.pop("inherits", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise UsageError(
            f"the recipe {origin} inherits {parents!r}, but 'inherits' takes a recipe's name or file, or a list of them"
        )
    if origin in below:
        circle = (*below[below.index(origin) :], origin)
        raise UsageError(f"the recipe {origin} inherits itself ({' inherits '.join(circle)}); break the circle")
    base: dict[str, Any] = {}
    for parent in parents:
        base = _merged(base, inherited(parent, (*below, origin), folder)[0])
    return _merged(base, values), origin


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's own values over those it inherits, table by table."""
    out = dict(base)
    for key, value in own.items():
        old = base.get(key)
        if key == "gradient" and old is not None:
            out[key] = _merged_gradient(old, value)
        elif key == "penalty" and isinstance(old, dict) and isinstance(value, dict):
            out[key] = {**old, **{name: _merged_penalty(old.get(name), options) for name, options in value.items()}}
        elif not isinstance(old, dict) or not isinstance(value, dict):
            out[key] = value
        elif key == "block" and value.get("kind", old.get("kind")) != old.get("kind"):
            known = block_of_kind(value["kind"]).Config.model_fields  # another kind of block has other settings
            out[key] = {k: v for k, v in old.items() if k in known} | value
        else:
            out[key] = {**old, **value}
    return _with_one_depth(out, own)


def _merged_gradient(old: Any, own: Any) -> Any:
    """Return the options of a gradient over inherited ones; another estimator has other options."""
    if not isinstance(own, dict) or "name" in own:
        return own
    return {**gradient_table(old), **registry.canonical(gradient_table(old).get("name", DEFAULT_GRADIENT), own)}


def _merged_penalty(old: Any, own: Any) -> Any:
    """Return the options of a penalty over inherited ones; a number is its weight, ``true`` changes nothing."""
    if not isinstance(old, dict) or own is False:
        return own
    if isinstance(own, dict):
        return {**old, **own}
    return old if own is True else {**old, "weight": own}


def _with_one_depth(merged: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Forget an inherited depth of the free relaxation if the recipe states another: by its gradient, or by its run."""
    run, stated = merged.get("run"), own.get("run")
    if "gradient" not in merged or not isinstance(run, dict) or "relaxation" not in run:
        return merged
    table = gradient_table(merged["gradient"])
    depth = registry.depth_option(table.get("name", DEFAULT_GRADIENT))
    if depth not in table:
        return merged
    if isinstance(stated, dict) and "relaxation" in stated:
        own_table = gradient_table(own["gradient"]) if "gradient" in own else {}
        if depth not in own_table:
            return {**merged, "gradient": {key: value for key, value in table.items() if key != depth}}
    elif "gradient" in own:
        return {**merged, "run": {key: value for key, value in run.items() if key != "relaxation"}}
    return merged


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
    if not equals or not _is_key(key):
        raise UsageError(f"--set takes section.key=value, such as optimizer.lr=1e-3, but got {assignment!r}")
    put(values, key, _value(text))


def _is_key(key: str) -> bool:
    parts = key.strip().split(".")
    lengths = (2, 3) if parts[0] == "penalty" else (1, 2) if parts[0] == "gradient" else (2,)
    return all(parts) and len(parts) in lengths


def _value(text: str) -> Any:
    """Return a value in TOML's notation; a bare word, or what would be more than a value, is a string."""
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text.strip()
    return found["value"] if len(found) == 1 else text.strip()


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set one setting of the plain values of a recipe, in place.

    Args:
        values: The plain values.
        key: Such as ``optimizer.lr``, ``penalty.floss.weight``, ``penalty.floss`` or ``gradient``.
        value: Its value.

    Raises:
        UsageError: If the key can be no setting, or the recipe holds something else in its place.
    """
    parts = key.strip().split(".")
    if not _is_key(key):
        raise UsageError(f"{key!r} is no setting of a recipe; write section.key, such as optimizer.lr")
    if parts[0] in VARIED:
        raise UsageError(f"{key!r} is no setting of one run; state [{parts[0]}] in the file of a recipe")
    if parts[0] == "penalty":
        _put_penalty(values, parts[1:], value)
        return
    values["gradient"] = gradient_table(value if parts == ["gradient"] else values.get("gradient", {}))
    section, name = (*parts, "name")[:2]
    if parts != ["gradient"]:
        table = values.setdefault(section, {})
        if not isinstance(table, dict):
            raise UsageError(f"setting {key} needs a table [{section}] in the recipe, but it holds {table!r}")
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


def _put_penalty(values: dict[str, Any], parts: list[str], value: Any) -> None:
    tables = values.get("penalty", {})
    if not isinstance(tables, dict):
        raise UsageError(
            f"setting penalty.{'.'.join(parts)} needs tables [penalty.NAME] in the recipe, but it holds {tables!r}"
        )
    name, own = parts[0], value if len(parts) == 1 else {parts[1]: value}
    old = tables.get(name)
    if len(parts) == 2 and isinstance(old, int | float) and not isinstance(old, bool):
        old = {"weight": old}
    values["penalty"] = {**tables, name: _merged_penalty(old, own)}


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
