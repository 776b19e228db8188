"""Errors that are the user's to mend: one sentence that quotes the input and says the fix."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

NEAR = 0.6
"""How alike a name must be to be meant, from 0 to 1."""


class UserError(Exception):
    """Bad input. The command line prints the message alone and exits with code 2."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suffix such as `; did you mean 'count_a'?`, with all names that are equally near; what is known where none is."""
    names = sorted(known)
    near = {name: SequenceMatcher(None, name.lower(), word.lower()).ratio() for name in names}
    nearest = max(near.values(), default=0.0)
    close = [name for name in names if near[name] == nearest]
    if nearest >= NEAR:
        return f"; did you mean {repr(close[0]) if len(close) == 1 else 'one of ' + ', '.join(close)}?"
    return f"; known: {', '.join(names) or 'none'}"
