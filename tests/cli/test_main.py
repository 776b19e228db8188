from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import pytest

import workbench.cli
from workbench.cli import app, main
from workbench.errors import UserError

SLACK = float(os.environ.get("WORKBENCH_TEST_SLACK", "1"))
"""How many times slower than a quiet core this machine may be."""
COMMAND = [sys.executable, "-c", "from workbench.cli import main; main()"]


def test_help_comes_at_once():
    def seconds() -> float:
        started = time.perf_counter()
        done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True)
        assert "analyze" in done.stdout
        return time.perf_counter() - started

    assert statistics.median(seconds() for _ in range(5)) < 0.7 * SLACK


def test_help_imports_nothing_heavy():
    code = (
        "import sys, workbench.cli; print([m for m in ('torch', 'pandas', 'transformers', 'rich.table') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "words", [["study"], ["runs"], ["tasks"], ["study", "run"], ["runs", "verify"], ["analyze"], ["report"]]
)
def test_every_command_explains_itself(cli, words):
    said = cli(*words, "--help")
    assert said.code == 0
    assert "Usage" in said.out


@pytest.mark.parametrize(
    "words",
    [
        ["nope"],
        ["study", "nope"],
        ["study", "run"],
        ["study", "plan", "x", "--nope"],
        ["runs", "show"],
        ["analyze", "x", "--seed", "y"],
    ],
)
def test_a_call_that_cannot_be_is_no_success(cli, words):
    said = cli(*words)
    assert (said.code, said.out) == (2, "")
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("lr is 'x'; write a number"), 2, "error: lr is 'x'; write a number\n"),
        (KeyboardInterrupt(), 130, "stopped; finished work is kept, and the same command goes on from there.\n"),
        (SystemExit(3), 3, ""),
        (BrokenPipeError(), 141, ""),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_how_a_command_ends(monkeypatch, capsys, error, code, text, inside):
    """Raised within a command, where Typer sees it first, and outside of all."""

    def fail() -> None:
        raise error

    if inside and isinstance(error, BrokenPipeError):
        pytest.skip("Typer ends such a command with 1")
    if inside:
        monkeypatch.setattr(sys, "argv", ["workbench", "runs", "list"])
        monkeypatch.setattr("workbench.cli.runs.open_to_read", lambda path: fail())
    else:
        monkeypatch.setattr(workbench.cli, "app", fail)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code
    assert capsys.readouterr().err == text


def test_a_bug_is_not_called_bad_input(monkeypatch):
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(workbench.cli, "app", fail)
    with pytest.raises(ZeroDivisionError):
        main()


def test_the_script_is_this_function():
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="workbench")
    assert script.load() is main
    assert app.info.name == "workbench"
