"""The shipped reference checkpoints show what their manifest says."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from dyneq.errors import DyneqError
from dyneq.systems.checkpoint_io import load_checkpoint
from dyneq.train import reference
from dyneq.train.census import long_run
from dyneq.train.data import load_corpus
from dyneq.train.recipe import Recipe, load_recipe

NAMES = [planned.name for planned in reference.PLAN]


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    return reference.manifest()


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_checkpoint_is_the_one_recorded(name: str, shipped: dict[str, Any]) -> None:
    entry, planned = shipped["checkpoints"][name], reference.PLAN[NAMES.index(name)]
    path = reference.folder() / entry["file"]
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    assert len(data) < 1_000_000
    checkpoint = load_checkpoint(path)
    assert checkpoint.training == {}
    assert {w.dtype for w in checkpoint.block.parameters()} == {torch.float32}
    assert checkpoint.evaluation.tokens.shape == (64, checkpoint.block.config.tokens)
    assert checkpoint.evaluation.sha256 == entry["evaluation_sha256"]
    assert (checkpoint.step, entry["recipe"]) == (planned.step, planned.recipe)
    recipe = load_recipe(planned.recipe)
    stored = checkpoint.recipe
    assert stored["block"] == recipe.block
    assert stored["gradient"] == recipe.gradient
    assert stored["data"] == recipe.to_plain()["data"]
    assert stored.keys() == recipe.to_plain().keys()


def test_the_four_share_their_evaluation_batch_and_it_is_held_out_text_of_this_python(shipped: dict[str, Any]) -> None:
    entries = shipped["checkpoints"].values()
    assert len({entry["evaluation_sha256"] for entry in entries}) == 1
    corpus = load_corpus("pydoc")
    (digest,) = {entry["corpus_sha256"] for entry in entries}
    if corpus.sha256 == digest:  # another Python has another language reference
        batch = corpus.evaluation_batch(64, 32, 0)
        assert batch.sha256 == next(iter(entries))["evaluation_sha256"]


def newton(force: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """Undamped Newton on the whole state, with the Jacobian torch differentiates itself."""
    for _ in range(30):
        jacobian = torch.func.jacrev(force)(z)
        step = torch.linalg.solve(jacobian, force(z))
        z = z - step
        if step.norm() <= 1e-12 * z.norm():
            return z, torch.func.jacrev(force)(z)
    raise AssertionError("Newton did not converge")


def test_the_recorded_crossing_is_there(shipped: dict[str, Any]) -> None:
    # the pair of `after` has crossed at its root, and the same token of the same sample is stable in `before`
    pairs = shipped["checkpoints"]["after"]["long_run"]["pairs"]
    crossed = max(pairs, key=lambda pair: pair["mu"][0])
    assert crossed["mu"][0] > 0
    assert crossed["mu"][1] > 0.5
    sample, token = crossed["sample"], crossed["token"]
    found = {}
    for name in ("before", "after"):
        checkpoint = load_checkpoint(reference.folder() / f"{name}.pt")
        block = checkpoint.block.double().requires_grad_(False)
        batch, channels = checkpoint.evaluation, checkpoint.recipe["block"]["channels"]
        one = slice(sample, sample + 1)
        system = block.bind(batch.tokens[one, : token + 1], batch.targets[one, : token + 1])
        z = system.initial_state()
        mean = torch.zeros_like(z)
        for step in range(2000):
            z = z + system.eps * system.force(z)
            mean += z * (step >= 1000) / 1000
        residual = float(system.force(z).norm() / z.norm())
        _, jacobian = newton(lambda y, of=system, like=z: of.force(y.view_as(like)).flatten(), mean.flatten())
        mu = torch.linalg.eigvals(jacobian[-channels:, -channels:])
        found[name] = residual, mu[mu.real.argmax()]
    assert found["before"][0] < 1e-6
    assert found["before"][1].real < 0
    assert found["after"][0] > 1e-3
    recorded = complex(*crossed["mu"])
    assert abs(complex(found["after"][1].real, found["after"][1].imag.abs()) - recorded) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_long_run_is_as_recorded(name: str, shipped: dict[str, Any]) -> None:
    entry = shipped["checkpoints"][name]
    found = long_run(load_checkpoint(reference.folder() / entry["file"]), reference.DEPTH)
    assert found["unsettled"] == entry["long_run"]["unsettled"]
    assert found["moving"] == entry["long_run"]["moving"]
    for pair, recorded in zip(found["pairs"], entry["long_run"]["pairs"], strict=True):
        assert (pair["sample"], pair["token"]) == (recorded["sample"], recorded["token"])
        # at a root known to 1e-11 a simple eigenvalue moves by its condition times as much
        assert abs(complex(*pair["mu"]) - complex(*recorded["mu"])) < 1e-6


def test_making_records_what_was_made_and_checking_finds_a_difference(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe(name: str, overrides: list[str]) -> Recipe:
        assert overrides == ["run.steps=3", "run.snapshots=[2, 3]"]
        return tiny(run={"steps": 3, "snapshots": [2, 3]})

    plan = (reference.Planned("a", "tiny", 2, "early"), reference.Planned("b", "tiny", 3, "late"))
    monkeypatch.setattr(reference, "PLAN", plan)
    monkeypatch.setattr(reference, "load_recipe", recipe)
    monkeypatch.setattr(reference, "DEPTH", 50)
    monkeypatch.setattr(reference, "folder", lambda: tmp_path / "shipped")
    threads = torch.get_num_threads()
    try:
        made = CliRunner().invoke(reference.main, ["--quiet"], catch_exceptions=False)
        again = CliRunner().invoke(reference.main, ["--quiet", "--check"], catch_exceptions=False)
        assert "all digests equal" in again.stdout
        recorded = reference.manifest()
        for name, step in (("a", 2), ("b", 3)):
            checkpoint = load_checkpoint(tmp_path / "shipped" / f"{name}.pt")
            assert (checkpoint.step, checkpoint.sha256) == (step, recorded["checkpoints"][name]["sha256"])
            assert recorded["checkpoints"][name]["long_run"]["samples"] == 8
        assert "a          step     2" in made.stdout
        damaged = json.dumps(recorded).replace(recorded["checkpoints"]["b"]["sha256"], "0" * 64)
        (tmp_path / "shipped" / "manifest.json").write_text(damaged)
        with pytest.raises(DyneqError, match="digests of b differ"):
            CliRunner().invoke(reference.main, ["--quiet", "--check"], catch_exceptions=False)
    finally:
        torch.set_num_threads(threads)
