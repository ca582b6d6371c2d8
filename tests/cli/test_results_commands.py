"""``dyneq results``, and results found again instead of computed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import dyneq
from dyneq.catalog import measure as measuring
from dyneq.errors import DyneqError


@pytest.fixture
def stored(ckpt, dyneq_json):
    """Store two spectra and a root of the tiny checkpoint and return their identifiers."""
    first = dyneq_json("spectrum", ckpt, "--depth", "20", "--depth", "40")["stored"]["id"]
    second = dyneq_json("spectrum", ckpt, "--depth", "20", "--depth", "40", "--eps", "0.2")["stored"]["id"]
    return first, second, dyneq_json("root", ckpt, "--depth", "20")["stored"]["id"]


@pytest.fixture
def computed(monkeypatch):
    """Count how often a probe really runs."""
    calls = []
    real = measuring.run_probe

    def counted(*args, **options):
        calls.append(args)
        return real(*args, **options)

    monkeypatch.setattr(measuring, "run_probe", counted)
    return calls


def test_a_result_is_found_again_and_says_the_same(ckpt, dyneq_json, dyneq_run, computed):
    first = dyneq_json("spectrum", ckpt, "--depth", "20")
    printed = dyneq_run("spectrum", ckpt, "--depth", "20")[1].splitlines()
    again = dyneq_json("spectrum", ckpt, "--depth", "20")
    assert len(computed) == 1
    assert (first["stored"]["found"], again["stored"]["found"]) == (False, True)
    assert {**first, "stored": None} == {**again, "stored": None}
    assert first["stored"]["id"] in printed[-1]
    assert "--force measures again" in printed[-1]


def test_what_decides_the_numbers_decides_the_result(ckpt, dyneq_json, computed):
    for args in ((), ("--eps", "0.2"), ("--batch", "2"), ("--dtype", "float32"), ("--seed", "1"), ("--count", "3")):
        dyneq_json("spectrum", ckpt, "--depth", "20", *args)
    assert len(computed) == 6
    for args in (("--eps", "0.1"), ("--batch", "4"), ("--dtype", "float64"), ("--seed", "0"), ("--device", "cpu")):
        assert dyneq_json("spectrum", ckpt, "--depth", "20", *args)["stored"]["found"], args
    assert len(computed) == 6, "the defaults, said aloud, are the same request"


def test_force_measures_again_beside_the_old_one(ckpt, dyneq_json, computed):
    first = dyneq_json("spectrum", ckpt, "--depth", "20")["stored"]["id"]
    second = dyneq_json("spectrum", ckpt, "--depth", "20", "--force")["stored"]["id"]
    assert (first[:-2], first[-2:], second[-2:]) == (second[:-2], "-1", "-2")
    assert len(computed) == 2
    assert dyneq_json("spectrum", ckpt, "--depth", "20")["stored"] == {"id": second, "found": True}
    assert {r["id"] for r in dyneq_json("results", "list")["results"]} == {first, second}


def test_the_name_of_a_file_does_not_matter_its_content_does(ckpt, dyneq_json, tmp_path, computed):
    dyneq_json("spectrum", ckpt, "--depth", "20")
    other = tmp_path / "renamed.pt"
    other.write_bytes(ckpt.read_bytes())
    assert dyneq_json("spectrum", other, "--depth", "20")["stored"]["found"]
    assert len(computed) == 1


def test_a_system_without_a_digest_is_not_stored(dyneq_json):
    for _ in range(2):
        assert dyneq_json("spectrum", "dyneq.systems.analytic:lorenz", "--depth", "20")["stored"] is None
    assert dyneq_json("results", "list")["results"] == []


def test_a_result_that_cannot_be_stored_is_printed_all_the_same(ckpt, dyneq_run, monkeypatch):
    def refuse(*args, **options):
        raise DyneqError("the disk is full")

    monkeypatch.setattr(measuring.results, "put", refuse)
    code, out, err = dyneq_run("spectrum", ckpt, "--depth", "20")
    assert code == 1
    assert "|multiplier|" in out
    assert err == "dyneq: the result of tiny is above but not in the store: the disk is full\n"


def test_list_selects(stored, dyneq_json, dyneq_run):
    rows = dyneq_json("results", "list")["results"]
    assert [r["id"] for r in rows] == list(stored), "the newest last"
    assert {r["name"] for r in rows} == {"tiny"}
    for selection, expected in (
        ("probe=root", stored[2:]),
        ("eps>0.15", stored[1:2]),
        ("params.count=16 and name=tiny", stored[:2]),
        ("step=7 and batch=4", stored),
    ):
        found = dyneq_json("results", "list", "--select", selection)["results"]
        assert [r["id"] for r in found] == list(expected), selection
    code, out, err = dyneq_run("results", "list", "--limit", "1")
    assert (code, err) == (0, "1 of 3 are listed; --limit 0 lists all\n")
    assert stored[2] in out
    assert "starts=[relaxed,mean,initial,random]" in out


def test_selection_reaches_the_checkpoint_of_a_result(ckpt, dyneq_run, dyneq_json):
    dyneq_run("catalog", "add", ckpt, "--run", "floss-3", "--tag", "kept")
    dyneq_json("spectrum", "floss-3@7", "--depth", "20")
    for selection in ("run=floss-3", "tag=kept", "a=1", "config.channels=8", "kind=thick", "sha256~'*'"):
        assert len(dyneq_json("results", "list", "--select", selection)["results"]) == 1, selection
    assert dyneq_json("results", "list", "--select", "run=other")["results"] == []


def test_show_says_what_and_where_from(stored, dyneq_run, dyneq_json, tmp_path):
    code, out, err = dyneq_run("results", "show", stored[0][:6], "--plot", tmp_path / "a.png")
    assert (code, err) == (0, "")
    assert f"{stored[0]}: spectrum version" in out
    assert '"depth": [20, 40]' in out
    assert "|multiplier|" in out
    assert (tmp_path / "a.png").stat().st_size > 1000
    held = dyneq_json("results", "show", stored[0])["results"][0]
    assert held["manifest"]["id"] == stored[0]
    assert held["dataset"]["attrs"]["probe"] == "spectrum"


@pytest.mark.parametrize("suffix", ["nc", "json", "zarr"])
def test_export_is_the_stored_dataset(stored, dyneq_run, tmp_path, suffix):
    target = tmp_path / f"a.{suffix}"
    code, out, err = dyneq_run("results", "export", stored[0], "--out", target)
    assert (code, out, err) == (0, f"{target}\n", "")
    ds = dyneq.open_result(stored[0]).load()
    if suffix == "json":
        held = json.loads(target.read_text(), parse_constant=lambda name: pytest.fail(name))
        mu = np.array(held["variables"]["mu"]["data"], dtype=float)
        np.testing.assert_array_equal(mu[..., 0] + 1j * mu[..., 1], ds["mu"].values)
    elif suffix == "zarr":
        np.testing.assert_array_equal(xr.open_zarr(target, consolidated=False)["mu"].values, ds["mu"].values)
    else:
        from dyneq.catalog.output import read_dataset

        assert read_dataset(target)["mu"].equals(ds["mu"])
    code, _, err = dyneq_run("results", "export", stored[0], "--out", target)
    assert code == 2
    assert "exists already" in err


def test_diff_of_a_recomputed_result_moves_nothing(ckpt, stored, dyneq_run, dyneq_json):
    again = dyneq_json("spectrum", ckpt, "--depth", "20", "--depth", "40", "--force")["stored"]["id"]
    code, out, err = dyneq_run("results", "diff", stored[0], again)
    assert (code, err) == (0, "")
    assert "nothing moved" in out


def test_diff_says_what_moved(stored, dyneq_run):
    code, out, err = dyneq_run("results", "diff", stored[0], stored[1])
    assert (code, err) == (0, "")
    assert "moved beyond" in out
    assert "eps" in out


def test_diff_of_different_probes_is_refused(stored, dyneq_run):
    code, out, err = dyneq_run("results", "diff", stored[0], stored[2])
    assert (code, out) == (2, "")
    assert "spectrum" in err
    assert "root" in err


@pytest.mark.parametrize(
    ("name", "words"), [("zzzz", "there is no stored result"), ("ab", "there is no stored result"), ("", "no stored")]
)
def test_an_unknown_result_is_one_sentence(stored, dyneq_run, name, words):
    code, out, err = dyneq_run("results", "show", name)
    assert (code, out) == (2, "")
    assert words in err


def test_a_damaged_result_is_said_never_shown(stored, ckpt, dyneq_run, own_store):
    folder = own_store / "results" / "spectrum" / stored[0] / "data.zarr"
    chunk = next(p for p in sorted((folder / "mu").rglob("*")) if p.is_file() and p.name != "zarr.json")
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    for command in (("results", "show", stored[0]), ("spectrum", ckpt, "--depth", "20", "--depth", "40")):
        code, out, err = dyneq_run(*command)
        assert (code, out) == (1, "")
        assert "does not match its hash" in err
        assert "--force" in err
    code, out, _ = dyneq_run("catalog", "verify")
    assert code == 1
    assert stored[0] in out
    assert dyneq_run("spectrum", ckpt, "--depth", "20", "--depth", "40", "--force")[0] == 0
    assert dyneq_run("spectrum", ckpt, "--depth", "20", "--depth", "40")[0] == 0, "the new one is found"


def test_open_results_combines_a_sweep(ckpt, dyneq_json):
    for seed in (0, 1):
        for eps in ("0.1", "0.2"):
            dyneq_json("spectrum", ckpt, "--depth", "20", "--seed", seed, "--eps", eps)
    ds = dyneq.open_results("probe=spectrum")
    assert ds.sizes["seed"] == 2
    assert ds.sizes["eps"] == 2
    one = dyneq.open_result(dyneq_json("spectrum", ckpt, "--depth", "20", "--seed", 1, "--eps", "0.2")["stored"]["id"])
    picked = ds.sel(seed=1, eps=0.2).isel(checkpoint=0) if "checkpoint" in ds.dims else ds.sel(seed=1, eps=0.2)
    np.testing.assert_array_equal(picked["largest_mu"].values, one["largest_mu"].values)


def test_open_results_of_nothing_is_said(own_store):
    with pytest.raises(DyneqError, match="no stored result"):
        dyneq.open_results("probe=spectrum")
    assert not Path(os.environ["DYNEQ_STORE"]).exists()
