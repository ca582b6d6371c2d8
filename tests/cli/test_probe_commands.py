"""dyneq spectrum and dyneq root: what they print, what they write, and how they fail."""

import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import xarray as xr

from dyneq.catalog.output import read_dataset
from dyneq.probes.registry import get_probe
from dyneq.systems.checkpoint_io import load_checkpoint

SPECTRUM_FIELDS = {
    "depth", "state", "force_residual", "step_residual", "abscissa", "spectral_radius", "critical_eps",
    "numerical_abscissa", "method", "leading", "matvecs", "seconds", "samples", "fixed_points", "passing",
}  # fmt: skip
LEADING_FIELDS = {"mu", "multiplier", "modulus", "sample", "token", "residual", "condition"}


def test_json_document_has_the_fields_of_the_design(ckpt, dyneq_json):
    document = dyneq_json("spectrum", ckpt, "--depth", 30, "--depth", 90, "--count", 3)
    assert {"schema", "command", "checkpoint", "system", "params", "results", "stored", "status"} == set(document)
    assert document["system"] == {
        "system": "ThickBlock", "time": "flow", "eps": 0.1, "dtype": "float64", "device": "cpu", "samples": 4,
    }  # fmt: skip
    assert document["schema"] == 1
    assert document["checkpoint"] == {"name": "tiny", "sha256": load_checkpoint(ckpt).sha256, "step": 7}
    assert [entry["depth"] for entry in document["results"]] == [30, 90]
    for entry in document["results"]:
        assert set(entry) == SPECTRUM_FIELDS
        assert len(entry["samples"]["force_residual"]) == 4
        assert entry["force_residual"] == max(entry["samples"]["force_residual"])
        assert entry["step_residual"] == pytest.approx(0.1 * entry["force_residual"])
        assert len(entry["leading"]) in (3, 4)
        for row in entry["leading"]:
            assert set(row) >= LEADING_FIELDS
            mu = complex(*row["mu"])
            assert complex(*row["multiplier"]) == pytest.approx(1 + 0.1 * mu)
            assert row["modulus"] == pytest.approx(abs(1 + 0.1 * mu))


def test_spectrum_equals_the_dense_spectrum_of_the_checkpoint(ckpt, dyneq_json):
    document = dyneq_json("spectrum", ckpt, "--depth", 40, "--batch", 2)
    system = load_checkpoint(ckpt).bind(2)
    with torch.no_grad():
        system.x = system.x.detach()
        z = system.x
        for _ in range(40):
            z = z + 0.1 * system.force(z)
    for sample in range(2):
        one = system.select(torch.tensor([sample]))
        jacobian = torch.func.jacrev(lambda y, one=one: one.force(y))(z[sample : sample + 1]).reshape(40, 40)
        values = torch.linalg.eigvals(jacobian.detach())
        assert document["results"][0]["samples"]["abscissa"][sample] == pytest.approx(
            float(values.real.max()), abs=1e-6
        )


def test_at_root_reports_no_depth(ckpt, dyneq_json):
    (entry,) = dyneq_json("spectrum", ckpt, "--at", "root")["results"]
    assert entry["depth"] is None
    assert entry["state"] == "root"
    assert entry["force_residual"] < 1e-11


def test_printed_table_names_state_address_and_certificate(ckpt, dyneq_run):
    code, out, err = dyneq_run("spectrum", ckpt, "--depth", 3, "--depth", 800, "--count", 2)
    assert (code, err) == (0, "")
    assert "depth 3: worst force residual" in out
    assert "depth 800: worst force residual" in out
    assert "passing state" in out
    assert "sample token  residual  condition  est. error" in out
    assert "not at a fixed point" in out


def test_root_command(ckpt, dyneq_json, dyneq_run):
    (entry,) = dyneq_json("root", ckpt)["results"]
    assert entry["found"] == 4
    assert all(s["force_residual"] < 1e-11 for s in entry["samples"])
    code, out, _ = dyneq_run("root", ckpt, "--explore", "--start", "relaxed", "--start", "initial")
    assert code == 0
    assert "roots of 4 of 4 samples" in out


def test_out_and_plot(ckpt, dyneq_run, tmp_path):
    for name in ("a.zarr", "a.nc"):
        code, _, err = dyneq_run(
            "spectrum", ckpt, "--depth", 20, "--out", tmp_path / name, "--plot", tmp_path / f"{name}.png"
        )
        assert (code, err) == (0, "")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    stored = xr.open_zarr(tmp_path / "a.zarr", consolidated=False).load()
    assert stored["mu"].dtype == np.complex128
    assert stored.attrs["checkpoint_sha256"] == load_checkpoint(ckpt).sha256
    assert stored.attrs["batch_sha256"] == load_checkpoint(ckpt).evaluation.sha256
    assert [str(s) for s in stored["status"].values[0]] == ["max_steps"] * 4
    classic = xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf").load()
    np.testing.assert_array_equal(classic["mu_real"] + 1j * classic["mu_imag"], stored["mu"])
    again = read_dataset(tmp_path / "a.nc")
    np.testing.assert_array_equal(again["rightmost_mu"], stored["rightmost_mu"])
    probe = get_probe("spectrum")
    assert [f.text for f in probe.summary(again)] == [f.text for f in probe.summary(stored)]
    assert len(probe.plot(again).axes) >= 2
    assert leftovers(tmp_path) == {"tiny.pt", "a.zarr", "a.nc", "a.zarr.png", "a.nc.png"}


def leftovers(folder):
    return {p.name for p in folder.iterdir()}


def test_several_checkpoints(ckpt, dyneq_run, tmp_path):
    other = tmp_path / "other.pt"
    other.write_bytes(ckpt.read_bytes())
    code, out, _ = dyneq_run("spectrum", ckpt, other, "--depth", 5, "--json", "--plot", tmp_path / "{name}.png")
    assert code == 0
    assert [d["checkpoint"]["name"] for d in json.loads(out)["checkpoints"]] == ["tiny", "other"]
    assert {"tiny.png", "other.png"} <= leftovers(tmp_path)
    code, out, err = dyneq_run("spectrum", ckpt, tmp_path / "none.pt", "--depth", 5, "--json")
    assert code == 3
    assert "none.pt" in err
    assert [d["status"].split(":")[0] for d in json.loads(out)["checkpoints"]] == ["complete", "failed"]
    code, _, err = dyneq_run("spectrum", tmp_path / "x.pt", tmp_path / "y.pt")
    assert code == 1
    assert "none of the 2" in err
    code, _, err = dyneq_run("spectrum", ckpt, other, "--plot", tmp_path / "one.png")
    assert code == 2
    assert "{name}" in err


def test_a_factory_is_a_subject(dyneq_json, dyneq_run):
    document = dyneq_json("spectrum", "dyneq.systems.analytic:rotation", "--at", "root", "--batch", 1)
    assert document["checkpoint"] == {"name": "dyneq.systems.analytic:rotation", "sha256": None, "step": None}
    assert document["results"][0]["spectral_radius"] == pytest.approx(0.99, abs=1e-12)
    code, _, err = dyneq_run("spectrum", "dyneq.systems.analytic:rotation", "--eps", 0.3)
    assert code == 2
    assert "no step size to change" in err
    code, _, err = dyneq_run("spectrum", "dyneq.systems.analytic:rotation", "--dtype", "float32")
    assert code == 2
    assert "decides dtype" in err


FACTORIES = """
import torch, dyneq
from dyneq.systems.adapters import from_ode
one = torch.ones(2, 3, dtype=torch.float64)
def diverging(): return from_ode(lambda z: z ** 3, 5 * one)
def steep(): return from_ode(lambda z: z.abs().sqrt() * 0 - z + z.abs().sqrt() * (z != 0), 0 * one)
def numpy_force(): return from_ode(lambda z: torch.from_numpy(-z.detach().numpy()), one)
def coarse(): return from_ode(lambda z: -z, one.bfloat16())
count = []
def failing():
    def force(z):
        count.append(0)
        if len(count) > 40: raise KeyError("a bug of the user's")
        return -z
    return from_ode(force, one)
"""


@pytest.mark.parametrize("name", ["diverging", "steep", "numpy_force", "coarse", "failing"])
@pytest.mark.parametrize("command", ["spectrum", "root"])
def test_systems_of_users_never_show_a_traceback(dyneq_run, tmp_path, monkeypatch, name, command):
    (tmp_path / "fac.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    code, out, err = dyneq_run(command, f"fac.py:{name}", "--depth", "50", "--json")
    assert "Traceback" not in err
    if code:
        assert err.count("\n") == 1
        assert out == ""
    else:
        json.loads(out, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert (code == 0) == ((name, command) in {("diverging", "spectrum"), ("diverging", "root"), ("steep", "root")})


def test_names_in_files(ckpt, dyneq_run, tmp_path):
    names = ["dyneq.systems.analytic:shear", "dyneq.systems.analytic:rotation"]
    code, _, err = dyneq_run("root", *names, "--depth", "3", "--plot", tmp_path / "{name}.png")
    assert (code, err) == (0, "")
    assert {"dyneq.systems.analytic-shear.png", "dyneq.systems.analytic-rotation.png"} <= leftovers(tmp_path)
    code, out, err = dyneq_run("spectrum", ckpt, ckpt, "--plot", tmp_path / "{name}-2.png")
    assert (code, out) == (2, "")
    assert "more than once" in err


def test_eps_changes_the_multipliers_and_not_the_eigenvalues(ckpt, dyneq_json):
    a = dyneq_json("spectrum", ckpt, "--at", "root")["results"][0]
    b = dyneq_json("spectrum", ckpt, "--at", "root", "--eps", "0.05")["results"][0]
    assert a["abscissa"] == pytest.approx(b["abscissa"], abs=1e-9)
    mu = complex(*b["leading"][0]["mu"])
    assert b["leading"][0]["modulus"] == pytest.approx(abs(1 + 0.05 * mu))


BAD = [
    (["--depth", "0"], 2, "at least 1 step"),
    (["--depth", "-5"], 2, "at least 1 step"),
    (["--depth", "many"], 2, "many"),
    (["--batch", "5"], 2, "4 samples"),
    (["--batch", "0"], 2, "4 samples"),
    (["--eps", "-1"], 2, "positive"),
    (["--eps", "inf"], 2, "finite"),
    (["--seed", "99999999999999999999999"], 2, "seed"),
    (["--seed", "-1"], 2, "seed"),
    (["--count", "0"], 2, "count"),
    (["--dept", "3"], 2, "--depth"),
    (["--method", "tokens"], 2, "token"),
    (["--at", "the-root"], 2, "root"),
    (["--device", "toaster"], 2, "toaster"),
    (["--out", "result.txt"], 2, ".zarr"),
    (["--plot", "figure.jpeg"], 2, ".png"),
    (["--out", "no/such/folder/a.zarr"], 1, "no/such/folder"),
]


@pytest.mark.parametrize(("args", "code", "words"), BAD, ids=[" ".join(a) for a, _, _ in BAD])
def test_bad_options_are_one_sentence_and_leave_nothing(ckpt, dyneq_run, tmp_path, monkeypatch, args, code, words):
    monkeypatch.chdir(tmp_path)
    found, out, err = dyneq_run("spectrum", ckpt, *args)
    assert (found, out) == (code, "")
    assert words in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert leftovers(tmp_path) == {"tiny.pt"}


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewritten(change):
    def apply(path):
        held = torch.load(path, weights_only=True)
        change(held)
        torch.save(held, path)

    return apply


def pickled_code(path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {path.parent}/pwned",))

    path.write_bytes(pickle.dumps(Evil()))


def saved_code(path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {path.parent}/pwned",))

    torch.save({"format": "dyneq-checkpoint/1", "model": Evil()}, path)


DAMAGE = {
    "missing": (lambda p: p.unlink(), "no checkpoint file"),
    "empty": (lambda p: p.write_bytes(b""), "0 bytes"),
    "truncated": (truncated, "truncated"),
    "pickled code": (pickled_code, "system"),
    "saved code": (saved_code, "system"),
    "wrong shape": (rewritten(lambda h: h["model"].update({"head.weight": torch.zeros(3, 3)})), "head.weight"),
    "missing weight": (rewritten(lambda h: h["model"].pop("head.weight")), "head.weight"),
    "NaN": (rewritten(lambda h: h["model"]["head.weight"].view(-1)[3].fill_(float("nan"))), "1 NaN or infinite"),
    "unknown version": (rewritten(lambda h: h.update(format="dyneq-checkpoint/99")), "dyneq-checkpoint/99"),
    "no format": (rewritten(lambda h: h.pop("format")), "format"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("command", ["spectrum", "root"])
def test_bad_checkpoints_are_one_sentence_and_run_nothing(ckpt, dyneq_run, tmp_path, kind, command):
    damage, words = DAMAGE[kind]
    damage(ckpt)
    before = leftovers(tmp_path)
    code, out, err = dyneq_run(command, ckpt, "--out", tmp_path / "o.zarr")
    assert (code, out) == (1, "")
    assert words in err
    assert err.count("\n") == 1
    assert leftovers(tmp_path) == before
    assert not (tmp_path / "pwned").exists()


def test_existing_output_is_kept(ckpt, dyneq_run, tmp_path):
    (tmp_path / "a.nc").write_text("precious")
    code, _, err = dyneq_run("spectrum", ckpt, "--depth", 3, "--out", tmp_path / "a.nc")
    assert code == 2
    assert "exists already" in err
    assert (tmp_path / "a.nc").read_text() == "precious"


def test_full_disk_leaves_nothing(ckpt, dyneq_run, tmp_path, monkeypatch):
    def full(self, target, **options):
        target.mkdir()
        (target / "zarr.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_zarr", full)
    code, _, err = dyneq_run("spectrum", ckpt, "--depth", 3, "--out", tmp_path / "a.zarr")
    assert code == 1
    assert "No space left" in err
    assert leftovers(tmp_path) == {"tiny.pt"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(ckpt, dyneq_run, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    code, _, err = dyneq_run("spectrum", ckpt, "--depth", 3, "--out", locked / "a.zarr")
    assert code == 1
    assert "cannot be written" in err


def test_a_file_in_place_of_the_folder_is_an_unwritable_output(ckpt, dyneq_run, tmp_path):
    code, _, err = dyneq_run("spectrum", ckpt, "--depth", 3, "--out", ckpt / "a.zarr")
    assert code == 1
    assert "does not exist" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["spectrm"], "did you mean 'spectrum'"),
        (["triangle"], "no command or probe"),
        (["spectrum", "after-the-storm"], "neither a checkpoint file"),
        (["list", "probe"], "probes"),
    ],
)
def test_unknown_names_suggest_the_nearest(dyneq_run, args, words):
    code, _, err = dyneq_run(*args)
    assert code == 2
    assert words in err


def test_help_and_unknown_commands_do_not_import_torch():
    program = (
        "import sys; from dyneq.cli.main import run; code = run(sys.argv[1:]);"
        "print('torch' in sys.modules, 'xarray' in sys.modules, code)"
    )
    for args in (["--help"], ["spectrum", "--help"], ["nonsense"], ["list", "--help"], ["compare", "--help"]):
        done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1].startswith("False False"), args


def test_listing(dyneq_run):
    code, out, _ = dyneq_run("list", "probes")
    assert code == 0
    assert {"spectrum", "root"} <= set(out.split())


def test_environment_mirrors_the_options(ckpt, dyneq_json, monkeypatch):
    monkeypatch.setenv("DYNEQ_BATCH", "2")
    assert len(dyneq_json("root", ckpt)["results"][0]["samples"]) == 2


def test_an_interrupt_while_a_string_is_executed_exits_130_as_well(tmp_path):
    """Python executes strings when it makes a dataclass, as imports do, and remembers an interrupt there."""
    lines = "import dyneq.cli.main as m", "m.app.main = lambda **_: exec('raise KeyboardInterrupt')", "m.main([])"
    (tmp_path / "interrupted.py").write_text("\n".join(lines))
    done = subprocess.run([sys.executable, "-m", "interrupted"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 130
    assert done.stderr == "dyneq: interrupted; nothing was left half-written\n"


def test_interrupting_leaves_nothing_and_exits_130(ckpt, tmp_path):
    """Ctrl-C at several moments of a long run, in a process of its own."""
    for delay in (0.0, 1.2):
        command = [sys.executable, "-m", "dyneq", "spectrum", str(ckpt), "--depth", "3000000"]
        command += ["--out", str(tmp_path / "o.zarr"), "--plot", str(tmp_path / "o.png")]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(2.5 + delay)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
        assert running.returncode == 130, err
        assert "Traceback" not in err
        assert "interrupted" in err
        assert out == ""
        assert leftovers(tmp_path) == {"tiny.pt"}
