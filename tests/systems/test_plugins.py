"""Plug-ins: unknown names name the nearest, broken ones are warnings and the others still load."""

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
    ]
)


@pytest.fixture
def declared(monkeypatch):
    monkeypatch.setattr(plugins, "entry_points", lambda group: DECLARED.select(group=group))


def test_the_blocks_own_entry_point():
    assert "thick" in plugins.names("dyneq.systems")
    assert plugins.load("dyneq.systems", "thick", "kind of block") is ThickBlock


@pytest.mark.usefixtures("declared")
def test_an_unknown_name_names_the_nearest():
    assert plugins.names(GROUP) == ["gone", "renamed", "residual", "spectrum"]
    with pytest.raises(UsageError) as caught:
        plugins.load(GROUP, "spectrun", "probe")
    assert str(caught.value) == "there is no probe called 'spectrun'; did you mean 'spectrum'?"
    with pytest.raises(UsageError, match="known are gone, renamed, residual, spectrum"):
        plugins.load(GROUP, "xyzzy", "probe")
    with pytest.raises(UsageError, match="none are known"):
        plugins.load("dyneq.no_such_group", "spectrum", "probe")


@pytest.mark.usefixtures("declared")
@pytest.mark.parametrize(("name", "why"), [("gone", "ModuleNotFoundError"), ("renamed", "AttributeError")])
def test_a_broken_one_that_was_asked_for_is_an_error(name, why):
    with pytest.raises(UsageError, match=f"the probe '{name}' is declared by .*{why}.*repair or uninstall"):
        plugins.load(GROUP, name, "probe")


@pytest.mark.usefixtures("declared")
def test_a_broken_one_among_others_is_a_warning():
    import json

    with pytest.warns(plugins.BrokenPlugin) as caught:
        loaded = plugins.load_all(GROUP, "probe")
    assert loaded == {"spectrum": json.dumps, "residual": json.loads}
    assert sorted(str(w.message).split("'")[1] for w in caught) == ["gone", "renamed"]


def test_nearest_prefers_the_closest():
    assert nearest("dampnig", ["damping", "dampers", "eps"]) == "; did you mean 'damping'?"
    assert nearest("zzz", ["b", "a"]) == "; known are a, b"
    assert nearest("zzz", []) == "; none are known"
