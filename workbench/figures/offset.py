"""Offset: where fine-tuning moved the residual stream, how much of that is one constant, and what stayed as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.maps import AMOUNT, ceiling, frame, heat, name_axis
from workbench.figures.marks import whiskers
from workbench.figures.tables import distinct, largest, select, values
from workbench.figures.theme import finish, style
from workbench.results import Result

MAPS = (
    ("tuned", "relative norm", "size of the constant"),
    ("tuned", "constant share", "share of the change that is constant"),
    ("base", "separation", "separation of the prompts, base"),
    ("tuned", "separation", "separation of the prompts, fine-tuned"),
)
"""Model, measure and what stands above the map."""
COMPARED = {"tuned": "fine-tuned", "revived": "revived", "never_had_it": "never had it"}
VECTORS = {"key": ("key", "solid", "circle"), "value": ("value", "dash", "square")}


def figure(result: Result) -> go.Figure:
    """Maps of point by place above; below, cosines of MLP vectors by block, and sensitivity to the input by model and prompt."""
    table = result.tables["table"]
    fig = make_subplots(
        rows=3,
        cols=2,
        row_heights=[0.26, 0.26, 0.3],
        horizontal_spacing=0.13,
        vertical_spacing=0.16,
        subplot_titles=[
            *(title for _, _, title in MAPS),
            "MLP neurons: keys (solid), values (dashed)<br>against the base's, down to 5th percentile",
            "sensitivity to the input",
        ],
    )
    places = table.drop_duplicates("order").sort_values("order")
    names = [_place(str(place), str(role)) for place, role in zip(places["place"], places["role"], strict=True)]
    points = sorted(int(p) for p in distinct(table, "point"))
    said = ["embedding" if p == 0 else f"block {p}" for p in points]
    top = ceiling(values(select(table, model="tuned", measure="relative norm"), "value"))
    for index, (model, measure, _) in enumerate(MAPS):
        row, column = index // 2 + 1, index % 2 + 1
        at: dict[str, Any] = {"row": row, "col": column}
        z = _matrix(select(table, model=model, measure=measure), points, list(places["order"]))
        hover = np.array([[f"after {point}, at {name}" for name in names] for point in said])
        axis = {"relative norm": "coloraxis", "constant share": "coloraxis2"}.get(measure, "coloraxis3")
        fig.add_trace(heat(z, hover, axis, "%{text}<br>" + measure + " %{z:.3f}"), **at)
        fig.update_xaxes(name_axis(names, None if len(names) <= 24 else [names.index("answer")]), tickangle=-60, **at)
        fig.update_yaxes(name_axis(said), **at)
        fig.update_yaxes(showticklabels=column == 1, title_text="after" if column == 1 else "", **at)
    separation = ceiling(values(select(table, measure="separation"), "value"))
    fig.update_layout(
        coloraxis=_scale(0, top, AMOUNT, 0.435, 0.93),
        coloraxis2=_scale(0, 1, AMOUNT, 1.0, 0.93),
        coloraxis3=_scale(0, separation, AMOUNT, 1.0, 0.57),
    )
    frame(fig)
    _cosines(fig, result.tables["mlp"])
    _sensitivity(fig, result)
    pt, ft = words.subject(result)
    title = f"Is the change on texts for {pt} a constant offset?"
    rests = words.sample(result, result.metric("relative_norm_tuned").n).replace("; 95", f"; prompts for {pt} against {ft}; 95")
    return finish(fig, title, rests, height=980, top=112, bottom=70)


def _place(name: str, role: str) -> str:
    """Positions of a text are counted back from its end."""
    if role in ("text", "window"):
        return "last" if name == "0" else f"-{name}"
    return "answer" if role == "request" else name


def _matrix(rows: pd.DataFrame, points: list[int], orders: list[int]) -> np.ndarray:
    z = np.full((len(points), len(orders)), np.nan)
    for point, order, value in zip(rows["point"], rows["order"], values(rows, "value"), strict=True):
        z[points.index(int(point)), orders.index(int(order))] = value
    return z


def _scale(low: float, high: float, colors: Any, x: float, top: float) -> dict[str, Any]:
    """A colour axis whose bar stands to the right of its map."""
    bar: dict[str, Any] = {"x": x, "xanchor": "left", "y": top, "yanchor": "top", "len": 0.24, "thickness": 8, "nticks": 4}
    return {"cmin": low, "cmax": high, "colorscale": colors, "colorbar": {**bar, "outlinewidth": 0, "tickfont": {"size": 11}}}


def _cosines(fig: go.Figure, table: pd.DataFrame) -> None:
    """Means by block, down to a low percentile of the neurons."""
    at: dict[str, Any] = {"row": 3, "col": 1}
    blocks = sorted(int(b) for b in distinct(table, "block"))
    (low,) = [m for m in distinct(table, "measure") if m != "mean"]
    for m, (model, who) in enumerate(COMPARED.items()):
        for v, (vector, (said, dash, marker)) in enumerate(VECTORS.items()):
            mine = select(table, model=model, vector=vector)
            mean = select(mine, measure="mean")
            if mean.empty:
                continue
            color, value = style(model).color, values(mean, "value")
            fig.add_trace(
                go.Scatter(
                    x=values(mean, "block") + 0.05 * (m - 1) + 0.025 * (2 * v - 1),
                    y=value,
                    mode="lines+markers",
                    name=f"{who}: {said} vectors",
                    showlegend=False,
                    legendgroup=model,
                    line={"color": color, "dash": dash, "width": 2},
                    marker={"symbol": marker, "size": 8, "color": color},
                    error_y={
                        "array": np.zeros(len(mean)),
                        "arrayminus": value - values(select(mine, measure=low), "value"),
                        "thickness": 1.2,
                        "width": 3,
                        "color": color,
                    },
                    hovertemplate=f"{who}, {said}: %{{y:.4f}}<extra></extra>",
                ),
                **at,
            )
    fig.update_xaxes(
        tickvals=blocks, ticktext=[f"block {b + 1}" for b in blocks], range=[-0.3, max(blocks) + 0.3], zeroline=False, **at
    )
    fig.update_yaxes(title_text="mean cosine", range=[-0.06, 1.06], zeroline=True, **at)


def _sensitivity(fig: go.Figure, result: Result) -> None:
    """Norm of the gradient at the embeddings, one column per prompt."""
    at: dict[str, Any] = {"row": 3, "col": 2}
    table = result.tables["lipschitz"]
    asked = distinct(table, "capability")
    models = [model for model in ("base", *COMPARED) if model in distinct(table, "model")]
    for i, model in enumerate(models):
        rows, how = select(table, model=model), style(model)
        who = {"base": "base", **COMPARED}[model]
        fig.add_trace(
            go.Scatter(
                x=[asked.index(c) + 0.12 * (i - (len(models) - 1) / 2) for c in rows["capability"]],
                y=values(rows, "value"),
                mode="markers",
                name=f"{who} model" if model in ("base", "tuned") else who,
                legendgroup=model,
                marker={"symbol": how.marker, "size": 9, "color": how.color},
                error_y=whiskers(rows, how.color),
                hovertemplate=f"{who}: %{{y:.2f}}<extra></extra>",
            ),
            **at,
        )
    ticks = [f"prompts for<br>{words.capability(str(c))}" for c in asked]
    fig.update_xaxes(tickvals=list(range(len(asked))), ticktext=ticks, range=[-0.5, len(asked) - 0.5], zeroline=False, **at)
    fig.update_yaxes(title_text="|d logit / d embedding|", range=[0, 1.1 * largest(table, "high", 1.0)], **at)


def alt(result: Result) -> str:
    """How much of the change at the answer is one constant, and how little the MLP vectors moved."""
    pt, _ = words.subject(result)
    found = {m.metric: m for m in result.headline}
    said = (
        f"After the last block, where {pt} is answered, one constant makes up {words.interval(found['constant_share_tuned'])} of "
        f"fine-tuning's mean squared change and is {words.interval(found['relative_norm_tuned'])} of the stream's length."
    )
    if "separation_base" in found:
        said += (
            f" Prompts for the two abilities are apart by {words.interval(found['separation_base'])} in the base and "
            f"{words.interval(found['separation_tuned'])} in the fine-tuned model."
        )
    if "key_cosine" in found:
        said += (
            f" MLP keys and values keep mean cosines of {found['key_cosine'].value:.3f} and {found['value_cosine'].value:.3f}."
        )
    return said
