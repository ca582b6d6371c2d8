"""Two processes train one run: the same gradients as one, the same decisions in both, and no one left waiting."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dyneq.train import parallel
from dyneq.train.log import read_log
from dyneq.train.recipe import Recipe, resolve
from tests.train.parallel_driver import UPDATES, directions

DRIVER = Path(__file__).with_name("parallel_driver.py")
ALL = {"floss": {"samples": None}, "resreg": {}, "jacreg": {"controller": "residual"}, "spectral": {"samples": None}}
#: What makes every term act at the states of a tiny block.
ACTING = {
    "floss": {"margin": 3.0, "rest": 0.0},
    "resreg": {"dead": 0.0},
    "jacreg": {"vectors": 2},
    "spectral": {"every": 1, "further": 20, "bound": 0.3},
}
PENALISED = {name: {**options, **ACTING[name]} for name, options in ALL.items()}
SUBSETS = {
    "floss": {**ACTING["floss"], "samples": 3, "tangents": 2, "scale": "task"},
    "jacreg": {**ACTING["jacreg"], "samples": 1},
    "spectral": {**ACTING["spectral"], "samples": 2, "form": "total", "scale": "task"},
}
DIRECTIONS = {
    "bptt": ("bptt5", {}, {}),
    "adjoint": ("adjoint:steps=6,relaxation=8", {}, {}),
    "aep": ("aep:t1=8,t2=12", {}, {}),
    "holo": ("holo:n=4,t1=8,t2=12", {}, {}),
    "penalties": ("adjoint:steps=6,relaxation=8", PENALISED, {}),
    "penalties-bptt": ("bptt5", PENALISED, {}),
    "sub-batches": ("adjoint:steps=6,relaxation=8", SUBSETS, {}),
    "prewarm": ("bptt5", {}, {"stability": {"prewarm": 2, "prewarm_margin": 3.0}}),
    "masked": ("ep:t1=8,t2=12", {}, {"block": {"kind": "energy"}}),
    "gate": ("aep:t1=8,t2=12", PENALISED, {"stability": {"gate": 1.0}}),
}


def recipe_of(text: Path, gradient: str, penalty: object, more: dict[str, dict[str, object]]) -> Recipe:
    values: dict[str, dict[str, object]] = {
        "block": {"channels": 8, "heads": 2, "tokens": 6, "resinit": 0.5},
        "data": {"file": str(text), "evaluation_samples": 8},
        "optimizer": {"lr": 1e-2, "warmup": 3, "clip": 0.5, "ema": 0.9},
        "run": {"steps": 10, "batch": 6, "evaluate_every": 4, "save_every": 2, "dtype": "float64"},
        "stability": {},
    }
    for name, section in more.items():
        values[name] = {**values[name], **section}
    return resolve({**values, "gradient": gradient, "penalty": penalty})


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recipe]:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("".join(np.random.default_rng(0).choice(list("abcdefgh "), 4000)), encoding="utf-8")
    made = {name: recipe_of(text, *rest) for name, rest in DIRECTIONS.items()}
    # a gate that the median over the whole batch just passes, and that of one half does not
    median = directions(made["gate"])[0][0]["force_residual_t1"]
    made["gate"] = recipe_of(text, "aep:t1=8,t2=12", PENALISED, {"stability": {"gate": 0.1 * median * (1 + 1e-9)}})
    made["run"] = recipe_of(text, "adjoint:steps=6,relaxation=8", PENALISED, {})
    return made


def free_ports(wanted: int) -> list[str]:
    sockets = [socket.socket() for _ in range(wanted)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    found = [str(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, recipes: dict[str, Recipe]) -> Path:
    path = tmp_path_factory.mktemp("two")
    for name, recipe in recipes.items():
        file = path / ("run.toml" if name == "run" else f"direction-{name}.toml")
        file.write_text(recipe.to_toml(), encoding="utf-8")
    ports = free_ports(8)
    both = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(DRIVER), str(path), *ports],
            env={
                **{**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(DRIVER.parents[2])},
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=300)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 9], "\n".join(said)
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, object]]:
    return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", DIRECTIONS)
def test_the_mean_over_processes_is_the_gradient_of_the_whole_batch(
    name: str, found: list[dict[str, object]], recipes: dict[str, Recipe]
) -> None:
    alone = directions(recipes[name])
    first, second = (ranks[f"direction-{name}"] for ranks in found)
    assert len(first) == len(alone) == UPDATES
    for (record, direction), (expected, reference), (_, other) in zip(first, alone, second, strict=True):
        size = torch.stack([v.norm() for members in reference.values() for v in members.values()]).norm()
        assert size > 0
        for group, members in reference.items():
            for key, value in members.items():
                assert (direction[group][key] - value).norm() <= 1e-12 * size, (group, key)
                assert torch.equal(direction[group][key], other[group][key])
        assert record.keys() == expected.keys()
        for key in record.keys() - {"seconds"}:
            assert record[key] == pytest.approx(expected[key], rel=1e-9, abs=1e-12, nan_ok=True), key
    if name in ("penalties", "penalties-bptt", "sub-batches"):
        ratios = [v for record, _ in first for key, v in record.items() if key.endswith("_ratio")]
        assert ratios
        assert all(ratio > 1e-3 for ratio in ratios)  # none of them was idle


def test_halves_of_the_batch_would_decide_otherwise_at_the_gate(recipes: dict[str, Recipe]) -> None:
    # so that the test above can fail for the gate
    from dyneq.dynamics.relax import relax
    from dyneq.train.data import load_corpus
    from dyneq.train.trainer import Trainer

    recipe = recipes["gate"]
    trainer = Trainer(recipe, load_corpus(recipe.data.corpus, recipe.data.file, recipe.data.validation))
    drawn = trainer.corpus.batch(6, 6, torch.Generator().manual_seed(recipe.run.seed))
    residual = relax(trainer.block.bind(*drawn), 8).residuals.force
    passing = [0.1 * half.median().item() <= recipe.stability.gate for half in (residual, *residual.chunk(2))]
    assert passing[0]
    assert not all(passing[1:])
    assert trainer.update()["nudge_skipped"] == 0


def test_only_the_first_process_writes_and_both_know_the_same(folder: Path, found: list[dict[str, object]]) -> None:
    records = read_log(folder / "whole" / "log.jsonl")
    assert [r["step"] for r in records] == list(range(11))
    assert records[0]["processes"] == 2
    assert found[0]["whole"] == found[1]["whole"]
    assert found[0]["whole"]["step"] == 10
    assert sorted(p.name for p in (folder / "whole").iterdir()) == sorted(
        ["best.pt", "last.pt", "log.jsonl", "recipe.toml", "step-000010.pt"]
    )


def test_an_error_in_one_process_ends_both_with_its_sentence(found: list[dict[str, object]]) -> None:
    first, second = found
    assert first["sentence"] == "Ended: process 1 of 2: this is what went wrong"
    assert second["sentence"] == "DyneqError: this is what went wrong"
    assert first["bug"] == "ZeroDivisionError: a bug"
    assert second["bug"] == "Ended: ZeroDivisionError: a bug"
    for rank in found:
        assert str(rank["exists"]).startswith("UsageError: there is already something at")
        assert "2 processes divide a batch evenly, but run.batch is 3" in str(rank["odd"])
        assert "need the same recipe" in str(rank["other"])


def test_a_process_that_dies_does_not_leave_the_other_waiting(found: list[dict[str, object]]) -> None:
    assert str(found[0]["killed"]).startswith("Ended: another process of this run is gone")
    assert "--resume" in str(found[0]["killed"])


def test_a_run_continues_bit_for_bit(folder: Path, found: list[dict[str, object]]) -> None:
    assert found[0]["resumed"]["metrics"] == found[0]["whole"]["metrics"]
    a, b = (torch.load(folder / run / "last.pt", weights_only=True) for run in ("whole", "stopped"))
    for part in ("model", "ema"):
        assert all(torch.equal(a[part][name], b[part][name]) for name in a[part])
    logs = [(folder / run / "log.jsonl").read_text().splitlines() for run in ("whole", "stopped")]
    plain = [[{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines] for lines in logs]
    assert plain[0] == plain[1]


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with parallel.joined() as device:
        assert (device, parallel.group(), parallel.size(), parallel.first()) == ("cpu", None, 1, True)
        assert not torch.distributed.is_initialized()
        assert parallel.lead(lambda: 3) == parallel.agreed(3) == 3
        parallel.require_same("recipe", "this")


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("one", "2"), ("0", "")])
def test_an_environment_that_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch, rank: str, size: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(parallel.UsageError, match="RANK and WORLD_SIZE"), parallel.joined():
        pass


def test_a_gradient_is_handed_over_bit_for_bit() -> None:
    from dyneq.train.sharing import _Handing

    generator = torch.Generator().manual_seed(0)
    parameters = {n: nn.Parameter(torch.randn(s, generator=generator)) for n, s in (("a", (5, 3)), ("b", (7,)))}
    parameters["c"] = nn.Parameter(torch.tensor([float("inf"), 1.0]))
    gradient = [torch.randn(p.shape, generator=generator) for p in parameters.values()]
    gradient[1][0], gradient[1][1] = float("nan"), 1e38
    _Handing(parameters)(gradient).backward()
    for p, g in zip(parameters.values(), gradient, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=0, atol=0, equal_nan=True)
