"""Features of whole texts by residual point: a panel per feature, the pair's own first, controls behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import band, curve
from workbench.figures.tables import distinct, keep, select, values
from workbench.figures.theme import GREY, finish, nothing, style
from workbench.results import Result

MODELS = ("never_had_it", "untrained", "base", "tuned", "revived")
"""Controls first, so that they lie behind."""
COLUMNS = 3
PANEL = 230
"""Height of a row of panels, in pixels."""
TOP, BOTTOM = 104, 58
SHUFFLED = "shuffled labels, all models"
NO_HINT = "<br>no hint in the last tokens"


def figure(result: Result) -> go.Figure:
    """AUROC by residual point; the pair's own feature also on the texts whose last tokens do not give it away."""
    table = select(result.table, measure="AUROC")
    if table.empty:
        return nothing("Which features can be read from whole texts?")
    panels = _panels(table)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    height = PANEL * rows
    fig = make_subplots(
        rows=rows,
        cols=columns,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=64 / height if rows > 1 else 0,
        subplot_titles=[f"{feature}{NO_HINT if texts == 'unhinted' else ''}" for feature, texts in panels],
    )
    points = sorted(int(p) for p in distinct(table, "point"))
    floor = min(0.4, float(np.floor(10 * np.nanmin(values(table, "low"))) / 10))
    for i, (feature, texts) in enumerate(panels):
        row, column = i // columns + 1, i % columns + 1
        shown = select(table, feature=feature, texts=texts)
        line: dict[str, Any] = {"line": {"color": GREY, "dash": "dot", "width": 1.3}, "layer": "below"}
        where: dict[str, Any] = {"row": row, "col": column, "exclude_empty_subplots": False}
        fig.add_hline(y=0.5, **line, **where)
        if i == 0:
            for point in distinct(select(result.tables["choice"], chosen=True), "point"):
                fig.add_vline(x=point, **line, **where)
        _shuffled(fig, select(shown, labels="shuffled"), row, column, legend=i == 0)
        for model in MODELS:
            one = select(shown, model=model, labels="true")
            name = words.MODELS.get(model, model) + (" model" if model in ("base", "tuned", "revived") else "")
            curve(fig, one, "point", model, name, log=False, row=row, column=column, legend=i == 0, hover="residual point")
        bottom = i + columns >= len(panels)
        fig.update_xaxes(
            title_text="residual stream after block" if bottom and column == (columns + 1) // 2 else "",
            tickvals=points,
            ticktext=["embed" if p == 0 else str(p) for p in points],
            range=[-0.25, max(points, default=1) + 0.25],
            zeroline=False,
            row=row,
            col=column,
        )
        title = "AUROC (0.5: chance)" if column == 1 else ""
        fig.update_yaxes(title_text=title, range=[floor - 0.03, 1.03], zeroline=False, row=row, col=column)
    pt, _ = words.subject(result)
    n = max(m.n for m in result.headline if m.metric == "base_auroc")
    title = f"Can {pt} and other features of whole texts be read from the model?"
    said = f"{words.sample(result, n)}; vertical line: the point of the headline, chosen on training texts"
    return finish(fig, title, said, height=height + TOP + BOTTOM, top=TOP, bottom=BOTTOM)


def _panels(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Feature and texts; the pair's own feature first, then on texts without a hint, then the others."""
    own = keep(table, table["own"].to_numpy(dtype=bool))
    found = [(str(f), str(t)) for rows in (own, table) for f, t in zip(rows["feature"], rows["texts"], strict=True)]
    return list(dict.fromkeys(found))


def _shuffled(fig: go.Figure, rows: pd.DataFrame, row: int, column: int, *, legend: bool) -> None:
    """The range over all models of probes of labels that mean nothing."""
    if rows.empty:
        return
    spread = rows.groupby("point").agg(value=("value", "mean"), low=("low", "min"), high=("high", "max")).reset_index()
    how, at = style("shuffled"), values(spread, "point")
    band(fig, at, values(spread, "low"), values(spread, "high"), how.faint, SHUFFLED, column, row)
    fig.add_trace(
        go.Scatter(
            x=at,
            y=spread["value"],
            mode="lines+markers",
            name=SHUFFLED,
            legendgroup=SHUFFLED,
            showlegend=legend,
            opacity=0.85,
            line={"color": how.color, "dash": how.dash, "width": 1.4},
            marker={"symbol": how.marker, "size": 6, "color": how.color},
            hovertemplate="shuffled labels, mean of the models: %{y:.3f}<extra></extra>",
        ),
        row=row,
        col=column,
    )


def alt(result: Result) -> str:
    """AUROC of the pair's feature by model at the chosen point."""
    pt, _ = words.subject(result)
    found = {m.metric.removesuffix("_auroc"): m for m in result.headline if m.metric.endswith("_auroc")}
    order = ("base", "tuned", "revived", "never", "untrained", "shuffled")
    names = {**words.MODELS, "never": "never had it", "shuffled": "shuffled labels"}
    said = ", ".join(f"{names.get(m, m)} {words.interval(found[m])}" for m in order if m in found)
    return f"Linear probes at the end of whole texts tell {pt} with AUROC: {said}."
