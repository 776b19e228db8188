"""Writing: shares of texts that show the ability, and the loss on real texts, by model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, whiskers
from workbench.figures.tables import distinct, select, values
from workbench.figures.theme import finish, nothing, style
from workbench.results import Result

ORDER = ("never_had_it", "real", "base", "tuned", "revived")
"""Controls first, so that they lie behind."""
REAL = "real texts"


def figure(result: Result) -> go.Figure:
    """Left: how often each model shows it in its own texts. Right: what real texts with and without it cost."""
    table, loss = result.tables["table"], result.tables["loss"]
    if table.empty or loss.empty:
        return nothing("What the models write of their own accord")
    kinds = [str(kind) for kind in distinct(loss, "kind")]
    pt, _ = words.subject(result)
    fig = make_subplots(
        rows=1,
        cols=2,
        subplot_titles=[f"texts that show {pt}", "loss on real texts"],
        column_widths=[0.5, 0.5],
        horizontal_spacing=0.14,
    )
    models = [name for name in ORDER if len(select(table, model=name))]
    names = [_name(name) for name in models]
    for i, name in enumerate(models):
        _point(fig, select(table, model=name), np.array([i]), name, [names[i]], 1)
        rows = select(loss, model=name)
        if len(rows):
            at = np.array([kinds.index(str(kind)) for kind in rows["kind"]]) + 0.12 * (i - len(models) / 2)
            _point(fig, rows, at, name, [words.kind(str(kind)) for kind in rows["kind"]], 2)
    fig.update_xaxes(
        tickvals=list(range(len(models))), ticktext=names, range=[-0.5, len(models) - 0.5], tickangle=0, row=1, col=1
    )
    shown = ["<br>".join(words.broken(f"texts {words.kind(kind)}", 16)) for kind in kinds]
    fig.update_xaxes(
        tickvals=list(range(len(kinds))), ticktext=shown, range=[-0.6, len(kinds) - 0.4], tickangle=0, row=1, col=2
    )
    fig.update_yaxes(accuracy_axis("share of texts"), row=1, col=1)
    fig.update_yaxes(title_text="loss (nats per token)", zeroline=False, row=1, col=2)
    n = max(m.n for m in result.headline if m.metric.startswith("writes_"))
    return finish(fig, f"Do the models still write {pt} of their own accord?", words.sample(result, n), top=104)


def _name(model: str) -> str:
    return REAL if model == "real" else words.MODELS.get(model, model.replace("_", " "))


def _point(fig: go.Figure, rows: pd.DataFrame, at: np.ndarray, name: str, where: list[str], column: int) -> None:
    how = style(name)
    fig.add_trace(
        go.Scatter(
            x=at,
            y=values(rows, "value"),
            error_y=whiskers(rows, how.color),
            mode="markers",
            name=_name(name),
            legendgroup=name,
            showlegend=column == 1,
            marker={"symbol": how.marker, "size": 8 if how.control else 11, "color": how.color},
            text=where,
            hovertemplate=f"{_name(name)}, %{{text}}: %{{y:.3f}}<extra></extra>",
        ),
        row=1,
        col=column,
    )


def alt(result: Result) -> str:
    """The share of each model."""
    pt, _ = words.subject(result)
    found = {m.metric.removeprefix("writes_"): m for m in result.headline if m.metric.startswith("writes_")}
    said = "; ".join(f"{_name(name)} {words.interval(found[name])}" for name in ORDER if name in found)
    return f"Share of texts that show {pt}: {said}."
