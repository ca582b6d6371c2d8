"""The command made from a probe's parameters, on probes of a package that is only pretended to be installed."""

import json
import sys
from importlib.metadata import EntryPoint, EntryPoints

import numpy as np
import pytest
import xarray as xr

from dyneq import plugins
from dyneq.cli.generic import entry, show
from dyneq.systems.checkpoint_io import load_checkpoint

SOURCE = '''
import enum
from typing import Annotated, Any, Literal
import numpy as np
import xarray as xr
from pydantic import Field, field_validator
from dyneq.probes.base import Finding, Params, Probe

class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"

class ToyParams(Params):
    depth: tuple[int, ...] = Field((3, 4), min_length=1, description="how deep")
    share: float = Field(0.25, gt=0, lt=1, description="which share")
    many: int = 7
    exact: bool = Field(True, description="whether exactly")
    way: Literal["slow", "fast"] = Field("slow", description="which way")
    digits: Literal[4, 8] = 4
    label: str = Field("none", description="a word")
    limit: float | None = Field(None, description="a limit, or none")
    cap: int | None = Field(5, description="a cap, or none")
    window: tuple[float, float] = Field((0.0, 1.0), description="from and to")
    names: list[Literal["a", "b"]] = Field([], description="some names")
    table: dict[str, float] = Field({}, description="a table")
    colour: Colour = Colour.RED
    eps: float = Field(0.5, description="a parameter whose option is taken")
    step_size: Annotated[int, Field(ge=1)] = 2
    seed: int = Field(11, description="of all randomness")

    @field_validator("many")
    @classmethod
    def _even_or_seven(cls, many):
        if many != 7 and many % 2:
            raise ValueError(f"many should be 7 or even, not {many}")
        return many

class Toy(Probe):
    """Returns what it was given.

    Further text is not for the command line.
    """
    name = "toy"
    version = 3
    Params = ToyParams
    needs_causal = True

    def run(self, system, params, progress=None):
        z = system.initial_state()
        shape = (len(params.depth), len(z))
        values = np.full(shape, np.nan); values[0] = 1.5; values[0, -1] = -2.0
        mu = np.full(len(z), 3 + 4j); mu[0] = complex(np.nan, 0)
        return xr.Dataset(
            {
                "value": (("depth", "sample"), values, {"units": "1/time", "long_name": "a value"}),
                "mu": ("sample", mu),
                "good": ("sample", np.arange(len(z)) > 0),
                "word": ("sample", np.array(["x"] * len(z), dtype=object)),
                "total": 2.5,
                "given": params.model_dump_json(),
                "day": np.datetime64("2026-01-02", "ns"),
                "none": ("other", np.zeros(0)),
            },
            {"depth": list(params.depth), "sample": np.arange(len(z))},
            {"array": np.array([1.0, np.inf])},
        )

    def summary(self, ds):
        return [Finding("fact", "it ran"), Finding("warning", "it is a toy")]

    def plot(self, ds, ax=None):
        from matplotlib.figure import Figure
        figure = Figure(); figure.subplots().plot(ds["value"].values); return figure

class NeedsLoss(Toy):
    name = "needs-loss"
    Params = Params
    needs_causal = False
    needs_loss = True
    def run(self, system, params, progress=None):
        raise AssertionError("ran")

class Buggy(NeedsLoss):
    name = "buggy"
    needs_loss = False
    def run(self, system, params, progress=None):
        raise KeyError("a bug")

class Forgetful(Buggy):
    name = "forgetful"
    def run(self, system, params, progress=None):
        return xr.Dataset({"a": ("x", [1.0])})

class MustParams(Params):
    depth: int = Field(ge=1, description="how deep")

class Must(Buggy):
    name = "must"
    Params = MustParams

class Misnamed(Buggy):
    name = "other"

class Unfinished(Probe):
    name = "unfinished"
    Params = Params
    def run(self, system, params, progress=None): ...
'''
CLASSES = {
    "toy": "Toy", "needs-loss": "NeedsLoss", "buggy": "Buggy", "forgetful": "Forgetful", "must": "Must",
    "misnamed": "Misnamed", "unfinished": "Unfinished", "function": "enum.auto", "gone": "NotThere",
}  # fmt: skip


@pytest.fixture(autouse=True)
def toys(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("toys")
    (folder / "_toy_probes.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "_toy_probes", raising=False)
    entries = [EntryPoint(name, f"_toy_probes:{value}", plugins.PROBES) for name, value in CLASSES.items()]
    entries += [EntryPoint("spectrum", "dyneq.probes.spectrum:SpectrumProbe", plugins.PROBES)]
    entries += [EntryPoint("train", "_toy_probes:Toy", plugins.PROBES)]  # a command's name stays the command's
    entries += plugins.entry_points(group=plugins.SYSTEMS)
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints(entries).select(group=group))


@pytest.fixture
def given(ckpt, dyneq_json):
    """Return a function: options of ``dyneq toy`` -> the parameters the probe got."""

    def call(*options):
        (result,) = dyneq_json("toy", ckpt, *options)["results"]
        return json.loads(result["data_vars"]["given"]["data"])

    return call


DEFAULTS = {
    "depth": [3, 4], "share": 0.25, "many": 7, "exact": True, "way": "slow", "digits": 4, "label": "none",
    "limit": None, "cap": 5, "window": [0.0, 1.0], "names": [], "table": {}, "colour": "red", "eps": 0.5,
    "step_size": 2, "seed": 11,
}  # fmt: skip


def test_without_options_the_probe_has_its_own_defaults(given):
    assert given() == DEFAULTS


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (["--depth", 5, "--depth", 9, "--depth", 2], {"depth": [5, 9, 2]}),
        (["--share", "0.5", "--many", 8], {"share": 0.5, "many": 8}),
        (["--no-exact"], {"exact": False}),
        (["--exact"], {}),
        (["--way", "fast", "--digits", 8], {"way": "fast", "digits": 8}),
        (["--label", "two words"], {"label": "two words"}),
        (["--label", "12"], {"label": "12"}),
        (["--limit", "1e-3"], {"limit": 1e-3}),
        (["--cap", "null"], {"cap": None}),
        (["--cap", "6"], {"cap": 6}),
        (["--window", 2, 3.5], {"window": [2.0, 3.5]}),
        (["--names", "b", "--names", "a"], {"names": ["b", "a"]}),
        (["--table", '{"x": 1.5}'], {"table": {"x": 1.5}}),
        (["--colour", "blue"], {"colour": "blue"}),
        (["--toy-eps", 0.75], {"eps": 0.75}),
        (["--step-size", 4], {"step_size": 4}),
        (["--seed", 0], {"seed": 0}),
    ],
)
def test_every_kind_of_parameter_is_an_option(given, options, changed):
    assert given(*options) == {**DEFAULTS, **changed}


def test_the_common_option_keeps_its_name(ckpt, dyneq_json):
    document = dyneq_json("toy", ckpt, "--eps", 0.05, "--toy-eps", 0.75)
    assert document["system"]["eps"] == 0.05
    assert document["params"]["eps"] == 0.75


def test_help_shows_descriptions_defaults_and_needs(dyneq_run):
    code, out, _ = dyneq_run("toy", "--help")
    assert code == 0
    words = " ".join(out.split())
    assert "Returns what it was given." in words
    assert "Further text" not in words
    assert "The system must have causality." in words
    for text in (
        "--depth INTEGER how deep [default: 3, 4] [repeatable]",
        "--share FLOAT which share [default: 0.25]",
        "--exact / --no-exact whether exactly [default: true]",
        "--way [slow|fast] which way [default: slow]",
        "--digits [4|8] [default: 4]",
        "--limit FLOAT a limit, or none",
        "--window <FLOAT FLOAT>... from and to [default: 0.0, 1.0]",
        "--names [a|b] some names [repeatable]",
        "--table JSON",
        "--toy-eps FLOAT a parameter whose option is taken [default: 0.5]",
        "--plot PATH",
    ):
        assert text in words
    assert words.count("--seed") == 1


def test_the_document_is_plain_and_complete(ckpt, dyneq_json):
    document = dyneq_json("toy", ckpt, "--batch", 2)
    assert document["command"] == "toy"
    (result,) = document["results"]
    assert result["dims"] == {"depth": 2, "sample": 2, "other": 0}
    values = result["data_vars"]
    assert values["value"]["data"] == [[1.5, -2.0], [None, None]]
    assert values["value"]["dims"] == ["depth", "sample"]
    assert values["value"]["attrs"] == {"units": "1/time", "long_name": "a value"}
    assert values["mu"]["data"] == [[None, 0.0], [3.0, 4.0]]
    assert values["good"]["data"] == [False, True]
    assert values["word"]["data"] == ["x", "x"]
    assert values["total"]["data"] == 2.5
    assert values["day"]["data"].startswith("2026-01-02")
    assert values["none"]["data"] == []
    assert result["coords"]["depth"]["data"] == [3, 4]
    assert result["attrs"]["array"] == [1.0, None]
    assert result["attrs"]["checkpoint_sha256"] == load_checkpoint(ckpt).sha256
    assert result["findings"][1] == {"level": "warning", "text": "it is a toy"}


def test_the_table_says_ranges_and_what_is_missing(ckpt, dyneq_run):
    code, out, err = dyneq_run("toy", ckpt)
    assert (code, err) == (0, "")
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if line.startswith("  ")}
    assert out.startswith("tiny (ThickBlock, step 7), 4 samples")
    assert rows["dimensions:"] == "depth 2 (3 to 4), sample 4 (0 to 3), other 0"
    assert rows["value"] == "depth, sample -2 to 1.5; 4 of 8 not finite 1/time a value"
    assert rows["mu"] == "sample modulus 5 to 5; 1 of 4 not finite"
    assert rows["good"] == "sample 3 of 4 true"
    assert rows["word"] == "sample x 4"
    assert rows["total"] == "- 2.5"
    assert rows["none"] == "other empty"
    assert rows["-"] == "it ran"
    assert rows["!"] == "it is a toy"


def test_nothing_finite_and_missing_words():
    ds = xr.Dataset(
        {
            "a": ("sample", [np.nan, np.inf]),
            "w": ("sample", np.array(["x", None], dtype=object)),
            "i": ("sample", [3, 3]),
        },
        attrs={"system": "s", "time": "map", "eps": 1.0, "dtype": "float64", "probe": "toy"},
    )
    text = show("toy", ds)
    assert "none of 2 finite" in text
    assert "\n  i         sample  3\n" in text
    plain = entry("toy", ds)["data_vars"]
    assert plain["a"]["data"] == [None, None]
    assert plain["w"]["data"] == ["x", None]


def test_files_are_written(ckpt, dyneq_run, tmp_path):
    code, _, err = dyneq_run("toy", ckpt, "--out", tmp_path / "o.zarr", "--plot", tmp_path / "o.png")
    assert (code, err) == (0, "")
    assert xr.open_zarr(tmp_path / "o.zarr", consolidated=False).attrs["probe_version"] == 3
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")


BAD = [
    (["toy", "--share", "2"], 2, "share"),
    (["toy", "--share", "much"], 2, "much"),
    (["toy", "--many", "5"], 2, "many should be 7 or even, not 5"),
    (["toy", "--way", "fastest"], 2, "fastest"),
    (["toy", "--digits", "6"], 2, "6"),
    (["toy", "--names", "c"], 2, "'c'"),
    (["toy", "--window", "1"], 2, "2 arguments"),
    (["toy", "--cap", "lots"], 2, "lots"),
    (["toy", "--table", "{"], 2, "table"),
    (["toy", "--depht", "3"], 2, "--depth"),
    (["toy", "--step-size", "0"], 2, "step_size"),
    (["must"], 2, "--depth"),
    (["must", "--depth", "0"], 2, "depth"),
    (["needs-loss", "--seed", "3"], 2, "takes no --seed"),
    (["buggy"], 1, "'buggy' failed (KeyError: 'a bug')"),
    (["forgetful"], 1, "should return an xarray.Dataset with a dimension 'sample', but returned a dataset over ('x',)"),
    (["gone"], 2, "cannot be imported (AttributeError"),
    (["misnamed"], 2, "should have the name 'misnamed', but calls itself 'other'"),
    (["unfinished"], 2, "should define plot, summary"),
    (["function"], 2, "should be a Probe subclass"),
    (["toi"], 2, "did you mean 'toy'"),
]


@pytest.mark.parametrize(("args", "code", "words"), BAD, ids=[" ".join(a) for a, _, _ in BAD])
def test_what_goes_wrong_is_one_sentence(ckpt, dyneq_run, args, code, words):
    found, out, err = dyneq_run(args[0], ckpt, *args[1:])
    assert (found, out) == (code, "")
    assert words in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


UNSUITED = """
import torch, dyneq
class Bare(dyneq.System):
    name = "bare"
    def force(self, z, context=None): return -z
    def initial_state(self): return torch.ones(2, 3, dtype=torch.float64)
"""


@pytest.mark.parametrize(("probe", "words"), [("toy", "causal over tokens"), ("needs-loss", "needs a loss")])
def test_a_need_is_refused_before_the_probe_runs(dyneq_run, tmp_path, monkeypatch, probe, words):
    (tmp_path / "unsuited.py").write_text(UNSUITED)
    monkeypatch.chdir(tmp_path)
    code, out, err = dyneq_run(probe, "unsuited.py:Bare")
    assert (code, out) == (2, "")  # NeedsLoss.run would raise, Toy.run would print
    assert words in err
    assert err.count("\n") == 1


def test_top_level_help_lists_them_apart_without_importing(dyneq_run):
    code, out, err = dyneq_run("--help")
    assert (code, err) == (0, "")
    commands, further = out.split("Further probes:")
    assert "\n  spectrum " in commands
    names = [line.split()[0] for line in further.splitlines() if line.startswith("  ") and line[2] != " "]
    assert names == sorted(CLASSES)
    assert "_toy_probes" not in sys.modules


def test_a_command_is_not_replaced_by_a_probe_of_its_name(dyneq_run):
    code, out, _ = dyneq_run("train", "--help")
    assert code == 0
    assert "--gradient" in out
