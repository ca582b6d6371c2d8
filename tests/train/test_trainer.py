"""Updates, penalties, and what happens when numbers stop being finite."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from doubles import Poison, Refusal
from torch import Tensor

from dyneq.dynamics.relax import relax
from dyneq.errors import DyneqError
from dyneq.probes.penalties.base import Measured, Penalty, PenaltyParams
from dyneq.systems.checkpoint_io import load_checkpoint
from dyneq.systems.protocol import System
from dyneq.train.data import load_corpus
from dyneq.train.log import read_log
from dyneq.train.loop import Ending, Hooks, resume, start
from dyneq.train.recipe import Recipe
from dyneq.train.snapshots import Snapshot
from dyneq.train.trainer import Trainer

Tiny = Callable[..., Recipe]


def corpus_of(recipe: Recipe) -> object:
    return load_corpus(recipe.data.corpus, recipe.data.file, recipe.data.validation)


def trainer_of(recipe: Recipe, **options: object) -> Trainer:
    return Trainer(recipe, corpus_of(recipe), **options)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_updates_are_those_of_a_loop_written_out_with_autograd(tiny: Tiny, name: str, clip: float | None) -> None:
    optimizer = {"name": name, "weight_decay": 0.1, **({} if clip is None else {"clip": clip})}
    recipe = tiny("bptt5", optimizer=optimizer, run={"dtype": "float64"})
    trainer = trainer_of(recipe)
    block = trainer._new_block().double()
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    reference = kind(block.parameters(), lr=1.0, weight_decay=0.1)
    generator = torch.Generator().manual_seed(recipe.run.seed)
    for step in range(1, 6):
        tokens, targets = corpus_of(recipe).batch(3, 6, generator)
        system = block.bind(tokens, targets)
        z = system.initial_state()
        for _ in range(5):
            z = z + system.eps * system.force(z)
        loss = system.loss(z).mean()
        reference.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in block.parameters()])
        if clip is not None:
            for p in block.parameters():
                p.grad.mul_(min(1.0, clip / norm.item()))
        reference.param_groups[0]["lr"] = 1e-2 * min(1, step / 3)
        reference.step()
        record = trainer.update()
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-12)
        assert record["gradient_norm"] == pytest.approx(norm.item(), rel=1e-10)
    for found, expected in zip(trainer.block.parameters(), block.parameters(), strict=True):
        # Adam divides by the gradient's own size, which magnifies its rounding where a gradient is nearly zero
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_evaluation_is_the_loss_on_the_pinned_batch_at_the_depth_of_the_run(tiny: Tiny) -> None:
    trainer = trainer_of(tiny())
    metrics = trainer.evaluate()
    batch = trainer.evaluation
    with torch.no_grad():
        system = trainer.block.bind(batch.tokens, batch.targets)
        z = relax(system, 5).z
        logits = z @ trainer.block.head.weight.T
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        worst = max((f.norm() / s.norm()).item() for f, s in zip(system.force(z), z, strict=True))
    assert metrics["validation_loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert metrics["validation_force_residual_max"] == pytest.approx(worst, rel=1e-4)


class Ridge(Penalty):
    """|W_O|^2 / 2, whose gradient is W_O."""

    name, what, units, Params = "ridge", "size of W_O", "1", PenaltyParams

    def measure(self, system: System, z: Tensor, generator: torch.Generator) -> Measured:
        value = 0.5 * system.parameter_groups()["attn"]["attn.wo.weight"].square().sum()
        return Measured(value.expand(len(z)), value.detach().expand(len(z)), value.new_ones(()))


def test_a_penalty_adds_its_gradient_and_its_value(tiny: Tiny) -> None:
    recipe = tiny(run={"dtype": "float64"})
    bare, penalised = trainer_of(recipe), trainer_of(recipe, penalties=[Ridge()])
    w = bare.block.attn.wo.weight.detach().clone()
    received: dict[str, Tensor] = {}
    for which, trainer in (("bare", bare), ("penalised", penalised)):
        applied = trainer.stepper.optimizer.step

        def spy(which: str = which, trainer: Trainer = trainer, applied: Callable[[], None] = applied) -> None:
            received[which] = trainer.block.attn.wo.weight.grad.clone()
            applied()

        trainer.stepper.optimizer.step = spy
    plain, record = bare.update(), penalised.update()
    assert record["penalty_ridge"] == pytest.approx(0.5 * w.square().sum().item(), rel=1e-12)
    assert record["loss"] == plain["loss"]
    torch.testing.assert_close(received["penalised"] - received["bare"], w, rtol=1e-10, atol=1e-15)


def test_a_run_leaves_what_it_says(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny(run={"steps": 12, "snapshots": [0, 3], "snapshot_every": 5})
    told: list[Snapshot] = []
    outcome = start(recipe, tmp_path / "run", hooks=Hooks(sink=told.append))
    assert outcome.ending is Ending.COMPLETED
    assert [s.step for s in told] == [0, 3, 5, 10, 12]
    for snapshot in told:
        kept = load_checkpoint(snapshot.path)
        assert (kept.step, kept.sha256, kept.training) == (snapshot.step, snapshot.sha256, {})
        assert kept.metrics == snapshot.metrics
        assert kept.metrics.keys() >= {"validation_loss", "validation_force_residual_max"}
        assert kept.recipe["run"]["steps"] == 12
    assert outcome.snapshot == told[-1].path
    records = read_log(tmp_path / "run" / "log.jsonl")
    assert [r["step"] for r in records] == list(range(13))
    keys = {"loss", "force_residual", "force_residual_max", "gradient_norm", "lr", "adjoint_residual", "seconds"}
    assert all(keys <= r.keys() for r in records[1:])
    assert [r["step"] for r in records if "validation_loss" in r] == [3, 5, 10, 12]
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_an_update_that_is_not_finite_is_not_applied(tiny: Tiny, tmp_path: Path, value: float) -> None:
    # 1e30 is finite in float32, but Adam's second moment of it is not: it would freeze that weight for good
    floss = {"floss": {"samples": 1, "every": 1, "margin": 5.0, "rest": 0.0}}  # draws a sample in every update
    clean = start(tiny(run={"steps": 2}, penalty=floss), tmp_path / "clean")
    broken = start(tiny(penalty=floss), tmp_path / "broken", hooks=Hooks(penalties=[Poison(3, value=value)]))
    assert broken.ending is Ending.NON_FINITE
    assert broken.step == 2
    what = "has a square that is not finite" if math.isfinite(value) else "is not finite"
    assert f"the gradient {what} at update 3" in broken.sentence
    kept, expected = load_checkpoint(broken.snapshot), load_checkpoint(clean.snapshot)
    assert all(torch.equal(kept.block.state_dict()[n], w) for n, w in expected.block.state_dict().items())
    last = json.loads((tmp_path / "broken" / "log.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["status"]) == (3, "non-finite")
    # what was kept continues as if the update had never been tried
    rest = resume(tmp_path / "broken")
    whole = start(tiny(penalty=floss), tmp_path / "whole")
    assert rest.ending is Ending.COMPLETED
    assert rest.snapshot.name == whole.snapshot.name
    a, b = (load_checkpoint(o.snapshot).block.state_dict() for o in (rest, whole))
    assert all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_clipped_to_its_norm_a_huge_gradient_does_no_harm(tiny: Tiny, tmp_path: Path, clip: float | None) -> None:
    recipe = tiny(run={"steps": 6}, optimizer={"clip": clip})
    outcome = start(recipe, tmp_path / "run", hooks=Hooks(penalties=[Poison(3, value=1e30)]))
    assert outcome.ending is (Ending.NON_FINITE if clip is None else Ending.COMPLETED)
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["optimizer"]["state"]
    assert all(moments["exp_avg_sq"].isfinite().all() for moments in state.values())


def test_what_cannot_be_computed_ends_a_run_with_the_weights_before_it(tiny: Tiny, tmp_path: Path) -> None:
    outcome = start(tiny(), tmp_path / "run", hooks=Hooks(penalties=[Refusal(3)]))
    assert (outcome.ending, outcome.step) == (Ending.NON_FINITE, 2)
    assert "update 3 cannot be computed (the products are not finite; try less): the weights after" in outcome.sentence
    assert load_checkpoint(tmp_path / "run" / "last.pt").step == 2
    with pytest.raises(DyneqError, match=r"^the products are not finite; try less$"):  # at once: a setting
        start(tiny(), tmp_path / "other", hooks=Hooks(penalties=[Refusal(1)]))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_learning_rate_that_no_weight_survives_is_refused_at_once(tiny: Tiny, tmp_path: Path, dtype: str) -> None:
    recipe = tiny(optimizer={"lr": 1e30, "warmup": 0}, run={"dtype": dtype})
    outcome = start(recipe, tmp_path / "run")
    assert (outcome.ending, outcome.step) == (Ending.NON_FINITE, 0)
    assert "a weight is 1.0e+30, from " in outcome.sentence
    assert "at update 1" in outcome.sentence
    assert "lower optimizer.lr" in outcome.sentence
    largest = max(float(w.abs().max()) for w in load_checkpoint(outcome.snapshot).block.state_dict().values())
    assert largest < 10


def test_weights_that_overflow_are_taken_back(tiny: Tiny, tmp_path: Path) -> None:
    # decoupled decay multiplies the weights by 1 - 3e38, which takes an embedding above 3.4e38 in size
    optimizer = {"name": "adamw", "lr": 3e36, "weight_decay": 100.0, "warmup": 0}
    outcome = start(tiny(optimizer=optimizer), tmp_path / "run")
    assert outcome.ending is Ending.NON_FINITE
    assert "a weight is not finite at update 1" in outcome.sentence
    for file in (outcome.snapshot, tmp_path / "run" / "last.pt"):
        assert load_checkpoint(file).step == outcome.step  # refuses non-finite weights
    assert resume(tmp_path / "run").sentence == outcome.sentence


def test_only_a_block_that_relaxes_has_a_deep_evaluation(tiny: Tiny) -> None:
    names = {"validation_unsettled", "validation_deep_residual", "validation_multiplier"}
    for kind, expected in (("thick", names), ("bp", set())):
        recipe = tiny("bptt1", block={"kind": kind}, run={"deep": 20})
        found = trainer_of(recipe).evaluate()
        assert names & found.keys() == expected
