"""The navg probe: averages against explicit gradients, planted bias and noise, and what it says."""

import json

import numpy as np
import pytest
import torch
from test_triangulate_probe import Planted, PlantedParams, block

from dyneq.errors import UsageError
from dyneq.gradients.registry import parse
from dyneq.probes import navg
from dyneq.probes.gradient_specs import Entry
from dyneq.probes.registry import get_probe, run_probe


def said(ds):
    return " | ".join(f.text for f in get_probe("navg").summary(ds))


def planted(monkeypatch, samples=32, batches=16, **kinds):
    """Run the probe with estimators that are not installed."""
    made = [Entry("truth", Planted(), "reference", 20)]
    made += [Entry(name, Planted(PlantedParams(**options)), "estimator", 20) for name, options in kinds.items()]
    monkeypatch.setattr(navg, "entries", lambda *_: made)
    return run_probe("navg", block(samples=samples), batches=batches)


def test_the_mean_over_all_batches_is_that_of_the_whole_set():
    """Batches of equal size: the mean of their gradients is the gradient of the mean loss over all samples."""
    system = block(samples=8)
    ds = run_probe("navg", system, ref=("bptt40",), estimator=("ep:t1=40,t2=30",), batches=4)
    assert ds["count"].values.tolist() == [1, 2, 4]
    whole = system.block.bind(system.tokens, system.targets, eps=system.eps)
    x, r = (
        np.concatenate([p.flatten().numpy() for m in parse(s).gradient(whole).parameters.values() for p in m.values()])
        for s in ("ep:t1=40,t2=30", "bptt40")
    )
    expected = x @ r / np.linalg.norm(x) / np.linalg.norm(r)
    for name in ("same_cosine", "mean_cosine", "cosine_of_means"):
        at = {"count": 4} if name != "cosine_of_means" else {}
        got = ds[name].sel(group="all", **at).isel(reference=0, estimator=1)
        assert float(got) == pytest.approx(expected, rel=1e-6), name  # ep keeps its snapshot by a comparison


def test_planted_bias_and_noise_are_told_apart(monkeypatch):
    ds = planted(monkeypatch, tilted={"bias": 1.0}, restless={"noise": 1.0}, good={"scale": 2.0})
    text = said(ds)
    assert "tilted biased, so that averaging will not help" in text
    assert "restless noisy, so that averaging helps" in text
    assert "good of the right direction already in one batch, but of another scale" in text
    row = ds.sel(group="all").isel(reference=0)
    # |g|^2 = 1.25 + b^2 + n^2 a parameter entry; the fit takes out what lies along the reference
    for name, bias, variance in (("tilted", 1 / 2.25, 0.0), ("restless", 0.0, 1 / 2.25)):
        one = row.sel(estimator=name)
        assert float(one["bias"]) == pytest.approx(bias, abs=2 * float(one["bias_error"]) + 1e-12)
        assert float(one["variance"]) == pytest.approx(variance, abs=2 * float(one["variance_error"]) + 0.01)
    # the cosine of n averaged batches: signal and common noise 1 + 1/(4n), own noise 1/n
    for i, n in enumerate(ds["count"].values):
        one = row.sel(estimator="restless").isel(count=i)
        signal = 1 + 0.25 / n
        expected = (signal / (signal + 1 / n)) ** 0.5
        assert float(one["same_cosine"]) == pytest.approx(expected, abs=2 * float(one["same_cosine_error"]) + 0.01)
    share = float(row["bias_share"].sel(estimator="tilted"))
    assert f"{100 * share:.0f} % of the squared error of one batch is bias" in text
    assert np.isnan(row["bias_share"].sel(estimator="good"))
    assert "good: its error is not above rounding, there is nothing to average" in text


def test_tables_figure_and_document(monkeypatch):
    ds = planted(monkeypatch, samples=12, batches=6, tilted={"bias": 1.0}, none={"scale": 0.0})
    probe = get_probe("navg")
    text = probe.text(ds)
    for words in ("n=1", "n=2", "n=4", "n=6", "n -> inf", "same batches", "mean of all", "bias^2"):
        assert words in text
    assert "none: gives no direction" in said(ds)
    document = json.loads(json.dumps(probe.document(ds)))
    assert [p["n"] for p in document["estimators"][1]["same_cosine"]] == [1, 2, 4, 6]
    assert document["estimators"][1]["reading"] == "biased"
    probe.plot(ds)
    with pytest.raises(UsageError, match="two axes"):
        probe.plot(ds, ["one"])
    for name in ds.data_vars:
        assert {"long_name", "units"} <= set(ds[name].attrs), name


def test_one_batch_says_nothing_of_averaging(monkeypatch):
    ds = planted(monkeypatch, samples=2, batches=1, tilted={"bias": 1.0})
    assert "one batch tells nothing" in said(ds)
    assert get_probe("navg").summary(ds)[0].level == "undetermined"
    get_probe("navg").plot(ds)
    get_probe("navg").text(ds)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batches": 17}, "batches"),
        ({"batches": 8, "samples": 4}, "8 disjoint batches"),
        ({"estimator": ()}, "name an --estimator"),
        ({"estimator": ("aep:t3=1",)}, "no option 't3'"),
    ],
)
def test_bad_parameters_are_one_sentence(options, words):
    with pytest.raises(UsageError, match=words):
        run_probe("navg", block(samples=2), **options)


def test_single_precision(monkeypatch):
    made = [Entry(s, parse(s), role, 20) for s, role in (("bptt20", "reference"), ("phantom:t1=20", "estimator"))]
    monkeypatch.setattr(navg, "entries", lambda *_: made)
    ds = run_probe("navg", block(samples=4, dtype=torch.float32), batches=4)
    assert ds["cosine"].dtype == np.float64
    assert np.isfinite(ds["same_cosine"]).all()
