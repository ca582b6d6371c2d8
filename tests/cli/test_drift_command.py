"""``dyneq drift``: tables, figures, comparison of runs, exit codes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dyneq.catalog.output import read_dataset
from dyneq.cli.main import run

TINY = [
    *("--set", "block.channels=8", "--set", "block.heads=2", "--set", "block.tokens=6", "--set", "run.batch=2"),
    *(
        "--set",
        "data.evaluation_samples=4",
        "--set",
        "run.snapshot_every=2",
        "--gradient",
        "adjoint:steps=4,relaxation=5",
    ),
    *("--steps", "6", "--quiet"),
]
FAST = ("--probe", "residual", "--depth", "5")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs ``fast`` and ``slow`` in ``runs/`` and a store ``cat`` that knows them."""
    folder = tmp_path_factory.mktemp("drift")
    text = "".join(np.random.default_rng(0).choice(list("abcdefgh "), 2000))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, lr in (("fast", "1e-2"), ("slow", "5e-3")):
            chosen = ["--set", f"optimizer.lr={lr}", "--set", "optimizer.warmup=0", "--run", name, "--store", "cat"]
            assert run(["train", *TINY, "--data", "text.txt", *chosen]) == 0
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    monkeypatch.setenv("DYNEQ_STORE", str(home / "cat"))
    return home


def test_a_table_a_figure_and_a_dataset(here: Path, dyneq_run, tmp_path: Path) -> None:
    wide = ("--probe", "residual", "--probe", "spectrum", "--depth", "100", "--batch", "2", "--steps", "2,6")
    code, out, err = dyneq_run("drift", "fast", *wide, "--plot", tmp_path / "f.png", "--out", tmp_path / "f.zarr")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "run fast, 2 snapshots, 2 of 4 samples (see --batch), learning rates of its log"
    assert lines[2].split()[:6] == ["step", "sum", "of", "lr", "val.", "loss"]
    assert [line.split()[:2] for line in lines[3:5]] == [["2", "0.02"], ["6", "0.06"]]
    assert all("0/0/0/0" in line for line in lines[3:5])
    assert "  4 results: 4 computed, 0 found in the store" in lines
    assert (tmp_path / "f.png").stat().st_size > 20_000
    ds = read_dataset(tmp_path / "f.zarr")
    assert ds["step"].values.tolist() == [2, 6]
    assert ds["abscissa"].attrs["ancillary_variables"] == "abscissa_error"
    code, out, _ = dyneq_run("drift", "fast", *wide)
    assert (code, out.splitlines()[-1]) == (0, "  4 results: 0 computed, 4 found in the store")


def test_the_document_holds_every_snapshot(here: Path, dyneq_json) -> None:
    document = dyneq_json("drift", "fast", *FAST)
    assert document.keys() == {"schema", "command", "params", "results", "missing", "status"}
    (result,) = document["results"]
    assert [row["step"] for row in result["snapshots"]] == [2, 4, 6]
    assert [row["cumulative_lr"] for row in result["snapshots"]] == pytest.approx([0.02, 0.04, 0.06])
    assert result["snapshots"][0]["validation_loss"] == pytest.approx(np.mean(result["snapshots"][0]["sample_loss"]))
    assert document["params"]["probes"]["residual"]["depth"] == [5]
    assert result["findings"][0]["text"].startswith("fast: 3 snapshots from step 2 to 6; validation loss")


def test_what_is_followed_is_printed_drawn_and_kept(here: Path, dyneq_run, dyneq_json, tmp_path: Path) -> None:
    small = ("fast", "--probe", "residual", "--depth", "5", "--steps", "2,6", "--follow", "decompose:batches=2")
    code, out, err = dyneq_run("drift", *small, "--plot", tmp_path / "f.png", "--out", tmp_path / "f.nc")
    assert (code, err) == (0, "")
    assert "resreg share" in out
    assert "  ! no penalty is known from the recipe of fast@2, so decompose takes resreg:0.2 and jacreg:0.1" in out
    assert (tmp_path / "f.png").stat().st_size > 20_000
    assert read_dataset(tmp_path / "f.nc")["penalty"].values.tolist() == ["resreg", "jacreg"]
    document = dyneq_json("drift", *small)
    assert document["params"]["probes"].keys() == {"residual", "decompose"}
    assert document["params"]["probes"]["decompose"]["penalty"] is None, "that is up to the run"
    (result,) = document["results"]
    assert result["probes"]["decompose"]["penalty"] == ["resreg:0.2", "jacreg:0.1"]
    row = result["snapshots"][0]
    assert row["penalty_share_interval"]["jacreg"][0] <= row["penalty_share"]["jacreg"]
    code, out, _ = dyneq_run("drift", "fast", "slow", *small[1:])
    assert (code, out.count("jacreg share")) == (0, 2)


def test_several_runs_are_compared_at_equal_learning_rate_spent(here: Path, dyneq_run, dyneq_json, tmp_path) -> None:
    both = ("drift", "fast", "runs/slow", "--depth", "5")
    code, out, err = dyneq_run(*both, "--plot", tmp_path / "both.svg", "--out", tmp_path / "both.nc")
    assert (code, err) == (0, "")
    assert "at equal cumulative learning rate 0.03 (fast step 3, runs/slow step 6)" in out
    assert (tmp_path / "both.svg").read_text().rstrip().endswith("</svg>")
    ds = read_dataset(tmp_path / "both.nc")
    assert ds["run"].values.tolist() == ["fast", "runs/slow"]
    assert all({"long_name", "units"} <= set(v.attrs) for v in ds.data_vars.values())
    assert ds["difference"].attrs["ancillary_variables"] == "difference_error"
    document = dyneq_json(*both)
    # both have 0.02 (fast after 2 updates, slow after 4); slow ends at 0.03
    assert [p["cumulative_lr"] for p in document["comparison"]] == pytest.approx([0.02, 0.03])
    first = document["comparison"][0]
    rows = {r["run"]: {s["step"]: s["validation_loss"] for s in r["snapshots"]} for r in document["results"]}
    assert first["loss"] == pytest.approx({"fast": rows["fast"][2], "runs/slow": rows["runs/slow"][4]}, abs=1e-12)
    assert first["difference"]["runs/slow"] == pytest.approx(rows["runs/slow"][4] - rows["fast"][2], abs=1e-12)
    assert (first["difference"]["fast"], first["step"]["fast"]) == (None, pytest.approx(2))


def test_without_a_name_the_newest_run_is_taken(here: Path, dyneq_run) -> None:
    code, out, _ = dyneq_run("drift", *FAST)
    assert (code, out.splitlines()[0][:9]) == (0, "run slow,")


def test_a_damaged_snapshot_costs_itself_alone(here: Path, dyneq_run, tmp_path: Path) -> None:
    shutil.copytree(here / "runs" / "fast", tmp_path / "hurt")
    (tmp_path / "hurt" / "step-000004.pt").write_bytes(b"no checkpoint")
    code, out, err = dyneq_run("drift", tmp_path / "hurt", *FAST)
    assert code == 3
    assert [line.split()[0] for line in out.splitlines()[3:5]] == ["2", "6"]
    assert err.startswith("dyneq: hurt@4 is left out: ")
    assert err.count("\n") == 1
    code, out, err = dyneq_run("drift", tmp_path / "hurt", *FAST, "--json")
    document = json.loads(out)
    assert (code, document["status"]) == (3, "some failed")
    assert [m["name"] for m in document["missing"]] == ["hurt@4"]


def test_one_run_of_several_that_fails_is_named(here: Path, dyneq_run) -> None:
    code, out, err = dyneq_run("drift", "fast", "fsat", "--depth", "5")
    assert code == 3
    assert out.startswith("run fast,")
    assert "fsat is left out: there is no run 'fsat'" in err
    assert "did you mean 'fast'" in err


def test_an_interruption_leaves_what_was_measured(here: Path, dyneq_run, monkeypatch, tmp_path: Path) -> None:
    from dyneq.catalog import drift_measure

    real, calls = drift_measure.measure, []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(drift_measure, "measure", interrupted)
    store = ("--store", tmp_path / "own")
    code, _, err = dyneq_run("drift", "runs/fast", *FAST, *store)
    assert (code, err.strip()) == (130, "dyneq: interrupted; nothing was left half-written")
    monkeypatch.setattr(drift_measure, "measure", real)
    _, out, _ = dyneq_run("drift", "runs/fast", *FAST, *store)
    assert out.splitlines()[-1] == "  3 results: 1 computed, 2 found in the store"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["nothing"], 2, "there is no run 'nothing'"),
        (["fast@2"], 2, "is one checkpoint, and what drifts is a run of several; name its run 'fast'"),
        (["fast", "--last", "1"], 2, "there is one snapshot to look at (fast@6) and a drift needs two"),
        (["fast", "--steps", "3"], 2, "no snapshot at step 3; it has the steps 2, 4, 6"),
        (
            ["fast", "--probe", "census"],
            2,
            "made of residual, spectrum, triangulate, navg, decompose, lrsweep, but 'census'",
        ),
        (["fast", "--follow", "residual"], 2, "followed of the gradient is triangulate, navg, decompose, lrsweep, but"),
        (["fast", "--follow", "decompose:penalty=nothing"], 2, "nothing"),
        (["fast", "--probe", "navg", "--follow", "navg"], 2, "navg is given twice (--probe, --follow)"),
        (["fast", "--follow", "navg:samples=4"], 2, "8 disjoint batches need as many samples"),
        (["fast", "--probe", "residual", "--probe", "residual"], 2, "given twice"),
        (["fast", "--probe", "residual:deep=3"], 2, "no parameter 'deep'"),
        (["fast", "--probe", "residual", "--batch", "9"], 2, "4 samples, but --batch 9"),
        (["fast", "fast"], 2, "named twice"),
        (["fast", "--plot", "x.gif"], 2, "--plot writes .png"),
        (["./no-folder"], 2, "no run folder"),
        (["fsat", "solw"], 1, "none of the 2 runs could be measured"),
    ],
)
def test_wrong_use_is_one_sentence(here: Path, dyneq_run, arguments: list[str], code: int, told: str) -> None:
    found, out, err = dyneq_run("drift", *arguments)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert told in err


def test_an_empty_catalog_asks_for_a_name(here: Path, dyneq_run, tmp_path: Path) -> None:
    code, _, err = dyneq_run("drift", "--store", tmp_path / "empty")
    assert code == 2
    assert "is empty; name a run, or the folder of one" in err


def test_a_run_without_log_or_recipe_is_shown_and_not_compared(here: Path, dyneq_run, tmp_path: Path) -> None:
    from dyneq.systems.checkpoint_io import load_checkpoint, save_checkpoint

    (tmp_path / "theirs").mkdir()
    for step in (2, 4):
        held = load_checkpoint(here / "runs" / "fast" / f"step-{step:06d}.pt")
        held.recipe = {"imported": {"mapping": "theirs"}}
        save_checkpoint(tmp_path / "theirs" / f"step-{step:06d}.pt", held)
    code, out, _ = dyneq_run("drift", tmp_path / "theirs", "slow", "--depth", "5")
    assert code == 0
    assert "learning rates unknown" in out
    assert "trained elsewhere" in out
    assert "? no two runs can be compared at equal cumulative learning rate" in out
