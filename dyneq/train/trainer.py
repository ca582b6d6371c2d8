"""One update at a time: batch, gradient, penalties, optimiser step; and the state all of it continues from."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dyneq.dynamics.relax import relax
from dyneq.errors import DyneqError
from dyneq.gradients import registry
from dyneq.gradients.base import Gradient, Grouped
from dyneq.systems.block import EquilibriumBlock
from dyneq.systems.checkpoint import Checkpoint, EvaluationBatch, block_of_kind
from dyneq.train.data import Corpus
from dyneq.train.log import Record
from dyneq.train.penalties import Penalty, combine
from dyneq.train.recipe import Recipe

_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class NonFinite(DyneqError):
    """A loss, gradient or weight stopped being finite; the update was not applied."""


class Trainer:
    """A block under training; equal recipes give equal bits on one machine with one number of threads.

    Args:
        recipe: A resolved recipe.
        corpus: Its text.
        device: Where the block lives.
        penalties: Terms added to every gradient, in order.

    Attributes:
        step: Updates applied so far.
        metrics: The latest evaluation.

    Raises:
        DyneqError: If the text is too short for the recipe.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus, device: str = "cpu", penalties: Sequence[Penalty] = ()) -> None:
        self.recipe, self.corpus, self.penalties = recipe, corpus, penalties
        self.device, self.dtype = torch.device(device), getattr(torch, recipe.run.dtype)
        tokens = recipe.block["tokens"]
        corpus.require(tokens, recipe.data.evaluation_samples)
        drawn = corpus.evaluation_batch(recipe.data.evaluation_samples, tokens, recipe.data.evaluation_seed)
        self.estimator = registry.build(
            recipe.gradient["name"], {key: value for key, value in recipe.gradient.items() if key != "name"}
        )
        self.block = self._new_block().to(self.device, self.dtype)
        seeded = torch.Generator().manual_seed(recipe.data.evaluation_seed)
        self.evaluation = EvaluationBatch(*self.block.examples(drawn.tokens, drawn.targets, seeded), drawn.source)
        self.parameters = {n: p for members in self.block.parameter_groups().values() for n, p in members.items()}
        optimizer = recipe.optimizer
        self.optimizer = _OPTIMIZERS[optimizer.name](
            self.parameters.values(), lr=optimizer.lr, betas=optimizer.betas, weight_decay=optimizer.weight_decay
        )
        self.generator = torch.Generator().manual_seed(recipe.run.seed)
        self.step = 0
        self.metrics: dict[str, Any] = {}

    def _new_block(self) -> EquilibriumBlock:
        kind = block_of_kind(self.recipe.block["kind"])
        config = kind.Config(vocabulary=len(self.corpus.vocabulary), **self.recipe.block)
        return kind(config, torch.Generator().manual_seed(self.recipe.run.seed))

    def update(self) -> Record:
        """Apply one update and return its record: loss, residuals and norms BEFORE it.

        ``force_residual`` is the median over the batch and ``force_residual_max`` its worst sample; the estimator's
        other diagnostics likewise.

        Raises:
            NonFinite: If loss, gradient or the new weights are not finite; weights, optimiser and generator are then
                as they were before.
        """
        began = time.perf_counter()
        step, drawn_from = self.step + 1, self.generator.get_state()
        tokens, targets = self.corpus.batch(self.recipe.run.batch, self.recipe.block["tokens"], self.generator)
        tokens, targets = self.block.examples(tokens, targets, self.generator)
        system = self.block.bind(tokens.to(self.device), targets.to(self.device))
        gradient = self.estimator.gradient(system)
        direction, values = gradient.parameters, {}
        for penalty in self.penalties:
            extra = penalty.contribution(system, gradient)
            direction = combine(direction, extra)
            values[f"penalty_{penalty.name}"] = extra.value
        norm = global_norm(direction)
        lr = self.recipe.optimizer.lr_at(step)
        record = {"step": step, **_scalars(gradient, norm, values), "lr": lr}
        try:
            self._apply(direction, norm, lr, record)
        except NonFinite:
            self.generator.set_state(drawn_from)
            raise
        self.step = step
        record["seconds"] = round(time.perf_counter() - began, 4)
        return record

    def _apply(self, direction: Grouped, norm: Tensor, lr: float, record: Record) -> None:
        broken = [name for name in ("loss", "gradient_norm") if not _finite(record[name])]
        if broken:
            named = "the loss" if "loss" in broken else "the gradient"
            raise NonFinite(self._sentence(named, record))
        clip = self.recipe.optimizer.clip
        scale = None if clip is None else (clip / norm).clamp(max=1.0)
        before = [p.detach().clone() for p in self.parameters.values()]
        moments = _copied(self.optimizer.state_dict())
        for members in direction.values():
            for name, value in members.items():
                self.parameters[name].grad = value if scale is None else value * scale
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not torch.stack([torch.isfinite(p).all() for p in self.parameters.values()]).all():
            with torch.no_grad():
                for p, old in zip(self.parameters.values(), before, strict=True):
                    p.copy_(old)
            self.optimizer.load_state_dict(moments)
            raise NonFinite(self._sentence("a weight", record))

    def _sentence(self, what: str, record: Record) -> str:
        step, residual, norm = record["step"], record["force_residual_max"], record["gradient_norm"]
        return (
            f"{what} is not finite at update {step} (worst force residual of its batch {residual:.1e}, gradient norm "
            f"{norm:.1e}): the update was not applied and the weights after {step - 1} updates are kept; look at their "
            "spectrum, then lower optimizer.lr or start again from an earlier snapshot"
        )

    def evaluate(self) -> dict[str, Any]:
        """Measure loss and force residual on the pinned batch after T1 relaxation steps, and keep them as metrics.

        Returns:
            ``validation_loss`` (nats per token), ``validation_force_residual`` (median over samples) and its ``_max``.
        """
        batch = self.evaluation
        with torch.no_grad():
            system = self.block.bind(batch.tokens.to(self.device), batch.targets.to(self.device))
            relaxed = relax(system, self.recipe.run.relaxation)
            loss, residual = system.loss(relaxed.z).mean(), relaxed.residuals.force
            found = torch.stack([loss, residual.median(), residual.max()]).tolist()
        names = ("validation_loss", "validation_force_residual", "validation_force_residual_max")
        self.metrics = dict(zip(names, found, strict=True))
        return self.metrics

    def checkpoint(self, with_state: bool = False) -> Checkpoint:
        """Return the block as a checkpoint, with optimiser and generator if it is to be resumed from."""
        state = {"optimizer": self.optimizer.state_dict(), "rng": {"batches": self.generator.get_state()}}
        return Checkpoint(
            self.block,
            self.corpus.vocabulary,
            self.evaluation,
            step=self.step,
            metrics=dict(self.metrics),
            recipe=self.recipe.model_dump(mode="json", exclude_none=True),
            training=state if with_state else {},
        )

    def restore(self, checkpoint: Checkpoint, weights: dict[str, Tensor]) -> None:
        """Continue from what :meth:`checkpoint` gave.

        Raises:
            DyneqError: If the checkpoint holds no training state or the text has changed since.
        """
        if not {"optimizer", "rng"} <= checkpoint.training.keys():
            raise DyneqError(f"{checkpoint.path} holds no optimiser state, so no run can continue from it")
        then = checkpoint.evaluation.source.get("sha256")
        if then != self.corpus.sha256:
            raise DyneqError(
                f"the run was trained on a text with digest {str(then)[:12]}, but {self.corpus.name!r} now has "
                f"{self.corpus.sha256[:12]}; resume with the same text (and, for 'pydoc', the same Python)"
            )
        self.block.load_state_dict(weights)
        self.optimizer.load_state_dict(checkpoint.training["optimizer"])
        self.generator.set_state(checkpoint.training["rng"]["batches"])
        self.step, self.metrics = checkpoint.step, dict(checkpoint.metrics)


def global_norm(gradient: Grouped) -> Tensor:
    """Return the Euclidean norm of a whole gradient, a scalar."""
    parts = [value for members in gradient.values() for value in members.values()]
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(value) for value in parts]))


def _scalars(gradient: Gradient, norm: Tensor, values: dict[str, Tensor]) -> Record:
    """Return the numbers of one update, fetched from the device together."""
    found = {"loss": gradient.loss.mean(), "gradient_norm": norm}
    for name, per_sample in gradient.diagnostics.items():
        found |= {name: per_sample.median(), f"{name}_max": per_sample.max()}
    found |= values
    return dict(zip(found, torch.stack([v.detach().double() for v in found.values()]).tolist(), strict=True))


def _finite(value: float) -> bool:
    return value - value == 0


def _copied(state: Any) -> Any:
    """Return an optimiser's state with its tensors copied."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return state
