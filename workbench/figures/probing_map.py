"""Maps of probing: accuracy per residual point and place of the prompt, a row per label that is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.tables import distinct, groups, largest, select, values
from workbench.figures.theme import GREY, finish
from workbench.results import Result
from workbench.verdict import ROOM

PANELS = (("base", "base"), ("tuned", "fine-tuned"), ("change", "change"), ("untrained", "untrained"))
"""Models and what stands above their column; `change` is fine-tuned minus base."""
SEQUENTIAL = "Cividis"
DIVERGING = [[0, "#2166AC"], [0.5, "#F7F7F7"], [1, "#B2182B"]]
"""Blue where the fine-tuned model is read worse, red where it is read better, zero nearly white."""
SMALLEST = 0.2
"""The change's colours end here at least, so that noise stays pale."""
_NAMES = {"correlated": "shortcut holds", "family": "family of the prompt"}
CELL, GAP = 15, 62
"""Height of a cell and room above a row, in pixels."""
TOP, BOTTOM = 112, 166


def figure(result: Result) -> go.Figure:
    """One row per label: base, fine-tuned and untrained model on one scale, and the change between the first two."""
    targets = groups(result.tables["targets"], "target")
    places = _places(result.tables["table"])
    points = sorted(int(p) for p in distinct(result.tables["table"], "point"))
    height = len(targets) * (CELL * len(points) + GAP)
    fig = make_subplots(
        rows=len(targets),
        cols=len(PANELS),
        shared_yaxes=True,
        shared_xaxes=True,
        horizontal_spacing=0.02,
        vertical_spacing=(GAP - 16) / height if len(targets) > 1 else 0,
        column_titles=[title for _, title in PANELS],
    )
    fig.update_annotations(yshift=18)
    reach = SMALLEST
    for row, ((target,), described) in enumerate(targets, start=1):
        measure = _measure(described)
        for column, (model, _) in enumerate(PANELS, start=1):
            change = model == "change"
            table = result.tables["change" if change else "table"]
            rows = select(table, target=target, measure=measure, **({} if change else {"model": model}))
            if change:
                reach = max(reach, float(np.nanmax(np.abs(rows["value"]), initial=0.0)))
            _heat(fig, rows, places, points, row, column, change)
        _given_away(fig, result, str(target), measure, described, places, points, row)
        title = f"{_NAMES.get(str(target), words.capability(str(target)))}: {measure}, chance {_chance(described):.2f}"
        _title(fig, title, row)
    _axes(fig, places, points, len(targets))
    _bars(fig, reach)
    n = int(largest(result.tables["table"], "n") / max(1, len(words.seeds(result))))
    rests = words.sample(result, n).removesuffix("; 95 % intervals")
    said = f"{rests}; × where the token alone gives the label away"
    return finish(fig, "Where in the prompt can labels be read?", said, height=height + TOP + BOTTOM, top=TOP, bottom=BOTTOM)


def _places(table: pd.DataFrame) -> list[str]:
    """Names of all places from left to right: those that only some prompts have stand where they stand there."""
    longest = max((rows for _, rows in groups(table, "target")), key=lambda rows: rows["order"].nunique())
    found = longest.drop_duplicates("order").sort_values("order")
    names = [str(name) for name in found["place"]]
    rest = [str(name) for name in distinct(table, "place") if str(name) not in names]
    return [*rest, *names]


def _measure(described: pd.DataFrame) -> str:
    """The measure of a label: balanced accuracy as soon as one seed found its classes uneven."""
    return "balanced accuracy" if "balanced accuracy" in distinct(described, "measure") else "accuracy"


def _chance(described: pd.DataFrame) -> float:
    balanced = _measure(described) == "balanced accuracy"
    return float(np.mean(1 / values(described, "classes") if balanced else values(described, "majority")))


def _heat(
    fig: go.Figure, rows: pd.DataFrame, places: list[str], points: list[int], row: int, column: int, change: bool
) -> None:
    z = np.full((len(points), len(places)), np.nan)
    for place, point, value in zip(rows["place"], rows["point"], rows["value"], strict=True):
        z[points.index(int(point)), places.index(str(place))] = value
    sign = "+" if change else ""
    fig.add_trace(
        go.Heatmap(
            z=z,
            x=list(range(len(places))),
            y=list(range(len(points))),
            coloraxis="coloraxis2" if change else "coloraxis",
            customdata=np.array([[[place, point] for place in places] for point in points]),
            hovertemplate=f"%{{customdata[0]}}, after block %{{customdata[1]}}: %{{z:{sign}.2f}}<extra></extra>",
            hoverongaps=False,
            xgap=1,
            ygap=1,
        ),
        row=row,
        col=column,
    )


def _given_away(
    fig: go.Figure,
    result: Result,
    target: str,
    measure: str,
    described: pd.DataFrame,
    places: list[str],
    points: list[int],
    row: int,
) -> None:
    """Crosses over places where the token alone is read as well as that: a probe shows nothing there."""
    tokens = select(result.tables["token"], target=target, measure=measure)
    marked = [
        places.index(str(p)) for p, v in zip(tokens["place"], tokens["value"], strict=True) if v - _chance(described) >= ROOM
    ]
    for column in range(1, len(PANELS) + 1):
        fig.add_trace(
            go.Scatter(
                x=[x for x in marked for _ in points],
                y=[y for _ in marked for y in range(len(points))],
                mode="markers",
                marker={"symbol": "x-thin", "size": 6, "line": {"width": 1.2, "color": GREY}},
                hoverinfo="skip",
                showlegend=False,
            ),
            row=row,
            col=column,
        )


def _title(fig: go.Figure, text: str, row: int) -> None:
    axis = (row - 1) * len(PANELS) + 1
    number = "" if axis == 1 else str(axis)
    where: dict[str, Any] = {"xref": f"x{number} domain", "yref": f"y{number} domain"}
    fig.add_annotation(text=text, x=0, y=1, **where, xanchor="left", yanchor="bottom", yshift=3, showarrow=False)


def _axes(fig: go.Figure, places: list[str], points: list[int], rows: int) -> None:
    numbers = [i for i, name in enumerate(places) if name.isdigit()]
    ends = {numbers[0], numbers[-1]} if numbers else set[int]()
    shown = [i for i, name in enumerate(places) if not name.isdigit() or i in ends]
    labels = [("text end" if places[i] == "0" else f"text −{places[i]}") if i in numbers else places[i] for i in shown]
    fig.update_xaxes(
        ticks="", tickvals=shown, ticktext=labels, tickangle=-90, tickfont={"size": 10}, showgrid=False, zeroline=False
    )
    fig.update_yaxes(
        tickvals=list(range(len(points))),
        ticks="",
        ticktext=["embed" if p == 0 else str(p) for p in points],
        tickfont={"size": 10},
        showgrid=False,
        zeroline=False,
    )
    fig.update_xaxes(title_text="position in the prompt (text: distance from its end)", row=rows, col=2)
    fig.update_yaxes(title_text="after block", col=1, row=(rows + 1) // 2)


def _bars(fig: go.Figure, reach: float) -> None:
    """Two scales below the maps: one for all models, one for the change."""
    bar: dict[str, Any] = {"orientation": "h", "thickness": 10, "len": 0.46, "y": 0, "yref": "container", "yanchor": "bottom"}
    bar |= {"ypad": 12, "tickfont": {"size": 11}}
    fig.update_layout(
        coloraxis={"colorscale": SEQUENTIAL, "cmin": 0, "cmax": 1, "colorbar": {**bar, "x": 0, "xanchor": "left"}},
        coloraxis2={
            "colorscale": DIVERGING,
            "cmin": -reach,
            "cmax": reach,
            "cmid": 0,
            "colorbar": {**bar, "x": 1, "xanchor": "right"},
        },
    )
    for text, x, anchor in (("share of labels right", 0.02, "left"), ("change: fine-tuned − base", 0.98, "right")):
        where: dict[str, Any] = {"xref": "paper", "yref": "paper", "xanchor": anchor, "yanchor": "top"}
        fig.add_annotation(text=text, x=x, y=0, yshift=64 - BOTTOM, showarrow=False, **where)


def alt(result: Result) -> str:
    """The best place of each label in base and fine-tuned model."""
    said: list[str] = []
    for (target,), described in groups(result.tables["targets"], "target"):
        rows = select(result.tables["table"], target=target, measure=_measure(described))
        best = {model: largest(select(rows, model=model), "value") for model in ("base", "tuned", "untrained")}
        name = _NAMES.get(str(target), words.capability(str(target)))
        said.append(
            f"{name} at most {best['base']:.2f} in the base, {best['tuned']:.2f} in the fine-tuned and "
            f"{best['untrained']:.2f} in an untrained model (chance {_chance(described):.2f})"
        )
    return f"Share of labels that a linear probe reads over all residual points and places: {'; '.join(said)}."
