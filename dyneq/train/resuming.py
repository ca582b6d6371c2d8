"""What must not have changed between a run's start and its resumption."""

from collections.abc import Mapping
from typing import Any

from dyneq.errors import DyneqError
from dyneq.systems.checkpoint import Checkpoint
from dyneq.train.data import Corpus
from dyneq.train.recipe import Recipe

#: Settings of a recipe that may change: how long the run is, what it keeps, and where the text, told by its digest, is.
FREE = {
    "data": {"corpus", "file"},
    "run": {"steps", "evaluate_every", "save_every", "snapshots", "snapshot_every", "best"},
}


def require_same(checkpoint: Checkpoint, recipe: Recipe, corpus: Corpus) -> None:
    """Raise unless a run can continue from a checkpoint.

    Args:
        checkpoint: The state it left.
        recipe: Its recipe as it is now.
        corpus: Its text as it is now.

    Raises:
        DyneqError: If the checkpoint holds no training state, or text, vocabulary or recipe have changed since.
    """
    if not {"optimizer", "rng", "training"} <= checkpoint.training.keys():
        raise DyneqError(f"{checkpoint.path} holds no optimiser state, so no run can continue from it")
    then = checkpoint.evaluation.source.get("sha256")
    if then != corpus.sha256:
        raise DyneqError(
            f"the run was trained on a text with digest {str(then)[:12]}, but {corpus.name!r} now has "
            f"{corpus.sha256[:12]}; resume with the same text (and, for 'pydoc', the same Python)"
        )
    old, new = checkpoint.vocabulary, corpus.vocabulary
    if old.sha256 != new.sha256:
        raise DyneqError(
            f"the run was trained with a vocabulary that does not match: {old.kind} of {len(old)} tokens with digest "
            f"{old.sha256[:12]}, but its recipe now gives {new.kind} of {len(new)} with {new.sha256[:12]}; restore "
            "data.tokenizer and data.vocabulary in its recipe.toml, and the tokenizers package it began with"
        )
    if changed := _changed(checkpoint.recipe, recipe.to_plain()):
        raise DyneqError(
            f"the recipe of the run has changed since it stopped ({'; '.join(changed)}), but --resume continues the "
            "same training; restore its recipe.toml, or start a new run"
        )


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two recipes in the settings that may not."""
    out = []
    for section in sorted(then.keys() | now.keys()):
        old, new = then.get(section, {}), now.get(section, {})
        if not isinstance(old, dict) or not isinstance(new, dict):
            if old != new:
                out.append(f"{section} was {old!r} and is {new!r}")
            continue
        keys = sorted((old.keys() | new.keys()) - FREE.get(section, set()))
        out += [f"{section}.{k} was {old.get(k)!r} and is {new.get(k)!r}" for k in keys if old.get(k) != new.get(k)]
    return out
