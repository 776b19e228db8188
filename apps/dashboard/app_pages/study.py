"""One pair of a study: its verdicts, and every analysis of the study with its figure, tables and limits."""

from __future__ import annotations

import streamlit as st

from apps.dashboard import pairs, parts, reading
from workbench.figures import words
from workbench.registry import analyses


def main() -> None:
    """The page."""
    st.title("Study")
    mark = reading.mark()
    chosen = pairs.pickers()
    if chosen is None:
        return
    study, pair, seed = chosen
    if study.spec.note:
        st.caption(parts.plain(study.spec.note))
    grid = st.grid(2, min_column_width=380)
    for verdict in reading.verdicts(study.name, mark):
        if verdict.pair == pair:
            with grid.container():
                parts.verdict_card(study.name, verdict)
    # What was run beside the study has its place here too, where no other page shows it.
    beside = [n for n, entry in analyses.entries().items() if entry.group == "evidence"]
    names = list(dict.fromkeys([*study.spec.analyses, *beside]))
    if st.toggle("Side by side", key="side", bind="query-params", help="All analyses in two columns, for comparing."):
        names = list(study.spec.analyses)
        for start in range(0, len(names), 2):  # by rows, so that reading aloud follows the order of the study
            for name, column in zip(names[start : start + 2], st.columns(2, gap="large"), strict=False):
                with column, parts.seam(name):
                    st.subheader(words.title(name).capitalize(), divider="gray")
                    pairs.analysis(study, pair, name, seed, mark)
        return
    pairs.tabs(study, pair, names, seed, mark)


with parts.seam("Study"):
    main()
