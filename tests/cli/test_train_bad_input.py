"""Bad input of training, through the real command: one sentence, exit 1 or 2, nothing half-written, nothing lost."""

import errno
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dyneq.errors import DyneqError
from dyneq.systems.checkpoint_io import load_checkpoint

Run = Callable[..., tuple[int, str, str]]
TINY = [
    *("--set", "block.channels=8", "--set", "block.heads=2", "--set", "block.tokens=6"),
    *("--set", "run.batch=2", "--set", "run.relaxation=5", "--set", "data.evaluation_samples=4"),
]
DATA = ["--data", "text.txt"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = "".join(np.random.default_rng(0).choice(list("abcdefgh "), 2000))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DYNEQ_STORE", str(tmp_path / "store"))
    return tmp_path


@pytest.fixture
def train(dyneq_run: Run) -> Run:
    """Run ``dyneq train --quiet`` on a tiny block."""

    def call(*arguments: object) -> tuple[int, str, str]:
        given = [] if "--resume" in arguments else [*TINY, "--steps", "6"]
        return dyneq_run("train", "--quiet", *given, *arguments)

    return call


def sentence(result: tuple[int, str, str], code: int, *words: str) -> str:
    """Return the one sentence of a refusal."""
    found, _, err = result
    assert found == code, err
    assert err.startswith("dyneq: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in err
    return err


def left(folder: Path) -> set[str]:
    """What there is beside what the test gave and the empty store."""
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    return files - {"text.txt", "r.toml", "store/store.json"}


TYPOS = [
    ("[optimiser]\nlr = 1", "'optimiser'; did you mean 'optimizer'"),
    ("[optimizer]\nlrr = 1", "'optimizer.lrr'; did you mean 'lr'"),
    ("[run]\nstepps = 1", "'run.stepps'; did you mean 'steps'"),
    ("[data]\ncorpsu = 'pydoc'", "'data.corpsu'; did you mean 'corpus'"),
    ("[data]\ncorpus = 'pidoc'", "called 'pidoc'; did you mean 'pydoc'"),
    ("[data]\ntokenizer = 'bpa'", "called 'bpa'; did you mean 'bpe'"),
    ("[block]\nchanels = 8", "'block.chanels'; did you mean 'channels'"),
    ("[block]\nkind = 'thik'", "called 'thik'; did you mean 'thick'"),
    ("[gradient]\nname = 'bttp'", "called 'bttp'; did you mean 'bptt'"),
    ("[gradient]\nname = 'bptt'\nstps = 3", "no option 'stps'; did you mean 'steps'"),
    ("[penalty.flos]\nweight = 1", "called 'flos'; did you mean 'floss'"),
    ("[penalty.floss]\nwieght = 1", "no option 'wieght'; did you mean 'weight'"),
    ("[penalty]\nfloss = 'on'", "'penalty.floss' to 'on', but it takes a table of options, a weight, or false"),
    ("[[switch]]\natt = 3\ngradient = {name = 'aep'}", "'switch.0.att'; did you mean 'at'"),
    ("[[switch]]\nat = 3\ngradient = {name = 'aepp'}", "called 'aepp'; did you mean 'aep'"),
    ("[[switch]]\nat = 3\ngradient = {name = 'aep', tt = 2}", "no option 'tt'"),
    ("[[switch]]\nat = 3", "lacks 'switch.0.gradient'"),
    ("[stability]\ngat = 1", "'stability.gat'; did you mean 'gate'"),
    ("[guard]\nenabeld = true", "'guard.enabeld'; did you mean 'enabled'"),
    ("[optimizer]\nlr = 'fast'", "'optimizer.lr' to 'fast'"),
    ("[optimizer]\nlr = -1", "'optimizer.lr' to -1"),
    ("[optimizer]\nlr = inf", "'optimizer.lr' to inf"),
    ("[run]\nbatch = 2.5", "'run.batch' to 2.5"),
    ("optimizer = 3", "'optimizer' to 3"),
    ("[run", "should be TOML, but is not"),
    ("unknown = 1", "no setting 'unknown'"),
]


@pytest.mark.parametrize(("toml", "words"), TYPOS, ids=[toml for toml, _ in TYPOS])
def test_a_recipe_with_a_typo(here: Path, dyneq_run: Run, toml: str, words: str) -> None:
    (here / "r.toml").write_text(f'inherits = "default"\n{toml}\n', encoding="utf-8")
    sentence(dyneq_run("train", "--recipe", "r.toml", "--set", "block.tokens=6"), 2, words)
    assert left(here) == set()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "defualt"], "did you mean 'default'"),
        (["--set", "optimizer.lrr=1"], "did you mean 'lr'"),
        (["--set", "optimizr.lr=1"], "did you mean 'optimizer'"),
        (["--set", "lr=1"], "takes section.key=value"),
        (["--reg", "nonsense"], "no penalty called 'nonsense'"),
        (["--reg", ""], "no penalty called ''"),
        (["--reg", "floss:wieght=2"], "no option 'wieght'; did you mean 'weight'"),
        (["--reg", "floss:weight=heavy"], "unable to parse string as a number"),
        (["--reg", "floss:"], "should read name, name:weight or name:key=value"),
        (["--reg", "jacreg:-1"], "greater than 0"),
        (["--reg", "jacreg:controller=residual,weight=99"], "between floor 0.1 and ceiling 16.0"),
        (["--reg", "floss:tangents=400"], "has 1 to 48 tangent vectors, but 400"),
        (["--track", "nonsense"], "no tracker called 'nonsense'; known are mlflow, tensorboard"),
        (["--set", "stability.gate=0.1", "--gradient", "bptt5"], "stability.gate skips the nudge"),
        (
            ["--set", "block.kind=bp", "--gradient", "bptt5", "--no-guard", "--reg", "jacreg"],
            "BaselineBlock computes its output in one",
        ),
        (
            ["--set", "block.kind=bp", "--gradient", "bptt5", "--no-guard", "--reg", "floss"],
            "penalties act on a relaxation",
        ),
        (
            ["--set", "block.kind=bp", "--gradient", "bptt5", "--no-guard", "--set", "stability.prewarm=2"],
            "drop stability.prewarm",
        ),
        (["--set", "block.kind=bp", "--gradient", "bptt5", "--guard"], "the guard watches a relaxation"),
        (["--run", "x" * 300], "1 to 200 characters"),
        (["--run", "a\0b"], "control characters"),
    ],
    ids=str,
)
def test_settings_that_are_not_possible(here: Path, train: Run, arguments: list[str], words: str) -> None:
    sentence(train(*DATA, *arguments), 2, words)
    assert left(here) == set()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"abc", "has 3 characters to train on and 0 held out, but 7 and 28 are needed"),
        (b"", "is empty"),
        (b"caf\xe9 " * 900, "should be UTF-8, but byte 3 is not"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_text_that_cannot_be_used(here: Path, train: Run, content: bytes | None, words: str) -> None:
    if content is not None:
        (here / "text.txt").write_bytes(content)
    sentence(train("--data", "text.txt" if content is not None else "nowhere.txt"), 1, words)
    assert left(here) == set()


def test_a_vocabulary_the_text_does_not_support(here: Path, train: Run) -> None:
    pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    bpe = ("--set", "data.tokenizer=bpe")
    sentence(train(*DATA, *bpe), 1, "asks for 4096; ask for", "or use a longer text")
    sentence(train(*DATA, *bpe, "--set", "data.vocabulary=200"), 1, "all 256 bytes")
    assert left(here) == set()


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_a_vocabulary_that_does_not_match_on_resume(here: Path, train: Run) -> None:
    pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    assert train(*DATA, "--set", "data.vocabulary=260", "--run", "a")[0] == 0
    recipe = here / "runs" / "a" / "recipe.toml"
    before, text = digests(recipe.parent), recipe.read_text()
    recipe.write_text(text.replace('tokenizer = "characters"', 'tokenizer = "bpe"'))
    sentence(train("--resume", "a"), 1, "a vocabulary that does not match: characters of 9 tokens", "gives bpe of 260")
    recipe.write_text(text)
    assert digests(recipe.parent) == before
    (here / "text.txt").write_text((here / "text.txt").read_text() + "z")
    sentence(train("--resume", "a"), 1, "trained on a text with digest")
    assert digests(recipe.parent) == before


@pytest.mark.parametrize(
    ("lr", "why"),
    [("1e30", "a weight is 1.0e+30, from "), ("1e38", "no number of this precision"), ("1e300", "no number of this")],
)
def test_a_learning_rate_that_overflows_at_once(here: Path, train: Run, dyneq_run: Run, lr: str, why: str) -> None:
    rate = ("--set", f"optimizer.lr={lr}", "--set", "optimizer.warmup=0")
    result = train(*DATA, *rate, "--no-guard", "--set", "run.snapshots=[0]", "--run", "hot")
    said = sentence(result, 1, why, "at update 1", "the update was not applied", "lower optimizer.lr")
    run = here / "runs" / "hot"
    assert {p.name for p in run.iterdir()} >= {"recipe.toml", "log.jsonl", "last.pt", "step-000000.pt"}
    for file in run.glob("*.pt"):
        assert all(torch.isfinite(w).all() for w in load_checkpoint(file).block.state_dict().values())
    good = digests(run)["step-000000.pt"]
    assert sentence(train("--resume", "hot"), 1) == said
    assert digests(run)["step-000000.pt"] == good
    assert dyneq_run("residual", run / "step-000000.pt", "--depth", "3", "--quiet")[0] == 0
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert last["status"] == "non-finite"


def test_a_guard_gives_a_learning_rate_up_that_overflows_at_once(here: Path, train: Run) -> None:
    rate = ("--set", "optimizer.lr=1e5", "--set", "optimizer.warmup=0", "--set", "guard.samples=2")
    result = train(*DATA, *rate, "--guard", "--steps", "100", "--run", "hot")
    sentence(result, 1, "the guard gives the run up after 8 rollbacks", "training loss is", "lower optimizer.lr")
    for file in (here / "runs" / "hot").glob("*.pt"):
        assert all(torch.isfinite(w).all() for w in load_checkpoint(file).block.state_dict().values())


@pytest.mark.parametrize("folder", ["text.txt/run", "/proc/run"])
def test_a_folder_that_cannot_be_made(here: Path, train: Run, folder: str) -> None:
    sentence(train(*DATA, "--run", folder), 1, f"the run folder {folder} cannot be made", "choose a writable --run")
    assert left(here) == set()


# a disk that is full, or read-only

LONG = ("--steps", "12", "--set", "run.save_every=2", "--set", "run.snapshots=[4]", "--set", "run.evaluate_every=3")


@pytest.fixture
def disk(here: Path) -> Iterator[Path]:
    """A disk of its own; skips where none can be mounted."""
    path = here / "disk"
    path.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True).returncode
    ):
        pytest.skip("no disk can be mounted here")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def same(a: Path, b: Path) -> bool:
    """Whether two runs left the same snapshots and the same log."""
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if not k.endswith("seconds")}
            for line in (f / "log.jsonl").read_text().splitlines()
        ]
        for f in (a, b)
    ]
    # the bytes of a state to go on from depend on which of its objects are one, last.pt's and the guard's
    snapshots = [{n: digest for n, digest in digests(f).items() if n.startswith(("step-", "best"))} for f in (a, b)]
    return logs[0] == logs[1] and snapshots[0] == snapshots[1]


def require_resumable(run: Path, train: Run, whole: Path) -> None:
    """Whatever there is of the run is whole, and it ends as if nothing had happened."""
    for file in run.glob("*.pt"):
        load_checkpoint(file)
    assert not list(run.glob(".*"))
    assert train("--resume", run)[0] == 0
    assert same(run, whole)


def test_a_full_disk(here: Path, disk: Path, train: Run) -> None:
    whole = here / "runs" / "whole"
    assert train(*DATA, *LONG, "--run", "whole")[0] == 0
    reached = set()
    for number, room in enumerate(range(0, 400, 20)):
        run = disk / f"run-{number}"
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(bytes(max(0, free - 1024 * room)))
        result = train(*DATA, *LONG, "--run", run)
        (disk / "filler").unlink()
        if result[0] == 0:
            break
        said = sentence(result, 1, str(run), "No space left on device")
        if run.exists():
            assert f"--resume {run}" in said
            last = run / "last.pt"
            reached.add(load_checkpoint(last).step if last.exists() else 0)
            require_resumable(run, train, whole)
    assert result[0] == 0
    assert len(reached) >= 3
    assert same(run, whole)


def test_a_read_only_disk(here: Path, disk: Path, train: Run) -> None:
    assert train(*DATA, "--run", disk / "run", *LONG)[0] == 0
    (disk / "run" / "last.pt").unlink()
    before = digests(disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    sentence(train(*DATA, "--run", disk / "other"), 1, "cannot be made (Read-only file system)")
    sentence(train("--resume", disk / "run"), 1, "log.jsonl cannot be written (Read-only file system)")
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert digests(disk / "run") == before


@pytest.mark.parametrize("point", range(0, 20, 6))
def test_no_room_at_some_moment(here: Path, train: Run, monkeypatch: pytest.MonkeyPatch, point: int) -> None:
    whole, run = here / "runs" / "whole", here / "runs" / "full"
    assert train(*DATA, *LONG, "--run", "whole")[0] == 0
    left_over, original = [point], os.replace

    def full(source: Path, target: Path) -> None:
        if not str(target).startswith(str(run)) and Path("runs/full") not in (Path(target), Path(target).parent):
            return original(source, target)
        left_over[0] -= 1
        if left_over[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        result = train(*DATA, *LONG, "--run", "full")
    if left_over[0] >= 0:
        assert result[0] == 0
        assert point > 12
        return
    sentence(result, 1, "No space left on device")
    if point == 0:
        assert not run.exists()
    else:
        require_resumable(run, train, whole)


def test_a_damaged_snapshot_to_resume_from(here: Path, train: Run) -> None:
    assert train(*DATA, "--run", "a")[0] == 0
    last = here / "runs" / "a" / "last.pt"
    whole = last.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:2000] + bytes(100) + whole[2100:]):
        last.write_bytes(damaged)
        sentence(train("--resume", "a"), 1, "last.pt")
        with pytest.raises(DyneqError):
            load_checkpoint(last)
        assert last.read_bytes() == damaged
    last.write_bytes(whole)
    assert train("--resume", "a")[0] == 0
