"""Marks that figures share: curves with bands, labelled reference lines, and a step axis that shows step 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.figures.tables import values
from workbench.figures.theme import GREY, style

ACCURACY = "accuracy (share of answers right)"
_ROUND = (0, 1, 2, 3, 5, 7, 10, 14, 20, 30, 40, 50, 70, 100, 140, 200, 320, 500, 700)
MOST_TICKS = 8


def place(steps: Any) -> np.ndarray:
    """Steps on the axis: `log10(1 + step)`, so that step 0 has a place and early steps have room."""
    return np.log10(1 + np.asarray(steps, dtype=np.float64))


def whiskers(rows: pd.DataFrame, color: str) -> dict[str, Any]:
    """Error bars of rows with `value`, `low` and `high`."""
    value = values(rows, "value")
    return {
        "array": values(rows, "high") - value,
        "arrayminus": value - values(rows, "low"),
        "thickness": 1.4,
        "width": 3,
        "color": color,
    }


def step_axis(largest: float, title: str, most: int = MOST_TICKS) -> dict[str, Any]:
    """Settings of an x axis on the scale of `place`, its ticks at round steps and at the last one."""
    largest = max(1, round(largest))
    powers = [10**p * m for p in range(3, 7) for m in (1, 2, 5)]
    steps = [step for step in (*_ROUND, *powers) if step < largest] + [largest]
    room = float(place([largest])[0]) / most
    kept: list[int] = [steps[-1]]
    for step in reversed(steps[:-1]):  # from the end, for the last step is the one that people look for
        if step == 0 or place([kept[-1]])[0] - place([step])[0] >= room:
            kept.append(step)
    if len(kept) > 2 and place([kept[-2]])[0] < room:
        kept.pop(-2)
    kept.reverse()
    span = float(place([largest])[0])
    return {
        "title": {"text": title},
        "tickvals": [float(v) for v in place(kept)],
        "ticktext": [f"{step:,}" for step in kept],
        "range": [-0.03 * span, 1.04 * span],
        "zeroline": False,
    }


def accuracy_axis(title: str = ACCURACY) -> dict[str, Any]:
    """Settings of a y axis from 0 to 1 with room for markers at both ends."""
    return {"title": {"text": title}, "range": [-0.03, 1.06], "tickvals": [0, 0.2, 0.4, 0.6, 0.8, 1.0], "zeroline": False}


def curve(
    fig: go.Figure,
    table: pd.DataFrame,
    x: str,
    look: str,
    name: str,
    *,
    log: bool = True,
    row: int = 1,
    column: int | None = None,
    legend: bool = True,
    group: str | None = None,
    hover: str = "step",
) -> None:
    """A line with markers over its interval band.

    Args:
        fig: the figure to draw into.
        table: rows with `x`, `value`, `low`, `high`, `n`.
        x: name of the column on the x axis.
        look: name of a style in `theme.STYLES`.
        name: the series in words.
        log: place x on the scale of `place`.
        row: subplot, where there is a column.
        column: subplot, None without subplots.
        legend: whether it has a legend entry of its own.
        group: legend group, so that hiding it hides its twins in other panels.
        hover: what x is called on hover.
    """
    if table.empty:
        return
    rows = table.sort_values(x)
    at = place(rows[x]) if log else values(rows, x)
    how = style(look)
    where: dict[str, Any] = {} if column is None else {"row": row, "col": column}
    group = group or name
    band(fig, at, values(rows, "low"), values(rows, "high"), how.faint, group, column, row)
    fig.add_trace(
        go.Scatter(
            x=at,
            y=values(rows, "value"),
            mode="lines+markers",
            name=name,
            legendgroup=group,
            showlegend=legend,
            opacity=0.85 if how.control else 1.0,
            line={"color": how.color, "dash": how.dash, "width": 1.6 if how.control else 2.4},
            marker={"symbol": how.marker, "size": 6 if how.control else 7, "color": how.color},
            customdata=np.column_stack([rows[x], rows["low"], rows["high"], rows["n"] if "n" in rows else [0] * len(rows)]),
            hovertemplate=f"<b>{name}</b><br>{hover} %{{customdata[0]:,}}: %{{y:.3f}} "
            "[%{customdata[1]:.3f}, %{customdata[2]:.3f}]<br>n = %{customdata[3]:,}<extra></extra>",
        ),
        **where,
    )


def band(
    fig: go.Figure,
    at: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    color: str,
    group: str,
    column: int | None = None,
    row: int = 1,
) -> None:
    """The area between two curves; nothing where an interval is unknown."""
    known = np.isfinite(low) & np.isfinite(high)
    if known.sum() < 2:
        return
    where: dict[str, Any] = {} if column is None else {"row": row, "col": column}
    fig.add_trace(
        go.Scatter(
            x=np.concatenate([at[known], at[known][::-1]]),
            y=np.concatenate([high[known], low[known][::-1]]),
            mode="lines",
            line={"width": 0},
            fill="toself",
            fillcolor=color,
            legendgroup=group,
            showlegend=False,
            hoverinfo="skip",
        ),
        **where,
    )


def level(fig: go.Figure, y: float, text: str, *, column: int | None = None, color: str = GREY, left: bool = False) -> None:
    """A dotted horizontal line with its label at the right or left end."""
    if not math.isfinite(y):
        return
    # A panel that is still empty must get its line too: lines are drawn first, to lie behind.
    where: dict[str, Any] = {} if column is None else {"row": 1, "col": column, "exclude_empty_subplots": False}
    fig.add_hline(y=y, line={"color": color, "dash": "dot", "width": 1.3}, layer="below", **where)
    axis = "" if column in (None, 1) else str(column)
    fig.add_annotation(
        text=text,
        x=0 if left else 1,
        xref=cast(Any, f"x{axis} domain"),
        xanchor="left" if left else "right",
        y=y,
        yref=cast(Any, f"y{axis}"),
        yanchor="bottom" if y < 0.93 else "top",
        showarrow=False,
    )


def levels(
    fig: go.Figure, lines: Sequence[tuple[float, str]], column: int | None = None, apart: float = 0.06, *, left: bool = False
) -> None:
    """Several reference lines; labels of lines that lie close together are written as one."""
    rest = sorted((line for line in lines if math.isfinite(line[0])), reverse=True)
    while rest:
        near = [line for line in rest if rest[0][0] - line[0] < apart]
        rest = rest[len(near) :]
        level(fig, near[0][0], "; ".join(dict.fromkeys(text for _, text in near)), column=column, left=left)
        for y, _ in near[1:]:
            level(fig, y, "", column=column)
