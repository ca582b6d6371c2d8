"""The penalties a run was trained with: what ``decompose`` sets against the task unless others are named."""

from collections.abc import Mapping, Sequence
from typing import Any

from dyneq.probes.penalties import registry
from dyneq.probes.penalties.base import Penalty

#: Options by which training applies a penalty in some updates only, or in part.
_SCHEDULE = ("every", "start", "ramp", "until")


def penalties_of(recipe: Mapping[str, Any]) -> dict[str, Penalty]:
    """Return the penalties of a recipe as a snapshot carries it; none for a run that was trained elsewhere.

    Args:
        recipe: The recipe.

    Raises:
        UsageError: If one is not installed, or has other options by now.
    """
    tables = recipe.get("penalty")
    tables = tables if isinstance(tables, Mapping) else {}
    return {str(n): registry.build(str(n), options) for n, options in tables.items() if isinstance(options, Mapping)}


def specs_of(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the specs of a recipe's penalties, such as ``jacreg:weight=0.3``.

    Args:
        recipe: The recipe.

    Raises:
        UsageError: If one is not installed, or has other options by now.
    """
    return tuple(_spec(name, penalty) for name, penalty in penalties_of(recipe).items())


def _spec(name: str, penalty: Penalty) -> str:
    usual = type(penalty)().to_plain()
    # the weight is always stated: it is what a reader looks for
    stated = {k: v for k, v in penalty.to_plain().items() if k == "weight" or usual.get(k) != v}
    return f"{name}:" + ",".join(f"{key}={value}" for key, value in stated.items())


def remarks(recipe: Mapping[str, Any], measured: Sequence[str], label: str) -> list[str]:
    """Return what a reader has to know of penalties that were chosen by the recipe.

    Args:
        recipe: The recipe of the first snapshot.
        measured: Specs of what is measured.
        label: What the run is called.

    Raises:
        UsageError: If a penalty is not installed, or has other options by now.
    """
    held = penalties_of(recipe)
    if not held:
        return [
            f"no penalty is known from the recipe of {label}, so decompose takes {' and '.join(measured)}: what "
            "they would do to the update, not what was done (others: --follow decompose:penalty=NAME:WEIGHT)"
        ]
    found = []
    for name, penalty in held.items():
        usual = type(penalty)().params
        changed = [k for k in _SCHEDULE if getattr(penalty.params, k) != getattr(usual, k)]
        if changed:
            told = ", ".join(f"{k}={getattr(penalty.params, k)}" for k in changed)
            found.append(
                f"decompose takes {name} at its full weight at every snapshot, but in training it was applied with "
                f"{told}"
            )
        if getattr(penalty.params, "controller", "frozen") != "frozen":
            found.append(
                f"decompose takes {name} with the weight {penalty.params.weight:g} its controller started from, and in "
                "training that moved; the training log has the weight of every update"
            )
    return found
