"""Connectivity: loss and accuracy on the way from one model to another, and along multiples of the fine-tuning's change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, band, curve
from workbench.figures.tables import distinct, first, keep, largest, select, values
from workbench.figures.theme import GREY, finish, style
from workbench.results import Result

NAMES = {"base": "base", "start": "start", "tuned": "fine-tuned", "revived": "revived", "never_had_it": "never had it"}
SHORT = {**NAMES, "tuned": "fine-<br>tuned", "never_had_it": "never<br>had it"}
"""What fits under a narrow panel."""
ROLES = ("ft", "pt")


def figure(result: Result) -> go.Figure:
    """Columns: the lines. Rows: loss, accuracy (trained curves dashed), and below accuracy along the fine-tuning's change."""
    table = result.tables["table"]
    vector = str(first(keep(table, table["alpha"] > 1), "line"))
    # What fine-tuning added to another model than the base is shown below, as a whole.
    lines = [line for line in distinct(table, "line") if not line.startswith("start")]
    columns = len(lines)
    specs: list[list[dict[str, int] | None]] = [[{} for _ in lines], [{} for _ in lines]]
    specs.append([{"colspan": columns}, *([None] * (columns - 1))])
    below = f"{NAMES[vector.split(' to ')[0]]} + α (fine-tuned − {NAMES[vector.split(' to ')[0]]})"
    titles = [_barrier(result, line) for line in lines] + [""] * columns + [f"along the change of fine-tuning: {below}"]
    fig = make_subplots(
        rows=3, cols=columns, specs=specs, horizontal_spacing=0.035, vertical_spacing=0.13, subplot_titles=titles
    )
    loss = keep(table, (table["measure"] == "loss") & table["line"].isin(lines) & table["alpha"].between(0, 1))
    top = max(0.1, 1.05 * largest(loss, "high"))
    shown: set[str] = set()
    for column, line in enumerate(lines, start=1):
        for row, measure in enumerate(("loss", "accuracy"), start=1):
            _line(fig, select(table, line=line, measure=measure), row, column, shown)
            ends = [SHORT[end] for end in line.split(" to ")]
            at: dict[str, Any] = {"row": row, "col": column}
            fig.update_xaxes(tickvals=[0, 1], ticktext=ends, range=[-0.12, 1.12], zeroline=False, tickangle=0, **at)
            axis = {"title": {"text": "loss (nats)"}, "range": [-0.03 * top, top], "zeroline": False}
            named = (axis if column == 1 else {**axis, "title": {"text": ""}}) if measure == "loss" else None
            fig.update_yaxes(named or accuracy_axis("accuracy" if column == 1 else ""), showticklabels=column == 1, **at)
    _arithmetic(fig, select(table, line=vector, measure="accuracy"), shown)
    pt, _ = words.subject(result)
    return finish(
        fig,
        f"Do the models with and without {pt} lie in one valley?",
        words.sample(result, result.metric("tuned_pt").n),
        height=800,
        top=112,
        bottom=64,
    )


def _barrier(result: Result, line: str) -> str:
    rows = select(result.tables["barriers"], line=line, path="straight", role="pt", measure="barrier")
    pt, _ = words.subject(result)
    return f"{pt}:<br>barrier {words.number(float(first(rows, 'value')))} nats"


def _line(fig: go.Figure, rows: pd.DataFrame, row: int, column: int, shown: set[str]) -> None:
    """Both abilities on a straight line, and on a curve with the same ends."""
    for role in ROLES:
        mine = keep(rows, (rows["role"] == role) & rows["alpha"].between(0, 1))
        text = words.ability(str(first(mine, "capability")), role, float(first(mine, "share")))
        straight = select(mine, path="straight")
        curve(fig, straight, "alpha", role, text, log=False, row=row, column=column, legend=text not in shown, hover="α")
        fig.data[-1].update(line_dash="solid", marker_size=5)
        shown.add(text)
        bent = select(mine, path="bezier")
        if bent.empty:
            continue
        name = f"{words.capability(str(first(mine, 'capability')))}, on a trained curve"
        how = style(role)
        fig.add_trace(
            go.Scatter(
                x=values(bent, "alpha"),
                y=values(bent, "value"),
                mode="lines",
                name=name,
                legendgroup=name,
                showlegend=name not in shown,
                line={"color": how.color, "dash": "dash", "width": 2},
                hovertemplate=f"{name}<br>t %{{x:.2f}}: %{{y:.3f}}<extra></extra>",
            ),
            row=row,
            col=column,
        )
        shown.add(name)


def _arithmetic(fig: go.Figure, rows: pd.DataFrame, shown: set[str]) -> None:
    """Accuracies from the change taken away twice to the change made twice; its ends are marked."""
    at: dict[str, Any] = {"row": 3, "col": 1}
    for end in (0.0, 1.0):
        fig.add_vline(
            x=end, line={"color": GREY, "dash": "dot", "width": 1.3}, layer="below", exclude_empty_subplots=False, **at
        )
    random, how = select(rows, path="random"), style("random")
    spread = random.groupby("alpha")["value"].agg(["mean", "min", "max"]).reset_index()
    name = f"random changes of equal length ({random['draw'].nunique()} draws, range)"
    band(fig, values(spread, "alpha"), values(spread, "min"), values(spread, "max"), how.faint, name, 1, 3)
    fig.add_trace(
        go.Scatter(
            x=values(spread, "alpha"),
            y=values(spread, "mean"),
            mode="lines+markers",
            name=name,
            legendgroup=name,
            line={"color": how.color, "dash": how.dash, "width": 1.6},
            marker={"symbol": how.marker, "size": 6, "color": how.color},
            hovertemplate="random change: %{y:.3f}<extra></extra>",
        ),
        **at,
    )
    straight = select(rows, path="straight")
    for role in ROLES:
        mine = select(straight, role=role)
        text = words.ability(str(first(mine, "capability")), role, float(first(mine, "share")))
        curve(fig, mine, "alpha", role, text, log=False, row=3, column=1, legend=text not in shown, hover="α")
        fig.data[-1].update(line_dash="solid", marker_size=5)
    low, high = (float(f(values(straight, "alpha"))) for f in (np.min, np.max))
    ticks = np.arange(low, high + 0.25, 0.5)
    labels = [{0.0: "0: model before", 1.0: "1: fine-tuned"}.get(float(t), f"{t:g}") for t in ticks]
    fig.update_xaxes(
        title_text="α, multiple of the change",
        tickvals=ticks,
        ticktext=labels,
        range=[low - 0.08, high + 0.08],
        zeroline=False,
        **at,
    )
    fig.update_yaxes(accuracy_axis("accuracy"), **at)


def alt(result: Result) -> str:
    """Barriers between the models, and both abilities at declared multiples of the change."""
    pt, ft = words.subject(result)
    found = {m.metric: m for m in result.headline}
    barriers = select(result.tables["barriers"], role="pt", measure="barrier", path="straight")
    said = words.listed(
        [
            f"{words.number(float(value))} nats between {' and '.join(NAMES[end] for end in str(line).split(' to '))}"
            for line, value in zip(barriers["line"], barriers["value"], strict=True)
        ]
    )
    curved = (
        f", {words.interval(found['barrier_base_revived_bezier_pt'])} on a trained curve from base to revived"
        if ("barrier_base_revived_bezier_pt" in found)
        else ""
    )
    return (
        f"On straight lines between the models the loss of {pt} rises above its ends by {said}{curved}. With the change of "
        f"fine-tuning turned around {pt} is at {words.interval(found['negated_pt'])}, doubled at "
        f"{words.interval(found['doubled_pt'])}, after random changes of equal length at {words.interval(found['random_pt'])}; at "
        f"{words.number(found['both_alpha'].value)} of it {pt} has {words.interval(found['both_pt'])} and {ft} "
        f"{words.interval(found['both_ft'])}."
    )
