"""Checkpoint files: bitwise round trips, safe writing under failures, and a pinned batch whose digest is known."""

import errno
import hashlib
import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from dyneq.errors import DyneqError, UsageError
from dyneq.systems.checkpoint import Checkpoint, EvaluationBatch
from dyneq.systems.checkpoint_io import load_checkpoint, save_checkpoint, write_atomically
from dyneq.systems.thick import ThickBlock
from dyneq.systems.vocabulary import CharacterVocabulary

SUFFIXES = [".pt", ".safetensors"]


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    """Equal in every value a reader can see, weights bit for bit."""
    assert type(a.block) is type(b.block)
    assert a.block.config == b.block.config
    ours, theirs = a.block.state_dict(), b.block.state_dict()
    assert ours.keys() == theirs.keys()
    for name, w in ours.items():
        assert w.dtype == theirs[name].dtype
        assert w.numpy().tobytes() == theirs[name].numpy().tobytes()
    assert a.vocabulary.symbols == b.vocabulary.symbols
    assert torch.equal(a.evaluation.tokens, b.evaluation.tokens)
    assert torch.equal(a.evaluation.targets, b.evaluation.targets)
    assert a.evaluation.source == b.evaluation.source
    assert (a.step, a.metrics, a.recipe) == (b.step, b.metrics, b.recipe)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_round_trip_is_bitwise(tmp_path, checkpoint, suffix, dtype):
    checkpoint.block.to(dtype)
    path = tmp_path / f"run7{suffix}"
    digest = save_checkpoint(path, checkpoint)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_checkpoint(path)
    assert (loaded.sha256, loaded.path, loaded.name) == (digest, path, "run7")
    if dtype is torch.bfloat16:  # numpy has none of it; every bfloat16 is a float32
        checkpoint.block.float()
        assert {p.dtype for p in loaded.block.parameters()} == {dtype}
        loaded.block.float()
    assert_same(loaded, checkpoint)
    if suffix == ".pt":
        assert torch.equal(loaded.training["ema"]["w"], checkpoint.training["ema"]["w"])
        assert torch.equal(loaded.training["rng"]["torch"], checkpoint.training["rng"]["torch"])
    else:
        assert loaded.training == {}
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saving_again_gives_the_same_bytes(tmp_path, checkpoint, suffix):
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    save_checkpoint(first, checkpoint)
    save_checkpoint(second, checkpoint)
    assert first.read_bytes() == second.read_bytes()  # so the digest of a reference checkpoint can be made again
    save_checkpoint(second, load_checkpoint(first))
    assert_same(load_checkpoint(first), load_checkpoint(second))


def test_a_loaded_checkpoint_binds_its_pinned_batch(tmp_path, checkpoint):
    path = tmp_path / "c.pt"
    save_checkpoint(path, checkpoint)
    loaded = load_checkpoint(path)
    bound = loaded.bind(3, eps=0.2)
    assert (bound.samples, bound.eps, bound.initial_state().dtype) == (3, 0.2, torch.float64)
    assert torch.equal(bound.tokens, checkpoint.evaluation.tokens[:3])
    expected = checkpoint.block.double().bind(
        *(t[:3] for t in (checkpoint.evaluation.tokens, checkpoint.evaluation.targets))
    )
    with torch.no_grad():
        z = bound.initial_state()
        assert torch.equal(bound.force(z), expected.force(z))
        assert torch.equal(bound.loss(z), expected.loss(z))
    assert loaded.bind().eps == checkpoint.block.eps
    # float64 systems leave the checkpoint's own weights as they were
    assert {p.dtype for p in loaded.block.parameters()} == {torch.float32}


def test_a_batch_larger_than_the_pinned_one_is_refused(checkpoint):
    for asked in (5, 0, -1):
        with pytest.raises(UsageError, match=rf"batch of 4 samples, but --batch {asked} .*choose 1 to 4"):
            checkpoint.bind(asked)
    assert checkpoint.evaluation.first(None) is checkpoint.evaluation


def test_digest_of_the_batch_is_independent_of_our_code():
    tokens, targets = torch.tensor([[1, 2, 3], [4, 5, 300]]), torch.tensor([[2, 3, 4], [5, 300, 0]])
    by_hand = hashlib.sha256(b"(2, 3)" + struct.pack("<12q", 1, 2, 3, 4, 5, 300, 2, 3, 4, 5, 300, 0)).hexdigest()
    batch = EvaluationBatch(tokens, targets)
    assert batch.sha256 == by_hand
    assert (
        EvaluationBatch(tokens.mT.contiguous().mT, targets, {"corpus": "x"}).sha256 == by_hand
    )  # memory order, source
    assert EvaluationBatch(tokens.view(3, 2), targets.view(3, 2)).sha256 != by_hand
    assert EvaluationBatch(targets, tokens).sha256 != by_hand
    assert batch.first(1).sha256 == hashlib.sha256(b"(1, 3)" + struct.pack("<6q", 1, 2, 3, 2, 3, 4)).hexdigest()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_values_that_would_not_load_are_refused_when_saving(tmp_path, checkpoint, suffix):
    checkpoint.metrics["abscissa"] = np.array([1.0])[0] if suffix == ".pt" else {1, 2}
    with pytest.raises(DyneqError, match=r"plain values only.*convert them"):
        save_checkpoint(tmp_path / f"c{suffix}", checkpoint)
    checkpoint.metrics, checkpoint.training = {}, {"model": {}, "momentum": {}}
    with pytest.raises(DyneqError, match=r"holds \['model', 'momentum'\]"):
        save_checkpoint(tmp_path / f"c{suffix}", checkpoint)
    assert os.listdir(tmp_path) == []


def test_an_unknown_ending_is_refused(tmp_path, checkpoint):
    with pytest.raises(DyneqError, match=r"ends in \.pt or \.safetensors"):
        save_checkpoint(tmp_path / "c.ckpt", checkpoint)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file_and_nothing_else(tmp_path, checkpoint, monkeypatch, call, number):
    path = tmp_path / "c.pt"
    save_checkpoint(path, checkpoint)
    before = path.read_bytes()

    def fail(*args):
        raise OSError(number, os.strerror(number))

    checkpoint.step = 13
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(DyneqError, match=f"cannot be written.*{os.strerror(number)}"):
            save_checkpoint(path, checkpoint)
    assert os.listdir(tmp_path) == ["c.pt"]
    assert path.read_bytes() == before


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "c.pt", b"data")
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path, checkpoint):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.pt").mkdir()
    for path in (tmp_path / "no" / "c.pt", tmp_path / "file" / "c.pt", tmp_path / "folder.pt", Path("/proc/c.pt")):
        with pytest.raises(DyneqError, match="cannot be written") as caught:
            save_checkpoint(path, checkpoint)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.pt"]
    assert os.listdir(tmp_path / "folder.pt") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission(tmp_path, checkpoint):
    tmp_path.chmod(0o500)
    with pytest.raises(DyneqError, match="cannot be written"):
        save_checkpoint(tmp_path / "c.pt", checkpoint)
    tmp_path.chmod(0o700)
    assert os.listdir(tmp_path) == []


CHILD = """
    import os, resource, signal, sys
    from pathlib import Path
    from dyneq.errors import DyneqError
    from dyneq.systems.checkpoint_io import write_atomically

    path, how, data = Path(sys.argv[1]), sys.argv[2], b"new" * 100_000
    if how == "limit":  # the kernel stops the write in its middle
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
        try:
            write_atomically(path, data)
        except DyneqError as error:
            print(error)
            sys.exit(7)
    else:
        setattr(os, how, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        write_atomically(path, data)
"""


@pytest.mark.parametrize("how", ["limit", "fsync", "replace"])
def test_a_killed_or_cut_write_leaves_the_old_file_whole(tmp_path, how):
    path = tmp_path / "c.pt"
    path.write_bytes(b"old")
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(path), how], capture_output=True, text=True, check=False
    )
    assert path.read_bytes() == b"old"
    if how == "limit":
        assert run.returncode == 7, run.stderr
        assert f"{path} cannot be written (File too large)" in run.stdout
        assert os.listdir(tmp_path) == ["c.pt"]
    else:
        assert run.returncode == -9, run.stderr
        left = [name for name in os.listdir(tmp_path) if name != "c.pt"]
        assert len(left) == 1  # what kill -9 leaves is hidden and marked as temporary
        assert left[0].startswith(".c.pt.")
        assert left[0].endswith(".tmp")


def test_a_checkpoint_made_by_hand_loads(tmp_path, checkpoint):
    """The format DESIGN.md writes down, without save_checkpoint."""
    config = {"kind": "thick", "vocabulary": 3, "channels": 4, "heads": 2, "tokens": 2}
    block = ThickBlock(ThickBlock.Config(**config))
    plain = {
        "format": "dyneq-checkpoint/1",
        "config": config,
        "tokenizer": {"kind": "characters", "symbols": "abc"},
        "step": 1,
        "metrics": {},
        "recipe": {},
        "model": block.state_dict(),
        "evaluation": {"tokens": torch.tensor([[0, 1]]), "targets": torch.tensor([[1, 2]])},
    }
    torch.save(plain, tmp_path / "hand.pt")
    batch = EvaluationBatch(torch.tensor([[0, 1]]), torch.tensor([[1, 2]]))
    assert_same(load_checkpoint(tmp_path / "hand.pt"), Checkpoint(block, CharacterVocabulary("abc"), batch, 1))
