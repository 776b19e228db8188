"""`workbench reproduce`: the paper's figures, tables and claims, redone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.common import Json, Seeds, StorePath, check_device, open_store, parse_seeds, print_json, print_table, say
from workbench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from workbench.paper.grid import Scale
    from workbench.results import Metric, Result
    from workbench.runs import Store
    from workbench.studies.handle import Study

CLAIMS = {"claims": "grid_counting", "claims-indexing": "grid_indexing"}
"""Judgements of the paper's claims, and the study that each rests on."""
SCALES = ("cpu", "paper")


def reproduce(
    name: Annotated[str | None, typer.Argument(metavar="[FIGURE|TABLE|claims]", help="Such as fig5, tab5 or claims.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List every figure and table.")] = False,
    scale: Annotated[str, typer.Option(help="cpu (minutes to an hour) or paper (a GPU).")] = "cpu",
    seeds: Seeds = None,
    run: Annotated[bool, typer.Option(help="Run what is not done yet; else show what there is.")] = True,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; one per core when absent.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    store: StorePath = None,
    json: Json = False,
) -> None:
    """Redo a figure or table of the paper: run the study behind it, draw it, and print its numbers."""
    from workbench.paper.catalogue import get, reproductions

    if scale not in SCALES:
        raise UserError(f"--scale {scale!r} is unknown{did_you_mean(scale, SCALES)}")
    opened = open_store(store)
    if list_ or name is None:
        _list(opened, scale, json)
        return
    at: Scale = "paper" if scale == "paper" else "cpu"
    if name not in (*CLAIMS, *reproductions()):
        raise UserError(f"there is no figure or table {name!r}{did_you_mean(name, [*CLAIMS, *reproductions()])}")
    check_device(device)
    study_name = _claims_study(name, at) if name in CLAIMS else get(name).preset(at)
    trains = name in CLAIMS or get(name).needs_models
    study = _study(study_name, opened, parse_seeds(seeds), run and trains, workers, device, json)
    result = _result(name, study, at)
    folder = _save(result, opened, f"{name}-{scale}")
    if json:
        print_json({**result.to_json(folder), "name": name})
        return
    _print(result, folder)


def _list(store: Store, scale: str, json: bool) -> None:
    from workbench.paper.catalogue import reproductions
    from workbench.studies.handle import Study

    at: Scale = "paper" if scale == "paper" else "cpu"
    behind = {name: _claims_study(name, at) for name in CLAIMS} | {e.name: e.preset(at) for e in reproductions().values()}
    families = ("counting", "indexing")
    rows = [
        {"name": name, "summary": f"the paper's claims against what was measured ({family})", "study": behind[name]}
        for name, family in zip(CLAIMS, families, strict=True)
    ]
    rows += [{"name": e.name, "summary": e.title, "study": behind[e.name]} for e in reproductions().values()]
    if json:
        print_json([{"name": r["name"], "summary": r["summary"]} for r in rows])
        return
    states = dict.fromkeys(behind.values(), "not run")
    for study in set(states) & set(store.studies()):
        done, total = Study.open(store, study).progress()
        states[study] = "done" if done == total else f"{done} of {total} stages"
    shown = [(r["name"], r["summary"], r["study"], states[r["study"]]) for r in rows]
    print_table("Figures and tables of arXiv 2311.12786", ("name", "about", "study", "state"), shown)


def _claims_study(name: str, scale: Scale) -> str:
    return CLAIMS[name] if scale == "cpu" else f"{CLAIMS[name]}_paper"


def _study(name: str, store: Store, seeds: list[int] | None, run: bool, workers: int | None, device: str, quiet: bool) -> Study:
    from workbench.cli.study import print_cost
    from workbench.studies.handle import Study

    study = Study.load(name, store, seeds=seeds)
    if run and study.plan.missing(store):
        if not quiet:
            print_cost(study, workers)
        study.run(workers, device=device)
    return study


def _result(name: str, study: Study, scale: Scale) -> Result:
    if name in CLAIMS:
        from workbench.paper.claims import judge
        from workbench.paper.grid import Grid

        result = judge(Grid(study, scale))
        if set(result.tables["table"]["agrees"]) == {"not measured"}:
            raise UserError(
                f"{name} needs the study {study.name!r}, of which nothing that it compares is done; run the same without --no-run."
            )
        return result
    from workbench.paper.catalogue import get
    from workbench.paper.redo import redo

    return redo(get(name), study, scale)


def _save(result: Result, store: Store, name: str) -> Path:
    """Result, tables and figure in `<store>/paper/NAME`, which replaces what was there."""
    from workbench.figures import figure
    from workbench.files import atomic_folder

    folder = store.root / "paper" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        result.save(temporary)
        figure(result).write_html(temporary / "figure.html", include_plotlyjs=True)
    return folder


def _print(result: Result, folder: Path) -> None:
    from workbench.figures import alt

    say(alt(result))
    if result.name == "claims":
        table: list[dict[str, Any]] = result.tables["table"].to_dict("records")
        rows = [
            (
                r["claim"],
                r["measured"],
                r["predicted"],
                "" if r["agrees"] == "not measured" else f"{r['value']:.2f} [{r['low']:.2f}, {r['high']:.2f}]",
                r["by_seed"],
                str(r["n"]),
                r["agrees"],
            )
            for r in table
        ]
        print_table("Claims", ("claim", "measured", "predicted", "value [95 %]", "by seed", "n", "agrees"), rows)
        whole: list[dict[str, Any]] = result.tables["claims"].to_dict("records")
        print_table("Agreement", ("claim", "the paper says", "agrees"), [(r["claim"], r["says"], r["agrees"]) for r in whole])
        for row in whole:
            if row["explanation"]:
                say(f"  {row['claim']}: {row['explanation']}")
        for why in dict.fromkeys(r["why"] for r in table if r["why"]):
            say(f"  note: {why}")
    elif result.headline:
        rows = [(m.metric, _value(m), str(m.n), m.unit) for m in result.headline]
        print_table("", ("number", "value [95 %]", "n", "unit"), rows)
    for limit in result.limits:
        say(f"  limit: {limit}")
    if result.headline:
        say(f"written to {folder} (figure.html, result.json, tables)")
    else:
        say(f"no single numbers; the figure is {folder / 'figure.html'}, its table {folder / 'table.parquet'}")


def _value(metric: Metric) -> str:
    """A number with its interval, where it has one."""
    if not math.isfinite(metric.value):
        return "not measured"
    if metric.low == metric.value == metric.high:
        return f"{metric.value:.3f}"
    return f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"
