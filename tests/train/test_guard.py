"""The guard: what it foresees, what it does and in which order, and that nothing of it is lost at a kill."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doubles import Notes, Poison, Refusal, StopAt
from run_contents import contents, killed_and_whole, plain
from torch import Tensor

from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.relax import relax
from dyneq.errors import UsageError
from dyneq.probes.leading import leading_modes, leading_radii
from dyneq.probes.penalties.base import Measured, Penalty, PenaltyParams
from dyneq.systems.protocol import System
from dyneq.train import guard as guarding
from dyneq.train.data import corpus_of
from dyneq.train.guard_levers import Levers
from dyneq.train.guard_look import Look, take_look
from dyneq.train.guard_pulse import Pulse
from dyneq.train.guard_rules import blown_up, judge
from dyneq.train.log import Record, read_log
from dyneq.train.loop import Ending, Hooks, resume, start
from dyneq.train.moving import is_moving
from dyneq.train.recipe import Recipe
from dyneq.train.sections import GuardSection
from dyneq.train.trainer import Trainer

Tiny = Callable[..., Recipe]
#: A run of a few updates that is looked at in every one.
CLOSE = {"enabled": True, "every": 1, "depth": 20, "samples": 2, "horizon": 3, "recover": 2}
#: One that breaks: a learning rate that a block of 8 channels does not survive.
WILD: dict[str, Any] = {
    "optimizer": {"lr": 0.1},
    "block": {"resinit": 0.3},
    "guard": {"enabled": True, "every": 4, "depth": 60, "samples": 4, "recover": 8, "horizon": 8, "blow_up": 0.3},
}


def trainer_of(recipe: Recipe, **options: Any) -> Trainer:
    return Trainer(recipe, corpus_of(recipe.data), **options)


def seen(modulus: float, residual: float = 1e-6, restless: int = 0, t1: float = 1e-4) -> dict[str, float]:
    return {"modulus": modulus, "residual": residual, "restless": restless, "t1": t1}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[dict[str, float]]], None]:
    """Lets the guard see what a test wants it to see, look by look; the last one from then on."""

    def script(looks: list[dict[str, float]]) -> None:
        coming: Iterator[dict[str, float]] = iter(looks)
        last = looks[-1]

        def take(system: System, depth: int, generator: torch.Generator, at: int, t1: float) -> Look:
            told = next(coming, last)
            return Look(at=at, samples=2, depth=depth, **told)  # type: ignore[arg-type]

        monkeypatch.setattr(guarding, "take_look", take)

    return script


Altered = Callable[[Callable[[Record], None]], None]


@pytest.fixture
def altered(monkeypatch: pytest.MonkeyPatch) -> Altered:
    """Lets every update tell the guard something else than it measured."""

    def alter(change: Callable[[Record], None]) -> None:
        updated = Trainer.update

        def update(self: Trainer) -> Record:
            record = updated(self)
            change(record)
            return record

        monkeypatch.setattr(Trainer, "update", update)

    return alter


def acts(folder: Path) -> dict[int, str]:
    return {record["step"]: record["act"] for record in read_log(folder / "log.jsonl") if "act" in record}


# what it sees


def test_a_look_is_what_the_linearisation_says(tiny: Tiny) -> None:
    trainer = trainer_of(tiny(run={"dtype": "float64"}, block={"resinit": 1.0}))
    batch = trainer.evaluation.first(3)
    with torch.no_grad():
        system = trainer.block.bind(batch.tokens, batch.targets)
        z = system.initial_state()
        for _ in range(40):
            z = z + system.eps * system.force(z)
        force = system.force(z)
    look = take_look(system, 40, torch.Generator(), 7, 0.5)
    jacobian = Linearization(system, z).whole.to_dense()
    # the spectrum of the whole sample is that of its token blocks; a few digits are lost to its condition
    largest = np.abs(1 + system.eps * np.linalg.eigvals(jacobian.numpy())).max()
    assert look.modulus == pytest.approx(largest, rel=1e-6)
    worst = max(float(f.norm() / s.norm()) for f, s in zip(force, z, strict=True))
    assert look.residual == pytest.approx(worst, rel=1e-10)
    assert (look.at, look.t1, look.depth, look.samples) == (7, 0.5, 40, 3)


def test_radii_are_those_of_the_leading_modes(tiny: Tiny) -> None:
    trainer = trainer_of(tiny(run={"dtype": "float64"}))
    with torch.no_grad():
        system = trainer.block.bind(trainer.evaluation.tokens, trainer.evaluation.targets)
        z = relax(system, 200).z
    modes = leading_modes(system, z, torch.Generator())
    np.testing.assert_allclose(leading_radii(system, z, torch.Generator()), np.abs(modes.multiplier), rtol=1e-12)


class Turning(System):
    """u' = (a + i w) u around z = (3, 0), bounded by -|u|^2 u or not at all: a fixed point, a cycle, or neither."""

    name, eps = "turning", 0.1

    def __init__(self, growth: list[float], bounded: bool, w: float = 2.0) -> None:
        self.growth, self.bounded, self.w = torch.tensor(growth, dtype=torch.float64), bounded, w

    def initial_state(self) -> Tensor:
        return torch.tensor([[3.5, 0.0]], dtype=torch.float64).repeat(len(self.growth), 1)

    def force(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        u = z - torch.tensor([3.0, 0.0], dtype=z.dtype)
        rate = self.growth[:, None] - (u.square().sum(1, keepdim=True) if self.bounded else 0.0)
        return rate * u + self.w * torch.stack([-u[:, 1], u[:, 0]], dim=1)

    def loss(self, z: Tensor) -> Tensor:
        return z.square().sum(1)


def test_a_decaying_turn_settles_and_a_cycle_does_not() -> None:
    look = take_look(Turning([-1.0, 1.0], bounded=True), 400, torch.Generator())
    assert (look.restless, look.stable) == (1, False)
    fast = take_look(Turning([-1.0], bounded=False), 400, torch.Generator())
    assert fast.stable
    assert fast.loss == pytest.approx(9.0, rel=1e-4)  # at the root, (3, 0)
    assert fast.depth < 400  # it is at rest before
    # barely below 1: neither at rest after 400 steps, nor does its turning hide that it falls
    slow = take_look(Turning([-0.22], bounded=False), 400, torch.Generator())
    assert slow.modulus == pytest.approx(abs(1 + 0.1 * complex(-0.22, 2.0)), rel=1e-12)
    assert slow.residual > 1e-2
    assert slow.stable
    past = take_look(Turning([-0.18], bounded=False), 400, torch.Generator())
    assert past.modulus > 1
    assert past.restless == 1


def test_a_state_that_overflows_is_seen_as_such() -> None:
    look = take_look(Turning([40.0, -1.0], bounded=False), 1000, torch.Generator())
    assert (look.restless, look.residual) == (1, math.inf)
    assert look.modulus == pytest.approx(abs(1 + 0.1 * complex(-1.0, 2.0)), rel=1e-12)
    gone = take_look(Turning([40.0], bounded=False), 1000, torch.Generator())
    assert math.isnan(gone.modulus)
    assert not gone.stable
    assert math.isinf(look.loss)


# what it makes of it


def looks(values: list[float], name: str) -> list[Look]:
    steady = {"modulus": 0.9, "residual": 1e-6, "restless": 0, "t1": 1e-4}
    return [Look(at=25 * n, samples=4, depth=400, **{**steady, name: v}) for n, v in enumerate(values)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "values", "mood", "told"),
    [
        # by their lines: 0.01 in 25 updates, a factor of 2 in 25, a factor of 4 in 25
        ("modulus", [0.95, 0.96, 0.97, 0.98], "warning", "leading multiplier will be at 1 by its trend in 50 updates"),
        ("modulus", [0.94, 0.95, 0.96, 0.97], "calm", ""),  # 75 updates are beyond the horizon of 50
        ("modulus", [0.55, 0.7, 0.85, 0.94], "calm", ""),  # growth of the first updates
        ("modulus", [0.96, 0.99, 0.97, 0.98], "calm", ""),  # undetermined
        ("modulus", [0.99, 0.98, 0.97, 0.96], "calm", ""),
        ("modulus", [0.9, 0.9, 0.9, 1.0], "warning", "leading multiplier 1.0000"),
        ("modulus", [0.9, 0.9, 0.9, math.nan], "warning", "leading multiplier nan"),
        (
            "t1",
            [5e-3, 1e-2, 2e-2, 4e-2],
            "warning",
            "worst force residual in training will be at 0.1 by its trend in 33",
        ),
        ("t1", [1e-5, 1e-4, 1e-3, 9e-3], "calm", ""),  # 27 updates, and a long way below
        ("t1", [0.2, 0.21, 0.22, 0.23], "warning", "worst force residual in training is above 0.1 and rises"),
        ("t1", [0.2, 0.3, 0.2, 0.3], "calm", ""),  # late all the time, but steady
        ("t1", [3e-2, 2e-2, 3e-2, 0.12], "warning", "worst force residual in training jumped from 3.0e-02 to 1.2e-01"),
        ("residual", [1e-4, 4e-4, 1.6e-3, 6.4e-3], "warning", "after the deep relaxation will be at 0.01 by its trend"),
        ("restless", [0, 0, 0, 1], "warning", "1 of 4 samples do not settle"),
        ("restless", [0, 0, 0, 2], "warning", "2 of 4 samples do not settle"),  # neither crossed nor grown
    ],
)
def test_what_it_makes_of_a_trend(name: str, values: list[float], mood: str, told: str) -> None:
    seen_ = looks(values, name)
    verdict = judge(GuardSection(), seen_, seen_[0])
    assert verdict.mood == mood
    assert told in verdict.why
    assert (verdict.why == "") == (mood == "calm")


def test_what_it_calls_broken() -> None:
    stable = looks([0.9], "modulus")
    for lost, mood in (({"restless": 2, "modulus": 1.1}, "broken"), ({"restless": 2, "residual": 0.1}, "broken")):
        now = dataclasses.replace(stable[0], at=25, **lost)  # type: ignore[arg-type]
        assert judge(GuardSection(), [now], stable[0]).mood == mood
        assert judge(GuardSection(), [now], None).mood == "warning"  # nothing to go back to
    one = dataclasses.replace(stable[0], at=25, restless=1, modulus=1.1, residual=0.1)
    assert judge(GuardSection(), [one], stable[0]).mood == "warning"
    for loss, blown in ((2.4, False), (2.5, False), (2.6, True), (math.nan, True)):
        told = blown_up(GuardSection(blow_up=0.5), {"validation loss": (loss, 2.0)}, "")
        assert bool(told) is blown
        assert judge(GuardSection(), stable, stable[0], told).mood == ("broken" if blown else "calm")


def test_the_pulse_of_a_run() -> None:
    pulse = Pulse(8)
    for n in range(8):
        pulse.add({"loss": 2.0 + n, "gradient_norm": 1.0 + n, "force_residual_t1_max": 0.1 * (n % 2), "step": n})
        assert not pulse.jumped
        assert not pulse.spike
    assert pulse.loss == 7.0  # of the last five
    assert pulse.take_residual() == pytest.approx(0.05)
    assert pulse.take_residual() is None
    twin = Pulse(8)
    twin.restore(pulse.state())
    for p in (pulse, twin):
        p.add({"loss": 0.0, "gradient_norm": 134.0, "force_residual_max": 0.31, "step": 8})
        assert p.jumped
        assert not p.spike  # 134 is less than 30 times 4.5
        p.add({"loss": 0.0, "gradient_norm": 1e6, "force_residual_max": 0.31, "step": 9})
        assert "the norm of the gradient was 1.0e+06, 181818 times what it was before" in p.spike
        assert not p.jumped
    assert twin.state() == pulse.state()
    pulse.clear()
    assert pulse.loss is None
    for norm in (0.0,) * 5 + (0.4,):  # over a gradient of exactly 0, as a pre-warm may have, there is no ratio
        pulse.add({"loss": 2.0, "gradient_norm": norm, "force_residual_max": 0.1})
    assert not pulse.spike


# what it does


class Nothing(Penalty):
    """A penalty that adds nothing, whose weight can be raised."""

    name, what, units, Params = "nothing", "nothing", "1", PenaltyParams

    def measure(self, system: System, z: Tensor, generator: torch.Generator) -> Measured:
        return Measured(z.new_zeros(len(z)), z.new_zeros(len(z)), z.new_ones(()))


def test_a_foreseen_crossing_raises_penalties_first_and_lowers_the_rate_when_it_is_near(
    tiny: Tiny, tmp_path: Path, scripted: Callable[..., None]
) -> None:
    # 0.006 an update: at 1 in 5 updates after look 4, in 3 after 6 (act), in 1 after 8 (both), there after look 9
    scripted([seen(0.946 + 0.006 * n) for n in range(12)])
    recipe = tiny(run={"steps": 14}, guard={**CLOSE, "horizon": 3, "recover": 100})
    start(recipe, tmp_path / "run", hooks=Hooks(penalties=[Nothing()]))
    done = acts(tmp_path / "run")
    assert "raises the penalties' weights to 2 times" in done[6]
    assert "learning rate" not in done[6]
    assert "will be at 1 by its trend in 3 updates (between 3 and 3)" in done[6]
    assert "leading multiplier 0.9820" in done[6]
    assert 7 not in done  # an act is given two looks to show, unless the crossing is near
    assert "raises the penalties' weights to 4 times" in done[8]
    assert "lowers the learning rate to 0.5" in done[8]
    records = {r["step"]: r for r in read_log(tmp_path / "run" / "log.jsonl")}
    assert records[3]["guard_forecast"] == pytest.approx((1 - 0.964) / 0.006, rel=1e-6)
    assert records[2]["guard_forecast"] == "undetermined"
    assert [records[n]["guard_boost"] for n in (5, 6, 8)] == [1.0, 2.0, 4.0]
    assert records[9]["lr"] == pytest.approx(0.5 * records[8]["lr"], rel=1e-12)
    assert records[9]["penalty_nothing_weight"] == 4.0
    # all bounds are reached, which is said once
    assert sum("nothing left to do" in act for act in done.values()) == 1
    assert records[14]["guard_lr_share"] == pytest.approx(0.05)
    assert records[14]["guard_boost"] == 16.0


def test_calm_takes_the_acts_back_one_by_one(tiny: Tiny, tmp_path: Path, scripted: Callable[..., None]) -> None:
    scripted([seen(0.9), seen(1.01), seen(1.02), seen(0.94)])
    outcome = start(tiny(run={"steps": 12}, guard=CLOSE), tmp_path / "run")
    records = read_log(tmp_path / "run" / "log.jsonl")
    shares = {r["step"]: r["guard_lr_share"] for r in records if "guard_lr_share" in r}
    # from update 3 on every other look is left out, but the last
    assert shares == {0: 1, 1: 0.5, 2: 0.25, 3: 0.25, 5: 0.5, 7: 1, 9: 1, 11: 1, 12: 1}
    done = acts(tmp_path / "run")
    assert sorted(done) == [1, 2, 5, 7]
    assert "raises the learning rate again, to 0.5 of the recipe's, because 3 updates were calm" in done[5]
    assert outcome.guard == "the guard lowered the learning rate 2 times, took an act back 2 times"


def test_nothing_is_taken_back_near_the_crossing(tiny: Tiny, tmp_path: Path, scripted: Callable[..., None]) -> None:
    scripted([seen(0.9), seen(1.01), seen(1.02), seen(0.96)])  # calm, and nothing is foreseen
    start(tiny(run={"steps": 12}, guard=CLOSE), tmp_path / "run")
    assert sorted(acts(tmp_path / "run")) == [1, 2]
    assert read_log(tmp_path / "run" / "log.jsonl")[-1]["guard_lr_share"] == 0.25


def test_a_run_without_a_penalty_gets_the_reserve_for_good(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(system: System, depth: int, generator: torch.Generator, at: int, t1: float) -> Look:
        return Look(at=at, samples=2, depth=depth, **seen(1.01 if at in (2, 8) else 0.96))  # type: ignore[arg-type]

    monkeypatch.setattr(guarding, "take_look", take)
    reserve = "floss:margin=5,rest=0,every=1"
    recipe = tiny(run={"steps": 10, "save_every": 1}, guard={**CLOSE, "every": 2, "reserve": reserve})
    outcome = start(recipe, tmp_path / "run")
    done = acts(tmp_path / "run")
    assert f"adds the penalty {reserve} and lowers the learning rate to 0.5" in done[2]
    assert "raises the penalties' weights to 2 times" in done[8]  # there is one now
    records = read_log(tmp_path / "run" / "log.jsonl")
    assert ["penalty_floss" in r for r in records[1:]] == [False] * 2 + [True] * 8
    assert outcome.guard is not None
    assert "added its penalty 1 time" in outcome.guard
    for stop in (2, 3, 9):  # it is there after a resume, and not before it was called
        stopped = tmp_path / f"stopped-{stop}"
        with pytest.raises(KeyboardInterrupt):
            start(recipe, stopped, hooks=Hooks(progress=StopAt(stop)))
        resume(stopped)
        assert contents(stopped) == contents(tmp_path / "run")


def test_a_rollback_adds_the_reserve_and_leaves_it(tiny: Tiny, tmp_path: Path, scripted: Callable[..., None]) -> None:
    scripted([seen(0.9), seen(0.9), seen(1.05, 0.1, 2), seen(0.9)])
    recipe = tiny(run={"steps": 5}, guard={**CLOSE, "reserve": "floss"})
    start(recipe, tmp_path / "run")
    done = acts(tmp_path / "run")
    assert "lowers the learning rate to 0.5 of the recipe's and adds the penalty floss" in done[2]
    assert "penalty_floss_weight" in read_log(tmp_path / "run" / "log.jsonl")[3]


def test_a_rollback_forgets_what_the_reserve_has_seen_since(
    tiny: Tiny, tmp_path: Path, scripted: Callable[..., None]
) -> None:
    scripted([seen(0.96), seen(0.96), seen(1.01), seen(1.01), seen(1.01), seen(1.05, 0.1, 2), seen(0.96)])
    reserve = "jacreg:controller=residual,weight=1,target=1e-9"  # a controller that rises in every update
    recipe = tiny(run={"steps": 5, "save_every": 1}, guard={**CLOSE, "reserve": reserve})
    start(recipe, tmp_path / "run")
    assert min(acts(tmp_path / "run")) == 2
    records = read_log(tmp_path / "run" / "log.jsonl")
    assert records[5]["rolled_back_to"] == 1
    assert "adds" not in records[5]["act"]  # it is there already, and stays through the rollback
    assert records[5]["penalty_jacreg_controller"] > 1.0
    kept = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["training"]["terms"]
    assert kept["reserve"] == reserve
    assert kept["penalties"]["jacreg"]["weight"] == 1.0


def test_the_reserve_is_not_added_to_a_penalty_of_its_name(
    tiny: Tiny, tmp_path: Path, scripted: Callable[..., None]
) -> None:
    scripted([seen(0.96), seen(0.96), seen(1.01), seen(0.96)])
    recipe = tiny(run={"steps": 4}, penalty={"floss": {"until": 1}}, guard={**CLOSE, "reserve": "floss"})
    assert start(recipe, tmp_path / "run").ending is Ending.COMPLETED
    assert "lowers the learning rate" in acts(tmp_path / "run")[2]
    assert "adds" not in acts(tmp_path / "run")[2]


@pytest.mark.parametrize(
    ("reserve", "words"),
    [("flos", "did you mean 'floss'"), ("floss:until=9", "leave them out"), ("floss:ramp=9", "out")],
)
def test_a_reserve_that_cannot_be_added_is_refused_before_anything_is_made(
    tiny: Tiny, tmp_path: Path, reserve: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        start(tiny(guard={**CLOSE, "reserve": reserve}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_taken_back_stands_where_it_stood(tiny: Tiny) -> None:
    trainer = trainer_of(tiny(penalty={"floss": {"until": 10}}))
    assert not Levers(GuardSection(reserve="jacreg")).call(trainer)  # it has a penalty of its own
    levers = Levers(GuardSection(lower=0.5, smallest=0.3, boost=4.0, largest=6.0))
    for act in (levers.slow_down, levers.strengthen, levers.slow_down, levers.strengthen):
        assert act(trainer)
    assert (trainer.lr_share, trainer.terms.boost) == (0.3, 6.0)
    assert not levers.slow_down(trainer)
    assert not levers.strengthen(trainer)
    copy = Levers(levers.section)
    copy.restore(json.loads(json.dumps(levers.state())))
    stood = []
    while copy.undoable:
        copy.take_back(trainer)
        stood.append((trainer.lr_share, trainer.terms.boost))
    assert stood == [(0.3, 4.0), (0.5, 4.0), (0.5, 1.0), (1.0, 1.0)]
    trainer.step = 10  # floss was applied for the last time
    assert not levers.strengthen(trainer)
    trainer.step = 9
    assert levers.strengthen(trainer)


@pytest.mark.parametrize(
    ("look", "why"),
    [
        (seen(1.05, 0.1, 2), "no longer settles: leading multiplier 1.0500"),
        (seen(0.97, 0.1, 1), "no longer settles: leading multiplier 0.9700"),  # it circles, widely
    ],
)
def test_a_broken_run_goes_back_to_the_bits_of_the_stable_look(
    tiny: Tiny, tmp_path: Path, scripted: Callable[..., None], look: dict[str, float], why: str
) -> None:
    scripted([seen(0.9), seen(0.9), seen(0.9), look, seen(0.9)])
    recipe = tiny(run={"steps": 3, "save_every": 3}, guard=CLOSE, penalty={"jacreg": {"controller": "residual"}})
    outcome = start(recipe, tmp_path / "run")
    done = acts(tmp_path / "run")
    assert list(done) == [3]
    assert "rolls back from update 3 to the stable weights of update 2" in done[3]
    assert "(rollback 1 of 8)" in done[3]
    assert read_log(tmp_path / "run" / "log.jsonl")[3]["rolled_back_to"] == 2
    assert why in done[3]
    assert "at the last stable look the multiplier was 0.9000" in done[3]
    # by hand: what there was after two updates
    twin = trainer_of(recipe)
    for _ in range(2):
        twin.update()
    kept = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    expected = twin.checkpoint(with_state=True)
    assert plain(kept["model"]) == plain(dict(expected.block.state_dict()))
    assert plain(kept["optimizer"]["state"]) == plain(expected.training["optimizer"]["state"])
    assert plain(kept["training"]["terms"]["penalties"]) == plain(expected.training["training"]["terms"]["penalties"])
    # time goes on: other batches come, more slowly, and what was kept is measured anew
    twin.update()
    assert plain(kept["rng"]) == plain(twin.checkpoint(with_state=True).training["rng"])
    assert kept["step"] == outcome.step == 3
    assert kept["training"]["lr_share"] == 0.5
    fresh = trainer_of(recipe)
    fresh.restore(*_state(tmp_path / "run" / "last.pt"))
    assert outcome.metrics == fresh.evaluate()
    records = read_log(tmp_path / "run" / "log.jsonl")
    assert [r["step"] for r in records] == [0, 1, 2, 3]
    assert records[3]["validation_loss"] == outcome.metrics["validation_loss"]


def _state(path: Path) -> Any:
    from dyneq.train.snapshots import read_state

    return read_state(path)


@pytest.mark.parametrize(
    ("penalty", "why"),
    [
        (Poison(4), "the gradient is not finite at update 4"),
        (Refusal(4), "update 4 cannot be computed (the products are not finite; try less)"),
    ],
)
def test_an_update_that_is_not_finite_leads_back_instead_of_to_the_end(
    tiny: Tiny, tmp_path: Path, penalty: Poison, why: str
) -> None:
    recipe = tiny(run={"steps": 8}, guard={**CLOSE, "every": 2, "depth": 100})
    outcome = start(recipe, tmp_path / "run", hooks=Hooks(penalties=[penalty]))
    assert outcome.ending is Ending.COMPLETED
    assert outcome.step == 8
    records = read_log(tmp_path / "run" / "log.jsonl")
    assert [r["step"] for r in records] == list(range(9))
    assert (records[4]["status"], records[4]["guard_lr_share"]) == ("non-finite", 0.5)
    assert "to the stable weights of update 2" in records[4]["act"]
    assert why in records[4]["act"]
    assert records[4]["rolled_back_to"] == 2
    # the batch of update 4 is spent, as it is in a run without poison
    twin = trainer_of(recipe)
    for _ in range(8):
        twin.update()
    kept = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert torch.equal(kept["rng"]["batches"], twin.generator.get_state())


@pytest.mark.parametrize("every", [1, 5])
def test_weights_that_settle_and_compute_nonsense_are_kept_as_no_stable_ones(
    tiny: Tiny, tmp_path: Path, every: int
) -> None:
    recipe = tiny(
        run={"steps": 20},
        optimizer={"lr": 50.0, "warmup": 0, "clip": 1.0},
        guard={**CLOSE, "every": every, "depth": 100, "rollbacks": 30, "smallest": 1e-6},
    )
    outcome = start(recipe, tmp_path / "run")
    records = read_log(tmp_path / "run" / "log.jsonl")
    first = records[0]["guard_loss"]
    assert any(float(r["loss"]) > first + 100 for r in records if "loss" in r)  # it went astray
    assert any("rolled_back_to" in r for r in records)
    kept = [r["guard_stable_step"] for r in records if "guard_stable_step" in r]
    assert [f.name for f in (tmp_path / "run").glob("stable-*.pt")] == [f"stable-{kept[-1]:06d}.pt"]
    assert len(set(kept)) < len(kept)  # a look whose loss was astray is none to go back to
    for file in (tmp_path / "run").glob("stable-*.pt"):
        fresh = trainer_of(recipe)
        fresh.restore(*_state(file))
        assert fresh.evaluate()["validation_loss"] <= first + 0.5
    assert outcome.metrics["validation_loss"] <= first + 0.5


def test_without_a_stable_look_an_update_that_is_not_finite_ends_the_run(
    tiny: Tiny, tmp_path: Path, scripted: Callable[..., None]
) -> None:
    scripted([seen(1.1)])
    outcome = start(tiny(guard=CLOSE), tmp_path / "run", hooks=Hooks(penalties=[Poison(3)]))
    assert (outcome.ending, outcome.step) == (Ending.NON_FINITE, 2)


@pytest.mark.parametrize("poisoned", [False, True])
def test_the_limit_of_rollbacks_ends_the_run_and_says_why(
    tiny: Tiny, tmp_path: Path, scripted: Callable[..., None], poisoned: bool
) -> None:
    scripted([seen(0.9)] if poisoned else [seen(0.9), seen(1.2, 0.5, 2)])
    penalties = [Poison(*range(2, 20))] if poisoned else []  # what breaks in the first update ends the run at once
    outcome = start(tiny(guard={**CLOSE, "rollbacks": 2}), tmp_path / "run", hooks=Hooks(penalties=penalties))
    assert outcome.ending is Ending.GUARD
    assert "gives the run up after 2 rollbacks" in outcome.sentence
    assert f"the last stable snapshot is that of update {int(poisoned)}" in outcome.sentence
    assert ("not finite" if poisoned else "no longer settles") in outcome.sentence
    last = read_log(tmp_path / "run" / "log.jsonl")[-1]
    assert (last["step"], last["status"], last["message"]) == (4 if poisoned else 3, "guard", outcome.sentence)
    assert outcome.step == 3
    assert outcome.snapshot.exists()
    assert (tmp_path / "run" / f"stable-{int(poisoned):06d}.pt").exists()
    again = resume(tmp_path / "run", hooks=Hooks(penalties=penalties))  # nothing is trained any more
    assert (again.ending, again.step, again.sentence) == (Ending.GUARD, outcome.step, outcome.sentence)


def test_a_validation_loss_that_blows_up_is_a_broken_run(
    tiny: Tiny, tmp_path: Path, scripted: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted([seen(0.9)])
    measured = Trainer.evaluate
    losses = {2: 2.0, 4: 2.4, 6: 2.6, 8: math.nan}

    def evaluate(self: Trainer) -> dict[str, Any]:
        told = measured(self)
        if self.step in losses:
            told["validation_loss"] = losses.pop(self.step)
        return told

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    recipe = tiny(run={"steps": 9, "evaluate_every": 2}, guard={**CLOSE, "every": 3})
    start(recipe, tmp_path / "run")
    done = acts(tmp_path / "run")
    assert list(done) == [6, 8]
    assert "to the stable weights of update 3" in done[6]
    assert "the validation loss is 2.600, more than 0.5 above its best, 2.000" in done[6]
    assert "the validation loss is nan" in done[8]
    records = {r["step"]: r for r in read_log(tmp_path / "run" / "log.jsonl")}
    assert records[6]["undone_validation_loss"] == 2.6  # beside that of the weights it went back to
    assert records[6]["validation_loss"] != 2.6
    assert not any(name.startswith("undone_") for n in (2, 4) for name in records[n])


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_spike_of_the_gradient_is_undone_unless_gradients_are_clipped(
    tiny: Tiny, tmp_path: Path, scripted: Callable[..., None], altered: Altered, clip: float | None
) -> None:
    scripted([seen(0.9)])

    def change(record: Record) -> None:
        if record["step"] == 8:
            record["gradient_norm"] *= 1e6

    altered(change)
    optimizer = {} if clip is None else {"clip": clip}
    start(tiny(run={"steps": 9}, guard={**CLOSE, "every": 50}, optimizer=optimizer), tmp_path / "run")
    done, records = acts(tmp_path / "run"), read_log(tmp_path / "run" / "log.jsonl")
    assert "guard_modulus" in records[8]  # looked into either way
    assert list(done) == ([8] if clip is None else [])
    if clip is None:
        assert "to the stable weights of update 0" in done[8]
        assert "the norm of the gradient was" in done[8]


def test_a_training_loss_that_blows_up_is_a_broken_run(
    tiny: Tiny, tmp_path: Path, scripted: Callable[..., None], altered: Altered
) -> None:
    scripted([seen(0.9)])

    def change(record: Record) -> None:
        record["loss"] = 2.0 if record["step"] < 8 else 2.6

    altered(change)
    start(tiny(run={"steps": 11}, guard={**CLOSE, "every": 50}), tmp_path / "run")
    done = acts(tmp_path / "run")
    assert list(done) == [10]  # three of five
    assert "the training loss is 2.600, more than 0.5 above its best, 2.000" in done[10]


def test_weights_about_to_be_lost_are_no_place_to_go_back_to(
    tiny: Tiny, tmp_path: Path, scripted: Callable[..., None]
) -> None:
    # at 1 by its line in one update after the fifth look: stable, but not kept
    scripted([seen(m) for m in (0.952, 0.964, 0.976, 0.9849, 0.99)] + [seen(1.2, 0.5, 2), seen(0.9)])
    start(tiny(run={"steps": 6}, guard={**CLOSE, "horizon": 2}), tmp_path / "run")
    done = acts(tmp_path / "run")
    assert "lowers the learning rate" in done[4]
    assert "rolls back from update 5 to the stable weights of update 3" in done[5]


def test_a_residual_that_jumps_is_looked_at_at_once(
    tiny: Tiny, tmp_path: Path, scripted: Callable[..., None], altered: Altered
) -> None:
    scripted([seen(0.9)])

    def change(record: Record) -> None:
        record["force_residual_max"] = 4e-3 if record["step"] == 8 else 1e-3

    altered(change)
    start(tiny("bptt5", run={"steps": 12}, guard={**CLOSE, "every": 50}), tmp_path / "run")
    looks = [r["step"] for r in read_log(tmp_path / "run" / "log.jsonl") if "guard_modulus" in r]
    assert looks == [0, 8, 12]  # the jump and the last update


def test_every_other_look_is_left_out_in_safety(tiny: Tiny, tmp_path: Path, scripted: Callable[..., None]) -> None:
    scripted([seen(0.8)] * 6 + [seen(0.97)])
    start(tiny(run={"steps": 12}, guard=CLOSE), tmp_path / "run")
    looks = [r["step"] for r in read_log(tmp_path / "run" / "log.jsonl") if "guard_modulus" in r]
    assert looks == [0, 1, 2, 3, 5, 7, 9, 10, 11, 12]


# what is kept


@pytest.mark.parametrize(("dtype", "seed"), [("float32", 0), pytest.param("float64", 1, marks=pytest.mark.slow)])
def test_a_guarded_run_killed_at_random_moments_ends_with_the_same_bits(
    tiny: Tiny, tmp_path: Path, dtype: str, seed: int
) -> None:
    run = {"steps": 45, "save_every": 3, "snapshot_every": 11, "dtype": dtype, "relaxation": 12}
    killed, whole, _ = killed_and_whole(tiny("adjoint:steps=4", run=run, **WILD), tmp_path, seed)
    found, expected = contents(killed), contents(whole)
    assert found == expected
    assert sum("rolls back" in act for act in acts(whole).values()) >= 2
    assert sum(name.startswith("stable-") for name in found) == 1


def test_a_resume_from_before_the_last_stable_look_finds_its_own(tiny: Tiny, tmp_path: Path) -> None:
    run = {"steps": 24, "save_every": 7, "relaxation": 12}
    recipe = tiny("adjoint:steps=4", run=run, **WILD)
    start(recipe, tmp_path / "whole")
    rolled = next(step for step, act in acts(tmp_path / "whole").items() if "rolls back" in act)
    with pytest.raises(KeyboardInterrupt):
        start(recipe, tmp_path / "stopped", hooks=Hooks(progress=StopAt(7)))
    assert rolled > 7
    for step in sorted({9, rolled - 1, rolled, rolled + 1, 20, 23}):
        with pytest.raises(KeyboardInterrupt):
            resume(tmp_path / "stopped", hooks=Hooks(progress=StopAt(step)))
    assert resume(tmp_path / "stopped").ending is Ending.COMPLETED
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_every_act_is_told(tiny: Tiny, tmp_path: Path) -> None:
    notes = Notes()
    outcome = start(
        tiny("adjoint:steps=4", run={"steps": 24, "relaxation": 12}, **WILD),
        tmp_path / "run",
        hooks=Hooks(progress=notes),
    )
    done = acts(tmp_path / "run")
    assert done
    assert notes.sentences == [f"update {step}: {act}" for step, act in done.items()]
    assert outcome.guard is not None
    assert outcome.guard.startswith("the guard rolled back")
    header = read_log(tmp_path / "run" / "log.jsonl")[0]
    assert header["guard"] == "on"
    assert header["guard_modulus"] < 1


def test_stable_snapshots_are_no_snapshots_of_the_run() -> None:
    assert all(is_moving(name) for name in ("last.pt", "best.pt", "stable-000000.pt", "stable-1234567.pt"))
    assert not any(is_moving(name) for name in ("step-000300.pt", "stable.safetensors", "my-stable-000001.pt"))


# where there is none


def test_a_run_without_a_guard_says_so_and_is_the_same(
    tiny: Tiny, tmp_path: Path, scripted: Callable[..., None]
) -> None:
    scripted([seen(0.9)])
    off = start(tiny(), tmp_path / "off")
    header = read_log(tmp_path / "off" / "log.jsonl")[0]
    assert header["guard"] == "off"
    assert off.guard is None
    assert not list((tmp_path / "off").glob("stable*"))
    # a guard that only watches changes no bit of the weights
    on = start(tiny(guard={**CLOSE, "every": 4}), tmp_path / "on")
    assert on.guard == "the guard had nothing to do"
    states = [_state(o.folder / "last.pt")[1] for o in (off, on)]
    assert plain(states[0]) == plain(states[1])


def test_a_block_that_does_not_relax_has_no_guard(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny("bptt1", block={"kind": "bp"}, guard={"enabled": True})
    with pytest.raises(UsageError, match=r"BaselineBlock computes its output in one pass .* train it with --no-guard"):
        start(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    recipe = tiny("bptt1", block={"kind": "bp"}, guard={"enabled": False}, run={"steps": 2})
    assert start(recipe, tmp_path / "run").ending is Ending.COMPLETED


def test_fewer_pinned_samples_than_it_looks_at_are_refused(tiny: Tiny) -> None:
    with pytest.raises(UsageError, match=r"guard.samples=9 .*data.evaluation_samples is 8"):
        trainer_of(tiny(guard={"enabled": True, "samples": 9}))


def test_a_look_says_what_it_saw_in_words() -> None:
    look = Look(at=3, modulus=0.9876, residual=2e-3, restless=1, samples=4, depth=400, t1=1e-2)
    assert str(look) == (
        "leading multiplier 0.9876, worst force residual 1.0e-02 in training and 2.0e-03 after 400 steps, 1 of 4 "
        "samples do not settle"
    )
    assert Look.of(look.to_plain()) == look
    assert dataclasses.replace(look, restless=0).stable
