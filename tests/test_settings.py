"""The word none: what a setting that may be None says where there is no null."""

from typing import Any

import pytest
from pydantic import Field, ValidationError

from dyneq.settings import Settings
from dyneq.train.recipe import load_recipe


class Example(Settings):
    bound: float | None = Field(0.1, gt=0)
    free: int | None = None
    number: int = 3
    name: str = "a"


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ({}, {"bound": 0.1, "number": 3, "name": "a"}),
        ({"bound": None, "free": None}, {"bound": "none", "number": 3, "name": "a"}),
        ({"bound": "none", "free": "None", "name": "none"}, {"bound": "none", "number": 3, "name": "none"}),
        ({"bound": 2, "free": 4}, {"bound": 2.0, "free": 4, "number": 3, "name": "a"}),
    ],
)
def test_what_is_written_reads_back_as_itself(given: dict[str, Any], written: dict[str, Any]) -> None:
    model = Example(**given)
    assert model.model_dump(exclude_none=True) == written
    assert Example(**written) == model
    assert Example(**model.model_dump()) == model


def test_none_is_no_value_of_what_cannot_be_none() -> None:
    with pytest.raises(ValidationError, match="valid integer"):
        Example(number="none")


def test_a_recipe_can_switch_off_what_is_on_by_default(tmp_path: Any) -> None:
    recipe = load_recipe(None, ["stability.fuse=none", "optimizer.clip=none"], ["floss:samples=none"])
    assert recipe.stability.fuse is None
    assert recipe.penalty["floss"]["samples"] == "none"
    (tmp_path / "r.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert load_recipe(tmp_path / "r.toml") == recipe
