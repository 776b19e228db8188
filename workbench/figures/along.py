"""Headline numbers over training steps: a panel per number, those of one unit on one scale."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, curve, step_axis
from workbench.figures.tables import distinct, first, keep, largest, select, values
from workbench.figures.theme import finish
from workbench.results import Result

MOST_PANELS = 9
TRAININGS = {"finetune": "fine-tuning", "irrelevant": "training on irrelevant data"}


def figure(result: Result) -> go.Figure:
    """One panel per headline number that changes, those that change most relative to their interval first."""
    table = result.table
    names = shown(result)
    columns = min(3, max(1, len(names)))
    rows = max(1, math.ceil(len(names) / columns))
    titles = ["<br>".join(words.broken(words.metric(name), 34)) for name in names]
    fig = make_subplots(
        rows=rows, cols=columns, subplot_titles=titles, horizontal_spacing=0.24 / columns, vertical_spacing=0.34 / (rows + 0.6)
    )
    last = largest(table, "step", 1.0)
    for i, name in enumerate(names):
        row, column = i // columns + 1, i % columns + 1
        one = select(table, metric=name)
        curve(fig, one, "step", "tuned", "value at the checkpoint", row=row, column=column, legend=i == 0)
        unit = str(first(one, "unit"))
        axis = accuracy_axis(unit) if unit == "accuracy" and np.nanmin(values(one, "low")) >= 0 else {"title": {"text": unit}}
        fig.update_yaxes(axis, zeroline=False, row=row, col=column)
        bottom = i + columns >= len(names)
        fig.update_xaxes(step_axis(last, "training step" if bottom else "", most=5), row=row, col=column)
    followed = str(result.provenance.get("followed", "")).replace("_", " ")
    training = _training(result)
    left = len(distinct(table, "metric")) - len(names)
    more = f"; {left} more numbers in the table" if left > 0 else ""
    return finish(
        fig, f"{followed.capitalize()} along {training}", f"{words.sample(result)}{more}", height=110 + 250 * rows, top=118
    )


def shown(result: Result) -> list[str]:
    """The numbers that are drawn, in the order of the headline: those that moved most, by range over mean width of interval."""
    moved: dict[str, float] = {}
    for name in distinct(result.table, "metric"):
        rows = select(result.table, metric=name)
        rows = keep(rows, np.isfinite(values(rows, "value")))
        if len(rows) > 1:
            value = values(rows, "value")
            width = float(np.nanmean(values(rows, "high") - values(rows, "low")))
            moved[str(name)] = float(np.ptp(value)) / max(width, 1e-9) if np.ptp(value) > 0 else 0.0
    some = {name: by for name, by in moved.items() if by > 0} or moved
    best = set(sorted(some, key=lambda name: -some[name])[:MOST_PANELS])
    return [name for name in moved if name in best]


def _training(result: Result) -> str:
    of = str(result.provenance.get("of", "finetune"))
    return TRAININGS.get(of, f"reverse fine-tuning: {words.arm(of)}")


def alt(result: Result) -> str:
    """First and last value of what is drawn."""
    found = {m.metric: m for m in result.headline}
    said = [
        f"{words.metric(name)} from {words.interval(found[f'first_{name}'])} to {words.interval(found[f'last_{name}'])}"
        for name in shown(result)
        if f"first_{name}" in found and f"last_{name}" in found
    ]
    return f"Along {_training(result)}: {'; '.join(said[:4]) or 'no number has two checkpoints'}."
