"""The log and its repair."""

import json
from pathlib import Path

from dyneq.train.log import TrainingLog, cut_log, read_log


def test_every_line_is_on_its_way_before_append_returns(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with TrainingLog(path) as log:
        log.append({"step": 1, "loss": 0.5})
        assert json.loads(path.read_text()) == {"step": 1, "loss": 0.5}


def test_a_truncated_line_and_later_steps_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": n}) + "\n" for n in range(5)]
    path.write_text("".join(lines) + '{"step": 5, "lo')
    assert [r["step"] for r in read_log(path)] == [0, 1, 2, 3, 4]
    assert [r["step"] for r in cut_log(path, 3)] == [0, 1, 2, 3]
    assert path.read_text() == "".join(lines[:4])
    assert cut_log(path, -1) == []
    assert path.read_text() == ""
    assert cut_log(tmp_path / "none.jsonl", 3) == []


def test_a_complete_line_cut_off_before_its_line_end_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')  # might have been {"step": 2} or {"step": 2, ...
    assert [r["step"] for r in cut_log(path, 9)] == [1]


def test_what_json_cannot_hold_is_written_by_name(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with TrainingLog(path) as log:
        log.append({"step": 1, "a": float("nan"), "b": float("inf"), "c": -float("inf")})
    assert read_log(path) == [{"step": 1, "a": "nan", "b": "inf", "c": "-inf"}]
