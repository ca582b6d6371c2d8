"""What a packaged recipe is for and what it trains, as ``dyneq list recipes`` shows it."""

from importlib import resources
from typing import Any

from dyneq.train.arms import Axes, cells, read_variants
from dyneq.train.recipe_reading import RECIPES


def describe_recipe(name: str) -> dict[str, Any]:
    """Return what a packaged recipe is for, and its gradient, penalties and size, as plain values.

    Returns:
        ``name``, ``description`` (the comment at its head), ``block`` (its kind), ``constraint`` (of its
        attention; None without one), ``guard`` (whether it is on), ``gradient`` (names of the estimators, in the order
        they are used; of all arms), ``penalties`` (names), ``size`` (``channels``, ``heads``,
        ``tokens``, ``batch``, ``steps``), ``runs`` (how many it describes for each seed), ``arms`` (names), ``grid``.

    Raises:
        UsageError: If there is no such recipe.
    """
    variants = read_variants(name)
    recipes = [cell.recipe for cell in cells([name], Axes(seeds=[0]))]
    first = recipes[0]
    return {
        "name": name,
        "description": comment(name),
        "block": first.block["kind"],
        "constraint": first.block.get("constraint"),
        "guard": first.guard.enabled,
        "gradient": list(
            dict.fromkeys(table["name"] for r in recipes for table in (r.gradient, *(s.gradient for s in r.switch)))
        ),
        "penalties": sorted({penalty for recipe in recipes for penalty in recipe.penalty}),
        "size": {
            **{key: first.block[key] for key in ("channels", "heads", "tokens")},
            "batch": first.run.batch,
            "steps": first.run.steps,
        },
        "runs": len(recipes),
        "arms": list(variants.arms),
        "grid": variants.grid,
    }


def comment(name: str) -> str:
    """Return the comment at the head of a packaged recipe in one line; empty without one."""
    lines = (resources.files(RECIPES) / f"{name}.toml").read_text("utf-8").splitlines()
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").strip())
    return " ".join(head)
