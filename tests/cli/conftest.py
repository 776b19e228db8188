from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import calling
import pytest
from studies.tiny import TINY, run_once

from workbench.runs import Store
from workbench.studies.handle import Study


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The tiny study with all its stages done; tests read it and leave it as it is."""
    return run_once(tmp_path_factory, TINY)


@pytest.fixture
def copied(whole: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The done study in a store of its own, which is the default one of the command line."""
    shutil.copytree(whole.store.root, tmp_path / "runs")
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "runs"))
    return Study(whole.spec, Store(tmp_path / "runs"))


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Strict JSON, and nothing else, on standard output; on the other at most what it will take."""
        assert self.code in (0, 2)
        assert all(line.endswith(" of memory") for line in self.err.splitlines())
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    @property
    def sentence(self) -> str:
        """The one sentence of bad input."""
        assert self.code == 2
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        return self.err.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def cli(
    whole: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """`cli("runs", "list", ...)` in this process, in a folder of its own; the default store is the tiny study's."""
    (tmp_path / "here").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "here")
    if not (tmp_path / "runs").exists():  # else `copied` has set it
        monkeypatch.setenv("WORKBENCH_HOME", str(whole.store.root))

    def call(*words: str | Path) -> Said:
        return Said(*calling.call(monkeypatch, capsys, *words))

    return call
