"""Options and printing that commands share."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from workbench.errors import UserError

if TYPE_CHECKING:
    from workbench.results import Result
    from workbench.runs import Store

MOST_SEEDS = 10_000
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
StorePath = Annotated[Path | None, typer.Option("--store", help="Run store; WORKBENCH_HOME or ./runs when absent.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one value; may be repeated.")]
Seeds = Annotated[str | None, typer.Option("--seeds", metavar="0,1,2 or 0-4", help="Seeds instead of the study's.")]


def open_store(path: Path | None) -> Store:
    """The store of an option.

    Raises:
        UserError: it is a file.
    """
    from workbench.runs import Store

    store = Store(path) if path else Store.default()
    if store.root.exists() and not store.root.is_dir():
        raise UserError(f"the store {store.root} is a file; give the folder of a store with --store or WORKBENCH_HOME.")
    return store


def open_to_read(path: Path | None) -> Store:
    """The store of a command that only reads.

    Raises:
        UserError: it is a file, or it was asked for by name and is not there.
    """
    store = open_store(path)
    if path is not None and not store.root.exists():
        raise UserError(f"there is no store {store.root}; `workbench study run STUDY --store {path}` makes one there.")
    return store


def say_no_runs(store: Store) -> None:
    """What there is to say of a store without any."""
    say(f"there are no runs yet in {store.root}; make some with: workbench study run quickstart")


def check_device(name: str) -> None:
    """Refuse a device that is not there, before anything is made on it.

    Raises:
        UserError: there is no such device.
    """
    if name != "auto":
        from workbench.models.checkpoints import pick_device

        pick_device(name)


def print_json(value: Any) -> None:
    """Strict JSON on standard output: what was not measured is null."""
    sys.stdout.write(json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in cast(Mapping[str, Any], value).items()}
    return [_finite(item) for item in cast(list[Any], value)] if isinstance(value, list | tuple) else value


def say(text: str = "") -> None:
    """A line on standard output."""
    sys.stdout.write(text + "\n")


def parse_seeds(text: str | None) -> list[int] | None:
    """Seeds from `0,1,2` or `0-4`.

    Raises:
        UserError: neither form, or more than anyone means.
    """
    if text is None:
        return None
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match:
            raise UserError(f"--seeds {text!r} is not a list of seeds; write 0,1,2 or 0-4.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first >= MOST_SEEDS:
            raise UserError(f"--seeds {text!r} names {last - first + 1} seeds; {MOST_SEEDS} are the most.")
        seeds += range(first, last + 1)
    if not seeds:
        raise UserError(f"--seeds {text!r} names no seed; write 0,1,2 or 0-4.")
    return seeds


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = (), whole: Sequence[str] = ()
) -> None:
    """A table on standard output, as wide as the terminal; numbers to the right; the columns `whole` are never broken."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", header_style="bold", show_edge=False, pad_edge=False)
    for column in columns:
        justify = "right" if column in right else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column in whole)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text, so that names with brackets are not markup
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(table)


MOST_LINES = 40
"""Headline numbers that are printed; more would hide what they say."""


def print_result(title: str, result: Result, paths: Sequence[Path]) -> None:
    """A result: headline numbers, what they say, how far to trust them, and where its tables lie."""
    shown = result.to_json()["headline"]
    rows = [
        (m["metric"], f"{m['value']:.4g}", f"[{m['low']:.4g}, {m['high']:.4g}]", str(m["n"]), m["unit"], m["bound"])
        for m in shown[:MOST_LINES]
    ]
    print_table(title, ("measure", "value", "95 %", "n", "unit", "bound"), rows)
    if len(shown) > MOST_LINES:
        say(f"  and {len(shown) - MOST_LINES} more numbers: with --json, in the tables, and on the page")
    for line in result.evidence:
        say(f"  {line.text}")
    for limit in result.limits:
        say(f"  limit: {limit}")
    say(f"  tables: {', '.join(str(path) for path in paths)}")


def human_bytes(count: float) -> str:
    """`3.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def human_seconds(seconds: float) -> str:
    """`45 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
