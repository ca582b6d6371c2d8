"""Plug-ins: unknown names name the nearest, broken ones are reported with the reason and the others still load."""

import importlib.metadata
import json
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from dyneq import plugins
from dyneq.errors import UsageError, nearest
from dyneq.systems.thick import ThickBlock

GROUP = "dyneq.tests"
DECLARED = EntryPoints(
    [
        EntryPoint("spectrum", "json:dumps", GROUP),
        EntryPoint("residual", "json:loads", GROUP),
        EntryPoint("gone", "there_is_no_such_package:Probe", GROUP),
        EntryPoint("renamed", "json:dumpz", GROUP),
        EntryPoint("twice", "json:dumps", GROUP),
        EntryPoint("twice", "json:loads", GROUP),
        EntryPoint("same", "json:loads", GROUP),
        EntryPoint("same", "json:loads", GROUP),
    ]
)


@pytest.fixture
def declared(monkeypatch):
    monkeypatch.setattr(plugins, "entry_points", lambda group: DECLARED.select(group=group))


def test_the_blocks_own_entry_point():
    assert "thick" in plugins.names("dyneq.systems")
    assert plugins.load("dyneq.systems", "thick", "kind of block") is ThickBlock
    (thick,) = [p for p in plugins.declared("dyneq.systems") if p.name == "thick"]
    version = importlib.metadata.version("dyneq")
    assert thick == plugins.Plugin("thick", "dyneq.systems.thick:ThickBlock", "dyneq", version)
    assert thick.origin == f"dyneq {version}"


@pytest.mark.usefixtures("declared")
def test_an_unknown_name_names_the_nearest():
    assert plugins.names(GROUP) == ["gone", "renamed", "residual", "same", "spectrum", "twice"]
    with pytest.raises(UsageError) as caught:
        plugins.load(GROUP, "spectrun", "probe")
    assert str(caught.value) == "there is no probe called 'spectrun'; did you mean 'spectrum'?"
    with pytest.raises(UsageError, match="known are gone, renamed, residual, same, spectrum, twice"):
        plugins.load(GROUP, "xyzzy", "probe")
    with pytest.raises(UsageError, match="none are known"):
        plugins.load("dyneq.no_such_group", "spectrum", "probe")


@pytest.mark.usefixtures("declared")
@pytest.mark.parametrize(("name", "why"), [("gone", "ModuleNotFoundError"), ("renamed", "AttributeError")])
def test_a_broken_one_that_was_asked_for_is_an_error(name, why):
    with pytest.raises(UsageError, match=f"the probe '{name}' is declared by .*{why}.*repair or uninstall"):
        plugins.load(GROUP, name, "probe")


@pytest.mark.usefixtures("declared")
def test_a_name_declared_twice_is_an_error_that_names_both():
    with pytest.raises(UsageError, match=r"'twice' is declared by json:dumps .* and by json:loads .*uninstall one"):
        plugins.load(GROUP, "twice", "probe")
    both = [p for p in plugins.declared(GROUP) if p.name == "twice"]
    assert [p.value for p in both] == ["json:dumps", "json:loads"]
    assert all("json:dumps" in p.error and "json:loads" in p.error for p in both)
    assert plugins.load(GROUP, "same", "probe") is json.loads  # the same declaration seen twice is none


@pytest.mark.usefixtures("declared")
def test_broken_ones_among_others_are_reported_and_the_others_load():
    described = {p.name: (p.error, value) for p, value in plugins.load_each(GROUP, lambda name, value: (name, value))}
    assert described["spectrum"] == (None, ("spectrum", json.dumps))
    assert described["residual"] == (None, ("residual", json.loads))
    assert described["gone"][0].startswith("ModuleNotFoundError")
    assert described["renamed"][0].startswith("AttributeError")
    assert "uninstall one" in described["twice"][0]
    assert {name for name, (_, value) in described.items() if value is None} == {"gone", "renamed", "twice"}


RAISING = {
    "an_error": "raise ValueError('first\\nsecond')",
    "no_message": "raise RuntimeError",
    "exits": "import sys; sys.exit('goodbye')",
    "its_own": "class Odd(BaseException): pass\nraise Odd('odd')",
    "no_syntax": "def",
}


@pytest.mark.parametrize("name", RAISING)
def test_whatever_importing_raises_is_one_line(name, tmp_path, monkeypatch, capsys):
    (tmp_path / f"_raising_{name}.py").write_text(f"print('loading')\n{RAISING[name]}")
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("bad", f"_raising_{name}:X", GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints([entry]).select(group=group))
    with pytest.raises(UsageError, match="cannot be imported") as caught:
        plugins.load(GROUP, "bad", "probe")
    assert "\n" not in str(caught.value)
    ((plugin, value),) = plugins.load_each(GROUP, lambda name, value: value)
    assert value is None
    assert "\n" not in plugin.error
    assert capsys.readouterr().out == "", "what it prints stays out of standard output"


def test_interrupting_an_import_is_no_reason(tmp_path, monkeypatch):
    (tmp_path / "_interrupted.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("slow", "_interrupted:X", GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints([entry]).select(group=group))
    with pytest.raises(KeyboardInterrupt):
        plugins.load_each(GROUP, lambda name, value: value)


def test_nearest_prefers_the_closest():
    assert nearest("dampnig", ["damping", "dampers", "eps"]) == "; did you mean 'damping'?"
    assert nearest("zzz", ["b", "a"]) == "; known are a, b"
    assert nearest("zzz", []) == "; none are known"
