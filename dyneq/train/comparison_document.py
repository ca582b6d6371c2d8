"""The results document of a comparison, as ``dyneq compare --out`` writes it and ``--show`` reads it.

One JSON object, every run on a line of its own so that a committed one is read as a diff::

    schema        2
    command       "compare"
    command_line  what made it, without the options that change no number
    made_with     versions of dyneq, torch and Python, threads of each run, workers side by side
    params        recipes, seeds, lr, set, steps
    status        complete; some failed; failed
    results       the table, see dyneq.train.comparison.rows
    failed        [{run, error}] of runs that could not be trained
    runs          see dyneq.train.comparison_result.summary

Numbers that are not finite are null.
"""

import json
import math
from pathlib import Path
from typing import Any

from dyneq.errors import DyneqError
from dyneq.files import write_atomically

SCHEMA = 2

#: What of a run the table is made from.
_NUMBERS = (
    "seed",
    "lr",
    "final_loss",
    "best_loss",
    "force_residual",
    "unsettled_worst",
    "multiplier",
    "seconds_per_update",
    "seconds",
)

_KINDS: dict[str, Any] = {"arm": str, "task": str, "broken": str | None, "acts": list}


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a document.

    Raises:
        DyneqError: If it cannot be written.
    """
    lines = []
    for key, value in document.items():
        if isinstance(value, list) and value:
            inner = ",\n".join(f"  {json.dumps(item, allow_nan=False)}" for item in value)
            lines.append(f" {json.dumps(key)}: [\n{inner}\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}")
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def read(path: Path) -> dict[str, Any]:
    """Return a document, numbers that were not finite as NaN where the table needs numbers.

    Raises:
        DyneqError: If the file cannot be read or is no results document of a comparison.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DyneqError(f"the results {path} cannot be read ({error.strerror or error}); check the path") from None
    except (ValueError, RecursionError):
        raise DyneqError(f"{path} is no JSON; name a file that `dyneq compare --out` wrote") from None
    if not isinstance(document, dict) or document.get("command") != "compare":
        raise DyneqError(f"{path} is no results document of a comparison; name a file that `dyneq compare --out` wrote")
    if document.get("schema") != SCHEMA:
        raise DyneqError(
            f"{path} has the schema {document.get('schema')!r}, but this version of dyneq reads {SCHEMA}; use the "
            "version that wrote it"
        )
    try:
        document["runs"] = [_numbers(run) for run in document["runs"]]
        return {**document, "command_line": str(document["command_line"]), "failed": list(document["failed"])}
    except KeyError as error:
        what = f"it lacks {error}"
    except (TypeError, ValueError) as error:
        what = f"it cannot hold {error}"
    raise DyneqError(f"{path} is damaged: {what}; make it again with `dyneq compare --out`")


def _numbers(run: dict[str, Any]) -> dict[str, Any]:
    found = {key: math.nan if run[key] is None else run[key] for key in _NUMBERS}
    wrong = [key for key, value in found.items() if not isinstance(value, int | float)]
    wrong += [key for key, kind in _KINDS.items() if not isinstance(run[key], kind)]
    if wrong:
        raise ValueError(f"the value {run[wrong[0]]!r} of {wrong[0]!r}")
    return {**run, **found}
