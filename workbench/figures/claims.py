"""The paper's claims: every contrast as a dot with its interval against its threshold."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from workbench.figures import words
from workbench.figures.theme import BLUE, GREEN, GREY, ORANGE, VERMILLION, finish
from workbench.figures.words import broken
from workbench.results import Result

COLORS = {"yes": GREEN, "no": VERMILLION, "unclear": ORANGE, "not measured": GREY}
LINE, ROW = 112, 46
"""Characters of a contrast in one line of a narrow page, and the height of a contrast in pixels."""


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
                "size": 12,
                "color": BLUE,
                "line": {"width": 2},
            },
            hovertemplate="threshold %{x:.2f}<extra></extra>",
        )
    )
    for i, row in enumerate(rows):  # over its line rather than beside it, where it would take half of a narrow page
        said = f"{row['measured']}{'' if math.isfinite(row['value']) else ': not measured'}"
        text = f"<b>{row['claim']}</b> {'<br>'.join(broken(said, LINE))}"
        where = {"x": 0, "xref": "paper", "xanchor": "left", "align": "left", "y": i - 0.2, "yanchor": "bottom"}
        fig.add_annotation(text=text, **where, showarrow=False)
    fig.update_yaxes(tickvals=list(range(len(rows))), showticklabels=False, ticks="", zeroline=False)
    fig.update_yaxes(range=[len(rows) - 0.6, -0.9])
    fig.update_xaxes(title_text="accuracy, share, or ratio of steps (see the label)", zeroline=False)
    finish(fig, "What the paper claims, and what was measured", words.sample(result), height=150 + ROW * len(rows))
    return fig.update_layout(margin_l=20)


def alt(result: Result) -> str:
    """How many claims agree."""
    claims = result.tables["claims"]
    said = "; ".join(f"{name} {agrees}" for name, agrees in zip(claims["claim"], claims["agrees"], strict=True))
    return f"Claims of the paper, whether they agree with what was measured: {said}."
