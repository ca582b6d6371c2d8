"""What a run shows while it goes on: every number at its place, on wide and narrow terminals, and plain lines."""

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from dyneq.train import progress
from dyneq.train.loop import Hooks, start
from dyneq.train.progress import LiveProgress, Numbers, PlainProgress, progress_for
from dyneq.train.recipe import Recipe

WHY = "invalid plateau, the gradients are those of no fixed point: go back to a snapshot that settles (and numbers)"
ACT = "the guard lowers the learning rate to 0.5 of the recipe's, because the multiplier will cross 1 soon"


def records(n: int = 200) -> list[dict[str, object]]:
    made: list[dict[str, object]] = [
        {
            **{"step": i, "loss": 3.0 if i <= n - 20 else 2.0, "force_residual": 1.23e-2, "force_residual_max": 0.34},
            **{"nudge_skipped": int(i > n - 25), "penalty_floss": 0.1, "penalty_share": 0.5 if i % 2 else 0.1},
        }
        for i in range(1, n + 1)
    ]
    made[49]["validation_loss"] = 1.9
    made[99] |= {"validation_loss": 2.1, "guard_modulus": 0.98731}
    made[119]["act"] = ACT
    made[149] |= {"plateau": "invalid", "plateau_why": WHY}
    return made


def shown(width: int, given: list[dict[str, object]]) -> list[str]:
    sink = Console(width=width, file=io.StringIO(), force_terminal=True)
    live = LiveProgress(sink)
    with live.running(1000, 0):
        for record in given:
            live.update(record)
        console = Console(width=width, file=io.StringIO(), record=True)
        console.print(live)
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_every_number_is_shown_at_every_width(width: int) -> None:
    lines = shown(width, records())
    assert all(len(line) <= width for line in lines)
    text = " ".join(" ".join(lines).split())
    for part in (
        *("200/1000", "left", "loss (mean of 20) 2.000", "validation loss 2.100, best 1.900"),
        *("force residual 1.2e-02, worst 3e-01", "leading multiplier 0.9873 at 100", "nudges skipped 25 % of 100"),
        *("penalties 30 % of the update", "plateau: update 150: invalid plateau", "latest act: update 120: the guard"),
    ):
        assert part in text
    beside = {40: 1, 60: 1, 80: 2, 120: 3, 200: 3}[width]
    assert len([line for line in lines if "loss (" in line or "residual " in line]) == (1 if beside == 3 else 2)
    assert len(lines) <= 1 + 6 // beside + 3 + 3


def test_what_a_run_has_not_is_said_or_not_shown() -> None:
    lines = shown(80, [{"step": 1, "loss": 2.0, "force_residual": 0.1}])
    text = " ".join(lines)
    for words in ("leading multiplier not measured", "nudges skipped no gate", "penalties none"):
        assert words in " ".join(text.split())
    for part in ("plateau", "act", "validation"):
        assert part not in text


def test_a_plateau_that_is_left_is_no_longer_shown() -> None:
    given = records()
    given.append({"step": 201, "loss": 2.0, "plateau": "none", "plateau_why": "the loss fell by ..."})
    assert "plateau" not in " ".join(shown(80, given))


def test_records_of_a_log_with_what_is_not_finite_are_shown() -> None:
    numbers = Numbers()
    numbers.observe(
        {"step": 1, "loss": "nan", "force_residual": "inf", "force_residual_max": "inf", "guard_modulus": "nan"}
    )
    assert dict(numbers.pairs)["loss (mean of 1)"] == "nan"
    assert dict(numbers.pairs)["force residual"] == "inf, worst inf"
    numbers.observe({"step": 2, "act": "the guard rolls back", "status": "non-finite"})
    assert numbers.act == "update 2: the guard rolls back"


def test_markup_in_a_sentence_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    live = LiveProgress(Console(width=80, file=io.StringIO()))
    with live.running(2, 0):
        live.note("[bold]a slope of [0.1, 0.2][/bold]")
        live.update({"step": 1, "loss": 1.0, "act": "[red]x[/red]"})
        out = Console(width=80, file=io.StringIO(), record=True)
        out.print(live)
    assert "[bold]a slope of [0.1, 0.2][/bold]" in live._console.file.getvalue()
    assert "[red]x[/red]" in out.export_text()


def test_plain_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    plain = PlainProgress()
    with plain.running(1000, 100):
        for record in records()[100:]:
            now[0] += 0.5
            plain.update(record)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == int(50 / progress.INTERVAL)
    assert lines[-1].startswith("update 190/1000: loss (mean of 20) 2.500; ")
    assert "penalties 30 % of the update" in lines[-1]
    assert lines[-1].endswith("0:06:45 left")  # 810 updates of half a second


def test_who_is_quiet_hears_warnings_alone(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = progress_for(True)
    quiet.note("an act")
    quiet.update({"step": 1})
    assert capsys.readouterr().err == ""
    quiet.warn("a tracker is dropped")
    assert capsys.readouterr().err == "dyneq: a tracker is dropped\n"


def test_who_gets_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert isinstance(progress_for(False), PlainProgress)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    assert isinstance(progress_for(False), LiveProgress)


def test_a_run_shows_itself(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    console = Console(width=100, file=io.StringIO(), force_terminal=True)
    recipe = tiny(penalty={"floss": {"margin": 3.0, "rest": 0.0}}, stability={"gate": 1e-9})
    start(recipe, tmp_path / "run", hooks=Hooks(progress=LiveProgress(console)))
    text = console.file.getvalue()
    for part in ("20/20", "left", "validation loss", "force residual", "nudges skipped", "penalties"):
        assert part in text
