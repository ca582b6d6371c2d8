"""A full disk, a read-only store, newer versions and any damage: a clear error or a clear mark, never zeros."""

import errno
import json
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import kill_writer
import numpy as np
import pytest

from dyneq.catalog import canonical, results
from dyneq.catalog.entries import change_record, read_record, record_file
from dyneq.catalog.gc import collect
from dyneq.catalog.manifest import DATA, NAME, Damaged, Manifest
from dyneq.catalog.rebuild import rebuild
from dyneq.catalog.store import Store
from dyneq.catalog.verify import verify
from dyneq.errors import DyneqError

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk or be another user")


@pytest.fixture
def tmp_path(tmp_path):
    """A folder in memory where there is one: nothing here is about the speed of disks."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    made = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="dyneq-test-"))
    yield made
    for path in made.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(made)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    put(store, 0)
    return store


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    driver = kill_writer.Driver()
    assert driver.ask("template", str(tmp_path_factory.mktemp("template") / "data.zarr")) == 0
    yield driver
    driver.close()


def put(store, number, **options):
    return results.put(store, kill_writer.request(number), kill_writer.dataset(number, "a"), name="x", **options)


def folder_of(store, number=0, serial=1):
    return store.results / "spectrum" / f"{kill_writer.request(number).key[:16]}-{serial}"


def require_equal(stored, number):
    assert stored.open().load().identical(kill_writer.dataset(number, "a"))


def require_sentence(error, *words):
    text = str(error)
    assert "\n" not in text
    assert all(word in text for word in words), text


# a full disk


class Full:
    """Lets a number of writing system calls through and then fails all of them, as a full disk does."""

    def __init__(self, left):
        self.left, self.failed = left, False

    def __call__(self, call):
        def limited(*arguments, **named):
            # making folders and opening files to write take room, too; cleaning up and reading do not
            if call.__name__ == "open" and not arguments[1] & (os.O_CREAT | os.O_WRONLY):
                return call(*arguments, **named)
            self.left -= 1
            if self.left < 0:
                self.failed = True
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments, **named)

        return limited


def test_no_room_at_any_call(tmp_path, monkeypatch):
    calls = ["fsync", "rename", "replace", "mkdir", "open"]
    for point in range(200):
        store = Store(tmp_path / f"store-{point}")
        full = Full(point)
        with monkeypatch.context() as patch:
            for name in calls:
                patch.setattr(os, name, full(getattr(os, name)))
            try:
                stored = put(store, 0)
            except DyneqError as error:
                stored = None
                sentence = error
        if not full.failed:
            break
        if stored is None:
            require_sentence(sentence, str(tmp_path), "No space left on device")
            assert not store.scratch.exists() or not list(store.scratch.iterdir())
            whole = results.find(store, kill_writer.request(0))  # it may have failed when all was written
            assert whole is None or require_equal(whole, 0) is None
        assert put(store, 0).manifest.serial == 1
        require_equal(results.find(store, kill_writer.request(0)), 0)
        assert point % 4 or verify(store).problems == []
        shutil.rmtree(store.root)
    assert 20 < point < 199


@as_root
def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        refused = 0
        store = Store(disk / "store")
        put(store, 0)
        change_record(store, kill_writer.sha(0), lambda present: kill_writer.record(0))
        for number, room in enumerate([0, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192], start=1):
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            (disk / "filler").write_bytes(bytes(max(0, free - 1024 * room)))
            for act in (
                lambda number=number: put(store, number),
                lambda number=number: change_record(
                    store, kill_writer.sha(0), lambda present: replace(present, tags=present.tags | {f"t{number}"})
                ),
                lambda: rebuild(store),
            ):
                try:
                    act()
                except DyneqError as error:
                    refused += 1
                    require_sentence(error, str(disk))
            # what was there before can be read on the full disk
            require_equal(results.find(store, kill_writer.request(0)), 0)
            (disk / "filler").unlink()
            assert list(store.scratch.iterdir()) == []
            rebuild(store)
            require_equal(put(store, number), number)
            assert [p for p in verify(store).problems if "cannot be read at" not in p] == []
            shutil.rmtree(folder_of(store, number))
            rebuild(store)
        assert refused > 5
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# a read-only store


def give_read_only(store):
    for path in [store.root, *store.root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for path in store.root.parents:
        if path.stat().st_uid == os.geteuid() and path.stat().st_mode & 0o055 != 0o055:
            path.chmod(path.stat().st_mode | 0o055)


@as_root
def test_a_read_only_store_is_read_and_not_written(driver, store):
    give_read_only(store)
    assert driver.ask("as", NOBODY, "read", str(store.root)) == ["", {"salts": ["a"], "tags": []}]
    assert driver.ask("as", NOBODY, "maintain", str(store.root), "verify") == ["", []]
    for command in (["write", str(store.root), 5], ["maintain", str(store.root), "rebuild"]):
        kind, text = driver.ask("as", NOBODY, *command)
        assert kind == "DyneqError"
        require_sentence(text, str(store.root))
    assert driver.ask("as", NOBODY, "maintain", str(store.root), "gc")[0] == "DyneqError"
    assert verify(store).problems == []


@as_root
@pytest.mark.parametrize("shared_memory", [True, False])
def test_a_read_only_store_with_rows_in_the_write_ahead_log(driver, store, shared_memory):
    record = kill_writer.record(0)
    change_record(store, record.sha256, lambda present: record)
    reader = sqlite3.connect(store.index_file)
    reader.execute("SELECT * FROM results").fetchall()  # an open connection keeps the log from being merged
    change_record(store, record.sha256, lambda present: replace(present, tags=frozenset({"late"})))
    put(store, 7)
    copy = store.root.with_name("copy")
    shutil.copytree(store.root, copy)
    reader.close()
    assert (copy / "index.sqlite-wal").stat().st_size > 0
    if not shared_memory:
        (copy / "index.sqlite-shm").unlink()
    give_read_only(Store(copy))
    before = {path.name: path.read_bytes() for path in copy.glob("index*")}
    assert driver.ask("as", NOBODY, "read", str(copy)) == ["", {"salts": ["a", "a"], "tags": ["late"]}]
    assert {path.name: path.read_bytes() for path in copy.glob("index*")} == before


@as_root
def test_a_read_only_store_without_index_is_read_by_one_of_the_readers_own(driver, store):
    store.index_file.unlink()
    give_read_only(store)
    assert driver.ask("as", NOBODY, "read", str(store.root)) == ["", {"salts": ["a"], "tags": []}]


@as_root
@pytest.mark.parametrize("mode", [0o000, 0o111, 0o444])
def test_folders_that_may_not_be_entered(driver, store, mode):
    give_read_only(store)
    for folder in (store.root, store.results, folder_of(store), folder_of(store) / DATA):
        folder.chmod(mode)
        kind, text = driver.ask("as", NOBODY, "read", str(store.root))
        assert (kind, mode) in {("DyneqError", mode), ("Damaged", mode), ("", 0o111)}, text
        folder.chmod(0o555)
    empty = store.root.with_name("empty")
    empty.mkdir(mode=mode)
    kind, text = driver.ask("as", NOBODY, "write", str(empty), 1)
    assert kind == "DyneqError"
    require_sentence(text, str(empty))


# newer versions and strange places


def test_a_newer_store(store):
    (store.root / "store.json").write_text('{"format": "dyneq-store/2"}')
    with pytest.raises(DyneqError, match=r"dyneq-store/2.*update"):
        Store(store.root)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"5", b"\xff", b"[" * 100_000, b'{"format": 1}', b"null"])
def test_a_store_file_that_is_none(store, text):
    (store.root / "store.json").write_bytes(text)
    with pytest.raises(DyneqError) as caught:
        Store(store.root).require_writable()
    require_sentence(caught.value, str(store.root))


def test_a_newer_index(store):
    database = sqlite3.connect(store.index_file)
    database.execute("PRAGMA user_version = 2")
    database.close()
    for use in (lambda: results.find(store, kill_writer.request(0)), lambda: put(store, 1)):
        with pytest.raises(DyneqError, match=r"version 2.*update"):
            use()
    assert any("version 2" in problem for problem in verify(store).problems)


def craft(folder, change):
    """Write a manifest that agrees with its own digest, as somebody else could."""
    held = json.loads((folder / NAME).read_bytes())
    held.pop("sha256")
    change(held)
    held["sha256"] = canonical.digest(held)
    (folder / NAME).write_text(canonical.dumps(held))


CRAFTED = {
    "newer": lambda m: m.update(format="dyneq-result/2"),
    "a path out": lambda m: m["files"].update({"../../../x": [1, "0"]}),
    "an absolute path": lambda m: m["files"].update({"/etc/passwd": [1, "0"]}),
    "NUL": lambda m: m["files"].update({"a\0b": [1, "0"]}),
    "a Windows path out": lambda m: m["files"].update({"..\\x": [1, "0"]}),
    "a path that goes up inside": lambda m: m["files"].update({"mu/../../x": [1, "0"]}),
    "no name": lambda m: m["files"].update({"": [1, "0"]}),
    "another result's name": lambda m: m.update(id="0" * 16 + "-1"),
    "a name that leads out": lambda m: m.update(id="../../x"),
    "another probe": lambda m: m["request"].update(probe="root"),
    "a field too many": lambda m: m.update(more=1),
    "a field too few": lambda m: m.pop("status"),
    "a list for a number": lambda m: m.update(step=[1]),
    "text for a number": lambda m: m.update(duration="NaN"),
    "a huge number": lambda m: m.update(step=2**70),
    "a number for text": lambda m: m.update(name=5),
    "a list for parameters": lambda m: m["request"].update(params=[]),
    "no request": lambda m: m.update(request=None),
    "files as a list": lambda m: m.update(files=[]),
    "files without hashes": lambda m: m.update(files={"zarr.json": 5}),
    "sizes as text": lambda m: m.update(files={"zarr.json": ["5", "x"]}),
}


@pytest.mark.parametrize("change", CRAFTED.values(), ids=CRAFTED.keys())
def test_crafted_manifests(store, change):
    craft(folder_of(store), change)
    put(store, 1)
    with pytest.raises(Damaged) as caught:
        results.find(store, kill_writer.request(0))
    require_sentence(caught.value, "spectrum/", "--force")
    assert any(folder_of(store).name in problem for problem in verify(store).problems)
    done = rebuild(store)
    assert (done.results, len(done.left_out)) == (1, 1)
    assert put(store, 0).manifest.serial == 2


@pytest.mark.parametrize("text", [b"", b"[" * 100_000, b"null", b"\xff\xfe", b'{"format": "dyneq-result/1"}'])
def test_manifests_that_are_none(store, text):
    (folder_of(store) / NAME).write_bytes(text)
    with pytest.raises(Damaged):
        results.find(store, kill_writer.request(0))
    assert rebuild(store).results == 0


@pytest.mark.parametrize("name", ["../../x", "..", "", "a/b", "A", "a\0", "-a", "é", "a" * 65, ".tmp"])
def test_no_probe_leads_out_of_the_store(store, name):
    request = replace(kill_writer.request(0), probe=name)
    before = sorted(store.root.parent.rglob("*"))
    with pytest.raises(DyneqError, match="probe"):
        results.put(store, request, kill_writer.dataset(0, "a"), name="x")
    with pytest.raises(DyneqError):
        results.open_stored(store, name, folder_of(store).name)
    assert sorted(store.root.parent.rglob("*")) == before


@pytest.mark.parametrize("identifier", ["../../../x", "", "..", "0" * 16, "0" * 16 + "-0", "0" * 16 + "-1/..", "\0"])
def test_no_identifier_leads_out_of_the_store(store, identifier):
    with pytest.raises(DyneqError):
        results.open_stored(store, "spectrum", identifier)
    with pytest.raises(DyneqError):
        results.open_named(store, identifier)


RECORDS = {
    "newer": lambda r: r.update(format="dyneq-record/2"),
    "another": lambda r: r.update(sha256="0" * 63 + "1"),
    "a text for a step": lambda r: r["content"].update(step="1"),
    "a huge step": lambda r: r["content"].update(step=2**64),
    "a list for a run": lambda r: r["places"][0].update(run=[]),
    "a tag that is no text": lambda r: r.update(tags=[5]),
    "metrics that are none": lambda r: r["content"].update(metrics=[1]),
    "a field too many": lambda r: r["content"].update(more=1),
    "no places": lambda r: r.pop("places"),
}


@pytest.mark.parametrize("change", RECORDS.values(), ids=RECORDS.keys())
def test_crafted_records(store, change):
    record = kill_writer.record(0)
    change_record(store, record.sha256, lambda present: record)
    path = record_file(store, record.sha256)
    held = json.loads(path.read_bytes())
    change(held)
    path.write_text(json.dumps(held))
    with pytest.raises(DyneqError) as caught:
        read_record(store, record.sha256)
    require_sentence(caught.value, record.sha256[:12])
    done = rebuild(store)
    assert (done.checkpoints, len(done.left_out)) == (0, 1)
    assert any(record.sha256[:12] in problem for problem in verify(store).problems)


def test_places_that_are_no_store(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for name in ("file", "full", "nowhere", "file/below", "x" * 300):
        with pytest.raises(DyneqError) as caught:
            Store(tmp_path / name).require_writable()
        require_sentence(caught.value, name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full", "nowhere"]


def test_a_store_copied_without_its_empty_folders(store):
    for folder in (store.scratch, store.files, store.checkpoints):
        folder.rmdir()
    again = Store(store.root)
    put(again, 1)
    collect(again)
    assert verify(again).problems == []


# damage to what was written


def flip(path, position, mask):
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


def data_files(folder):
    return sorted(path for path in (folder / DATA).rglob("*") if path.is_file())


def test_every_byte_of_a_manifest(store):
    folder = folder_of(store)
    good, data = Manifest.read(folder), (folder / NAME).read_bytes()
    for position in range(len(data)):
        for bit in {position % 8, 5}:  # bit 5 makes small letters of capital ones
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            (folder / NAME).write_bytes(flipped)
            try:
                assert Manifest.read(folder) == good
            except Damaged:
                continue
    for length in range(0, len(data) - 1, 7):
        (folder / NAME).write_bytes(data[:length])
        with pytest.raises(Damaged):
            Manifest.read(folder)


def test_flipped_bytes_of_the_data(store):
    folder = folder_of(store)
    manifest, rng = Manifest.read(folder), random.Random(0)
    for path in data_files(folder):
        data = path.read_bytes()
        for position in range(rng.randrange(5), len(data), 5):
            flip(path, position, 1 << rng.randrange(8))
            with pytest.raises(Damaged, match="does not match its hash"):
                manifest.check_content(folder)
            path.write_bytes(data)
        flip(path, rng.randrange(len(data)), 1 << rng.randrange(8))
        with pytest.raises(Damaged, match=f"{folder.name}.*does not match its hash.*--force"):
            results.find(store, kill_writer.request(0)).open().load()
        assert any(folder.name in p for p in verify(store).problems)
        path.write_bytes(data)
    require_equal(results.find(store, kill_writer.request(0)), 0)


def outside(path):
    """Move something out of the store and leave a link to it."""
    target = path.parents[5] / f"outside-{path.name}"
    shutil.move(path, target)
    path.symlink_to(target)


def first_chunk(folder):
    return folder / DATA / "mu" / "c" / "0" / "0"


DAMAGE = {
    "a missing chunk": lambda f: first_chunk(f).unlink(),
    "a missing scalar's or vector's chunk": lambda f: (f / DATA / "zero" / "c" / "0").unlink(),
    "a missing variable": lambda f: shutil.rmtree(f / DATA / "mu"),
    "a missing coordinate": lambda f: shutil.rmtree(f / DATA / "label"),
    "missing metadata": lambda f: (f / DATA / "zarr.json").unlink(),
    "a variable's missing metadata": lambda f: (f / DATA / "mu" / "zarr.json").unlink(),
    "missing data": lambda f: shutil.rmtree(f / DATA),
    "a file in place of the data": lambda f: (shutil.rmtree(f / DATA), (f / DATA).write_text("x")),
    "a cut chunk": lambda f: os.truncate(first_chunk(f), 3),
    "an empty chunk": lambda f: os.truncate(first_chunk(f), 0),
    "a cut text": lambda f: os.truncate(f / DATA / "zarr.json", 10),
    "a longer chunk": lambda f: first_chunk(f).write_bytes(first_chunk(f).read_bytes() + b"\0"),
    "a chunk of another": lambda f: shutil.copyfile(f / DATA / "zero" / "c" / "0", first_chunk(f)),
    "a chunk too many": lambda f: (f / DATA / "mu" / "c" / "0" / "1").write_bytes(b"x"),
    "a variable too many": lambda f: shutil.copytree(f / DATA / "mu", f / DATA / "nu"),
    "a link in place of a chunk": lambda f: outside(first_chunk(f)),
    "a link in place of a variable": lambda f: outside(f / DATA / "mu"),
    "a link in place of the data": lambda f: outside(f / DATA),
    "a link in place of the manifest": lambda f: outside(f / NAME),
    "a link in place of the result": lambda f: outside(f),
    "a link in place of the probe's folder": lambda f: outside(f.parent),
    "a folder in place of a chunk": lambda f: (first_chunk(f).unlink(), first_chunk(f).mkdir()),
    "a missing manifest": lambda f: (f / NAME).unlink(),
    "a missing result": lambda f: shutil.rmtree(f),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_told(tmp_path, damage):
    store = Store(tmp_path / "1" / "2" / "3" / "4" / "store")
    put(store, 0)
    put(store, 1)
    folder = folder_of(store)
    damage(folder)
    with pytest.raises(Damaged) as caught:
        results.find(store, kill_writer.request(0)).open().load()
    require_sentence(caught.value, f"spectrum/{folder.name}", "--force")
    found = verify(store).problems
    assert any(folder.name in problem or "spectrum" in problem for problem in found)
    rebuild(store)
    with store.reading() as index:
        rows = [row["id"] for row in index.rows("SELECT id FROM results")]
    if "chunk of another" not in str(caught.value) and folder.name in rows:
        # only content tells it apart from the whole result: it is listed, and still an error to use
        with pytest.raises(Damaged):
            results.find(store, kill_writer.request(0)).open().load()


LATE = ["a missing chunk", "a cut chunk", "an empty chunk", "a longer chunk", "a chunk of another", "missing data"]
LATE += ["a folder in place of a chunk", "a missing result", "a missing variable"]


@pytest.mark.parametrize("damage", LATE)
@pytest.mark.parametrize("chunks", [None, {}], ids=["numpy", "dask"])
def test_damage_between_opening_and_use(store, damage, chunks):
    if chunks is not None:
        pytest.importorskip("dask")
    ds = results.find(store, kill_writer.request(0)).open(chunks=chunks)
    DAMAGE[damage](folder_of(store))
    with pytest.raises(Damaged, match=r"mu/c/0/0.*--force"):
        ds["mu"].load()
    flipped = ds["mu"][0, 1]
    with pytest.raises(Damaged):
        np.asarray(flipped)


def test_a_damaged_result_is_computed_again_beside_it(store):
    first_chunk(folder_of(store)).unlink()
    again = put(store, 0)
    assert again.manifest.serial == 2
    require_equal(results.find(store, kill_writer.request(0)), 0)
    assert not first_chunk(folder_of(store)).exists()  # nothing was repaired in silence
    assert put(store, 0) == again
    assert put(store, 0, force=True).manifest.serial == 3


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.write_text("x"), lambda p: p.symlink_to("/nowhere")])
def test_a_stranger_where_a_result_should_go(tmp_path, make):
    store = Store(tmp_path / "store")
    store.require_writable()
    folder = folder_of(store)
    folder.parent.mkdir()
    make(folder)
    stored = put(store, 0)
    require_equal(results.find(store, kill_writer.request(0)), 0)
    assert stored.manifest.serial == (1 if not folder.is_symlink() and (folder / NAME).exists() else 2)
