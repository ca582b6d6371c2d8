"""Writers are killed at any moment: what was acknowledged stays, and nothing half-written is ever listed."""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import kill_writer
import numpy as np
import pytest

from dyneq.catalog import results
from dyneq.catalog.entries import change_record, put_record, read_record
from dyneq.catalog.gc import TEMPORARY, collect
from dyneq.catalog.index import Index
from dyneq.catalog.manifest import Manifest
from dyneq.catalog.rebuild import rebuild
from dyneq.catalog.store import Store
from dyneq.catalog.verify import verify
from dyneq.errors import DyneqError


@pytest.fixture(scope="module")
def driver():
    driver = kill_writer.Driver()
    yield driver
    driver.close()


@pytest.fixture
def folder(tmp_path):
    """A folder in memory where there is one: what a kill leaves is the same there, and comes sooner."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="dyneq-test-") as made:
        yield Path(made)


@pytest.fixture(scope="module")
def template(driver, tmp_path_factory):
    folder = tmp_path_factory.mktemp("template") / "data.zarr"
    assert driver.ask("template", str(folder)) == 0
    return folder


def listed(store):
    with store.reading() as index:
        if index is None:
            return {}
        return {row["id"]: row for row in index.rows("SELECT * FROM results")}


def require_whole(store, row):
    """What is listed is complete, byte by byte, and what the list says of it is so."""
    stored = results.open_stored(store, row["probe"], row["id"])
    stored.manifest.check_content(stored.folder)
    assert stored.manifest.row() | {"params": 0} == dict(row) | {"params": 0}
    return stored


def require_equal(stored, number, salt):
    ds = stored.open().load()
    assert salt is None or ds.attrs["salt"] == salt
    expected = kill_writer.dataset(number, ds.attrs["salt"])
    assert ds.identical(expected)
    for name in ("mu", "zero"):
        assert ds[name].values.tobytes() == expected[name].values.tobytes()


class Watch:
    """Looks at a store while it is written, and remembers what it has compared."""

    def __init__(self, store, acks):
        self.store, self.acks = store, acks
        self.whole, self.read, self.found = set(), {}, []

    def look(self):
        for identifier, row in listed(self.store).items():
            if identifier not in self.whole:
                require_whole(self.store, row)
                self.whole.add(identifier)

    def acknowledged(self):
        """Compare every acknowledged deed once with the store, and all results with the list."""
        new = []
        for path in self.acks.parent.glob(f"{self.acks.name}.*"):
            data = path.read_bytes()
            lines = data[self.read.get(path, 0) : data.rfind(b"\n") + 1].splitlines()
            self.read[path] = data.rfind(b"\n") + 1
            new += [json.loads(line) for line in lines]
        self.found += new
        for ack in new:
            assert not ack.get("left_out"), ack
            assert all(allowed(p) for p in ack.get("problems", [])), ack
            if "id" in ack:
                stored = results.open_stored(self.store, "spectrum", ack["id"])
                assert stored.manifest.request == kill_writer.request(ack["number"])
                require_equal(stored, ack["number"], ack["salt"])
        self.require_listed()

    def require_listed(self):
        rows = listed(self.store)
        with self.store.reading() as index:
            tags = {tuple(row) for row in index.rows("SELECT sha256, tag FROM tags")}
            places = {tuple(row) for row in index.rows("SELECT sha256, run FROM checkpoints")}
        for ack in self.found:
            if "id" in ack:
                assert ack["id"] in rows
            elif "tag" in ack or "run" in ack:
                digest = kill_writer.sha(ack["number"])
                record = read_record(self.store, digest)
                assert ack.get("tag", next(iter(record.tags), None)) in {*record.tags, None}
                assert ack.get("run", "") in {place.run for place in record.places}
                assert "tag" not in ack or (digest, ack["tag"]) in tags
                assert (digest, ack.get("run", "")) in places


def allowed(problem):
    """What a kill may leave: something whole that was never acknowledged is not in the index, or not up to date."""
    return "is complete in its folder but not in the index" in problem or problem.startswith(
        "checkpoints: 0000000000000000"
    )


def problems(store):
    return [p for p in verify(store).problems if "cannot be read at" not in p]  # made-up checkpoints have no file


def content(store):
    with store.reading() as index:
        return index.content()


def leftovers(store):
    return [*store.scratch.iterdir(), *(p for p in store.root.rglob("*") if TEMPORARY.fullmatch(p.name))]


def run_rounds(driver, folder, rounds, longest, seed):
    store = Store(folder / "store")
    watch = Watch(store, folder / "acks")
    for number in range(rounds):
        driver.tell("round", str(store.root), str(watch.acks), seed + number, 8, longest)
        while not driver.answered():
            if number % 3 == 0:
                watch.look()
        assert set(driver.reply()) == {-9}  # no writer failed by itself
        watch.look()
        watch.acknowledged()
    assert len([ack for ack in watch.found if "id" in ack]) > rounds
    assert all(allowed(problem) for problem in problems(store))
    before = content(store)
    assert rebuild(store).left_out == []
    after = content(store)
    never_acknowledged = set(after["results"]) - set(before["results"])
    assert set(before["results"]) <= set(after["results"])
    assert not {row[0] for row in never_acknowledged} & {ack.get("id") for ack in watch.found}
    assert problems(store) == []
    store.index_file.unlink()
    assert content(store) == after  # reading makes a lost index again
    with open(store.index_file, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(1) * 8192)
    assert problems(store)
    rebuild(store)
    assert content(store) == after
    collect(store)
    assert leftovers(store) == []
    assert problems(store) == []
    watch.require_listed()
    return watch


def test_eight_killed_writers(driver, template, folder):
    run_rounds(driver, folder, rounds=6, longest=1.5, seed=100)


@pytest.mark.slow
def test_eight_killed_writers_for_long(driver, template, folder):
    watch = run_rounds(driver, folder, rounds=300, longest=1.5, seed=1000)
    kinds = {ack["deed"] for ack in watch.found}
    assert kinds == {"new", "shared", "force", "place", "tag", "rebuild", "verify", "gc"}


def begin(root, template, kind):
    """Make a store with one acknowledged result and one record, as a deed finds it."""
    store = Store(root)
    if kind == "put on nothing":
        return store
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dyneq.catalog.zarr_io.write_zarr", lambda ds, target: shutil.copytree(template, target))
        results.put(store, kill_writer.request(0), kill_writer.dataset(0, "a"), name="zero")
    change_record(store, kill_writer.sha(0), lambda present: kill_writer.record(0))
    return store


def spoil(store, kind):
    if kind == "rebuild damaged":
        store.index_file.write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    elif kind == "only-if-missing":
        store.index_file.unlink()
    elif kind == "rebuild":
        # rows that are in the write-ahead log only, as a killed writer leaves them
        beside = store.root / "beside"
        beside.mkdir()
        row = kill_writer.record(0)
        with Index(store.index_file) as index, index.transaction():
            index.remove("checkpoints", "sha256", row.sha256)
        with Index(store.index_file), Index(store.index_file) as index:
            with index.transaction():
                put_record(index, row)
            for name in ("index.sqlite", "index.sqlite-wal"):
                shutil.copyfile(store.root / name, beside / name)
        for name in ("index.sqlite", "index.sqlite-wal"):
            shutil.copyfile(beside / name, store.root / name)
        assert (store.root / "index.sqlite-wal").stat().st_size
        shutil.rmtree(beside)
    elif kind == "gc":
        (store.scratch / "00").mkdir()
        (store.scratch / f"{'0' * 32}").write_bytes(b"half")


DEEDS = ["put on nothing", "put", "force", "record", "rebuild", "rebuild damaged", "only-if-missing", "gc"]


def crash_everywhere(driver, folder, template, kind, stride):
    verb = {"put on nothing": "put", "rebuild damaged": "rebuild"}.get(kind, kind)
    made = folder / "made"
    first = begin(made, template, kind)
    spoil(first, kind)
    point = crashes = 0
    while True:
        root = folder / f"at-{point}"
        if made.exists():
            shutil.copytree(made, root)
        ended = driver.ask("crash", verb, str(root), point, str(template))
        assert ended in (0, -9)
        require_sound(Store(root), template, kind)
        shutil.rmtree(root)
        if ended == 0:
            break
        crashes += 1
        point += stride
    assert crashes * stride > 40


def require_sound(store, template, kind):
    """After a crash: what was acknowledged is there, what is listed is whole, and all can be put right."""
    if store.exists or kind != "put on nothing":
        if kind == "rebuild damaged" and store.index_file.exists() and b"xxxx" in store.index_file.read_bytes():
            with pytest.raises(DyneqError, match="run `dyneq catalog rebuild`"):
                listed(store)
            rebuild(store)
        rows = listed(store)
        for row in rows.values():
            require_whole(store, row)
        if kind != "put on nothing":
            assert results.find(store, kill_writer.request(0)) is not None
            if kind != "gc":
                with store.reading() as index:
                    assert index.rows("SELECT 1 FROM checkpoints WHERE sha256 = ?", (kill_writer.sha(0),))
    # the interrupted command, given again, goes through
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dyneq.catalog.zarr_io.write_zarr", lambda ds, target: shutil.copytree(template, target))
        stored = results.put(store, kill_writer.request(1), kill_writer.dataset(1, "a"), name="one")
    assert stored.manifest.serial == 1
    assert results.find(store, kill_writer.request(1)) == stored
    rebuild(store)
    whole = content(store)
    assert {row[0] for row in whole["results"]} >= {stored.id}
    collect(store)
    assert leftovers(store) == []
    assert problems(store) == []
    for folder in (store.results / "spectrum").iterdir():
        Manifest.read(folder).check_content(folder)


@pytest.mark.parametrize("kind", DEEDS)
def test_crash_at_some_lines(driver, folder, template, kind):
    crash_everywhere(driver, folder, template, kind, stride=41)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEEDS)
def test_crash_at_every_line(driver, folder, template, kind):
    crash_everywhere(driver, folder, template, kind, stride=1)


def test_writers_do_not_starve_a_maintainer(driver, template, folder):
    store, stop, acks = Store(folder / "store"), folder / "stop", folder / "acks"

    def written():
        return sum(len(path.read_text().split()) for path in folder.glob("acks.*"))

    def wait_for(number):
        until = time.monotonic() + 60
        while written() < number and time.monotonic() < until:
            time.sleep(0.01)
        assert written() >= number

    assert driver.ask("start", str(store.root), str(acks), str(stop), 8) == 8
    try:
        wait_for(16)
        for _ in range(2):
            before = written()
            rebuild(store)
            after = written()
            # every writer inside finishes what it is at; none begins another result before the maintainer had its turn
            assert after - before <= 2 * 8
            wait_for(after + 8)  # and they go on afterwards
    finally:
        stop.touch()
        assert driver.ask("join") == [0] * 8
    assert len(listed(store)) == written()
    assert np.all([row["name"] == "w" for row in listed(store).values()])
