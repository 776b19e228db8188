"""Perceptron: loss and accuracy on twin axes against the iteration, over steps, with the batch perceptron dashed."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, place, step_axis
from workbench.figures.tables import distinct, first, largest, select, values
from workbench.figures.theme import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, finish
from workbench.results import Result

COLORS = (SKY, BLUE, GREEN, ORANGE, PURPLE)
TITLES = {"lr_gd": "LR+GD", "normalized_lr_gd": "Normalized LR+GD"}
PERCEPTRONS = {"lr_gd": "batch_perceptron", "normalized_lr_gd": "normalized_batch_perceptron"}
FLOOR = 1e-4
"""Losses (nats) below this are drawn at it: a solved set's loss falls to 0 at huge steps."""


def figure(result: Result) -> go.Figure:
    """Rows: the worst-case and the first random set. Columns: plain and normalised. Solid: accuracy; dotted: loss, on the right axis."""
    curves = result.tables["curves"]
    sets = [name for name in ("worst case", "random") if name in set(distinct(curves, "set"))]
    titles = [f"{name} set, {int(first(select(curves, set=name), 'n')):,} rows: {TITLES[m]}" for name in sets for m in TITLES]
    twin = [[{"secondary_y": True}] * 2 for _ in sets]
    fig = make_subplots(
        rows=len(sets), cols=2, subplot_titles=titles, specs=twin, vertical_spacing=0.16, horizontal_spacing=0.14
    )
    named: set[str] = set()
    for row, name in enumerate(sets, start=1):
        for column, method in enumerate(TITLES, start=1):
            perceptron = select(curves, set=name, method=PERCEPTRONS[method])
            _accuracy(fig, perceptron, "batch perceptron of the kind, accuracy", GREY, "dash", row, column, named)
            mine = select(curves, set=name, method=method)
            for step, color in zip(sorted(distinct(mine, "step"), key=_size), COLORS, strict=False):
                some = select(mine, step=step)
                where: dict[str, Any] = {"row": row, "col": column}
                loss = go.Scatter(
                    x=place(values(some, "iteration")),
                    y=values(some, "loss").clip(FLOOR),
                    mode="lines+markers",
                    line={"color": color, "dash": "dot", "width": 1.6},
                    marker={"color": color, "symbol": "x", "size": [0] * (len(some) - 1) + [8]},
                    legendgroup=f"step {step}",
                    showlegend=False,
                    customdata=values(some, "iteration"),
                    hovertemplate=f"step {step}, iteration %{{customdata:,}}: loss %{{y:.3g}} nats<extra></extra>",
                )
                fig.add_trace(loss, secondary_y=True, **where)
                _accuracy(fig, some, f"step {step}", color, "solid", row, column, named)
            last = largest(pd.concat([mine, perceptron]), "iteration")
            fig.update_xaxes(step_axis(last, "iteration" if row == len(sets) else "", most=6), row=row, col=column)
            fig.update_yaxes(accuracy_axis("accuracy (solid)" if column == 1 else ""), row=row, col=column, secondary_y=False)
            fig.update_yaxes(
                title_text="loss, nats (dotted)" if column == 2 else "",
                type="log",
                exponentformat="power",
                dtick=2,
                tickfont={"size": 12},
                showgrid=False,
                row=row,
                col=column,
                secondary_y=True,
            )
    seeds = words.seeds(result)
    below = f"crosses: all rows are on the right side; random set of seed {seeds[0] if seeds else 0}, steps in units of 1/L"
    fig = finish(
        fig,
        "At huge steps logistic regression is the perceptron: higher loss on the way, mostly sooner solved",
        below,
        height=700,
    )
    return fig.update_layout(margin_r=76)


def _size(step: str) -> float:
    return float(step.partition("/")[0])


def _accuracy(
    fig: go.Figure, rows: pd.DataFrame, name: str, color: str, dash: str, row: int, column: int, named: set[str]
) -> None:
    how: dict[str, Any] = {"color": color, "dash": dash, "width": 3.4 if dash == "dash" else 1.8}
    trace = go.Scatter(
        x=place(values(rows, "iteration")),
        y=values(rows, "accuracy"),
        mode="lines",
        line=how,
        name=name,
        legendgroup=name,
        showlegend=name not in named,
        customdata=values(rows, "iteration"),
        hovertemplate=f"{name}, iteration %{{customdata:,}}: accuracy %{{y:.3f}}<extra></extra>",
    )
    fig.add_trace(trace, row=row, col=column, secondary_y=False)
    named.add(name)


def alt(result: Result) -> str:
    """Iterations on the worst-case set by step, and what the largest step does on random sets."""
    table = result.tables["table"]
    worst = select(table, set="worst case")
    worst = select(worst, n=int(largest(worst, "n")))
    said: list[str] = []
    for method, title in TITLES.items():
        mine = select(worst, method=method)
        pairs = [f"{value:,.0f} at step {step}" for step, value in zip(mine["step"], values(mine, "value"), strict=True)]
        said.append(
            f"{title} solves the worst-case set of {int(first(worst, 'n')):,} rows after {words.listed(pairs)} iterations."
        )
    found = {m.metric: m for m in result.headline}
    said.append(
        f"On random sets the largest step of LR+GD takes {words.interval(found['iterations_ratio'])} times the iterations of 1/L, with "
        f"a highest loss {words.interval(found['loss_ratio_log10'])} powers of ten higher."
    )
    return " ".join(said)
