"""Plateaus: synthetic records of each kind and near misses, robustness, and tiny runs forced onto each of them."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyneq.train.log import read_log
from dyneq.train.loop import start
from dyneq.train.plateau import EVERY, Plateau, Watch, reading
from dyneq.train.plateau_evidence import SLOW, penalty_share
from dyneq.train.recipe import Recipe

Tiny = Callable[..., Recipe]
Record = dict[str, object]


def run(n: int = 300, slope: float = 0.0, noise: float = 0.03, seed: int = 0, level: float = 2.5, **numbers: object):
    """Records of a run whose loss moves along a line, with normal noise; further numbers are the same in all."""
    rng = np.random.default_rng(seed)
    common = {"force_residual": 0.02, "adjoint_residual": 0.01, "gradient_norm": 1.0, "lr": 1e-3, **numbers}
    return [{"step": i + 1, "loss": level + slope * i + noise * rng.standard_normal(), **common} for i in range(n)]


INVALID = {"force_residual": 0.6, "nudge_skipped": 1, "penalty_jacreg_controller": 16.0}
CONTRACTED = {"force_residual": 1e-5, "penalty_floss_measure": -1.2, "penalty_share": 0.1}
FIGHT = {"penalty_jacreg_ratio": 3.25, "penalty_jacreg_cosine": -0.008, "penalty_jacreg": 4.0}


@pytest.mark.parametrize(
    ("plateau", "numbers"),
    [
        (Plateau.INVALID, INVALID),
        (Plateau.INVALID, {"force_residual": 0.3}),  # of an equilibrium gradient, without a gate
        (Plateau.INVALID, {**INVALID, **FIGHT}),  # a skipped nudge leaves the update to the penalties
        (Plateau.INVALID, {"force_residual": "nan"}),
        (Plateau.OVER_CONTRACTED, CONTRACTED),
        (Plateau.OVER_CONTRACTED, {"force_residual": 1e-6, "guard_modulus": 0.85}),
        (Plateau.OVER_CONTRACTED, {"force_residual": 1e-7, "penalty_floss_measure": "nan"}),  # at rest there is no rate
        (Plateau.FIGHT, FIGHT),
        (Plateau.FIGHT, {"penalty_share": 0.8}),
        # near misses
        (Plateau.UNDETERMINED, {}),
        (Plateau.UNDETERMINED, {"force_residual": 0.15, "nudge_skipped": 0}),
        (Plateau.UNDETERMINED, {"force_residual": 0.6, "adjoint_residual": None}),  # BPTT needs no fixed point
        (Plateau.UNDETERMINED, {"force_residual": 5e-4}),  # it settles, but what says it contracts too much?
        (Plateau.UNDETERMINED, {**CONTRACTED, "guard_modulus": 0.98}),
        (Plateau.UNDETERMINED, {"force_residual": 1e-6, "guard_modulus": 0.98}),
        (Plateau.UNDETERMINED, {**CONTRACTED, "adjoint_residual": 0.5}),
        (Plateau.UNDETERMINED, {**CONTRACTED, "force_residual": 5e-3}),
        (Plateau.UNDETERMINED, {**FIGHT, "penalty_jacreg_ratio": 0.9}),
    ],
)
def test_stalled_runs_are_told_apart(plateau: Plateau, numbers: Record) -> None:
    records = [{k: v for k, v in r.items() if v is not None} for r in run(**numbers)]
    found = reading(records)
    assert found.plateau is plateau, found.sentence
    assert "(stalled at a loss of 2." in found.sentence
    # and the same numbers in a run that descends are no plateau
    falling = [{k: v for k, v in r.items() if v is not None} for r in run(slope=-1e-3, **numbers)]
    assert reading(falling).plateau is Plateau.NONE


def test_the_sentence_states_its_numbers() -> None:
    found = reading(run(**{**INVALID, "nudge_skipped": 1}))
    assert "force residual 6.0e-01" in found.sentence
    assert "100 % of the nudges skipped" in found.sentence
    assert "--reg floss" in found.sentence
    assert found.evidence["force_residual"] == 0.6
    moved = run(**INVALID)
    for record, weight in zip(moved, np.geomspace(0.1, 16, 100), strict=False):
        record["penalty_jacreg_controller"] = float(weight)
    assert "a controller pinned at 16" in reading(moved).sentence
    share = reading(run(**FIGHT)).evidence["penalty_share"]
    assert share == pytest.approx((3.25**2 - 0.008 * 3.25) / (1 - 2 * 0.008 * 3.25 + 3.25**2))


def test_the_latest_gate_counts() -> None:
    half = run(**{"force_residual": 0.05})
    for i, record in enumerate(half):
        record["nudge_skipped"] = int(i % 2 == 0)
    assert reading(half).plateau is Plateau.UNDETERMINED  # half is not most
    for record in half[-100:]:
        record["nudge_skipped"] = 1
    assert reading(half).plateau is Plateau.INVALID


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.1, 0.5])
@pytest.mark.parametrize("slope", [-SLOW, -5e-4, -2e-3])
def test_a_run_that_descends_is_not_called_stalled(slope: float, noise: float) -> None:
    # with 99 % intervals, of which only one end can err, at most 1 in 200 for each of three windows
    called = [reading(run(400, slope, noise, seed)) for seed in range(50)]
    stalled = sum("stalled" in found.sentence for found in called)
    assert stalled <= 3  # 50 x 0.015 is 0.75, and more than 3 has a chance of less than 1 %
    assert not any(found.told for found in called if found.plateau is Plateau.NONE)


def test_a_run_at_rest_is_called_stalled_once_the_noise_allows() -> None:
    quiet = [reading(run(400, noise=0.02, seed=s, **FIGHT)).plateau for s in range(50)]
    assert quiet.count(Plateau.FIGHT) >= 45
    loud = [reading(run(400, noise=2.0, seed=s, **FIGHT)) for s in range(50)]
    assert sum(found.plateau is Plateau.UNDETERMINED for found in loud) >= 45
    assert all("too noisy" in found.sentence for found in loud if found.plateau is Plateau.UNDETERMINED)


def test_noise_with_a_memory_widens_the_interval() -> None:
    def wandering(seed: int) -> list[Record]:
        rng, level, records = np.random.default_rng(seed), 0.0, run(100, noise=0.0)
        for record in records:
            level = 0.9 * level + 0.02 * rng.standard_normal()
            record["loss"] += level
        return records

    found = [reading(wandering(seed)).plateau for seed in range(100)]
    # a line fitted to it as if it were white would find a descent in one of three
    assert found.count(Plateau.NONE) <= 10


def test_a_validation_loss_that_falls_is_no_plateau() -> None:
    records = run(400, noise=0.03, **FIGHT)
    for i in range(0, 400, 20):
        records[i]["validation_loss"] = 2.6 - 1.5e-4 * i + 1e-3 * math.sin(i)
    found = reading(records)
    assert found.plateau is Plateau.NONE
    assert "validation loss still falls" in found.sentence
    for record in records:
        record.pop("validation_loss", None)
    assert reading(records).plateau is Plateau.FIGHT


@pytest.mark.parametrize(
    "change",
    [
        {"switch": "from update 250 ..."},
        {"act": "the guard rolls back from update 250 to ...", "rolled_back_to": 200},
        {"penalty_prewarm": 0.1},
    ],
)
def test_only_the_latest_stretch_counts(change: Record) -> None:
    records = run(300, **FIGHT)
    records[249] |= change
    found = reading(records)
    assert found.plateau is Plateau.UNDETERMINED
    assert "there are 50" in found.sentence
    for name in change:
        records[249].pop(name)
    records[249]["act"] = "the guard lowers the learning rate"
    assert reading(records).plateau is Plateau.FIGHT


VALUES = st.one_of(
    st.floats(), st.integers(-10, 10), st.sampled_from(["nan", "inf", "-inf", "some text", None, True, [], 1 << 2000])
)
KEYS = st.sampled_from(
    [
        *(
            "loss",
            "step",
            "force_residual",
            "force_residual_t1",
            "nudge_skipped",
            "adjoint_residual",
            "validation_loss",
        ),
        *(
            "penalty_jacreg_ratio",
            "penalty_jacreg_cosine",
            "penalty_jacreg_controller",
            "penalty_share",
            "guard_modulus",
        ),
        *("penalty_floss_measure", "penalty_spectral_measure", "switch", "act", "penalty_jacreg", "gradient_norm"),
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(0, 130), st.sampled_from([{}, INVALID, FIGHT, CONTRACTED]))
def test_nothing_in_a_log_disturbs_it(data: st.DataObject, n: int, numbers: Record) -> None:
    records = run(n, **numbers)
    for _ in range(data.draw(st.integers(0, 20))):
        if records:
            records[data.draw(st.integers(0, n - 1))][data.draw(KEYS)] = data.draw(VALUES)
    for key in data.draw(st.lists(KEYS, max_size=4)):
        for record in records:
            record.pop(key, None)
    found = reading(records)
    assert found.plateau in Plateau
    assert "\n" not in found.sentence
    shares = [penalty_share(record) for record in records]
    assert all(share is None or math.isfinite(share) for share in shares)


@given(
    st.lists(st.lists(st.floats(-3, 3), min_size=6, max_size=6), min_size=1, max_size=3),
    st.lists(st.floats(-3, 3), min_size=6, max_size=6),
)
def test_the_share_is_that_of_the_vectors_themselves(penalties: list[list[float]], task: list[float]) -> None:
    t, p = np.array(task), np.array(penalties[0])
    if min(np.linalg.norm(t), np.linalg.norm(p), np.linalg.norm(t + p)) < 1e-3:
        return
    ratio = float(np.linalg.norm(p) / np.linalg.norm(t))
    cosine = float(p @ t / np.linalg.norm(p) / np.linalg.norm(t))
    found = penalty_share({"penalty_x_ratio": ratio, "penalty_x_cosine": cosine})
    assert found == pytest.approx(p @ (t + p) / ((t + p) @ (t + p)), rel=1e-6, abs=1e-6)


def test_a_watch_tells_changes_and_continues_from_a_log() -> None:
    records = run(200, slope=-3e-3) + [{**r, "step": r["step"] + 200} for r in run(300, level=1.9, **FIGHT)]
    watch, told = Watch(), []
    for record in records:
        found = watch.observe(record)
        if found is not None:
            told.append((record["step"], found.plateau))
            record["plateau"] = found.plateau.value
    assert told[0] == (100, Plateau.NONE)
    assert told[-1][1] is Plateau.FIGHT
    assert all(step % EVERY == 0 for step, _ in told)
    assert all(a != b for (_, a), (_, b) in itertools.pairwise(told))
    for cut in (0, 130, 330, 499):
        stored = json.loads(json.dumps([{"step": 0, "corpus": "pydoc"}, *records[:cut]]))
        resumed = Watch(stored)
        rest = [(r["step"], f.plateau) for r in records[cut:] if (f := resumed.observe(r)) is not None]
        assert rest == [pair for pair in told if pair[0] > cut]


#: Runs long enough to stall in, of a block so tiny and text so random that there is little to learn.
SECTIONS = {
    "run": {"steps": 250, "batch": 16, "evaluate_every": 50, "save_every": 250},
    "block": {"tokens": 4, "eps": 0.4},
    "optimizer": {"lr": 3e-2},
}


@pytest.mark.parametrize(
    ("plateau", "gradient", "more"),
    [
        (Plateau.FIGHT, "adjoint:steps=8,relaxation=12", {"penalty": {"jacreg": {"weight": 1000.0}}}),
        (Plateau.INVALID, "adjoint:steps=4,relaxation=3", {"stability": {"gate": 1e-6, "fuse": None}}),
        (
            Plateau.OVER_CONTRACTED,
            "adjoint:steps=8,relaxation=12",
            {
                "penalty": {
                    "floss": {
                        **{"margin": 1.0, "weight": 1.0, "samples": 2, "steps": 4},
                        **{"rest": 0.0, "full": 1e-9, "every": 1, "limit": None},
                    }
                }
            },
        ),
    ],
)
def test_tiny_runs_forced_onto_each_plateau(
    tiny: Tiny, tmp_path: Path, plateau: Plateau, gradient: str, more: dict[str, dict[str, object]]
) -> None:
    start(tiny(gradient, **SECTIONS, **more), tmp_path / "run")
    records = read_log(tmp_path / "run" / "log.jsonl")
    told = {r["step"]: r["plateau"] for r in records if "plateau" in r}
    assert plateau.value in told.values(), [r.get("plateau_why") for r in records if "plateau" in r]
    at = max(step for step, name in told.items() if name == plateau.value)
    found = reading(records[: at + 1])
    assert found.plateau is plateau
    assert records[at]["plateau_why"] == found.sentence
