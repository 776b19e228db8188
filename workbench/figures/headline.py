"""Any result: its headline numbers as a table, for analyses that have no figure of their own."""

from __future__ import annotations

import plotly.graph_objects as go

from workbench.figures import words
from workbench.figures.theme import CLEAR, finish
from workbench.results import Result


def figure(result: Result) -> go.Figure:
    """A table of the headline numbers with their intervals."""
    head = ["number", "value [95 % interval]", "n", "unit"]
    rows = [(words.metric(m.metric), words.interval(m), f"{m.n:,}", m.unit) for m in result.headline]
    line = "rgba(128,128,128,0.35)"
    fig = go.Figure(
        go.Table(
            header={
                "values": [f"<b>{h}</b>" for h in head],
                "align": "left",
                "fill": {"color": CLEAR},
                "line": {"color": line},
                "height": 28,
            },
            cells={
                "values": list(zip(*rows, strict=True)) if rows else [[] for _ in head],
                "align": "left",
                "fill": {"color": CLEAR},
                "line": {"color": line},
                "height": 26,
            },
            columnwidth=[3, 3, 1, 2],
        )
    )
    fig = finish(fig, result.name.replace("_", " "), words.sample(result), height=150 + 26 * max(1, len(rows)), bottom=20)
    return fig.update_layout(margin={"l": 0, "r": 0})


def alt(result: Result) -> str:
    """The headline numbers in a row."""
    said = "; ".join(f"{words.metric(m.metric)} {words.interval(m, m.unit)}" for m in result.headline)
    return f"Headline numbers of {result.name.replace('_', ' ')}: {said or 'none'}."
