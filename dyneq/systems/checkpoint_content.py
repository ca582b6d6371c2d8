"""From the plain content of a checkpoint file to a checkpoint, every part checked against the others."""

from typing import Any

import torch
from torch import Tensor

from dyneq.errors import DyneqError
from dyneq.systems.checkpoint import FORMAT, Checkpoint, EvaluationBatch, build_block, check_weights, load_weights
from dyneq.systems.vocabulary import vocabulary_from_plain

REQUIRED = ("format", "config", "tokenizer", "step", "metrics", "recipe", "model", "evaluation")
OPTIONAL = ("optimizer", "ema", "rng", "training")


def assemble(held: object) -> Checkpoint:
    """Return the checkpoint that the plain content of a file describes.

    Raises:
        DyneqError: If it is none, of another format, or its parts do not fit together.
    """
    if not isinstance(held, dict) or "format" not in held:
        raise DyneqError(
            "a dyneq checkpoint (a mapping with 'format', 'config', 'model', ...) was expected, but the file holds "
            f"{'a mapping without a format' if isinstance(held, dict) else type(held).__name__}; "
            "write it with dyneq.save_checkpoint"
        )
    found = held["format"]
    if not isinstance(found, str) or found != FORMAT:
        shown = repr(found[:80]) if isinstance(found, str) else type(found).__name__
        raise DyneqError(
            f"this version reads the checkpoint format {FORMAT!r}, but the file has {shown}; "
            "update dyneq, or save the checkpoint again"
        )
    missing = [key for key in REQUIRED if key not in held]
    unknown = sorted(str(key) for key in held if key not in REQUIRED + OPTIONAL)
    if missing or unknown:
        raise DyneqError(
            f"the checkpoint lacks {missing or 'nothing'} and holds {unknown or 'nothing'} that this format does not "
            "know; write it with dyneq.save_checkpoint"
        )
    if not isinstance(held["step"], int) or not all(isinstance(held[key], dict) for key in ("metrics", "recipe")):
        raise DyneqError(
            "the checkpoint's step should be an integer and its metrics and recipe mappings; save it again"
        )
    _check_outline(held["config"], held["model"])
    block = build_block(held["config"])
    load_weights(block, held["model"])
    vocabulary = vocabulary_from_plain(held["tokenizer"])
    evaluation = _evaluation(held["evaluation"])
    try:
        for indices in (evaluation.tokens, evaluation.targets):  # targets are tokens too
            block.embed(indices)
    except DyneqError as error:
        raise DyneqError(f"the pinned evaluation batch does not fit the block: {error}") from None
    # the mask stands for a symbol and is none; targets are symbols throughout
    tokens = evaluation.tokens if block.mask is None else evaluation.tokens[evaluation.tokens != block.mask]
    highest = int(torch.cat([tokens.flatten(), evaluation.targets.flatten()]).max())
    if highest >= len(vocabulary):
        raise DyneqError(
            f"the checkpoint's vocabulary has {len(vocabulary)} symbols, but its evaluation batch uses {highest}; "
            "save the vocabulary the batch was encoded with"
        )
    training = {key: held[key] for key in OPTIONAL if key in held}
    return Checkpoint(
        block, vocabulary, evaluation, held["step"], dict(held["metrics"]), dict(held["recipe"]), training
    )


def _check_outline(config: object, model: object) -> None:
    """Compare names and shapes before any memory is taken for the block: a small file can describe a huge one.

    Raises:
        DyneqError: If the weights do not fit the config.
    """
    try:
        with torch.device("meta"):
            outline = build_block(config)
    except DyneqError:
        return  # a block that only exists with memory, or none at all, as building it for good will tell
    check_weights(outline, model)


def _evaluation(plain: Any) -> EvaluationBatch:
    if not isinstance(plain, dict):
        plain = {}
    tokens, targets = plain.get("tokens"), plain.get("targets")
    if (
        not isinstance(tokens, Tensor)
        or not isinstance(targets, Tensor)
        or tokens.ndim != 2
        or tokens.shape != targets.shape
        or not tokens.numel()
        or {tokens.dtype, targets.dtype} != {torch.int64}
        or any(t.is_meta or t.layout is not torch.strided for t in (tokens, targets))
    ):
        raise DyneqError(
            "the checkpoint should pin an evaluation batch of int64 tokens and targets [sample, token], but does not; "
            "save it again with one"
        )
    source = plain.get("source")
    return EvaluationBatch(tokens, targets, dict(source) if isinstance(source, dict) else {})
