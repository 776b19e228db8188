"""What was found: verdicts, studies with their progress, and every run."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from apps.dashboard import parts, reading
from workbench.figures import lineage, words
from workbench.runs import Run
from workbench.studies.handle import Study

MOST_NODES = 200  # runs that one picture of the graph can hold
EVERY_SEED = "all seeds"


def findings(mark: str, opened: dict[str, Study]) -> None:
    """Verdicts of every study, the finding first."""
    for name in opened:
        with parts.seam(name):
            finding(name, mark)


def finding(name: str, mark: str) -> None:
    """Verdicts of one study."""
    verdicts = reading.verdicts(name, mark)
    told = [f"{words.capability(v.capability)} is {v.verdict} in {v.pair}" for v in verdicts if v.evidence]
    st.subheader(parts.plain(name), divider="gray")
    st.markdown(parts.plain(f"{'; '.join(told)}." if told else "No pair has been analysed yet."))
    grid = st.grid(2, min_column_width=380)
    for verdict in verdicts:
        with grid.container():
            parts.verdict_card(name, verdict, "app_pages/study.py")


def studies(opened: dict[str, Study], closed: dict[str, str], runs: tuple[Run, ...]) -> None:
    """A row per study."""
    rows: list[dict[str, object]] = []
    for name, study in opened.items():
        done, total = reading.progress(study, runs)
        seeds = words.listed(study.spec.seeds)
        rows.append(
            {
                "study": name,
                "progress": done / max(1, total),
                "done": f"{done} of {total}",
                "seeds": seeds,
                "note": study.spec.note,
            }
        )
    for name, reason in closed.items():
        held = sum(run.study == name for run in runs)
        rows.append({"study": name, "progress": None, "done": f"{held} runs", "seeds": "", "note": reason})
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        key="studies",
        alt=f"{len(rows)} studies with their progress",
        column_config={"progress": st.column_config.ProgressColumn("progress", min_value=0.0, max_value=1.0, format="percent")},
    )


def graph(runs: tuple[Run, ...]) -> None:
    """The runs of one study and seed as a graph: seeds share nothing, so each is a graph of its own."""
    names = sorted({run.study for run in runs})
    left, right = st.columns(2)
    with left:
        chosen = parts.pick("Study", names, "lineage") if len(names) > 1 else names[0]
    of_study = [run for run in runs if run.study == chosen]
    seeds = [str(seed) for seed in sorted({run.seed for run in of_study if run.seed is not None})]
    with right if len(names) > 1 else left:
        seed = parts.pick("Seed", [*seeds, EVERY_SEED], "lineage-seed") if len(seeds) > 1 else EVERY_SEED
    # A damaged run may not know its seed any more; it is shown with every seed.
    mine = [run for run in of_study if seed == EVERY_SEED or run.seed is None or str(run.seed) == seed]
    # Damaged and failed runs are what people look for, so they are never among those left out.
    shown = with_parents(sorted(mine, key=lambda run: run.done)[:MOST_NODES], runs)
    parts.show_figure(lineage.graph(shown), lineage.alt(shown), "lineage-graph")
    if len(mine) > MOST_NODES:
        st.caption(f"{MOST_NODES} of {len(mine):,} runs are drawn; the table holds all.")


def with_parents(mine: list[Run], runs: tuple[Run, ...]) -> list[Run]:
    """These runs and all that they were made from, which another study may have run."""
    of_key = {run.key: run for run in runs}
    found = {run.key: run for run in mine}
    new = mine
    while new:
        new = [of_key[key] for run in new for key in run.parents if key in of_key and key not in found]
        found |= {run.key: run for run in new}
    return list(found.values())


def table(runs: tuple[Run, ...]) -> None:
    """Every run, those that need attention first."""
    order = {"damaged": 0, "failed": 1, "interrupted": 2, "running": 3}
    rows = [
        {
            "run": f"run?run={run.name}",
            "state": lineage.state(run),
            "reason": run.damaged or run.status.get("reason") or "",
            "study": run.study,
            "kind": lineage.KINDS.get(run.kind, run.kind or "unknown"),
            "seed": run.seed,
            "step": run.status.get("step"),
            "steps": run.status.get("steps"),
            "seconds": run.status.get("seconds"),
            "updated": str(run.status.get("updated") or "")[:19].replace("T", " "),
        }
        for run in sorted(runs, key=lambda run: order.get(lineage.state(run), 4))
    ]
    st.dataframe(
        pd.DataFrame(rows).astype({"seed": "Int64", "step": "Int64", "steps": "Int64"}),
        hide_index=True,
        key="runs",
        alt=lineage.alt(runs),
        column_config={
            "run": st.column_config.LinkColumn("run", display_text=r"run\?run=(.*)", width=280),
            "reason": st.column_config.TextColumn("reason", width="medium"),
            "seconds": st.column_config.NumberColumn("seconds", format="%.1f"),
        },
    )


def main() -> None:
    """The page."""
    st.title("Overview")
    mark = reading.mark()
    runs = reading.runs(mark)
    if not runs:
        parts.empty(reading.store().root)
        return
    found = {name: reading.study(name) for name in reading.store().studies()}
    opened = {name: study for name, study in found.items() if isinstance(study, Study)}
    closed = {name: study for name, study in found.items() if isinstance(study, str)}
    bad = sum(run.damaged is not None for run in runs)
    if bad:
        st.warning(
            f"{bad} run{'s are' if bad > 1 else ' is'} damaged; the table of runs says why.", icon=":material/broken_image:"
        )
    findings(mark, opened)
    st.subheader("Studies", divider="gray")
    studies(opened, closed, runs)
    st.subheader("What was made from what", divider="gray")
    graph(runs)
    st.subheader(f"Runs ({len(runs):,})", divider="gray")
    table(runs)


with parts.seam("Overview"):
    main()
