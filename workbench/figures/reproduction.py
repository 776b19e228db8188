"""A figure of the paper, redone: small multiples of a tidy table, with the paper's own values as faint marks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import ACCURACY, accuracy_axis, band, place, step_axis
from workbench.figures.tables import distinct, first, groups, largest, select, values
from workbench.figures.theme import GREY, OTHERS, Style, finish, rgba, style
from workbench.figures.words import broken
from workbench.results import Result

PANEL = 210
"""Height of one panel in pixels."""
ROW_TITLE, ALL_COLUMN_TITLES = 28, 92
"""Characters of a row's title that fit beside a panel, and of all columns' titles in one line of a narrow page."""
MOST_SAID = 6
"""Lines whose ends are said in words."""
LINE = 15
"""Height of a line of a title in pixels."""
_ORDERED = ("#3B6FB6", "#1F9E89", "#7AB441", "#D9A514")
"""An ordered axis from blue to yellow; every colour can be seen on white and on black."""
_DASHES, _MARKERS = ("solid", "dash", "dot", "dashdot", "longdash"), ("circle", "square", "diamond", "triangle-up", "cross")
_AXES = {
    "steps": "fine-tuning step",
    "reverse steps": "reverse fine-tuning step",
    "units": "units removed",
    "points": "residual stream after block (0: embedding)",
    "ends": "fine-tuning",
}


def figure(result: Result) -> go.Figure:
    """Panels by `column` and `row`, lines by `line`; controls grey and behind; the paper's values faint where they compare."""
    table = result.tables["table"]
    columns, rows = (_panels(result, name) for name in ("column", "row"))
    titles = [broken(str(c), ALL_COLUMN_TITLES // len(columns)) for c in columns]
    fig = make_subplots(
        rows=len(rows),
        cols=len(columns),
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=min(0.06, 0.3 / len(rows)),
        column_titles=["<br>".join(lines) for lines in titles],
    )
    on_log = result.settings["x"] not in ("points", "ends")
    last = largest(table, "x", 1.0)
    shown: set[str] = set()
    for (column, row), part in groups(table, "column", "row"):
        at = {"row": rows.index(row) + 1, "col": columns.index(column) + 1}
        _levels(fig, result, str(column), str(row), at, shown)
        for (line,), points in groups(part, "line"):
            _line(fig, points, str(line), on_log, at, shown)
        _paper(fig, result, str(column), str(row), last, at, shown)
    for i, row in enumerate(rows, start=1):
        for j in range(1, len(columns) + 1):
            fig.add_trace(go.Scatter(x=[None], y=[None], showlegend=False), row=i, col=j)  # else an empty panel has no axes
            title = _AXES[str(result.settings["x"])] if i == len(rows) and j == (len(columns) + 1) // 2 else ""
            if on_log:
                fig.update_xaxes(step_axis(last, title, most=max(3, 9 - 2 * len(columns))), row=i, col=j)
            elif result.settings["x"] == "ends":
                ends = {"tickvals": [0, 1], "ticktext": ["before", "after"], "range": [-0.2, 1.2]}
                fig.update_xaxes(ends, title_text=title, zeroline=False, row=i, col=j)
            else:
                fig.update_xaxes(title_text=title, dtick=1, zeroline=False, row=i, col=j)
            axis = accuracy_axis(ACCURACY if j == 1 and i == (len(rows) + 1) // 2 else "")
            fig.update_yaxes(axis, row=i, col=j)
        if row:
            text, y = "<br>".join(broken(str(row), ROW_TITLE)), fig.layout[f"yaxis{(i - 1) * len(columns) + 1}"].domain
            at = {"x": 1.005, "xref": "paper", "xanchor": "left", "y": sum(y) / 2, "yref": "paper", "yanchor": "middle"}
            fig.add_annotation(text=text, **at, textangle=90, showarrow=False)
    more = LINE * (max(map(len, titles)) - 1)
    finish(fig, str(result.settings["title"]), _subtitle(result), height=150 + more + PANEL * len(rows), top=104 + more)
    return fig.update_layout(margin_r=20 + 16 * max(len(broken(str(row), ROW_TITLE)) for row in rows))


def _panels(result: Result, name: str) -> list[str]:
    """Titles of the columns or rows, in the order of their axes where the result knows it."""
    given = result.settings.get(f"{name}s") or distinct(result.tables["table"], name)
    return [str(title) for title in given] or [""]


def _subtitle(result: Result) -> str:
    table = result.tables["table"]
    n = int(max(values(table, "n") / values(table, "seeds"), default=0))
    return "; ".join(filter(None, (words.sample(result, n), str(result.settings.get("rates", "")))))


def _look(name: str) -> Style:
    """A style by role; `rank i of n` is the i-th of an ordered axis, from blue to yellow."""
    if name.startswith("rank "):
        _, i, _, n = name.split()
        share = int(i) / max(1, int(n) - 1)
        sampled = str(sample_colorscale(list(_ORDERED), share)[0])  # rgb(59, 111, 182)
        red, green, blue = (round(float(v)) for v in sampled[4:-1].split(","))
        return Style(f"#{red:02x}{green:02x}{blue:02x}", _DASHES[int(i) % 5], _MARKERS[int(i) % 5])
    role, _, which = name.partition(" ")
    return replace(style(role), marker=OTHERS[int(which) % len(OTHERS)]) if role == "other" else style(role)


def _line(fig: go.Figure, points: pd.DataFrame, line: str, on_log: bool, at: dict[str, Any], shown: set[str]) -> None:
    look = str(first(points, "look"))
    how, points = _look(look), points.sort_values("x")
    x = place(points["x"]) if on_log else values(points, "x")
    band(fig, x, values(points, "low"), values(points, "high"), how.faint, line, at["col"], at["row"])
    fig.add_trace(
        go.Scatter(
            x=x,
            y=values(points, "value"),
            mode="lines+markers",
            name=line,
            legendgroup=line,
            showlegend=line not in shown,
            legendrank=1001 + int(look.split()[1]) if look.startswith("rank ") else 1100 if how.control else 1050,
            opacity=0.85 if how.control else 1.0,
            line={"color": how.color, "dash": how.dash, "width": 1.5 if how.control or "thin" in look else 2.2},
            marker={"symbol": how.marker + ("-open" if "thin" in look else ""), "size": 5, "color": how.color},
            customdata=np.column_stack([points["x"], points["low"], points["high"], points["n"]]),
            hovertemplate=f"<b>{line}</b><br>%{{customdata[0]:,}}: %{{y:.3f}} "
            "[%{customdata[1]:.3f}, %{customdata[2]:.3f}]<br>n = %{customdata[3]:,}<extra></extra>",
        ),
        **at,
    )
    shown.add(line)


def _levels(fig: go.Figure, result: Result, column: str, row: str, at: dict[str, Any], shown: set[str]) -> None:
    levels = result.tables.get("levels")
    if levels is None or levels.empty:
        return
    for level in select(levels, column=column, row=row).to_dict("records"):
        if math.isfinite(level["value"]):
            line = {"color": GREY, "dash": "dot", "width": 1.2}
            fig.add_hline(y=level["value"], line=line, layer="below", exclude_empty_subplots=False, **at)
            if level["text"] not in shown:  # a line of the layout has no legend entry of its own
                named = {"name": level["text"], "mode": "lines", "line": line, "legendrank": 1150, "showlegend": True}
                fig.add_trace(go.Scatter(x=[None], y=[None], **named), **at)
                shown.add(level["text"])


def _paper(fig: go.Figure, result: Result, column: str, row: str, last: float, at: dict[str, Any], shown: set[str]) -> None:
    """The paper's value of a line where its training ended, at the right edge: another model and scale, so a mark, no curve."""
    paper = result.tables.get("paper")
    if paper is None or paper.empty:
        return
    name = "the paper, after its 10,000 iterations"
    for mark in select(paper, column=column, row=row).to_dict("records"):
        how = _look(str(mark["look"]))
        fig.add_trace(
            go.Scatter(
                x=[float(place([last])[0]) * 1.03],
                y=[mark["value"]],
                mode="markers",
                name=name,
                legendgroup=name,
                showlegend=False,
                marker=_tick(rgba(how.color, 0.6)),
                hovertemplate=f"{mark['line']}, the paper: %{{y:.3f}}<extra></extra>",
            ),
            **at,
        )
        if name not in shown:  # grey in the legend, for the marks have the colours of their lines
            named = {"name": name, "mode": "markers", "marker": _tick(GREY), "legendgroup": name, "legendrank": 1200}
            fig.add_trace(go.Scatter(x=[None], y=[None], showlegend=True, **named), **at)
            shown.add(name)


def _tick(color: str) -> dict[str, Any]:
    return {"symbol": "line-ew", "size": 12, "line": {"width": 3, "color": color}}


def alt(result: Result) -> str:
    """What is drawn, and where its lines end."""
    table = result.tables["table"]
    said: list[str] = []
    for (column, row, line), points in groups(table, "column", "row", "line"):
        end = points.sort_values("x").iloc[-1]
        said.append(f"{', '.join(str(v) for v in (column, row, line) if v)}: {end['value']:.2f}")
    more = f"; and {len(said) - MOST_SAID} more in the table" if len(said) > MOST_SAID else ""
    return f"{result.settings['title']}. Where each line ends: {'; '.join(said[:MOST_SAID])}{more}."
