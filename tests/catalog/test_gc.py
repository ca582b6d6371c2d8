"""Garbage collection removes what killed processes left, and nothing else."""

import os
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


def test_no_store_is_made(tmp_path):
    assert collect(Store(tmp_path / "none")).files == {}
    assert list(tmp_path.iterdir()) == []
