"""Activation maps: hidden neurons by token in both models and their difference, and the neurons that changed most."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.maps import MOST_LABELS, ceiling, color_axes, frame, heat, name_axis
from workbench.figures.marks import whiskers
from workbench.figures.tables import distinct, first, largest, select, values
from workbench.figures.theme import finish, style
from workbench.results import Result

VISIBLE = 0.02
"""A channel is drawn where some activation exceeds this share of the map's largest: compiled blocks are mostly empty."""


def figure(result: Result) -> go.Figure:
    """Maps of base, fine-tuned and difference over one another; below, the neurons that changed most at the read position."""
    maps = select(result.tables["maps"], text=0)
    maps = select(maps, seed=first(maps, "seed")) if "seed" in maps else maps
    base, tuned = (_matrix(select(maps, model=model)) for model in ("base", "tuned"))
    whole = base.shape[1]
    most = max(float(np.abs(base).max()), float(np.abs(tuned).max()))
    shown = np.flatnonzero(np.maximum(np.abs(base), np.abs(tuned)).max(0) > VISIBLE * most)
    base, tuned = base[:, shown], tuned[:, shown]
    heights = [180.0, 180.0, 180.0, 40.0, 260.0]  # the fourth is room for the names of channels
    height = sum(heights) + 4 * 34 + 208
    block = int(first(maps, "block")) + 1
    fig = make_subplots(
        rows=5,
        cols=1,
        specs=[[{}], [{}], [{}], [None], [{}]],
        row_heights=heights,
        vertical_spacing=34 / (height - 208),
        subplot_titles=["base", "fine-tuned", "fine-tuned minus base", "neurons that changed most at the read position"],
    )
    fig.update_layout(color_axes(ceiling(np.stack([base, tuned])), ceiling(tuned - base), "activation", height))
    _maps(fig, maps, (base, tuned, tuned - base), shown)
    count = f"{len(shown)} of {whole} channels" if len(shown) < whole else f"{whole} channels"
    fig.layout.annotations[0].update(text=f"base: hidden neurons of block {block} ({count})")
    _changed(fig, result)
    frame(fig)
    pt, _ = words.subject(result)
    title = f"What the hidden neurons do on texts for {pt}"
    return finish(fig, title, words.sample(result), height=int(height), top=146, bottom=62)


def _matrix(rows: pd.DataFrame) -> np.ndarray:
    matrix = np.zeros((int(largest(rows, "position")) + 1, int(largest(rows, "neuron")) + 1))
    matrix[rows["position"].to_numpy(), rows["neuron"].to_numpy()] = values(rows, "activation")
    return matrix


def _maps(fig: go.Figure, maps: pd.DataFrame, matrices: tuple[np.ndarray, ...], shown: np.ndarray) -> None:
    by_neuron = maps.drop_duplicates("neuron").set_index("neuron")["name"]
    by_position = maps.drop_duplicates("position").sort_values("position")
    channels = [str(by_neuron[i]) for i in shown]
    tokens = ["read" if read else str(token) for token, read in zip(by_position["token"], by_position["read"], strict=True)]
    hover = np.array([[f"{i + 1}: {token}, {channel}" for channel in channels] for i, token in enumerate(tokens)])
    named = len(channels) <= MOST_LABELS
    numbers = [str(i) for i in shown]
    ticks = None if named else list(range(0, len(shown), max(1, len(shown) // 10)))
    for row, matrix in enumerate(matrices, start=1):
        at: dict[str, Any] = {"row": row, "col": 1}
        signed = "%{z:+.3f}" if row == 3 else "%{z:.3f}"
        fig.add_trace(heat(matrix, hover, "coloraxis2" if row == 3 else "coloraxis", "%{text}<br>" + signed), **at)
        fig.update_xaxes(name_axis(channels if named else numbers, ticks), tickangle=-35 if named else 0, **at)
        fig.update_xaxes(showticklabels=row == 3, **at)
        only = [tokens.index("read")] if len(tokens) > 14 else None
        fig.update_yaxes(name_axis(tokens, only), autorange="reversed", title_text="token", **at)


def _changed(fig: go.Figure, result: Result) -> None:
    table = result.tables["table"]
    if "seeds" in table:  # a neuron that only some seeds list comes after those that all do
        table = table.sort_values("seeds", ascending=False, kind="stable")
    labels = [f"block {b + 1}: {n}" for b, n in zip(table["block"], table["name"], strict=True)]
    table = table.assign(label=labels)
    order = distinct(table, "label")[:12][::-1]
    for model in ("base", "tuned"):
        rows = select(table, model=model).drop_duplicates("label").set_index("label").reindex(order).reset_index()
        how, value = style(model), values(rows, "value")
        fig.add_trace(
            go.Scatter(
                x=value,
                y=rows["label"],
                mode="markers",
                name=f"{words.MODELS[model]} model",
                marker={"symbol": how.marker, "size": 8, "color": how.color},
                error_x=whiskers(rows, how.color),
                hovertemplate=f"%{{y}}<br>{words.MODELS[model]}: %{{x:.3f}}<extra></extra>",
            ),
            row=5,
            col=1,
        )
    fig.update_xaxes(title_text="mean activation at the read position", zeroline=True, row=5, col=1)
    fig.update_yaxes(type="category", automargin=True, tickfont={"size": 11}, row=5, col=1)


def alt(result: Result) -> str:
    """How much changed, in how few neurons, and which changed most."""
    change = select(result.tables["table"], model="change")
    top = change.iloc[[int(np.argmax(values(change, "value")))]]
    pt, _ = words.subject(result)
    return (
        f"On texts for {pt} hidden activations at the read position changed by "
        f"{words.interval(result.metric('relative_change'))} of their size, "
        f"{words.interval(result.metric('concentration'))} of that in five neurons; the most in block "
        f"{int(first(top, 'block')) + 1}, {first(top, 'name')}, by {float(first(top, 'value')):.2f}."
    )
