"""The graph of runs: what was made from what, a column per kind of work, from pretraining on the left to analyses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

import plotly.graph_objects as go

from workbench.figures.theme import GREY, STATES, finish
from workbench.run_records import Run

SYMBOLS: Mapping[str, str] = {
    "pretrain": "circle",
    "finetune": "square",
    "reverse": "diamond",
    "analyse": "triangle-right",
}
KINDS: Mapping[str, str] = {
    "pretrain": "pretraining",
    "finetune": "fine-tuning",
    "reverse": "reverse fine-tuning",
    "analyse": "analysis",
}
_COLUMN = {kind: i for i, kind in enumerate(KINDS)}
LABELLED = 26
"""Up to this many runs carry their names; beyond it the names are on hover."""


def state(run: Run) -> str:
    """`damaged`, or the state that its status says."""
    return "damaged" if run.damaged else str(run.status.get("state", "interrupted"))


def layout(parents: Mapping[str, Sequence[str]], least: Mapping[str, int] | None = None) -> dict[str, tuple[float, float]]:
    """Places of nodes: x is the longest way from a node without parents, y spreads each layer around 0.

    Args:
        parents: node -> its parents; parents that are no node are ignored, a cycle (only damage makes one) is cut.
        least: node -> smallest x that it may have, so that nodes of one kind share a column.
    """
    floor = least or {}
    known = {node: [p for p in above if p in parents and p != node] for node, above in parents.items()}
    depth: dict[str, int] = {}
    todo = list(known)
    while todo:
        ready = [node for node in todo if all(p in depth for p in known[node])] or todo[:1]
        for node in ready:
            depth[node] = max([floor.get(node, 0), *(depth[p] + 1 for p in known[node] if p in depth)])
        done = set(ready)
        todo = [node for node in todo if node not in done]
    layers: dict[int, list[str]] = {}
    for node in known:
        layers.setdefault(depth[node], []).append(node)
    place: dict[str, tuple[float, float]] = {}
    for x in sorted(layers):
        # A node belongs beside the mean of its parents; equal ones keep their order.
        wanted = {node: _mean([place[p][1] for p in known[node] if p in place]) for node in layers[x]}
        ordered = sorted(layers[x], key=lambda node: -wanted[node])
        for i, node in enumerate(ordered):
            place[node] = (float(x), (len(ordered) - 1) / 2 - i)
    widest = max((len(layer) for layer in layers.values()), default=1)
    return {n: (x, y * (widest - 1) / max(1, len(layers[int(x)]) - 1)) for n, (x, y) in place.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def graph(runs: Sequence[Run]) -> go.Figure:
    """Runs as nodes (shape: kind, colour: state), parents joined to children."""
    nodes = {run.key: run for run in runs}
    least = {key: _COLUMN[run.kind] for key, run in nodes.items() if run.kind in _COLUMN}
    places = layout({key: run.parents for key, run in nodes.items()}, least)
    lines_x: list[float | None] = []
    lines_y: list[float | None] = []
    for key, run in nodes.items():
        for parent in run.parents:
            if parent in places:
                (x0, y0), (x1, y1) = places[parent], places[key]
                lines_x += [x0, x1, None]
                lines_y += [y0, y1, None]
    fig = go.Figure()
    fig.add_trace(
        go.Scatter(
            x=lines_x,
            y=lines_y,
            mode="lines",
            line={"color": GREY, "width": 1},
            opacity=0.35,
            hoverinfo="skip",
            showlegend=False,
            name="made from",
        )
    )
    labelled = len(nodes) <= LABELLED
    for kind in (*KINDS, ""):
        for word, color in STATES.items():
            group = [r for r in nodes.values() if state(r) == word and (r.kind if r.kind in KINDS else "") == kind]
            if group:
                _nodes(fig, group, places, kind, word, color, labelled)
    crowd = Counter(x for x, _ in places.values())
    _headings(fig, nodes, places)
    finish(fig, "", "", height=max(240, min(900, 130 + 26 * max(crowd.values(), default=1))), top=34, bottom=10)
    deepest = max((x for x, _ in places.values()), default=0.0)
    hidden = {"visible": False, "showgrid": False, "zeroline": False}
    fig.update_xaxes(hidden, range=[-0.15, deepest + (0.75 if labelled else 0.15)])
    fig.update_yaxes(hidden)
    return fig.update_layout(margin={"l": 10, "r": 10})


def _headings(fig: go.Figure, nodes: Mapping[str, Run], places: Mapping[str, tuple[float, float]]) -> None:
    """The name of a kind above every column that holds nothing else."""
    for x in sorted({x for x, _ in places.values()}):
        kinds = {nodes[key].kind for key, place in places.items() if place[0] == x}
        if len(kinds) == 1 and (kind := kinds.pop()) in KINDS:
            where = {"x": x, "xref": "x", "xanchor": "left", "y": 1, "yref": "paper", "yanchor": "bottom"}
            fig.add_annotation(text=f"<b>{KINDS[kind]}</b>", showarrow=False, xshift=-6, **where)


def _nodes(
    fig: go.Figure,
    runs: Sequence[Run],
    places: Mapping[str, tuple[float, float]],
    kind: str,
    word: str,
    color: str,
    labelled: bool,
) -> None:
    deepest = max(x for x, _ in places.values())
    fig.add_trace(
        go.Scatter(
            x=[places[run.key][0] for run in runs],
            y=[places[run.key][1] for run in runs],
            mode="markers+text" if labelled else "markers",
            text=[escape(run.stage) for run in runs],
            # Above the edges that leave to the right; nothing leaves the last column.
            textposition=["middle right" if places[run.key][0] == deepest else "top right" for run in runs],
            textfont={"size": 11},
            name=f"{KINDS.get(kind, 'unknown kind')}, {word}",
            marker={
                "symbol": SYMBOLS.get(kind, "x"),
                "size": 12 if len(places) <= 80 else 8,
                "color": color,
                "line": {"width": 1, "color": "rgba(128,128,128,0.6)"},
            },
            customdata=[[run.key, _given(run) + _why(run)] for run in runs],
            hovertemplate="<b>%{text}</b><br>%{customdata[0]}%{customdata[1]}<extra></extra>",
        )
    )


def _given(run: Run) -> str:
    """Whose weights a run took that pretrained nothing itself."""
    return f"<br>given: {escape(str(run.spec['model']['path'])[-70:])}" if run.spec.get("given") else ""


def _why(run: Run) -> str:
    """A reason short enough for a hover."""
    reason = run.damaged or str(run.status.get("reason") or "")
    return f"<br>{escape(reason[:70])}{'…' if len(reason) > 70 else ''}" if reason else ""


def alt(runs: Sequence[Run]) -> str:
    """How many runs are in which state."""
    counts: dict[str, int] = {}
    for run in runs:
        counts[state(run)] = counts.get(state(run), 0) + 1
    said = ", ".join(f"{n} {word}" for word, n in sorted(counts.items(), key=lambda item: -item[1]))
    return f"Graph of {len(runs)} run{'' if len(runs) == 1 else 's'}, each joined to what it was made from: {said or 'none'}."
