"""Round trips of datasets through JSON and netCDF are exact, and damaged documents are refused in one sentence."""

import copy
import json

import h5py
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dyneq.catalog.export import from_plain, to_plain, write_export
from dyneq.catalog.output import read_dataset
from dyneq.errors import DyneqError, UsageError
from dyneq.probes.registry import run_probe
from dyneq.systems import analytic

SIZES = st.fixed_dictionaries({"sample": st.integers(0, 3), "token": st.integers(0, 2), "mode": st.integers(1, 2)})
NUMBERS = "float64 float32 float16 complex128 complex64 int64 int8 uint64 uint16 bool"
DTYPES = [*NUMBERS.split(), "datetime64[ns]", "datetime64[s]", "timedelta64[ns]", "timedelta64[ms]", "object", "U"]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
TEXT_ARRAYS = {"object": object, "U": "U6"}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.complex_numbers(allow_nan=True)
    | TEXT
    | st.sampled_from(["", "json:", 'json:"x"', "NaN", "é∂", "true"])
    | hnp.arrays(st.sampled_from(["float64", "int32", "complex128", "bool", "float32"]), hnp.array_shapes(min_dims=0))
    | st.sampled_from([np.float32(0.1), np.int16(3), np.float64("nan"), np.bool_(True), np.str_("x")]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(st.sampled_from(["a", "$float", "$x", ""]), inner, max_size=2)
    ),
    max_leaves=5,
)
NAMES = st.sampled_from(
    ["long_name", "units", "role", "ancillary_variables", "_FillValue", "coordinates", "dtype", "a/b", "é", "CLASS"]
)
ATTRIBUTES = st.dictionaries(NAMES, VALUES, max_size=3)


@st.composite
def datasets(draw):
    sizes = draw(SIZES)
    variables = {}
    names = ["x", "x_real", "x_imag", "status", "mu", "mode"]
    for name in draw(st.lists(st.sampled_from(names), unique=True, max_size=4)):
        index = name == "mode"
        dims = ["mode"] if index else draw(st.lists(st.sampled_from(sorted(sizes)), unique=True))
        shape = tuple(sizes[d] for d in dims)
        dtype = draw(st.sampled_from(["int64", "float64", "object", "U"] if index else DTYPES))
        if dtype in TEXT_ARRAYS:
            flat = draw(st.lists(TEXT, min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
            values = np.array(flat, dtype=TEXT_ARRAYS[dtype]).reshape(shape)
        else:
            low = {"datetime64[ns]": -(2**61), "datetime64[s]": -(10**10)}.get(dtype)
            elements = st.integers(low, -low).map(lambda v, d=dtype: np.int64(v).view(d)) if low else None
            values = draw(hnp.arrays(dtype, shape, elements=elements))
        variables[name] = (dims, values, draw(ATTRIBUTES))
    coords = {n: variables.pop(n) for n in ("mode", "status") if n in variables}
    return xr.Dataset(variables, coords, draw(ATTRIBUTES))


def same(a, b):
    """Whether two values are the same: type, bits of numbers (any NaN is any other), order of entries."""
    if isinstance(a, np.ndarray | np.generic):
        if type(a) is not type(b) or a.dtype != b.dtype or a.shape != b.shape:
            return False
        if a.dtype.kind in "fc":
            real, imag = (np.array([x.real, x.imag]) for x in (a, b))
            return np.array_equal(real, imag, equal_nan=True) and np.array_equal(np.signbit(real), np.signbit(imag)) | (
                np.isnan(real).any()
            )
        return np.array_equal(a, b, equal_nan=a.dtype.kind in "mM")
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return same(np.float64(a), np.float64(b))
    if isinstance(a, complex):
        return same(np.complex128(a), np.complex128(b))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return a == b


def by_name(attributes):
    return dict(sorted(attributes.items()))


def assert_same(a, b):
    assert dict(a.sizes) == dict(b.sizes)
    assert set(a.coords) == set(b.coords)
    assert set(a.data_vars) == set(b.data_vars)
    assert same(by_name(a.attrs), by_name(b.attrs)), (a.attrs, b.attrs)
    for name in a.variables:
        assert a[name].dims == b[name].dims
        assert same(a[name].values, b[name].values), (name, a[name].values, b[name].values)
        assert same(by_name(a[name].attrs), by_name(b[name].attrs)), (a[name].attrs, b[name].attrs)


@settings(max_examples=60, deadline=None)
@given(datasets())
def test_json_gives_back_every_bit(ds):
    text = json.dumps(to_plain(ds), allow_nan=False)
    assert_same(from_plain(json.loads(text)), ds)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(datasets())
def test_netcdf_gives_back_every_bit(tmp_path_factory, ds):
    path = tmp_path_factory.mktemp("nc") / "a.nc"
    write_export(ds, path)
    assert_same(read_dataset(path), ds)


def everything():
    return xr.Dataset(
        {
            "x": (("sample", "mode"), np.array([[1 + 2j, complex("nan"), complex(-0.0, np.inf)]])),
            "x_real": ("sample", [7.0], {"long_name": "really named so"}),
            "x_imag": ("sample", [8.0]),
            "flag": ("sample", [True]),
            "single": ("sample", np.array([0.1], dtype=np.float32)),
            "status": ("sample", np.array(["größer ∂"], dtype=object)),
            "none": (("other", "sample"), np.empty((0, 1), dtype=object)),
        },
        {"mode": [0, 1, 2]},
        {"params": '{"a": 1}', "nothing": None, "yes": True, "nested": {"a": [1, None]}},
    )


def test_document_is_what_the_format_says():
    plain = to_plain(everything())
    assert plain["format"] == "dyneq-dataset/1"
    assert plain["dims"] == {"sample": 1, "mode": 3, "other": 0}
    assert plain["variables"]["x"] == {
        "dims": ["sample", "mode"],
        "dtype": "complex128",
        "attrs": {},
        "data": [[[1.0, 2.0], ["NaN", 0.0], [-0.0, "Infinity"]]],
    }
    assert plain["variables"]["single"]["data"] == [0.1], "the shortest form, not 0.10000000149011612"
    assert plain["variables"]["none"] == {"dims": ["other", "sample"], "dtype": "object", "attrs": {}, "data": []}
    assert plain["coords"]["mode"]["data"] == [0, 1, 2]
    assert plain["attrs"] == everything().attrs


def test_netcdf_is_readable_by_others(tmp_path):
    write_export(everything(), tmp_path / "a.nc")
    with h5py.File(tmp_path / "a.nc") as file:
        np.testing.assert_array_equal(file["x_real"][()], [7.0])
        assert file["x_real"].attrs["long_name"] == "really named so"
        halves = {k: v.attrs["dyneq_part"] for k, v in file.items() if "dyneq_part" in v.attrs}
        assert halves == {"x_real_": "real x", "x_imag_": "imag x"}
        np.testing.assert_array_equal(file["x_real_"][()], [[1.0, np.nan, -0.0]])
        assert file.attrs["params"] == '{"a": 1}'
        assert file.attrs["nested"] == 'json:{"a": [1, null]}'
        assert file["flag"].dtype == np.int8
    assert_same(read_dataset(tmp_path / "a.nc"), everything())


def test_plain_names_ending_in_real_and_imag_are_left_alone(tmp_path):
    ds = xr.Dataset({"x_real": ("sample", [1.0]), "x_imag": ("sample", [2.0])})
    write_export(ds, tmp_path / "a.nc")
    assert_same(read_dataset(tmp_path / "a.nc"), ds)


@pytest.mark.parametrize("suffix", [".json", ".nc", ".zarr"])
def test_a_result_survives(tmp_path, suffix):
    ds = run_probe("spectrum", analytic.Grcar(), depth=(1, 5), method="dense")
    path = tmp_path / f"a{suffix}"
    write_export(ds, path)
    again = from_plain(json.loads(path.read_text())) if suffix == ".json" else read_dataset(path)
    xr.testing.assert_identical(
        again.drop_vars(["state", "status", "start", "method"]), ds.drop_vars(["state", "status", "start", "method"])
    )
    assert [str(s) for s in again["status"].values.ravel()] == [str(s) for s in ds["status"].values.ravel()]
    with pytest.raises(UsageError, match="nothing is overwritten"):
        write_export(ds, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("ds", "suffix", "words"),
    [
        (xr.Dataset({"x": ("a", np.array([object()], dtype=object))}), ".json", "should hold text or numbers"),
        (xr.Dataset({"x": ("a", np.array([1, None], dtype=object))}), ".nc", "should hold text or numbers"),
        (xr.Dataset({"x": ("a", np.array([1.0], dtype=np.longdouble))}), ".json", "float128|longdouble"),
        (xr.Dataset({"x": ("a", np.array([b"x"]))}), ".nc", "should hold numbers"),
        (xr.Dataset(attrs={"x": object()}), ".json", "attribute 'x' of the dataset"),
        (xr.Dataset(attrs={3: 1}), ".nc", "whose name is 3"),
        (xr.Dataset({"x": ("a", np.array(["a\0b"], dtype=object))}), ".nc", "no NUL"),
        (xr.Dataset({"x": ("a", np.array(["\ud800"], dtype=object))}), ".nc", "surrogate"),
    ],
)
def test_what_a_format_cannot_hold_is_said_and_nothing_is_left(tmp_path, ds, suffix, words):
    with pytest.raises(DyneqError, match=words) as error:
        write_export(ds, tmp_path / f"a{suffix}")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_half_a_surrogate_and_a_nul_survive_in_json(tmp_path):
    ds = xr.Dataset({"x": ("a", np.array(["\ud800", "a\0"], dtype=object))})
    write_export(ds, tmp_path / "a.json")
    assert from_plain(json.loads((tmp_path / "a.json").read_text()))["x"].values.tolist() == ["\ud800", "a\0"]


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.json or \.zarr or \.nc"):
        write_export(everything(), tmp_path / "a.csv")


PATHS = [
    ("format",),
    ("dims", "mode"),
    ("variables", "x", "dims"),
    ("variables", "x", "dtype"),
    ("attrs",),
    ("coords",),
]
PATHS += [("variables", "x", "data"), ("variables", "flag", "data"), ("variables", "status", "data"), ("dims",)]
PATHS += [("variables", "x", "data", 0, 1), ("variables", "single", "data", 0), ("variables", "x", "attrs")]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("junk", [None, 7, [], "nonsense", {"$float": 1}, {"a": {}}])
def test_damaged_documents_are_refused(path, junk):
    plain = copy.deepcopy(to_plain(everything()))
    at = plain
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = junk
    if path == ("variables", "single", "data", 0) and junk == 7:
        return  # a good number
    if path in (("variables", "x", "attrs"), ("attrs",)) and isinstance(junk, dict):
        return  # good attributes: only values are tagged, a name may be anything
    with pytest.raises(DyneqError, match=r"export it again"):
        from_plain(plain)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda i: st.lists(i) | st.dictionaries(st.text(), i)
    )
)
@settings(max_examples=60)
def test_any_other_document_is_refused(document):
    with pytest.raises(DyneqError):
        from_plain(document)
