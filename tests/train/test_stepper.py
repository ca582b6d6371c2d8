"""Schedules against their formulas, the moving average against an explicit one, mu-P across widths, and best.pt."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dyneq.dynamics.relax import relax
from dyneq.systems.checkpoint_io import load_checkpoint
from dyneq.systems.thick import ThickBlock, ThickConfig
from dyneq.train.data import load_corpus
from dyneq.train.log import read_log
from dyneq.train.loop import Hooks, resume, start
from dyneq.train.recipe import Recipe
from dyneq.train.sections import OptimizerSection
from dyneq.train.snapshots import Snapshot
from dyneq.train.stepper import Stepper
from dyneq.train.trainer import Trainer

Tiny = Callable[..., Recipe]


def rates(steps: int, **options: object) -> np.ndarray:
    section = OptimizerSection(**options)
    return np.array([section.lr_at(step, steps) for step in range(1, steps + 1)])


def test_a_constant_rate_after_a_linear_rise() -> None:
    expected = 2e-3 * np.minimum(1, np.arange(1, 51) / 10)
    np.testing.assert_allclose(rates(50, lr=2e-3, warmup=10), expected, rtol=1e-15)
    np.testing.assert_allclose(rates(50, lr=2e-3, warmup=0), 2e-3, rtol=1e-15)


@pytest.mark.parametrize(("steps", "warmup", "final"), [(100, 10, 0.1), (37, 0, 0.0), (64, 5, 1.0)])
def test_cosine_is_half_a_period_from_the_rate_to_its_final_share(steps: int, warmup: int, final: float) -> None:
    found = rates(steps, lr=3e-3, warmup=warmup, schedule="cosine", final=final)
    step = np.arange(1, steps + 1)
    after = step >= warmup
    # the textbook form: lr_min + (lr_max - lr_min) (1 + cos(pi t/T))/2 (Loshchilov and Hutter, arXiv:1608.03983)
    low, high = 3e-3 * final, 3e-3
    t = (step[after] - warmup) / (steps - warmup)
    np.testing.assert_allclose(found[after], low + (high - low) * (1 + np.cos(np.pi * t)) / 2, rtol=1e-12, atol=1e-18)
    np.testing.assert_allclose(found[~after], 3e-3 * step[~after] / max(1, warmup), rtol=1e-15)
    assert found[-1] == pytest.approx(low, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize(
    ("steps", "warmup", "decay", "final"), [(100, 10, 0.2, 0.1), (50, 0, 1.0, 0.0), (40, 30, 0.9, 0)]
)
def test_wsd_is_stable_and_then_falls_linearly(steps: int, warmup: int, decay: float, final: float) -> None:
    found = rates(steps, lr=1e-2, warmup=warmup, schedule="wsd", decay=decay, final=final)
    begin = max(warmup, steps - round(decay * steps))
    points = [(0, 0.0), (warmup, 1.0), (begin, 1.0), (steps, final)] if warmup else [(begin, 1.0), (steps, final)]
    expected = 1e-2 * np.interp(np.arange(1, steps + 1), *zip(*points, strict=True))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-18)


@given(
    st.integers(1, 300),
    st.integers(0, 400),
    st.sampled_from(["constant", "cosine", "wsd"]),
    st.just(0.0) | st.floats(1e-3, 1),
    st.floats(0.01, 1),
)
def test_no_schedule_leaves_its_bounds(steps: int, warmup: int, schedule: str, final: float, decay: float) -> None:
    found = rates(steps, lr=1.0, warmup=warmup, schedule=schedule, final=final, decay=decay)
    assert np.all(found > 0) or (final == 0 and np.all(found[:-1] > 0))
    assert np.all(found <= 1 + 1e-12)
    top = min(max(warmup, 1), steps)
    assert np.all(np.diff(found[:top]) >= -1e-12)  # it rises
    assert np.all(np.diff(found[top - 1 :]) <= 1e-12)  # and never again after warm-up


def block_of(channels: int, seed: int = 0) -> ThickBlock:
    config = ThickConfig(vocabulary=16, channels=channels, heads=4, tokens=8)
    return ThickBlock(config, torch.Generator().manual_seed(seed)).double()


def grouped(block: ThickBlock, generator: torch.Generator) -> dict[str, dict[str, Tensor]]:
    return {
        group: {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in members.items()}
        for group, members in block.parameter_groups().items()
    }


def test_the_average_is_the_explicit_sum_over_all_past_weights() -> None:
    decay, block, generator = 0.8, block_of(16), torch.Generator().manual_seed(1)
    stepper = Stepper(block, OptimizerSection(ema=decay))
    past = [{n: p.detach().clone() for n, p in block.named_parameters()}]
    for _ in range(6):
        assert stepper.apply(grouped(block, generator), torch.ones(()), 1e-2) is None
        past.append({n: p.detach().clone() for n, p in block.named_parameters()})
    weights = [decay**6, *((1 - decay) * decay ** (6 - k) for k in range(1, 7))]
    assert sum(weights) == pytest.approx(1)
    for name, found in stepper.average.named_parameters():
        expected = sum(w * p[name] for w, p in zip(weights, past, strict=True))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
        assert not found.requires_grad


def test_an_update_that_was_taken_back_leaves_average_and_moments() -> None:
    block, generator = block_of(16), torch.Generator().manual_seed(1)
    stepper = Stepper(block, OptimizerSection(ema=0.8, name="adamw", weight_decay=1e-2))
    assert stepper.apply(grouped(block, generator), torch.ones(()), 1e-2) is None
    before = json.dumps(plain(stepper.state())), {n: p.clone() for n, p in block.state_dict().items()}
    broken = grouped(block, generator)
    broken["head"]["head.weight"][0, 0] = torch.inf
    assert stepper.apply(broken, torch.ones(()), 1e-2) == "a weight is not finite"
    assert "a weight is 1.0e+30" in stepper.apply(grouped(block, generator), torch.ones(()), 1e30)
    assert json.dumps(plain(stepper.state())) == before[0]
    assert all(torch.equal(p, before[1][n]) for n, p in block.state_dict().items())


def plain(held: object) -> object:
    if isinstance(held, Tensor):
        return held.tolist()
    if isinstance(held, dict):
        return {str(key): plain(value) for key, value in held.items()}
    return [plain(value) for value in held] if isinstance(held, list | tuple) else held


def test_evaluation_and_snapshots_use_the_average_and_last_holds_both(tiny: Tiny, tmp_path: Path) -> None:
    told: list[Snapshot] = []
    recipe = tiny(optimizer={"ema": 0.9}, run={"steps": 12, "dtype": "float64"})
    start(recipe, tmp_path / "run", hooks=Hooks(sink=told.append))
    snapshot = load_checkpoint(told[-1].path)
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    trainer = Trainer(recipe, load_corpus(recipe.data.corpus, recipe.data.file, recipe.data.validation))
    average = {n: p.clone() for n, p in trainer.block.state_dict().items()}
    for _ in range(12):
        trainer.update()
        average = {n: 0.9 * average[n] + 0.1 * p for n, p in trainer.block.state_dict().items()}
    assert any(not torch.equal(last["model"][n], last["ema"][n]) for n in average)
    for name, expected in average.items():
        # snapshots are stored in single precision if the block says so; their values are the average's
        torch.testing.assert_close(last["ema"][name], expected, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(last["model"][name], trainer.block.state_dict()[name], rtol=0, atol=0)
        torch.testing.assert_close(snapshot.block.state_dict()[name].double(), expected, rtol=1e-6, atol=1e-7)
    block = trainer.stepper.average
    with torch.no_grad():
        system = block.bind(trainer.evaluation.tokens, trainer.evaluation.targets)
        loss = system.loss(relax(system, 5).z).mean().item()
        raw = trainer.block.bind(trainer.evaluation.tokens, trainer.evaluation.targets)
        other = raw.loss(relax(raw, 5).z).mean().item()
    assert snapshot.metrics["validation_loss"] == pytest.approx(loss, rel=1e-9)
    assert abs(other - loss) > 1e-6


def test_mup_scales_the_matrices_inside_and_the_read_out_alone() -> None:
    block = block_of(64)
    stepper = Stepper(block, OptimizerSection(mup_base=16, lr=1.0))
    before = {n: p.detach().clone() for n, p in block.named_parameters()}
    assert stepper.apply(grouped(block, torch.Generator().manual_seed(0)), torch.ones(()), 1e-2) is None
    for group, members in block.parameter_groups().items():
        for name, p in members.items():
            moved = (p.detach() - before[name]).abs().max().item()  # the first step of Adam is lr whatever the gradient
            wide = group in ("attn", "ffn", "head") and p.ndim == 2
            assert moved == pytest.approx(1e-2 * (0.25 if wide else 1.0), rel=1e-4), name


WIDTHS = (16, 32, 64, 128)


SEEDS = 5


def changes_of_activations(channels: int, mup: bool) -> list[float]:
    """How much one update of Adam moves the branches at a fixed state, root mean square over entries, by seed."""
    sizes = []
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        block = block_of(channels, seed)
        tokens = torch.randint(16, (8, 8), generator=generator)
        system = block.bind(tokens, tokens.roll(-1, 1))
        z = relax(system, 20).z.detach()
        groups = system.parameter_groups()
        inner = {g: list(m) for g, m in groups.items() if g in ("attn", "ffn")}
        flat = [groups[g][n] for g, names in inner.items() for n in names]
        # the gradient of the loss through the branches at this state, one step of the map
        loss = system.loss(z + system.force(z)).mean()
        found = torch.autograd.grad(loss, flat)
        direction = {g: {n: torch.zeros_like(p) for n, p in m.items()} for g, m in groups.items()}
        for (g, n), value in zip([(g, n) for g, names in inner.items() for n in names], found, strict=True):
            direction[g][n] = value
        with torch.no_grad():
            before = sum(block.branches(z, system.x.detach()).values())
            Stepper(block, OptimizerSection(mup_base=16 if mup else None)).apply(direction, torch.ones(()), 1e-3)
            moved = sum(block.branches(z, system.x.detach()).values()) - before
        sizes.append(math.sqrt(moved.square().mean().item()))
    return sizes


def test_coordinates_move_no_more_at_larger_widths_with_mup_and_by_more_without() -> None:
    slopes = {
        mup: np.polyfit(np.log(WIDTHS), np.log([changes_of_activations(c, mup) for c in WIDTHS]), 1)[0]
        for mup in (True, False)
    }
    mean = {mup: found.mean() for mup, found in slopes.items()}
    error = {mup: found.std(ddof=1) / math.sqrt(SEEDS) for mup, found in slopes.items()}
    # one step of Adam aligns a matrix with its input: a sum over the width, of which mu-P takes 1/width
    assert mean[True] - 3 * error[True] < 0
    assert mean[False] - 3 * error[False] > 0.5
    # the change is linear in so small a step, up to the curvature of the branches
    assert mean[False] - mean[True] == pytest.approx(1, abs=0.1)


def test_best_is_the_snapshot_of_lowest_validation_loss(tiny: Tiny, tmp_path: Path) -> None:
    # so large a rate that the loss goes up and down
    recipe = tiny(optimizer={"lr": 0.15, "warmup": 0}, run={"steps": 30, "evaluate_every": 3, "save_every": 7})
    start(recipe, tmp_path / "run")
    records = read_log(tmp_path / "run" / "log.jsonl")
    losses = {r["step"]: r["validation_loss"] for r in records if "validation_loss" in r}
    best = min(losses, key=losses.__getitem__)
    assert best != max(losses)  # it did go up again
    kept = load_checkpoint(tmp_path / "run" / "best.pt")
    assert (kept.step, kept.metrics["validation_loss"]) == (best, losses[best])
    with torch.no_grad():
        system = kept.bind()
        loss = system.loss(relax(system, 5).z).mean().item()
    assert loss == pytest.approx(losses[best], rel=1e-5)


@pytest.mark.parametrize("stop", [4, 9, 16, 25])
def test_best_is_right_after_a_resume(tiny: Tiny, tmp_path: Path, stop: int) -> None:
    def interrupt(snapshot: Snapshot) -> None:
        raise KeyboardInterrupt

    options = {"optimizer": {"lr": 0.15, "warmup": 0}}
    run = {"steps": 30, "evaluate_every": 3, "save_every": 7, "snapshots": [stop]}
    start(tiny(**options, run=run), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        start(tiny(**options, run=run), tmp_path / "stopped", hooks=Hooks(sink=interrupt))
    resume(tmp_path / "stopped")
    a, b = (load_checkpoint(tmp_path / name / "best.pt") for name in ("whole", "stopped"))
    assert (a.step, a.sha256) == (b.step, b.sha256)


def test_no_best_is_kept_if_none_is_wanted(tiny: Tiny, tmp_path: Path) -> None:
    start(tiny(run={"steps": 5, "best": False}), tmp_path / "run")
    assert not (tmp_path / "run" / "best.pt").exists()
