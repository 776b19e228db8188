"""Commands of other packages, by entry points that these tests make up."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import calling
import pytest
import typer

import workbench.cli.contributed as contributed

sang: list[str] = []
app = typer.Typer(help="Songs of another package.", no_args_is_help=True)


@app.command()
def sing(song: str) -> None:
    """Sing one."""
    sang.append(song)


@app.command()
def hum() -> None:
    """Hum."""


@pytest.fixture
def call(monkeypatch, capsys):
    """`call(points, *words) -> (exit code, out, err)`."""

    def run(points, *words):
        made = [EntryPoint(name, value, contributed.GROUP) for name, value in points.items()]
        monkeypatch.setattr(contributed, "entry_points", lambda group: made if group == contributed.GROUP else [])
        return calling.call(monkeypatch, capsys, *words)

    return run


HERE = {"songs": f"{__name__}:app"}


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or sys.modules[sing.__module__])


def test_a_command_of_another_package_runs_and_stands_in_the_help(call):
    sang.clear()
    assert call(HERE, "songs", "sing", "la")[0] == 0
    assert sang == ["la"]
    out = call(HERE, "--help")[1]
    assert "songs" in out
    assert "Songs of another package." in out
    assert out.index("analyze") < out.index("songs")


def test_nothing_of_another_package_is_imported_for_our_own_commands(call):
    code, out, _ = call({"songs": "no_such_module_at_all:app"}, "tasks", "list")
    assert code == 0
    assert "tasks: " in out


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_module_at_all:app", "No module named 'no_such_module_at_all'"),
        (f"{__name__}:sang", "is a list and no typer.Typer"),
    ],
)
def test_a_broken_package_is_a_sentence_and_harms_no_help(call, value, reason):
    code, out, err = call({"songs": value}, "songs", "sing", "--loud")
    assert (code, out) == (2, "")
    assert err.startswith("error: the command 'songs' cannot be loaded (")
    assert reason in err
    assert err.count("\n") == 1
    code, out, _ = call({"songs": value}, "--help")
    assert code == 0
    assert "Cannot be loaded" in out


def test_our_own_commands_cannot_be_replaced(call):
    code, out, _ = call({"tasks": "no_such_module_at_all:app"}, "tasks", "list")
    assert code == 0
    assert "tasks: " in out
