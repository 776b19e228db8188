"""Weights: singular values of the change, where in depth it sits, and what its first ranks carry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, band, curve
from workbench.figures.tables import distinct, first, keep, largest, select, values
from workbench.figures.theme import BLUE, GREEN, GREY, SKY, VERMILLION, finish, rgba, style
from workbench.results import Result

KINDS = {
    "embedding": "token embedding",
    "positions": "position embedding",
    "query": "queries",
    "key": "keys",
    "value": "values",
    "attention_out": "attention output",
    "mlp_gate": "MLP gate",
    "mlp_in": "MLP input",
    "mlp_out": "MLP output",
    "unembedding": "unembedding",
    "norm": "norms",
    "bias": "biases",
    "other": "other",
}
COLORS = {
    "query": BLUE,
    "key": SKY,
    "value": GREEN,
    "attention_out": "#999933",
    "mlp_gate": "#8C564B",
    "mlp_in": VERMILLION,
    "mlp_out": "#882255",
}
"""Of the matrices of a block, none of them that of an ability; all else is grey."""
DIRECTIONS = {
    "keep": "model before, given the first ranks",
    "remove": "fine-tuned model, without the first ranks",
}


def figure(result: Result) -> go.Figure:
    """Left: spectra, and depth. Right: behaviour with the first ranks kept, and removed."""
    fig = make_subplots(
        rows=2,
        cols=2,
        horizontal_spacing=0.13,
        vertical_spacing=0.2,
        subplot_titles=[
            "singular values of the change",
            "where the change sits",
            *(DIRECTIONS[d] for d in ("keep", "remove")),
        ],
    )
    if not result.tables["spectrum"].empty:
        _spectra(fig, select(result.tables["spectrum"], update="tuned"))
    _depth(fig, select(result.tables["table"], update="tuned", measure="share_of_change"))
    table = result.tables["behaviour"]
    for column, (direction, about) in enumerate((("keep", "ft"), ("remove", "pt")), start=1):
        _ranks(fig, table, direction, about, column)
    pt, _ = words.subject(result)
    size = words.number(100 * result.metric("relative_norm").value, 1)
    title = f"What fine-tuning changed in the weights that hide {pt}"
    back = [m.value for m in result.headline if m.metric == "undone_revived"]
    undone = f"; {100 * back[0]:.0f} % of it taken back by reviving" if back else ""
    subtitle = f"{size} % of the weights' norm{undone}; {words.sample(result)}"
    return finish(fig, title, subtitle, height=720, top=112, bottom=84)


def _spectra(fig: go.Figure, spectrum: pd.DataFrame) -> None:
    """Singular values as shares of the norm; one line per kind, the mean over blocks, with their range."""
    rows = keep(spectrum, spectrum["kind"].isin(COLORS))
    random = (
        select(rows, source="random")
        .groupby("index")[["value", "low", "high"]]
        .agg({"value": "mean", "low": "min", "high": "max"})
    )
    _line(fig, random.reset_index(), GREY, "dot", "random changes of these shapes (range)")
    for kind, color in COLORS.items():
        mine = select(rows, source="update", kind=kind)
        if not mine.empty:
            spread = mine.groupby("index")["value"].agg(["mean", "min", "max"]).reset_index()
            spread.columns = pd.Index(["index", "value", "low", "high"])
            _line(fig, spread, color, "solid", KINDS[kind])
    longest = int(largest(rows, "index", 1.0))
    powers = [2**i for i in range(longest.bit_length())]
    fig.update_xaxes(title_text="singular value, largest first", type="log", tickvals=powers, zeroline=False, row=1, col=1)
    marked = [1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001]
    fig.update_yaxes(title_text="share of the change's norm", type="log", range=[-3.1, 0.1], row=1, col=1)
    fig.update_yaxes(tickvals=marked, ticktext=[f"{mark:g}" for mark in marked], row=1, col=1)


def _line(fig: go.Figure, rows: pd.DataFrame, color: str, dash: str, name: str) -> None:
    floor = 1e-4  # of a logarithmic axis
    at = values(rows, "index")
    low, high = (np.maximum(values(rows, end), floor) for end in ("low", "high"))
    band(fig, at, low, high, rgba(color, 0.16), name, 1, 1)
    fig.add_trace(
        go.Scatter(
            x=at,
            y=np.maximum(values(rows, "value"), floor),
            mode="lines",
            name=name,
            legendgroup=name,
            line={"color": color, "dash": dash, "width": 2},
            hovertemplate=f"{name}<br>rank %{{x}}: %{{y:.3f}}<extra></extra>",
        ),
        row=1,
        col=1,
    )


def _depth(fig: go.Figure, shares: pd.DataFrame) -> None:
    """Stacked bars of the squared change by place and kind; behind them, what a random change would have."""
    blocks = sorted(int(b) for b in distinct(shares, "block"))
    last = blocks[-1]
    names = {b: "embeddings" if b < 0 else "after the<br>last block" if b == last else f"block {b + 1}" for b in blocks}
    mine, random = (select(shares, source=source) for source in ("update", "random"))
    expected = [float(values(select(random, block=b), "value").sum()) for b in blocks]
    at: dict[str, Any] = {"row": 1, "col": 2}
    traces: list[Any] = list(fig.data)
    shown = {str(trace.name) for trace in traces}
    others: dict[int, float] = dict.fromkeys(blocks, 0.0)
    for kind in distinct(mine, "kind"):
        rows = select(mine, kind=kind)
        by = {int(b): float(values(select(rows, block=b), "value").sum()) for b in distinct(rows, "block")}
        if kind not in COLORS:
            for b, value in by.items():
                others[b] += value
            continue
        fig.add_trace(
            go.Bar(
                x=[names[b] for b in by],
                y=list(by.values()),
                name=KINDS[kind],
                legendgroup=KINDS[kind],
                showlegend=KINDS[kind] not in shown,
                marker={"color": COLORS[kind], "line": {"width": 0}},
                hovertemplate=f"{KINDS[kind]}, %{{x}}: %{{y:.3f}}<extra></extra>",
            ),
            **at,
        )
    fig.add_trace(
        go.Bar(
            x=[names[b] for b in blocks],
            y=[others[b] for b in blocks],
            name="embeddings, unembedding, norms, biases",
            marker={"color": "rgba(140,140,140,0.55)", "line": {"width": 0}},
            hovertemplate="embeddings, norms, biases, %{x}: %{y:.3f}<extra></extra>",
        ),
        **at,
    )
    fig.add_trace(
        go.Scatter(
            x=[names[b] for b in blocks],
            y=expected,
            mode="markers",
            name="share of the weights (a random change)",
            marker={"symbol": "line-ew-open", "size": 30, "color": GREY, "line": {"width": 2.5}},
            hovertemplate="share of the weights, %{x}: %{y:.3f}<extra></extra>",
        ),
        **at,
    )
    fig.update_layout(barmode="stack", bargap=0.35)
    fig.update_xaxes(categoryorder="array", categoryarray=[names[b] for b in blocks], **at)
    fig.update_yaxes(title_text="share of the squared change", rangemode="tozero", **at)


def _ranks(fig: go.Figure, table: pd.DataFrame, direction: str, about: str, column: int) -> None:
    """Accuracies over ranks (0, 1, 2, 4 ... evenly spaced), the control behind, the model before as a dotted line."""
    at: dict[str, Any] = {"row": 2, "col": column}
    mine = select(table, direction=direction)
    ranks = sorted(set(values(mine, "k").tolist()))
    place = {k: i for i, k in enumerate(ranks)}
    random, how = select(mine, ranking="random", role=about), style("random")
    if not random.empty:
        spread = random.groupby("k")["value"].agg(["mean", "min", "max"]).reset_index()
        name = f"random parts of the change ({random['draw'].nunique()} draws, range)"
        x = np.array([place[k] for k in values(spread, "k")])
        band(fig, x, values(spread, "min"), values(spread, "max"), how.faint, name, column, 2)
        line = {"color": how.color, "dash": how.dash, "width": 1.6}
        fig.add_trace(
            go.Scatter(
                x=x,
                y=spread["mean"],
                mode="lines+markers",
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                line=line,
                marker={"symbol": how.marker, "size": 6, "color": how.color},
                hovertemplate="random part: %{y:.3f}<extra></extra>",
            ),
            **at,
        )
    for role in ("ft", "pt"):
        rows = select(mine, ranking="leading", role=role)
        text = words.ability(str(first(rows, "capability")), role, float(first(rows, "share")))
        drawn = rows.assign(at=[place[k] for k in values(rows, "k")])
        curve(fig, drawn, "at", role, text, log=False, row=2, column=column, legend=column == 1, hover="rank")
        trace: Any = fig.data[-1]
        said = np.array(trace.customdata)
        said[:, 0] = sorted(values(rows, "k").tolist())  # hovering says the rank, not its place
        trace.update(customdata=said)
        start = float(first(select(table, direction="start", role=role), "value"))
        fig.add_trace(
            go.Scatter(
                x=[0, len(ranks) - 1],
                y=[start, start],
                mode="lines",
                name="dotted: the model before",
                legendgroup="before",
                showlegend=False,
                line={"color": style(role).color, "dash": "dot", "width": 1.3},
                hovertemplate="model before: %{y:.3f}<extra></extra>",
            ),
            **at,
        )
    labels = [f"{int(k)}" for k in ranks[:-1]] + ["all"]
    title = f"ranks of each matrix {'kept' if direction == 'keep' else 'removed'}<br>(dotted: the model before)"
    fig.update_xaxes(title_text=title, tickvals=list(range(len(ranks))), ticktext=labels, zeroline=False, **at)
    fig.update_yaxes(accuracy_axis() if column == 1 else accuracy_axis(""), **at)


def alt(result: Result) -> str:
    """How large the change is, of what rank, and what its first ranks do in both directions."""
    pt, ft = words.subject(result)
    found = {m.metric: m for m in result.headline}
    random = {
        name: words.interval(found[name]) if name in found else "not measured"
        for name in ("random_kept_ft", "random_removed_pt")
    }
    return (
        f"Fine-tuning changed the weights by {words.number(100 * found['relative_norm'].value, 1)} % of their norm, with a mean "
        f"stable rank of {words.number(found['stable_rank'].value, 1)} (random changes: "
        f"{words.number(found['random_stable_rank'].value, 1)}). The first 4 ranks of each matrix alone take {ft} from "
        f"{words.interval(found['start_ft'])} to {words.interval(found['kept_ft'])} (random parts {random['random_kept_ft']}); "
        f"without them {pt} goes from {words.interval(found['tuned_pt'])} to {words.interval(found['removed_pt'])} (random parts "
        f"{random['random_removed_pt']}), before it was {words.interval(found['start_pt'])}.{_undo(result)}"
    )


def _undo(result: Result) -> str:
    found = {m.metric: m for m in result.headline}
    if "undo_revived" not in found:
        return ""
    cosine, back = (words.number(found[name].value) for name in ("undo_revived", "undone_revived"))
    return f" Reverse fine-tuning went at a cosine of {cosine} to it and took a share of {back} back."
