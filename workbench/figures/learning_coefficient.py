"""Local learning coefficients: numbers per model and ability, the calibration behind them, and the chains themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import whiskers
from workbench.figures.tables import distinct, groups, keep, select, values
from workbench.figures.theme import GREY, finish, style
from workbench.results import Result

ROLES = ("pt", "ft")
TITLE = "local learning coefficient"


def figure(result: Result) -> go.Figure:
    """Above: numbers with intervals, undefined ones named on the axis; the sweep. Below: traces of each ability, burn-in shaded."""
    pt, ft = words.subject(result)
    names = {"pt": pt, "ft": ft}
    fig = make_subplots(
        rows=2,
        cols=2,
        vertical_spacing=0.24,
        horizontal_spacing=0.12,
        subplot_titles=["", "calibration on the base", *(f"chains on {names[role]}" for role in ROLES)],
    )
    _numbers(fig, result)
    _sweep(fig, result)
    for column, role in enumerate(ROLES, start=1):
        _traces(fig, result, role, column)
    return finish(fig, "How degenerate is the loss around each model?", words.sample(result), height=860, top=104)


def _numbers(fig: go.Figure, result: Result) -> None:
    table = select(result.tables["table"], measure="llc")
    models = distinct(table, "model")
    for model in models:
        how, mine = style(model), select(table, model=model)
        known = keep(mine, np.isfinite(values(mine, "value")))
        fig.add_trace(
            go.Scatter(
                # A series without points would have no entry in the legend.
                x=[ROLES.index(role) + (models.index(model) - (len(models) - 1) / 2) * 0.14 for role in known["role"]]
                or [None],
                y=values(known, "value") if len(known) else [None],
                error_y=whiskers(known, how.color),
                mode="markers",
                name=words.MODELS.get(model, model) + ("" if len(known) else ": undefined"),
                legendgroup=model,
                marker={"symbol": how.marker, "size": 9, "color": how.color},
                hovertemplate=f"<b>{words.MODELS.get(model, model)}</b>: %{{y:.2f}}<extra></extra>",
            ),
            row=1,
            col=1,
        )
    missing = [
        "undefined: " + ",<br>".join(words.MODELS.get(str(m), str(m)) for m in sorted(set(mine["model"]), key=models.index))
        if len(mine := keep(rows, np.isnan(values(rows, "value"))))
        else ""
        for rows in (select(table, role=role) for role in ROLES)
    ]
    pt, ft = words.subject(result)
    labels = [f"{name}<br>{gap}" for name, gap in zip((pt, ft), missing, strict=True)]
    at: dict[str, Any] = {"row": 1, "col": 1}
    fig.update_xaxes(tickvals=[0, 1], ticktext=labels, range=[-0.5, 1.5], zeroline=False, **at)
    fig.update_yaxes(title_text=TITLE, rangemode="tozero", **at)


def _sweep(fig: go.Figure, result: Result) -> None:
    """Estimates by step size and localisation; what failed a check is crossed out, what was chosen framed. First seed of several."""
    sweep = result.tables["sweep"]
    if "seed" in sweep:
        sweep = select(sweep, seed=distinct(sweep, "seed")[0])
    at: dict[str, Any] = {"row": 1, "col": 2}
    eps, gamma = sorted(distinct(sweep, "eps")), sorted(distinct(sweep, "gamma"))
    cells = np.full((len(gamma), len(eps)), np.nan)
    said = np.full(cells.shape, "", dtype=object)
    for row in sweep.to_dict("records"):
        i, j = gamma.index(row["gamma"]), eps.index(row["eps"])
        cells[i, j] = row["estimate"]
        number = f"{row['estimate']:.2f}" if math.isfinite(row["estimate"]) else "none"
        said[i, j] = f"<b>{number}<br>chosen</b>" if row["chosen"] else number if row["passes"] else f"{number}<br>refused"
    fig.add_trace(
        go.Heatmap(
            z=cells,
            x=[f"{e:g}" for e in eps],
            y=[f"{g:g}" for g in gamma],
            text=said,
            texttemplate="%{text}",
            colorscale=[[0, "#DCEAF5"], [1, style("base").color]],  # opaque, so that the text on it is chosen to be read
            showscale=False,
            showlegend=False,
            hoverongaps=False,
            hovertemplate="step %{x}, localisation %{y}: %{z:.3f}<extra></extra>",
        ),
        **at,
    )
    fig.update_xaxes(title_text="step size ε", type="category", **at)
    fig.update_yaxes(title_text="localisation γ", type="category", **at)


def _traces(fig: go.Figure, result: Result, role: str, column: int) -> None:
    at: dict[str, Any] = {"row": 2, "col": column}
    rows = select(result.tables["traces"], role=role)
    burn = float(result.settings.get("burn", 0))
    if burn:
        fig.add_vrect(x0=0, x1=burn, fillcolor=GREY, opacity=0.13, line_width=0, exclude_empty_subplots=False, **at)
    for (model, *_), mine in groups(rows, "model", *(["seed"] if "seed" in rows else []), "chain"):
        how = style(str(model))
        fig.add_trace(
            go.Scatter(
                x=values(mine, "draw"),
                y=values(mine, "llc"),
                mode="lines",
                legendgroup=str(model),
                name=words.MODELS.get(str(model), str(model)),
                showlegend=False,
                opacity=0.7,
                line={"color": how.color, "width": 1, "dash": how.dash},
                hovertemplate=f"{words.MODELS.get(str(model), str(model))}: %{{y:.2f}}<extra></extra>",
            ),
            **at,
        )
    # Chains that fell far below their model must not flatten all others.
    sound = select(result.tables["checks"], role=role, passes=True)
    shown = keep(rows, rows["model"].isin(distinct(sound, "model")))
    if len(shown):
        low, high = float(values(shown, "llc").min()), float(values(shown, "llc").max())
        pad = 0.08 * (high - low)
        fig.update_yaxes(range=[min(low, -pad) - pad, high + pad], **at)
    fig.update_xaxes(title_text="draw (burn-in shaded)", rangemode="tozero", **at)
    fig.update_yaxes(title_text="nβ (L − L(w₀))" if column == 1 else "", **at)


def alt(result: Result) -> str:
    """The numbers of the models, and which have none."""
    pt, ft = words.subject(result)
    found: list[str] = []
    missing: list[str] = []
    for m in result.headline:
        model, _, role = m.metric.removeprefix("llc_").rpartition("_")
        name = f"{words.MODELS.get(model, model)} on {pt if role == 'pt' else ft}"
        if m.bound == "undefined":
            missing.append(name)
        else:
            found.append(f"{words.interval(m)} for {name}")
    first = f"Local learning coefficients: {words.listed(found)}." if found else "No local learning coefficient is defined."
    return first + (f" Refused, since chains failed a check: {words.listed(missing)}." if missing else "")
