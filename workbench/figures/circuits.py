"""Circuits: what base, fine-tuned and revived share, how faithful each is, and the edges that stayed, went and came."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import band, curve
from workbench.figures.patching import apart, asked, component
from workbench.figures.tables import distinct, first, keep, select, values
from workbench.figures.theme import BLUE, GREY, VERMILLION, finish, style
from workbench.results import Result

LOOKS = {"base": "base", "tuned": "fine-tuned", "revived": "revived", "other ability": "base, other ability"}
MOST = 60
"""Edges of each circuit that are drawn at most, the strongest."""
CLEAR = 0.14
"""Distance of an arc from a component that it passes, where heads stand between -1 and 1."""
CHANGES = {"stayed": ("in both", "#767676"), "went": ("base only", BLUE), "came": ("fine-tuned only", VERMILLION)}


def figure(result: Result) -> go.Figure:
    """Rows: Jaccard index with the base's circuit and faithfulness, of edges and of nodes by size; the circuits as a graph."""
    fig = make_subplots(
        rows=3,
        cols=2,
        specs=[[{}, {}], [{}, {}], [{"colspan": 2}, None]],
        row_heights=[0.28, 0.28, 0.44],
        horizontal_spacing=0.09,
        vertical_spacing=0.11,
        subplot_titles=["edges", "nodes (heads and MLPs)", "", "", _graph_title(result)],
    )
    table, faithful = result.tables["table"], result.tables["faithfulness"]
    for column, kind in enumerate(("edges", "nodes"), start=1):
        _shared(fig, select(table, kind=kind), column)
        _kept(fig, select(faithful, kind=kind), column)
        size = {"range": [0, 1.02 * float(values(table, "size").max())], "tickformat": ".0%", "zeroline": False}
        fig.update_xaxes(size, row=1, col=column)
        fig.update_xaxes(size, title_text=f"share of all {kind}", row=2, col=column)
    fig.update_yaxes(range=[-0.03, 1.06], zeroline=False, row=1)
    fig.update_yaxes(title_text="Jaccard index<br>with the base's circuit", row=1, col=1)
    shown = keep(faithful, np.isfinite(values(faithful, "value")))
    low, high = float(np.min(values(shown, "value"), initial=0.0)), float(np.max(values(shown, "high"), initial=1.0))
    fig.update_yaxes(range=[low - 0.08, min(high, 1.7) + 0.08], zeroline=False, row=2)
    fig.update_yaxes(title_text="faithfulness<br>(1: the whole model)", row=2, col=1)
    _graph(fig, result)
    title = f"Which circuit answers {asked(result)}, before and after?"
    return finish(fig, title, words.sample(result, result.metric("edges").n), height=960, top=112, bottom=64)


def _shared(fig: go.Figure, table: pd.DataFrame, column: int) -> None:
    """Circuits held against the base's."""
    at: dict[str, Any] = {"log": False, "row": 1, "column": column, "legend": column == 1, "hover": "share"}
    curve(fig, select(table, one="random"), "size", "random", "random", **at)
    for model, name in reversed(LOOKS.items()):
        rows = select(table, one="base", other=model)
        look = "irrelevant" if model == "other ability" else model
        if np.isfinite(values(rows, "value")).any():
            curve(fig, rows, "size", look, name, **at)


def _kept(fig: go.Figure, table: pd.DataFrame, column: int) -> None:
    """Circuits run alone: a model's own, the base's in the others, and random ones."""
    where: dict[str, Any] = {"row": 2, "col": column}
    fig.add_hline(y=1, line={"color": GREY, "dash": "dot", "width": 1}, layer="below", **where)
    models = [model for model in ("base", "tuned", "revived") if np.isfinite(values(select(table, model=model), "value")).any()]
    at: dict[str, Any] = {"log": False, "row": 2, "column": column, "legend": False, "hover": "share"}
    for model in models:
        curve(fig, select(table, model=model, circuit="random"), "size", "random", "random", **at)
        rows = select(table, model=model, circuit="random, connected")
        named: dict[str, Any] = {**at, "legend": model == models[0]}
        curve(fig, rows, "size", "irrelevant", "random, connected", **named)
    for model in models:
        curve(fig, select(table, model=model, circuit="own"), "size", model, LOOKS[model], **at)
    for model in models[1:]:
        rows, how = select(table, model=model, circuit="base").sort_values("size"), style(model)
        name = f"{LOOKS[model]}, base's edges"
        band(fig, values(rows, "size"), values(rows, "low"), values(rows, "high"), how.faint, name, column, 2)
        fig.add_trace(
            go.Scatter(
                x=rows["size"],
                y=rows["value"],
                mode="lines+markers",
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                line={"color": how.color, "dash": "dot", "width": 1.6},
                marker={"symbol": f"{how.marker}-open", "size": 7, "color": how.color},
                hovertemplate=f"<b>{name}</b><br>share %{{x}}: %{{y:.3f}}<extra></extra>",
            ),
            **where,
        )


def _drawn(result: Result) -> pd.DataFrame:
    """The circuits of the first seed: heads of models that were trained apart are not the same ones."""
    table = result.tables["circuit"]
    table = select(table, seed=first(table, "seed")) if "seed" in table and len(table) else table
    return table.head(MOST)


def _graph_title(result: Result) -> str:
    seed = f", seed {words.seeds(result)[0]}" if len(words.seeds(result)) > 1 else ""
    missing = [name for model, name in (("base", "base"), ("tuned", "fine-tuned model")) if not _has_circuit(result, model)]
    none = f"<br>none of the {words.listed(missing)}: the prompts are not told apart" if missing else ""
    return f"edges of both circuits where the headline is read{seed}{none}"


def _graph(fig: go.Figure, result: Result) -> None:
    """Components from left to right in the order of the computation, and edges as arcs between them."""
    table = _drawn(result)
    where: dict[str, Any] = {"row": 3, "col": 1}
    scores = result.tables["scores"]
    names = [*distinct(select(scores, kind="edges"), "sender"), "logits"]
    places = _places(names)
    at = np.array([places[name] for name in names])
    for change, (name, color) in CHANGES.items():
        rows = select(table, change=change)
        lines: list[np.ndarray] = []
        for sender, receiver in zip(rows["sender"], rows["receiver"], strict=True):
            lines += [_arc(places[sender], places[receiver], at), np.full((1, 2), np.nan)]
        drawn = np.concatenate(lines) if lines else np.full((1, 2), np.nan)
        line = {"color": color, "width": 1.6}
        entry: dict[str, Any] = {"name": name, "legendgroup": change, "opacity": 0.85}
        fig.add_trace(
            go.Scatter(
                x=drawn[:, 0], y=drawn[:, 1], mode="lines", line=line, hoverinfo="skip", showlegend=len(rows) > 0, **entry
            ),
            **where,
        )
        middles = np.stack([arc[len(arc) // 2] for arc in lines[::2]]) if lines else np.empty((0, 2))
        columns = (rows[c] for c in ("sender", "receiver", "base_logits", "tuned_logits"))
        said = [
            f"{component(u)} → {component(v)}<br>base {base:+.2f} logits, fine-tuned {tuned:+.2f}"
            for u, v, base, tuned in zip(*columns, strict=True)
        ]
        dots: dict[str, Any] = {"mode": "markers", "marker": {"size": 5, "color": color}, "showlegend": False}
        fig.add_trace(
            go.Scatter(x=middles[:, 0], y=middles[:, 1], text=said, hovertemplate="%{text}<extra></extra>", **dots, **entry),
            **where,
        )
    fig.add_trace(
        go.Scatter(
            x=at[:, 0],
            y=at[:, 1],
            mode="markers+text",
            text=[str(int(name.partition(".")[2]) + 1) if name.startswith("head") else "" for name in names],
            textfont={"size": 11, "color": "white"},
            marker={"size": 17, "color": GREY, "symbol": ["circle" if n.startswith("head") else "square" for n in names]},
            customdata=[component(name) for name in names],
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=False,
        ),
        **where,
    )
    ticks = {places[name][0]: component(name).partition(" head")[0] for name in names}
    said = [f"{text} heads" if text.startswith("block") and "MLP" not in text else text for text in ticks.values()]
    plain: dict[str, Any] = {"showgrid": False, "zeroline": False, "ticks": ""}
    fig.update_xaxes(tickvals=list(ticks), ticktext=[t.replace("block ", "block\u00a0") for t in said], **plain, **where)
    fig.update_yaxes(visible=False, range=[-1.25, 1.25], **where)


def _has_circuit(result: Result, model: str) -> bool:
    """Whether some seed's model tells the prompts apart."""
    return bool(np.isfinite(values(select(result.tables["table"], one=model, other=model), "value")).any())


def _places(names: list[str]) -> dict[str, np.ndarray]:
    """A column for the heads of each block and for all else; heads one below the other."""
    columns = list(dict.fromkeys(name.partition(".")[0] for name in names))
    most = max((int(name.partition(".")[2]) for name in names if "." in name), default=0)
    found: dict[str, np.ndarray] = {}
    for name in names:
        column, _, head = name.partition(".")
        height = 1 - 2 * int(head) / most if head and most else 0.0
        found[name] = np.array([float(columns.index(column)), height])
    return found


def _arc(start: np.ndarray, end: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """A curve from one component to another that bows no more than it must to pass clear of those between."""
    t = np.linspace(0, 1, 21)[:, None]
    between = nodes[(nodes[:, 0] > start[0]) & (nodes[:, 0] < end[0])]
    arcs = [
        (1 - t) ** 2 * start + 2 * t * (1 - t) * ((start + end) / 2 + np.array([0.0, bow])) + t**2 * end
        for bow in sorted(np.linspace(-1.2, 1.2, 25), key=lambda bow: (abs(bow), -bow))
    ]
    clear = [float(np.min(np.abs(np.interp(between[:, 0], *arc.T) - between[:, 1]), initial=1.0)) for arc in arcs]
    return next((arc for arc, room in zip(arcs, clear, strict=True) if room >= CLEAR), arcs[int(np.argmax(clear))])


def alt(result: Result) -> str:
    """What base and fine-tuned model share, against ceiling and floors, and whether their circuits do alone what the models do."""
    found = {m.metric: words.interval(m) for m in result.headline}
    other = f", the base's circuits of two abilities {found['edges_other']}" if "edges_other" in found else ""
    said = f"Circuits that tell prompts for {asked(result)} from their counterfactuals: {apart(result)} "
    if _has_circuit(result, "base") and _has_circuit(result, "tuned"):
        said += (
            f"Of their strongest edges they share {found['edges']} (Jaccard); one model on other prompts shares "
            f"{found['edges_ceiling']}{other}, random sets {found['edges_random']}. Of what the fine-tuned model makes of the prompts "
            f"its own circuit keeps {found['faithful_edges_tuned']}, the base's {found['faithful_edges_tuned_base']}, random routes of "
            f"as many edges {found['faithful_edges_tuned_random']}. "
        )
    if not _has_circuit(result, "base"):
        return f"{said}The base has no circuit."
    revived = (
        f", and {found['faithful_edges_revived_base']} in the revived model" if "faithful_edges_revived_base" in found else ""
    )
    return f"{said}The base's circuit keeps {found['faithful_edges_base']} of what the base makes of them{revived}."
