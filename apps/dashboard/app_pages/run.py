"""One run: how it ended, what it was told to do, what it measured, and what it left on disk."""

from __future__ import annotations

import json

import pandas as pd
import streamlit as st
import yaml

from apps.dashboard import parts, reading
from workbench.figures import curves, lineage
from workbench.files import folder_bytes
from workbench.report import run_code
from workbench.runs import Run

PARAMETER = "run"


def pick(runs: tuple[Run, ...]) -> Run:
    """The run that the address or the person names; the address may hold the key alone."""
    named = {run.name: run for run in runs}
    asked = st.query_params.get(PARAMETER)
    if asked and asked not in named:
        found = [name for name, run in named.items() if asked in (run.key, f"{run.stage}-{run.key}")]
        if found:
            st.session_state[PARAMETER] = found[0]
            st.query_params.pop(PARAMETER, None)
    return named[parts.pick("Run", sorted(named), PARAMETER)]


def relatives(run: Run, runs: tuple[Run, ...]) -> None:
    """Links to what it was made from and what was made from it."""
    parents = [other for other in runs if other.key in run.parents]
    children = [other for other in runs if run.key in other.parents]
    for title, others in (("Made from", parents), ("Made from it", children)):
        if others:
            with st.expander(f"{title} ({len(others)})", icon=":material/account_tree:"):
                for other in others[:40]:
                    name = other.name
                    label = f"{parts.plain(name)} ({lineage.state(other)})"
                    st.page_link("app_pages/run.py", label=label, query_params={PARAMETER: name})


def checkpoints(run: Run) -> None:
    """Steps and sizes."""
    found = run.checkpoints
    if not found:
        return
    table = pd.DataFrame({"step": [c.step for c in found], "size in kB": [folder_bytes(c.path) / 1e3 for c in found]})
    st.subheader(f"Checkpoints ({len(found)})", divider="gray")
    size = st.column_config.NumberColumn(format="%,.0f")
    st.dataframe(table, hide_index=True, key="checkpoints", alt=f"{len(found)} checkpoints", column_config={"size in kB": size})


def measured(run: Run) -> None:
    """Training curves, or the result of an analysis; each may be damaged without hiding the other."""
    if (run.path / "metrics.parquet").exists():
        with parts.seam("training curves"):
            frame = run.metrics()
            parts.show_figure(curves.metrics(frame), curves.alt(frame), f"{run.key}-metrics")
            with st.expander("Table", icon=":material/table:"):
                st.dataframe(frame, hide_index=True, key=f"{run.key}-rows", alt=f"Metrics, {len(frame)} rows")
                parts.downloads_of_table(frame, f"{run.stage}-{run.key}-metrics")
    if (run.path / "result.json").exists():
        with parts.seam("result"):
            result = run.result()
            parts.figure_block(result, f"{run.stage}-{run.key}", run_code(reading.store().root, run.name))


def main() -> None:
    """The page."""
    st.title("Run")
    runs = reading.runs(reading.mark())
    if not runs:
        parts.empty(reading.store().root)
        return
    run = pick(runs)
    parts.state_card(run)
    with st.container(horizontal=True):
        st.metric("Kind", lineage.KINDS.get(run.kind, run.kind or "unknown"), border=True)
        st.metric("Seed", "none" if run.seed is None else run.seed, border=True)
        done, steps = run.status.get("step"), run.status.get("steps")
        st.metric("Steps", "none" if steps is None else f"{done:,} of {steps:,}", border=True)
        st.metric("Seconds", f"{float(run.status.get('seconds') or 0):,.1f}", border=True)
        st.metric("On disk", f"{run.bytes / 1e6:,.2f} MB", border=True)
    measured(run)
    checkpoints(run)
    st.subheader("How it was made", divider="gray")
    relatives(run, runs)
    with st.expander("Spec", icon=":material/description:"):
        st.code(yaml.safe_dump(dict(run.spec), sort_keys=False, allow_unicode=True), language="yaml")
    with st.expander("Provenance", icon=":material/fingerprint:"):
        st.code(json.dumps(dict(run.provenance), indent=1, default=str), language="json")
    st.caption(f"{parts.plain(run.name)} in {parts.plain(reading.store().root)}")


with parts.seam("Run"):
    main()
