"""Recipes: everything a training run depends on, read from TOML and overridden by ``key.sub=value``."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dyneq.errors import DyneqError, UsageError, nearest
from dyneq.gradients import registry
from dyneq.systems.checkpoint import block_of_kind

RECIPES = "dyneq.train.recipes"
DEFAULT_GRADIENT = "adjoint"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSection(_Section):
    """Which text, and how it is divided."""

    corpus: str = Field("pydoc", description="built-in corpus, unless a file is named")
    file: str | None = Field(None, description="UTF-8 text to use instead")
    validation: float = Field(0.1, gt=0, lt=1, description="share held out, at the end of the text")
    evaluation_samples: int = Field(64, gt=0, description="samples of the pinned evaluation batch")
    evaluation_seed: int = Field(0, ge=0, description="seed that draws it")


class OptimizerSection(_Section):
    """How a gradient becomes a step."""

    name: Literal["adam", "adamw"] = Field("adam", description="adam, or adamw with decoupled weight decay")
    lr: float = Field(3e-3, gt=0, description="learning rate after warm-up")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the two moment estimates")
    weight_decay: float = Field(0.0, ge=0, description="weight decay")
    clip: float | None = Field(None, gt=0, description="largest norm of the whole gradient; no clipping if None")
    warmup: int = Field(100, ge=0, description="steps over which the learning rate rises linearly")

    @field_validator("betas")
    @classmethod
    def _below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("both should lie in [0, 1)")
        return betas

    def lr_at(self, step: int) -> float:
        """Return the learning rate of the update number ``step``, counted from 1."""
        return self.lr * min(1.0, step / self.warmup) if self.warmup else self.lr


class RunSection(_Section):
    """How long, from which seed, and what is kept."""

    steps: int = Field(500, gt=0, description="updates in all")
    batch: int = Field(16, gt=0, description="samples an update")
    seed: int = Field(0, ge=0, description="seed of the weights and of the batches")
    relaxation: int = Field(60, gt=0, description="steps T1 of the relaxation, in training and in evaluation")
    evaluate_every: int = Field(50, gt=0, description="updates between evaluations on the pinned batch")
    save_every: int = Field(25, gt=0, description="updates between saves of the state that --resume continues from")
    snapshots: tuple[int, ...] = Field((), description="updates after which a snapshot is kept")
    snapshot_every: int | None = Field(None, gt=0, description="further snapshots, every so many updates")
    dtype: Literal["float32", "float64"] = Field("float32", description="precision of everything")

    @model_validator(mode="after")
    def _within_the_run(self) -> "RunSection":
        outside = [step for step in self.snapshots if not 0 <= step <= self.steps]
        if outside:
            raise ValueError(f"snapshots should lie in 0..{self.steps}, the run's steps, but {outside[0]} does not")
        return self


class Recipe(_Section):
    """A whole training run; equal recipes on equal machines give equal weights.

    Attributes:
        block: Configuration of the block without its vocabulary, which the corpus gives.
        data: The text.
        gradient: The estimator as :meth:`Estimator.to_plain` gives it; its free relaxation has ``run.relaxation``
            steps.
        optimizer: The optimiser.
        run: Length, seed and what is kept.
    """

    block: dict[str, Any]
    data: DataSection = DataSection()
    gradient: dict[str, Any] = {"name": DEFAULT_GRADIENT}
    optimizer: OptimizerSection = OptimizerSection()
    run: RunSection = RunSection()

    def snapshot_due(self, step: int) -> bool:
        """Return whether a snapshot is kept after update number ``step``."""
        every = self.run.snapshot_every
        return step == self.run.steps or step in self.run.snapshots or (every is not None and step % every == 0)

    def to_toml(self) -> str:
        """Return the recipe as TOML with every default written out; reading it gives the same recipe."""
        return "\n".join(
            f"[{section}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in members.items())
            for section, members in self.model_dump(exclude_none=True).items()
        )


def _toml(value: Any) -> str:
    # booleans, integers, floats, arrays and basic strings are written by JSON as TOML wants them, but for DEL
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


def packaged() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(f.name.removesuffix(".toml") for f in resources.files(RECIPES).iterdir() if f.name.endswith(".toml"))


def load_recipe(source: str | Path | None = None, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        source: A TOML file, the name of a packaged recipe, or None for the packaged ``default``.
        overrides: Assignments ``section.key=value`` in TOML's notation, applied in order; ``gradient=SPEC`` too.

    Raises:
        DyneqError: If the file cannot be read.
        UsageError: If there is no such recipe, or it holds something unknown or impossible.
    """
    text, origin = _read("default" if source is None else source)
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the recipe {origin} should be TOML, but is not: {error}") from None
    for assignment in overrides:
        _assign(values, assignment)
    return resolve(values, origin)


def resolve(values: Mapping[str, Any], origin: str = "given") -> Recipe:
    """Return the recipe of plain values, every default filled in.

    A depth the gradient states itself (``bptt150``) becomes the depth of the run, so that training and evaluation
    look at the same state; otherwise the gradient relaxes for ``run.relaxation`` steps.

    Raises:
        UsageError: If a key is unknown (with the nearest known one) or a value impossible.
    """
    values = dict(values)
    if "gradient" in values:
        values["gradient"] = _gradient_table(values["gradient"])
        _one_depth(values, origin)
    try:
        recipe = Recipe(**values)
    except ValidationError as error:
        raise UsageError(f"the recipe {origin} {_explain(error)}") from None
    options = dict(recipe.gradient)
    name = options.pop("name", DEFAULT_GRADIENT)
    estimator = registry.build(name, options)
    if estimator.depth in options:
        run = recipe.run.model_copy(update={"relaxation": getattr(estimator.params, estimator.depth)})
    else:
        run = recipe.run
        estimator = registry.build(name, {**options, estimator.depth: run.relaxation})
    gradient = {key: value for key, value in estimator.to_plain().items() if value is not None}
    return recipe.model_copy(update={"block": _block(recipe.block, origin), "gradient": gradient, "run": run})


def _read(source: str | Path) -> tuple[str, str]:
    path = Path(source)
    if path.suffix != ".toml":
        if str(source) not in packaged():
            raise UsageError(
                f"there is no packaged recipe {str(source)!r}{nearest(str(source), packaged())}, "
                "or name a file that ends in .toml"
            )
        return (resources.files(RECIPES) / f"{source}.toml").read_text("utf-8"), repr(str(source))
    try:
        return path.read_bytes().decode("utf-8"), str(path)
    except OSError as error:
        raise DyneqError(f"the recipe {path} cannot be read ({error.strerror or error}); check the path") from None
    except UnicodeDecodeError:
        raise DyneqError(f"the recipe {path} should be UTF-8 text, but is not; name a TOML file") from None


def _assign(values: dict[str, Any], assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or (len(parts) != 2 and parts != ["gradient"]):
        raise UsageError(f"--set takes section.key=value, such as optimizer.lr=1e-3, but got {assignment!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    values["gradient"] = _gradient_table(value if parts == ["gradient"] else values.get("gradient", {}))
    section, name = (*parts, "name")[:2]
    if parts != ["gradient"]:
        table = values.setdefault(section, {})
        if not isinstance(table, dict):
            raise UsageError(f"--set {assignment} needs a table [{section}] in the recipe, but it holds {table!r}")
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


def _one_depth(values: Mapping[str, Any], origin: str) -> None:
    """Raise if the recipe states two different depths of the free relaxation."""
    gradient, run = values["gradient"], values.get("run", {})
    depth = registry.depth_option(gradient.get("name", DEFAULT_GRADIENT))
    if (
        depth in gradient
        and isinstance(run, dict)
        and str(run.get("relaxation", gradient[depth])) != str(gradient[depth])
    ):
        raise UsageError(
            f"the recipe {origin} relaxes for run.relaxation={run['relaxation']} steps but its gradient for "
            f"{depth}={gradient[depth]}; state one of the two, or the same number twice"
        )


def _gradient_table(value: object) -> dict[str, Any]:
    if isinstance(value, str):
        name, options = registry.split(value)
        value = {"name": name, **options}
    if not isinstance(value, dict):
        raise UsageError(f"the gradient of a recipe should be a spec or a table with a name, but is {value!r}")
    return registry.canonical(value.get("name", DEFAULT_GRADIENT), value)


def _block(values: dict[str, Any], origin: str) -> dict[str, Any]:
    kind = values.get("kind", "thick")
    config = block_of_kind(kind).Config
    fields = config.model_fields.keys() - {"vocabulary"}
    for key in values:
        if key not in fields:
            raise UsageError(f"the recipe {origin} has no setting 'block.{key}'{nearest(key, fields)}")
    try:
        return config(vocabulary=1, **values).model_dump(exclude={"vocabulary"})
    except ValidationError as error:
        raise UsageError(f"the recipe {origin} has an impossible block: {registry.describe(error)}") from None


def _explain(error: ValidationError) -> str:
    """Return the first thing a recipe got wrong, with the nearest known key if one is unknown."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        model: Any = Recipe
        for part in where[:-1]:
            model = model.model_fields[part].annotation
        return f"has no setting {'.'.join(where)!r}{nearest(where[-1], model.model_fields)}"
    if first["type"] == "missing":
        return f"lacks {'.'.join(where)!r}; add it, or start from one of {', '.join(packaged())}"
    message = first["msg"].removeprefix("Value error, ")
    return f"sets {'.'.join(where)!r} to {first['input']!r}, but: {message[:1].lower()}{message[1:]}"
