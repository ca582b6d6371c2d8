"""Finding plug-ins through entry points; the built-in ones are declared the same way.

Declared names are known without importing anything; a plug-in is imported when it is used or described.
"""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from dyneq.errors import UsageError, nearest

PROBES = "dyneq.probes"
ESTIMATORS = "dyneq.estimators"
SYSTEMS = "dyneq.systems"
TOKENIZERS = "dyneq.tokenizers"


#: What was imported, by where it was declared: looking through every installed package takes milliseconds each time.
_loaded: dict[tuple[Callable[..., Any], str, str], Any] = {}


@dataclass(frozen=True)
class Plugin:
    """What one entry point declares.

    Attributes:
        name: Name in its group, as on the command line.
        value: What is imported, ``module:attribute``.
        distribution: Name of the package that declares it; empty if unknown.
        version: Version of that package.
        error: Why it cannot be used, one clause; None as long as nothing is known to be wrong.
    """

    name: str
    value: str
    distribution: str
    version: str
    error: str | None = None

    @property
    def origin(self) -> str:
        """The package and its version; what is imported where no package is known."""
        return f"{self.distribution} {self.version}" if self.distribution else self.value


def names(group: str) -> list[str]:
    """Return the sorted names declared in an entry-point group, without importing anything."""
    return sorted({e.name for e in entry_points(group=group)})


def declared(group: str) -> list[Plugin]:
    """Return everything declared in a group, sorted by name, without importing anything.

    A name that several packages declare appears once for each of them, with the conflict as its error.
    """
    found: dict[str, list[Plugin]] = {}
    for entry in entry_points(group=group):
        known = found.setdefault(entry.name, [])
        if (plugin := _plugin(entry)) not in known:
            known.append(plugin)
    return [
        plugin if len(plugins) == 1 else replace(plugin, error=_conflict(plugins))
        for _, plugins in sorted(found.items())
        for plugin in plugins
    ]


def load(group: str, name: str, what: str) -> Any:
    """Import one plug-in.

    Args:
        group: Entry-point group, such as ``dyneq.probes``.
        name: Name of the plug-in in the group.
        what: What it is called in messages, such as ``probe``.

    Raises:
        UsageError: If there is none of that name, several packages declare it, or it cannot be imported.
    """
    key = (entry_points, group, name)
    if key in _loaded:
        return _loaded[key]
    entries = [e for e in entry_points(group=group) if e.name == name]
    plugins = list(dict.fromkeys(map(_plugin, entries)))
    if not plugins:
        raise UsageError(f"there is no {what} called {name!r}{nearest(name, names(group))}")
    if len(plugins) > 1:
        raise UsageError(f"the {what} {name!r} is {_conflict(plugins)}")
    loaded, error = _import(entries[0])
    if error is not None:
        raise UsageError(
            f"the {what} {name!r} is declared by {plugins[0].origin} but cannot be imported ({_brief(error)}); "
            "repair or uninstall that package"
        ) from error
    _loaded[key] = loaded
    return loaded


def load_each(group: str, describe: Callable[[str, Any], Any]) -> list[tuple[Plugin, Any]]:
    """Import and describe every plug-in of a group; a broken one is returned with the reason, never a crash.

    Args:
        group: Entry-point group.
        describe: Called with the name and what was imported; may raise, which is the reason then.

    Returns:
        Each declared plug-in with its description, None where its ``error`` says why there is none.
    """
    described = []
    for plugin in declared(group):
        description, error = None, plugin.error
        if error is None:
            loaded, problem = _import(EntryPoint(plugin.name, plugin.value, group))
            if problem is None:
                description, problem = _guarded(partial(describe, plugin.name, loaded))
            error = None if problem is None else _brief(problem)
        described.append((replace(plugin, error=error), description))
    return described


def _plugin(entry: EntryPoint) -> Plugin:
    known = entry.dist
    return Plugin(entry.name, entry.value, known.name if known else "", known.version if known else "")


def _conflict(plugins: list[Plugin]) -> str:
    # one package may declare a name twice; what is imported then tells the two apart
    given = " and by ".join(f"{p.origin} ({p.value})" for p in plugins)
    return f"declared by {given}, so it is not clear which is meant; uninstall one of them"


def _import(entry: EntryPoint) -> tuple[Any, BaseException | None]:
    # what a package prints while it is imported must not end up in the middle of a JSON document
    with contextlib.redirect_stdout(sys.stderr):
        return _guarded(entry.load)


def _guarded(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Return the result of a call into somebody else's code, or whatever it raised, sys.exit() included."""
    try:
        return call(), None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return None, error


def _brief(error: BaseException) -> str:
    if isinstance(error, UsageError):
        return str(error)
    first = (str(error).splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first[:200]}"
