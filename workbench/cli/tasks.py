"""`workbench tasks`: what tasks there are, and what their prompts look like."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.cli.common import Json, print_json, print_table, say
from workbench.errors import UserError

app = typer.Typer(help="Procedural tasks: generators of prompts with known answers.", no_args_is_help=True)
Kind = Annotated[str, typer.Argument(metavar="TASK", help="Name of a task, as in `kind:` of a study.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the task.")]


def _task(kind: str, settings: list[str] | None) -> Any:
    from workbench.protocols import load_task
    from workbench.studies.loading import apply_override

    body: dict[str, Any] = {"kind": kind}
    for setting in settings or ():
        apply_override(body, setting)
    return load_task(body)


@app.command("list")
def list_(json: Json = False) -> None:
    """List installed tasks and training protocols."""
    from workbench.protocols import installed

    found = {"tasks": list(installed("tasks")), "protocols": list(installed("protocols"))}
    if json:
        print_json(found)
        return
    for kind, names in found.items():
        say(f"{kind}: {', '.join(names)}")


@app.command()
def show(kind: Kind, settings: Settings = None, json: Json = False) -> None:
    """Show a task's capabilities with a prompt, the majority answer and its share for each."""
    task = _task(kind, settings)
    rows: list[dict[str, Any]] = []
    for name in task.capabilities:
        examples = task.capability(name).examples(1, 0)
        chance = {k: round(v, 3) for k, v in examples.chance.items()}
        rows.append(
            {
                "capability": name,
                "family": task.family(name),
                "chance": chance,
                "prompt": task.describe(examples.tokens[0].tolist()),
            }
        )
    if json:
        print_json({"vocabulary": task.vocab_size, "context": task.context, "capabilities": rows})
        return
    say(f"{kind}: {task.vocab_size} tokens, sequences of {task.context}")
    columns = ("capability", "family", "majority", "prompt")
    print_table(
        "",
        columns,
        [(r["capability"], r["family"], f"{r['chance'].get('majority', float('nan')):.2f}", r["prompt"]) for r in rows],
    )


@app.command()
def sample(
    kind: Kind,
    capability: Annotated[str, typer.Option(help="For instance count_a.")],
    n: Annotated[int, typer.Option(min=1, help="How many.")] = 5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    correlation: Annotated[
        str | None, typer.Option(metavar="PARTNER:OFFSET:SHARE", help="Spurious correlation, e.g. count_a:1:0.5.")
    ] = None,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Draw prompts with their answers and labels."""
    from workbench.examples import Correlation

    task = _task(kind, settings)
    relation = None
    if correlation:
        try:
            partner, offset, share = correlation.split(":")
            relation = Correlation(capability, partner, int(offset), float(share))
        except ValueError as error:
            raise UserError(f"--correlation {correlation!r} is not PARTNER:OFFSET:SHARE, such as count_a:1:0.5.") from error
    examples = task.capability(capability, relation).examples(n, seed)
    rows = [
        {
            "prompt": task.describe(examples.tokens[i].tolist()),
            "answer": task.describe(examples.answer[i].tolist()),
            "labels": {name: int(values[i]) for name, values in examples.labels.items()},
        }
        for i in range(n)
    ]
    if json:
        print_json(rows)
        return
    for row in rows:
        labels = " ".join(f"{name}={value}" for name, value in row["labels"].items())
        say(f"{row['prompt']}\n    answer {row['answer']}   {labels}")
