"""Component masks: wanted answers over the number of components taken, and which components they are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, band, levels, whiskers
from workbench.figures.tables import distinct, first, keep, select, values
from workbench.figures.theme import GREY, finish, style
from workbench.results import Result

GOALS = {
    "restores": ("base", "base's in fine-tuned:<br>right answers"),
    "breaks": ("tuned", "fine-tuned's in base:<br>the fine-tuned's answers"),
    "installs": ("tuned", "fine-tuned's in base:<br>the fine-tuned's answers"),
}
TICKS = (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)


def place(counts: Any) -> np.ndarray:
    """Numbers of components on the axis: log10(1 + k), so that none has a place."""
    return np.log10(1 + np.asarray(counts, dtype=np.float64))


def figure(result: Result) -> go.Figure:
    """Columns: the three goals. Above: wanted answers over components taken; below: the components of the headline's mask."""
    table = result.tables["table"]
    goals = distinct(table, "goal")
    titles = [f"<b>{goal}</b><br>{GOALS[goal][1]}<br>{_texts(select(table, goal=goal))}" for goal in goals]
    fig = make_subplots(
        rows=2,
        cols=len(goals),
        row_heights=[0.68, 0.32],
        horizontal_spacing=0.06,
        vertical_spacing=0.2,
        subplot_titles=titles + [""] * len(goals),
    )
    for column, goal in enumerate(goals, start=1):
        donor = GOALS[goal][0]
        _answers(fig, result, select(table, goal=goal), donor, column)
        _map(fig, result, goal, donor, column)
    pt, _ = words.subject(result)
    title = f"How few components carry the change of {pt}?"
    n = max(m.n for m in result.headline)
    return finish(fig, title, words.sample(result, n), height=640, top=140, bottom=60)


def _texts(rows: pd.DataFrame) -> str:
    return f"{words.capability(str(first(rows, 'capability')))}, {words.texts(float(first(rows, 'share')))}"


def _answers(fig: go.Figure, result: Result, rows: pd.DataFrame, donor: str, column: int) -> None:
    at: dict[str, Any] = {"row": 1, "col": column}
    goal, how = str(first(rows, "goal")), style(donor)
    wanted = select(rows, measure="wanted answers")
    learned = select(wanted, mask="learned").sort_values("penalty", ascending=False)
    counts = select(rows, measure="components", mask="learned").set_index("penalty")["value"].reindex(learned["penalty"])
    x = place(counts)
    drawn: Any = select(wanted, mask="random").groupby("penalty")["value"]
    random: pd.DataFrame = drawn.agg(["mean", "min", "max"]).reindex(learned["penalty"])
    draws = int(np.max(values(select(wanted, mask="random"), "draw")))
    name, grey = f"as many random heads and neurons ({draws} draws, range)", style("random")
    band(fig, x, values(random, "min"), values(random, "max"), grey.faint, name, column)
    lines = {"none": "none", "all": "all"}
    levels(fig, [(result.metric(f"{goal}_{k}").value, text) for k, text in lines.items()], column=column, left=True)
    control = select(wanted, mask="control").sort_values("penalty", ascending=False)
    taken = select(rows, measure="components", mask="control").set_index("penalty")["value"].reindex(control["penalty"])
    untaught = style("never_had_it")
    series = (
        (name, random.reset_index().rename(columns={"mean": "value"}), counts, grey, None),
        ("control: mask learned over its components", control, taken, untaught, None),
        (f"learned mask, {words.MODELS[donor]} model's components", learned, counts, how, whiskers(learned, how.color)),
    )
    for text, curve, number, look, bars in series:
        fig.add_trace(
            go.Scatter(
                x=place(number),
                y=values(curve, "value"),
                mode="lines+markers",
                name=text,
                legendgroup=text,
                showlegend=text not in {getattr(trace, "name", "") for trace in fig.data},
                line={"color": look.color, "dash": look.dash, "width": 1.6 if look.control else 2.4},
                marker={"symbol": look.marker, "size": 7, "color": look.color},
                error_y=bars,
                customdata=np.column_stack([values(curve, "penalty"), number]),
                hovertemplate=f"<b>{text}</b><br>penalty %{{customdata[0]:g}}: %{{customdata[1]:g}} components, %{{y:.3f}}<extra></extra>",
            ),
            **at,
        )
    few = result.metric(f"{goal}_components")
    text = "mask of the headline"
    for mask, number, look in (("control", result.metric(f"{goal}_control_components"), untaught), ("learned", few, how)):
        fig.add_trace(
            go.Scatter(
                x=place([number.value]),
                y=[result.metric(f"{goal}_{mask}").value],
                mode="markers",
                name=text,
                legendgroup=text,
                showlegend=column == 1 and mask == "learned",
                marker={"symbol": "star-open", "size": 14, "color": look.color, "line": {"width": 2}},
                hovertemplate=f"%{{y:.3f}}<extra>headline, {mask}</extra>",
            ),
            **at,
        )
    top = float(np.max([*x, *place(taken)], initial=1.0))
    shown = [t for t in TICKS if place([t])[0] <= top * 1.05]
    ticks = {"tickvals": list(place(shown)), "ticktext": [f"{t:,}" for t in shown], "range": [-0.06 * top, 1.08 * top]}
    fig.update_xaxes(title_text=f"components taken ({few.unit.removesuffix(' components')})", zeroline=False, **ticks, **at)
    fig.update_yaxes(accuracy_axis("share of wanted answers" if column == 1 else ""), **at)


def _map(fig: go.Figure, result: Result, goal: str, donor: str, column: int) -> None:
    """Heads at the left, neurons or MLPs at the right of every block; of several seeds the first."""
    at: dict[str, Any] = {"row": 2, "col": column}
    rows = select(result.tables["components"], goal=goal, headline=True)
    rows = select(rows, seed=first(rows, "seed")) if "seed" in rows else rows
    heads, rest = select(rows, kind="head"), keep(rows, rows["kind"] != "head")
    depth, width = int(values(heads, "block").max()) + 1, int(first(heads, "of"))
    middle = width + 0.4  # the neurons take as much room as the heads
    scale = width / max(1, int(first(rest, "of")) if len(rest) else 1)
    color, size = style(donor).color, max(5, min(13, 90 // width))
    for taken, look in ((False, "square-open"), (True, "square")):
        some = select(heads, taken=taken)
        fig.add_trace(_marks(values(some, "index"), some, look, color if taken else GREY, size, "head"), **at)
        others = select(rest, taken=taken)
        kind = str(first(others, "kind")) if len(others) else "mlp"
        symbol = ("line-ns" if kind == "neuron" else look) if taken else look
        x = middle + (values(others, "index") + 0.5) * scale
        fig.add_trace(_marks(x, others, symbol, color if taken else GREY, size, kind), **at)
    label = "neurons" if len(rest) == 0 or first(rest, "kind") == "neuron" else "MLP"
    ticks = {"tickvals": [(width - 1) / 2, middle + width / 2], "ticktext": [f"{width} heads", label]}
    fig.update_xaxes(range=[-0.7, middle + width + 0.3], showgrid=False, zeroline=False, ticks="", **ticks, **at)
    fig.add_vline(x=width - 0.2, line={"color": GREY, "width": 1}, exclude_empty_subplots=False, **at)
    every = list(range(0, depth, max(1, math.ceil(depth / 12))))
    fig.update_yaxes(
        title_text="block" if column == 1 else "",
        tickvals=every,
        ticktext=[str(b + 1) for b in every],
        range=[-0.6, depth - 0.4],
        **at,
    )


def _marks(x: np.ndarray, rows: pd.DataFrame, symbol: str, color: str, size: int, kind: str) -> go.Scatter:
    return go.Scatter(
        x=x,
        y=values(rows, "block"),
        mode="markers",
        showlegend=False,
        marker={"symbol": symbol, "size": size, "color": color, "line": {"width": 1.6, "color": color}},
        customdata=np.column_stack([values(rows, "block") + 1, values(rows, "index") + 1]),
        hovertemplate=f"block %{{customdata[0]:d}}, {kind} %{{customdata[1]:d}}<extra></extra>",
    )


def alt(result: Result) -> str:
    """How few components do it in each direction, against as many random ones."""
    pt, ft = words.subject(result)
    found = {m.metric: m for m in result.headline}

    def said(goal: str) -> str:
        number, learned, random, every, control, held = (
            found[f"{goal}_{k}"] for k in ("components", "learned", "random", "all", "control", "control_components")
        )
        return (
            f"{words.number(number.value)} {number.unit} give {words.interval(learned)} of the wanted answers (as many random ones "
            f"{words.interval(random)}, all {words.interval(every)}, {words.number(held.value)} of the control's "
            f"{words.interval(control)})"
        )

    told = {
        "restores": f"Components of the base in the fine-tuned model, for right answers on {pt}: ",
        "breaks": "Components of the fine-tuned model in the base, for its own answers: ",
        "installs": f"The same for {ft} where it was trained: ",
    }
    return " ".join(f"{text}{said(goal)}." for goal, text in told.items() if goal in found)
