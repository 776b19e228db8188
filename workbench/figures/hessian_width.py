"""Hessian width: the density of eigenvalues at every width with the outliers as sticks, and how many lie at zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import curve
from workbench.figures.tables import distinct, first, keep, select, values
from workbench.figures.theme import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, finish
from workbench.results import Result

COLORS = (SKY, BLUE, GREEN, ORANGE, VERMILLION, PURPLE)
BINS = 60


def figure(result: Result) -> go.Figure:
    """Columns: sources. Above: histograms of all eigenvalues (log y), one outline per width, the k largest as sticks. Below: counts."""
    table = result.tables["table"]
    sources = distinct(table, "source")
    titles = [f"{source}: all eigenvalues" for source in sources] + [f"{source}: how many" for source in sources]
    fig = make_subplots(rows=2, cols=len(sources), subplot_titles=titles, vertical_spacing=0.2, horizontal_spacing=0.07)
    for column, source in enumerate(sources, start=1):
        _density(fig, result, source, column)
        rows = select(table, source=source)
        for measure, look, name in (("zero", "base", "eigenvalues at zero"), ("nonzero", "tuned", "all others")):
            mine = select(rows, measure=measure)
            curve(fig, mine, "parameters", look, name, log=False, row=2, column=column, legend=column == 1, hover="parameters")
        fig.update_xaxes(title_text="parameters", row=2, col=column)
        fig.update_yaxes(title_text="eigenvalues" if column == 1 else "", rangemode="tozero", row=2, col=column)
    n = max(m.n for m in result.headline)
    seeds = words.listed(words.seeds(result))
    below = f"nets trained to one loss, {n:,} rows at most, seeds {seeds} (densities: the first); bands are 95 % intervals over seeds"
    return finish(fig, "Width adds to the bulk at zero; what becomes of the outliers?", below, height=720)


def _density(fig: go.Figure, result: Result, source: str, column: int) -> None:
    spectrum = select(result.tables["spectrum"], source=source)
    spectrum = keep(spectrum, spectrum["seed"] == first(spectrum, "seed"))
    every = values(spectrum, "value")
    edges = np.linspace(every.min(), every.max(), BINS + 1)
    k = int(first(select(result.tables["runs"], source=source), "k"))
    for width, color in zip(distinct(spectrum, "width"), COLORS, strict=False):
        mine = np.sort(values(select(spectrum, width=width), "value"))[::-1]
        counts, _ = np.histogram(mine, edges)
        name = f"width {width}"
        at: dict[str, Any] = {"row": 1, "col": column}
        shared: dict[str, Any] = {"legendgroup": name, "line": {"color": color, "width": 1.8, "shape": "hv"}}
        heights = np.where(counts > 0, counts, np.nan)
        fig.add_trace(
            go.Scatter(
                x=edges[:-1],
                y=heights,
                mode="lines+markers",
                marker={"size": 3},
                name=name,
                showlegend=column == 1,
                hovertemplate=f"{name}: %{{y}} near %{{x:.3g}}<extra></extra>",
                **shared,
            ),
            **at,
        )
        sticks = np.repeat(mine[:k], 3)
        tops = np.tile([0.5, 2.0, np.nan], len(mine[:k]))
        shared["line"] = {"color": color, "width": 2.4}
        fig.add_trace(go.Scatter(x=sticks, y=tops, mode="lines", showlegend=False, hoverinfo="x", name=name, **shared), **at)
    fig.update_yaxes(type="log", title_text="eigenvalues per bin" if column == 1 else "", row=1, col=column)
    fig.update_xaxes(title_text="eigenvalue", row=1, col=column)


def alt(result: Result) -> str:
    """What share of added parameters the bulk takes, and the change of the largest and the k-th eigenvalue."""
    found = {m.metric: m for m in result.headline}
    said: list[str] = []
    for source in distinct(result.tables["table"], "source"):
        k = int(first(select(result.tables["runs"], source=source), "k"))
        said.append(
            f"On {source} the bulk at zero takes a share of {words.interval(found[f'zero_taken_{source}'])} of the added parameters; "
            f"from the narrowest to the widest net the largest eigenvalue is multiplied by "
            f"{words.interval(found[f'lambda_1_ratio_{source}'])}, number {k} by {words.interval(found[f'lambda_{k}_ratio_{source}'])}."
        )
    return " ".join(said)
