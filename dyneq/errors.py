"""The one exception whose message is meant for the user as it stands."""

import difflib
from collections.abc import Iterable


class DyneqError(Exception):
    """A problem the user can act on: one sentence naming the thing, what was expected, what was found, what to do."""


class UsageError(DyneqError):
    """A DyneqError caused by how something was asked for (an option, a name), not by what was found."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, else the list of known names.

    Args:
        name: The name that was not recognised.
        known: The names that would have been.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}" if known else "; none are known"
