"""Hessian clusters: outliers against the number of classes, and the leading eigenvalues with the outliers above the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import curve
from workbench.figures.tables import distinct, keep, largest, select, values
from workbench.figures.theme import BLUE, GREY, finish
from workbench.results import Result

LOOKS = ("base", "pt", "revived")


def figure(result: Result) -> go.Figure:
    """Left: outliers against k, all sources (controls grey) with k - 1 dotted. Right, per source: leading eigenvalues at the largest k."""
    table = result.tables["table"]
    sources = distinct(table, "source")
    titles = ["outliers by the gap rule", *(f"{source}: leading eigenvalues" for source in sources)]
    fig = make_subplots(rows=1, cols=1 + len(sources), subplot_titles=titles, horizontal_spacing=0.07)
    ks = np.unique(values(table, "k"))
    fig.add_trace(
        go.Scatter(
            x=ks, y=ks - 1, mode="lines", name="k − 1", line={"color": GREY, "dash": "dot", "width": 1.3}, hoverinfo="skip"
        ),
        row=1,
        col=1,
    )
    for arm in ("control", "classes"):  # controls behind
        for source, look in zip(sources, LOOKS, strict=False):
            rows = select(table, source=source, arm=arm)
            name = source if arm == "classes" else f"{source}, no clusters"
            curve(fig, rows, "k", look if arm == "classes" else "random", name, log=False, column=1, hover="k")
    fig.update_xaxes(title_text="classes k", dtick=1, row=1, col=1)
    fig.update_yaxes(
        title_text="outliers", range=[-0.5, 1.08 * max(largest(table, "high"), largest(table, "value"), 1)], row=1, col=1
    )
    for column, source in enumerate(sources, start=2):
        _eigenvalues(fig, result, source, column)
    return finish(fig, "Do the outliers of the Hessian count the classes?", _sample(result), height=440)


def _eigenvalues(fig: go.Figure, result: Result, source: str, column: int) -> None:
    """Each eigenvalue as a stick, that of an outlier in colour, of the first seed at its largest k."""
    runs = select(result.tables["runs"], source=source, arm="classes")
    run = keep(runs, runs["k"] == runs["k"].max()).iloc[0]
    rows = select(result.tables["eigenvalues"], source=source, arm="classes", k=run["k"], seed=run["seed"])
    heights, index = np.maximum(values(rows, "value"), 0), values(rows, "index")
    for part, color, name in (
        (index <= run["outliers"], BLUE, "outliers"),
        (index > run["outliers"], GREY, "bulk"),
    ):
        fig.add_trace(
            go.Bar(
                x=index[part],
                y=heights[part],
                width=0.5,
                marker={"color": color},
                name=name,
                legendgroup=name,
                showlegend=column == 2,
                hovertemplate="eigenvalue %{x}: %{y:.3g}<extra></extra>",
            ),
            row=1,
            col=column,
        )
    fig.update_xaxes(title_text=f"rank (k = {int(run['k'])}, seed {int(run['seed'])})", row=1, col=column)
    fig.update_yaxes(title_text="eigenvalue" if column == 2 else "", rangemode="tozero", row=1, col=column)


def _sample(result: Result) -> str:
    n = max(m.n for m in result.headline)
    seeds = words.listed(words.seeds(result))
    return f"one net per k and seed, {n:,} training rows at most, seeds {seeds}; bands are 95 % intervals over seeds"


def alt(result: Result) -> str:
    """Shares of trainings that follow k, with their controls, and whose eigenvectors belong to the classes."""
    found: dict[str, Any] = {m.metric: m for m in result.headline}
    said: list[str] = []
    for source in distinct(result.tables["table"], "source"):
        control = f" ({words.interval(found[f'follows_{source}_control'])} without clusters)"
        said.append(
            f"On {source} a share of {words.interval(found[f'follows_{source}'])} of the trainings has k − 1 or k outliers{control}, "
            f"whose eigenvectors lie to {words.interval(found[f'overlap_gradients_{source}'])} in the span of the classes' mean "
            f"gradients (random spans of that size: {words.interval(found[f'overlap_random_{source}'])})."
        )
    return " ".join(said)
