"""The census: against the manifest of a packaged checkpoint, and how the checkpoint's verdict follows from samples'."""

import json
from importlib.resources import files

import numpy as np
import pytest
import torch
import xarray as xr

import dyneq
from dyneq.catalog.output import write_dataset
from dyneq.dynamics.verdict import Verdict
from dyneq.probes.census_reading import headline, overall
from dyneq.probes.registry import get_probe, plot, run_probe, summary
from dyneq.systems.adapters.function import from_map, from_ode
from dyneq.systems.analytic import LinearFlow

#: Of the packaged checkpoint: a Hopf token, one that Euler's step makes oscillate, a slow one, one that settles.
CHOSEN = [16, 4, 57, 1]


@pytest.fixture(scope="module")
def reference():
    system = dyneq.open_checkpoint("after").bind().select(torch.tensor(CHOSEN))
    return run_probe("census", system, depth=1000, watch=1500)


def test_causes_and_addresses_are_those_of_the_manifest(reference):
    assert reference["verdict"].values.tolist() == ["limit-cycle", "discrete-instability", "slow", "fixed-point"]
    assert reference["kind"].values.tolist()[:2] == ["hopf", "neimark-sacker"]
    manifest = json.loads(files("dyneq").joinpath("reference/manifest.json").read_text())
    pairs = {p["sample"]: p for p in manifest["checkpoints"]["after"]["long_run"]["pairs"]}
    for row, sample in enumerate(CHOSEN[:3]):
        known, found = pairs[sample], reference.isel(sample=row)
        assert int(found["origin"]) == known["token"]
        mu = complex(found["mu"].item())
        # both are eigenvalues of float64 blocks at roots with residuals near 1e-15
        assert abs(mu - complex(*known["mu"])) < 1e-8
        assert float(found["mu_error"]) < 1e-8
        if known["critical_eps"] is not None:
            assert float(found["sample_critical_eps"]) == pytest.approx(known["critical_eps"], rel=1e-8)


def test_tokens_before_the_origin_settle_and_later_ones_are_driven(reference):
    state = reference["token_state"].values
    for row in (0, 1):
        origin = int(reference["origin"][row])
        assert state[row, origin] == 2
        assert set(state[row, :origin]) <= {0, 1}
        assert set(state[row, origin + 1 :]) == {3}
    assert set(state[3]) == {0}


def test_cost_and_words(reference):
    assert float(reference["evaluations"]) > float(reference["force_evaluations"]) > 500
    for name, variable in reference.data_vars.items():
        assert variable.attrs["long_name"], name
        assert "units" in variable.attrs, name
    first = summary(reference)[0]
    assert first.text.startswith("limit-cycle: 1 of 4 samples, first at token 13; ")
    probe = get_probe("census")
    assert "neimark" not in probe.text(reference)
    assert "discrete-instability" in probe.text(reference)
    document = probe.document(reference)
    assert [entry["verdict"] for entry in document["census"]] == reference["verdict"].values.tolist()
    assert document["census"][0]["token"] == 13
    assert plot(reference).axes


@pytest.mark.parametrize("suffix", ["zarr", "nc"])
def test_a_census_is_stored_as_it_is(reference, tmp_path, suffix):
    target = tmp_path / f"census.{suffix}"
    write_dataset(reference, target)
    back = xr.open_zarr(target, consolidated=False) if suffix == "zarr" else None
    assert target.exists()
    if back is not None:
        assert back["verdict"].values.tolist() == reference["verdict"].values.tolist()
        np.testing.assert_array_equal(back["mu"].values, reference["mu"].values)


def verdicts(*names):
    """Return the part of a census that the checkpoint's verdict is made from."""
    return xr.Dataset(
        {"verdict": ("sample", np.array(names, dtype=object)), "origin": ("sample", np.arange(len(names)))},
        {"sample": np.arange(len(names))},
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["fixed-point"] * 7 + ["chaos"], Verdict.FIXED_POINT),  # one of eight is not enough
        (["fixed-point"] * 6 + ["chaos"], Verdict.CHAOS),  # of seven it is
        (["fixed-point"] * 6 + ["slow"] * 2, Verdict.SLOW),
        (["limit-cycle"] * 2 + ["discrete-instability"] * 9, Verdict.LIMIT_CYCLE),
        (["undetermined"] * 2 + ["slow"] * 9, Verdict.UNDETERMINED),
        (["undetermined"] * 9 + ["fold"] * 2, Verdict.FOLD),
        ([v.value for v in Verdict][:8], Verdict.UNDETERMINED),  # no two agree
    ],
)
def test_the_worst_cause_with_two_witnesses_is_the_verdict(names, expected):
    found = overall(verdicts(*names))
    assert found.verdict is expected
    assert headline(verdicts(*names)).startswith(expected.value)
    assert sum(map(len, found.samples.values())) == len(names)


def test_samples_without_tokens_and_without_a_future():
    """One sample overflows at once, one explodes, one settles: each is named, none hides another."""
    system = from_ode(lambda z: z**3 - z, torch.tensor([[1e200], [3.0], [0.5]], dtype=torch.float64))
    ds = run_probe("census", system, depth=300, watch=500)
    assert ds["verdict"].values.tolist() == ["diverged", "diverged", "fixed-point"]
    assert "token_state" not in ds
    assert plot(ds).axes


def test_a_map_is_never_called_discrete():
    """Its multiplier -1.05 would be a flip of Euler's step, but there is no step."""
    system = from_map(lambda z: -1.05 * z + z**3, torch.full((2, 1), 0.1, dtype=torch.float64))
    ds = run_probe("census", system, depth=300, watch=2000)
    assert set(ds["verdict"].values) == {"limit-cycle"}
    assert np.isnan(ds["critical_eps"].values).all()


def test_float32_is_judged_by_its_own_tolerance():
    rates = -torch.eye(3, dtype=torch.float32)
    ds = run_probe("census", LinearFlow(rates, torch.ones(2, 3, dtype=torch.float32)), depth=400)
    assert set(ds["verdict"].values) == {"fixed-point"}


def test_constant_trajectories_and_a_single_sample():
    """A force of exactly zero: nothing moves, and nothing returns either."""
    ds = run_probe("census", from_ode(lambda z: 0 * z, torch.ones(1, 2, dtype=torch.float64)), depth=300, watch=500)
    assert ds["verdict"].values.tolist()[0] in {"fold", "undetermined"}
