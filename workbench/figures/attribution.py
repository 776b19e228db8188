"""Direct logit attribution: what each head and MLP adds to the answer's logit difference, before and after."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.maps import CHANGE, ceiling, color_axes, frame, heat
from workbench.figures.marks import whiskers
from workbench.figures.places import above, model_name
from workbench.figures.tables import distinct, keep, largest, select, values
from workbench.figures.theme import finish, style
from workbench.results import Result

STATES = ("base", "tuned", "revived")
COLUMNS = ("head", "attention bias", "mlp")
LISTED = 12
CELL, LIST, GAP = 30, 26, 84
TOP, BOTTOM = 140, 58


def figure(result: Result) -> go.Figure:
    """Maps of blocks by heads and MLP, models on one scale and the difference; below, the parts that changed most."""
    table = result.table
    models = [model for model in STATES if model in distinct(table, "model")]
    inside = keep(table, table["block"].notna())
    blocks = int(largest(inside, "block")) + 1
    listed = _listed(table)
    heights = [float(max(3, blocks) * CELL), float(LIST * len(listed) + 20)]
    inner = sum(heights) + GAP
    height = inner + TOP + BOTTOM
    columns = len(models) + 1
    fig = make_subplots(
        rows=2,
        cols=columns,
        specs=[[{}] * columns, [{"colspan": columns}, *[None] * (columns - 1)]],
        row_heights=heights,
        vertical_spacing=GAP / inner,
        horizontal_spacing=0.025,
    )
    # The list also has the sum and the biases at the end; the colours are of the parts within blocks.
    amount, change = (ceiling(values(keep(inside, inside["model"].isin(names)), "value")) for names in (models, ["change"]))
    fig.update_layout(color_axes(amount, change, "logits", height))
    fig.update_layout(coloraxis={"cmin": -amount, "colorscale": CHANGE})
    for column, model in enumerate([*models, "change"], start=1):
        _map(fig, select(inside, model=model), blocks, column, signed=model == "change")
        above(fig, "fine-tuned minus base" if model == "change" else model_name(model), 1, column)
    frame(fig)
    _list(fig, table, models, listed)
    above(fig, "the sum, and the parts that changed most", 2, 1, left=True)
    pt, _ = words.subject(result)
    title = f"Which component writes the answer to {pt}?"
    return finish(fig, title, words.sample(result), height=int(height), top=TOP, bottom=BOTTOM)


def part_name(part: str) -> str:
    """`head 1.3` -> `block 2, head 4`; numbers in figures are counted from 1."""
    kind, _, place = part.rpartition(" ")
    if not place[:1].isdigit():
        return {"all": "sum: logit difference"}.get(part, part)
    block, _, head = place.partition(".")
    name = {"mlp": "MLP"}.get(kind, kind)
    return f"block {int(block) + 1}, {name}" + (f" {int(head) + 1}" if head else "")


def _listed(table: pd.DataFrame) -> list[str]:
    """The sum, and the parts of the largest change."""
    change = select(table, model="change")
    change = keep(change, change["part"] != "all")
    order = np.argsort(-np.abs(values(change, "value")), kind="stable")[:LISTED]
    return ["all", *(str(part) for part in change["part"].iloc[order])]


def _map(fig: go.Figure, rows: pd.DataFrame, blocks: int, column: int, *, signed: bool) -> None:
    heads = int(largest(select(rows, kind="head"), "head")) + 1
    kinds = [kind for kind in COLUMNS if kind in distinct(rows, "kind")]
    names = [str(h + 1) for h in range(heads)] + [{"attention bias": "bias"}.get(k, k.upper()) for k in kinds if k != "head"]
    z, said = np.full((blocks, len(names)), np.nan), np.full((blocks, len(names)), "", dtype=object)
    for part, kind, block, head, value in rows[["part", "kind", "block", "head", "value"]].itertuples(index=False):
        at = int(head) if kind == "head" else heads + kinds.index(kind) - 1
        z[int(block), at], said[int(block), at] = value, part_name(str(part))
    where: dict[str, Any] = {"row": 1, "col": column}
    fig.add_trace(heat(z, said, "coloraxis2" if signed else "coloraxis", "%{text}: %{z:+.2f} logits"), **where)
    plain: dict[str, Any] = {"showgrid": False, "zeroline": False, "ticks": "", "tickfont": {"size": 10}}
    few = names if heads <= 8 else [name if i % 2 == 0 or i >= heads else "" for i, name in enumerate(names)]
    fig.update_xaxes(tickvals=list(range(len(names))), ticktext=few, tickangle=0, title_text="head", **plain, **where)
    fig.update_yaxes(tickvals=list(range(blocks)), ticktext=[str(b + 1) for b in range(blocks)], **plain, **where)
    fig.update_yaxes(showticklabels=column == 1, title_text="block" if column == 1 else "", **where)


def _list(fig: go.Figure, table: pd.DataFrame, models: list[str], listed: list[str]) -> None:
    at: dict[str, Any] = {"row": 2, "col": 1}
    order = listed[::-1]
    for model in models:
        rows = select(table, model=model).set_index("part").loc[order].reset_index()
        how = style(model)
        fig.add_trace(
            go.Scatter(
                x=values(rows, "value"),
                y=[part_name(part) for part in order],
                mode="markers",
                name=f"{model_name(model)} model",
                marker={"symbol": how.marker, "size": 8, "color": how.color},
                error_x=whiskers(rows, how.color),
                hovertemplate=f"%{{y}}<br>{model_name(model)}: %{{x:.2f}} logits<extra></extra>",
            ),
            **at,
        )
    fig.update_xaxes(title_text="logits, right answer minus its rival", zeroline=True, **at)
    fig.update_yaxes(type="category", automargin=True, tickfont={"size": 11}, **at)


def alt(result: Result) -> str:
    """The logit differences, and the part that changed most."""
    pt, _ = words.subject(result)
    found = {m.metric: m for m in result.headline}
    top = _listed(result.table)[1]
    change = float(values(select(result.table, model="change", part=top), "value")[0])
    revived = f", {words.interval(found['revived_difference'])} after revival" if "revived_difference" in found else ""
    return (
        f"The right answer to {pt} leads its rival by {words.interval(found['base_difference'])} logits in the base and "
        f"{words.interval(found['tuned_difference'])} in the fine-tuned model{revived}; most of it changed in {part_name(top)}, by "
        f"{change:+.2f}, and the part chosen on other texts makes up {words.interval(found['explained'])} of the change."
    )
