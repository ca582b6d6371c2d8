"""Combined results: every one is found again exactly, and nothing that was not computed can be taken for a number."""

import json
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from dyneq.catalog.combine import Labelled, combine
from dyneq.errors import DyneqError, UsageError
from dyneq.probes.registry import run_probe
from dyneq.systems import analytic

SHAS = ["a" * 64, "b" * 12 + "0" * 52, "b" * 12 + "1" * 52]


def result(sha=0, *, depths=(10,), modes=2, others=1, generator=None, **params):
    """A result with every kind of variable; its numbers are random, its shapes as asked."""
    g = generator or np.random.default_rng(0)
    n = len(depths)
    ds = xr.Dataset(
        {
            "mu": (("depth", "mode"), g.normal(size=(n, modes)) + 1j * g.normal(size=(n, modes)), {"units": "1/time"}),
            "abscissa": (("depth", "sample"), g.normal(size=(n, 3)).astype(np.float32)),
            "status": (("depth", "sample"), g.choice(["converged", "max_steps"], size=(n, 3)).astype(object)),
            "matvecs": ("depth", g.integers(0, 99, size=n)),
            "flag": ("sample", g.random(3) > 0.5),
            "distance": ("other", g.normal(size=others)),
            "total": ((), g.normal()),
        },
        {"depth": list(depths), "mode": np.arange(modes), "state": ("depth", np.array(["relaxed"] * n, dtype=object))},
        {"probe": "thing", "probe_version": 1, "params": json.dumps(params)},
    )
    request = {"params": {"depth": tuple(depths), "seed": 0, **params}, "eps": 0.1, "dtype": "float64"}
    request |= {"device": "cpu", "batch": 3}
    checkpoint = {"sha256": SHAS[sha], "name": f"c{sha}", "run": "r", "step": 10 * sha}
    return Labelled(ds, checkpoint, request, "2026-01-01T00:00:00+00:00")


def later(held, seconds=1, **request):
    return Labelled(held.ds, held.checkpoint, {**held.request, **request}, f"2026-01-01T00:00:{seconds:02d}+00:00")


def found(ds, held, **where):
    """The part of a combined dataset that is one result's, without the gaps that others made."""
    for dim in held.ds.dims:
        ds = ds.sel({dim: held.ds[dim]}) if dim in held.ds.indexes else ds.isel({dim: slice(held.ds.sizes[dim])})
    return ds.sel(
        checkpoint=next(c for c in ds["checkpoint"].values if held.checkpoint["sha256"].startswith(c)), **where
    )


def assert_holds(ds, held, **where):
    part = found(ds, held, **where)
    assert part["computed"].all()
    for name, variable in held.ds.data_vars.items():
        here = part[name].transpose(*variable.dims)
        if variable.dtype.kind in "OU":
            assert here.values.tolist() == variable.values.tolist()
        else:
            np.testing.assert_array_equal(here.values, variable.values, err_msg=name)
    for name, variable in held.ds.coords.items():
        assert part[name].values.tolist() == variable.values.tolist()


@st.composite
def sweeps(draw):
    cells = st.tuples(
        st.integers(0, 2), st.sampled_from([0, 1, 7]), st.sampled_from([0.5, 1.0, 2.5]), st.sampled_from(["x", "y"])
    )
    chosen = draw(st.lists(cells, min_size=1, max_size=7, unique=True))
    ragged = draw(st.booleans())
    g = np.random.default_rng(draw(st.integers(0, 99)))
    return [
        (
            result(
                sha,
                depths=(10, 20),
                modes=draw(st.integers(0, 3)) if ragged else 2,
                others=draw(st.integers(0, 3)) if ragged else 1,
                generator=g,
                seed=seed,
                alpha=alpha,
                how=how,
            ),
            {"seed": seed, "alpha": alpha, "how": how},
        )
        for sha, seed, alpha, how in chosen
    ]


@settings(max_examples=20, deadline=None)
@given(sweeps(), st.booleans())
def test_every_result_of_a_random_part_of_a_grid_is_found_again(sweep, lazy):
    held = [h for h, _ in sweep]
    if lazy:
        pytest.importorskip("dask")
        # the last stays as it is: lazy and loaded results may be mixed
        held[:-1] = [Labelled(h.ds.chunk(), h.checkpoint, h.request, h.created_at) for h in held[:-1]]
    ds = combine(held)
    assert (ds["mu"].chunks is not None) == (lazy and len(held) > 1)
    ds = ds.load()
    new = [d for d in ("seed", "alpha", "how") if d in ds.dims]
    for h, where in sweep:
        assert_holds(ds, h, **{d: where[d] for d in new})
    computed = ds["computed"]
    assert int(computed.sum()) == len(sweep)
    empty = ~computed.broadcast_like(ds["mu"])
    for part in (ds["mu"].real, ds["mu"].imag):
        assert np.isnan(part.values[empty.values]).all()
    assert (ds["status"].values[~computed.broadcast_like(ds["status"]).values] == "").all()
    for name in ("matvecs", "flag", "total", "abscissa"):
        assert np.isnan(ds[name].astype(float).values[~computed.broadcast_like(ds[name]).values]).all()
    for dim, of in (("mode", "mu"), ("other", "distance")):
        if f"computed_{dim}" in ds:
            entries = ds[f"computed_{dim}"]
            assert int(entries.sum()) == sum(h.ds.sizes[dim] for h, _ in sweep)
            np.testing.assert_array_equal(np.isnan(ds[of]), ~entries.broadcast_like(ds[of]).transpose(*ds[of].dims))


def test_nothing_is_computed_while_lazy_results_are_combined():
    array = pytest.importorskip("dask.array")

    def explode(block):
        raise AssertionError("computed")

    held = []
    for seed in range(3):
        h = result(seed % 2, seed=seed, modes=1 + seed)
        ds = h.ds.copy()
        for name, v in h.ds.data_vars.items():
            lazy = array.from_array(np.asarray(v.values), chunks=-1).map_blocks(explode, dtype=v.dtype, meta=v.values)
            ds[name] = (v.dims, lazy)
        held.append(Labelled(ds, h.checkpoint, h.request, h.created_at))
    ds = combine(held)
    assert dict(ds["mu"].sizes) == {"checkpoint": 2, "seed": 3, "depth": 1, "mode": 3}
    with pytest.raises(AssertionError, match="computed"):
        ds["matvecs"].load()


def test_it_works_without_dask():
    program = (
        "import sys; sys.modules['dask'] = None\n"
        "sys.path.insert(0, 'tests/catalog')\n"
        "from test_combine import result, combine, assert_holds\n"
        "held = [result(0, seed=1), result(1, seed=2)]\n"
        "ds = combine(held)\n"
        "assert_holds(ds, held[1], seed=2)\n"
        "print(dict(ds.sizes))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'checkpoint': 2" in done.stdout


def test_checkpoints_are_ordered_and_told_apart():
    ds = combine([result(2), result(0), result(1)])
    assert ds["checkpoint"].values.tolist() == ["a" * 13, "b" * 12 + "0", "b" * 12 + "1"]
    assert ds["step"].values.tolist() == [0, 10, 20]
    assert ds["checkpoint_name"].values.tolist() == ["c0", "c1", "c2"]
    assert ds["run"].values.tolist() == ["r"] * 3
    assert combine([result(0)])["checkpoint"].values.tolist() == ["a" * 12]
    nameless = Labelled(result(1).ds, {"sha256": SHAS[1]}, result(1).request, result(1).created_at)
    ds = combine([result(0), nameless])
    assert ds["run"].values.tolist() == ["", "r"]
    np.testing.assert_array_equal(ds["step"], [np.nan, 0])


def test_without_gaps_types_are_kept():
    ds = combine([result(0), result(1)])
    assert ds["matvecs"].dtype == np.int64
    assert ds["flag"].dtype == bool
    assert ds["abscissa"].dtype == np.float32
    assert ds["mu"].attrs == {"units": "1/time"}
    assert ds["state"].dims == ("depth",), "the same everywhere"
    assert ds["computed"].dims == ("checkpoint",)


def test_results_that_differ_only_in_depth_are_joined_and_the_newer_wins():
    g = np.random.default_rng(1)
    old = result(0, depths=(10, 20), modes=3, generator=g)
    new = result(0, depths=(20, 40), modes=2, generator=g)
    same = {name: old.ds[name] for name in ("flag", "distance", "total")}  # what has no depth does not depend on it
    new = later(Labelled(new.ds.assign(same), new.checkpoint, new.request, new.created_at), 5)
    ds = combine([new, old])
    assert dict(ds["mu"].sizes) == {"checkpoint": 1, "depth": 3, "mode": 3}
    assert_holds(ds, new)
    kept = ds.isel(checkpoint=0).sel(depth=10)
    np.testing.assert_array_equal(kept["mu"], old.ds["mu"].sel(depth=10))
    assert np.isnan(ds["mu"].sel(depth=[20, 40], mode=2)).all(), "the newer result has no third mode there"
    assert ds["computed"].values.tolist() == [[True, True, True]]
    np.testing.assert_array_equal(ds["computed_mode"].isel(checkpoint=0).sum("mode"), [3, 2, 2])
    assert ds["total"].dims == ("checkpoint",)
    assert ds["matvecs"].dtype == np.int64, "no gap, no floating point"


def of_depth(depth, x, created=0, **variables):
    """A result with ``x`` at one depth, and variables that lack the depth."""
    ds = xr.Dataset({"x": (("depth", "sample"), [x]), **variables}, {"depth": [depth], "sample": np.arange(len(x))})
    ds.attrs = {"probe": "thing", "probe_version": 1}
    request = {"params": {"depth": [depth]}, "eps": 0.1, "dtype": "float64", "device": "cpu", "batch": 3}
    return later(Labelled(ds, {"sha256": SHAS[0], "name": "c"}, request, ""), created)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"total": ("sample", [10.0, 20.0])}, {"total": ("sample", [10.0, 40.0])}),
        ({"total": ("sample", [0.0, np.nan])}, {"total": ("sample", [-0.0, np.nan])}),
        ({"total": ("sample", ["a", "b"])}, {"total": ("sample", ["a", "c"])}),
        ({"total": ("sample", [1.0, 2.0])}, {}),
        ({}, {"total": ("sample", [1.0, 2.0])}),
        ({"seconds": ((), 1.0, {"role": "cost"})}, {"seconds": ((), 2.0, {"role": "cost"})}),
        ({"total": ("k", [1.0, 2.0])}, {"total": ("k", [1.0])}),
    ],
)
def test_what_lacks_the_joined_dimension_and_differs_keeps_every_value(first, second, lazy):
    held = [of_depth(100, [1.0, 2.0], **first), of_depth(200, [3.0, 4.0], 1, **second)]
    if lazy:
        pytest.importorskip("dask")
        held = [Labelled(h.ds.chunk(), h.checkpoint, h.request, h.created_at) for h in held]
    ds = combine(held).load()
    assert ds["depth_requested"].values.tolist() == ["[100]", "[200]"]
    for h, label in zip(held, ["[100]", "[200]"], strict=True):
        assert_holds(ds, h, depth_requested=label)
        part = ds.sel(depth_requested=label)
        assert part["computed_depth"].sum() == 1


def test_what_lacks_the_joined_dimension_and_is_the_same_is_joined():
    total = {"total": ("sample", [10.0, np.nan]), "label": ("sample", ["a", "b"])}
    old, middle, new = (of_depth(d, [1.0 * d, 2.0], i, **total) for i, d in enumerate((100, 200, 400)))
    again = of_depth(100, [7.0, 8.0], 9, **total)
    # one that a newer result of the same request replaces does not count
    replaced = of_depth(100, [5.0, 6.0], 1, total=("sample", [0.0, 0.0]), label=total["label"])
    ds = combine([old, middle, new, replaced, again])
    assert ds["x"].dims == ("checkpoint", "depth", "sample")
    np.testing.assert_array_equal(ds["x"][0], [[7.0, 8.0], [200.0, 2.0], [400.0, 2.0]])
    np.testing.assert_array_equal(ds["total"][0], [10.0, np.nan])


def test_a_coordinate_without_the_joined_dimension_that_differs_is_kept():
    held = [of_depth(100, [1.0, 2.0]), of_depth(200, [3.0, 4.0], 1)]
    held = [
        Labelled(h.ds.assign_coords(token=("sample", [i, 5])), h.checkpoint, h.request, h.created_at)
        for i, h in enumerate(held)
    ]
    ds = combine(held)
    for h, label in zip(held, ["[100]", "[200]"], strict=True):
        assert_holds(ds, h, depth_requested=label)


def test_spectra_of_differing_depths_are_joined():
    held = []
    for i, depth in enumerate([(2, 4), (8,)]):
        ds = run_probe("spectrum", analytic.HopfNormalForm(eps=0.05), depth=depth, at="relaxed", count=1)
        request = {"params": json.loads(ds.attrs["params"]), "eps": 0.05}
        held.append(Labelled(ds, {"sha256": SHAS[0], "name": "hopf"}, request, f"2026-01-0{i + 1}"))
    ds = combine(held)
    assert ds["depth"].values.tolist() == [2, 4, 8]
    assert "depth_requested" not in ds.dims
    assert ds["seconds"].dims == ("checkpoint", "depth")
    for h in held:
        assert_holds(ds, h)


def test_depths_of_checkpoints_may_differ():
    ds = combine([result(0, depths=(10,)), result(1, depths=(20, 30))])
    assert ds["computed"].dims == ("checkpoint", "depth")
    assert ds["computed"].values.tolist() == [[True, False, False], [False, True, True]]
    assert np.isnan(ds["matvecs"].values[~ds["computed"].values]).all()
    assert ds["state"].values.tolist() == ["relaxed"] * 3


def test_a_parameter_that_does_not_list_its_dimension_becomes_a_new_one():
    """At the root the depth coordinate is -1, whatever depth the starts came from: both results are kept."""
    held = []
    for depth in (10, 20):
        h = result(0, depths=(-1,), generator=np.random.default_rng(depth))
        held.append(later(h, 0, params={**h.request["params"], "depth": (depth,)}))
    ds = combine(held)
    assert ds["depth_requested"].values.tolist() == ["[10]", "[20]"]
    assert_holds(ds, held[1], depth_requested="[20]")
    assert_holds(ds, held[0], depth_requested="[10]")


def test_equal_requests_keep_the_newest():
    g = np.random.default_rng(2)
    old, new = result(0, generator=g), later(result(0, generator=g), 3)
    for order in ([old, new], [new, old]):
        ds = combine(order)
        assert dict(ds["computed"].sizes) == {"checkpoint": 1}
        assert_holds(ds, new)
    utc = Labelled(new.ds, new.checkpoint, new.request, "2026-01-01T00:00:03")
    ahead = Labelled(old.ds, old.checkpoint, old.request, "2026-01-01T01:00:00+02:00")  # 23:00 the day before
    assert_holds(combine([ahead, utc]), new)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([2, 0.5], [0.5, 2.0]),
        ([True, False], [False, True]),
        (["b", "a"], ["a", "b"]),
        ([[1, 2], [1]], ["[1, 2]", "[1]"]),
        ([None, 3], ["3", "null"]),
        (["1", 1], ['"1"', "1"]),
        ([2**62 + 1, 2**62], [2**62, 2**62 + 1]),
        ([2**62 + 1, 0.5], ["0.5", str(2**62 + 1)]),
        ([{"n": 4}, "x"], ["x", '{"n": 4}']),
    ],
)
def test_values_of_a_new_dimension(values, labels):
    held = [result(0, how=v, generator=np.random.default_rng(i)) for i, v in enumerate(values)]
    ds = combine(held)
    assert ds["how"].values.tolist() == labels
    for h, value in zip(held, values, strict=True):
        label = next(x for x in labels if x == value or (isinstance(x, str) and x in (json.dumps(value), value)))
        assert_holds(ds, h, how=label)


def test_one_and_one_point_zero_are_one_value():
    assert "how" not in combine([result(0, how=1), result(1, how=1.0)]).dims


def test_names_that_are_taken_are_told_apart():
    held = [result(0, flag=f, generator=np.random.default_rng(f)) for f in (True, False)]
    held = [later(h, 0, eps=eps) for h in held for eps in (0.1, 0.2)]
    ds = combine(held)
    assert ds["flag"].dims == ("checkpoint", "flag_requested", "eps", "sample")
    assert_holds(ds, held[0], flag_requested=True, eps=0.1)
    stepped = [Labelled(h.ds.rename(sample="step"), *list(vars(h).values())[1:]) for h in (result(0), result(1))]
    assert combine(stepped)["checkpoint_step"].values.tolist() == [0, 10]


@pytest.mark.parametrize("name", ["computed", "computed_sample", "computed_extra"])
def test_a_parameter_does_not_replace_a_mask(name):
    held = [of_depth(1, [1.0, 2.0], extra=("sample", [1.0, 2.0])), of_depth(1, [3.0])]
    held = [
        later(h, 0, params={"depth": [1], name: value, "computed_other": 1})
        for h, value in zip(held, (5, 6), strict=True)
    ]
    ds = combine(held)
    assert ds[f"{name}_requested"].values.tolist() == [5, 6]
    assert all(ds[mask].dtype == bool for mask in ("computed", "computed_sample", "computed_extra"))
    assert ds["computed_sample"].values.tolist() == [[[True, True], [True, False]]]
    for h, value in zip(held, (5, 6), strict=True):
        assert_holds(ds, h, **{f"{name}_requested": value})


def test_parameters_named_as_the_labels_of_checkpoints_lose_neither():
    held = [
        later(result(0), 0, params={"depth": (10,), "step": i, "checkpoint_step": 5 + i}, eps=0.1) for i in range(2)
    ]
    ds = combine(held)
    assert ds["checkpoint_step"].values.tolist() == [5, 6]
    assert ds["checkpoint_checkpoint_step"].values.tolist() == [0]


def test_a_variable_that_some_results_lack_is_marked():
    """NaN that was computed, and NaN because the result has no such variable."""
    with_nan = result(0, seed=1)
    with_nan = Labelled(with_nan.ds.assign(extra=np.nan, word="w"), *list(vars(with_nan).values())[1:])
    ds = combine([with_nan, result(0, seed=2)])
    assert ds["computed"].values.tolist() == [[True, True]]
    assert np.isnan(ds["extra"]).all()
    assert ds["computed_extra"].dims == ("checkpoint", "seed")
    assert ds["computed_extra"].values.tolist() == ds["computed_word"].values.tolist() == [[True, False]]
    assert "computed_total" not in ds, "all have it"
    joined = combine([of_depth(1, [1.0], extra=("depth", [np.nan])), of_depth(2, [1.0])])
    assert joined["computed_extra"].dims == ("checkpoint", "depth")
    assert joined["computed_extra"].values.tolist() == [[True, False]]


def test_zeros_of_either_sign_are_two_values():
    held = [result(0, how=v, generator=np.random.default_rng(i)) for i, v in enumerate((0.0, -0.0))]
    ds = combine(held)
    assert ds["how"].values.tolist() == ["-0.0", "0"]
    assert "how" not in json.loads(ds.attrs["params"])
    assert_holds(ds, held[0], how="0")
    assert_holds(ds, held[1], how="-0.0")


def test_attributes_and_parameters_that_are_shared():
    ds = combine([result(0, seed=1, how="x"), result(0, seed=2, how="x")])
    assert json.loads(ds.attrs["params"]) == {"depth": [10], "how": "x"}
    assert ds.attrs["probe"] == "thing"
    assert ds.attrs["combined_results"] == 2


def test_whole_numbers_that_a_gap_would_round_are_refused():
    held = [result(0, seed=1), result(1, seed=2)]
    big = held[0].ds.assign(matvecs=("depth", [2**53 + 1]))
    with pytest.raises(DyneqError, match=r"2\^53 .*'matvecs': some are missing, which NaN marks"):
        combine([Labelled(big, held[0].checkpoint, held[0].request, held[0].created_at), held[1]])


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("big", "other"),
    [
        (np.int64(2**53 + 1), 0.5j),
        (np.int64(2**53 + 1), 0.5),
        (np.int64(2**53 + 1), np.complex64(1)),
        (np.uint64(2**53 + 1), np.int64(1)),
        (np.int64(-(2**53) - 1), np.uint64(1)),
    ],
)
def test_whole_numbers_that_another_type_would_round_are_refused(big, other, lazy):
    held = [result(0, seed=1), result(0, seed=2)]
    held = [
        Labelled(h.ds.assign(total=("depth", np.array([v]))), h.checkpoint, h.request, h.created_at)
        for h, v in zip(held, (big, other), strict=True)
    ]
    if lazy:
        pytest.importorskip("dask")
        held = [Labelled(h.ds.chunk(), h.checkpoint, h.request, h.created_at) for h in held]
    with pytest.raises(DyneqError, match=r"'total': the results have it as \w+ and as \w+; ") as error:
        combine(held).load()
    assert "missing" not in str(error.value)


def test_whole_numbers_that_are_held_exactly_are_not_refused():
    held = [result(0, seed=1), result(0, seed=2)]
    values = (np.int64(-(2**53)), 0.5j)
    held = [
        Labelled(h.ds.assign(total=("depth", np.array([v]))), h.checkpoint, h.request, h.created_at)
        for h, v in zip(held, values, strict=True)
    ]
    assert combine(held)["total"].values.tolist() == [[[complex(-(2**53))], [0.5j]]]


@pytest.mark.parametrize(
    ("whole", "floats"), [([2**53, 2**53 + 1], [0.5]), ([2**53 + 1], [0.5]), ([2**53 + 1], [2.0**53])]
)
def test_coordinates_that_another_type_would_round_are_refused(whole, floats):
    held = [of_depth(1, [1.0] * len(v)) for v in (whole, floats)]
    held = [
        Labelled(h.ds.assign_coords(sample=v), h.checkpoint, {**h.request, "eps": i}, h.created_at)
        for i, (h, v) in enumerate(zip(held, (whole, floats), strict=True))
    ]
    for order in (held, held[::-1]):
        with pytest.raises(UsageError, match=r"'sample' are of types .*\(float64, int64\)"):
            combine(order)


def altered(change, **request):
    h = result(1, **request)
    return Labelled(change(h.ds), h.checkpoint, h.request, h.created_at)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (altered(lambda ds: ds.assign_attrs(probe_version=2)), r"thing version 1 \(1 result\), thing version 2"),
        (altered(lambda ds: ds.assign_attrs(probe="other")), "other version 1"),
        (altered(lambda ds: ds.assign(total=ds["flag"])), "'total' has the dimensions"),
        (altered(lambda ds: ds.assign(mu=ds["mu"].assign_attrs(units="1"))), "units '1/time' in some results and '1'"),
        (altered(lambda ds: ds.assign(total=((), np.array("x", dtype=object)))), "values of types"),
        (altered(lambda ds: ds.drop_vars("mode")), "'mode' has coordinates in only some"),
        (altered(lambda ds: ds.assign(computed=1)), "'computed' already"),
    ],
)
def test_results_that_do_not_fit_together(other, words):
    with pytest.raises(UsageError, match=words) as error:
        combine([result(0), other])
    assert "\n" not in str(error.value)


def test_incomplete_labels_are_refused():
    h = result(0)
    with pytest.raises(UsageError, match="at least one"):
        combine([])
    with pytest.raises(DyneqError, match="sha256"):
        combine([Labelled(h.ds, {"name": "mine:factory", "sha256": None}, h.request, h.created_at)])
    with pytest.raises(DyneqError, match="ISO 8601"):
        combine([Labelled(h.ds, h.checkpoint, h.request, "yesterday")])
    with pytest.raises(DyneqError, match="params"):
        combine([Labelled(h.ds, h.checkpoint, {}, h.created_at)])


def test_real_spectra_of_two_steps_and_two_counts():
    held = []
    for i, (eps, count) in enumerate([(0.05, 1), (0.1, 2), (0.1, 1)]):
        ds = run_probe("spectrum", analytic.HopfNormalForm(eps=eps), at="root", count=count, numerical_abscissa=False)
        request = {
            "params": json.loads(ds.attrs["params"]),
            "eps": eps,
            "dtype": "float64",
            "device": "cpu",
            "batch": 4,
        }
        held.append(
            Labelled(ds, {"sha256": SHAS[0], "name": "hopf", "run": None, "step": None}, request, f"2026-01-0{i + 1}")
        )
    ds = combine(held)
    assert ds["computed"].sel(eps=0.05, count=2).item() is False
    for h, eps, count in ((held[0], 0.05, 1), (held[1], 0.1, 2), (held[2], 0.1, 1)):
        assert_holds(ds, h, eps=eps, count=count)
    assert ds["abscissa"].attrs["ancillary_variables"] == "abscissa_error"
