"""``dyneq catalog``: adding, listing, naming, tagging, verifying; and names wherever a checkpoint is asked for."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dyneq.systems.checkpoint_io import load_checkpoint, save_checkpoint


@pytest.fixture
def runs(ckpt, tmp_path):
    """Return a folder with the snapshots of two runs, `one` (steps 1 to 3) and `two` (step 1), all different."""
    made = load_checkpoint(ckpt)
    for run, steps in (("one", (1, 2, 3)), ("two", (1,))):
        folder = tmp_path / "runs" / run
        folder.mkdir(parents=True)
        (folder / "recipe.toml").write_text("")
        for step in steps:
            snapshot = replace(
                made,
                step=step,
                metrics={"validation_loss": 3.0 - 0.5 * step, "bad": float("nan")},
                recipe={"name": run, "optimizer": {"lr": 0.1 * step}},
            )
            save_checkpoint(folder / f"step-{step:06d}.pt", snapshot)
        shutil.copy(folder / "step-000001.pt", folder / "last.pt")
    return tmp_path / "runs"


@pytest.fixture
def filled(runs, dyneq_run):
    """Add both runs to the catalog and return their folder."""
    code, out, err = dyneq_run("catalog", "add", runs, "--tag", "first")
    assert (code, err) == (0, "")
    assert out.startswith("4 of 4 checkpoints are in the catalog of ")
    return runs


def listed(dyneq_json, *args):
    return [(r["run"], r["step"]) for r in dyneq_json("catalog", "list", *args)["results"]]


def test_a_folder_is_added_without_its_moving_last_snapshot(filled, dyneq_json):
    results = dyneq_json("catalog", "list")["results"]
    assert sorted((r["run"], r["step"], r["name"]) for r in results) == [
        ("one", 1, "step-000001"),
        ("one", 2, "step-000002"),
        ("one", 3, "step-000003"),
        ("two", 1, "step-000001"),
    ]
    for r in results:
        assert Path(r["path"]) == filled / r["run"] / f"step-{r['step']:06d}.pt"
        assert r["sha256"] == load_checkpoint(r["path"]).sha256
        assert r["metrics"] == {"validation_loss": 3.0 - 0.5 * r["step"], "bad": "NaN"}
        assert r["tags"] == ["first"]


def test_adding_again_changes_nothing(filled, dyneq_run, dyneq_json):
    before = dyneq_json("catalog", "list")
    assert dyneq_run("catalog", "add", filled)[0] == 0
    assert dyneq_json("catalog", "list") == before


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("run=one and step>=2", {("one", 2), ("one", 3)}),
        ("val<1.8", {("one", 3)}),
        ("validation_loss < 1.8 or run=two", {("one", 3), ("two", 1)}),
        ("recipe.optimizer.lr in (0.2, 0.3)", {("one", 2), ("one", 3)} - {("one", 3)}),
        ("config.channels=8 and not run=one", {("two", 1)}),
        ("tag=first and name~'*3'", {("one", 3)}),
        ("bad<1 or bad>=1 or not bad=1", set()),
    ],
)
def test_selections(filled, dyneq_json, selection, expected):
    # 0.1 * 3 is not 0.3 in binary: a selection compares numbers, it does not round them
    assert set(listed(dyneq_json, "--select", selection)) == expected


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ("run=", "run="),
        ("vall<2", "'vall'"),
        ("step>=1; drop table checkpoints", "character"),
    ],
)
def test_a_wrong_selection_is_one_sentence(filled, dyneq_run, selection, words):
    code, out, err = dyneq_run("catalog", "list", "--select", selection)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_names_stand_for_checkpoints_everywhere(filled, dyneq_json, dyneq_run):
    digest = load_checkpoint(filled / "one" / "step-000002.pt").sha256
    dyneq_run("catalog", "tag", "one@2", "chosen")
    for name in ("one@2", digest, digest[:8], digest[:8].upper(), "chosen", "step-000002"):
        found = dyneq_json("spectrum", name, "--depth", "20")
        assert found["checkpoint"] == {"name": "one@2", "sha256": digest, "step": 2}, name


def test_an_ambiguous_name_lists_the_candidates(filled, dyneq_run):
    code, out, err = dyneq_run("spectrum", "step-000001")
    assert (code, out) == (2, "")
    digests = [load_checkpoint(filled / run / "step-000001.pt").sha256[:12] for run in ("one", "two")]
    assert f"one@1 ({digests[0]}), two@1 ({digests[1]})" in err
    assert "stands for 2 checkpoints" in err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one@7", "the run 'one' has the steps 1, 2, 3"),
        ("onee@2", "did you mean 'one@2'?"),
        ("afte", "did you mean 'after'?"),
        ("step-00002", "did you mean 'step-000002'?"),
        ("abcdef99", "neither a checkpoint file"),
    ],
)
def test_an_unknown_name_names_the_nearest(filled, dyneq_run, name, words):
    code, out, err = dyneq_run("spectrum", name)
    assert (code, out) == (2, "")
    assert words in err


def test_without_a_name_the_newest_is_taken_and_without_a_catalog_the_packaged(filled, dyneq_json, dyneq_run, tmp_path):
    dyneq_run("catalog", "add", filled / "two" / "step-000001.pt", "--run", "again")
    assert dyneq_json("spectrum", "--depth", "20")["checkpoint"]["name"] == "again@1"
    empty = dyneq_json("root", "--depth", "5", "--batch", "1", "--store", tmp_path / "other")
    assert [d["checkpoint"]["name"] for d in empty["checkpoints"]] == ["after", "before", "bptt-twin", "converges"]


def test_select_chooses_the_subjects(filled, dyneq_json, dyneq_run):
    found = dyneq_json("spectrum", "--select", "run=one", "--depth", "20")
    assert [d["checkpoint"]["name"] for d in found["checkpoints"]] == ["one@1", "one@2", "one@3"]
    code, _, err = dyneq_run("spectrum", "one@1", "--select", "run=one")
    assert code == 2
    assert "named or selected, not both" in err
    code, _, err = dyneq_run("spectrum", "--select", "step>99")
    assert code == 2
    assert "meets 'step>99'" in err


def test_twin_runs_hold_one_checkpoint_under_two_names(filled, dyneq_run, dyneq_json):
    dyneq_run("catalog", "add", filled / "two" / "step-000001.pt", "--run", "twin")
    two, twin = dyneq_json("catalog", "show", "two@1"), dyneq_json("catalog", "show", "twin@1")
    assert two == twin
    assert [p["run"] for p in two["results"][0]["places"]] == ["twin", "two"]
    found = dyneq_json("spectrum", "--select", "run in (two, twin)", "--depth", "20")
    assert found["checkpoint"]["step"] == 1, "one digest is measured once"


def test_tags_come_and_go(filled, dyneq_run, dyneq_json):
    assert dyneq_run("catalog", "tag", "--select", "step>=2", "late", "odd")[1] == "tagged 2 checkpoints\n"
    assert set(listed(dyneq_json, "--select", "tag=late")) == {("one", 2), ("one", 3)}
    assert dyneq_run("catalog", "tag", "one@2", "late", "--remove")[1] == "untagged 1 checkpoint\n"
    assert listed(dyneq_json, "--select", "tag=late") == [("one", 3)]
    assert set(listed(dyneq_json, "--select", "tag!=odd")) == {("one", 1), ("two", 1)}
    for bad in ("a:b", "", " x", "-x", "a@b", "x\ny"):
        code, _, err = dyneq_run("catalog", "tag", "one@2", "--", bad)
        assert code == 2
        assert "a tag is" in err


def test_a_copy_outlives_its_original(filled, dyneq_run, dyneq_json):
    original = filled / "one" / "step-000003.pt"
    dyneq_run("catalog", "add", original, "--copy")
    content = original.read_bytes()
    shutil.rmtree(filled)
    place = dyneq_json("catalog", "show", "one@3")["results"][0]["places"][0]
    assert place["exists"]
    assert Path(place["path"]).read_bytes() == content
    assert dyneq_json("spectrum", "one@3", "--depth", "20")["checkpoint"]["step"] == 3


def test_a_file_that_is_gone_or_changed_is_said(filled, dyneq_run):
    (filled / "one" / "step-000001.pt").unlink()
    shutil.copy(filled / "two" / "step-000001.pt", filled / "one" / "step-000002.pt")
    for name, words in (("one@1", "is not at"), ("one@2", "is not the file that was added")):
        code, out, err = dyneq_run("spectrum", name)
        assert (code, out) == (1, "")
        assert words in err
    code, out, _ = dyneq_run("catalog", "verify")
    assert code == 1
    assert "step-000001" in out
    assert "was changed or damaged since it was added" in out
    assert "2 problems" in out
    assert dyneq_run("catalog", "gc", "--missing")[1].startswith("forgot step-000001 of run one")
    assert "1 problems" in dyneq_run("catalog", "verify")[1]


def test_a_project_can_be_moved_with_its_store(filled, dyneq_run, tmp_path, monkeypatch):
    store = Path(os.environ["DYNEQ_STORE"])
    here = tmp_path / "a"
    here.mkdir()
    shutil.move(filled, here / "runs")
    dyneq_run("catalog", "add", here / "runs", "--store", here / ".dyneq")
    shutil.move(here, tmp_path / "b")
    code, out, err = dyneq_run("catalog", "verify", "--store", tmp_path / "b" / ".dyneq")
    assert (code, err) == (0, "")
    assert out.startswith("4 checkpoints and 0 results")
    assert store.exists()


def test_failures_while_adding_are_isolated(runs, dyneq_run):
    (runs / "one" / "step-000002.pt").write_bytes(b"nothing")
    code, out, err = dyneq_run("catalog", "add", runs)
    assert code == 3
    assert out.startswith("3 of 4 checkpoints")
    assert err.count("\n") == 1
    assert "step-000002.pt" in err


def test_an_empty_catalog_says_so(dyneq_run):
    code, out, err = dyneq_run("catalog", "list")
    assert (code, out) == (0, "")
    assert "is empty" in err
    code, out, err = dyneq_run("catalog", "show", "x")
    assert (code, out) == (2, "")
    assert "is called 'x'" in err
    assert not Path(os.environ["DYNEQ_STORE"]).exists(), "reading makes nothing"


def test_another_folder_is_no_store(dyneq_run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = dyneq_run("catalog", "list", "--store", tmp_path)
    assert code == 1
    assert "is no store" in err


def test_rebuild_lists_the_same(filled, dyneq_run, dyneq_json):
    dyneq_json("spectrum", "one@2", "--depth", "20")
    before = dyneq_json("catalog", "list"), dyneq_json("results", "list")
    index = Path(os.environ["DYNEQ_STORE"]) / "index.sqlite"
    index.write_bytes(b"not a database, and long enough to be read as a page of one" * 100)
    code, _, err = dyneq_run("catalog", "list")
    assert code == 1
    assert "is damaged" in err
    assert "dyneq catalog rebuild" in err
    assert dyneq_run("catalog", "rebuild")[1].endswith("lists 4 checkpoints and 1 results\n")
    assert (dyneq_json("catalog", "list"), dyneq_json("results", "list")) == before
    assert dyneq_run("catalog", "verify")[0] == 0


def test_show_prints_everything_known(filled, dyneq_run):
    code, out, err = dyneq_run("catalog", "show", "one@2")
    assert (code, err) == (0, "")
    for words in ("step      2", "tags      first", "run one", "validation_loss = 2.0", "lr = 0.2", "channels = 8"):
        assert words in out


def test_listing_stays_free_of_torch(filled, own_store):
    code = (
        "import sys; from dyneq.cli.main import run; run(['catalog', 'list', '--select', 'step>1']); "
        "run(['results', 'list']); print(sorted({'torch', 'xarray', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"


def test_training_registers_its_snapshots(tmp_path, dyneq_run, dyneq_json, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("abc def gh " * 300)
    small = [
        *("--set", "block.channels=8", "--set", "block.heads=2", "--set", "block.tokens=6", "--set", "run.batch=2"),
        *("--set", "data.evaluation_samples=4", "--gradient", "adjoint:steps=4,relaxation=5"),
        *("--data", "text.txt", "--set", "run.snapshots=[1,2,3]", "--quiet"),
    ]
    trained = dyneq_run("train", *small, "--steps", "3", "--run", "floss-3")
    assert trained[0] == 0, trained
    assert sorted(listed(dyneq_json, "--select", "run=floss-3")) == [("floss-3", 1), ("floss-3", 2), ("floss-3", 3)]
    shown = dyneq_json("catalog", "show", "floss-3@2")["results"][0]
    assert shown["places"][0]["made_by"] == "dyneq train, adjoint"
    assert Path(shown["places"][0]["path"]) == tmp_path / "runs" / "floss-3" / "step-000002.pt"
    assert shown["sha256"] == load_checkpoint(tmp_path / "runs" / "floss-3" / "step-000002.pt").sha256


def test_training_goes_on_if_the_catalog_fails_and_refuses_to_start_if_it_cannot_be_made(
    tmp_path, dyneq_run, monkeypatch
):
    from dyneq.catalog import checkpoints
    from dyneq.errors import DyneqError

    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("abc def gh " * 300)
    small = [
        *("--set", "block.channels=8", "--set", "block.heads=2", "--set", "block.tokens=6", "--set", "run.batch=2"),
        *("--set", "data.evaluation_samples=4", "--gradient", "adjoint:steps=4,relaxation=5", "--quiet"),
        *("--data", "text.txt", "--steps", "1"),
    ]
    code, _, err = dyneq_run("train", *small, "--run", "a", "--store", tmp_path / "text.txt")
    assert code == 1
    assert not (tmp_path / "runs").exists(), "nothing was trained"

    def refuse(*args, **options):
        raise DyneqError("the disk is full")

    monkeypatch.setattr(checkpoints, "add_file", refuse)
    code, _, err = dyneq_run("train", *small, "--run", "b")
    assert code == 0
    assert err == "dyneq: step-000001.pt is saved but not in the catalog (the disk is full)\n"
    assert (tmp_path / "runs" / "b" / "step-000001.pt").exists()


def test_gc_removes_what_killed_processes_left(filled, dyneq_run, own_store):
    left = own_store / ".tmp" / ("0" * 32)
    (left / "data.zarr").mkdir(parents=True)
    (left / "data.zarr" / "zarr.json").write_text("{}")
    beside = filled / "one" / f".step-000001.pt.{'a' * 32}.tmp"
    beside.write_bytes(b"half")
    code, out, _ = dyneq_run("catalog", "gc", "--dry-run")
    assert code == 0
    assert str(left) in out
    assert left.exists()
    dyneq_run("catalog", "gc")
    assert not left.exists()
    assert beside.exists(), "a running process may be writing it"
    old = time.time() - 7200
    os.utime(beside, (old, old))
    dyneq_run("catalog", "gc")
    assert not beside.exists()
    assert json.loads(dyneq_run("catalog", "list", "--json")[1])["results"]
