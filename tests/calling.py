"""The command line, called in this process."""

from __future__ import annotations

import sys
from typing import NamedTuple

import pytest

from workbench.cli import main


class Said(NamedTuple):
    code: int
    out: str
    err: str


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> Said:
    """What `workbench WORDS` prints, and its exit code."""
    monkeypatch.setattr(sys, "argv", ["workbench", *map(str, words)])
    capsys.readouterr()
    try:
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr()
    return Said(code, said.out, said.err)
