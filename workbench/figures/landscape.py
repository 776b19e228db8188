"""Landscape: contours of the loss on the plane with the models and their way, and slices along random directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import band
from workbench.figures.tables import distinct, first, groups, keep, select, values
from workbench.figures.theme import finish, style
from workbench.results import Result

ROLES = ("pt", "ft")
LEVELS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
"""Losses (nats) that the colour bar names."""
HEIGHTS = ((0.0, "#26222F"), (0.5, "#77708A"), (1.0, "#DDD8E6"))
"""Opaque, for filled contours lie upon one another and a colour bar knows no transparency; no hue of a model's."""
FLOOR = 1e-3
"""Losses below are drawn as this one."""
NAMES = {**words.MODELS, "untrained": "random weights"}
WAYS = {"finetune": ("tuned", "way of fine-tuning"), "revived": ("revived", "way of the revival")}
HEIGHT = 880


def figure(result: Result) -> go.Figure:
    """Columns: the abilities. Above: log-spaced contours on the plane; below: mean and range over random directions."""
    seed, grid, path = _one_plane(result)
    line = select(result.tables["line"], measure="loss")
    loss = select(grid, measure="loss")
    titles = [words.ability(str(first(select(loss, role=role), "capability")), role) for role in ROLES]
    fig = make_subplots(rows=2, cols=2, row_heights=[0.62, 0.38], vertical_spacing=0.13, subplot_titles=titles)
    _contours(fig, loss)
    shown: set[str] = set()
    for column, role in enumerate(ROLES, start=1):
        _way(fig, select(path, role=role), column, shown)
        _slices(fig, select(line, role=role), column, shown)
        letter = "" if column == 1 else "2"
        fig.update_yaxes(scaleanchor=f"x{letter}", constrain="domain", row=1, col=column)
        fig.update_xaxes(constrain="domain", row=1, col=column)
    kind = str(first(grid, "plane"))
    across, up = ("component 1", "component 2") if kind == "path" else ("base to fine-tuned", "across")
    for column in (1, 2):
        fig.update_xaxes(title_text=f"{across} (distances from base to fine-tuned)", zeroline=False, row=1, col=column)
        fig.update_xaxes(title_text="α, multiple of a random direction", zeroline=False, row=2, col=column)
    fig.update_yaxes(zeroline=False)
    fig.update_yaxes(title_text=up, row=1, col=1)
    fig.update_yaxes(rangemode="tozero", row=2)
    fig.update_yaxes(title_text="loss (nats)", row=2, col=1)
    pt, _ = words.subject(result)
    sample = words.sample(result, result.metric("rise_base_pt").n)
    of = f"; the plane is that of seed {seed}" if len(words.seeds(result)) > 1 else ""
    finish(fig, f"The loss around the models with and without {pt}", f"{sample}{of}", height=HEIGHT, top=138)
    return fig


def _one_plane(result: Result) -> tuple[Any, pd.DataFrame, pd.DataFrame]:
    """Grid and path of one seed: planes of different models have no mean."""
    path = result.tables["path"]
    if "seed" not in path:
        return "", result.table, path
    seed = first(path, "seed")
    return seed, select(result.tables["table_by_seed"], seed=seed), select(path, seed=seed)


def _contours(fig: go.Figure, loss: pd.DataFrame) -> None:
    """Both abilities on one scale."""
    height = np.log10(np.maximum(values(loss, "value"), FLOOR))
    low, high = float(height.min()), float(height.max())
    ticks = [level for level in LEVELS if low - 0.15 <= np.log10(level) <= high + 0.15] or [10**low]
    for column, role in enumerate(ROLES, start=1):
        rows = select(loss, role=role)
        table = rows.pivot(index="y", columns="x", values="value")
        nats = table.to_numpy(dtype=np.float64)
        fig.add_trace(
            go.Contour(
                x=table.columns.to_numpy(dtype=np.float64),
                y=table.index.to_numpy(dtype=np.float64),
                z=np.log10(np.maximum(nats, FLOOR)),
                customdata=nats,
                coloraxis="coloraxis",
                contours={"start": low, "end": high, "size": max((high - low) / 12, 1e-6)},
                line={"width": 0.8, "color": "rgba(255,255,255,0.35)"},
                hovertemplate="x %{x:.2f}, y %{y:.2f}: %{customdata:.3f} nats<extra></extra>",
            ),
            row=1,
            col=column,
        )
    bar: dict[str, Any] = {
        "title": {"text": "loss (nats)\u00a0\u00a0\u2060", "side": "right", "font": {"size": 12}},
        "orientation": "h",
        "x": 0.0,
        "xanchor": "left",
        "y": 1 - 54 / HEIGHT,
        "yref": "container",
        "yanchor": "top",
        "len": 0.6,
        "thickness": 8,
        "tickvals": [float(np.log10(level)) for level in ticks],
        "ticktext": [f"{level:g}" for level in ticks],
        "tickfont": {"size": 11},
        "tickangle": 0,
        "outlinewidth": 0,
    }
    span = {"cmin": low, "cmax": max(high, low + 1e-6)}
    fig.update_layout(coloraxis={**span, "colorscale": HEIGHTS, "colorbar": bar})


def _way(fig: go.Figure, rows: pd.DataFrame, column: int, shown: set[str]) -> None:
    """Checkpoints in order, and the models upon them."""
    for (training,), some in groups(keep(rows, rows["training"] != ""), "training"):
        look, name = WAYS[str(training)]
        points = some.sort_values("step")
        if training == "revived":  # it starts from the tuned model
            points = pd.concat([select(rows, model="tuned"), points])
        _points(fig, points, name, style(look).color, column, shown, line={"dash": style(look).dash, "width": 2}, size=4)
    for model in ("base", "tuned", "revived"):
        mine = select(rows, model=model)
        if len(mine):
            name = f"{NAMES[model]} (model)"
            _points(fig, mine, name, style(model).color, column, shown, symbol=style(model).marker, size=12)


def _points(
    fig: go.Figure,
    rows: pd.DataFrame,
    name: str,
    color: str,
    column: int,
    shown: set[str],
    *,
    line: dict[str, Any] | None = None,
    symbol: str = "circle",
    size: int,
) -> None:
    edge = {"width": 1.5, "color": "white"} if line is None else {"width": 0}
    fig.add_trace(
        go.Scatter(
            x=values(rows, "x"),
            y=values(rows, "y"),
            mode="lines+markers" if line is not None else "markers",
            name=name,
            legendgroup=name,
            showlegend=name not in shown,
            line={"color": color, **(line or {})},
            marker={"symbol": symbol, "size": size, "color": color, "line": edge},
            customdata=np.column_stack(
                [values(rows, c) for c in ("step", "loss_nats", "on_plane_nats", "outside", "accuracy")]
            ),
            hovertemplate=f"<b>{name}</b>, step %{{customdata[0]:,}}<br>loss %{{customdata[1]:.3f}} nats, accuracy "
            "%{customdata[4]:.3f}<br>on the plane %{customdata[2]:.3f} nats; %{customdata[3]:.0%} of its squared distance "
            "is not shown<extra></extra>",
        ),
        row=1,
        col=column,
    )
    shown.add(name)


def _slices(fig: go.Figure, rows: pd.DataFrame, column: int, shown: set[str]) -> None:
    """Mean over directions with their range; controls first, to lie behind."""
    models: Sequence[str] = sorted(distinct(rows, "model"), key=lambda model: not style(model).control)
    for model in models:
        mine, how = select(rows, model=model), style(model)
        spread = mine.groupby("alpha")["value"].agg(["mean", "min", "max"]).reset_index()
        at, count = values(spread, "alpha"), mine["direction"].nunique()
        name = f"{NAMES[model]} (mean and range of {count} directions)"
        band(fig, at, values(spread, "min"), values(spread, "max"), how.faint, name, column, 2)
        fig.add_trace(
            go.Scatter(
                x=at,
                y=values(spread, "mean"),
                mode="lines",
                name=name,
                legendgroup=name,
                showlegend=name not in shown,
                line={"color": how.color, "dash": how.dash, "width": 1.6 if how.control else 2.4},
                hovertemplate=f"<b>{NAMES[model]}</b><br>α %{{x:g}}: %{{y:.3f}} nats<extra></extra>",
            ),
            row=2,
            col=column,
        )
        shown.add(name)


def alt(result: Result) -> str:
    """Rises around the models, and how much of the path the plane shows."""
    pt, ft = words.subject(result)
    found = {m.metric: m for m in result.headline}

    def rises(role: str) -> str:
        names = [name for name in NAMES if f"rise_{name}_{role}" in found]
        return words.listed([f"{words.interval(found[f'rise_{name}_{role}'])} around {NAMES[name]}" for name in names])

    shown = (
        f"the plane of the path holds {words.number(found['explained'].value)} of its squared distance, where that of a random "
        f"walk would hold {words.number(found['explained_walk'].value)}"
        if "explained" in found
        else f"at most {words.number(found['outside'].value)} of a model's squared distance lies outside the plane"
    )
    return (
        f"At half a filter-normalised random direction the loss of {pt} rises (nats) by {rises('pt')}, that of {ft} by "
        f"{rises('ft')}; {shown}."
    )
