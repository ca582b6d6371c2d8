"""Comparisons: nothing moves by itself, and what was planted is found with its exact size and place."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from dyneq.catalog.diff import compare
from dyneq.errors import DyneqError, UsageError
from dyneq.probes.registry import get_probe, run_probe
from dyneq.systems.adapters import from_ode

FLOATS = [0.0, -0.0, 1.5, -2.0, np.nan, np.inf, -np.inf]


def simple(values, bar=None, **attributes):
    x = np.asarray(values)
    variables = {"x": (("sample",), x, {"ancillary_variables": "x_error", "units": "1"})}
    if bar is not None:
        variables["x_error"] = (("sample",), np.broadcast_to(np.asarray(bar, dtype=float), x.shape).copy())
    return xr.Dataset(variables, {"sample": np.arange(len(x)) + 10}, attributes)


def row(comparison, name="x"):
    (found,) = [r for r in comparison.rows if r.name == name]
    return found


def spectrum(seed=0, **params):
    """A result of 3 linear systems with random 5-dimensional spectra that decay."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(5, 5, generator=g, dtype=torch.float64) / 3 - 2 * torch.eye(5, dtype=torch.float64)
    system = from_ode(lambda z: (z - 1) @ a.T, torch.full((3, 5), 1.5, dtype=torch.float64), eps=0.1)
    return run_probe("spectrum", system, depth=(3, 5), **params)


RESULT = spectrum()


@st.composite
def datasets(draw):
    n = draw(st.integers(0, 3))
    numbers = st.lists(st.sampled_from(FLOATS), min_size=n, max_size=n)
    x = np.array(draw(numbers), dtype=float)
    imaginary = np.array(draw(numbers), dtype=float)
    c = np.empty(n, dtype=complex)
    c.real, c.imag = x, imaginary
    return xr.Dataset(
        {
            "x": ("sample", x, {"ancillary_variables": "bar"}),
            "c": ("sample", c, {"ancillary_variables": "bar"}),
            "bar": ("sample", np.array(draw(numbers), dtype=float)),
            "i": (
                "sample",
                np.array(draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=n, max_size=n)), dtype=int),
            ),
            "t": ("sample", np.array(draw(st.lists(st.text(), min_size=n, max_size=n)), dtype=object)),
            "b": ("sample", x > 0),
            "when": ("sample", np.arange(n).astype("datetime64[s]")),
            "scalar": ((), draw(st.sampled_from(FLOATS))),
        }
    )


@settings(max_examples=60, deadline=None)
@given(datasets())
def test_nothing_moves_by_itself(ds):
    found = compare(ds, ds.copy(deep=True))
    assert {r.name for r in found.rows} == set(ds.data_vars)
    for r in found.rows:
        assert r.equal == r.compared == ds[r.name].size
        assert (r.moved, r.nan_in_one, r.beyond, r.undetermined, r.largest, r.ratio, r.examples) == (
            0,
            0,
            0,
            0,
            None,
            None,
            (),
        )
    assert found.verdict == "nothing moved: every value compared is equal bit for bit"
    json.dumps(found.to_plain(), allow_nan=False)


def test_a_result_compared_with_itself():
    found = compare(RESULT, RESULT)
    assert found.verdict == "nothing moved: every value compared is equal bit for bit"
    assert not found.parameters
    assert not found.unlike
    assert found.unmatched == {"mode": (0, 0)}
    assert {r.name for r in found.rows if r.kind == "cost"} == {"seconds", "matvecs"}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4), st.integers(-6, 6), st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0]), st.booleans())
def test_a_planted_change_is_found_with_its_size_and_place(place, exponent, ratio, turned):
    """Powers of two, so that the ratio is exact."""
    unit = 2.0**exponent
    a = simple(np.arange(5.0) * 64, unit)
    moved = a["x"].values.astype(complex if turned else float)
    moved[place] += ratio * 2 * unit * (1j if turned else 1)  # both bars together are 2 units
    b = a.assign(x=("sample", moved, a["x"].attrs))
    found = row(compare(a, b))
    assert (found.moved, found.equal, found.beyond, found.undetermined) == (1, 4, int(ratio > 1), 0)
    assert found.ratio.value == ratio
    assert found.ratio.at == found.largest.at == {"sample": place + 10}
    assert found.largest.value == ratio * 2 * unit
    assert (found.ratio.a, found.ratio.b) == (64.0 * place, moved[place])
    sentence = compare(a, b).verdict
    assert sentence == (
        "1 of 1 variables moved beyond their error bars: x" if ratio > 1 else "nothing moved beyond its error bars"
    )


def test_the_largest_change_and_the_largest_ratio_may_be_in_different_places():
    a, b = simple([0.0, 0.0], [8.0, 0.25]), simple([4.0, 1.0], [8.0, 0.25])
    found = row(compare(a, b))
    assert (found.largest.value, found.largest.at) == (4.0, {"sample": 10})
    assert (found.ratio.value, found.ratio.at) == (2.0, {"sample": 11})
    assert found.beyond == 1


def test_unknown_error_bars_decide_nothing():
    a, b = simple([1.0, 2.0, 3.0], [np.nan, 1.0, np.nan]), simple([1.5, 2.0, 3.0], [1.0, np.nan, 1.0])
    found = compare(a, b)
    assert (row(found).beyond, row(found).undetermined, row(found).without_bar) == (0, 1, 3)
    assert "1 moved without known error bars, which leaves it undetermined: x" in found.verdict
    assert "nothing moved beyond the error bars there are" in found.verdict
    for bars in (None, -1.0):  # none, and less than nothing
        assert row(compare(simple([1.0], bars), simple([2.0], 1.0))).undetermined == 1


def test_bars_of_zero_infinite_bars_and_infinite_values():
    inf = np.inf
    assert row(compare(simple([1.0], 0.0), simple([2.0], 0.0))).ratio.value == inf
    assert row(compare(simple([1.0], inf), simple([2.0], 0.0))).beyond == 0
    found = compare(simple([1.0, inf, inf, -inf], 1.0), simple([inf, inf, -inf, -inf], 1.0))
    assert (row(found).moved, row(found).equal, row(found).beyond, row(found).largest.value) == (2, 2, 2, inf)
    text = json.dumps(found.to_plain(), allow_nan=False)
    assert json.loads(text)["rows"][0]["largest"]["value"] is None
    assert row(compare(simple([1.0], inf), simple([inf], 1.0))).undetermined == 1
    assert row(compare(simple([complex(inf, 0)], 1), simple([complex(inf, 1)], 1))).largest.value == inf


def test_nan_in_only_one_and_the_sign_of_zero():
    found = compare(simple([np.nan, 1.0, np.nan, 0.0], 1.0), simple([1.0, np.nan, np.nan, -0.0], 1.0))
    assert (row(found).nan_in_one, row(found).equal, row(found).moved) == (2, 1, 0)
    assert found.verdict == "nothing moved beyond its error bars; 1 is undefined in only one result: x"


@pytest.mark.parametrize(
    ("a", "b", "delta"),
    [
        (np.array([-(2**63)]), np.array([2**63 - 1]), 2.0**64),
        (np.array([2**53 + 1]), np.array([2**53]), 1.0),
        (np.array([3], dtype=np.uint8), np.array([5], dtype=np.uint8), 2.0),
        (np.array([5], dtype=np.uint8), np.array([3], dtype=np.int64), 2.0),
        (np.array([True]), np.array([False]), 1.0),
        (np.array([5], dtype="M8[s]"), np.array([7], dtype="M8[s]"), 2.0),
    ],
)
def test_whole_numbers_differ_or_do_not(a, b, delta):
    found = compare(simple(a, 100.0), simple(b, 100.0))
    assert (row(found).kind, row(found).moved, row(found).largest.value) == ("exact", 1, delta)
    assert "1 differs outright: x" in found.verdict
    json.dumps(found.to_plain(), allow_nan=False)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("a", "b", "delta"),
    [
        (np.array([2**53 + 1]), np.array([2.0**53]), 1.0),
        (np.array([2**53 + 1]), np.array([2.0**53 + 0j]), 1.0),
        (np.array([2**53 + 1]), np.array([2.0**53 - 3 + 3j]), 5.0),
        (np.array([-(2**53) - 1]), np.array([-(2.0**53)]), 1.0),
        (np.array([2**63 - 1]), np.array([2.0**63]), 1.0),
        (np.array([2**64 - 1], dtype=np.uint64), np.array([2.0**64], dtype=np.float32), 1.0),
        (np.array([2**53 + 1], dtype=np.uint64), np.array([2**53]), 1.0),
        (np.array([2**53 + 1]), np.array([np.inf]), np.inf),
    ],
)
def test_whole_numbers_beside_other_types_are_not_rounded(a, b, delta, swapped):
    if swapped:
        a, b = b, a
    found = row(compare(simple(a, 0.25), simple(b, 0.25)))
    assert (found.equal, found.moved, found.largest.value) == (0, 1, delta)
    assert found.kind == "exact" or found.ratio.value == 2 * delta


def test_whole_numbers_that_another_type_holds_are_equal():
    assert row(compare(simple([2**53, 2**60]), simple([2.0**53, 2.0**60]))).equal == 2
    assert row(compare(simple([2**53, 7]), simple([np.nan, 7.0]))).nan_in_one == 1


def test_bars_whose_sum_is_too_large():
    found = row(compare(simple([1e308], 1e308), simple([0.0], 1e308)))
    assert (found.moved, found.beyond, found.undetermined, found.ratio.value) == (1, 0, 0, 0.5)
    assert row(compare(simple([1.5e308], 1.7e308), simple([0.0], np.inf))).ratio.value == 0.0


def test_texts_that_differ_with_examples():
    a = simple(np.array(["a", "b", "c", "d", "e"], dtype=object))
    b = simple(np.array(["a", "x", "x", "x", "x"], dtype="U9"))
    found = compare(a, b)
    assert (row(found).moved, row(found).equal) == (4, 1)
    assert [(e.at, e.a, e.b) for e in row(found).examples] == [({"sample": 11 + i}, "bcd"[i], "x") for i in range(3)]
    assert any("'b' became 'x' at sample 11" in line for line in found.lines())
    scalar = [xr.Dataset({"x": ((), np.array(text, dtype=object))}) for text in ("a", "b")]
    assert row(compare(*scalar)).examples[0].at == {}


def test_cost_and_certificates_are_apart():
    a, b = simple([1.0], 1.0, probe="spectrum"), simple([1.0], 2.0, probe="spectrum")
    for ds, value in ((a, 1.0), (b, 2.0)):
        ds["seconds"] = ("sample", [value], {"role": "cost"})
        ds["residual"] = ("sample", [value], {"role": "certificate"})
        ds["flag"] = ("sample", [1.0], {"role": "exact"})
    found = compare(a.assign_attrs(probe=None), b.assign_attrs(probe=None))
    assert {r.name: r.kind for r in found.rows} == {
        "x": "measured",
        "x_error": "certificate",
        "residual": "certificate",
        "seconds": "cost",
        "flag": "exact",
    }
    assert found.verdict == "nothing moved: every value compared is equal bit for bit"


def test_what_only_one_has_and_what_cannot_be_compared():
    a = simple([1.0], 1.0).assign(old=1.0, shape=("sample", [1.0]), kind=("sample", [1.0]))
    b = simple([1.0], 1.0).assign(new=1.0, shape=1.0, kind=("sample", np.array(["a"], dtype=object)))
    b = b.assign_coords(extra=("sample", [1]))
    found = compare(a, b)
    assert found.only_a == ("old",)
    assert set(found.only_b) == {"new", "extra"}
    assert found.unlike == {"shape": "dimensions (sample) and ()", "kind": "values of type float64 and object"}
    assert "not comparable: shape, kind" in found.verdict
    turned = xr.Dataset({"y": (("p", "q"), np.arange(6.0).reshape(2, 3))})
    assert row(compare(turned, turned.transpose("q", "p")), "y").equal == 6


def test_parameters_that_differ():
    a = simple([1.0], params='{"seed": 0, "depth": [800]}', eps=0.1, created_at="x", kept=np.nan)
    b = simple([1.0], params='{"seed": 1, "depth": [800]}', eps=0.2, created_at="y", kept=np.nan, dtype="float32")
    assert compare(a, b).parameters == {"params.seed": (0, 1), "eps": (0.1, 0.2), "dtype": (None, "float32")}


def test_entries_are_aligned_by_their_coordinates():
    a, b = simple([1.0, 2.0, 3.0], 1.0), simple([2.0, 3.0, 4.0], 1.0)
    b = b.assign_coords(sample=[11, 12, 13])
    found = compare(a, b.isel(sample=[2, 0, 1]))
    assert (row(found).compared, row(found).equal) == (2, 2)
    assert found.unmatched == {"sample": (1, 1)}
    assert "entries without a counterpart: 2 along sample" in found.verdict


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ds: ds.assign_attrs(probe="root"), "'None' and 'root'|None and 'root'"),
        (lambda ds: ds.assign_coords(sample=[1, 2]), "no sample in common"),
        (lambda ds: ds.drop_vars("sample"), "coordinates in only one"),
        (lambda ds: ds.assign_coords(sample=[10, 10]), "repeated"),
    ],
)
def test_results_that_cannot_be_compared(change, words):
    a = simple([1.0, 2.0], 1.0)
    with pytest.raises(UsageError, match=words) as error:
        compare(a, change(a))
    assert "\n" not in str(error.value)


def test_lengths_without_coordinates_must_agree():
    a = simple([1.0, 2.0], 1.0).drop_vars("sample")
    with pytest.raises(UsageError, match=r"no coordinates and 2 entries in one result but\s1"):
        compare(a, a.isel(sample=[0]))


def test_a_bar_that_does_not_fit_is_named():
    a = xr.Dataset({"x": ((), 1.0, {"ancillary_variables": "e"}), "e": ("sample", [1.0])})
    with pytest.raises(DyneqError, match="error bar 'e' of 'x'"):
        compare(a, a)


def test_a_bar_spreads_over_the_dimensions_it_lacks():
    a = xr.Dataset({"x": (("p", "q"), np.zeros((2, 2)), {"ancillary_variables": "e"}), "e": ("q", [1.0, 2.0])})
    b = a.assign(x=(("p", "q"), np.full((2, 2), 4.0), a["x"].attrs))
    assert row(compare(a, b)).ratio.value == 2.0
    assert row(compare(a, b)).ratio.at == {"p": 0, "q": 0}


def test_a_probe_that_is_not_installed_is_said():
    found = compare(simple([1.0], 1.0, probe="gone"), simple([1.0], 1.0, probe="gone"))
    assert "'gone' is not installed" in found.lines()[1]
    with pytest.raises(UsageError, match="by the probe 'root'"):
        compare(RESULT, RESULT, get_probe("root"))


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(RESULT.sizes["mode"])), st.floats(1e-9, 1e-7))
def test_permuted_modes_are_paired_again(order, shift):
    moded = [n for n, v in RESULT.data_vars.items() if "mode" in v.dims]
    other = RESULT.assign({n: RESULT[n].isel(mode=list(order)).assign_coords(mode=RESULT["mode"]) for n in moded})
    other["mu"] = (other["mu"].dims, other["mu"].values + shift, RESULT["mu"].attrs)
    found = compare(RESULT, other)
    assert found.unmatched == {"mode": (0, 0)}
    assert row(found, "mu").largest.value == pytest.approx(shift, rel=1e-6)
    assert row(found, "multiplier").moved == 0
    assert row(found, "mode_sample").moved == 0
    at = row(found, "mu").ratio.at
    assert order[at["mode_second"]] == at["mode_first"], "where the pair was in both"


def test_modes_without_a_partner_are_left_out_and_counted():
    short = spectrum(count=2)
    found = compare(RESULT, short)
    rows = row(found, "mu")
    kept = int(np.isfinite(short["mu"]).sum())
    assert rows.moved == 0
    assert found.unmatched["mode"] == (int(np.isfinite(RESULT["mu"]).sum()) - kept, 0)
    # by hand, with nothing of ours: each mode kept is among those of the full list
    for depth in (3, 5):
        full = RESULT["mu"].sel(depth=depth).values
        for mu in short["mu"].sel(depth=depth).values:
            assert np.isnan(mu) or np.abs(full - mu).min() == 0


def test_modes_of_other_samples_are_never_paired():
    other = RESULT.assign(mode_sample=RESULT["mode_sample"] + 100)
    found = compare(RESULT, other)
    assert row(found, "mu").compared == 0
    assert sum(found.unmatched["mode"]) == 2 * int(np.isfinite(RESULT["mu"]).sum())


def test_only_common_depths_are_compared():
    found = compare(RESULT, RESULT.sel(depth=[5]))
    assert row(found, "abscissa").compared == 3
    assert found.unmatched["depth"] == (1, 0)
    with pytest.raises(UsageError, match="no depth in common"):
        compare(RESULT.sel(depth=[3]), RESULT.sel(depth=[5]))
    with pytest.raises(UsageError, match="dimension 'depth'"):
        compare(RESULT.isel(depth=0), RESULT.isel(depth=0))
    with pytest.raises(UsageError, match="'mode_token'"):
        compare(RESULT.drop_vars("mode_token"), RESULT)


def test_further_roots_are_paired_by_sample_and_distance():
    three = from_ode(lambda z: z - z**3, torch.tensor([[0.01], [-0.01]], dtype=torch.float64))
    ds = run_probe("root", three, depth=400, explore=True)
    assert ds.sizes["other"] >= 2
    assert compare(ds, ds.isel(other=slice(None, None, -1))).unmatched == {"other": (0, 0)}
    assert row(compare(ds, ds.isel(other=slice(None, None, -1))), "other_distance").moved == 0
    found = compare(ds, ds.isel(other=[1]))
    assert found.unmatched == {"other": (ds.sizes["other"] - 1, 0)}
    assert row(found, "other_distance").equal == 1


def test_the_table_is_aligned_and_the_verdict_comes_first():
    other = spectrum(1)
    found = compare(RESULT, other)
    lines = found.lines()
    assert lines[0] == found.verdict
    assert "variables moved beyond their error bars: " in lines[0]
    start = lines.index("measured values") + 1
    heads = lines[start].split()
    assert heads[0] == "variable"
    end = lines[start].index("equal") + len("equal")
    for line in lines[start + 1 : lines.index("", start)]:
        assert line[end - 1].isdigit()
        assert line[end] == " "
    assert lines[-1].startswith("  ") or not found.parameters
