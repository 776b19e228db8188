"""Langevin: overlap of the last iterate and of the running average along a chain, and the map of success."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.tables import distinct, first, select, values
from workbench.figures.theme import BLUE, GREEN, GREY, finish
from workbench.results import Result

PANELS = ("tensor PCA", "single index", "no signal")
PALE = "#E3EEF6"
MAPS = {"average": "average", "last": "last iterate", "partial_trace": "partial trace"}


def figure(result: Result) -> go.Figure:
    """Above: chains of the first seed and beta, per problem, with the partial trace's overlap. Below: shares of tensors solved."""
    course, runs, table = result.tables["course"], result.tables["runs"], result.tables["map"]
    beta = float(first(course, "beta"))
    drawn = len(table) > 0
    titles = [f"{name}, β = {beta:g}" for name in PANELS] + [f"found by the {MAPS[name]}" for name in MAPS if drawn]
    fig = make_subplots(rows=2 if drawn else 1, cols=3, subplot_titles=titles, vertical_spacing=0.2, horizontal_spacing=0.08)
    for column, problem in enumerate(PANELS, start=1):
        mine = select(course, problem=problem, beta=beta)
        at: dict[str, Any] = {"row": 1, "col": column}
        for estimate, color, name in (("last", GREY, "iterate"), ("average", BLUE, "running average")):
            rows = select(mine, estimate=estimate)
            trace = go.Scatter(
                x=values(rows, "step"),
                y=values(rows, "value"),
                mode="lines",
                line={"color": color, "width": 1 if estimate == "last" else 2.4},
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                hovertemplate=f"{name}, step %{{x:,}}: %{{y:.3f}}<extra></extra>",
            )
            fig.add_trace(trace, **at)
        seed = first(mine, "seed")
        trace_overlap = float(first(select(runs, problem=problem, beta=beta, seed=seed, estimate="partial_trace"), "value"))
        last = float(values(mine, "step").max())
        line = go.Scatter(
            x=[0, last],
            y=[math.copysign(trace_overlap, float(values(select(mine, estimate="average"), "value")[-1]))] * 2,
            mode="lines",
            line={"color": GREEN, "dash": "dash", "width": 2},
            name="partial trace, |overlap|",
            legendgroup="trace",
            showlegend=column == 1,
            hovertemplate="partial trace: %{y:.3f}<extra></extra>",
        )
        fig.add_trace(line, **at)
        fig.update_xaxes(title_text="step", nticks=4, **at)
        fig.update_yaxes(title_text="overlap with the planted direction" if column == 1 else "", range=[-0.75, 1.02], **at)
    for column, estimate in enumerate(MAPS if drawn else (), start=1):
        _map(fig, select(table, estimate=estimate), column)
    d, seeds = max(m.n for m in result.headline), words.seeds(result)
    tensors = f"; maps: {int(first(table, 'n'))} tensors per cell" if drawn else ""
    below = f"dimension {d}, order 3, chains of seed {seeds[0] if seeds else 0}{tensors}"
    title = "A hot chain's average finds what its iterates do not show: the partial trace's direction"
    return finish(fig, title, below, height=760 if drawn else 430)


def _map(fig: go.Figure, rows: Any, column: int) -> None:
    d, ratios = distinct(rows, "d"), distinct(rows, "ratio")
    shares = np.array([[first(select(rows, d=a, ratio=b), "value") for b in ratios] for a in d], dtype=np.float64)
    trace = go.Heatmap(
        x=[f"{ratio:g}" for ratio in ratios],
        y=[str(x) for x in d],
        z=shares,
        zmin=0,
        zmax=1,
        colorscale=[[0, PALE], [1, BLUE]],  # opaque, so that the numbers are chosen to be read on it
        texttemplate="%{z:.0%}",
        showscale=False,
        xgap=2,
        ygap=2,
        hovertemplate="d = %{y}, λ / d^(3/4) = %{x}: found in %{z:.0%}<extra></extra>",
    )
    fig.add_trace(trace, row=2, col=column)
    fig.update_xaxes(title_text="λ / d<sup>3/4</sup>", type="category", showgrid=False, row=2, col=column)
    fig.update_yaxes(title_text="dimension d" if column == 1 else "", type="category", showgrid=False, row=2, col=column)


def alt(result: Result) -> str:
    """Overlaps of average, last iterate and partial trace, and the limit of small beta."""
    table = result.tables["table"]
    said: list[str] = []
    for problem in PANELS[:2]:
        for beta in distinct(select(table, problem=problem), "beta"):
            rows = select(table, problem=problem, beta=beta)
            found = {name: f"{first(select(rows, estimate=name), 'value'):.2f}" for name in (*MAPS, "along_trace")}
            said.append(
                f"{problem}, beta {beta:g}: the average overlaps the planted direction by {found['average']}, the last iterate by "
                f"{found['last']}, the partial trace by {found['partial_trace']}; average and partial trace have a cosine of "
                f"{found['along_trace']}."
            )
    mirrored = next(m for m in result.headline if m.metric == "mirrored_along_trace")
    said.append(f"Between mirrored chains at a small beta that cosine is {words.number(mirrored.value, 4)}.")
    return " ".join(said)
