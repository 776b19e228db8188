"""The command line: `workbench NOUN VERB`; heavy packages are imported by the command that needs them."""

from __future__ import annotations

import sys

import typer

from workbench.cli import analyze, apps, export, lab, reproduce, runs, spectrum, study, tasks
from workbench.cli.contributed import Commands
from workbench.errors import UserError

app = typer.Typer(
    name="workbench",
    cls=Commands,
    help="What did fine-tuning change inside this model, and how cheaply does the old ability come back?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(study.app, name="study")
app.add_typer(runs.app, name="runs")
app.add_typer(tasks.app, name="tasks")
app.command("analyze")(analyze.analyze)
app.command("export")(export.export)
app.command("reproduce")(reproduce.reproduce)
app.command("spectrum")(spectrum.spectrum)
app.command("lab")(lab.lab)
app.command("report")(apps.report)
app.command("app")(apps.dashboard)


def main() -> None:
    """Run a command: bad input is one sentence on standard error and exit code 2; Ctrl-C is exit code 130."""
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:  # Typer turns Ctrl-C into this code without a word
            raise
        sys.stderr.write("stopped; finished work is kept, and the same command goes on from there.\n")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
