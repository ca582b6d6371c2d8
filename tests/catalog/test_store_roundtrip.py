"""What is stored comes back bit by bit, or is refused before anything is stored."""

import itertools
import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dyneq.catalog import results
from dyneq.catalog.request import Request
from dyneq.catalog.store import Store
from dyneq.errors import DyneqError

SERIAL = itertools.count()
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

#: Names that the CF conventions, xarray, zarr or this package give a meaning to.
MEANT = ["_FillValue", "missing_value", "scale_factor", "add_offset", "calendar", "coordinates", "dtype", "bounds"]
MEANT += ["_Unsigned", "_Encoding", "grid_mapping", "_ARRAY_DIMENSIONS", "dyneq_dtype", "dyneq_attributes", "units"]
UNITS = ["s", "seconds", "days", "hours", "days since 2000-01-01", "seconds since 1970-01-01", "1", ""]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats()
    | TEXT
    | st.sampled_from([*UNITS, "timedelta64[ns]", "bool", "float32", "x", "utf-8", "true", "mode"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=2).map(tuple) | st.dictionaries(TEXT, inner, max_size=2)
    ),
    max_leaves=5,
)
ATTRIBUTES = st.dictionaries(st.sampled_from([*MEANT, "long_name", "", "a/b", "é", "$float"]), PLAIN, max_size=3)
NUMBERS = ["bool", "float16", "float32", "float64", "complex64", "complex128"]
NUMBERS += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
TIMES = ["datetime64[ns]", "datetime64[s]", "datetime64[us]", "timedelta64[ns]", "timedelta64[ms]"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
#: Odd names of variables that a store keeps.
NAMES = st.sampled_from(["x", "c", "é∂", "a b", "zarr", ".zgroup", "...", "units", "x.json", "'", "data.zarr", "_x"])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store") / "store")


def put(store, ds):
    request = Request("ab" * 32, "spectrum", 1, {"serial": next(SERIAL)}, 4, 0.1, "float64", "cpu")
    return request, results.put(store, request, ds, name="x")


def stored(store, ds):
    request, _ = put(store, ds)
    back = results.find(store, request).open()
    return back


def same_value(a, b):
    """Whether two attribute values are the same, types, NaN and signs of zeros included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same_value(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_value, a, b))
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return a == b


def same_attributes(a, b):
    return set(a) == set(b) and all(same_value(a[name], b[name]) for name in a)


def require_same(back, ds):
    assert set(back.variables) == set(ds.variables)
    assert set(back.coords) == set(ds.coords)
    assert same_attributes(back.attrs, ds.attrs), (back.attrs, ds.attrs)
    for name, variable in ds.variables.items():
        found = back.variables[name]
        assert found.dims == variable.dims
        assert found.shape == variable.shape
        assert same_attributes(found.attrs, variable.attrs), (name, found.attrs, variable.attrs)
        text = variable.dtype.kind in "OUT"
        assert found.dtype == (variable.dtype if text else variable.dtype.newbyteorder("=")), name
        if text:
            assert found.values.tolist() == variable.values.tolist()
        else:
            native = np.ascontiguousarray(variable.values).astype(found.dtype)
            assert np.ascontiguousarray(found.values).tobytes() == native.tobytes(), name


@st.composite
def datasets(draw):
    variables = {}
    sizes = {}
    for number, name in enumerate(draw(st.lists(NAMES, unique=True, max_size=3))):
        dtype = draw(st.sampled_from([*NUMBERS, *TIMES, "text"]))
        shape = draw(SHAPES)
        elements = TEXT if dtype == "text" else None
        values = draw(hnp.arrays(object if dtype == "text" else dtype, shape, elements=elements, fill=st.nothing()))
        if draw(st.booleans()):
            values = np.array(values, order="F")
        if dtype != "text" and draw(st.booleans()):
            values = values.astype(values.dtype.newbyteorder(">"))
        dims = tuple(f"d{number}_{axis}" for axis in range(values.ndim))
        sizes |= dict(zip(dims, shape, strict=True))
        variables[name] = xr.Variable(dims, values, draw(ATTRIBUTES))
    ds = xr.Dataset(variables, attrs=draw(ATTRIBUTES))
    for dim in draw(st.lists(st.sampled_from(sorted(sizes)), unique=True, max_size=2)) if sizes else []:
        kind = draw(st.sampled_from(["index", "other", "text"]))
        values = np.arange(sizes[dim]) if kind != "text" else np.array([f"é{i}" for i in range(sizes[dim])], dtype="U5")
        ds = ds.assign_coords({dim if kind == "index" else f"{dim}_{kind}": (dim, values, draw(ATTRIBUTES))})
    return ds.assign_coords(scalar=3.5) if draw(st.booleans()) else ds


@QUICK
@given(ds=datasets())
def test_round_trip_of_any_dataset(store, ds):
    require_same(stored(store, ds), ds)


@QUICK
@given(name=st.sampled_from(MEANT), value=PLAIN, numbers=st.sampled_from(["float64", "int8", "complex128", "bool"]))
@example(name="units", value="days since 2000-01-01", numbers="float64")
@example(name="units", value="seconds", numbers="int8")
@example(name="_FillValue", value=1.0, numbers="float64")
@example(name="dtype", value="bool", numbers="int8")
@example(name="scale_factor", value=2.0, numbers="int8")
@example(name="coordinates", value="other", numbers="float64")
def test_attributes_never_act_on_values(store, name, value, numbers):
    values = np.array([0, 1, 1]).astype(numbers)
    attrs = {"units": "seconds", name: value}
    ds = xr.Dataset({"x": ("mode", values, attrs), "other": ("mode", values)}, attrs={name: value})
    require_same(stored(store, ds), ds)


@QUICK
@given(value=st.one_of(PLAIN, hnp.arrays(st.sampled_from(NUMBERS), hnp.array_shapes(min_dims=0, max_dims=2))))
@example(value=np.array(0xFE01, dtype="u2").view("f2"))
@example(value=np.array([0x7FF8000000000123, 0xFFF8000000000000], dtype="u8").view("f8"))
@example(value=np.array([0x7FC00001, 0], dtype="u4").view("c8"))
def test_attribute_values(store, value):
    ds = xr.Dataset(attrs={"held": value})
    require_same(stored(store, ds), ds)


BITS = {
    "zeros": np.array([0.0, -0.0]),
    "negative zeros only": np.array([-0.0, -0.0]),
    "infinities": np.array([np.inf, -np.inf]),
    "NaN with signs and payloads": np.array(
        [0x7FF8000000000000, 0xFFF8000000000000, 0x7FF8000000000123, 0x7FF0000000000001], dtype="u8"
    ).view("f8"),
    "single NaN": np.array([0x7FC00001, 0xFFC00000, 0x7F800001], dtype="u4").view("f4"),
    "complex with NaN in one part": np.array([complex(0, np.nan), complex(np.nan, -0.0), complex(np.inf, np.nan)]),
    "not a time": np.array(["NaT", "2000-01-01"], dtype="datetime64[ns]"),
    "no duration": np.array(["NaT", 5], dtype="timedelta64[s]"),
    "extremes": np.array([-(2**63), 2**63 - 1]),
    "unsigned": np.array([2**64 - 1], dtype="u8"),
    "subnormal": np.array([5e-324, -5e-324, np.finfo(float).max]),
    "big-endian": np.array([1.5, np.nan, -0.0], dtype=">f8"),
    "text": np.array(["", "a\0b", "end\0", "\0", "é∂𝄞", " \n"], dtype=object),
    "fixed text": np.array(["", "long text", "é"]),
    "numpy text": np.array(["", "a\0", "é"], dtype=np.dtypes.StringDType()),
    "no text": np.array([], dtype=object),
}


@pytest.mark.parametrize("values", BITS.values(), ids=BITS.keys())
def test_bit_patterns(store, values):
    require_same(stored(store, xr.Dataset({"x": ("t", values)})), xr.Dataset({"x": ("t", values)}))
    if len(values):
        scalar = xr.Dataset({"x": ((), values[-1:].reshape(()))})
        require_same(stored(store, scalar), scalar)


def test_a_numpy_reader_sees_the_same_numbers(store):
    """Plain zarr, which knows nothing of this package, reads the same bits."""
    import zarr

    mu = np.array([[1 + 2j, complex(-0.0, np.nan)], [np.inf, 0]])
    _, result = put(store, xr.Dataset({"mu": (("sample", "mode"), mu, {"units": "1", "long_name": "eigenvalue"})}))
    group = zarr.open_group(result.folder / "data.zarr", mode="r")
    assert group["mu"][...].tobytes() == mu.tobytes()
    assert group["mu"].metadata.dimension_names == ("sample", "mode")
    assert dict(group["mu"].attrs) == {"units": "1", "long_name": "eigenvalue"}


def test_chunked_input_and_lazy_output(store):
    pytest.importorskip("dask")
    ds = xr.Dataset({"x": (("t", "u"), np.asfortranarray(np.arange(35.0).reshape(5, 7)))}, coords={"t": np.arange(5)})
    request, result = put(store, ds.chunk({"t": (2, 1, 2), "u": 3}))
    require_same(results.find(store, request).open(), ds)
    lazy = result.open(chunks={})
    assert lazy["x"].chunks is not None
    require_same(lazy.compute(), ds)
    require_same(result.open().isel(t=slice(1, 3), u=[0, 6]).load(), ds.isel(t=slice(1, 3), u=[0, 6]))


def test_encoding_of_an_earlier_file_is_forgotten(store):
    ds = xr.Dataset({"x": ("t", np.array([1.25, np.nan]))})
    ds["x"].encoding = {"dtype": "int8", "_FillValue": -1, "scale_factor": 0.5}
    require_same(stored(store, ds), ds)
    assert ds["x"].encoding  # and the caller's dataset is left as it was


def test_reading_again_gives_what_reading_gave(store):
    first = xr.Dataset({"x": ("t", [1.0], {"units": "days", "coordinates": "x"})}, coords={"y": ("t", ["a"])})
    again = stored(store, first).load()
    require_same(stored(store, again), first)


REFUSED = {
    "objects": xr.Dataset({"x": ("t", np.array([{}, 1], dtype=object))}),
    "None among text": xr.Dataset({"x": ("t", np.array(["a", None], dtype=object))}),
    "half a surrogate pair": xr.Dataset({"x": ("t", np.array(["\ud800"], dtype=object))}),
    "bytes": xr.Dataset({"x": ("t", np.array([b"ab"]))}),
    "records": xr.Dataset({"x": ("t", np.zeros(1, dtype="i4,f4"))}),
    "long double": xr.Dataset({"x": ("t", np.zeros(1, dtype=np.longdouble))}),
    "bytes in attributes": xr.Dataset(attrs={"a": b"x"}),
    "an object in attributes": xr.Dataset({"x": ("t", [1.0], {"a": object()})}),
    "a set in attributes": xr.Dataset(attrs={"a": {1}}),
    "a number as attribute name": xr.Dataset(attrs={1: 2}),
    "a number as variable name": xr.Dataset({5: ("t", [1.0])}),
    "a path out": xr.Dataset({"../x": ("t", [1.0])}),
    "an absolute path": xr.Dataset({"/x": ("t", [1.0])}),
    "a folder": xr.Dataset({"a/b": ("t", [1.0])}),
    "a Windows folder": xr.Dataset({"a\\b": ("t", [1.0])}),
    "dots": xr.Dataset({"..": ("t", [1.0])}),
    "a dot": xr.Dataset({".": ("t", [1.0])}),
    "no name": xr.Dataset({"": ("t", [1.0])}),
    "the group's own file": xr.Dataset({"zarr.json": ("t", [1.0])}),
    "a reserved name": xr.Dataset({"__x": ("t", [1.0])}),
    "NUL": xr.Dataset({"a\0": ("t", [1.0])}),
    "a surrogate in a name": xr.Dataset({"\ud800": ("t", [1.0])}),
    "a long name": xr.Dataset({"é" * 150: ("t", [1.0])}),
    "a dimension's name": xr.Dataset({"x": ("", [1.0])}),
    "a space in a coordinate": xr.Dataset({"x": ("t", [1.0])}, coords={"a b": ("t", [1])}),
    "several indexes in one": xr.Dataset(
        {"x": ("t", [1.0, 2.0])}, coords={"a": ("t", [1, 2]), "b": ("t", [3, 4])}
    ).set_index(t=["a", "b"]),
    "a duration that is none": xr.Dataset(attrs={"duration_s": "long"}),
    "a duration that is NaN": xr.Dataset(attrs={"duration_s": math.nan}),
}


@pytest.mark.parametrize("ds", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_kept_exactly_is_refused(tmp_path, ds):
    store = Store(tmp_path / "store")
    request = Request("ab" * 32, "spectrum", 1, {}, 4, 0.1, "float64", "cpu")
    with pytest.raises(DyneqError) as caught:
        results.put(store, request, ds, name="x")
    assert "\n" not in str(caught.value)
    assert results.find(store, request) is None
    assert not store.exists or not [*store.scratch.iterdir(), *store.results.rglob("*/*")]


BAD = {
    "a name that is no UTF-8": ({"name": "\udcff"}, {}),
    "a step beyond 64 bits": ({"step": 2**70}, {}),
    "the private character": ({"name": "\ue000+inf\ue000"}, {}),
    "a step size that is NaN": ({}, {"eps": math.nan}),
    "a step that is no number": ({"step": "last"}, {}),
    "a parameter that is no plain value": ({}, {"params": {"a": object()}}),
    "a version beyond 64 bits": ({}, {"version": 2**64}),
    "a probe that leads out": ({}, {"probe": "../../x"}),
    "a probe without name": ({}, {"probe": ""}),
    "a probe with a NUL": ({}, {"probe": "a\0"}),
}


@pytest.mark.parametrize(("arguments", "changes"), BAD.values(), ids=BAD.keys())
def test_descriptions_that_cannot_be_kept_are_refused(tmp_path, arguments, changes):
    store = Store(tmp_path / "store")
    held = {"checkpoint": "ab" * 32, "probe": "spectrum", "version": 1, "params": {}, "batch": 4}
    request = Request(**{**held, "eps": 0.1, "dtype": "float64", "device": "cpu", **changes})
    with pytest.raises(DyneqError):
        results.put(store, request, xr.Dataset({"x": ("t", [1.0])}), **{"name": "x", **arguments})
    assert not store.exists or not [*store.scratch.iterdir(), *store.results.rglob("*/*")]
    assert {path.name for path in tmp_path.iterdir()} <= {"store"}


def test_the_key_is_of_the_values_not_of_their_types():
    def key(**changes):
        held = {"checkpoint": "ab" * 32, "probe": "p", "version": 1, "params": {}, "batch": 4, "eps": 1.0}
        return Request(**{**held, "dtype": "float64", "device": "cpu", **changes}).key

    assert key(eps=1) == key(eps=1.0)
    assert key(params={"a": 1, "b": [2]}) == key(params={"b": (2,), "a": 1})
    different = [key(), key(eps=None), key(eps=0.1), key(params={"a": math.inf}), key(params={"a": -math.inf})]
    different += [key(params={"a": 0.1 + 0.2}), key(params={"a": 0.3}), key(params={"a": True}), key(params={"a": "1"})]
    assert len(set(different)) == len(different)
