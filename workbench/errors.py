"""Errors that are the user's to mend: one sentence that quotes the input and says the fix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

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


_DEMANDS = {
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be more than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be less than {lt:g}",
    "literal_error": "must be {expected}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "must be a list, such as [a, b]"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a section, such as {{key: value}}"),
    "string_type": "must be text",
}
_SHOWN = 80
"""Characters of a wrong value that are quoted."""


def complaint(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors in our words: `max_units is -3: it must be at least 1.`; our own validators speak for themselves."""
    where = place(error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return (f"{where}: {message}" if where else message).removesuffix(".") + "."
    demand = _DEMANDS.get(error["type"])
    wanted = "it " + demand.format(**error.get("ctx", {})) if demand else message[0].lower() + message[1:]
    shown = repr(error["input"])
    return f"{where} is {shown if len(shown) < _SHOWN else shown[: _SHOWN - 3] + '...'}: {wanted}."


def place(location: Sequence[str | int]) -> str:
    """Where in nested data: `goals[0]`, `finetune.wrapped.lr`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")
