"""Checkpoint records: several places of one checkpoint, files that were overwritten, records that were damaged."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dyneq.catalog import names, query
from dyneq.catalog.checkpoints import add_file, require_name
from dyneq.catalog.entries import change_record, change_tags, put_record, read_record, record_file
from dyneq.catalog.gc import PATIENCE, collect
from dyneq.catalog.rebuild import rebuild
from dyneq.catalog.resolve import every_entry, selected
from dyneq.catalog.store import Store, without_dots
from dyneq.catalog.verify import verify
from dyneq.errors import DyneqError, UsageError
from dyneq.files import file_digest
from dyneq.systems.checkpoint import Checkpoint, EvaluationBatch
from dyneq.systems.checkpoint_io import save_checkpoint
from dyneq.systems.thick import ThickBlock, ThickConfig
from dyneq.systems.vocabulary import CharacterVocabulary


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the files of two different small checkpoints, of the steps 490 and 7."""
    folder = tmp_path_factory.mktemp("saved")
    for step in (490, 7):
        generator = torch.Generator().manual_seed(step)
        block = ThickBlock(ThickConfig(vocabulary=11, channels=4, heads=2, tokens=3), generator)
        tokens = torch.randint(0, 11, (2, 3), generator=generator)
        batch = EvaluationBatch(tokens, tokens.roll(-1, 1))
        save_checkpoint(folder / f"{step}.pt", Checkpoint(block, CharacterVocabulary("abcdefghijk"), batch, step=step))
    return folder / "490.pt", folder / "7.pt"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a project folder, the current one, with a store called `.dyneq`."""
    home = tmp_path / "project"
    home.mkdir()
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def store(home):
    return Store(home / ".dyneq")


def put(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(source, target))


def found(store, text):
    with store.reading() as index:
        return names.resolve(store, index, text)


def places(store, sha256):
    return sorted((p.run, p.name, p.path, p.copied) for p in read_record(store, sha256).places)


def require_in_order(store):
    """Compare the index with the records, twice: as it is kept, and made anew."""
    assert verify(store).problems == []
    with store.reading() as index:
        before = index.content()
    rebuild(store)
    with store.reading() as index:
        assert index.content() == before


# several places


def test_a_copy_is_kept_when_the_file_is_added_again(store, home, saved):
    best = put(saved[0], home / "best.pt")
    sha256 = add_file(store, best, copy=True).sha256
    record = add_file(store, best)
    copy = store.files / f"{sha256}.pt"
    assert places(store, sha256) == [("", "best", "../best.pt", False), ("", "best", f"files/{sha256}.pt", True)]
    assert add_file(store, best) == add_file(store, best, copy=True) == record, "the same places change nothing"
    os.utime(copy, (0, 0))
    assert collect(store).files == {}
    assert found(store, "best").path == copy, "a copy cannot have been changed"
    best.unlink()
    assert found(store, "best").path == copy
    assert len(collect(store, missing=True).forgotten) == 1
    assert places(store, sha256) == [("", "best", f"files/{sha256}.pt", True)]
    require_in_order(store)


def test_two_names_for_the_same_bytes(store, home, saved):
    for name in ("x", "y"):
        sha256 = add_file(store, put(saved[0], home / f"{name}.pt")).sha256
    assert [found(store, name).sha256 for name in ("x", "y")] == [sha256] * 2
    with store.reading() as index:
        assert len(query.select(index, "checkpoints", "step=490", names.BRIEF, "c.name")) == 2
    require_in_order(store)


def test_one_of_two_folders_of_a_run_is_removed(store, home, saved):
    a, b = put(saved[0], home / "a.pt"), put(saved[0], home / "d2" / "a.pt")
    sha256 = add_file(store, a, run="r").sha256
    add_file(store, b, run="r")
    for gone, left in ((b, a), (a, b)):
        gone.rename(home / "away")
        assert found(store, "r@490").path == left
        (home / "away").rename(gone)
    shutil.rmtree(b.parent)
    assert sum("cannot be read at" in problem for problem in verify(store).problems) == 1
    assert [text for text in collect(store, missing=True).forgotten if str(b) in text]
    assert places(store, sha256) == [("r", "a", "../a.pt", False)]
    require_in_order(store)


def test_a_selection_and_the_newest_take_a_place_whose_file_is_there(store, home, saved):
    best = put(saved[0], home / "best.pt")
    sha256 = add_file(store, best, copy=True).sha256
    add_file(store, put(saved[0], home / "a.pt"))
    (home / "a.pt").unlink()
    with store.reading() as index:
        assert names.newest(store, index).path == store.files / f"{sha256}.pt"
    best.unlink()
    copied = [store.files / f"{sha256}.pt"]
    assert [e.path for e in selected(store, "step=490")] == [e.path for e in every_entry(store)] == copied


def test_a_tag_without_any_file_is_not_proposed(store, home, saved):
    ck = put(saved[0], home / "ck.pt")
    add_file(store, ck, tags=["first"])
    put(saved[1], ck)
    add_file(store, ck, tags=["last"])
    with store.reading() as index:
        assert "first" not in names.similar(index, "first", [])
        assert "'last'" in names.similar(index, "lastt", [])


def test_no_copy_is_removed_while_its_checkpoint_has_a_record(store, home, saved):
    best = put(saved[0], home / "best.pt")
    sha256 = add_file(store, best, copy=True).sha256
    change_record(store, sha256, lambda record: replace(record, places=()))  # as an older version could leave it
    copy, old = store.files / f"{sha256}.pt", time.time() - PATIENCE - 60
    os.utime(copy, (old, old))
    assert collect(store).files == {}
    record_file(store, sha256).write_bytes(b"{")
    assert collect(store).files == {}
    record_file(store, sha256).rename(f"{record_file(store, sha256)}.damaged-1")
    assert collect(store).files == {}
    Path(f"{record_file(store, sha256)}.damaged-1").unlink()
    assert list(collect(store).files) == [copy]


# overwritten files


@pytest.mark.parametrize("copy", [False, True])
def test_an_overwritten_file_leaves_its_earlier_checkpoint(store, home, saved, copy):
    ck, told = put(saved[0], home / "ck.pt"), []
    before = add_file(store, ck, tags=["first"], tell=told.append)
    assert told == []
    put(saved[1], ck)
    after = add_file(store, ck, copy=copy, tell=told.append)
    (sentence,) = told
    for words in (str(ck), before.sha256[:12], "overwritten", "no file any more"):
        assert words in sentence
    assert found(store, "ck").sha256 == after.sha256
    left = read_record(store, before.sha256)
    assert (left.places, left.tags) == ((), {"first"})
    assert found(store, "first") is None
    assert found(store, before.sha256) is None
    with store.reading() as index:
        assert len(query.select(index, "checkpoints", None, names.BRIEF, "c.sha256")) == 1
        assert [tuple(row) for row in index.rows("SELECT tag, sha256 FROM tags")] == [("first", before.sha256)]
    require_in_order(store)
    # it comes back with its tags from another file
    add_file(store, put(saved[0], home / "old.pt"), tell=told.append)
    assert found(store, "first").name == "old"
    assert len(told) == 1


def test_only_the_overwritten_place_is_taken_away(store, home, saved):
    told, ck = [], put(saved[0], home / "ck.pt")
    sha256 = add_file(store, ck, copy=True).sha256
    add_file(store, ck)
    add_file(store, put(saved[0], home / "twin.pt"), run="twin")
    put(saved[1], ck)
    add_file(store, Path("../project/ck.pt"), tell=told.append)
    assert "2 other places" in told[0]
    assert {path for _, _, path, _ in places(store, sha256)} == {f"files/{sha256}.pt", "../twin.pt"}
    require_in_order(store)


def test_checkpoints_without_any_file_are_forgotten_when_asked(store, home, saved):
    ck = put(saved[0], home / "ck.pt")
    sha256 = add_file(store, ck, tags=["first"]).sha256
    put(saved[1], ck)
    add_file(store, ck)
    assert collect(store).forgotten == []
    assert record_file(store, sha256).exists()
    assert collect(store, missing=True, dry_run=True).forgotten == collect(store, missing=True).forgotten != []
    assert not record_file(store, sha256).exists()
    require_in_order(store)


# damaged records


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b'{"format": "other"}'])
def test_a_damaged_record_is_moved_aside_and_made_anew(store, home, saved, text):
    ck, told = put(saved[0], home / "ck.pt"), []
    sha256 = add_file(store, ck, tags=["first"]).sha256
    for number in (1, 2):
        record_file(store, sha256).write_bytes(text)
        with pytest.raises(DyneqError, match="add the checkpoint again"):
            change_tags(store, sha256, ["more"], [])
        add_file(store, ck, tags=["second"], tell=told.append)
        aside = store.checkpoints / f"{sha256}.json.damaged-{number}"
        assert aside.read_bytes() == text
        assert str(aside) in told[-1]
        assert len(told) == number
        assert read_record(store, sha256).tags == {"second"}
        require_in_order(store)
    collect(store, missing=True)
    assert len(list(store.checkpoints.glob("*.damaged-*"))) == 2


def test_a_record_of_a_newer_version_is_left_alone(store, home, saved):
    ck = put(saved[0], home / "ck.pt")
    sha256 = add_file(store, ck).sha256
    path = record_file(store, sha256)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"format": "dyneq-record/2"}))
    before = path.read_bytes()
    with pytest.raises(DyneqError, match="update dyneq"):
        add_file(store, ck)
    assert path.read_bytes() == before


def test_another_damaged_record_does_not_keep_a_file_from_being_added(store, home, saved):
    ck = put(saved[0], home / "ck.pt")
    sha256 = add_file(store, ck).sha256
    record_file(store, sha256).write_bytes(b"{")
    put(saved[1], ck)
    assert add_file(store, ck).sha256 == file_digest(saved[1])
    assert record_file(store, sha256).read_bytes() == b"{"


# paths


def test_a_store_reached_through_a_link(store, home, saved, tmp_path):
    ck = put(saved[0], home / "runs" / "ck.pt")
    sha256 = add_file(store, ck, copy=True).sha256
    add_file(store, ck)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "link").symlink_to("../project/.dyneq")
    linked = Store(tmp_path / "other" / "link")
    assert [linked.place(p.path) for p in read_record(linked, sha256).places] == [store.files / f"{sha256}.pt", ck]
    assert found(linked, "ck").path == store.files / f"{sha256}.pt"
    assert verify(linked).problems == []
    before = places(store, sha256)
    add_file(linked, ck)
    add_file(linked, ck, copy=True)
    assert places(store, sha256) == before
    beside = put(saved[1], tmp_path / "other" / "beside.pt")  # beside the link is not beside the store
    assert add_file(linked, beside).places[0].path == str(beside)
    assert found(store, "beside").path == beside
    require_in_order(linked)


def test_a_project_reached_through_a_link_can_be_moved(store, home, saved, tmp_path):
    put(saved[0], home / "ck.pt")
    (tmp_path / "shortcut").symlink_to("project")
    linked = Store(tmp_path / "shortcut" / ".dyneq")
    assert add_file(linked, tmp_path / "shortcut" / "ck.pt").places[0].path == "../ck.pt"
    assert found(store, "ck").path == home / "ck.pt"


def test_a_file_that_is_not_beside_the_store_is_found_when_the_project_moves(home, saved, tmp_path):
    put(saved[0], tmp_path / "c.pt")
    record = add_file(Store(".dyneq"), Path("../c.pt"))
    assert record.places[0].path == Store(".dyneq").relative(Path("../c.pt")) == str(tmp_path / "c.pt")
    (tmp_path / "deep").mkdir()
    moved = home.rename(tmp_path / "deep" / "project")
    assert found(Store(moved / ".dyneq"), "c").path == tmp_path / "c.pt"
    assert verify(Store(moved / ".dyneq")).problems == []


def test_links_of_the_checkpoints_path_stay(store, home, saved, tmp_path):
    put(saved[0], tmp_path / "disk" / "sub" / "ck.pt")
    put(saved[1], tmp_path / "disk" / "up.pt")
    (home / "data").symlink_to(tmp_path / "disk" / "sub")
    assert add_file(store, Path("data/ck.pt")).places[0].path == "../data/ck.pt"
    # what `..` after a link means is for the file system to say
    assert add_file(store, Path("data/../up.pt")).places[0].path == str(tmp_path / "disk" / "up.pt")
    for path in (
        Path("data/../up.pt"),
        Path("../project/data/ck.pt"),
        Path("x/../data"),
        Path("/../.."),
        Path("data/.."),
    ):
        (home / "x").mkdir(exist_ok=True)
        assert os.path.realpath(without_dots(path)) == os.path.realpath(path)
        assert ".." not in without_dots(path).parts
    require_in_order(store)


# names


@pytest.mark.parametrize("text", ["a:b", "a@b", "", " a", "-a", "a\x07b", "a\x1b[31m", "a\u2028b", "a\x85", "a\ud800"])
def test_what_is_no_name(text):
    for what in ("run", "tag"):
        with pytest.raises(UsageError, match=f"a {what} is"):
            require_name(text, what)


def test_a_tag_that_would_be_read_as_a_file():
    for text in ("best.pt", "best.safetensors"):
        with pytest.raises(UsageError, match="read as a file"):
            require_name(text, "tag")
    require_name("best.pth", "tag")
    require_name("é∂ 1", "run")


def test_a_run_folder_that_is_no_name(store, home, saved):
    ck = put(saved[0], home / "run:1" / "ck.pt")
    (ck.parent / "recipe.toml").write_text("")
    with pytest.raises(UsageError, match=r"run:1.*--run"):
        add_file(store, ck)
    assert add_file(store, ck, run="one").places[0].run == "one"


def test_the_run_of_a_path_with_dots(store, home, saved, monkeypatch):
    ck = put(saved[0], home / "floss" / "ck.pt")
    (ck.parent / "recipe.toml").write_text("")
    (ck.parent / "below").mkdir()
    monkeypatch.chdir(ck.parent / "below")
    assert add_file(store, Path("../ck.pt")).places[0].run == "floss"


@pytest.mark.parametrize(
    ("stem", "name"), [("a:b", "a_b"), ("a\nb\x1b", "a_b_"), ("a.pt", "a_pt"), ("a.b", "a.b"), ("é", "é")]
)
def test_every_file_has_a_name_that_finds_it(store, home, saved, stem, name):
    record = add_file(store, put(saved[0], home / f"{stem}.pt"))
    assert record.places[0].name == name
    assert found(store, name).path == home / f"{stem}.pt"
    require_in_order(store)


# what verify counts


def test_verify_counts_what_can_be_read(store, home, saved):
    for i, source in enumerate(saved):
        add_file(store, put(source, home / f"{i}.pt"))
    record_file(store, file_digest(saved[0])).write_bytes(b"{")
    done = verify(store)
    assert done.checkpoints == 1
    assert any("cannot be read" in problem for problem in done.problems)


def test_a_kill_between_records_is_mended_by_adding_again(store, home, saved):
    """The record that gets the file is written first, so that no kill leaves the file without any."""
    ck = put(saved[0], home / "ck.pt")
    earlier = add_file(store, ck)
    put(saved[1], ck)
    add_file(store, ck)
    with store.writing() as index, index.transaction():  # as a kill before the second record leaves the store
        record_file(store, earlier.sha256).write_bytes(earlier.to_json())
        put_record(index, earlier)
    assert verify(store).problems
    add_file(store, ck)
    require_in_order(store)


def test_the_command_says_what_was_overwritten(store, home, saved):
    ck = put(saved[0], home / "ck.pt")
    add_file(store, ck)
    put(saved[1], ck)
    code = "import sys; from dyneq.cli.main import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "catalog", "add", str(ck), "--store", str(store.root), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.count("\n") == 1
    assert "was overwritten since it was added as ck" in done.stderr
