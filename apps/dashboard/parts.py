"""Parts that pages share: pickers bound to the address, the figure with all that stands under it, cards and states."""

from __future__ import annotations

import io
import re
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Literal

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from workbench import card
from workbench.errors import UserError
from workbench.figures import alt, figure, words
from workbench.figures.lineage import state
from workbench.results import Metric, Result
from workbench.runs import Run
from workbench.verdict import Class, Verdict

COLORS: dict[str, Literal["green", "orange", "blue", "gray", "violet"]] = {
    "masked": "green",
    "erased": "orange",
    "learned": "blue",
    "untouched": "gray",
    "altered": "violet",
    "inconclusive": "gray",
}
ICONS: dict[Class, str] = {
    "masked": ":material/visibility_off:",
    "erased": ":material/ink_eraser:",
    "learned": ":material/school:",
    "untouched": ":material/check:",
    "altered": ":material/change_circle:",
    "inconclusive": ":material/help:",
}
_MARKS = re.compile(r"([\\`*_{}\[\]()#+\-.!|~$:<>])")


def plain(text: object) -> str:
    """Text from a file as Markdown that shows it letter by letter."""
    return _MARKS.sub(r"\\\1", str(text)).replace("\n", " ")


@contextmanager
def seam(page: str) -> Generator[None]:
    """Whatever goes wrong in a page becomes a sentence with the details below it; other pages are not touched."""
    try:
        yield
    except UserError as error:
        st.error(plain(error), icon=":material/error:")
    except Exception as error:
        st.error(f"The page {plain(page)} could not be shown: {plain(error) or type(error).__name__}", icon=":material/error:")
        st.caption("Other pages still work. `workbench runs verify` looks for damaged files in the store.")
        with st.expander("Details"):
            st.code("".join(traceback.format_exception(error)), language="text")


def empty(root: object) -> None:
    """A store without runs: what is missing, and the one command that makes it."""
    st.info("There are no runs yet, so there is nothing to show.", icon=":material/science:")
    st.markdown("This makes the first study, verdicts and report included, in a few minutes and without a network:")
    st.code("make demo", language="bash")
    st.caption(f"The store is {plain(root)}. To look at another one: `workbench app --store FOLDER`.")


def pick(label: str, options: Sequence[str], key: str) -> str:
    """A selectbox that the address knows; an address that names something else gets a kind answer.

    The address holds what is shown, so options are stable names.
    """
    asked = st.query_params.get(key)
    if asked is not None and asked not in options:
        near = get_close_matches(asked, options, n=3, cutoff=0.3)
        hint = f" Nearest: {', '.join(plain(name) for name in near)}." if near else ""
        st.warning(f"This {label.lower()} is not here: {plain(asked)}.{hint}", icon=":material/link_off:")
    if st.session_state.get(key) not in options:
        st.session_state.pop(key, None)
    return st.selectbox(label, options, key=key, bind="query-params")


def verdict_card(study: str, verdict: Verdict, link: str | None = None) -> None:
    """One verdict with its reason and its lines of evidence."""
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{plain(verdict.pair)}**: {plain(words.capability(verdict.capability))}")
            st.badge(verdict.verdict, color=COLORS[verdict.verdict], icon=ICONS[verdict.verdict])
        seeds = f"seeds {words.listed(verdict.seeds)}" if verdict.seeds else "no seed done yet"
        st.caption(f"{plain(words.VERDICTS[verdict.verdict])}; {seeds}")
        st.markdown(plain(verdict.reason[:1].upper() + verdict.reason[1:]))
        found = card.lines(verdict)
        rest = [line for line in found if line.analysis not in card.LINES]
        st.markdown(evidence_table([line for line in found if line not in rest]))
        if rest:
            with st.expander(f"{len(rest)} more line{'s' if len(rest) > 1 else ''}", icon=":material/more_horiz:"):
                st.markdown(evidence_table(rest))
        with st.expander("What each line says", icon=":material/balance:"):
            said = [f"- **{plain(line.title)}**: {plain(line.evidence.text)}" for line in found if line.evidence]
            st.markdown("\n".join(said) or "Nothing has been measured yet.")
        with st.expander("Quote this verdict", icon=":material/format_quote:"):
            st.code(card.quote(verdict), language=None, wrap_lines=True)
        if link:
            where = {"study": study, "pair": verdict.pair}
            st.page_link(link, label="Figures of this pair", icon=":material/monitoring:", query_params=where)


def evidence_table(lines: Sequence[card.Line]) -> str:
    """Lines of the evidence card as a Markdown table: a line per analysis with its number, n and the way it points."""
    rows = ["| evidence | number [95 % interval] | n | points to |", "| --- | --- | --- | --- |"]
    for line in lines:
        if line.evidence is None:
            rows.append(f"| :gray[{plain(line.title)}] | | | :gray[not run] |")
        else:
            colour = COLORS.get(line.evidence.direction, "gray")
            points = line.points.removeprefix("points to ")
            rows.append(f"| {plain(line.title)} | {plain(line.number)} | {line.texts} | :{colour}[{plain(points)}] |")
    return "\n".join(rows)


def headline(metrics: Sequence[Metric]) -> pd.DataFrame:
    """Headline numbers as a table for people."""
    rows = [(words.metric(m.metric), words.interval(m), m.n, m.seeds, m.unit) for m in metrics]
    return pd.DataFrame(rows, columns=["number", "value [95 % interval]", "n", "seeds", "unit"])


def show_figure(fig: go.Figure, said: str, key: str) -> None:
    """A figure with its text for those who do not see it."""
    st.plotly_chart(fig, key=key, alt=said, config={"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d"]})


def figure_block(result: Result, key: str, python: str) -> None:
    """A result: figure, numbers in a sentence, tables, limits, downloads and the Python that makes it."""
    fig, said = figure(result), alt(result)
    show_figure(fig, said, f"{key}-figure")
    st.caption(plain(said))
    for line in result.evidence:
        st.markdown(f"{plain(line.text)} :gray[({words.DIRECTIONS[line.direction]})]")
    with st.expander("Numbers", icon=":material/123:"):
        st.dataframe(headline(result.headline), hide_index=True, key=f"{key}-headline", alt=f"Headline numbers. {said}")
    with st.expander("Table", icon=":material/table:"):
        name = st.selectbox("Table", sorted(result.tables, key=lambda t: (t != "table", t)), key=f"{key}-which")
        table = result.tables[name]
        st.dataframe(table, hide_index=True, key=f"{key}-table", alt=f"Table {name} of {result.name}, {len(table)} rows")
        downloads_of_table(table, f"{key}-{name}")
    with st.expander("Limits: what this does not show", icon=":material/warning:"):
        st.markdown("\n".join(f"- {plain(limit)}" for limit in result.limits) or "None are stated.")
    with st.expander("Copy as Python", icon=":material/code:"):
        st.code(python, language="python")
    with st.container(horizontal=True):
        downloads_of_table(result.table, key, tables=False)
        st.download_button(
            "Figure (HTML)",
            data=lambda: fig.to_html(include_plotlyjs=True),
            file_name=f"{key}.html",
            mime="text/html",
            key=f"{key}-html",
            on_click="ignore",
            icon=":material/download:",
        )
        st.download_button(
            "Figure (JSON)",
            data=lambda: str(fig.to_json()),
            file_name=f"{key}.json",
            mime="application/json",
            key=f"{key}-json",
            on_click="ignore",
            icon=":material/download:",
        )


def downloads_of_table(table: pd.DataFrame, key: str, *, tables: bool = True) -> None:
    """Buttons for a table as CSV and parquet; made when clicked, not before."""

    def parquet() -> bytes:
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        return buffer.getvalue()

    place = "inside" if tables else "main"
    st.download_button(
        "CSV",
        data=lambda: table.to_csv(index=False),
        file_name=f"{key}.csv",
        mime="text/csv",
        key=f"{key}-{place}-csv",
        on_click="ignore",
        icon=":material/download:",
    )
    st.download_button(
        "Parquet",
        data=parquet,
        file_name=f"{key}.parquet",
        mime="application/vnd.apache.parquet",
        key=f"{key}-{place}-parquet",
        on_click="ignore",
        icon=":material/download:",
    )


def state_card(run: Run) -> None:
    """How a run ended, and for one that did not end well the command that mends it."""
    word, reason = state(run), plain(run.damaged or run.status.get("reason") or "no reason was recorded")
    again = f"workbench study run {run.study}"
    if word == "done":
        st.success("Done.", icon=":material/check_circle:")
    elif word == "running":
        st.info(f"Running: {plain(run.status.get('reason') or 'at work')}", icon=":material/progress_activity:")
    elif word == "damaged":
        st.error(f"Damaged: {reason}", icon=":material/broken_image:")
        st.caption("Other runs can still be read. To make this one again, with what was made from it:")
        st.code(f"workbench runs remove {run.name} --with-children\n{again}", language="bash")
    else:
        st.warning(f"{word.capitalize()}: {reason}", icon=":material/error:")
        st.caption("The same command goes on from the last checkpoint, and does nothing that is done:")
        st.code(again, language="bash")
