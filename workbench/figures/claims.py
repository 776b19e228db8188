"""The paper's claims: every contrast as a dot with its interval against its threshold."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from workbench.figures.theme import BLUE, GREEN, GREY, ORANGE, VERMILLION, finish
from workbench.results import Result

COLORS = {"yes": GREEN, "no": VERMILLION, "unclear": ORANGE, "not measured": GREY}
LINE = 60
"""Characters of a contrast in one line."""


def figure(result: Result) -> go.Figure:
    """A line per contrast: green where it agrees, its threshold as a bar, the predicted side as an arrow."""
    rows = result.tables["table"].to_dict("records")
    fig = go.Figure()
    for word, color in COLORS.items():
        mine = [(i, r) for i, r in enumerate(rows) if r["agrees"] == word and math.isfinite(r["value"])]
        if not mine:
            continue
        fig.add_trace(
            go.Scatter(
                x=[r["value"] for _, r in mine],
                y=[i for i, _ in mine],
                mode="markers",
                name={"yes": "agrees", "no": "disagrees"}.get(word, word),
                marker={"color": color, "size": 10, "symbol": {"yes": "circle", "no": "x"}.get(word, "diamond")},
                error_x={
                    "array": [r["high"] - r["value"] for _, r in mine],
                    "arrayminus": [r["value"] - r["low"] for _, r in mine],
                    "thickness": 1.6,
                    "width": 4,
                },
                text=[f"{r['claim']}: {r['measured']}" for _, r in mine],
                hovertemplate="%{text}<br>%{x:.3f}<extra></extra>",
            )
        )
    sides = [str(r["predicted"]).partition(" ")[0] for r in rows]
    fig.add_trace(
        go.Scatter(
            x=[float(str(r["predicted"]).partition(" ")[2]) for r in rows],
            y=list(range(len(rows))),
            mode="markers",
            name="threshold, pointing to the predicted side",
            marker={
                "symbol": [f"triangle-{'right' if s == 'above' else 'left'}-open" for s in sides],
                "size": 11,
                "color": BLUE,
            },
            hovertemplate="threshold %{x:.2f}<extra></extra>",
        )
    )
    labels = [f"<b>{r['claim']}</b> {_broken(str(r['measured']))}" for r in rows]
    fig.update_yaxes(tickvals=list(range(len(rows))), ticktext=labels, autorange="reversed", zeroline=False)
    fig.update_xaxes(title_text="accuracy, share, or ratio of steps (see the label)", zeroline=False)
    seeds = result.provenance.get("seeds", [])
    subtitle = f"seeds {', '.join(map(str, seeds))}; 95 % intervals"
    finish(fig, "What the paper claims, and what was measured", subtitle, height=150 + 36 * len(rows))
    return fig.update_layout(margin_l=420)


def _broken(text: str) -> str:
    words, lines = text.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > LINE:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(lines)


def alt(result: Result) -> str:
    """How many claims agree."""
    claims = result.tables["claims"]
    said = "; ".join(f"{name} {agrees}" for name, agrees in zip(claims["claim"], claims["agrees"], strict=True))
    return f"Claims of the paper, whether they agree with what was measured: {said}."
