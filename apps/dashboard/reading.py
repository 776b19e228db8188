"""Cached reads of the store, each keyed by where it lies and when it last changed; nothing is computed here."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import streamlit as st

from workbench.errors import UserError
from workbench.results import Result
from workbench.run_records import PROVENANCE, SPEC, STATUS
from workbench.runs import Run, Store
from workbench.studies.handle import STUDY_FILE, Study
from workbench.verdict import Verdict


def store() -> Store:
    """The store that is shown: the one of `WORKBENCH_HOME`, else `runs/`."""
    return Store.default()


def mark() -> str:
    """Changes whenever a run or study of the store does; looks at times of files, opens none."""
    found = hashlib.sha256(str(store().root).encode())
    for folder in store().folders():
        for name in ("", SPEC, PROVENANCE, STATUS):
            try:
                found.update(f"{folder.name}/{name}:{os.stat(folder.path / name).st_mtime_ns};".encode())
            except OSError:
                found.update(f"{folder.name}/{name}:-;".encode())
    for study in store().studies():
        found.update(f"{study}:{_changed(store().root / study / STUDY_FILE)};".encode())
    return found.hexdigest()


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def runs(mark: str) -> tuple[Run, ...]:
    """All runs, damaged ones included."""
    return _runs(str(store().root), mark)


# A resource, not data: runs are frozen, and a thousand of them are not copied on every rerun. A run that is killed
# changes no file, so what was read is believed for seconds only.
@st.cache_resource(max_entries=2, ttl=20, show_spinner="Reading the runs")
def _runs(root: str, mark: str) -> tuple[Run, ...]:
    return tuple(Store(Path(root)).runs())


def study(name: str) -> Study | str:
    """A study of the store, or the sentence why it cannot be opened."""
    return _study(str(store().root), name, _changed(store().root / name / STUDY_FILE))


@st.cache_resource(max_entries=64, show_spinner="Opening the study")
def _study(root: str, name: str, changed: int) -> Study | str:
    try:
        opened = Study.open(Store(Path(root)), name)
        opened.plan.stages  # noqa: B018  # a study whose task is gone is found out here
    except UserError as error:
        return str(error)
    return opened


def _open(root: str, name: str) -> Study:
    """The study whose plan is made already; only callers that have opened it come here."""
    opened = _study(root, name, _changed(Path(root) / name / STUDY_FILE))
    if isinstance(opened, str):
        raise UserError(opened)
    return opened


def progress(opened: Study, runs: tuple[Run, ...]) -> tuple[int, int]:
    """`(stages done, stages)` of a study."""
    done = {run.key for run in runs if run.done}
    return sum(stage.key in done for stage in opened.plan.stages), len(opened.plan.stages)


def verdicts(name: str, mark: str) -> tuple[Verdict, ...]:
    """The verdicts of a study that can be opened."""
    return _verdicts(str(store().root), name, mark)


@st.cache_data(max_entries=64, show_spinner="Weighing the evidence")
def _verdicts(root: str, name: str, mark: str) -> tuple[Verdict, ...]:
    return tuple(_open(root, name).verdicts())


@st.cache_data(max_entries=32, max_size="500MiB", show_spinner="Reading the results")
def _variants(root: str, name: str, pair: str, analysis: str, seed: int | None, mark: str) -> dict[str, Result]:
    return _open(root, name).variants(pair, analysis, seed)


def variants(name: str, pair: str, analysis: str, seed: int | None, mark: str) -> dict[str, Result]:
    """Results with settings of their own, by these settings, the newest first."""
    return _variants(str(store().root), name, pair, analysis, seed, mark)


def result(name: str, pair: str, analysis: str, seed: int | None, mark: str) -> Result | None:
    """The result of an analysis on a pair, pooled over seeds or of one; None when nothing is done."""
    return _result(str(store().root), name, pair, analysis, seed, mark)


@st.cache_data(max_entries=128, max_size="500MiB", show_spinner="Reading the result")
def _result(root: str, name: str, pair: str, analysis: str, seed: int | None, mark: str) -> Result | None:
    return _open(root, name).result(pair, analysis, seed)
