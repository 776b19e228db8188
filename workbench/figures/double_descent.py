"""Double descent: test error and condition number against the number of features, and what the optimizer reached at the threshold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import band
from workbench.figures.tables import first, groups, keep, select, values
from workbench.figures.theme import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, finish, rgba
from workbench.results import Result

DESCENTS = (SKY, BLUE, GREEN, ORANGE)
FLOOR = 1e-10
"""Training losses below this are drawn at it: what interpolates has a loss of rounding alone."""


def figure(result: Result) -> go.Figure:
    """Left: test error by optimizer and kappa, log axes, controls grey. Right: training loss at p = n against the test error there."""
    table, n = result.tables["table"], max(m.n for m in result.headline)
    titles = ["median test error, and κ", f"at p = n = {n}: what was reached"]
    fig = make_subplots(rows=1, cols=2, column_widths=[0.63, 0.37], subplot_titles=titles, horizontal_spacing=0.11)
    fig.add_vline(x=n, line={"color": GREY, "dash": "dot", "width": 1.2}, layer="below", row=1, col=1)  # pyright: ignore
    conditions = result.tables["conditions"]
    for column, dash, name in (("rescaled", "dot", "κ, rescaled features"), ("kappa", "dashdot", "κ")):
        line = go.Scatter(
            x=values(conditions, "features"),
            y=values(conditions, column),
            mode="lines",
            line={"color": GREY, "dash": dash, "width": 1.4},
            name=name,
            hovertemplate=f"{name} at p = %{{x}}: %{{y:,.0f}}<extra></extra>",
        )
        fig.add_trace(line, row=1, col=1)
    for (arm, steps), rows in _in_order(table):
        name, color, dash, symbol = _look(table, arm, steps)
        at, grey = values(rows, "features"), color == GREY
        if arm == "min_norm":
            band(fig, at, values(rows, "low"), values(rows, "high"), rgba(color, 0.18), name, column=1)
        line = go.Scatter(
            x=at,
            y=values(rows, "value"),
            mode="lines+markers",
            line={"color": color, "dash": dash, "width": 1.4 if grey else 2.2},
            marker={"color": color, "symbol": symbol, "size": 4},
            name=name,
            legendgroup=name,
            customdata=values(rows, "train"),
            hovertemplate=f"{name}, p = %{{x}}: test %{{y:.3g}}, training %{{customdata:.2g}}<extra></extra>",
        )
        fig.add_trace(line, row=1, col=1)
        here = select(rows, features=n)
        if len(here):
            dot = go.Scatter(
                x=np.maximum(values(here, "train"), FLOOR),
                y=values(here, "value"),
                mode="markers",
                marker={"color": color, "symbol": symbol, "size": 11},
                showlegend=False,
                legendgroup=name,
                hovertemplate=f"{name}: training %{{x:.2g}}, test %{{y:.3g}}<extra></extra>",
            )
            fig.add_trace(dot, row=1, col=2)
    power: dict[str, Any] = {"type": "log", "exponentformat": "power", "dtick": 1, "tickfont": {"size": 12}}
    fig.update_xaxes(title_text="features p", type="log", tickvals=[10, 30, 100, 300, 1000], row=1, col=1)
    fig.update_yaxes(title_text="squared error; condition number", **power, row=1, col=1)
    fig.update_xaxes(power, title_text=f"training loss (squared error; at least {FLOOR:g})", dtick=2, row=1, col=2)
    fig.update_yaxes(title_text="test error", **power, row=1, col=2)
    below = f"{n} rows, medians over seeds {words.listed(words.seeds(result))}; band: quartiles"
    return finish(fig, "The peak at p = n needs an optimizer that gets there", below, height=470)


def _in_order(table: pd.DataFrame) -> list[tuple[tuple[str, float], pd.DataFrame]]:
    """Controls first, and so behind; of the rescaled features the longest descent alone."""
    longest = float(values(select(table, arm="rescaled_gd"), "steps").max())
    shown = keep(table, (table["arm"] != "rescaled_gd") | (table["steps"] == longest))
    order = ("zero", "rescaled_gd", "min_norm", "gd", "heavy_ball", "adam")
    found = [((str(arm), float(steps)), rows) for (arm, steps), rows in groups(shown, "arm", "steps")]
    return sorted(found, key=lambda item: (order.index(item[0][0]), item[0][1]))


def _look(table: pd.DataFrame, arm: str, steps: float) -> tuple[str, str, str, str]:
    """Name, colour, dash, marker."""
    if arm == "gd":
        lengths = sorted(set(values(select(table, arm="gd"), "steps")))
        return f"descent, {_power(steps)} steps", DESCENTS[lengths.index(steps) % len(DESCENTS)], "solid", "circle"
    return {
        "zero": ("predicting 0", GREY, "dash", "x"),
        "rescaled_gd": (f"rescaled features, {_power(steps)} steps", GREY, "solid", "triangle-down"),
        "min_norm": ("minimum norm", VERMILLION, "solid", "square"),
        "heavy_ball": (f"heavy ball, {_power(steps)} steps", PURPLE, "dash", "diamond"),
        "adam": (f"Adam, {_power(steps)} steps", BLUE, "dot", "star"),
    }[arm]


def _power(steps: float) -> str:
    exponent = math.log10(steps) if 0 < steps < math.inf else 0.5
    return f"10<sup>{exponent:.0f}</sup>" if exponent.is_integer() else f"{steps:,.0f}"


def alt(result: Result) -> str:
    """Where the minimum-norm error peaks and by how much, and what descent makes of it."""
    found = {m.metric: m for m in result.headline}
    table, n = result.tables["table"], max(m.n for m in result.headline)
    said = [f"The minimum-norm test error peaks at p = {words.number(found['peak_at'].value)} n."]
    for (_, steps), rows in groups(select(table, arm="gd", features=n), "arm", "steps"):
        said.append(f"Descent of {steps:,.0f} steps has a test error of {words.number(float(first(rows, 'value')))} there.")
    if "peak_factor" in found:
        said.insert(1, f"It is {words.number(found['peak_factor'].value)} times that of the widest net.")
    return " ".join(said)
