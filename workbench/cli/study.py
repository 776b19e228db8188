"""`workbench study`: run, plan, show, list and start studies."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.common import (
    Json,
    Overrides,
    Seeds,
    StorePath,
    check_device,
    human_bytes,
    human_seconds,
    open_store,
    open_to_read,
    parse_seeds,
    print_json,
    print_table,
    say,
    say_no_runs,
)
from workbench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from workbench.runs import Store
    from workbench.studies.handle import Study

app = typer.Typer(help="Whole experiments: a YAML file of stages, grids and seeds.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="STUDY", help="A preset's name or a YAML file.")]
SCHEMA_FILE = "study.schema.json"


def _load(name: str, overrides: list[str] | None, seeds: str | None, store: Path | None) -> Study:
    from workbench.studies.handle import Study

    return Study.load(name, open_store(store), overrides or (), parse_seeds(seeds))


def _stored(name: str, store: Store) -> Study:
    """A study by the name it has in the store, or by preset or file."""
    from workbench.studies.handle import Study

    return Study.open(store, name) if name in store.studies() else Study.load(name, store)


@app.command()
def run(
    name: Name,
    overrides: Overrides = None,
    seeds: Seeds = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; one per core when absent.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    store: StorePath = None,
    report: Annotated[bool, typer.Option(help="Write the HTML report when all is done.")] = True,
) -> None:
    """Do every stage that is not done, show progress, and print the verdicts."""
    from workbench.runs import Store

    study = _load(name, overrides, seeds, store)
    if changed := study.replaces():
        say(
            f"note: the store has a study {study.name!r} that differs in {changed}; its runs stay, and from now on "
            f"`workbench study show {study.name}` means this one (give it another name in `study:` to keep both)"
        )
    print_cost(study, workers)
    check_device(device)  # here rather than by the first worker
    study.run(workers, device=device)
    _print_verdicts(study)
    if report:
        from workbench.report import write_report

        path = write_report(study, study.store.root / study.name / "report.html")
        say(f"\nreport: {path}")
    where = "" if study.store.root.resolve() == Store.default().root.resolve() else f" --store {study.store.root}"
    say(f"look closer: workbench app{where}   (or make app)")


@app.command("plan")
def plan_(name: Name, overrides: Overrides = None, seeds: Seeds = None, store: StorePath = None, json: Json = False) -> None:
    """Print the stages, what is done, and what the rest would cost; run nothing."""
    study = _load(name, overrides, seeds, store)
    states = {stage.key: _state(run) for stage, run in study.runs()}
    if json:
        print_json(
            {
                "study": study.name,
                "stages": [
                    {
                        "name": s.name,
                        "kind": s.kind,
                        "key": s.key,
                        "seed": s.seed,
                        "parents": list(s.parents),
                        "state": states[s.key],
                        "seconds": round(s.seconds, 1),
                        "bytes": s.bytes,
                        "memory": s.memory,
                    }
                    for s in study.plan.stages
                ],
            }
        )
        return
    rows = [
        (s.name, s.key, states[s.key], human_seconds(s.seconds), human_bytes(s.memory), human_bytes(s.bytes))
        for s in study.plan.stages
    ]
    columns = ("stage", "key", "state", "about", "memory", "disk")
    print_table(f"{study.name}: {len(rows)} stages", columns, rows, right=("about", "memory", "disk"))
    print_cost(study, None)


def _state(run: Any) -> str:
    if run is None:
        return "to do"
    return "damaged" if run.damaged else str(run.status.get("state", "to do"))


def print_cost(study: Study, workers: int | None) -> None:
    """What is not done yet, and about what it takes."""
    from workbench.engine.local import cores
    from workbench.studies.plan import START_UP_SECONDS

    missing = study.plan.missing(study.store)
    if not missing:
        say(f"{study.name}: all {len(study.plan.stages)} stages are done.")
        return
    n = min(workers or cores(), len(missing))
    total = sum(stage.seconds for stage in missing)
    done = len(study.plan.stages) - len(missing)
    say(
        f"{study.name}: {len(missing)} stages to do ({done} done), about {human_seconds(total / n + START_UP_SECONDS)} on {n} "
        f"worker{'s' if n > 1 else ''} (CPU estimate), {human_bytes(sum(s.bytes for s in missing))} in {study.store.root}"
    )


@app.command()
def show(name: Name, store: StorePath = None, json: Json = False) -> None:
    """Print the verdicts and their evidence."""
    from workbench.verdict import as_json

    study = _stored(name, open_to_read(store))
    if json:
        print_json(as_json(study.name, study.verdicts()))
        return
    if not study.store.root.exists():
        say_no_runs(study.store)
        return
    done, total = study.progress()
    say(f"{study.name}: {done} of {total} stages done" + ("" if done == total else f"; workbench study run {name}"))
    _print_verdicts(study)


def _print_verdicts(study: Study) -> None:
    from workbench.figures import words

    verdicts = study.verdicts()
    lines: list[tuple[str, ...]] = []
    for v in verdicts:
        for e in v.evidence:
            sign = {"upper": "≤ ", "lower": "≥ "}.get(e.bound, "")
            value = f"{sign}{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" if e.value == e.value else "not measured"
            said = words.metric(e.metric)
            lines.append((v.pair, v.capability, e.analysis.replace("_", " "), said, value, str(e.n), e.direction))
    if lines:
        columns = ("pair", "ability", "analysis", "measure", "value [95 %]", "n", "points to")
        print_table("Evidence (n = examples per seed and set)", columns, lines, right=("n",))
        say()
    rows = [(v.pair, v.capability, v.verdict, ",".join(map(str, v.seeds)) or "none", v.reason) for v in verdicts]
    print_table(f"Verdicts of {study.name}", ("pair", "ability", "verdict", "seeds", "because"), rows)


@app.command("list")
def list_(store: StorePath = None, json: Json = False) -> None:
    """List presets and the studies in the store."""
    from workbench.studies.loading import load_study, preset_names

    opened = open_to_read(store)
    rows: list[dict[str, Any]] = []
    for name in preset_names():
        spec = load_study(name)
        rows.append({"name": name, "where": "preset", "seeds": list(spec.seeds), "summary": spec.note})
    for name in opened.studies():
        seeds = sorted({run.seed for run in opened.runs(name) if run.seed is not None})
        rows.append({"name": name, "where": str(opened.root / name), "seeds": seeds, "summary": ""})
    if json:
        print_json(rows)
        return
    columns = ("study", "where", "seeds", "about")
    print_table("Studies", columns, [(r["name"], r["where"], ",".join(map(str, r["seeds"])), r["summary"]) for r in rows])


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the new study; the file is NAME.yaml here.")],
    source: Annotated[str, typer.Option("--from", help="Preset or file to copy.")] = "quickstart",
) -> None:
    """Start a study file of your own from a preset, with a JSON schema beside it for editors."""
    from workbench.studies.loading import load_study, read_study

    path = Path(f"{name}.yaml")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"{name!r} cannot name a study; use letters, digits, '_', '-' and '.'.")
    if path.exists():
        raise UserError(f"{path} exists already; choose another name or remove it.")
    load_study(source)
    text, found = re.subn(r"^study:.*$", f"study: {name}", read_study(source), count=1, flags=re.MULTILINE)
    if not found:
        raise UserError(f"{source} has no line that begins with 'study:'; write its name on such a line.")
    path.write_text(f"# yaml-language-server: $schema=./{SCHEMA_FILE}\n{text}")
    _write_schema(Path(SCHEMA_FILE))
    say(f"wrote {path} (edit it, then: workbench study run {path}) and {SCHEMA_FILE} (completion in editors)")


@app.command()
def schema() -> None:
    """Print the JSON schema of study files."""
    from workbench.studies.spec import StudySpec

    print_json(StudySpec.model_json_schema())


def _write_schema(path: Path) -> None:
    import json as json_

    from workbench.studies.spec import StudySpec

    path.write_text(json_.dumps(StudySpec.model_json_schema(), indent=1) + "\n")


def known_study(name: str, store: Path | None) -> Study:
    """A study of the store.

    Raises:
        UserError: it is not there.
    """
    opened = open_to_read(store)
    if name not in opened.studies():
        from workbench.studies.loading import preset_names

        run = f"; `workbench study run {name}` makes it" if name in preset_names() else did_you_mean(name, opened.studies())
        raise UserError(f"the store {opened.root} has no study {name!r}{run}")
    return _stored(name, opened)
