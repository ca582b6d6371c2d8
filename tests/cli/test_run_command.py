"""``dyneq run``: sweeps, resumed, isolated failures, the same numbers for any number of workers."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import xarray as xr

import dyneq
from dyneq.catalog.specs import parse_probe
from dyneq.errors import UsageError
from dyneq.systems.checkpoint_io import load_checkpoint, save_checkpoint


@pytest.fixture
def sweep(ckpt, tmp_path, dyneq_run):
    """Add four snapshots of a run `s` to the catalog and return their folder."""
    made = load_checkpoint(ckpt)
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "recipe.toml").write_text("")
    for step in range(4):
        made.block.state_dict()["tok.weight"].mul_(1.1)
        save_checkpoint(folder / f"step-{step:06d}.pt", replace(made, step=step))
    assert dyneq_run("catalog", "add", folder)[0] == 0
    return folder


def dyneq_process(*args, **options):
    return subprocess.run(
        [sys.executable, "-m", "dyneq", *map(str, args)], capture_output=True, text=True, timeout=240, **options
    )


def test_a_sweep_is_computed_once_and_found_again(sweep, dyneq_run, dyneq_json):
    first = dyneq_json("run", "spectrum:depth=20", "root:depth=20", "--all", "--workers", "2")
    assert first["status"] == "complete"
    assert [(o["probe"], o["checkpoint"]) for o in first["results"]] == [
        (probe, f"s@{step}") for step in range(4) for probe in ("spectrum", "root")
    ]
    assert {o["status"] for o in first["results"]} == {"computed"}
    again = dyneq_json("run", "spectrum:depth=20", "root:depth=20", "--select", "run=s")
    assert {o["status"] for o in again["results"]} == {"found"}
    assert [o["result"] for o in again["results"]] == [o["result"] for o in first["results"]]
    code, out, err = dyneq_run("run", "spectrum:depth=20", "--select", "step>=2")
    assert (code, err) == (0, "")
    assert out.endswith("2 results in " + os.environ["DYNEQ_STORE"] + ": 0 computed, 2 found, 0 failed\n")
    single = dyneq_json("spectrum", "s@3", "--depth", "20")
    assert single["stored"] == {"id": first["results"][6]["result"], "found": True}, (
        "a command and a sweep share results"
    )


def test_the_number_of_workers_does_not_change_a_bit(sweep, dyneq_json, tmp_path):
    kept = {}
    for workers in (1, 2):
        store = tmp_path / f"store-{workers}"
        dyneq_json("catalog", "add", sweep, "--store", store)
        found = dyneq_json("run", "spectrum:depth=30", "--all", "--workers", workers, "--store", store)
        kept[workers] = [dyneq.open_result(o["result"], store=store).load() for o in found["results"]]
    for one, two in zip(kept[1], kept[2], strict=True):
        xr.testing.assert_identical(one.drop_vars("seconds").drop_attrs(), two.drop_vars("seconds").drop_attrs())


def test_failures_are_isolated_and_reported_at_the_end(sweep, dyneq_run, dyneq_json):
    (sweep / "step-000001.pt").write_bytes(b"nothing")
    (sweep / "step-000002.pt").unlink()
    code, out, err = dyneq_run("run", "root:depth=20", "--all", "--workers", "2")
    assert code == 3
    assert "4 results in" in out
    assert "2 computed, 0 found, 2 failed" in out
    lines = err.splitlines()
    assert [line.split(" failed: ")[0] for line in lines] == ["dyneq: root of s@1", "dyneq: root of s@2"]
    assert "is not at" in lines[1]
    for bad in ("step-000000.pt", "step-000003.pt"):
        (sweep / bad).write_bytes(b"nothing")
    assert dyneq_run("run", "root:depth=25", "--all")[0] == 1


def test_named_and_packaged_subjects(ckpt, dyneq_json, dyneq_run):
    named = dyneq_json("run", "root:depth=5", "-c", ckpt, "-c", "before", "--batch", "1")
    assert [o["checkpoint"] for o in named["results"]] == ["tiny", "before"]
    code, _, err = dyneq_run("run", "root", "-c", "dyneq.systems.analytic:lorenz")
    assert code == 2
    assert "no digest" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("spectrun", "--all"), "did you mean 'spectrum'?"),
        (("spectrum:dept=3", "--all"), "did you mean 'depth'?"),
        (("spectrum:depth", "--all"), "name:parameter=value"),
        (("spectrum:depth=3,depth=4", "--all"), "twice"),
        (("spectrum:depth=[3", "--all"), "takes another value for depth"),
        (("spectrum", "--all", "--select", "step=1"), "one of --select, --checkpoint and --all"),
        (("spectrum", "--all", "--workers", "0"), "at least 1"),
        (("spectrum", "--all", "--workers", "2", "--scheduler", "x"), "one of the two"),
        (("spectrum", "--select", "step>99"), "meets 'step>99'"),
    ],
)
def test_wrong_calls_are_one_sentence(sweep, dyneq_run, args, words):
    code, out, err = dyneq_run("run", *args)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_specs():
    probe, params = parse_probe("spectrum:at=root,depth=[150,800],numerical_abscissa=false", seed=3)
    assert probe.name == "spectrum"
    assert (params.at, params.depth, params.numerical_abscissa, params.seed) == ("root", (150, 800), False, 3)
    assert parse_probe("spectrum:depth=7,seed=1", seed=3)[1].seed == 1
    assert parse_probe("spectrum:depth=7")[1].depth == (7,)
    with pytest.raises(UsageError, match="no probe called"):
        parse_probe("")


def test_ctrl_c_keeps_what_was_finished_and_the_sweep_goes_on(sweep, dyneq_json):
    command = [sys.executable, "-m", "dyneq", "run", "spectrum:depth=4000", "--all", "--batch", "4", "--workers", "1"]

    def indexed() -> bool:
        with dyneq.Store().reading() as index:
            return index is not None and bool(index.rows("SELECT id FROM results LIMIT 1"))

    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not indexed():
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out) == (130, "")
    assert "interrupted" in err
    assert "Traceback" not in err
    kept = dyneq_json("results", "list")["results"]
    assert kept
    again = dyneq_json("run", "spectrum:depth=4000", "--all", "--batch", "4", "--workers", "1")["results"]
    assert sum(o["status"] == "found" for o in again) == len(kept)


def test_a_running_dask_cluster_does_the_same(sweep, dyneq_json, tmp_path):
    pytest.importorskip("distributed")
    server = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from distributed import LocalCluster; import time\n"
            "if __name__ == '__main__':\n"
            "    c = LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None,\n"
            "                     local_directory='dask')\n"
            "    print(c.scheduler_address, flush=True); time.sleep(300)",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        done = dyneq_process("run", "spectrum:depth=20", "--all", "--scheduler", address, "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)["results"]
        assert [(o["checkpoint"], o["status"]) for o in found] == [(f"s@{i}", "computed") for i in range(4)]
        cluster = dyneq.open_results("probe=spectrum").load()
        other = tmp_path / "other"
        dyneq_json("catalog", "add", sweep, "--store", other)
        dyneq_json("run", "spectrum:depth=20", "--all", "--store", other)
        local = dyneq.open_results("probe=spectrum", store=other).load()
        xr.testing.assert_identical(cluster.drop_vars("seconds").drop_attrs(), local.drop_vars("seconds").drop_attrs())
    finally:
        server.terminate()
        server.communicate(timeout=30)


def test_a_scheduler_that_is_not_there_is_one_sentence(sweep):
    done = dyneq_process("run", "root", "--all", "--scheduler", "tcp://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("dyneq: no dask scheduler answers at 'tcp://127.0.0.1:1'")
    assert done.stderr.count("\n") == 1
