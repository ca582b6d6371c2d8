"""Recipes: everything a training run depends on, read from TOML, inherited, and overridden by ``key.sub=value``."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from dyneq.errors import UsageError, nearest
from dyneq.gradients import registry
from dyneq.probes.penalties import registry as penalties
from dyneq.systems.checkpoint import block_of_kind
from dyneq.train.recipe_reading import DEFAULT_GRADIENT, VARIED, assign, gradient_table, inherited, packaged
from dyneq.train.sections import (
    DataSection,
    GuardSection,
    OptimizerSection,
    RunSection,
    Section,
    StabilitySection,
    SwitchSection,
)

#: What recipes have always stored; later settings are stored only where they differ from their default, so that the
#: checkpoints of older recipes keep their digests.
_STORED = {
    "data": {"corpus", "file", "validation", "evaluation_samples", "evaluation_seed"},
    "optimizer": {"name", "lr", "betas", "weight_decay", "clip", "warmup"},
    "run": {
        "steps",
        "batch",
        "seed",
        "relaxation",
        "evaluate_every",
        "save_every",
        "snapshots",
        "snapshot_every",
        "dtype",
    },
}


class Recipe(Section):
    """A whole training run; equal recipes on equal machines give equal weights.

    Attributes:
        block: Configuration of the block without its vocabulary, which the corpus gives.
        data: The text.
        gradient: The estimator as :meth:`Estimator.to_plain` gives it; its free relaxation has ``run.relaxation``
            steps.
        switch: Changes of the estimator, in the order they come.
        penalty: Options of every penalty by its name.
        optimizer: The optimiser.
        stability: Gate, fuse, caps and pre-warm.
        guard: What watches the run.
        run: Length, seed and what is kept.
    """

    block: dict[str, Any]
    data: DataSection = DataSection()
    gradient: dict[str, Any] = Field(default_factory=lambda: {"name": DEFAULT_GRADIENT})
    switch: tuple[SwitchSection, ...] = ()
    penalty: dict[str, dict[str, Any]] = Field(default_factory=dict)
    optimizer: OptimizerSection = OptimizerSection()
    stability: StabilitySection = StabilitySection()
    guard: GuardSection = GuardSection()
    run: RunSection = RunSection()

    def snapshot_due(self, step: int) -> bool:
        """Return whether a snapshot is kept after update number ``step``."""
        every = self.run.snapshot_every
        return step == self.run.steps or step in self.run.snapshots or (every is not None and step % every == 0)

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, the inverse of :func:`resolve`; late settings at their default are absent."""
        full: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        defaults = type(self)(block={}).model_dump(mode="json", exclude_none=True)
        plain = {}
        for section, value in full.items():
            if section in _STORED:
                kept = _STORED[section]
                # pickle writes a string again that is equal but not the same: interned, the bytes of a checkpoint
                # depend on what its recipe says and not on which strings happen to be one object
                stored = {sys.intern(k): v for k, v in value.items()}
                plain[section] = {k: v for k, v in stored.items() if k in kept or v != defaults[section].get(k)}
            elif section in ("block", "gradient") or value != defaults[section]:
                plain[section] = value
        return plain

    def to_toml(self) -> str:
        """Return the recipe as TOML with every default written out; reading it gives the same recipe."""
        return "\n".join(_tables(self.model_dump(exclude_none=True)))


_SECTIONS: dict[str, type[Section]] = {
    "data": DataSection,
    "switch": SwitchSection,
    "optimizer": OptimizerSection,
    "stability": StabilitySection,
    "guard": GuardSection,
    "run": RunSection,
}


def _tables(values: Mapping[str, Any]) -> list[str]:
    """Return TOML tables, two levels deep and arrays of them."""
    out = []
    for section, members in values.items():
        if isinstance(members, dict) and members and all(isinstance(v, dict) for v in members.values()):
            out += [_table(f"[{section}.{name}]", options) for name, options in members.items()]
        elif isinstance(members, dict):
            out.append(_table(f"[{section}]", members))
        else:
            for item in members:
                nested = {k: v for k, v in item.items() if isinstance(v, dict)}
                out.append(_table(f"[[{section}]]", {k: v for k, v in item.items() if k not in nested}))
                out += [_table(f"[{section}.{k}]", v) for k, v in nested.items()]
    return out


def _table(header: str, members: Mapping[str, Any]) -> str:
    return f"{header}\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in members.items())


def _toml(value: Any) -> str:
    # booleans, integers, floats, arrays and basic strings are written by JSON as TOML wants them, but for DEL
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


def load_recipe(
    source: str | Path | None = None, overrides: Iterable[str] = (), regularisers: Iterable[str] = ()
) -> Recipe:
    """Read a recipe with what it inherits, and apply overrides.

    A recipe that says ``inherits = "NAME"`` (a packaged one, or a TOML file beside it; or a list of them, of which
    later ones count more) changes only what it states; ``penalty.NAME = false`` drops an inherited penalty.

    Args:
        source: A TOML file, the name of a packaged recipe, or None for the packaged ``default``.
        overrides: Assignments ``section.key=value`` in TOML's notation, applied in order; ``gradient=SPEC`` too.
        regularisers: Penalties to add, such as ``floss`` or ``jacreg:0.1``; options the recipe has are kept.

    Raises:
        DyneqError: If the file cannot be read.
        UsageError: If there is no such recipe, it holds something unknown or impossible, or it describes several runs.
    """
    values, origin = inherited("default" if source is None else source, ())
    for key in VARIED:
        if key in values:
            raise UsageError(
                f"the recipe {origin} describes several runs (it has [{key}]), but one run was asked for; use "
                f"`dyneq compare {source}`, or a recipe without [{key}]"
            )
    for spec in regularisers:
        name, options = penalties.split(spec)
        table = _penalty_tables(values, origin).get(name)
        values["penalty"] = {**values.get("penalty", {}), name: {**(table or {}), **options}}
    for assignment in overrides:
        assign(values, assignment)
    return resolve(values, origin)


def resolve(values: Mapping[str, Any], origin: str = "given") -> Recipe:
    """Return the recipe of plain values, every default filled in.

    A depth the gradient states itself (``bptt150``) becomes the depth of the run, so that training and evaluation
    look at the same state; otherwise the gradient relaxes for ``run.relaxation`` steps.

    Raises:
        UsageError: If a key is unknown (with the nearest known one) or a value impossible.
    """
    values = dict(values)
    values["penalty"] = {
        name: penalties.build(name, options).to_plain()
        for name, options in _penalty_tables(values, origin).items()
        if options is not None
    }
    if "gradient" in values:
        values["gradient"] = gradient_table(values["gradient"])
        _one_depth(values, origin)
    if isinstance(values.get("switch"), dict):
        raise UsageError(f"the recipe {origin} has one table [switch], but there may be several; write [[switch]]")
    if isinstance(values.get("switch"), list):
        values["switch"] = [
            {**s, "gradient": gradient_table(s["gradient"])} if isinstance(s, dict) and "gradient" in s else s
            for s in values["switch"]
        ]
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
    update = {
        "block": _block(recipe.block, origin),
        "gradient": _at_depth(recipe.gradient, run.relaxation),
        "switch": tuple(
            s.model_copy(update={"gradient": _at_depth(s.gradient, run.relaxation)}) for s in recipe.switch
        ),
        "run": run,
    }
    return recipe.model_copy(update=update)


def _at_depth(table: Mapping[str, Any], relaxation: int) -> dict[str, Any]:
    """Return an estimator's plain form; one that states no depth of its own relaxes as the run does."""
    options = dict(table)
    name = options.pop("name", DEFAULT_GRADIENT)
    estimator = registry.build(name, {registry.depth_option(name): relaxation, **options})
    return {key: value for key, value in estimator.to_plain().items() if value is not None}


def _penalty_tables(values: Mapping[str, Any], origin: str) -> dict[str, dict[str, Any] | None]:
    """Return the options of every penalty, None for one that was dropped."""
    tables: dict[str, dict[str, Any] | None] = {}
    found = values.get("penalty", {})
    if not isinstance(found, dict):
        raise UsageError(
            f"the recipe {origin} should hold tables such as [penalty.floss], but its penalty is {found!r}"
        )
    for name, options in found.items():
        if options is False:
            tables[name] = None
        elif options is True:
            tables[name] = {}
        elif isinstance(options, dict):
            tables[name] = options
        elif isinstance(options, int | float):
            tables[name] = {"weight": options}
        else:
            raise UsageError(
                f"the recipe {origin} sets 'penalty.{name}' to {options!r}, but it takes a table of options, a weight, "
                "or false to drop an inherited one"
            )
    return tables


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
        known = {*Recipe.model_fields, "inherits", *VARIED} if len(where) == 1 else _SECTIONS[where[0]].model_fields
        return f"has no setting {'.'.join(where)!r}{nearest(where[-1], known)}"
    if first["type"] == "missing":
        return f"lacks {'.'.join(where)!r}; add it, or start from one of {', '.join(packaged())}"
    message = first["msg"].removeprefix("Value error, ")
    return f"sets {'.'.join(where)!r} to {first['input']!r}, but: {message[:1].lower()}{message[1:]}"
