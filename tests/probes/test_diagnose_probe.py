"""The diagnosis: what it runs after the census and why, and what it says."""

import json

import pytest
import torch

from dyneq.probes.diagnose import DiagnoseParams, plan
from dyneq.probes.registry import get_probe, plot, run_probe, summary
from dyneq.systems.adapters.function import from_ode
from dyneq.systems.analytic import FlipFlow, LinearFlow


def linear(*rates, samples=2, eps=0.1):
    return LinearFlow(
        torch.diag(torch.tensor(rates, dtype=torch.float64)), torch.ones(samples, len(rates)).double(), eps=eps
    )


@pytest.fixture(scope="module")
def settled():
    return run_probe("diagnose", linear(-1.0, -2.0), depth=400)


@pytest.fixture(scope="module")
def stepped():
    return run_probe("diagnose", FlipFlow(), depth=300)


def test_it_stops_when_the_answer_is_certain(settled, stepped):
    assert settled["stage_probe"].values.tolist() == ["census"]
    assert stepped["stage_probe"].values.tolist() == ["census"]


def test_where_all_is_slow_the_solvers_are_compared():
    ds = run_probe("diagnose", linear(-1.0, -0.01), depth=300)
    assert ds["stage_probe"].values.tolist() == ["census", "solver"]
    said = json.loads(str(ds["stage_findings"].values[1]))
    assert said
    assert not any("could not be run" in text for text in said)
    assert any("solver: " in f.text for f in summary(ds))


def test_a_probe_that_cannot_run_is_a_sentence():
    """An exploding system without branches: what has grown cannot be named, and the diagnosis stands."""
    ds = run_probe("diagnose", from_ode(lambda z: z + z**3, torch.ones(2, 1, dtype=torch.float64)), depth=300)
    assert set(ds["verdict"].values) == {"diverged"}
    assert ds["stage_probe"].values.tolist() == ["census", "branches"]
    assert json.loads(str(ds["stage_findings"].values[1]))


def test_no_further_probe_where_none_is_wanted():
    ds = run_probe("diagnose", linear(-1.0, -0.01), depth=300, further=False)
    assert ds["stage_probe"].values.tolist() == ["census"]
    assert plan(ds, DiagnoseParams()) != []
    assert plan(ds, DiagnoseParams(further=False)) == []


def test_the_cure_names_the_step(stepped):
    text = get_probe("diagnose").text(stepped)
    assert "VERDICT  discrete-instability: 4 of 4 samples" in text
    assert "a step below 0.0909" in text  # -2/mu with mu = -22
    document = get_probe("diagnose").document(stepped)
    assert document["verdict"] == "discrete-instability"
    assert document["share"] == 1.0
    assert document["census"][0]["kind"] == "flip"
    assert document["supports"]
    assert document["against"] == ["nothing that was measured"]


def test_figure_holds_the_verdict(settled, stepped):
    for ds, word in ((settled, "fixed-point"), (stepped, "discrete-instability")):
        figure = plot(ds)
        assert len(figure.axes) == 4
        assert any(word in t.get_text() for t in figure.axes[0].texts)


def test_traces_are_residuals_against_depth(settled):
    """One Euler step of a linear flow multiplies the slow component by 0.9."""
    system = linear(-1.0, -2.0)
    z = system.initial_state()
    for n, step in enumerate(settled["step"].values.tolist()[:20]):
        assert step == n * (settled["step"].values[1] - settled["step"].values[0])
    f = system.force(z)
    assert float(settled["trace_residual"][0, 0]) == pytest.approx(float(f[0].norm() / z[0].norm()), rel=1e-12)
