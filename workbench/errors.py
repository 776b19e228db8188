"""Errors that are the user's to mend: one sentence that quotes the input and says the fix."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input. The command line prints the message alone and exits with code 2."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suffix such as `; did you mean 'count_a'?`, or the list of what is known."""
    names = sorted(known)
    close = get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names) or 'none'}"
