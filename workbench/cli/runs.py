"""`workbench runs`: list, show, verify and remove run directories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.common import (
    Json,
    StorePath,
    human_bytes,
    human_seconds,
    open_to_read,
    print_json,
    print_table,
    say,
    say_no_runs,
)

if TYPE_CHECKING:
    from workbench.runs import Run, Store

app = typer.Typer(help="The directories that executed stages leave behind.", no_args_is_help=True)
Names = Annotated[list[str], typer.Argument(metavar="RUN...", help="Keys, stage-key names or study/stage-key names.")]


def _row(run: Run) -> dict[str, Any]:
    return {
        "key": run.key,
        "name": run.name,
        "study": run.study,
        "stage": run.stage,
        "kind": run.kind,
        "seed": run.seed,
        "state": "damaged" if run.damaged else run.status.get("state"),
        "reason": run.damaged or run.status.get("reason") or "",
        "step": run.status.get("step"),
        "steps": run.status.get("steps"),
        "seconds": run.status.get("seconds"),
        "parents": list(run.parents),
        "path": str(run.path),
    }


@app.command("list")
def list_(
    study: Annotated[str | None, typer.Option(help="Only this study.")] = None, store: StorePath = None, json: Json = False
) -> None:
    """List runs, damaged ones with their reason."""
    opened = open_to_read(store)
    rows = [_row(run) for run in opened.runs(study)]
    if json:
        print_json(rows)
        return
    if not rows:
        say_no_runs(opened)
        return
    shown = [(r["name"], r["kind"], str(r["state"]), _steps(r), human_seconds(r["seconds"] or 0), r["reason"]) for r in rows]
    print_table(
        f"{len(rows)} runs in {opened.root}", ("run", "kind", "state", "steps", "took", "reason"), shown, whole=("run",)
    )


def _steps(row: dict[str, Any]) -> str:
    return f"{row['step']}/{row['steps']}" if row["steps"] is not None else ""


@app.command()
def show(name: Annotated[str, typer.Argument(metavar="RUN")], store: StorePath = None, json: Json = False) -> None:
    """Show one run: its spec, provenance, checkpoints and size."""
    import yaml

    run = open_to_read(store).get(name)
    body = {
        **_row(run),
        "bytes": run.bytes,
        "checkpoints": [c.step for c in run.checkpoints],
        "spec": dict(run.spec),
        "provenance": dict(run.provenance),
    }
    if json:
        print_json(body)
        return
    say(yaml.safe_dump(body, sort_keys=False, allow_unicode=True).rstrip())


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="[RUN...]", help="All runs when absent.")] = None,
    store: StorePath = None,
    json: Json = False,
) -> None:
    """Read every file of runs, compare weights with their hashes, and list what is wrong; exit code 2 if anything is."""
    from workbench.models.fingerprint import folder_sha256

    opened = open_to_read(store)
    runs = [opened.get(name) for name in names] if names else opened.runs()
    found = {run.name: opened.verify(run, folder_sha256) for run in runs}
    bad = {name: problems for name, problems in found.items() if problems}
    if json:
        print_json(
            [{"run": name, "problems": [{"path": str(p.path), "text": p.text} for p in ps]} for name, ps in found.items()]
        )
    else:
        for name, problems in bad.items():
            for problem in problems:
                say(f"{name}: {problem.path.name}: {problem.text}")
        say(f"{len(runs)} runs read, {len(bad)} with problems" + ("" if bad else "; all is well"))
        if bad:
            say("remove a damaged run with `workbench runs remove RUN` and run its study again to remake it")
    if bad:
        raise typer.Exit(2)


@app.command()
def remove(
    names: Names,
    children: Annotated[bool, typer.Option("--with-children", help="Also everything that builds on them.")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    store: StorePath = None,
) -> None:
    """Remove runs; refuses to remove what a remaining run was made from."""
    opened = open_to_read(store)
    going = [opened.get(name) for name in names]
    if children:
        going = _with_descendants(opened, going)
    freed = opened.remove(going, dry)
    for run in going:
        say(f"{'would remove' if dry else 'removed'} {run.name}")
    say(f"{human_bytes(freed)} {'would be ' if dry else ''}freed")


def _with_descendants(store: Store, runs: list[Run]) -> list[Run]:
    everything = store.runs()
    keys = {run.key for run in runs}
    while more := {r.key for r in everything if keys.intersection(r.parents)} - keys:
        keys |= more
    return [run for run in everything if run.key in keys]
