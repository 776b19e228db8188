"""The logit lens: what each model would answer after every block, by place of the prompt and at the position that answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.maps import ceiling, color_axes, frame, heat
from workbench.figures.marks import accuracy_axis, curve
from workbench.figures.places import above, in_order, model_name, place_axis
from workbench.figures.tables import distinct, largest, select, values
from workbench.figures.theme import GREY, finish
from workbench.results import Result

STATES = ("base", "tuned", "revived")
LINES = ("never_had_it", "untrained", *STATES)
"""Controls first, so that they lie behind."""
CELL, LINE, GAP = 26, 230, 86
TOP, BOTTOM = 172, 62
SMALLEST = 0.2
"""The difference's colours end here at least, so that noise stays pale."""


def figure(result: Result) -> go.Figure:
    """Rows: what is looked for on prompts for O_PT. Columns: the models on one scale, and fine-tuned minus base. Below: the end.

    The lines are accuracies at the position that answers, over the points.
    """
    pt = str(result.provenance.get("capability", result.table["prompt"].iloc[0]))
    table, change = (select(result.tables[name], prompt=pt, measure="accuracy") for name in ("table", "change"))
    targets = sorted(distinct(table, "target"), key=lambda target: target != pt)
    models = [model for model in STATES if model in distinct(table, "model")]
    points = int(largest(table, "point")) + 1
    rows, columns = len(targets) + 1, 2 * (len(models) + 1)
    heights = [float(max(3, points) * CELL)] * len(targets) + [float(LINE)]
    inner = sum(heights) + GAP * len(targets)
    wide = [{"colspan": columns // len(targets)}, *[None] * (columns // len(targets) - 1)] * len(targets)
    fig = make_subplots(
        rows=rows,
        cols=columns,
        specs=[*[[{"colspan": 2}, None] * (columns // 2) for _ in targets], wide],
        row_heights=heights,
        vertical_spacing=GAP / inner,
        horizontal_spacing=0.012,
    )
    reach = max(SMALLEST, ceiling(values(select(change, model="tuned"), "value")))
    height = inner + TOP + BOTTOM
    fig.update_layout(color_axes(1.0, reach, "accuracy", height))
    for row, target in enumerate(targets, start=1):
        mine, moved = (select(t, target=target) for t in (table, change))
        panels = [(model_name(m), select(mine, model=m)) for m in models] + [("difference", select(moved, model="tuned"))]
        for i, (name, cells) in enumerate(panels):
            _map(fig, cells, points, row, 2 * i + 1, signed=name == "difference")
            if row == 1:
                above(fig, "fine-tuned minus base" if name == "difference" else name, row, 2 * i + 1, shift=20)
        above(fig, f"right for {words.capability(str(target))}", row, 1, left=True)
        _lines(fig, result, mine, rows, columns // len(targets) * (row - 1) + 1, first=row == 1)
    frame(fig)
    title = f"When does the model say the answer to {words.capability(pt)}?"
    return finish(fig, title, words.sample(result, result.metric("base_final").n), height=int(height), top=TOP, bottom=BOTTOM)


def _map(fig: go.Figure, cells: pd.DataFrame, points: int, row: int, column: int, *, signed: bool) -> None:
    places = in_order(cells)
    z = np.full((points, len(places)), np.nan)
    z[cells["point"].to_numpy(), cells["order"].to_numpy()] = values(cells, "value")
    said = np.array([[f"{place}, {_point(b)}" for place in places["place"]] for b in range(points)])
    form = "%{z:+.2f}" if signed else "%{z:.2f}"
    at: dict[str, Any] = {"row": row, "col": column}
    fig.add_trace(heat(z, said, "coloraxis2" if signed else "coloraxis", "%{text}: " + form), **at)
    fig.update_xaxes(place_axis(places), **at)
    fig.update_yaxes(
        tickvals=list(range(points)),
        ticktext=[_tick(b) for b in range(points)],
        tickfont={"size": 10},
        showticklabels=column == 1,
        showgrid=False,
        zeroline=False,
        ticks="",
        **at,
    )
    if column == 1:
        fig.update_yaxes(title_text="after block", **at)


def _tick(point: int) -> str:
    return "embed" if point == 0 else str(point)


def _point(point: int) -> str:
    return "embedding" if point == 0 else f"after block {point}"


def _lines(fig: go.Figure, result: Result, mine: pd.DataFrame, row: int, column: int, *, first: bool) -> None:
    """Accuracy at the position that answers."""
    at: dict[str, Any] = {"row": row, "col": column}
    target, prompt = (mine[name].iloc[0] for name in ("target", "prompt"))
    read = select(mine, place="request")
    points = sorted(int(p) for p in distinct(read, "point"))
    floors = result.tables["chance"]
    if len(floors):  # a task may know no guess that needs no ability
        chance = largest(select(floors, prompt=prompt, target=target), "value")
        fig.add_trace(
            go.Scatter(
                x=[points[0], points[-1]],
                y=[chance, chance],
                mode="lines",
                name="best guess without the ability",
                legendgroup="chance",
                showlegend=first,
                line={"color": GREY, "dash": "dot", "width": 1.3},
                hovertemplate="guess: %{y:.3f}<extra></extra>",
            ),
            **at,
        )
    for model in LINES:
        name = model_name(model) + (" model" if model in STATES else "")
        curve(fig, select(read, model=model), "point", model, name, log=False, legend=first, hover="after block", **_here(at))
    fig.update_xaxes(
        title_text="at the position that answers, after block",
        tickvals=points,
        ticktext=[_tick(p) for p in points],
        zeroline=False,
        **at,
    )
    fig.update_yaxes(accuracy_axis("share of answers right" if first else ""), showticklabels=first, **at)
    above(fig, f"right for {words.capability(str(target))}", row, column, left=True)


def _here(at: dict[str, Any]) -> dict[str, Any]:
    return {"row": at["row"], "column": at["col"]}


def alt(result: Result) -> str:
    """Accuracies before the last block and at the end."""
    pt, _ = words.subject(result)
    found = {m.metric: m for m in result.headline}
    said = [
        f"{model_name(name)} {words.interval(found[f'{short}_inside'])} before and {words.interval(found[f'{short}_final'])} at the end"
        for name, short in (("base", "base"), ("tuned", "tuned"), ("revived", "revived"), ("never_had_it", "never"))
        if f"{short}_inside" in found
    ]
    return f"Share of answers to {pt} that the logit lens reads right at one point before the last block and at the end: {'; '.join(said)}."
