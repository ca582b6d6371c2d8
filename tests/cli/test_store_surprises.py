"""What a review of the store found: each was silently wrong, or a dead end."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import dyneq
from dyneq.catalog import results
from dyneq.catalog.request import Request
from dyneq.errors import UsageError
from dyneq.probes.base import Params, Probe
from dyneq.probes.provenance import stamp
from dyneq.systems.checkpoint_io import load_checkpoint, save_checkpoint


@pytest.fixture
def other(ckpt, tmp_path):
    """Return a second checkpoint that differs from the first."""
    made = load_checkpoint(ckpt)
    made.step = 8
    path = tmp_path / "other.pt"
    save_checkpoint(path, made)
    return path


def test_a_combined_sweep_is_not_read_as_one_result(ckpt, other, dyneq_json):
    for path in (ckpt, other):
        dyneq_json("root", path, "--depth", "5")
    both = dyneq.open_results("probe=root")
    for read in (dyneq.summary, dyneq.plot):
        with pytest.raises(UsageError, match="combines 2 along checkpoint; open one"):
            read(both)
    assert dyneq.summary(both.isel(checkpoint=0))


def test_parameters_that_are_not_finite_are_kept(ckpt):
    class WithTol(Params):
        tol: float

    class Dummy(Probe):
        name = "dummy"
        Params = WithTol

        def run(self, system, params, progress=None):
            return xr.Dataset()

        def summary(self, ds):
            return []

        def plot(self, ds, ax=None):
            return None

    system = dyneq.open_checkpoint(ckpt).bind(1)
    kept = {
        tol: json.loads(stamp(xr.Dataset(), Dummy(), WithTol(tol=tol), system, 0.0, {}).attrs["params"])["tol"]
        for tol in (float("inf"), float("-inf"), 1.5)
    }
    assert all(tol == value for tol, value in kept.items())


def test_a_damaged_result_is_not_reported_as_found(ckpt, dyneq_run, dyneq_json, own_store):
    done = dyneq_json("run", "root:depth=5", "-c", ckpt, "-c", "before", "--batch", "1")["results"]
    folder = own_store / "results" / "root" / done[0]["result"]
    chunk = folder / "data.zarr" / "force_residual" / "c" / "0"
    data = bytearray(chunk.read_bytes())
    data[-1] ^= 1
    chunk.write_bytes(data)
    code, out, err = dyneq_run("run", "root:depth=5", "-c", ckpt, "-c", "before", "--batch", "1")
    assert code == 3
    assert "0 computed, 1 found, 1 failed" in out
    assert "does not match its hash" in err
    assert "--force" in err


def test_what_is_not_known_of_a_results_checkpoint_is_unknown(ckpt, dyneq_json):
    dyneq_json("root", ckpt, "--depth", "5")
    for selection in ("kind!=thick", "not kind=thick", "kind=thick"):
        assert dyneq_json("results", "list", "--select", selection)["results"] == [], selection
    assert len(dyneq_json("results", "list", "--select", "run!=r1")["results"]) == 1, "it is in no run"


def test_a_result_keeps_its_run_when_the_checkpoint_is_forgotten(ckpt, dyneq_run, dyneq_json):
    dyneq_run("catalog", "add", ckpt, "--run", "r1")
    dyneq_json("root", "r1@7", "--depth", "5")
    ckpt.unlink()
    assert dyneq_run("catalog", "gc", "--missing")[0] == 0
    assert dyneq_json("catalog", "list")["results"] == []
    assert len(dyneq_json("results", "list", "--select", "run=r1")["results"]) == 1
    assert dyneq.open_results("run=r1")["run"].values.tolist() == ["r1"]


def test_twin_runs_find_one_result_under_both_names(ckpt, dyneq_run, dyneq_json):
    dyneq_run("catalog", "add", ckpt, "--run", "r1")
    dyneq_json("root", "r1@7", "--depth", "5")
    dyneq_run("catalog", "add", ckpt, "--run", "a0")
    for run in ("r1", "a0"):
        assert len(dyneq_json("results", "list", "--select", f"run={run}")["results"]) == 1
    assert dyneq.open_results("run=r1")["run"].values.tolist() == ["r1"], "the run it was measured in"


def test_a_found_result_is_called_what_was_asked_for(ckpt, tmp_path, dyneq_run, dyneq_json):
    dyneq_json("root", ckpt, "--depth", "5")
    twin = shutil.copy(ckpt, tmp_path / "twin.pt")
    code, out, _ = dyneq_run("root", twin, "--depth", "5")
    assert code == 0
    assert out.startswith("twin (ThickBlock")
    assert "stored result" in out


def test_a_tag_may_have_a_space(ckpt, dyneq_run, dyneq_json):
    dyneq_run("catalog", "add", ckpt, "--tag", "my tag", "--tag", "x")
    assert dyneq_json("catalog", "list")["results"][0]["tags"] == ["my tag", "x"]


def test_no_result_goes_through_a_link_out_of_the_store(ckpt, tmp_path, dyneq_run, dyneq_json, own_store):
    dyneq_json("spectrum", ckpt, "--depth", "5")
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    (own_store / "results" / "root").symlink_to(elsewhere)
    code, out, err = dyneq_run("root", ckpt, "--depth", "5")
    assert (code, out) == (1, "")
    assert "is a link" in err
    assert list(elsewhere.iterdir()) == []


def test_one_broken_name_does_not_stop_a_sweep(ckpt, tmp_path, dyneq_run):
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no")
    code, out, err = dyneq_run("run", "root:depth=5", "-c", ckpt, "-c", broken, "--json")
    assert (code, err) == (3, "")
    found = json.loads(out)["results"]
    assert [(o["checkpoint"], o["status"]) for o in found] == [("tiny", "computed"), (str(broken), "failed")]
    assert dyneq_run("run", "root:depth=5", "-c", broken)[0] == 1


def test_a_name_of_the_catalog_is_looked_up_before_a_module(ckpt, tmp_path, dyneq_run, monkeypatch):
    """`a:b` must not import a.py if the catalog of an older version knows a checkpoint of that name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").write_text("open('executed', 'w').close()\n")
    dyneq_run("catalog", "add", ckpt)
    with dyneq.Store().writing() as index, index.transaction():
        index.rows("UPDATE checkpoints SET name = 'a:b'")
    assert dyneq_run("root", "a:b", "--depth", "5")[0] == 0
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "args", [("root", "x" * 300), ("catalog", "add", "x" * 300), ("root", "after", "--out", "x" * 300 + ".nc")]
)
def test_names_no_file_can_have_are_one_sentence(dyneq_run, args):
    code, out, err = dyneq_run(*args)
    assert code in (1, 2)
    assert out == ""
    assert err.startswith("dyneq: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("options", [{"batch": 1.0}, {"batch": True}, {"eps": "0.1"}, {"dtype": "float16"}])
def test_python_values_of_the_wrong_type_are_sentences(ckpt, options):
    with pytest.raises(UsageError):
        dyneq.measure(dyneq.open_checkpoint(ckpt), "root", {"depth": 5}, **options)


def test_no_escape_sequence_of_a_file_reaches_the_terminal(ckpt, tmp_path, dyneq_run):
    made = load_checkpoint(ckpt)
    made.recipe = {"x": "\x1b[31mred"}
    path = tmp_path / "red.pt"
    save_checkpoint(path, made)
    dyneq_run("catalog", "add", path)
    for args in (("catalog", "show", "red"), ("catalog", "list"), ("root", "\x1b[31mred")):
        _, out, err = dyneq_run(*args)
        assert "\x1b" not in out + err, args


def test_environment_variables_mirror_the_options(ckpt, dyneq_json, monkeypatch):
    first = dyneq_json("root", ckpt, "--depth", "5")["stored"]["id"]
    monkeypatch.setenv("DYNEQ_FORCE", "1")
    assert dyneq_json("root", ckpt, "--depth", "5")["stored"]["id"] != first
    monkeypatch.setenv("DYNEQ_LIMIT", "1")
    assert len(dyneq_json("results", "list")["results"]) == 1
    monkeypatch.setenv("DYNEQ_SELECT", "probe=spectrum")
    assert dyneq_json("results", "list")["results"] == []


def test_results_of_a_probe_that_is_gone_are_shown_and_compared(own_store, dyneq_run):
    store = dyneq.Store()
    found = []
    for value in (1.0, 2.0):
        ds = xr.Dataset({"x": ("sample", np.array([value]))}, attrs={"probe": "gone", "probe_version": 1})
        request = Request("a" * 64, "gone", 1, {"v": value}, 1, 0.1, "float64", "cpu")
        found.append(results.put(store, request, ds, name="c").id)
    code, out, err = dyneq_run("results", "show", found[0])
    assert (code, err) == (0, "")
    assert "the probe 'gone' is not installed" in out
    code, out, err = dyneq_run("results", "diff", *found)
    assert (code, err) == (0, "")
    assert "is not installed" in out


def test_variables_keep_their_order(own_store):
    names = ["z", "a", "m", "b"]
    ds = xr.Dataset({n: ("s", np.arange(2.0)) for n in names}, {"s": [1, 2], "lone": ("t", [1.0, 2.0, 3.0])})
    request = Request("a" * 64, "order", 1, {}, 1, 0.1, "float64", "cpu")
    back = results.put(dyneq.Store(), request, ds, name="c").open().load()
    assert list(back.data_vars) == names
    xr.testing.assert_identical(back, ds)


def test_loading_a_checkpoint_imports_no_compiler(ckpt):
    program = "import sys, dyneq; dyneq.open_checkpoint(sys.argv[1]); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, str(ckpt)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_mapping_reads_no_text_through_a_link(tmp_path):
    from dyneq.catalog.mapping import read_mapping

    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("abc " * 100)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.txt").symlink_to(outside / "secret.txt")
    (inside / "m.toml").write_text(
        'format = "dyneq-mapping/1"\n[block]\nkind = "thick"\nchannels = 8\nheads = 2\ntokens = 4\n[file]\nstep = 1\n'
        '[vocabulary]\nfile = "link.txt"\n[evaluation]\nfile = "link.txt"\nsamples = 1\n[weights]\n"tok.weight" = "w"\n'
    )
    with pytest.raises(UsageError, match="is a link out of the mapping's folder"):
        read_mapping(inside / "m.toml")
    assert Path(os.environ["DYNEQ_STORE"]).exists() is False


def test_files_of_other_endings_are_counted(ckpt, tmp_path, dyneq_run):
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(ckpt, folder / "a.pt")
    for name in ("b.pth", "c.PT", "notes.txt"):
        shutil.copy(ckpt, folder / name)
    code, out, err = dyneq_run("catalog", "add", folder)
    assert (code, out[:6]) == (0, "1 of 1")
    assert err == "dyneq: 2 files that end in .pth, .ckpt or .PT were left out; name them .pt\n"
