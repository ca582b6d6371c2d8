"""Recipes, overrides and what is wrong with them."""

import sys
from pathlib import Path

import pytest

from dyneq.errors import DyneqError, UsageError
from dyneq.train.arms import Axes, cells
from dyneq.train.recipe import load_recipe, packaged


@pytest.mark.parametrize("name", packaged())
def test_a_resolved_recipe_reads_back_as_itself(name: str, tmp_path: Path) -> None:
    overrides = ['data.file="odd \\" name \\u007f é.txt"', "optimizer.clip=0.5", "run.snapshots=[1, 5]"]
    for cell in cells([name], Axes(seeds=[0], overrides=overrides)):
        (tmp_path / "recipe.toml").write_text(cell.recipe.to_toml(), encoding="utf-8")
        assert load_recipe(tmp_path / "recipe.toml") == cell.recipe


def test_overrides_apply_in_order_and_words_are_strings() -> None:
    recipe = load_recipe(None, ["optimizer.lr=1e-2", "optimizer.lr=1e-4", "optimizer.name=adamw", "run.seed=7"])
    assert (recipe.optimizer.lr, recipe.optimizer.name, recipe.run.seed) == (1e-4, "adamw", 7)


@pytest.mark.parametrize(
    ("overrides", "gradient_depth", "run_depth"),
    [
        ([], 60, 60),
        (["run.relaxation=80"], 80, 80),
        (["gradient=adjoint:relaxation=70"], 70, 70),
        (["gradient=adjoint:relaxation=70", "run.relaxation=80"], 80, 80),
        (["run.relaxation=80", "gradient.relaxation=70"], 70, 70),
        (["run.relaxation=80", "gradient.steps=5"], 80, 80),
        (["run.relaxation=80", "gradient.t1=70"], 70, 70),
        (["gradient.relaxation=80", "gradient.t1=70"], 70, 70),
        (["gradient=adjoint:t1=70", "gradient.relaxation=80"], 80, 80),
        (["gradient=adjoint:t1=70", "run.relaxation=80"], 80, 80),
    ],
)
def test_there_is_one_depth_and_the_later_statement_of_it_wins(
    overrides: list[str], gradient_depth: int, run_depth: int
) -> None:
    recipe = load_recipe(None, overrides)
    assert (recipe.gradient["relaxation"], recipe.run.relaxation) == (gradient_depth, run_depth)


def test_the_shorthand_of_bptt_sets_the_depth() -> None:
    recipe = load_recipe(None, ["gradient=bptt150"])
    assert recipe.gradient == {"name": "bptt", "steps": 150}
    assert recipe.run.relaxation == 150
    assert load_recipe(None, ["gradient=bptt"]).gradient["steps"] == 60


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("block.chanels=3", "no setting 'block.chanels'; did you mean 'channels'"),
        ("block.vocabulary=3", "no setting 'block.vocabulary'"),
        ("run.stepss=3", "no setting 'run.stepss'; did you mean 'steps'"),
        ("optimzer.lr=3", "no setting 'optimzer'; did you mean 'optimizer'"),
        ("optimizer.lr=-1", "'optimizer.lr' to -1, but: input should be greater than 0"),
        ("optimizer.betas=[0.9, 1.0]", r"should lie in \[0, 1\)"),
        ("run.snapshots=[3, 301]", r"should lie in 0..300, the run's steps, but 301"),
        ("optimizer.name=sgd", "'adam' or 'adamw'"),
        ("block.heads=3", "channels=64 is not a multiple of heads=3"),
        ("gradient=btpt30", "did you mean 'bptt'"),
        ("gradient.stps=3", "no option 'stps'; did you mean 'steps'"),
        ("gradient=3", "a spec or a table"),
        ("lr", "section.key=value"),
        ("lr=3", "section.key=value"),
        ("run.seed.x=3", "section.key=value"),
    ],
)
def test_what_is_wrong_is_named(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_recipe(None, [override])


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    for text, kind, message in (
        ("[block]\nchannels = \n", UsageError, "should be TOML"),
        ("[run]\nsteps = 3\n", UsageError, "lacks 'block'"),
        ("gradient = 'bptt20'\n[block]\nchannels=8\nheads=2\ntokens=4\n[run]\nrelaxation=30\n", UsageError, "one of"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(kind, match=message):
            load_recipe(path)
    with pytest.raises(DyneqError, match="cannot be read"):
        load_recipe(tmp_path / "missing.toml")
    with pytest.raises(UsageError, match="did you mean 'default'"):
        load_recipe("defualt")


def test_warm_up_is_linear() -> None:
    optimizer = load_recipe(None, ["optimizer.lr=1.0", "optimizer.warmup=4"]).optimizer
    assert [optimizer.lr_at(step, 300) for step in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert load_recipe(None, ["optimizer.lr=1.0", "optimizer.warmup=0"]).optimizer.lr_at(1, 300) == 1.0


@pytest.mark.parametrize("name", ["default", "reference", "reference-bptt"])
def test_the_names_of_settings_are_one_object_each_so_that_checkpoints_are_equal_byte_for_byte(name: str) -> None:
    found = load_recipe(name).to_plain()
    for section in ("data", "optimizer", "run"):
        assert all(sys.intern(str(key)) is key for key in found[section])
