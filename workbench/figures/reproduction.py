"""A figure of the paper, redone: small multiples of a tidy table, with the paper's own values as faint marks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from workbench.figures.marks import ACCURACY, accuracy_axis, band, place, step_axis
from workbench.figures.tables import distinct, first, groups, largest, select, values
from workbench.figures.theme import GREY, Style, finish, rgba, style
from workbench.results import Result

PANEL = 210
"""Height of one panel in pixels."""
MOST_COLUMNS = 4
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
    columns, rows = distinct(table, "column") or [""], distinct(table, "row") or [""]
    fig = make_subplots(
        rows=len(rows),
        cols=len(columns),
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=min(0.06, 0.3 / len(rows)),
        column_titles=[str(c) for c in columns],
    )
    on_log = result.settings["x"] not in ("points", "ends")
    last = largest(table, "x", 1.0)
    shown: set[str] = set()
    for (column, row), part in groups(table, "column", "row"):
        at = {"row": rows.index(row) + 1, "col": columns.index(column) + 1}
        _levels(fig, result, str(column), str(row), at)
        for (line,), points in groups(part, "line"):
            _line(fig, points, str(line), on_log, at, shown)
        _paper(fig, result, str(column), str(row), last, at, shown)
    for i, row in enumerate(rows, start=1):
        for j in range(1, len(columns) + 1):
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
            fig.add_annotation(
                text=str(row),
                x=1.005,
                xref="paper",
                xanchor="left",
                yref=f"y{'' if i == 1 else (i - 1) * len(columns) + 1} domain",  # type: ignore[arg-type]
                y=0.5,
                yanchor="middle",
                textangle=90,
                showarrow=False,
            )
    finish(fig, str(result.settings["title"]), _subtitle(result), height=150 + PANEL * len(rows), top=104)
    return fig.update_layout(margin_r=34)


def _subtitle(result: Result) -> str:
    seeds = result.provenance.get("seeds", [])
    n = int(largest(result.tables["table"], "n") / max(1, len(seeds)))
    return f"{n:,} texts per point and seed, seeds {', '.join(map(str, seeds))}; 95 % intervals"


def _look(name: str) -> Style:
    """A style by role; `rank i of n` is the i-th of an ordered axis, from blue to yellow-green."""
    if name.startswith("rank "):
        _, i, _, n = name.split()
        share = 0.05 + 0.75 * int(i) / max(1, int(n) - 1)
        sampled = str(sample_colorscale("viridis", share)[0])  # rgb(68, 1, 84)
        red, green, blue = (round(float(v)) for v in sampled[4:-1].split(","))
        return Style(f"#{red:02x}{green:02x}{blue:02x}", _DASHES[int(i) % 5], _MARKERS[int(i) % 5])
    return style(name.partition(" ")[0])


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


def _levels(fig: go.Figure, result: Result, column: str, row: str, at: dict[str, Any]) -> None:
    levels = result.tables.get("levels")
    if levels is None or levels.empty:
        return
    for level in select(levels, column=column, row=row).to_dict("records"):
        if math.isfinite(level["value"]):
            line = {"color": GREY, "dash": "dot", "width": 1.2}
            fig.add_hline(y=level["value"], line=line, layer="below", exclude_empty_subplots=False, **at)


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
                showlegend=name not in shown,
                marker={"symbol": "line-ew", "size": 12, "line": {"width": 3, "color": rgba(how.color, 0.55)}},
                hovertemplate=f"{mark['line']}, the paper: %{{y:.3f}}<extra></extra>",
            ),
            **at,
        )
        shown.add(name)


def alt(result: Result) -> str:
    """What is drawn, and where its lines end."""
    table = result.tables["table"]
    said: list[str] = []
    for (column, row, line), points in groups(table, "column", "row", "line"):
        end = points.sort_values("x").iloc[-1]
        said.append(f"{', '.join(str(v) for v in (column, row, line) if v)}: {end['value']:.2f}")
    return f"{result.settings['title']}. Where each line ends: {'; '.join(said[:12])}{'; and so on' if len(said) > 12 else ''}."
