"""`workbench analyze`: run one analysis on the pairs of a study."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.common import Json, StorePath, human_bytes, human_seconds, print_json, print_result, print_table, say
from workbench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from workbench.studies.handle import Study


def analyze(
    target: Annotated[
        str | None, typer.Argument(metavar="STUDY[:PAIR]", help="A study of the store, or one of its pairs.")
    ] = None,
    name: Annotated[str | None, typer.Option("--with", metavar="ANALYSIS", help="Name of the analysis.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the analysis.")] = None,
    training: Annotated[
        str | None,
        typer.Option(
            "--along",
            metavar="TRAINING",
            help="Follow the analysis along the checkpoints of a training: finetune, revived, never_had_it, ...",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="One seed; all of the study's when absent.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the analyses.")] = False,
    store: StorePath = None,
    json: Json = False,
) -> None:
    """Run an analysis on every seed of a pair, keep the result in the store, and print its headline."""
    from workbench.registry import analyses

    if list_ or name is None:
        rows = [{"name": e.name, "summary": e.summary} for e in analyses.entries().values()]
        if json:
            print_json(rows)
            return
        forgotten = target is not None and not list_
        if forgotten:
            say(f"--with is missing: say what to run on {target}, such as --with pruning; these there are")
        print_table("Analyses", ("name", "about"), [(r["name"], r["summary"]) for r in rows])
        if forgotten:
            raise typer.Exit(2)
        return
    if target is None:
        raise UserError("name what to analyse: a study of the store, or study:pair, such as quickstart:wrapped.")
    from workbench.cli.study import known_study
    from workbench.studies.loading import apply_override

    if name not in analyses.names():
        raise UserError(f"there is no analysis {name!r}{did_you_mean(name, analyses.names())}")
    study_name, _, pair = target.partition(":")
    study = known_study(study_name, store)
    values: dict[str, Any] = {}
    for setting in settings or ():
        apply_override(values, setting)
    if training is not None:
        name, values = "along", {"follow": name, "settings": values, "of": training}
    out: list[dict[str, Any]] = []
    for chosen in (pair,) if pair else study.pair_names:
        _say_cost(study, chosen, name, values, seed)
        result, paths = study.analyze(chosen, name, values, seed, progress=not json)
        printed: dict[str, Any] = {**result.to_json(), "tables": _tables(paths), "pair": chosen}
        out.append(printed)
        if not json:
            seeds = ", ".join(str(s) for s in result.provenance.get("seeds", [result.provenance.get("seed")]))
            print_result(f"{name} of {chosen} (seeds {seeds})", result, paths)
    if json:
        print_json(out[0] if pair else out)


def _say_cost(study: Study, pair: str, name: str, settings: dict[str, Any], seed: int | None) -> None:
    """About what is to do takes, on standard error: what is asked for goes to the other. Nothing where all is done."""
    from workbench.studies.stage import not_done

    missing = not_done(study.store, study.stages_of(pair, name, settings, seed))
    if missing:
        seeds = f"{len(missing)} seed" + ("s" if len(missing) > 1 else "")
        sys.stderr.write(
            f"{name} on {study.name}:{pair}: {seeds}, about {human_seconds(sum(s.seconds for s in missing))} on one core, "
            f"up to {human_bytes(max(s.memory for s in missing))} of memory\n"
        )
        sys.stderr.flush()


def _tables(runs: Sequence[Path]) -> dict[str, str]:
    """Where the tables lie, by name; by name and seed (`table@s0`) where several runs hold one each."""
    files = [(run.name.rsplit("-", 2)[1], file) for run in runs for file in sorted(run.glob("*.parquet"))]
    return {file.stem if len(runs) == 1 else f"{file.stem}@{seed}": str(file) for seed, file in files}
