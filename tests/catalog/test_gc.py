"""Garbage collection removes what killed processes left, and nothing else."""

import os
import shutil
import time
from dataclasses import replace

import kill_writer
import pytest

from dyneq.catalog import results
from dyneq.catalog.entries import change_record, read_record, record_file
from dyneq.catalog.gc import PATIENCE, collect
from dyneq.catalog.rebuild import rebuild
from dyneq.catalog.store import Store
from dyneq.catalog.verify import verify
from dyneq.cli.main import run
from dyneq.errors import DyneqError

HEX = "0123456789abcdef" * 2


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    results.put(store, kill_writer.request(0), kill_writer.dataset(0, "a"), name="x")
    results.put(store, kill_writer.request(0), kill_writer.dataset(0, "b"), name="x", force=True)
    return store


def add_checkpoint(store, path, number=0, run=""):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"weights")
    record = kill_writer.record(number, run)
    place = replace(record.places[0], path=store.relative(path), copied=path.is_relative_to(store.files))
    kept = replace(record, places=(place,))
    return change_record(store, record.sha256, lambda present: kept if present is None else present.at(place))


def age(path):
    old = time.time() - PATIENCE - 60
    os.utime(path, (old, old))


def tree(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_a_store_in_order_is_left_alone(store, tmp_path):
    add_checkpoint(store, tmp_path / "runs" / "step-1.pt")
    add_checkpoint(store, store.files / f"{kill_writer.sha(1)}.pt", number=1)
    age(store.files / f"{kill_writer.sha(1)}.pt")
    before = tree(tmp_path)
    assert collect(store, missing=True) == collect(store) == collect(store, dry_run=True)
    assert collect(store).files == {}
    assert tree(tmp_path) == before


def leave(store):
    left = {
        store.scratch / HEX / "data.zarr" / "c": b"half",
        store.scratch / f"{HEX}.pt": b"abc",
        store.root / f".store.json.{HEX}.tmp": b"x",
        store.root / f".index.sqlite.{HEX}.tmp": b"x",
        store.root / f".index.sqlite.{HEX}.tmp-wal": b"x",
        store.root / f".index.sqlite.{HEX}.tmp-shm": b"x",
        store.checkpoints / f".{kill_writer.sha(0)}.json.{HEX}.tmp": b"x",
        store.files / f".{kill_writer.sha(0)}.pt.{HEX}.tmp": b"x",
    }
    for path, data in left.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_leftovers_are_removed(store):
    before = tree(store.root)
    leave(store)
    there = tree(store.root)
    told = collect(store, dry_run=True)
    assert tree(store.root) == there  # a dry run removes nothing
    done = collect(store)
    assert done == told
    assert sum(done.files.values()) == 4 + 3 + 6
    assert len(done.files) == 8
    assert tree(store.root) == before
    assert verify(store).problems == []


def test_links_are_removed_and_not_followed(store, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("x")
    (store.scratch / "link").symlink_to(precious)
    (store.scratch / HEX).mkdir()
    (store.scratch / HEX / "link").symlink_to(precious)
    collect(store)
    assert list(store.scratch.iterdir()) == []
    assert (precious / "thesis").read_text() == "x"


def test_copies_without_a_record_go_once_they_are_old(store):
    kept = store.files / f"{kill_writer.sha(1)}.pt"
    add_checkpoint(store, kept, number=1)
    stray = store.files / f"{kill_writer.sha(2)}.pt"
    stray.write_bytes(b"weights")
    assert collect(store).files == {}  # it could be about to get its record
    age(stray)
    age(kept)
    damaged = store.checkpoints / f"{kill_writer.sha(2)}.json"
    damaged.write_bytes(b"{")
    assert collect(store).files == {}  # the damaged record could be the one that needs it
    damaged.unlink()
    assert list(collect(store).files) == [stray]
    assert kept.exists()


def test_half_written_snapshots_beside_known_checkpoints(store, tmp_path):
    run = tmp_path / "runs"
    add_checkpoint(store, run / "step-1.pt")
    names = [f".step-1.pt.{HEX}.tmp", f".last.pt.{HEX}.tmp", f".notes.txt.{HEX}.tmp", ".step-1.pt.tmp", "step-1.pt.tmp"]
    for name in names:
        (run / name).write_bytes(b"x")
    assert collect(store).files == {}  # a trainer could be writing them
    for name in names:
        age(run / name)
    assert {path.name for path in collect(store).files} == set(names[:2])
    assert {path.name for path in run.iterdir()} == {"step-1.pt", *names[2:]}


def test_missing_files_are_forgotten_only_when_asked(store, tmp_path):
    here, gone = tmp_path / "runs" / "here.pt", tmp_path / "runs" / "gone.pt"
    add_checkpoint(store, here, run="here")
    add_checkpoint(store, gone, run="gone")
    add_checkpoint(store, tmp_path / "runs" / "alone.pt", number=1)
    gone.unlink()
    (tmp_path / "runs" / "alone.pt").unlink()
    assert collect(store).forgotten == []
    assert len(collect(store, missing=True, dry_run=True).forgotten) == 2
    assert read_record(store, kill_writer.sha(1)) is not None
    done = collect(store, missing=True)
    assert any(str(gone) in text for text in done.forgotten)
    assert [place.run for place in read_record(store, kill_writer.sha(0)).places] == ["here"]
    assert not record_file(store, kill_writer.sha(1)).exists()
    # the index says the same as the folders
    assert all("digest" in problem for problem in verify(store).problems)
    with store.reading() as index:
        assert [tuple(row) for row in index.rows("SELECT sha256, run FROM checkpoints")] == [
            (kill_writer.sha(0), "here")
        ]


def test_forgetting_needs_the_index(store, tmp_path):
    add_checkpoint(store, tmp_path / "runs" / "gone.pt")
    (tmp_path / "runs" / "gone.pt").unlink()
    store.index_file.unlink()
    with pytest.raises(DyneqError, match="rebuild"):
        collect(store, missing=True)
    assert read_record(store, kill_writer.sha(0)) is not None
    rebuild(store)
    assert len(collect(store, missing=True).forgotten) == 1
    with store.reading() as index:
        assert index.rows("SELECT 1 FROM checkpoints") == []


def test_results_are_never_removed(store, tmp_path):
    folders = sorted((store.results / "spectrum").iterdir())
    (folders[0] / "data.zarr" / "zarr.json").write_bytes(b"damaged")
    (store.results / "spectrum" / "stray").mkdir()
    before = tree(store.results)
    collect(store, missing=True)
    assert tree(store.results) == before


def damage_manifest(folder):
    (folder / "manifest.json").write_bytes(b"{")


def lose_a_file(folder):
    (folder / "data.zarr" / "zarr.json").unlink()


def flip_a_byte(folder):
    path = next(p for p in sorted((folder / "data.zarr" / "mu").rglob("*")) if p.is_file() and p.name != "zarr.json")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [damage_manifest, lose_a_file, flip_a_byte])
def test_damaged_results_are_moved_when_asked(store, damage):
    good, bad = sorted((store.results / "spectrum").iterdir())
    damage(bad)
    before, content = tree(store.results), {p.relative_to(bad): p.read_bytes() for p in bad.rglob("*") if p.is_file()}
    (problem,) = [text for text in verify(store).problems if "index" not in text]
    assert verify(store).results == 1
    told = collect(store, damaged=True, dry_run=True).moved
    assert collect(store).moved == []
    assert tree(store.results) == before
    (sentence,) = done = collect(store, damaged=True).moved
    target = store.root / ".damaged" / f"spectrum-{bad.name}-1"
    assert done == told == [f"{bad} to {target}: {problem}"]
    assert sentence.startswith(str(bad))
    assert {p.relative_to(target): p.read_bytes() for p in target.rglob("*") if p.is_file()} == content
    assert [path for path in before if not path.exists() and bad not in (path, *path.parents)] == []
    done = verify(store)
    assert (done.results, done.problems) == (1, [])
    assert good.is_dir()
    # computed again and damaged again, it finds a name of its own
    results.put(store, kill_writer.request(0), kill_writer.dataset(0, "b"), name="x", force=True)
    damage(bad)
    collect(store, damaged=True)
    assert {path.name for path in target.parent.iterdir()} == {target.name, f"spectrum-{bad.name}-2"}
    assert collect(store, damaged=True).moved == []


def test_only_the_damaged_result_leaves_the_index(store):
    """A stray copy under another probe has the same identifier; the good one stays listed."""
    good = min((store.results / "spectrum").iterdir())
    shutil.copytree(good, store.results / "root" / good.name)
    assert verify(store).problems
    assert len(collect(store, damaged=True).moved) == 1
    assert (verify(store).results, verify(store).problems) == (2, [])


def test_results_of_a_newer_version_and_links_are_left_alone(store, tmp_path):
    first, second = sorted((store.results / "spectrum").iterdir())
    (first / "manifest.json").write_text('{"format": "dyneq-result/2"}')
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(second, tmp_path / "elsewhere" / second.name)
    (store.results / "root").symlink_to(tmp_path / "elsewhere")
    assert len(verify(store).problems) > 1
    before = tree(tmp_path / "elsewhere")
    assert collect(store, damaged=True).moved == []
    assert first.exists()
    assert tree(tmp_path / "elsewhere") == before


def test_the_command_moves_damaged_results(store, capsys):
    bad = min((store.results / "spectrum").iterdir())
    damage_manifest(bad)
    for option, verb in (("--dry-run", "would move"), ("--missing", "moved")):
        assert run(["catalog", "gc", "--damaged", option, "--store", str(store.root)]) == 0
        assert capsys.readouterr().out.startswith(f"{verb} {bad} to {store.root / '.damaged'}")
    assert run(["catalog", "verify", "--quiet", "--store", str(store.root)]) == 0


def test_moving_damaged_results_needs_the_index(store):
    bad = min((store.results / "spectrum").iterdir())
    damage_manifest(bad)
    store.index_file.unlink()
    with pytest.raises(DyneqError, match="rebuild"):
        collect(store, damaged=True)
    assert bad.exists()


def test_no_store_is_made(tmp_path):
    assert collect(Store(tmp_path / "none")).files == {}
    assert list(tmp_path.iterdir()) == []
