"""`workbench report` and `workbench app`."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.common import StorePath, open_store, say


def report(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A study of the store.")],
    out: Annotated[Path | None, typer.Option(help="File to write; report.html in the study's folder when absent.")] = None,
    store: StorePath = None,
) -> None:
    """Write one self-contained HTML page with every figure, table and verdict of a study."""
    from workbench.cli.study import known_study
    from workbench.report import write_report

    opened = known_study(study, store)
    say(str(write_report(opened, out or opened.store.root / opened.name / "report.html")))


def dashboard(
    port: Annotated[int, typer.Option(min=1024, max=65535)] = 8501,
    store: StorePath = None,
) -> None:
    """Open the dashboard on this machine (localhost only)."""
    # By name: the workbench does not know its applications, it starts what is installed.
    command, environment = import_module("apps.dashboard.serve").command(open_store(store).root, port)
    say(f"dashboard on http://localhost:{port}  (Ctrl-C ends it)")
    sys.exit(subprocess.run(command, env=environment, check=False).returncode)
