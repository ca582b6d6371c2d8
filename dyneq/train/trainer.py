"""One update at a time: batch, gradient, penalties, optimiser step; and the state all of it continues from."""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dyneq.dynamics.relax import relax
from dyneq.errors import DyneqError, UsageError
from dyneq.gradients.base import Gradient
from dyneq.probes.leading import leading_modulus
from dyneq.probes.penalties.base import Penalty
from dyneq.probes.penalties.contribution import Contribution, grouped_norm
from dyneq.systems.block import EquilibriumBlock
from dyneq.systems.checkpoint import Checkpoint, EvaluationBatch, block_of_kind
from dyneq.train import parallel
from dyneq.train.data import Corpus
from dyneq.train.guard import Guard
from dyneq.train.log import Record
from dyneq.train.recipe import Recipe
from dyneq.train.resuming import require_same
from dyneq.train.sharing import share
from dyneq.train.stability import Fuse, bare_numbers, prewarm
from dyneq.train.stepper import Stepper
from dyneq.train.task import Task, without_task
from dyneq.train.terms import Terms, added, numbers

#: Force residual up to which a sample counts as settled in a deep evaluation.
SETTLED = 1e-3


class NonFinite(DyneqError):
    """A loss, gradient or weight stopped being finite, or could not be computed; the update was not applied."""


class Trainer:
    """A block under training; equal recipes give equal bits on one machine with one number of threads.

    Args:
        recipe: A resolved recipe.
        corpus: Its text.
        device: Where the block lives.
        penalties: Terms beside those of the recipe.

    Attributes:
        step: Updates applied so far.
        metrics: The latest evaluation.
        best: The lowest validation loss of a snapshot that was kept as the best.
        lr_share: Factor on the learning rate, which the guard may lower.
        guard: What watches the run; None if nothing does.

    Raises:
        DyneqError: If the text is too short for the recipe, or the block cannot be guarded.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus, device: str = "cpu", penalties: Sequence[Penalty] = ()) -> None:
        self.recipe, self.corpus = recipe, corpus
        self.device, self.dtype = torch.device(device), getattr(torch, recipe.run.dtype)
        tokens = recipe.block["tokens"]
        corpus.require(tokens, recipe.data.evaluation_samples)
        drawn = corpus.evaluation_batch(recipe.data.evaluation_samples, tokens, recipe.data.evaluation_seed)
        self.task = Task(recipe)
        self.block = self._new_block().to(self.device, self.dtype)
        seeded = torch.Generator().manual_seed(recipe.data.evaluation_seed)
        self.evaluation = EvaluationBatch(*self.block.examples(drawn.tokens, drawn.targets, seeded), drawn.source)
        whole = self.block.mask is None and corpus.vocabulary.unit != "character"
        self._tokens_per_character = corpus.tokens_per_character(drawn.targets) if whole else None
        self.terms = Terms(recipe.penalty, recipe.run.seed, penalties)
        self.terms.require(self.block, recipe.stability.prewarm)
        self.stepper = Stepper(self.block, recipe.optimizer, recipe.stability.weight_cap)
        self.parameters = self.stepper.parameters
        parallel.require_same("recipe", recipe.to_toml())
        parallel.require_same("text", f"{corpus.sha256} {self.evaluation.sha256}")
        self.share = share(self.parameters, recipe.run.batch)
        self.terms.contribute = self.share.contribution
        self.fuse = Fuse(recipe.stability)
        pinned = recipe.data.evaluation_samples
        self.guard = Guard(recipe.guard, self.block, pinned) if recipe.guard.enabled else None
        self.generator = torch.Generator().manual_seed(recipe.run.seed)
        self.step = 0
        self.lr_share, self.best = 1.0, math.inf
        self.metrics: dict[str, Any] = {}

    def _new_block(self) -> EquilibriumBlock:
        kind = block_of_kind(self.recipe.block["kind"])
        config = kind.Config(vocabulary=len(self.corpus.vocabulary), **self.recipe.block)
        return kind(config, torch.Generator().manual_seed(self.recipe.run.seed))

    def update(self) -> Record:
        """Apply one update and return its record: loss, residuals and norms BEFORE it.

        A gate that skips a nudge skips no penalty.

        ``force_residual`` is the median over the batch and ``force_residual_max`` its worst sample; the estimator's
        other diagnostics likewise.

        Raises:
            NonFinite: If loss, gradient or the new weights are not finite, or, after the first update, cannot be
                computed; weights, optimiser and generator are then as they were before.
            DyneqError: If the first update cannot be computed.
        """
        began = time.perf_counter()
        step, drawn_from, terms_before = self.step + 1, self.generator.get_state(), self.terms.state()

        def undone(sentence: str) -> NonFinite:
            self.generator.set_state(drawn_from)
            self.terms.restore(terms_before)
            return NonFinite(sentence)

        warming = step <= self.recipe.stability.prewarm
        try:
            gradient, skipped, parts = self._directions(step, warming)
        except UsageError:
            raise
        except DyneqError as error:
            # what cannot be computed at once is a setting; and one of several processes cannot answer alone
            if step == 1 or parallel.size() > 1:
                raise
            raise undone(
                f"update {step} cannot be computed ({error}): the weights after {step - 1} updates are kept; look at "
                "their spectrum, then lower optimizer.lr or start again from an earlier snapshot"
            ) from error
        lr = self._lr(step) * self.lr_share
        direction = added(gradient.parameters, parts)
        norm = grouped_norm(direction)
        record: Record = {
            "step": step,
            **_scalars(gradient, norm, bare_numbers(parts) if warming else numbers(parts, gradient.parameters)),
            **({} if warming else self.terms.weights(step)),
            "lr": lr,
        }
        if self.recipe.stability.gate is not None:
            record["nudge_skipped"] = int(skipped)
        wrong = self.stepper.refuses(norm) if math.isfinite(record["loss"]) else "the loss is not finite"
        if wrong is None and (norm > 0 or not warming):  # nothing to contract: not even weight decay then
            wrong = self.stepper.apply(direction, norm, lr)
        if wrong is not None:
            raise undone(self._sentence(wrong, record))
        self.step = step
        if step == self.recipe.stability.prewarm:
            self.stepper.forget()  # moments of another gradient
        switched = self.task.observe(record)
        if switched is not None:
            record["switch"] = switched
        self.fuse.observe(record)
        record["seconds"] = round(time.perf_counter() - began, 4)
        return record

    def _directions(self, step: int, warming: bool) -> tuple[Gradient, bool, dict[str, Contribution]]:
        """Return the task's gradient on the next batch, whether its nudge was skipped, and what terms add to it."""
        tokens, targets = self._draw()
        system = self.share.bind(self.block, tokens.to(self.device), targets.to(self.device))
        gradient, skipped = self.task.gradient(system)
        gradient = self.share.whole(gradient)
        if not warming:
            return gradient, skipped, self.terms.contributions(system, gradient, step)
        gradient = without_task(gradient)
        part = prewarm(self.recipe.stability, system, gradient, self.terms.generator)
        return gradient, skipped, {"prewarm": self.share.mean(part)}

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Return the next batch."""
        tokens, targets = self.corpus.batch(self.recipe.run.batch, self.recipe.block["tokens"], self.generator)
        return self.block.examples(tokens, targets, self.generator)

    def _lr(self, step: int) -> float:
        """Return the learning rate of an update; the schedule begins after the pre-warm."""
        first = self.recipe.stability.prewarm
        if step <= first:
            return self.recipe.stability.prewarm_lr
        return self.recipe.optimizer.lr_at(step - first, self.recipe.run.steps - first)

    def skip(self) -> str | None:
        """Count an update that could not be applied, its batch spent; return a sentence if the estimator changes."""
        self._draw()
        self.step += 1
        if self.step == self.recipe.stability.prewarm:
            self.stepper.forget()
        return self.task.advance(self.step)

    def roll_back(self, checkpoint: Checkpoint, weights: dict[str, Tensor]) -> None:
        """Go on from the weights, moments and controllers of an earlier :meth:`checkpoint`.

        The count of updates, the batches and random draws to come, the estimator, the factors of the guard and the
        best loss stay as they are.

        Raises:
            DyneqError: If the checkpoint holds no training state.
        """
        self._require_state(checkpoint)
        self.block.load_state_dict(weights)
        self.stepper.restore(checkpoint.training)
        now = self.terms.state()
        then = checkpoint.training["training"]["terms"]
        self.terms.restore({**then, **{name: now[name] for name in ("generator", "boost", "reserve")}})
        if checkpoint.step < self.recipe.stability.prewarm <= self.step:
            self.stepper.forget()  # moments of another gradient, and there is no pre-warm to come
        self.fuse.count = 0
        self.task.interrupt()

    def _sentence(self, what: str, record: Record) -> str:
        step, residual, norm = record["step"], record["force_residual_max"], record["gradient_norm"]
        return (
            f"{what} at update {step} (worst force residual of its batch {residual:.1e}, gradient norm "
            f"{norm:.1e}): the update was not applied and the weights after {step - 1} updates are kept; look at their "
            "spectrum, then lower optimizer.lr or start again from an earlier snapshot"
        )

    def evaluate(self) -> dict[str, Any]:
        """Measure loss and force residual on the pinned batch after T1 relaxation steps, and keep them as metrics.

        With a moving average of the weights, that is what is measured.

        Returns:
            ``validation_loss`` (nats per token), ``validation_force_residual`` (median over samples) and its ``_max``;
            and ``validation_loss_per_character`` where a token is no character and every token is predicted. With
            ``run.deep``, of a block that relaxes, also ``validation_unsettled``, the share of its first
            ``run.deep_samples`` samples whose force residual is still above :data:`SETTLED` after so many steps,
            ``validation_deep_residual``, their median, and ``validation_multiplier``, their largest leading multiplier
            there (NaN if no state is finite).
        """
        batch, block = self.evaluation, self.stepper.average or self.block
        with torch.no_grad():
            system = block.bind(batch.tokens.to(self.device), batch.targets.to(self.device))
            relaxed = relax(system, self.recipe.run.relaxation)
            loss, residual = system.loss(relaxed.z).mean(), relaxed.residuals.force
            found = torch.stack([loss, residual.median(), residual.max()]).tolist()
            if self.recipe.run.deep is not None and block.relaxes:
                first = torch.arange(min(self.recipe.run.deep_samples, len(relaxed.z)), device=self.device)
                further, few = max(0, self.recipe.run.deep - self.recipe.run.relaxation), system.select(first)
                deep = relax(few, further, start=relaxed.z[first])
                late = deep.residuals.force
                found += [float((~(late <= SETTLED)).float().mean()), float(late.median())]
                found.append(leading_modulus(few, deep.z, torch.Generator().manual_seed(0)))
        names = (
            "validation_loss",
            "validation_force_residual",
            "validation_force_residual_max",
            "validation_unsettled",
            "validation_deep_residual",
            "validation_multiplier",
        )[: len(found)]
        self.metrics = parallel.agreed(dict(zip(names, found, strict=True)))
        if self._tokens_per_character is not None:
            self.metrics["validation_loss_per_character"] = self.metrics["validation_loss"] * self._tokens_per_character
        return self.metrics

    def checkpoint(self, with_state: bool = False) -> Checkpoint:
        """Return the block as a checkpoint; with optimiser, generators and memories if it is to be resumed from.

        With a moving average of the weights, that is the block, unless it is to be resumed from.
        """
        state = {
            **self.stepper.state(),
            "rng": {"batches": self.generator.get_state()},
            "training": {
                "terms": self.terms.state(),
                "task": self.task.state(),
                "fuse": self.fuse.count,
                "lr_share": self.lr_share,
                "best": self.best,
                **({} if self.guard is None else {"guard": self.guard.state()}),
            },
        }
        return Checkpoint(
            self.block if with_state else self.stepper.average or self.block,
            self.corpus.vocabulary,
            self.evaluation,
            step=self.step,
            metrics=dict(self.metrics),
            recipe=self.recipe.to_plain(),
            training=state if with_state else {},
        )

    def restore(self, checkpoint: Checkpoint, weights: dict[str, Tensor]) -> None:
        """Continue from what :meth:`checkpoint` gave.

        Raises:
            DyneqError: If the checkpoint holds no training state, or text, vocabulary or recipe have changed since.
        """
        require_same(checkpoint, self.recipe, self.corpus)
        self.block.load_state_dict(weights)
        self.stepper.restore(checkpoint.training)
        self.generator.set_state(checkpoint.training["rng"]["batches"])
        memory = checkpoint.training["training"]
        self.terms.restore(memory["terms"])
        self.task.restore(memory["task"])
        self.fuse.count, self.lr_share, self.best = memory["fuse"], memory["lr_share"], memory["best"]
        if self.guard is not None:
            self.guard.restore(memory["guard"])
        self.step, self.metrics = checkpoint.step, dict(checkpoint.metrics)

    def _require_state(self, checkpoint: Checkpoint) -> None:
        if not {"optimizer", "rng", "training"} <= checkpoint.training.keys():
            raise DyneqError(f"{checkpoint.path} holds no optimiser state, so no run can continue from it")


def _scalars(gradient: Gradient, norm: Tensor, values: dict[str, Tensor]) -> Record:
    """Return the numbers of one update, fetched from the device together."""
    found = {"loss": gradient.loss.mean(), "gradient_norm": norm}
    for name, per_sample in gradient.diagnostics.items():
        found |= {name: per_sample.median(), f"{name}_max": per_sample.max()}
    found |= values
    return dict(zip(found, torch.stack([v.detach().double() for v in found.values()]).tolist(), strict=True))
