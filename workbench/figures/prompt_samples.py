"""Prompts as text, with their answers."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go

from workbench.figures.theme import CLEAR, finish
from workbench.results import Result

LINE = 64
"""Characters of a prompt in one line."""


def figure(result: Result) -> go.Figure:
    """A table of prompts."""
    table = result.tables["table"]
    prompts = ["<br>".join(escape(p[i : i + LINE]) for i in range(0, len(p), LINE)) for p in table["prompt"]]
    line = "rgba(128,128,128,0.35)"
    look = {"align": "left", "fill": {"color": CLEAR}, "line": {"color": line}}
    fig = go.Figure(
        go.Table(
            header={"values": ["<b>prompt</b>", "<b>answer</b>"], **look},
            cells={"values": [prompts, [escape(str(a)) for a in table["answer"]]], "height": 24, **look},
            columnwidth=[6, 1],
        )
    )
    rows = sum(10 + 18 * (p.count("<br>") + 1) for p in prompts)
    seed = result.provenance["seeds"][0]
    fig = finish(fig, str(result.settings["title"]), f"drawn with seed {seed}", height=160 + rows, bottom=20)
    return fig.update_layout(margin={"l": 0, "r": 0})


def alt(result: Result) -> str:
    """The first prompt."""
    row = result.tables["table"].iloc[0]
    return f"{result.settings['title']}: for instance {row['prompt']}, answer {row['answer']}."
