"""``dyneq diagnose``: what is printed, the document, and the exit code of an expectation."""

import json

import pytest

from dyneq.cli.main import run

STABLE = "dyneq.systems.analytic:shear"
STEPPED = "dyneq.systems.analytic:flip"


def test_text_says_verdict_evidence_and_cure(capsys):
    assert run(["diagnose", STEPPED, "--depth", "200"]) == 0
    printed = capsys.readouterr().out
    for word in ("VERDICT  discrete-instability", "meaning", "evidence", "against", "cure", "next", "ran census"):
        assert word in printed


def test_document(capsys):
    assert run(["diagnose", STEPPED, "--depth", "200", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["command"] == "diagnose"
    result = document["results"][0]
    assert result["verdict"] == "discrete-instability"
    assert {"sample", "token", "verdict", "mu", "critical_eps", "confidence"} <= set(result["census"][0])
    assert result["census"][0]["mu"] == [pytest.approx(-22.0), 0.0]
    assert result["census"][0]["critical_eps"] == pytest.approx(1 / 11)
    assert result["census"][0]["period"] is None  # NaN has no place in JSON


@pytest.mark.parametrize("extra", [[], ["--json"]])
@pytest.mark.parametrize(
    ("subject", "expectation", "code"),
    [
        (STABLE, ["--expect", "fixed-point"], 0),
        (STABLE, ["--expect", "fixed-point", "--share", "1"], 0),
        (STEPPED, ["--expect", "fixed-point"], 4),
        (STEPPED, ["--expect", "fixed-point", "--share", "0.25"], 4),
        (STEPPED, ["--expect", "discrete-instability", "--share", "1.0"], 0),
    ],
)
def test_expectation(capsys, subject, expectation, code, extra):
    assert run(["diagnose", subject, "--depth", "400", *expectation, *extra]) == code
    assert ("expected" in capsys.readouterr().err) == (code == 4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--expect", "fixpoint"], "did you mean"),
        (["--share", "0.5"], "--expect"),
        (["--expect", "slow", "--share", "0"], "share"),
        (["--depth", "0"], "depth"),
        (["--watch", "10"], "watch"),
    ],
)
def test_wrong_options_are_sentences(capsys, words, said):
    assert run(["diagnose", STABLE, *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
