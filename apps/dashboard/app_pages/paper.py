"""The paper, claim by claim: what it says, what this machine measured, and every figure and table redone so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from apps.dashboard import parts, reading
from workbench.figures import words
from workbench.figures.tables import select
from workbench.paper.catalogue import reproductions
from workbench.results import Result

AGREES = {
    "yes": ("green", ":material/check_circle:"),
    "partly": ("orange", ":material/contrast:"),
    "no": ("red", ":material/cancel:"),
    "unclear": ("gray", ":material/help:"),
    "not measured": ("gray", ":material/hourglass_empty:"),
}
CLAIMS = ("claims", "claims-indexing")


def made() -> dict[str, Path]:
    """Folders of what was redone, by name and scale."""
    folder = reading.store().root / "paper"
    found = sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    return {path.name: path for path in found if path.is_dir() and not path.is_symlink() and (path / "result.json").is_file()}


@st.cache_data(max_entries=64, show_spinner="Reading the result")
def load(path: str, changed: int) -> Result:
    """A saved result, read again when it changes."""
    return Result.load(Path(path))


def claims(result: Result) -> None:
    """A card per claim with its contrasts."""
    table = result.tables["table"]
    for claim in result.tables["claims"].to_dict("records"):
        color, icon = AGREES[str(claim["agrees"])]
        with st.container(border=True):
            with st.container(horizontal=True, vertical_alignment="center"):
                st.markdown(f"**{parts.plain(claim['claim'])}**")
                st.badge(str(claim["agrees"]), color=color, icon=icon)  # type: ignore[arg-type]
            st.markdown(parts.plain(claim["says"]))
            contrasts = select(table, claim=claim["claim"]).to_dict("records")
            rows = [_row(contrast) for contrast in contrasts]
            st.dataframe(rows, hide_index=True, key=f"claim-{claim['claim']}", alt=f"Contrasts of claim {claim['claim']}")
            for why in dict.fromkeys(contrast["why"] for contrast in contrasts if contrast["why"]):
                st.caption(parts.plain(f"Note: {why}"))
            if claim["explanation"]:
                st.caption(parts.plain(claim["explanation"]))


def _row(row: dict[Any, Any]) -> dict[str, Any]:
    value = "not measured"
    if row["value"] == row["value"]:
        value = f"{words.number(row['value'])} [{words.number(row['low'])}, {words.number(row['high'])}]"
    return {
        "measured": row["measured"],
        "predicted": row["predicted"],
        "value [95 %]": value,
        "n": row["n"],
        "by seed": row["by_seed"],
        "agrees": row["agrees"],
    }


def main() -> None:
    """The page."""
    st.title("Paper")
    st.caption(
        "Jain et al., Mechanistically analyzing the effects of fine-tuning on procedurally defined tasks (arXiv 2311.12786), "
        "redone at the scale of this machine. Other models and sizes than the paper's: trends compare, single numbers do not."
    )
    found = made()
    judged = [name for name in found if name.rpartition("-")[0] in CLAIMS]
    st.subheader("Claims", divider="gray")
    if judged:
        with parts.seam("claims"):
            path = found[parts.pick("Claims on", judged, "claims") if len(judged) > 1 else judged[0]]
            result = load(str(path), (path / "result.json").stat().st_mtime_ns)
            claims(result)
            parts.figure_block(result, "paper-claims", python(path))
    else:
        st.info("The claims were not held against measurements yet.", icon=":material/hourglass_empty:")
        st.code("workbench reproduce claims", language="bash")
    st.subheader("Figures and tables", divider="gray")
    entries = reproductions()
    names = [name for name in found if name.rpartition("-")[0] in entries]
    missing = [name for name in entries if f"{name}-cpu" not in found]
    if names:
        name = parts.pick("Figure or table", names, "figure")
        entry = entries[name.rpartition("-")[0]]
        with parts.seam(name):
            path = found[name]
            result = load(str(path), (path / "result.json").stat().st_mtime_ns)
            st.caption(parts.plain(f"{entry.title}; from the study {result.provenance.get('study', entry.study)}"))
            parts.figure_block(result, f"paper-{name}", python(path))
    if missing:
        with st.expander(f"Not redone yet ({len(missing)})", icon=":material/hourglass_empty:"):
            st.dataframe(
                [{"name": n, "about": entries[n].title, "command": f"workbench reproduce {n}"} for n in missing],
                hide_index=True,
                key="missing",
                alt=f"{len(missing)} figures and tables that were not redone yet",
            )


def python(path: Path) -> str:
    """The Python that draws a saved result."""
    return "\n".join(
        [
            "from pathlib import Path",
            "from workbench.figures import figure",
            "from workbench.results import Result",
            "",
            f"figure(Result.load(Path({str(path)!r}))).show()",
        ]
    )


with parts.seam("Paper"):
    main()
