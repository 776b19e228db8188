"""Labs that were run: each with its expectations, its figure and all that stands under a figure, or how to run it."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from apps.dashboard import parts, reading
from workbench.figures import words
from workbench.lab import kept_results
from workbench.registry import labs
from workbench.results import Result

HELD = {"yes": ":green[held]", "no": ":orange[did not hold]", "open": ":gray[open]"}


def section(names: Sequence[str]) -> None:
    """Labs by name, one to a tab; only the open one is drawn."""
    titles = [words.title(name).capitalize() for name in names]
    for name, tab in zip(names, st.tabs(titles, key="lab", on_change="rerun"), strict=True):
        if tab.open:
            with tab, parts.seam(name):
                one(name)


def one(name: str) -> None:
    """The newest result of a lab; older ones, with other settings, can be picked."""
    entry = labs[name]
    st.caption(parts.plain(entry.summary))
    found = kept_results(reading.store(), name)
    if not found:
        st.info(f"{words.title(name).capitalize()} was not run yet.", icon=":material/science:")
        st.code(f"workbench lab {name} --store {reading.store().root}", language="bash")
        return
    folders = list(found)
    folder = folders[0]
    if len(folders) > 1:
        folder = st.selectbox("Settings", folders, format_func=lambda f: _settings(found[f]), key=f"{name}-of") or folder
    result = found[folder]
    if "expectations" in result.tables:
        st.markdown(expected(result.tables["expectations"]))
    parts.figure_block(result, f"lab-{folder.name}", _python(result))


def expected(table: pd.DataFrame) -> str:
    """What was expected beside what was measured, as a Markdown table."""
    rows = ["| expected before looking | range | measured [95 %] | |", "| --- | --- | --- | --- |"]
    for line in table.to_dict("records"):
        low, high = (f"{line[end]:.3g}" for end in ("low", "high"))
        known = line["low"] == line["low"]
        value = f"{line['value']:.3g}" + (f" [{low}, {high}]" if known else "")
        expected = _range(line["expected_low"], line["expected_high"])
        rows.append(f"| {parts.plain(line['says'])} | {expected} | {value} | {HELD[line['held']]} |")
    return "\n".join(rows)


def _range(low: float, high: float) -> str:
    if low == float("-inf"):
        return f"at most {high:g}"
    return f"at least {low:g}" if high == float("inf") else f"{low:g} to {high:g}"


def _settings(result: Result) -> str:
    return ", ".join(f"{name} {value}" for name, value in result.settings.items())


def _python(result: Result) -> str:
    given = ", ".join(f"{name}={value!r}" for name, value in result.settings.items())
    return f"import workbench as wb\n\nresult = wb.labs.{result.name}({given})\nresult"
