"""One pair of a study: its verdicts, and every analysis with its figure, tables and limits."""

from __future__ import annotations

import streamlit as st

from apps.dashboard import parts, reading
from workbench.report import python_code
from workbench.studies.handle import Study

POOLED = "all seeds"


def said(name: str) -> str:
    """An analysis' name in the study as a heading."""
    return name.replace("_", " ").capitalize()


def pickers() -> tuple[Study, str, int | None] | None:
    """Study, pair and seed; None when there is nothing to pick."""
    names = reading.store().studies()
    if not names:
        parts.empty(reading.store().root)
        return None
    left, middle, right = st.columns(3)
    with left:
        name = parts.pick("Study", names, "study")
    study = reading.study(name)
    if isinstance(study, str):
        st.error(parts.plain(study), icon=":material/error:")
        return None
    if not study.pair_names:
        st.info("This study has no fine-tuned model, so there is no pair to look at.", icon=":material/info:")
        return None
    with middle:
        pair = parts.pick("Pair", study.pair_names, "pair")
    with right:
        seed = parts.pick("Seed", [POOLED, *map(str, study.spec.seeds)], "seed")
    return study, pair, None if seed == POOLED else int(seed)


def analysis(study: Study, pair: str, name: str, seed: int | None, mark: str) -> None:
    """One analysis, or how to get it."""
    result = reading.result(study.name, pair, name, seed, mark)
    if result is None:
        st.info(f"{said(name)} is not done yet for this pair.", icon=":material/hourglass_empty:")
        st.code(f"workbench study run {study.name}", language="bash")
        return
    which = POOLED.replace(" ", "_") if seed is None else f"s{seed}"
    parts.figure_block(
        result, f"{study.name}-{pair}-{name}-{which}", python_code(study.store.root, study.name, pair, name, seed)
    )


def main() -> None:
    """The page."""
    st.title("Study")
    mark = reading.mark()
    chosen = pickers()
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
    names = list(study.spec.analyses)
    if not names:
        st.info("This study names no analyses.", icon=":material/info:")
        return
    if st.toggle("Side by side", key="side", bind="query-params", help="All analyses in two columns, for comparing."):
        for start in range(0, len(names), 2):  # by rows, so that reading aloud follows the order of the study
            for name, column in zip(names[start : start + 2], st.columns(2, gap="large"), strict=False):
                with column, parts.seam(name):
                    st.subheader(said(name), divider="gray")
                    analysis(study, pair, name, seed, mark)
        return
    for name, tab in zip(names, st.tabs([said(n) for n in names], key="analysis", on_change="rerun"), strict=True):
        if tab.open:
            with tab, parts.seam(name):
                analysis(study, pair, name, seed, mark)


with parts.seam("Study"):
    main()
