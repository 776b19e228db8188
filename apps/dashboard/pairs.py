"""Pages about one pair: its pickers, one analysis with all that stands under it, and a page for a group of analyses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from apps.dashboard import parts, reading
from workbench.figures import words
from workbench.registry import GROUPS, analyses
from workbench.report import python_code
from workbench.studies.handle import Study

POOLED = "all seeds"


def pickers(names: Sequence[str] | None = None, pooled: bool = True) -> tuple[Study, str, int | None] | None:
    """Study, pair and seed; None when there is nothing to pick.

    Args:
        names: the studies to pick from; all where not given.
        pooled: whether all seeds together can be picked.
    """
    names = reading.store().studies() if names is None else names
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
        seed = parts.pick("Seed", [*[POOLED] * pooled, *map(str, study.spec.seeds)], "seed")
    return study, pair, None if seed == POOLED else int(seed)


def analysis(study: Study, pair: str, name: str, seed: int | None, mark: str) -> None:
    """One analysis, else one with settings of its own, or how to get it."""
    result, settings = reading.result(study.name, pair, name, seed, mark), ""
    if result is None and (others := reading.variants(study.name, pair, name, seed, mark)):
        settings = st.selectbox("Settings (not the defaults: no verdict rests on it)", list(others), key=f"settings-{name}")
        result = others[settings]
    if result is None:
        st.info(f"{words.title(name).capitalize()} is not done yet for this pair.", icon=":material/hourglass_empty:")
        of_study = name in study.spec.analyses
        st.caption(parts.plain(analyses[study.spec.analysis(name)[0] if of_study else name].summary))
        followed = "logit_lens --along finetune" if name == "along" else name
        command = f"study run {study.name}" if of_study else f"analyze {study.name}:{pair} --with {followed}"
        st.code(f"workbench {command} --store {study.store.root}", language="bash")
        return
    missing = sorted(set(study.spec.seeds) - set(words.seeds(result))) if seed is None else []
    if missing:
        st.warning(f"Not all seeds yet; to be done: {words.listed(missing)}.", icon=":material/hourglass_empty:")
    which = POOLED.replace(" ", "_") if seed is None else f"s{seed}"
    parts.figure_block(
        result, f"{study.name}-{pair}-{name}-{which}", python_code(study.store.root, study.name, pair, name, seed, settings)
    )


def tabs(study: Study, pair: str, names: Sequence[str], seed: int | None, mark: str) -> None:
    """Analyses, one to a tab; only the open one is drawn."""
    titles = [words.title(name).capitalize() for name in names]
    for name, tab in zip(names, st.tabs(titles, key="analysis", on_change="rerun"), strict=True):
        if tab.open:
            with tab, parts.seam(name):
                analysis(study, pair, name, seed, mark)


def group_page(group: str, below: Callable[[Study, str, int | None, str], None] = lambda study, pair, seed, mark: None) -> None:
    """All analyses of a group on one pair; `below` adds what a page has of its own, given study, pair, seed and the store's mark."""
    title, _, about = GROUPS[group].partition(": ")
    with parts.seam(title):
        st.title(title)
        st.caption(f"{about[:1].upper()}{about[1:]}")
        chosen = pickers()
        if chosen is None:
            return
        study, pair, seed = chosen
        of_group = {entry.name for entry in analyses.entries().values() if entry.group == group}
        of_study = [name for name in study.spec.analyses if study.spec.analysis(name)[0] in of_group]
        names = list(dict.fromkeys([*of_study, *sorted(of_group)]))
        if not names:
            st.info("No analysis of this group is installed.", icon=":material/info:")
            return
        mark = reading.mark()
        tabs(study, pair, names, seed, mark)
        below(study, pair, seed, mark)
