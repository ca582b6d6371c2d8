"""The ablation probe: its grid, paired effects with planted answers, and what it says."""

import json

import numpy as np
import pytest
from scipy import stats
from test_triangulate_probe import block

from dyneq.errors import UsageError
from dyneq.probes.ablation_effects import Effect, compare, indistinguishable
from dyneq.probes.ablation_grid import parse_grid
from dyneq.probes.registry import get_probe, run_probe


def said(ds):
    return " | ".join(f.text for f in get_probe("ablation").summary(ds))


def test_a_grid_is_every_combination_of_its_values():
    grid = parse_grid("aep:sides=2", ("t2=5,40", "beta=1e-3,0.1,1"))
    assert grid.options == ("t2", "beta")
    assert len(grid.points) == len(set(grid.specs)) == 6
    assert grid.specs[0] == "aep:sides=2,t2=5,beta=1e-3"
    assert grid.specs[-1] == "aep:sides=2,t2=40,beta=1"
    assert parse_grid("aep5", ("beta=0.1,0.2",)).specs == ("aep:t2=5,beta=0.1", "aep:t2=5,beta=0.2")


def test_tracking_or_frozen_is_an_option_too():
    grid = parse_grid("aep:t2=40", ("estimator=aep,track", "beta=1e-3,0.1"))
    assert grid.specs == ("aep:t2=40,beta=1e-3", "aep:t2=40,beta=0.1", "track:t2=40,beta=1e-3", "track:t2=40,beta=0.1")
    assert parse_grid("aep", ("estimator=ep,aep",)).specs == ("ep", "aep")
    ds = run_probe(
        "ablation",
        block(samples=8),
        ref="bptt80",
        estimator="aep:t1=1,t2=80,beta=1e-3",
        grid=("estimator=aep,track",),
        batches=8,
    )
    # the free phase is stopped after a step, and only the moving mean finishes it
    assert ds["cosine_effect"].values.tolist() == ["matters"]
    assert ds["point"].values[int(ds.attrs["best"])] == "estimator=track"


@pytest.mark.parametrize(
    ("base", "grid", "words"),
    [
        ("aep", ("t2:5,40",), "write it like r=0.02,0.05,0.1"),
        ("aep", ("t2=5,,40",), "write it like"),
        ("aep", ("betta=1,2",), "no option 'betta' to vary; did you mean 'beta'"),
        ("aep", ("t2=5,40", "t2=6,7"), "set twice"),
        ("aep:t2=4", ("t2=5,40",), "set twice"),
        ("aep", ("beta=0.1,1e-1",), "twice"),
        ("aep", ("beta=0.1,much",), "beta: input should be a valid number"),
        ("aep", ("t2=50",), "a grid of one point"),
        ("aep", (), "a grid of one point"),
        ("aep", (f"t2={','.join(map(str, range(1, 202)))}",), "201 points, more than 200"),
        ("nothing", ("t2=5,40",), "gradient estimator"),
        ("aep", ("estimator=aep,nothing",), "gradient estimator"),
        ("aep", ("estimator=aep,dyadic", "beta=0.1,0.2"), "'dyadic' has no option 'beta' to vary"),
        ("aep:beta=0.1", ("estimator=aep,dyadic",), "'dyadic' has no option 'beta'"),
        ("aep", ("estimator=aep,aep",), "twice"),
    ],
)
def test_a_grid_that_is_none_is_one_sentence(base, grid, words):
    with pytest.raises(UsageError, match=words):
        run_probe("ablation", block(samples=2), estimator=base, grid=grid)


POINTS = np.array([[a, b] for a in range(2) for b in range(2)])


def test_effects_are_found_where_they_are_planted():
    """The first option shifts the quantity by 0.3, the second does nothing; both share the noise of the batches."""
    rng = np.random.default_rng(0)
    batch = 0.1 * rng.standard_normal(6)
    values = 0.5 + 0.3 * POINTS[:, :1] + batch + 0.004 * rng.standard_normal((4, 6))
    first, second = (compare(values, POINTS, o, 0.02) for o in (0, 1))
    assert first.effect is Effect.MATTERS
    assert first.largest == pytest.approx(0.3, abs=0.02)
    assert second.effect is Effect.NOTHING
    assert second.high < 0.02
    # what the batches share drops out of the differences: an unpaired comparison could not tell
    assert stats.ttest_ind(values[0], values[1]).confidence_interval(0.95).high > 0.02
    noisy = values + 0.1 * rng.standard_normal((4, 6))
    assert compare(noisy, POINTS, 1, 0.02).effect is Effect.UNDETERMINED


def test_intervals_of_effects_are_joint_and_equal_those_of_scipy():
    values = np.random.default_rng(1).standard_normal((4, 5))
    found = compare(values, POINTS, 0, 0.02)
    ends = [stats.ttest_1samp(values[a] - values[b], 0).confidence_interval(1 - 0.05 / 2) for a, b in ((0, 2), (1, 3))]
    assert found.high == pytest.approx(max(max(abs(e.low), abs(e.high)) for e in ends), rel=1e-12)


def test_an_interaction_is_seen_where_the_averages_hide_it():
    values = np.where(POINTS.sum(1) % 2, 0.2, 0.8)[:, None] + 0.001 * np.random.default_rng(2).standard_normal((4, 5))
    assert abs(values[:2].mean() - values[2:].mean()) < 0.01
    for option in (0, 1):
        assert compare(values, POINTS, option, 0.02).effect is Effect.MATTERS


def test_points_without_numbers_are_left_out_and_one_batch_tells_nothing():
    values = np.full((4, 5), np.nan)
    assert compare(values, POINTS, 0, 0.02).effect is Effect.UNKNOWN
    values[:] = 0.5
    values[3, 2] = np.nan
    assert compare(values, POINTS, 0, 0.02).effect is Effect.NOTHING
    assert indistinguishable(values, 0).tolist() == [True, True, True, False]
    assert compare(values[:, :1], POINTS, 0, 0.02).effect is Effect.UNDETERMINED


@pytest.fixture(name="result", scope="module")
def _result():
    return run_probe(
        "ablation",
        block(samples=8),
        ref="bptt80",
        estimator="aep",
        grid=("t2=1,60", "beta=1e-4,1e-3"),
        batches=8,
    )


def test_what_matters_on_a_block_is_told(result):
    """One step of the nudged phase is far too few; a nudge ten times weaker changes nothing to that order."""
    assert result["point"].values.tolist()[1:] == [f"t2={t} beta={b}" for t in (1, 60) for b in ("1e-4", "1e-3")]
    effect = dict(zip(result["option"].values, result["log_norm_ratio_effect"].values, strict=True))
    assert effect == {"t2": "matters", "beta": "does nothing"}
    text = said(result)
    assert "scale: t2" in text
    assert "beta" in text
    assert "best is t2=" in text
    best = int(result.attrs["best"])
    cosine = result["cosine"].sel(group="all").isel(reference=0)
    assert float(cosine[best]) == float(cosine[1:].max())
    assert bool(result["tied"][best])


def test_table_figure_and_document(result):
    probe = get_probe("ablation")
    text = probe.text(result)
    assert "what each option does by itself" in text
    assert text.count("t2=1 ") == 2
    document = json.loads(json.dumps(probe.document(result)))
    assert len(document["points"]) == 4
    assert sum(p["best"] for p in document["points"]) == 1
    assert document["options"]["beta"]["log_norm_ratio"]["effect"] == "does nothing"
    probe.plot(result)
    with pytest.raises(UsageError, match="two axes"):
        probe.plot(result, ["one"])
    for name in result.data_vars:
        assert {"long_name", "units"} <= set(result[name].attrs), name


def test_a_grid_on_which_everything_refuses_is_a_result_with_the_reason():
    ds = run_probe("ablation", block(samples=2), ref="bptt5", estimator="ep", grid=("t2=3,4",), batches=2)
    refused = ds.copy()
    refused["refusal"] = ("estimator", np.array(["", "not here; elsewhere", "not here; elsewhere"], dtype=object))
    refused.attrs["best"] = -1
    assert "no point gives a direction" in said(refused)
    assert "refused at t2=3, t2=4: not here; elsewhere" in said(refused)
    get_probe("ablation").plot(refused)
    get_probe("ablation").text(refused)
