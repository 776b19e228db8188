"""Comparison of rankings: a panel per score, and how far the scores agree on which units go first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, band, curve, place, step_axis
from workbench.figures.pruning import removed, word_of
from workbench.figures.tables import distinct, first, keep, largest, select, values
from workbench.figures.theme import BLUE, VERMILLION, finish, style
from workbench.results import Result

COLUMNS = 3
PANEL, MATRIX, SPACE = 125, 330, 84
"""Heights in pixels of a row of panels, of the matrix, and between them."""


def figure(result: Result) -> go.Figure:
    """A panel per score: O_PT and O_FT over the number of removed units, before as many random ones. Below: rank correlations."""
    table, pairs = result.tables["table"], result.tables["correlations"]
    found = {m.metric: m for m in result.headline}
    asked, random = select(table, draw=0), keep(table, table["draw"] > 0)
    names = [str(name) for name in distinct(asked, "ranking")]
    lines = -(-len(names) // COLUMNS)
    body = lines * PANEL + MATRIX
    height = body + lines * SPACE
    fig = make_subplots(
        rows=lines + 1,
        cols=COLUMNS,
        specs=[*([{}] * COLUMNS for _ in range(lines)), [{"colspan": COLUMNS}, *[None] * (COLUMNS - 1)]],
        row_heights=[*[PANEL / body] * lines, MATRIX / body],
        vertical_spacing=SPACE / height,
        horizontal_spacing=0.07,
        subplot_titles=[
            *(_title(found, name) for name in names),
            *[""] * (lines * COLUMNS - len(names)),
            "do the scores agree? (rank correlation over all units)",
        ],
    )
    word = word_of(found["units"])
    last = largest(table, "k", 1.0)
    for index, name in enumerate(names):
        row, column = 1 + index // COLUMNS, 1 + index % COLUMNS
        rows = select(asked, ranking=name)
        _random(fig, random, word, row, column, legend=index == 0)
        for role in ("ft", "pt"):
            one = select(rows, role=role)
            if len(one):
                text = words.ability(str(first(one, "capability")), role, float(first(one, "share")))
                curve(fig, one, "k", role, text, row=row, column=column, legend=index == 0, hover="removed")
        at: dict[str, Any] = {"row": row, "col": column}
        fig.add_hline(y=found["base_pt"].value, line={"color": BLUE, "dash": "dot", "width": 1.3}, layer="below", **at)
        bottom = index + COLUMNS >= len(names)
        axis = step_axis(last, f"{words.UNITS[word]} removed" if bottom else "", most=4)
        fig.update_xaxes(axis, **at)
        fig.update_yaxes(accuracy_axis("accuracy (share right)" if column == 1 else ""), showticklabels=column == 1, **at)
    _agreement(fig, pairs, lines + 1)
    pt, _ = words.subject(result)
    title = f"Which ranking brings {pt} back?"
    finish(
        fig,
        title,
        f"{words.sample(result, found['pruned_pt'].n)}; dotted: base model",
        height=height + 236,
        top=116,
        bottom=120,
    )
    return fig.update_layout(margin_l=150)


def _title(found: dict[str, Any], name: str) -> str:
    recovered = found.get(f"recovered_{name}")
    said = f"<br>back: {words.interval(recovered)}" if recovered else ""
    return f"{words.SCORES.get(name, name)}{said}"


def _random(fig: go.Figure, random: pd.DataFrame, word: str, row: int, column: int, legend: bool) -> None:
    if random.empty:
        return
    spread = random.groupby("k")["value"].agg(["mean", "min", "max"]).reset_index()
    how, name = style("random"), f"as many random {word} ({random['draw'].nunique()} orders, mean and range)"
    at = place(spread["k"])
    band(fig, at, values(spread, "min"), values(spread, "max"), how.faint, name, column, row)
    line = {"color": how.color, "dash": how.dash, "width": 1.6}
    shown = {"name": name, "legendgroup": name, "showlegend": legend}
    trace = go.Scatter(x=at, y=spread["mean"], mode="lines", line=line, hoverinfo="skip", **shown)
    fig.add_trace(trace, row=row, col=column)


def _agreement(fig: go.Figure, pairs: pd.DataFrame, row: int) -> None:
    """Spearman's correlations as a matrix, blue where scores agree and red where they turn each other around."""
    wide = pairs.pivot_table(index="score", columns="other", values="value", sort=False, dropna=False)
    names = [words.SCORES.get(str(name), str(name)) for name in wide.index]
    grid = wide.to_numpy(float)
    fig.add_trace(
        go.Heatmap(
            z=grid,
            x=names,
            y=names,
            zmin=-1,
            zmax=1,
            colorscale=[[0, VERMILLION], [0.5, "#757575"], [1, BLUE]],
            text=[[f"{round(v, 1) + 0.0:.1f}" if np.isfinite(v) else "" for v in line] for line in grid],
            texttemplate="%{text}",
            textfont={"size": 10, "color": "#FFFFFF"},
            xgap=1,
            ygap=1,
            showscale=False,
            hovertemplate="%{y} and %{x}: %{z:.2f}<extra></extra>",
        ),
        row=row,
        col=1,
    )
    fig.update_yaxes(autorange="reversed", tickfont={"size": 11}, row=row, col=1)
    fig.update_xaxes(tickangle=-40, tickfont={"size": 11}, row=row, col=1)


def alt(result: Result) -> str:
    """What the chosen ranking brings back, against random orders, and the spread over rankings."""
    pt, _ = words.subject(result)
    found = {m.metric: m for m in result.headline}
    shares = {m.metric.removeprefix("recovered_"): m for m in result.headline if m.metric.startswith("recovered_")}
    said = ", ".join(f"{words.SCORES.get(name, name)} {words.interval(m)}" for name, m in shares.items())
    return (
        f"The chosen ranking takes {pt} from {words.interval(found['unpruned_pt'])} to {words.interval(found['pruned_pt'])} by "
        f"removing {removed(result)}; the best random order gives "
        f"{words.interval(found['random_pt'])}. Share of the loss that comes back, by ranking: {said}."
    )
