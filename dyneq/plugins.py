"""Finding plug-ins through entry points; the built-in ones are declared the same way."""

import warnings
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from dyneq.errors import UsageError, nearest


class BrokenPlugin(UserWarning):
    """An entry point that could not be imported; the others still work."""


def names(group: str) -> list[str]:
    """Return the sorted names declared in an entry-point group, without importing anything."""
    return sorted({e.name for e in entry_points(group=group)})


def load(group: str, name: str, what: str) -> Any:
    """Import one plug-in.

    Args:
        group: Entry-point group, such as ``dyneq.probes``.
        name: Name of the plug-in in the group.
        what: What it is called in messages, such as ``probe``.

    Raises:
        UsageError: If there is none of that name, or it cannot be imported.
    """
    found = [e for e in entry_points(group=group) if e.name == name]
    if not found:
        raise UsageError(f"there is no {what} called {name!r}{nearest(name, names(group))}")
    try:
        return found[0].load()
    except Exception as error:
        raise UsageError(
            f"the {what} {name!r} is declared by {_origin(found[0])} but cannot be imported "
            f"({type(error).__name__}: {error}); repair or uninstall that package"
        ) from error


def load_all(group: str, what: str) -> dict[str, Any]:
    """Import every plug-in of a group; a broken one is a :class:`BrokenPlugin` warning with its name, never a crash."""
    loaded: dict[str, Any] = {}
    for name in names(group):
        try:
            loaded[name] = load(group, name, what)
        except UsageError as error:
            warnings.warn(str(error), BrokenPlugin, stacklevel=2)
    return loaded


def _origin(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
