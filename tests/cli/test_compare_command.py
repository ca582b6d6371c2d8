"""``dyneq compare``: runs on workers, found again, resumed after a kill, isolated failures, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dyneq.errors import DyneqError
from dyneq.train.log import read_log
from dyneq.train.run_folder import RunFolder

TINY = """
[block]
channels = 8
heads = 2
tokens = 6
resinit = 0.1
[data]
file = "{text}"
evaluation_samples = 8
[gradient]
name = "adjoint"
t1 = 40
steps = 4
[run]
steps = 6
batch = 3
evaluate_every = 2
save_every = 2
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A text, recipes of three arms, and a store, in the current folder."""
    text = tmp_path / "text.txt"
    text.write_text("".join(np.random.default_rng(0).choice(list("abcdefgh "), 4000)), encoding="utf-8")
    (tmp_path / "plain.toml").write_text(TINY.format(text=text))
    (tmp_path / "held.toml").write_text('inherits = "plain.toml"\n[grid]\n"penalty.floss" = [0.1, 0.2]\n')
    (tmp_path / "lost.toml").write_text(TINY.format(text=tmp_path / "absent.txt"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DYNEQ_STORE", str(tmp_path / "store"))
    return tmp_path


def logged(folder):
    return {
        path.parent.name: [{k: v for k, v in record.items() if k != "seconds"} for record in read_log(path)]
        for path in sorted(Path(folder).glob("*/log.jsonl"))
    }


def timeless(value):
    """A document without wall-clock times."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not k.startswith("seconds")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def test_arms_by_seeds_in_one_table_found_again_and_shown_again(here, dyneq_run, dyneq_json):
    asked = ["compare", "plain.toml", "held.toml", "--seeds", "2", "--lr", "1e-2", "--lr", "1e-3", "--workers", "2"]
    code, out, err = dyneq_run(*asked, "--against", "plain", "--out", "r.json", "--into", "runs", "--quiet")
    assert code == 0
    assert "Traceback" not in err
    lines = out.splitlines()
    assert lines[0].split() == [
        *("arm", "lr", "runs", "broke", "loss", "best", "residual", "worst", "unsettled", "rho", "s/update", "time"),
        "acts",
        *("loss", "-", "plain", "(pairs)"),
    ]
    assert [line.split()[:4] for line in lines[1:10]] == [
        [arm, lr, runs, "0"]
        for arm in ("plain", "held-floss0.1", "held-floss0.2")
        for lr, runs in (("0.01", "2"), ("0.001", "2"), ("all", "4"))
    ]
    names = {f"{arm}-lr{lr}-seed{s}" for arm in ("plain", "held-floss0.1", "held-floss0.2") for lr in ("0.01", "0.001")
             for s in (0, 1)}  # fmt: skip
    assert {path.name for path in (here / "runs").iterdir()} == names
    document = json.loads((here / "r.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (document["schema"], document["command"], document["status"]) == (2, "compare", "complete")
    assert document["made_with"].keys() == {"dyneq", "torch", "python", "threads", "workers"}
    assert len(document["runs"]) == 12
    for run in document["runs"]:
        folder = here / "runs" / f"{run['arm']}-lr{run['lr']:g}-seed{run['seed']}"
        last = [r for r in read_log(folder / "log.jsonl") if "validation_loss" in r][-1]
        assert run["final_loss"] == last["validation_loss"]
        assert run["with"]["threads"] == 1
        assert run["curve"]["step"] == [2, 4, 6]
        assert run["recipe"]["run"]["seed"] == run["seed"]
        weight = {"plain": None, "held-floss0.1": 0.1, "held-floss0.2": 0.2}[run["arm"]]
        assert run["recipe"].get("penalty", {}).get("floss", {}).get("weight") == weight
    first = document["results"][0]
    own = [r["final_loss"] for r in document["runs"] if (r["arm"], r["lr"]) == ("plain", 0.01)]
    assert first["loss"] == pytest.approx(sum(own) / 2)
    before = {p: p.read_bytes() for p in (here / "runs").rglob("*") if p.is_file()}
    again = dyneq_json(*asked, "--against", "plain", "--into", "runs")
    assert again == document  # also the times: nothing was trained
    assert {p: p.read_bytes() for p in (here / "runs").rglob("*") if p.is_file()} == before
    code, shown, err = dyneq_run("compare", "--show", "r.json", "--against", "plain")
    assert (code, err) == (0, "")
    command, table = shown.split("\n", 1)
    assert table == out
    assert command.startswith("dyneq compare plain.toml held.toml --seeds 0,1 --lr 0.01 --lr 0.001")
    assert dyneq_json("compare", "--show", "r.json", "--against", "plain")["results"] == document["results"]
    alone = dyneq_json(*asked[:3], "--seed", "1", "--lr", "1e-3", "--against", "plain", "--into", "runs")
    chosen = ("compare", "--show", "r.json", "--against", "plain", "--seed", "1", "--lr", "1e-3")
    assert dyneq_json(*chosen)["results"] == alone["results"]
    assert dyneq_json(*chosen)["runs"] == alone["runs"]
    for wrong, what in (
        (("--seeds", "1,7"), "the seed 7; it has 0, 1"),
        (("--lr", "3"), "the lr 3.0; it has 0.001, 0.01"),
        (("--steps", "3", "--set", "a=1"), "trains nothing; leave --steps, --set out"),
    ):
        code, out, err = dyneq_run("compare", "--show", "r.json", *wrong)
        assert (code, out, what in err, err.count("\n")) == (2, "", True, 1)
    code, _, err = dyneq_run("compare", "--show", "r.json", "--against", "plane")
    assert (code, "did you mean 'plain'" in err) == (2, True)
    assert dyneq_run("catalog", "list")[1].count("held-floss0.1-lr0.01-seed1") == 1


def test_the_command_line_in_the_document_makes_the_same_numbers(here, dyneq_json, monkeypatch):
    first = dyneq_json("compare", "plain.toml", "--seed", "4", "--steps", "3", "--set", "run.batch=2", "--into", "a")
    words = first["command_line"].split()
    assert words[:2] == ["dyneq", "compare"]
    second = dyneq_json(*words[1:], "--into", "b")
    assert timeless(first["runs"]) == timeless(second["runs"])
    assert first["runs"][0]["recipe"]["run"]["batch"] == 2
    assert first["runs"][0]["updates"] == 3


def test_a_comparison_whose_parent_is_killed_goes_on_to_the_same_bits(here, dyneq_json):
    asked = ["held.toml", "--seed", "0", "--seed", "1", "--steps", "15", "--workers", "2"]
    dyneq_json("compare", *asked, "--into", "whole")
    process = subprocess.Popen(
        [sys.executable, "-m", "dyneq", "compare", *asked, "--into", "killed", "--quiet"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    logs = here / "killed"
    deadline = time.monotonic() + 120
    while sum(len(records) for records in logged(logs).values()) < 12:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = list(logs.glob("*/outcome.json"))
    assert len(done) < 4, "nothing was left to do"
    deadline = time.monotonic() + 60
    while True:  # workers end by themselves when their parent is gone, and let go of the folders
        try:
            for recipe in logs.glob("*/recipe.toml"):
                with RunFolder.open(recipe.parent).locked():
                    pass
            break
        except DyneqError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    resumed = dyneq_json("compare", *asked, "--into", "killed")
    assert logged("killed") == logged("whole")
    assert timeless(resumed["runs"]) == timeless(dyneq_json("compare", *asked, "--into", "whole")["runs"])


def test_an_interrupt_leaves_what_can_be_continued(here, dyneq_json):
    asked = ["plain.toml", "--seeds", "2", "--steps", "60", "--set", "run.evaluate_every=60"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dyneq", "compare", *asked, "--into", "runs"], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while sum(len(records) for records in logged("runs").values()) < 20:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues them" in err
    assert "Traceback" not in err
    assert len(logged("runs")["plain-lr0.003-seed0"]) < 60
    document = dyneq_json("compare", *asked, "--into", "runs")
    assert [run["updates"] for run in document["runs"]] == [60, 60]
    steps = [record["step"] for record in logged("runs")["plain-lr0.003-seed0"]]
    assert steps == list(range(61))  # nothing twice, nothing missing


def test_a_run_that_fails_takes_no_other_with_it(here, dyneq_run):
    code, out, err = dyneq_run("compare", "lost.toml", "plain.toml", "--seeds", "2", "--json", "--into", "runs")
    assert code == 3
    document = json.loads(out)
    assert document["status"] == "some failed"
    assert [run["arm"] for run in document["runs"]] == ["plain", "plain"]
    assert [failure["run"] for failure in document["failed"]] == ["lost-lr0.003-seed0", "lost-lr0.003-seed1"]
    assert "absent.txt cannot be read" in document["failed"][0]["error"]
    assert err.count("lost-lr0.003") == 2
    (here / "absent.txt").write_text((here / "text.txt").read_text())  # repaired, the same command does the rest
    code, out, err = dyneq_run("compare", "lost.toml", "plain.toml", "--seeds", "2", "--json", "--into", "runs")
    assert (code, json.loads(out)["status"], err) == (0, "complete", "")
    code, out, err = dyneq_run("compare", "plain.toml", "--data", "no.txt", "--seeds", "1", "--into", "none")
    assert (code, out) == (1, "")


def test_a_run_that_breaks_is_a_result_and_told(here, dyneq_run):
    broken = ["--set", "optimizer.warmup=0", "--set", "run.evaluate_every=1"]
    code, out, _ = dyneq_run("compare", "plain.toml", "--lr", "1e30", "--seeds", "2", *broken, "--into", "runs")
    assert code == 0
    row = out.splitlines()[1].split()
    assert row[:4] == ["plain", "1e+30", "2", "2"]
    assert out.count("broke: plain lr 1e+30 seed") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to compare"),
        (["flos"], "no packaged recipe 'flos'; did you mean 'floss'"),
        (["absent.toml"], "absent.toml cannot be read"),
        (["plain.toml", "--seeds", "0"], "asks for no runs at all"),
        (["plain.toml", "--seeds", "a"], "--seeds takes a number of seeds or a list"),
        (["plain.toml", "--seeds", "1,b"], "but got '1,b'"),
        (["plain.toml", "--seeds", "-1"], "but got '-1'"),
        (["plain.toml", "--seeds", ","], "but got ','"),
        (["plain.toml", "--seeds", "2", "--seed", "1"], "use one of the two"),
        (["plain.toml", "--seeds", "1,1"], "two runs would both be called plain-lr0.003-seed1"),
        (["plain.toml", "--lr", "-1"], "'optimizer.lr' to -1.0"),
        (["plain.toml", "--steps", "0"], "'run.steps' to 0"),
        (["plain.toml", "--workers", "0"], "workers must be at least 1"),
        (["plain.toml", "--set", "run.stps=1"], "did you mean 'steps'"),
        (["plain.toml", "--set", "run.seed=1"], "use --seeds"),
        (["held.toml", "--set", "penalty.floss=3"], "penalty.floss"),
        (["plain.toml", "--against", "plane"], "no arm called 'plane'; did you mean 'plain'"),
        (["plain.toml", "--out", "no/r.json"], "a folder that does not exist"),
        (["plain.toml", "--show", "r.json"], "takes no recipes"),
        (["--show", "r.json"], "r.json cannot be read"),
    ],
)
def test_wrong_use_is_one_sentence_and_leaves_nothing(here, dyneq_run, arguments, message):
    before = sorted(here.iterdir())
    code, out, err = dyneq_run("compare", *arguments)
    assert (code in (1, 2), out) == (True, "")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(here.iterdir()) == before


def test_a_folder_of_another_comparison_is_refused_before_anything_is_trained(here, dyneq_run):
    assert dyneq_run("compare", "plain.toml", "--seed", "1", "--steps", "2", "--quiet")[0] == 0
    assert (here / "compare" / "plain" / "plain-lr0.003-seed1").is_dir()
    code, out, err = dyneq_run("compare", "plain.toml", "--seeds", "2", "--steps", "3")
    assert (code, out) == (2, "")
    assert "plain-lr0.003-seed1 holds a run of another recipe (it differs in run.steps); choose another --into" in err
    assert [path.name for path in (here / "compare" / "plain").iterdir()] == ["plain-lr0.003-seed1"]


def test_train_sends_a_grid_to_compare(dyneq_run):
    code, out, err = dyneq_run("train", "--recipe", "held.toml")
    assert (code, out) == (2, "")
    assert "describes several runs" in err
    assert "dyneq compare held.toml" in err


def test_help_needs_no_torch():
    code = "import sys, dyneq.cli.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
