"""Stabilisers and switches: gate, fuse, weight caps, pre-warm, clipping, and changes of the gradient."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import StopAt
from run_contents import contents
from torch import Tensor

from dyneq.dynamics.relax import relax
from dyneq.errors import UsageError
from dyneq.gradients import registry
from dyneq.gradients.base import Grouped
from dyneq.probes.contraction import flow_rate
from dyneq.probes.penalties import registry as penalties
from dyneq.probes.penalties.base import Measured, Penalty, PenaltyParams
from dyneq.systems.checkpoint_io import load_checkpoint
from dyneq.systems.protocol import System
from dyneq.train.data import corpus_of
from dyneq.train.log import read_log
from dyneq.train.loop import Ending, Hooks, resume, start
from dyneq.train.recipe import Recipe, load_recipe
from dyneq.train.sections import StabilitySection
from dyneq.train.stability import Fuse
from dyneq.train.terms import worst
from dyneq.train.trainer import Trainer

Tiny = Callable[..., Recipe]
DOUBLE = {"dtype": "float64"}


def trainer_of(recipe: Recipe, **options: Any) -> Trainer:
    return Trainer(recipe, corpus_of(recipe.data), **options)


def received(trainer: Trainer) -> dict[str, Tensor]:
    """Apply an update and return the gradients the optimiser was given, by the names of the parameters."""
    found: dict[str, Tensor] = {}
    applied = trainer.stepper.optimizer.step

    def spy() -> None:
        found.update({name: p.grad.clone() for name, p in trainer.parameters.items() if p.grad is not None})
        applied()

    trainer.stepper.optimizer.step = spy  # type: ignore[method-assign]
    trainer.update()
    trainer.stepper.optimizer.step = applied  # type: ignore[method-assign]
    return found


def next_system(trainer: Trainer) -> Any:
    """The system of the update to come, bound to weights of its own."""
    generator = torch.Generator()
    generator.set_state(trainer.generator.get_state())
    tokens, targets = trainer.corpus.batch(trainer.recipe.run.batch, trainer.recipe.block["tokens"], generator)
    twin = trainer._new_block().to(trainer.dtype)
    twin.load_state_dict(trainer.block.state_dict())
    return twin, twin.bind(tokens, targets)


def flat(grouped: Grouped) -> dict[str, Tensor]:
    return {name: value for members in grouped.values() for name, value in members.items()}


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.parameters.items()}


class Ridge(Penalty):
    """|W_O|^2 / 2, whose gradient is W_O."""

    name, what, units, Params = "ridge", "size of W_O", "1", PenaltyParams

    def measure(self, system: System, z: Tensor, generator: torch.Generator) -> Measured:
        value = 0.5 * system.parameter_groups()["attn"]["attn.wo.weight"].square().sum()
        return Measured(value.expand(len(z)), value.detach().expand(len(z)), value.new_ones(()))


# the gate


def test_a_gate_skips_the_nudge_and_no_penalty(tiny: Tiny) -> None:
    trainer = trainer_of(tiny(run=DOUBLE, stability={"gate": 1e-12}), penalties=[Ridge()])
    block, system = next_system(trainer)
    z = relax(system, 5).z
    logits = z @ block.head.weight.T
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), system.targets.flatten())
    (expected,) = torch.autograd.grad(loss, block.head.weight)
    w = block.attn.wo.weight.detach()
    found = received(trainer)
    torch.testing.assert_close(found.pop("head.weight"), expected, rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(found.pop("attn.wo.weight"), w, rtol=1e-12, atol=0)
    assert all(not value.any() for value in found.values())


def test_the_log_says_what_the_gate_skipped(tiny: Tiny, tmp_path: Path) -> None:
    shut, open_, none = (
        tiny(stability={} if gate is None else {"gate": gate}, run={"steps": 3}) for gate in (1e-12, 1e6, None)
    )
    for name, recipe in (("shut", shut), ("open", open_), ("none", none)):
        start(recipe, tmp_path / name)
    logs = {name: read_log(tmp_path / name / "log.jsonl")[1:] for name in ("shut", "open", "none")}
    assert [r["nudge_skipped"] for r in logs["shut"]] == [1, 1, 1]
    assert all(r["adjoint_norm"] == "nan" for r in logs["shut"])  # there was none
    assert [r["nudge_skipped"] for r in logs["open"]] == [0, 0, 0]
    assert not any("nudge_skipped" in r for r in logs["none"])
    a, b = (load_checkpoint(tmp_path / name / "step-000003.pt").block.state_dict() for name in ("open", "none"))
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_a_gate_reads_the_step_residual_of_the_batch(tiny: Tiny) -> None:
    trainer = trainer_of(tiny(run=DOUBLE, stability={"gate": 1.0}))
    _, system = next_system(trainer)
    residual = 0.1 * float(relax(system, 5).residuals.force.median())
    for gate, skipped in ((residual * (1 + 1e-9), False), (residual * (1 - 1e-9), True)):
        trainer.task._gate = gate
        assert trainer.task.gradient(system)[1] is skipped


def test_a_gradient_without_a_free_phase_has_no_gate(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match="'bptt' has none"):
        trainer_of(tiny("bptt5", stability={"gate": 0.1}))


# the fuse


def test_the_fuse_counts_updates_in_a_row() -> None:
    fuse = Fuse(StabilitySection(fuse=0.1, fuse_after=3))
    counts = []
    for force in (2.0, 2.0, 0.5, 1.0, 1.5, math.nan, math.inf):  # 1.0 is a step residual of 0.1 at eps 0.1: not above
        fuse.observe({"force_residual_t1": force, "force_residual": 0.0})
        counts.append(fuse.count)
    assert counts == [1, 2, 0, 0, 1, 2, 3]
    assert fuse.sentence(7) is not None
    off = Fuse(StabilitySection.model_validate({"fuse": None}))
    off.observe({"force_residual": math.inf})
    assert off.count == 0


def test_a_blown_fuse_ends_the_run_and_keeps_its_weights(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny(stability={"fuse": 1e-9, "fuse_after": 6})
    outcome = start(recipe, tmp_path / "run")
    assert (outcome.ending, outcome.step) == (Ending.FUSE, 6)
    assert "the fuse blew after update 6: in 6 updates in a row" in outcome.sentence
    last = read_log(tmp_path / "run" / "log.jsonl")[-1]
    assert (last["step"], last["status"], last["message"]) == (6, "fuse", outcome.sentence)
    trainer = trainer_of(recipe)
    for _ in range(6):
        trainer.update()
    kept = load_checkpoint(outcome.snapshot).block.state_dict()
    assert all(torch.equal(kept[n], w) for n, w in weights(trainer).items())
    before = contents(tmp_path / "run")
    again = resume(tmp_path / "run")  # it stays lost
    assert (again.ending, again.step, again.sentence) == (Ending.FUSE, 6, outcome.sentence)
    assert contents(tmp_path / "run") == before


# weight caps


def test_weights_are_capped_in_size_and_keep_their_direction(tiny: Tiny) -> None:
    cap = 0.2
    free, capped = (trainer_of(tiny(run=DOUBLE, stability=s)) for s in ({}, {"weight_cap": cap}))
    free.update()
    capped.update()
    large = 0
    for group, members in capped.block.parameter_groups().items():
        for name, w in members.items():
            moved = free.parameters[name].detach()
            if group not in ("attn", "ffn") or w.ndim != 2:
                assert torch.equal(w, moved)
                continue
            # the root mean square of the singular values, the smaller side of them
            size = float(torch.linalg.svdvals(moved).square().mean().sqrt())
            assert float(torch.linalg.svdvals(w.detach()).square().mean().sqrt()) <= cap * (1 + 1e-12)
            torch.testing.assert_close(w.detach(), moved * min(1.0, cap / size), rtol=1e-12, atol=1e-16)
            large += size > cap
    assert large >= 3
    for _ in range(10):
        capped.update()
    sizes = [
        float(torch.linalg.svdvals(w.detach()).square().mean().sqrt())
        for group in ("attn", "ffn")
        for w in capped.block.parameter_groups()[group].values()
        if w.ndim == 2
    ]
    assert max(sizes) <= cap * (1 + 1e-12)


# the pre-warm


@pytest.mark.parametrize("optimizer", [{}, {"name": "adamw", "weight_decay": 0.1}])
def test_a_prewarm_changes_nothing_that_contracts_already(tiny: Tiny, optimizer: dict[str, Any]) -> None:
    stability = {"prewarm": 3, "prewarm_margin": -1e3}
    trainer = trainer_of(tiny(run=DOUBLE, stability=stability, optimizer=optimizer))
    before = weights(trainer)
    for _ in range(3):
        record = trainer.update()
        assert record["penalty_prewarm"] == 0.0
        assert record["gradient_norm"] == 0.0
    assert all(torch.equal(p, before[n]) for n, p in trainer.parameters.items())
    # then training begins as it would have begun at once, on the batches that follow
    later = trainer.update()
    assert "penalty_prewarm" not in later
    assert later["lr"] == trainer.recipe.optimizer.lr_at(1, 17)
    assert not any(torch.equal(p, before[n]) for n, p in trainer.parameters.items() if n != "pos.weight")


def test_a_prewarm_is_a_hinge_on_the_contraction_rate_and_lowers_it(tiny: Tiny) -> None:
    margin, q = 5.0, 12
    recipe = tiny(
        "adjoint:steps=4",
        run={**DOUBLE, "relaxation": 3, "steps": 40},
        block={"resinit": 1.0},
        stability={"prewarm": 30, "prewarm_margin": margin, "prewarm_lr": 1e-2},
    )
    trainer = trainer_of(recipe)
    block, system = next_system(trainer)
    z = relax(system, 3).z
    assert float(relax(system, 3).residuals.force.min()) > 1e-2  # far from rest, so that each sample counts in full
    state, sizes = z, []
    for n in range(q + 1):
        moved = system.eps * system.force(state)
        if n in (0, q):
            sizes.append(moved.flatten(1).norm(dim=1))
        state = state + moved
    rate = (sizes[1] / sizes[0]).log() / (q * system.eps)
    value = (rate + margin).clamp(min=0).mean()
    value.backward()
    expected = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in block.named_parameters()}
    found = received(trainer)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-12)
    assert not found["head.weight"].any()  # the task takes no part
    while trainer.step < 30:
        trainer.update()
    batch = trainer.evaluation
    rates = []
    for model in (trainer._new_block().double(), trainer.block):
        with torch.no_grad():
            bound = model.bind(batch.tokens, batch.targets)
            rates.append(float(flow_rate(bound, relax(bound, 3).z, q).mean()))
    assert rates[1] < rates[0] - 0.1


def test_the_end_of_a_prewarm_without_a_gradient_is_no_spike(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny(
        run={"steps": 8},
        stability={"prewarm": 6, "prewarm_margin": -1e3},
        guard={"enabled": True, "samples": 2, "depth": 10, "every": 10},
    )
    outcome = start(recipe, tmp_path / "run")
    assert (outcome.ending, outcome.guard) == (Ending.COMPLETED, "the guard had nothing to do")


def test_the_moments_of_the_prewarm_are_forgotten(tiny: Tiny) -> None:
    stability = {"prewarm": 2, "prewarm_margin": 5.0}
    recipe = tiny("adjoint:steps=4", run={**DOUBLE, "relaxation": 3}, block={"resinit": 1.0}, stability=stability)
    trainer = trainer_of(recipe)
    for _ in range(2):
        trainer.update()
    before = weights(trainer)
    found = received(trainer)
    lr = recipe.optimizer.lr_at(1, 18)
    for name, g in found.items():  # Adam's very first step
        torch.testing.assert_close(
            trainer.parameters[name].detach(), before[name] - lr * g / (g.abs() + 1e-8), rtol=1e-9, atol=1e-12
        )


# clipping


@pytest.mark.parametrize("clip", [1e-2, 1e6])
def test_the_whole_gradient_is_clipped_to_its_norm(tiny: Tiny, clip: float) -> None:
    raw = received(trainer_of(tiny(run=DOUBLE), penalties=[Ridge()]))
    norm = float(torch.cat([g.flatten() for g in raw.values()]).norm())
    clipped = received(trainer_of(tiny(run=DOUBLE, optimizer={"clip": clip}), penalties=[Ridge()]))
    assert clip < norm or clip == 1e6
    for name, g in raw.items():  # penalties included
        torch.testing.assert_close(clipped[name], g * min(1.0, clip / norm), rtol=1e-12, atol=1e-300)


# switches

BY_STEP = {"gradient": {"name": "bptt", "steps": 5}, "at": 4}
BY_RESIDUAL = {"gradient": {"name": "bptt", "steps": 5}, "metric": "force_residual_t1", "above": 0.0, "patience": 3}


@pytest.mark.parametrize(
    ("switch", "why"),
    [(BY_STEP, "as the recipe says"), (BY_RESIDUAL, "force_residual_t1 was above 0 in 3 updates in a row")],
)
def test_the_gradient_changes_when_the_recipe_says(
    tiny: Tiny, tmp_path: Path, switch: dict[str, Any], why: str
) -> None:
    recipe = tiny(run={**DOUBLE, "steps": 6}, switch=[switch])
    trainer, plain = trainer_of(recipe), trainer_of(tiny(run=DOUBLE))
    for step in range(1, 4):
        assert trainer.task.estimator.name == "adjoint"
        record, other = trainer.update(), plain.update()
        assert {k: v for k, v in record.items() if k not in ("seconds", "switch")} == {
            k: v for k, v in other.items() if k != "seconds"
        }
        assert ("switch" in record) == (step == 3)
    assert "from update 4 the gradient is bptt instead of adjoint" in record["switch"]
    assert why in record["switch"]
    _, system = next_system(trainer)
    expected = flat(registry.parse("bptt5").gradient(system).parameters)
    for name, g in received(trainer).items():
        torch.testing.assert_close(g, expected[name], rtol=1e-12, atol=1e-300)


def test_a_condition_has_to_hold_in_a_row(tiny: Tiny) -> None:
    trainer = trainer_of(tiny(switch=[{**BY_RESIDUAL, "above": 1.0, "patience": 2}]))
    told = [
        trainer.task.observe({"step": step, "force_residual_t1": residual})
        for step, residual in enumerate((2.0, 0.5, 2.0, math.nan, 2.0, 3.0, 3.0), start=1)
    ]
    assert [t is not None for t in told] == [False] * 5 + [True, False]
    assert trainer.task.estimator.name == "bptt"


def test_switches_follow_one_another(tiny: Tiny) -> None:
    first = {"gradient": {"name": "aep", "t2": 3}, "at": 1}
    below = {"gradient": {"name": "track", "t2": 3}, "metric": "loss", "below": 1e9}
    trainer = trainer_of(tiny(switch=[first, below, {**BY_STEP, "at": 2}, {**BY_STEP, "at": 3}]))
    assert trainer.task.estimator.name == "aep"
    assert "is track instead of aep: loss was below 1e+09 in 1 updates in a row" in trainer.update()["switch"]
    # two that are due at once are one change
    assert "from update 3 the gradient is bptt instead of track" in trainer.update()["switch"]
    assert trainer.task.state() == {"switches": 4, "seen": 0}


def test_a_switch_that_waits_for_what_is_not_measured_is_an_error(tiny: Tiny) -> None:
    trainer = trainer_of(tiny(switch=[{**BY_RESIDUAL, "metric": "entropy"}]))
    words = r"waits for 'entropy', which update 1 did not measure.*it has loss, gradient_norm, force_residual"
    with pytest.raises(UsageError, match=words):
        trainer.update()


def test_two_penalties_of_one_name_are_refused(tiny: Tiny) -> None:
    recipe = tiny(penalty={"floss": {}})
    with pytest.raises(UsageError, match=r"a name of its own, but they are floss, floss"):
        Trainer(recipe, corpus_of(recipe.data), penalties=[penalties.parse("floss:weight=2")])


def test_the_worst_measure_leaves_out_samples_without_one() -> None:
    assert worst(torch.tensor([math.nan, -1.0, -2.0])) == -1
    assert worst(torch.tensor([math.nan, math.inf])) == math.inf
    assert bool(worst(torch.tensor([math.nan, math.nan])).isnan())


@pytest.mark.parametrize("switch", [BY_STEP, {**BY_RESIDUAL, "patience": 6}])
def test_a_run_resumed_around_a_switch_ends_with_the_same_bits(
    tiny: Tiny, tmp_path: Path, switch: dict[str, Any]
) -> None:
    recipe = tiny(run={"steps": 9, "save_every": 2}, switch=[switch])
    whole = StopAt(0)
    start(recipe, tmp_path / "whole", hooks=Hooks(progress=whole))
    assert len(whole.sentences) == 1  # said, not only logged
    with pytest.raises(KeyboardInterrupt):
        start(recipe, tmp_path / "stopped", hooks=Hooks(progress=StopAt(3)))
    for step in (4, 5, 7, 8):
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "stopped", hooks=Hooks(progress=StopAt(step)))
    assert resume(tmp_path / "stopped").ending is Ending.COMPLETED
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_warm_track_begins_with_aep_and_goes_on_with_tracking(text_file: Path, tmp_path: Path) -> None:
    sets = ["block.channels=8", "block.heads=2", "block.tokens=6", "run.steps=4", "run.batch=3", "run.relaxation=6"]
    sets += [f'data.file="{text_file}"', "data.evaluation_samples=8", "gradient.t2=4"]
    recipe = load_recipe("warm-track", sets)
    assert recipe.gradient["name"] == "aep"
    (switch,) = recipe.switch
    assert (switch.gradient["name"], switch.at) == ("track", 351)
    assert switch.gradient["t1"] == 6  # the depth of the run, as the first phase has it
    soon = recipe.model_copy(update={"switch": (switch.model_copy(update={"at": 3}),)})
    start(soon, tmp_path / "run")
    records = read_log(tmp_path / "run" / "log.jsonl")
    assert [r["step"] for r in records if "switch" in r] == [2]
    assert "from update 3 the gradient is track instead of aep" in records[2]["switch"]
    trainer = trainer_of(soon)
    for step in range(1, 4):
        _, system = next_system(trainer)
        estimator = registry.build(*_spec(recipe.gradient if step < 3 else switch.gradient))
        expected = flat(estimator.gradient(system).parameters)
        for name, g in received(trainer).items():
            assert torch.equal(g, expected[name])


def _spec(table: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return table["name"], {key: value for key, value in table.items() if key != "name"}


def test_a_skipped_nudge_leaves_the_marks_of_its_free_phase(tiny: Tiny) -> None:
    trainer = trainer_of(tiny(run=DOUBLE, stability={"gate": 1e-12}))
    _, system = next_system(trainer)
    gradient, skipped = trainer.task.gradient(system)
    whole = registry.parse("adjoint:steps=4,relaxation=5").gradient(system)
    assert skipped
    assert torch.equal(gradient.loss, whole.loss)
    assert torch.equal(gradient.diagnostics["force_residual"], whole.diagnostics["force_residual"])
    assert gradient.marks.keys() <= whole.marks.keys()
