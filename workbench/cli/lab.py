"""`workbench lab`: self-contained experiments with what they should show."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.common import Json, StorePath, human_seconds, open_store, print_json, print_table, say
from workbench.errors import UserError

if TYPE_CHECKING:
    from workbench.lab import Kept
    from workbench.registry import Entry


def lab(
    name: Annotated[str | None, typer.Argument(metavar="[LAB]", help="Name of the lab.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the lab.")] = None,
    seed: Annotated[int | None, typer.Option(help="First seed; short for --set seed=.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the labs.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Run all labs, with their defaults.")] = False,
    store: StorePath = None,
    json: Json = False,
) -> None:
    """Run a lab, keep its result and figure in the store, and print its numbers beside what was expected."""
    from workbench.registry import labs

    if list_ or (name is None and not every):
        _list(list(labs.entries().values()), json)
        return
    if name is not None and every:
        raise UserError(f"--all runs every lab, and {name!r} is one; give the one or the other.")
    if every and settings:
        raise UserError(f"--set {settings[0]} is for one lab, and --all runs every one with its defaults; name a lab.")
    from workbench.studies.loading import apply_override

    chosen = [labs[name]] if name is not None else list(labs.entries().values())
    values: dict[str, Any] = {}
    for setting in settings or ():
        apply_override(values, setting)
    if seed is not None:
        if "seed" in values:
            raise UserError(f"--seed {seed} and --set seed={values['seed']} both say the first seed; give one of them.")
        values["seed"] = seed
    opened = open_store(store)
    printed: list[dict[str, Any]] = []
    from workbench.lab import kept
    from workbench.workplace import Workplace, working

    for entry in chosen:
        experiment: Any = entry.load()
        experiment.settings(values)  # refused before anything is said
        if not json:
            sys.stderr.write(f"{entry.name}: about {human_seconds(60 * entry.minutes)} on one core with its defaults\n")
        with working(Workplace(progress=_teller(entry.name, quiet=json))):
            found = kept(experiment, values, opened)
        if json:
            printed.append(found.result.to_json(found.folder))
        else:
            _print(found)
    if json:
        print_json(printed[0] if name is not None else printed)


def _list(entries: Sequence[Entry], json: bool) -> None:
    if json:
        print_json([{"name": e.name, "summary": e.summary} for e in entries])
        return
    rows = [(e.name, e.summary, human_seconds(60 * e.minutes)) for e in entries]
    print_table("Labs", ("name", "about", "takes about"), rows, whole=("name",))


def _teller(name: str, quiet: bool) -> Callable[[int, int, str], None]:
    """A line of progress on standard error that overwrites itself on a terminal; elsewhere, one line for every tenth."""
    ended = "\r" if sys.stderr.isatty() else "\n"

    def tell(done: int, of: int, what: str) -> None:
        if quiet or (ended == "\n" and done % max(1, of // 10) and done < of):
            return
        sys.stderr.write(f"{f'{name}: {done} of {of}, {what}':<78}".rstrip(" " if ended == "\n" else None) + ended)
        if done == of and ended == "\r":
            sys.stderr.write("\n")
        sys.stderr.flush()

    return tell


def _print(found: Kept) -> None:
    from workbench.figures import alt

    result = found.result
    if found.was_there:
        say(f"read back from {found.folder}: these settings have run before")
    say(alt(result))
    rows = [(m.metric, _number(m.value), _ends(m.low, m.high), f"{m.n:,}", str(m.seeds), m.unit) for m in result.headline]
    seeds = ", ".join(str(seed) for seed in result.provenance["seeds"])
    print_table(f"{result.name} (seeds {seeds})", ("measure", "value", "95 %", "n", "seeds", "unit"), rows)
    if "expectations" in result.tables:
        lines: list[dict[str, Any]] = result.tables["expectations"].to_dict("records")
        expected = [
            (
                e["says"],
                _range(e["expected_low"], e["expected_high"]),
                _number(e["value"]),
                _ends(e["low"], e["high"]),
                e["held"],
            )
            for e in lines
        ]
        print_table("Expectations", ("what", "expected", "measured", "95 %", "held"), expected)
    for line in result.evidence:
        say(f"  {line.text}")
    for limit in result.limits:
        say(f"  limit: {limit}")
    say(f"written to {found.folder} (figure.html, result.json, tables)")


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "not measured"


def _ends(low: float, high: float) -> str:
    return f"[{low:.4g}, {high:.4g}]" if math.isfinite(low) else ""


def _range(low: float, high: float) -> str:
    if math.isinf(low):
        return f"at most {high:g}"
    return f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"
