"""The sections of a recipe: what can be set, its defaults and its bounds."""

import math
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from dyneq.settings import Settings

#: Residuals of the gate, the fuse and the controllers are step residuals at this eps, whatever the run's own is.
RESIDUAL_EPS = 0.1


class Section(Settings):
    """Base of the sections: unknown settings are errors, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSection(Section):
    """Which text, and how it is divided."""

    corpus: str = Field("pydoc", description="built-in corpus, unless a file is named")
    file: str | None = Field(None, description="UTF-8 text to use instead")
    validation: float = Field(0.1, gt=0, lt=1, description="share held out, at the end of the text")
    evaluation_samples: int = Field(64, gt=0, description="samples of the pinned evaluation batch")
    evaluation_seed: int = Field(0, ge=0, description="seed that draws it")
    tokenizer: str = Field("characters", description="characters, or bpe trained on the training part of the text")
    vocabulary: int = Field(4096, gt=1, description="tokens of a bpe vocabulary; characters have as many as there are")


class OptimizerSection(Section):
    """How a gradient becomes a step."""

    name: Literal["adam", "adamw"] = Field("adam", description="adam, or adamw with decoupled weight decay")
    lr: float = Field(3e-3, gt=0, description="learning rate after warm-up")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the two moment estimates")
    weight_decay: float = Field(0.0, ge=0, description="weight decay")
    clip: float | None = Field(None, gt=0, description="largest norm of the whole gradient; no clipping if None")
    warmup: int = Field(100, ge=0, description="steps over which the learning rate rises linearly")
    schedule: Literal["constant", "cosine", "wsd"] = Field(
        "constant", description="after warm-up: constant, a half cosine, or stable and then a linear decay (wsd)"
    )
    final: float = Field(0.1, ge=0, le=1, description="share of lr that a schedule ends at")
    decay: float = Field(0.2, gt=0, le=1, description="share of the run over which wsd decays, at its end")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of a moving average of the weights; none if None")
    mup_base: int | None = Field(
        None, gt=0, description="channels the lr was tuned at: mu-P scales the lr of matrices by mup_base/channels"
    )

    @field_validator("betas")
    @classmethod
    def _below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("both should lie in [0, 1)")
        return betas

    def lr_at(self, step: int, steps: int) -> float:
        """Return the learning rate of the update number ``step``, counted from 1, of a run of ``steps``."""
        if self.warmup and step < self.warmup:
            return self.lr * (step / self.warmup)
        return self.lr * self._share(step, steps)

    def _share(self, step: int, steps: int) -> float:
        if self.schedule == "constant":
            return 1.0
        begin = self.warmup if self.schedule == "cosine" else max(self.warmup, steps - round(self.decay * steps))
        done = min(1.0, max(0.0, (step - begin) / max(1, steps - begin)))
        fall = 0.5 * (1 - math.cos(math.pi * done)) if self.schedule == "cosine" else done
        return 1 - (1 - self.final) * fall


class SwitchSection(Section):
    """A change of the gradient in the course of a run: at an update, or once a measured number has passed a bound."""

    gradient: dict[str, Any] = Field(description="the estimator from then on, as in [gradient]")
    at: int | None = Field(None, gt=0, description="number of the first update it is used in")
    metric: str | None = Field(None, description="a number of every update that decides instead, as force_residual_t1")
    above: float | None = Field(None, description="switch when the metric has been above this ...")
    below: float | None = Field(None, description="... or below this ...")
    patience: int = Field(1, gt=0, description="... in so many updates in a row")

    @model_validator(mode="after")
    def _one_condition(self) -> "SwitchSection":
        measured = self.metric is not None
        if (self.at is not None) == measured or ((self.above is None) == (self.below is None)) == measured:
            raise ValueError("a switch has either 'at', or 'metric' with one of 'above' and 'below'")
        return self


class StabilitySection(Section):
    """Stabilisers; residuals are step residuals at eps 0.1, a tenth of the force residual."""

    gate: float | None = Field(
        None, gt=0, description="residual (median of a batch) above which the nudge is skipped; penalties still apply"
    )
    fuse: float | None = Field(0.1, gt=0, description="residual (median of a batch) that counts towards the fuse")
    fuse_after: int = Field(100, gt=0, description="updates in a row above it after which the run is ended")
    weight_cap: float | None = Field(
        None, gt=0, description="largest root-mean-square singular value of a weight matrix of attention or branch"
    )
    prewarm: int = Field(0, ge=0, description="first updates, which lower the contraction rate alone")
    prewarm_margin: float = Field(0.5, description="contraction per time they ask for; below it they change nothing")
    prewarm_lr: float = Field(1e-3, gt=0, description="their learning rate")


class GuardSection(Section):
    """The guard: what it watches, when it acts, and what it may do."""

    enabled: bool = Field(False, description="whether the run is guarded")
    every: int = Field(25, gt=0, description="updates between two looks; every other one is left out in safety")
    samples: int = Field(4, gt=0, description="samples of the pinned batch it looks at")
    depth: int = Field(400, gt=0, description="relaxation steps before it takes the leading multiplier")
    history: int = Field(4, ge=4, description="looks the trend is fitted to")
    horizon: int = Field(50, gt=0, description="updates ahead for which a forecast crossing makes it act")
    lower: float = Field(0.5, gt=0, lt=1, description="factor on the learning rate when it acts")
    smallest: float = Field(0.05, gt=0, le=1, description="smallest share of the learning rate it goes down to")
    boost: float = Field(2.0, gt=1, description="factor on the penalties' weights when it acts")
    largest: float = Field(16.0, ge=1, description="largest factor on the penalties' weights it goes up to")
    reserve: str | None = Field(
        None, description="penalty, as for --reg, that it adds to a run without any before it is too late; none if None"
    )
    recover: int = Field(100, gt=0, description="calm updates after which one act is taken back")
    blow_up: float = Field(0.5, gt=0, description="rise of the validation loss over its best, nats, that is a blow-up")
    rollbacks: int = Field(8, ge=0, description="most rollbacks of a run before it is ended")


class RunSection(Section):
    """How long, from which seed, and what is kept."""

    steps: int = Field(500, gt=0, description="updates in all")
    batch: int = Field(16, gt=0, description="samples an update")
    seed: int = Field(0, ge=0, description="seed of the weights and of the batches")
    relaxation: int = Field(60, gt=0, description="steps T1 of the relaxation, in training and in evaluation")
    evaluate_every: int = Field(50, gt=0, description="updates between evaluations on the pinned batch")
    deep: int | None = Field(
        None, gt=0, description="relaxation steps after which an evaluation counts what has not settled; none if None"
    )
    deep_samples: int = Field(16, gt=0, description="pinned samples that are relaxed so deeply")
    save_every: int = Field(25, gt=0, description="updates between saves of the state that --resume continues from")
    snapshots: tuple[int, ...] = Field((), description="updates after which a snapshot is kept")
    snapshot_every: int | None = Field(None, gt=0, description="further snapshots, every so many updates")
    best: bool = Field(True, description="keep the snapshot of lowest validation loss as best.pt")
    dtype: Literal["float32", "float64"] = Field("float32", description="precision of everything")

    @model_validator(mode="after")
    def _within_the_run(self) -> "RunSection":
        outside = [step for step in self.snapshots if not 0 <= step <= self.steps]
        if outside:
            raise ValueError(f"snapshots should lie in 0..{self.steps}, the run's steps, but {outside[0]} does not")
        return self
