"""Edge of stability: sharpness against each method's threshold along training, and the loss below."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.tables import distinct, first, groups, select, values
from workbench.figures.theme import BLUE, GREEN, GREY, ORANGE, VERMILLION, finish
from workbench.results import Result

COLORS = (BLUE, GREEN, ORANGE, VERMILLION)
TITLES = {
    "gd": "gradient descent: sharpness, 2 / lr dotted",
    "heavy_ball": "heavy ball: sharpness, 3.8 / lr",
    "adam": "Adam: preconditioned sharpness, 38 / lr",
}
NAMES = {"gd": "descent", "heavy_ball": "heavy ball", "adam": "Adam"}


def figure(result: Result) -> go.Figure:
    """Columns: methods. Above: sharpness of every seed, log axis, thresholds dotted. Below: loss. Controls grey, behind."""
    course = result.tables["course"]
    methods = distinct(course, "method")
    titles = [TITLES[method] for method in methods] + ["loss"] * len(methods)
    fig = make_subplots(rows=2, cols=len(methods), subplot_titles=titles, vertical_spacing=0.12, horizontal_spacing=0.09)
    for column, method in enumerate(methods, start=1):
        mine = select(course, method=method)
        for control in (True, False):
            rates = distinct(select(mine, control=control), "rate")
            for rate, color in zip(rates, [GREY] if control else COLORS, strict=False):
                _rate(
                    fig,
                    select(mine, rate=rate),
                    f"{NAMES[method]}, lr {rate:g}" + (" (control)" if control else ""),
                    color,
                    column,
                )
        fig.update_yaxes(title_text="sharpness" if column == 1 else "", row=1, col=column)
        fig.update_yaxes(title_text="mean squared error" if column == 1 else "", dtick=_decades(mine), row=2, col=column)
        fig.update_xaxes(title_text="step", row=2, col=column)
    fig.update_yaxes(type="log", exponentformat="power", tickfont={"size": 12})
    fig.update_yaxes(nticks=6, row=1)
    n, seeds = max(m.n for m in result.headline if m.metric.startswith(("ratio", "highest"))), words.listed(words.seeds(result))
    return finish(
        fig,
        "Does training sharpen the loss up to what its step allows?",
        f"full batches of {n} rows; each line one of the seeds {seeds}",
        height=680,
    )


def _decades(rows: Any) -> int:
    """Between two ticks of the loss, so that there are about five."""
    losses = values(rows, "loss")
    seen = losses[np.isfinite(losses) & (losses > 0)]
    return max(1, round(float(np.log10(seen.max() / seen.min())) / 5))


def _rate(fig: go.Figure, rows: Any, name: str, color: str, column: int) -> None:
    edge, seen = float(first(rows, "threshold")), groups(rows, "seed")
    line: dict[str, Any] = {"color": color, "dash": "dot", "width": 1.6}
    last = float(values(rows, "step").max())
    dotted = go.Scatter(
        x=[0, last], y=[edge, edge], mode="lines", line=line, legendgroup=name, showlegend=False, hoverinfo="skip"
    )
    fig.add_trace(dotted, row=1, col=column)
    for i, ((seed,), some) in enumerate(seen):
        for row, measure in ((1, "sharpness"), (2, "loss")):
            trace = go.Scatter(
                x=values(some, "step"),
                y=values(some, measure),
                mode="lines",
                line={"color": color, "width": 1.8 if i == 0 else 1},
                opacity=1.0 if i == 0 else 0.55,
                name=name,
                legendgroup=name,
                showlegend=i == 0 and row == 1,
                hovertemplate=f"{name}, seed {seed}, step %{{x:,}}: {measure} %{{y:.3g}}<extra></extra>",
            )
            fig.add_trace(trace, row=row, col=column)


def alt(result: Result) -> str:
    """Settled ratios of sharpness and threshold by method and rate, and the highest of each control."""
    found = {m.metric: m for m in result.headline}
    table, said = result.tables["table"], list[str]()
    for (method, rate, control), _ in groups(table, "method", "rate", "control"):
        metric = found[f"{'highest' if control else 'ratio'}_{method}_{rate:g}"]
        what = "never exceeds" if control else "settles at"
        said.append(f"With {NAMES[method]} at lr {rate:g} the sharpness {what} {words.interval(metric)} of its threshold.")
    return " ".join(said)
