"""The index is lost, cut, overwritten or outdated: `verify` says so and `rebuild` gives the same content again."""

import contextlib
import errno
import random
import sqlite3
import threading
from dataclasses import replace

import kill_writer
import pytest

from dyneq.catalog import results
from dyneq.catalog.entries import change_record, put_record
from dyneq.catalog.index import Index, plain
from dyneq.catalog.rebuild import rebuild
from dyneq.catalog.store import Store
from dyneq.catalog.verify import verify
from dyneq.errors import DyneqError


def fill(store):
    for number in range(3):
        results.put(store, kill_writer.request(number), kill_writer.dataset(number, "a"), name="x", step=number)
    results.put(store, kill_writer.request(0), kill_writer.dataset(0, "b"), name="x", force=True)
    for number, run in ((0, ""), (0, "twin"), (1, "é")):
        kill_writer.add_place(store, number, run)
    change_record(store, kill_writer.sha(1), lambda r: replace(r, tags=frozenset({"best", "é∂"})))
    odd = {"val": float("nan"), "top": float("inf"), "low": float("-inf"), "n": 2**70, "text": 'a"b', "none": None}
    change_record(store, kill_writer.sha(0), lambda r: replace(r, content=replace(r.content, metrics=odd, eps=None)))


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    fill(store)
    return store


def content(store):
    with store.reading() as index:
        return index.content()


def problems(store):
    return [p for p in verify(store).problems if "cannot be read at" not in p]  # made-up checkpoints have no file


def remove(store):
    for suffix in ("", "-wal", "-shm"):
        store.index_file.with_name(store.index_file.name + suffix).unlink(missing_ok=True)


def execute(store, *statements):
    database = sqlite3.connect(store.index_file, isolation_level=None)
    for statement in statements:
        database.execute(statement)
    database.close()


def half(store):
    data = store.index_file.read_bytes()
    store.index_file.write_bytes(data[: len(data) // 2])


SPOILED = {
    "half of it": half,
    "nothing in it": lambda s: s.index_file.write_bytes(b""),
    "not a database": lambda s: s.index_file.write_bytes(b"no database" * 1000),
    "a stray log": lambda s: (remove(s), s.index_file.with_name("index.sqlite-wal").write_bytes(b"x" * 9000)),
    "rows missing": lambda s: execute(s, "DELETE FROM results WHERE step = 1"),
    "rows too many": lambda s: execute(s, "INSERT INTO tags VALUES ('stray', 'x')"),
    "rows changed": lambda s: execute(s, "UPDATE checkpoints SET step = 77", "UPDATE results SET name = 'y'"),
    "rows of another type": lambda s: execute(s, "UPDATE results SET id = x'ff' WHERE step = 1", "DELETE FROM tags"),
    "a table missing": lambda s: execute(s, "DROP TABLE tags"),
    "another table": lambda s: execute(s, "DROP TABLE tags", "CREATE TABLE tags (a)"),
    "an older version": lambda s: execute(s, "PRAGMA user_version = 0"),
    "a newer version": lambda s: execute(s, "PRAGMA user_version = 9"),
    "another journal": lambda s: execute(s, "PRAGMA journal_mode = DELETE", "DELETE FROM results"),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
def test_rebuild_restores_the_content(store, spoil):
    expected = content(store)
    assert problems(store) == []
    spoil(store)
    found = problems(store)
    assert found or not store.index_file.exists()
    assert all("rebuild" in text or "update dyneq" in text for text in found)
    done = rebuild(store)
    assert (done.checkpoints, done.results, done.left_out) == (2, 4, [])
    assert content(store) == expected
    assert problems(store) == []
    # and it can be written to again
    results.put(store, kill_writer.request(9), kill_writer.dataset(9, "a"), name="x")
    assert len(content(store)["results"]) == 5


def test_reading_and_writing_make_a_lost_index_again(store):
    expected = content(store)
    remove(store)
    assert content(store) == expected
    remove(store)
    kill_writer.add_place(store, 0, "")
    assert content(store) == expected


@pytest.mark.parametrize("what", ["read-only", "no locks"])
def test_a_lost_index_of_a_store_that_cannot_be_written_is_made_elsewhere(store, what, monkeypatch):
    expected = content(store)
    remove(store)
    before = sorted(store.root.rglob("*"))

    def refuse(*arguments):
        raise OSError(errno.EROFS if what == "read-only" else errno.ENOLCK, "refused")

    monkeypatch.setattr("dyneq.catalog.locks._take", refuse)
    assert content(store) == expected
    assert sorted(store.root.rglob("*")) == before
    monkeypatch.setattr("dyneq.catalog.rebuild.Index.create", refuse)  # nor is there room elsewhere
    with pytest.raises(DyneqError, match="refused"):
        content(store)


def test_places_of_one_run_are_rows_of_their_own(store):
    one = kill_writer.record(5, "r")
    two = replace(one, places=(replace(one.places[0], path="../other/5.pt"),))
    three = replace(one, places=(replace(one.places[0], name="another"),))
    for new in (one, two, three, one):
        change_record(store, one.sha256, lambda r, new=new: new if r is None else r.at(new.places[0]))
    rows = [row for row in content(store)["checkpoints"] if row[0] == one.sha256]
    assert len(rows) == 3
    expected = content(store)
    execute(store, "DELETE FROM checkpoints WHERE path = '../other/5.pt'")
    assert len(problems(store)) == 1
    rebuild(store)
    assert content(store) == expected
    assert problems(store) == []


def test_any_flipped_byte_is_told_or_does_no_harm(store):
    expected, rng = content(store), random.Random(0)
    remove(store)
    rebuild(store)
    good = store.index_file.read_bytes()
    told = 0
    for _ in range(60):
        data = bytearray(good)
        position = rng.randrange(100) if rng.random() < 0.3 else rng.randrange(len(data))
        data[position] ^= 1 << rng.randrange(8)
        remove(store)
        store.index_file.write_bytes(data)
        same = False
        with contextlib.suppress(DyneqError), store.reading() as index:
            rows = [plain(row) for row in index.rows("SELECT * FROM checkpoints")]
            same = index.content() == expected and len(rows) == 3
        if not same:
            told += 1
            assert problems(store)
        rebuild(store)
        assert content(store) == expected
    assert told > 5


def test_damaged_documents_are_an_error(store):
    execute(store, "UPDATE checkpoints SET metrics = '{'")
    with store.reading() as index, pytest.raises(DyneqError, match="rebuild"):
        [plain(row) for row in index.rows("SELECT * FROM checkpoints")]


def test_what_a_kill_leaves_unindexed_is_found_again(store):
    expected = content(store)
    identifier = next(row for row in expected["results"])[0]
    execute(store, f"DELETE FROM results WHERE id = '{identifier}'")
    (problem,) = problems(store)
    assert identifier[:18] in problem
    assert "adds it" in problem
    rebuild(store)
    assert content(store) == expected


def test_a_transaction_is_all_or_nothing(store):
    expected = content(store)

    def stop(index):
        with index.transaction():
            index.clear()
            put_record(index, kill_writer.record(8))
            raise KeyError("stop")

    with Index(store.index_file) as index, pytest.raises(KeyError, match="stop"):
        stop(index)
    assert content(store) == expected


def test_readers_see_all_of_it_during_a_rebuild(store):
    """Readers take no lock: whatever moment they choose, they see the whole old or the whole new index."""
    expected, seen, stop = content(store), [], threading.Event()

    def read():
        while not stop.is_set():
            seen.append(content(store) == expected)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(15):
            rebuild(store)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(seen) > 5
    assert all(seen)


def test_verify_changes_nothing(store):
    (store.results / "spectrum" / "stray").mkdir()
    remove(store)
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    found = verify(store).problems
    assert any("stray" in problem for problem in found)
    assert any("index" in problem and "missing" in problem for problem in found)
    after = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    assert after == before
