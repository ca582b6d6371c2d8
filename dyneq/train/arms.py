"""Recipes that describe several runs: named arms, and grids of settings, expanded into one recipe a run."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dyneq.errors import UsageError
from dyneq.train.recipe import Recipe, resolve
from dyneq.train.recipe_reading import VARIED, assign, inherited, put

#: The setting that is an axis of its own in every comparison.
LR = "optimizer.lr"
SEED = "run.seed"

Scalar = str | int | float | bool


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        arm: Name of what is compared: the recipe's, its arm's, and what its grid varies beside the learning rate.
        recipe: The resolved recipe.
    """

    arm: str
    recipe: Recipe

    @property
    def lr(self) -> float:
        """The learning rate."""
        return self.recipe.optimizer.lr

    @property
    def seed(self) -> int:
        """The seed of weights and batches."""
        return self.recipe.run.seed

    @property
    def name(self) -> str:
        """Name of its run folder."""
        return f"{self.arm}-lr{self.lr:.12g}-seed{self.seed}"


@dataclass(frozen=True)
class Axes:
    """What every recipe of a comparison is varied over.

    Attributes:
        seeds: Seeds of weights and batches.
        lrs: Learning rates instead of those of the recipes; the recipes' own if empty.
        overrides: Assignments ``section.key=value`` for all runs.
    """

    seeds: Sequence[int]
    lrs: Sequence[float] = ()
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Variants:
    """A recipe's plain values and how they are varied.

    Attributes:
        origin: What to call it in messages.
        stem: Its name.
        values: Plain values, with what it inherits.
        arms: Settings of its arms by name.
        grid: Values of the settings its grid varies.
    """

    origin: str
    stem: str
    values: dict[str, Any]
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    grid: dict[str, list[Scalar]] = field(default_factory=dict)


def cells(sources: Iterable[str | Path], axes: Axes) -> list[Cell]:
    """Return every run of a comparison: arms, then learning rates, then seeds.

    A recipe may have a table ``[grid]`` of settings with lists of values, all combinations of which are arms, and
    tables ``[arms.NAME]`` of settings, each an arm with that name. Keys are those of ``--set``, quoted:
    ``"penalty.jacreg.ceiling" = [8, 16, 32]``. ``"optimizer.lr"`` in a grid gives learning rates, not arms.

    Args:
        sources: Recipes: names of packaged ones, or TOML files.
        axes: Seeds, learning rates and overrides.

    Raises:
        DyneqError: If a file cannot be read.
        UsageError: If a recipe cannot be resolved, a table is none, or two runs would have the same name.
    """
    for assignment in axes.overrides:
        if assignment.partition("=")[0].strip() == SEED:
            raise UsageError(f"--set {assignment} would give every run the same seed; use --seeds")
    found = [cell for source in sources for cell in _cells(read_variants(source), axes)]
    seen: set[str] = set()
    for cell in found:
        if cell.name in seen:
            raise UsageError(
                f"two runs would both be called {cell.name}; name each recipe, seed and learning rate once, and give "
                "recipe files different names"
            )
        seen.add(cell.name)
    return found


def read_variants(source: str | Path) -> Variants:
    """Read a recipe with what it inherits, arms and grid apart.

    Args:
        source: The name of a packaged recipe, or a TOML file.

    Raises:
        DyneqError: If a file cannot be read.
        UsageError: If there is no such recipe, it is no TOML, or arms or grid are none.
    """
    values, origin = inherited(source, ())
    tables = {key: values.pop(key, {}) for key in VARIED}
    for key, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(f"the recipe {origin} should have a table [{key}], but its {key} is {table!r}")
    arms = {name: settings for name, settings in tables["arms"].items() if settings is not False}
    for name, settings in arms.items():
        if not isinstance(settings, dict):
            raise UsageError(
                f"the recipe {origin} should have a table [arms.{name}] of settings, or false to drop an inherited "
                f"arm, but has {settings!r}"
            )
    grid = {key: choices for key, choices in tables["grid"].items() if choices is not False}
    for key, choices in grid.items():
        if not isinstance(choices, list) or not choices or not all(isinstance(c, Scalar) for c in choices):
            raise UsageError(
                f"the grid of the recipe {origin} should give a list of numbers, words, true or false for {key!r}, or "
                f"false to drop an inherited one, but gives {choices!r}; more than one setting at a time is for "
                "[arms.NAME]"
            )
        if key == SEED:
            raise UsageError(f"the grid of the recipe {origin} varies the seed; leave that to --seeds")
    return Variants(origin, Path(source).stem if str(source).endswith(".toml") else str(source), values, arms, grid)


def _cells(variants: Variants, axes: Axes) -> Iterator[Cell]:
    grid = dict(variants.grid)
    overridden = {assignment.partition("=")[0].strip() for assignment in axes.overrides}
    varied = {*grid, *(key for settings in variants.arms.values() for key in settings), *([LR] if axes.lrs else [])}
    for key in sorted(overridden & varied):
        raise UsageError(
            f"--set {key}=... would make runs of {variants.origin} equal that differ in {key}; leave one of the two out"
        )
    lrs: Sequence[Scalar] = [*axes.lrs] or grid.pop(LR, [])
    grid.pop(LR, None)
    labels = _labels(grid)
    for arm, settings in (variants.arms or {"": {}}).items():
        for choice in itertools.product(*grid.values()):
            chosen = dict(zip(grid, choice, strict=True))
            name = "-".join(
                [variants.stem, *([_word(arm)] if arm else []), *(_label(labels[k], chosen[k]) for k in grid)]
            )
            for lr in list[Scalar | None](lrs) or [None]:
                for seed in axes.seeds:
                    varied_settings = {**settings, **chosen, **({} if lr is None else {LR: lr}), SEED: seed}
                    yield Cell(name, _resolved(variants, varied_settings, axes.overrides))


def _resolved(variants: Variants, settings: Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    values = dict(variants.values)
    for key, value in settings.items():
        try:
            put(values, key, value)
        except UsageError as error:
            raise UsageError(f"the recipe {variants.origin} varies what it cannot: {error}") from None
    for assignment in overrides:
        assign(values, assignment)
    return resolve(values, variants.origin)


def _labels(grid: Mapping[str, Any]) -> dict[str, str]:
    """Return the shortest ends of the keys that tell them apart."""
    labels = {}
    for key in grid:
        parts = key.split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        labels[key] = next((e for e in ends if not any(k != key and f".{k}".endswith(f".{e}") for k in grid)), key)
    return labels


def _label(key: str, value: Scalar) -> str:
    if isinstance(value, bool):
        return _word(key if value else f"no-{key}")
    return _word(f"{key}{value:.12g}" if isinstance(value, int | float) else f"{key}-{value}")


def _word(text: str) -> str:
    """Return a text with ``_`` for what would not do in the name of a folder and of a run."""
    return re.sub(r"[^\w.+=-]", "_", text)
