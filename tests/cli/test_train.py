"""The train command. Exit codes are mapped by dyneq.cli.main; here the errors themselves are looked at."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from dyneq.cli.train import train
from dyneq.errors import DyneqError, UsageError
from dyneq.systems.checkpoint_io import load_checkpoint

TINY = [
    *("--set", "block.channels=8", "--set", "block.heads=2", "--set", "block.tokens=6"),
    *("--set", "run.batch=2", "--set", "data.evaluation_samples=4", "--gradient", "adjoint:steps=4,relaxation=5"),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = "".join(np.random.default_rng(0).choice(list("abcdefgh "), 2000))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(train, [*arguments])


def test_a_run_from_start_to_resume(here: Path) -> None:
    first = invoke(*TINY, "--data", "text.txt", "--steps", "3", "--seed", "4", "--quiet")
    assert first.exit_code == 0, first.output
    assert first.stderr == ""
    assert "completed after 3 updates" in first.stdout
    folder = here / "runs" / "default-adjoint-4"
    assert first.stdout.splitlines()[-1] == "runs/default-adjoint-4/step-000003.pt"
    assert load_checkpoint(folder / "step-000003.pt").recipe["run"]["seed"] == 4
    again = invoke(*TINY, "--data", "text.txt", "--steps", "3", "--seed", "4")
    assert isinstance(again.exception, UsageError)
    assert "--resume runs/default-adjoint-4" in str(again.exception)
    resumed = invoke("--resume", "default-adjoint-4", "--json")
    document = json.loads(resumed.stdout)
    assert document.keys() == {"schema", "command", "checkpoint", "params", "results", "status"}
    assert (document["schema"], document["command"], document["status"]) == (1, "train", "completed")
    assert document["checkpoint"]["sha256"] == load_checkpoint(folder / "step-000003.pt").sha256
    assert document["params"]["gradient"] == {
        **{"name": "adjoint", "steps": 4, "relaxation": 5, "solver": "relaxation"},
        **{"tol": 1e-8, "products": 1000},
    }
    assert document["results"][0]["validation_loss"] > 0


def test_a_run_that_breaks_is_an_error_after_its_report(here: Path) -> None:
    broken = ["--set", "optimizer.lr=1e30", "--set", "optimizer.warmup=0"]
    result = invoke(*TINY, *broken, "--data", "text.txt", "--no-guard", "--steps", "5", "--run", "broken", "--json")
    assert isinstance(result.exception, DyneqError)
    assert not isinstance(result.exception, UsageError)
    assert "was not applied" in str(result.exception)
    document = json.loads(result.stdout)
    assert document["status"] == "non-finite"
    assert load_checkpoint(document["results"][0]["snapshot"]).step == document["results"][0]["step"] < 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "defualt"], "did you mean 'default'"),
        (["--gradient", "bttp"], "did you mean 'bptt'"),
        (["--set", "run.stepss=3"], "did you mean 'steps'"),
        (["--steps", "0"], "'run.steps' to 0"),
        (["--dtype", "float16"], "'run.dtype' to 'float16'.*'float32' or 'float64'"),
        (["--device", "tpu"], "device 'tpu' cannot be used"),
        (["--resume", "x", "--steps", "3"], "goes with none of"),
    ],
)
def test_wrong_use_is_a_usage_error_and_leaves_nothing(here: Path, arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert isinstance(result.exception, UsageError)
    with pytest.raises(UsageError, match=message):
        raise result.exception
    assert [p.name for p in here.iterdir()] == ["text.txt"]


@pytest.mark.parametrize(("arguments", "message"), [(["--data", "no.txt"], "no.txt"), (["--resume", "no"], "runs/no")])
def test_what_is_missing_is_named_and_nothing_is_left(here: Path, arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert isinstance(result.exception, DyneqError)
    assert message in str(result.exception)
    assert [p.name for p in here.iterdir()] == ["text.txt"]


def test_a_bare_name_is_a_folder_in_runs_and_a_path_is_itself(here: Path) -> None:
    for name, folder in (("a", here / "runs" / "a"), ("./b", here / "b"), (str(here / "c"), here / "c")):
        assert invoke(*TINY, "--data", "text.txt", "--steps", "1", "--run", name).exit_code == 0
        assert (folder / "recipe.toml").is_file()


def test_help_needs_no_torch() -> None:
    code = "import sys, dyneq.cli.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
