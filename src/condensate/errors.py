"""The one exception class of our own."""

from collections.abc import Iterable
from difflib import get_close_matches

MOST_LISTED = 60


class UserError(ValueError):
    """A mistake the user can mend; the message says what was expected, what came and what to do."""


def unknown(kind: str, given: str, known: Iterable[str], do: str = "") -> UserError:
    """The error for a name that is not known, with the nearest one that is.

    Args:
        kind: What the name should have named, as in "recipe".
        given: What came.
        known: The names that exist; they are listed if they are few.
        do: What to do, where naming the nearest is not enough.
    """
    names = sorted(known)
    near = get_close_matches(given, names, n=1, cutoff=0.5)
    listed = f"known: {', '.join(names)}" if len(names) <= MOST_LISTED else f"there are {len(names)}"
    hint = f"did you mean {near[0]!r}?" if near else listed
    return UserError(f"unknown {kind} {given!r}; {hint}{' ' + do if do else ''}")
