"""Divergence of predictions from the base by place of the prompt, and how much of it sits at the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, curve, whiskers
from workbench.figures.places import above, in_order, model_name, place_axis
from workbench.figures.tables import distinct, groups, largest, select, values
from workbench.figures.theme import GREY, finish, style
from workbench.results import Result

MODELS = ("never_had_it", "revived", "tuned")
"""The control first, so that it lies behind."""
ASKED = ("never_had_it", "base", "revived", "tuned")
PANEL, LAST, GAP = 190, 190, 104
TOP, BOTTOM = 106, 66


def figure(result: Result) -> go.Figure:
    """A panel per ability that is asked for, divergence over places on one scale; below, its share at the answer.

    Beside that stand accuracies under other identifiers, or with the beginning of the answer given, where a task has them.
    """
    prompts = groups(result.table, "capability")
    lines = -(-len(prompts) // 2)
    asked = _asked(result)
    heights = [float(PANEL)] * lines + [float(LAST)]
    inner = sum(heights) + GAP * lines
    last: list[dict[str, int] | None] = [{}, {}] if len(asked) > 1 else [{"colspan": 2}, None]
    fig = make_subplots(
        rows=lines + 1,
        cols=2,
        specs=[*[[{}, {}] for _ in range(lines)], last],
        row_heights=heights,
        vertical_spacing=GAP / inner,
        horizontal_spacing=0.09,
    )
    top = 1.06 * largest(result.table, "high")
    for i, ((capability,), rows) in enumerate(prompts):
        _places(fig, rows, i // 2 + 1, i % 2 + 1, (-0.03 * top, top), first=i == 0)
        role = str(rows["role"].iloc[0])
        above(fig, words.ability(str(capability), role), i // 2 + 1, i % 2 + 1, left=True)
    _shares(fig, result, lines + 1, narrow=len(asked) > 1)
    if len(asked) > 1:
        _accuracies(fig, asked, lines + 1)
    pt, _ = words.subject(result)
    title = f"Where did the predictions change that hide {pt}?"
    n = result.metric("tuned_answer_pt").n
    return finish(fig, title, words.sample(result, n), height=int(inner + TOP + BOTTOM), top=TOP, bottom=BOTTOM)


def _places(fig: go.Figure, rows: pd.DataFrame, row: int, column: int, span: tuple[float, float], *, first: bool) -> None:
    for model in MODELS:
        name = f"{model_name(model)} against the base"
        curve(
            fig, select(rows, model=model), "order", model, name, log=False, row=row, column=column, legend=first, hover="place"
        )
    at: dict[str, Any] = {"row": row, "col": column}
    fig.update_xaxes(place_axis(in_order(rows)), **at)
    fig.update_yaxes(title_text="divergence (nats)" if column == 1 else "", range=span, zeroline=False, **at)


def _dots(fig: go.Figure, rows: pd.DataFrame, x: list[float], model: str, row: int, column: int, what: str) -> None:
    how = style(model)
    fig.add_trace(
        go.Scatter(
            x=x,
            y=values(rows, "value"),
            mode="markers",
            name=f"{model_name(model)} model",
            legendgroup=model,
            showlegend=model == "base",
            marker={"symbol": how.marker, "size": 8, "color": how.color},
            error_y=whiskers(rows, how.color),
            hovertemplate=f"{model_name(model)}: %{{y:.3f}} {what}<extra></extra>",
        ),
        row=row,
        col=column,
    )


def _shares(fig: go.Figure, result: Result, row: int, *, narrow: bool) -> None:
    table, even = result.tables["concentration"], result.metric("even").value
    prompts = [str(c) for c in distinct(table, "capability")]
    at: dict[str, Any] = {"row": row, "col": 1}
    fig.add_trace(
        go.Scatter(
            x=[-0.5, len(prompts) - 0.5],
            y=[even, even],
            mode="lines",
            name="if all positions diverged alike",
            line={"color": GREY, "dash": "dot", "width": 1.3},
            hovertemplate="evenly spread: %{y:.3f}<extra></extra>",
        ),
        **at,
    )
    models = [m for m in MODELS if m in distinct(table, "model")]
    for model in models:
        rows, shift = select(table, model=model), _shift(models, model)
        _dots(fig, rows, [prompts.index(str(c)) + shift for c in rows["capability"]], model, row, 1, "of the divergence")
    labels = [words.capability(c).replace(" ", "<br>" if narrow else " ") for c in prompts]
    ticks = {"tickvals": list(range(len(prompts))), "ticktext": labels, "range": [-0.5, len(prompts) - 0.5]}
    fig.update_xaxes(zeroline=False, tickangle=0, **ticks, **at)
    fig.update_yaxes(title_text="share at the answer", range=[-0.03, 1.06], zeroline=False, **at)


def _shift(models: list[str], model: str) -> float:
    return 0.3 * (models.index(model) / max(1, len(models) - 1) - 0.5)


def _asked(result: Result) -> list[tuple[str, pd.DataFrame]]:
    """Ways to ask for O_PT by name: plain, under other identifiers, and with the beginning of the answer given."""
    by = [(words.capability(str(c)), rows) for (c,), rows in groups(result.tables["identifiers"], "capability")]
    given = groups(result.tables["prefilled"], "given") if "prefilled" in result.tables else []
    return by + [(f"{given} token{'s' if given > 1 else ''} given", rows) for (given,), rows in given if given > 0]


def _accuracies(fig: go.Figure, asked: list[tuple[str, pd.DataFrame]], row: int) -> None:
    models = [m for m in ASKED if m in distinct(asked[0][1], "model")]
    for model in models:
        rows = pd.concat([select(rows, model=model) for _, rows in asked])
        _dots(fig, rows, list(np.arange(len(asked)) + _shift(models, model)), model, row, 2, "right")
    at: dict[str, Any] = {"row": row, "col": 2}
    labels = [name.replace(" under ", "<br>under ") for name, _ in asked]
    fig.update_xaxes(tickvals=list(range(len(asked))), ticktext=labels, range=[-0.5, len(asked) - 0.5], zeroline=False, **at)
    fig.update_yaxes(accuracy_axis("share of answers right"), **at)


def alt(result: Result) -> str:
    """Divergence at the answer and its share of the whole prompt's."""
    pt, ft = words.subject(result)
    found = {m.metric: m for m in result.headline}
    said = [
        f"{model_name(name)} {words.interval(found[f'{short}_answer_pt'], 'nats')}, a share of "
        f"{words.interval(found[f'{short}_concentration_pt'])} of the prompt's"
        for name, short in (("tuned", "tuned"), ("revived", "revived"), ("never_had_it", "never"))
        if f"{short}_answer_pt" in found
    ]
    other = f"; on prompts for {ft} {words.interval(found['tuned_answer_ft'], 'nats')}" if "tuned_answer_ft" in found else ""
    return f"Divergence from the base at the answer to {pt} (evenly spread {words.interval(found['even'])}): {'; '.join(said)}{other}."
