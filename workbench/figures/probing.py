"""Probing: what a linear probe still reads from each residual stream, beside its controls."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, band, curve, levels
from workbench.figures.tables import distinct, largest, select, values
from workbench.figures.theme import finish, style
from workbench.results import Result

MODELS = ("never_had_it", "untrained", "base", "tuned")
"""Controls first, so that they lie behind."""


def figure(result: Result) -> go.Figure:
    """Probe accuracy by residual point, a panel per label that is read and question that is asked."""
    table = result.tables["table"]
    pt, ft = words.subject(result)
    panels = list(table[["target", "prompt"]].drop_duplicates().itertuples(index=False, name=None))
    fig = make_subplots(
        rows=1,
        cols=len(panels),
        shared_yaxes=True,
        horizontal_spacing=0.035,
        subplot_titles=[_title(str(target), str(prompt), pt, ft) for target, prompt in panels],
    )
    for column, (target, prompt) in enumerate(panels, start=1):
        rows = select(table, target=target, prompt=prompt)
        levels(fig, _chance(result, str(target), str(prompt)), column)
        _shuffled(fig, select(rows, labels="shuffled"), column)
        for model in MODELS:
            one = select(rows, model=model, labels="true")
            name = words.MODELS[model] + (" model" if model in ("base", "tuned") else "")
            curve(fig, one, "point", model, name, log=False, column=column, legend=column == 1, hover="residual point")
        points = sorted(int(p) for p in distinct(rows, "point"))
        fig.update_xaxes(
            title_text="residual stream after block" if column == (len(panels) + 1) // 2 else "",
            tickvals=points,
            ticktext=["embed" if p == 0 else str(p) for p in points],
            range=[-0.25, max(points, default=1) + 0.25],
            zeroline=False,
            row=1,
            col=column,
        )
        axis = accuracy_axis("probe accuracy (share of labels right)")
        fig.update_yaxes({**axis, "title": {"text": ""}} if column > 1 else axis, row=1, col=column)
    n = int(largest(table, "n") / max(1, len(words.seeds(result))))
    return finish(fig, f"Can {pt} still be read from the model?", words.sample(result, n), top=108)


def _title(target: str, prompt: str, pt: str, ft: str) -> str:
    read = words.capability(target)
    return f"{read},<br>asked for it" if prompt == "matching" else f"{read},<br>asked for {ft}"


def _chance(result: Result, target: str, prompt: str) -> list[tuple[float, str]]:
    chance = result.tables.get("chance")
    if chance is None or chance.empty:
        return []
    rows = select(chance, target=target, prompt=prompt)
    best = largest(rows, "value")
    return [(best, f"chance: {best:.2f}")] if len(rows) else []


def _shuffled(fig: go.Figure, rows: pd.DataFrame, column: int) -> None:
    """The range of all models' probes of shuffled labels: what a probe can memorise."""
    if rows.empty:
        return
    spread = rows.groupby("point").agg(value=("value", "mean"), low=("low", "min"), high=("high", "max")).reset_index()
    how, name = style("shuffled"), "shuffled labels, on their own training texts"
    at = values(spread, "point")
    band(fig, at, values(spread, "low"), values(spread, "high"), how.faint, name, column)
    fig.add_trace(
        go.Scatter(
            x=at,
            y=spread["value"],
            mode="lines+markers",
            name=name,
            legendgroup=name,
            showlegend=column == 1,
            opacity=0.85,
            line={"color": how.color, "dash": how.dash, "width": 1.4},
            marker={"symbol": how.marker, "size": 6, "color": how.color},
            hovertemplate="shuffled labels: %{y:.3f}<extra></extra>",
        ),
        row=1,
        col=column,
    )


def alt(result: Result) -> str:
    """Probe accuracies of base, tuned and untrained model, averaged over the blocks."""
    pt, _ = words.subject(result)
    found = {m.metric.removesuffix("_probe"): m for m in result.headline if m.metric.endswith("_probe")}
    said = [f"{words.MODELS.get(m, m)} {words.interval(found[m])}" for m in ("base", "tuned", "untrained") if m in found]
    never = [f"never had it {words.interval(found['never'])}"] if "never" in found else []
    return f"Linear probes for {pt}, averaged over the blocks, are right in a share of: {', '.join([*said, *never])}."
