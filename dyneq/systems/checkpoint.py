"""Checkpoints: what one holds, and how it becomes a system.

Reading and writing the files is in :mod:`dyneq.systems.checkpoint_io`.
"""

import copy
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from dyneq import plugins
from dyneq.errors import DyneqError, UsageError, nearest
from dyneq.systems.block import BoundBlock, EquilibriumBlock
from dyneq.systems.vocabulary import Vocabulary

FORMAT = "dyneq-checkpoint/1"


@dataclass(frozen=True)
class EvaluationBatch:
    """The batch every probe of a checkpoint uses, stored inside it.

    Attributes:
        tokens: Token indices ``[sample, token]``, int64.
        targets: The next token of each, same shape.
        source: Where it came from: corpus name, its digest, the seed that drew it.
    """

    tokens: Tensor
    targets: Tensor
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Digest of the token and target indices (as little-endian int64), independent of device."""
        digest = hashlib.sha256(str(tuple(self.tokens.shape)).encode())
        for part in (self.tokens, self.targets):
            digest.update(part.to("cpu", torch.int64).contiguous().numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def first(self, samples: int | None) -> "EvaluationBatch":
        """Return the first ``samples`` of the batch, all of them if None.

        Raises:
            UsageError: If more are asked for than are pinned, or fewer than one.
        """
        pinned = self.tokens.shape[0]
        if samples is None:
            return self
        if not 1 <= samples <= pinned:
            raise UsageError(
                f"the checkpoint pins an evaluation batch of {pinned} samples, but --batch {samples} was asked for; "
                f"choose 1 to {pinned}"
            )
        return EvaluationBatch(self.tokens[:samples], self.targets[:samples], self.source)


@dataclass
class Checkpoint:
    """One trained block with all that is needed to diagnose it.

    Attributes:
        block: The module with its weights.
        vocabulary: What the token indices mean.
        evaluation: The pinned evaluation batch.
        step: Training step it was taken at.
        metrics: Plain numbers by name, such as ``validation_loss``.
        recipe: The plain values it was trained with.
        training: Optional state for resuming: ``optimizer``, ``ema``, ``rng``.
        path: The file it was read from, None if it was not.
        sha256: Digest of that file.
        name: What it is called in messages and tables.
    """

    block: EquilibriumBlock
    vocabulary: Vocabulary
    evaluation: EvaluationBatch
    step: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    sha256: str | None = None
    name: str = "checkpoint"

    def bind(
        self,
        batch: int | None = None,
        *,
        eps: float | None = None,
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
    ) -> BoundBlock:
        """Return the system of this checkpoint on its pinned evaluation batch.

        Args:
            batch: How many of the pinned samples; all if None.
            eps: Relaxation step; the block's own if None.
            dtype: Precision of the whole problem.
            device: Where it is computed.
        """
        evaluation = self.evaluation.first(batch)
        block = copy.deepcopy(self.block).to(device=device, dtype=dtype)  # systems of several precisions may coexist
        return block.bind(evaluation.tokens.to(device), evaluation.targets.to(device), eps=eps)


def block_of_kind(kind: str) -> Any:
    """Return the class of a kind of block, as its entry point declares it, with its ``Config``.

    Raises:
        UsageError: If there is none, or it is no block.
    """
    found = plugins.load("dyneq.systems", kind, "kind of block")
    if not (isinstance(found, type) and issubclass(found, EquilibriumBlock) and hasattr(found, "Config")):
        raise UsageError(
            f"the entry point {kind!r} of dyneq.systems should be an EquilibriumBlock with a Config, but is {found!r}; "
            "name a kind that `dyneq list systems` shows"
        )
    return found


def build_block(config: object) -> EquilibriumBlock:
    """Return an untrained block of a stored configuration.

    Raises:
        DyneqError: If the configuration is not one of a known block.
    """
    if not isinstance(config, dict) or not isinstance(config.get("kind"), str):
        raise DyneqError(
            "the checkpoint's config should be a mapping with a 'kind' such as 'thick', but it has none; "
            "write the checkpoint with dyneq.save_checkpoint"
        )
    try:
        block_type = block_of_kind(config["kind"])
        return block_type(block_type.Config.model_validate(config))
    except (ValidationError, UsageError, MemoryError, RuntimeError) as error:
        problem = str(error)
        if isinstance(error, ValidationError):
            known = block_type.Config.model_fields
            problem = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}"
                + (nearest(str(e["loc"][0]), known) if e["type"] == "extra_forbidden" else "")
                for e in error.errors()
            )
        raise DyneqError(
            f"the checkpoint's config does not describe a block ({problem}); it was written by another version "
            "or is damaged"
        ) from None


def load_weights(block: EquilibriumBlock, weights: object) -> None:
    """Load a stored state dict into a block.

    Raises:
        DyneqError: If names or shapes differ from the block's, or a weight is not finite.
    """
    checked = check_weights(block, weights)
    # the stored precision, so that a round trip loses nothing
    block.to(next(iter(checked.values())).dtype).load_state_dict(checked)


def check_weights(block: EquilibriumBlock, weights: object) -> dict[str, Tensor]:
    """Return a stored state dict that fits a block; the block may be one without memory, on torch's meta device.

    Raises:
        DyneqError: If names or shapes differ from the block's, or a weight is not finite.
    """
    if not isinstance(weights, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()
    ):
        raise DyneqError("the checkpoint's 'model' should map names to tensors, but does not; save it again")
    own = block.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or extra:
        raise DyneqError(
            f"the checkpoint's weights do not belong to its config: missing {missing or 'none'}, "
            f"unexpected {extra or 'none'}; save the model and its config together"
        )
    dtypes = {w.dtype for w in weights.values()}
    plain = all(w.is_floating_point() and w.layout is torch.strided and not w.is_meta for w in weights.values())
    if len(dtypes) != 1 or not plain:
        raise DyneqError(
            f"the checkpoint's weights should be dense floating tensors of one dtype, but are of "
            f"{', '.join(sorted(map(str, dtypes)))}; save the model in one precision"
        )
    for name, weight in weights.items():
        if weight.numel() * weight.element_size() > weight.untyped_storage().nbytes():
            raise DyneqError(
                f"the weight {name!r} of shape {list(weight.shape)} stores fewer values than it has; save it as a "
                "contiguous tensor"
            )
    for name, expected in own.items():
        if weights[name].shape != expected.shape:
            raise DyneqError(
                f"the weight {name!r} should have shape {list(expected.shape)} by the checkpoint's config, "
                f"but has {list(weights[name].shape)}; save the model and its config together"
            )
        if not torch.isfinite(weights[name]).all():
            bad = int((~torch.isfinite(weights[name])).sum())
            raise DyneqError(
                f"the weight {name!r} holds {bad} NaN or infinite values out of {expected.numel()}: the training "
                "had already broken when it was saved; take an earlier snapshot"
            )
    return weights
