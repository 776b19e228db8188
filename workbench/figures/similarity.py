"""Similarity: maps of CKA per point and place, and both measures where the answer is predicted between floor and ceiling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.maps import AMOUNT, frame, name_axis
from workbench.figures.marks import curve
from workbench.figures.tables import distinct, first, groups, keep, largest, select, values
from workbench.figures.theme import finish
from workbench.results import Result

COMPARED = {
    "base-tuned": ("base – fine-tuned", "tuned"),
    "base-revived": ("base – revived", "revived"),
    "tuned-revived": ("fine-tuned – revived", "other"),
    "base-another_seed": ("base – another seed's base", "other_operands"),
    "base-never_had_it": ("base – never had it", "never_had_it"),
    "base-untrained": ("base – untrained", "untrained"),
}
"""Comparisons: in words, and the style of their line."""
SHUFFLED = ("base – fine-tuned, different texts", "shuffled")
MEASURES = {"cka": "CKA", "procrustes": "Procrustes similarity"}
CELL, LINES, GAP, TOP = 17, 210, 86, 164


def figure(result: Result) -> go.Figure:
    """Rows of maps (what is asked) over two panels of lines (measures)."""
    table = result.tables["table"]
    there = [name for name in COMPARED if name in distinct(table, "comparison")]
    mapped = [name for name in there if name.startswith("base")]
    roles = [role for (role,), _ in groups(table, "role")]
    points = sorted(int(p) for p in distinct(table, "point"))
    width = len(mapped)
    heights = [*[float(CELL * len(points) + 24)] * len(roles), float(LINES)]
    height = sum(heights) + GAP * (len(heights) - 1)
    maps: list[Any] = [{"colspan": 2}, None] * width
    lines: list[Any] = [{"colspan": width}, *[None] * (width - 1)] * 2
    fig = make_subplots(
        rows=len(heights),
        cols=2 * width,
        specs=[*[maps] * len(roles), lines],
        row_heights=heights,
        horizontal_spacing=0.07 / width,
        vertical_spacing=GAP / height,
        subplot_titles=[
            *(COMPARED[name][0].replace(" – ", " –<br>") for name in mapped),
            *[""] * (width * (len(roles) - 1)),
            *(f"{name} at the answer" for name in MEASURES.values()),
        ],
    )
    for row, role in enumerate(roles, start=1):
        rows = select(table, role=role, measure="cka")
        asked = words.capability(str(first(rows, "asked")))
        for column, comparison in enumerate(mapped):
            _map(fig, select(rows, comparison=comparison), points, row, 2 * column + 1)
        fig.update_yaxes(title_text=f"asked for<br>{asked}", row=row, col=1)
    said = "place in the prompt (numbers: distance from the text's end; ans: predicts the answer)<br>rows: stream after block"
    fig.update_xaxes(title_text=said, row=len(roles), col=2 * (width // 2) + 1)
    for column, measure in enumerate(MEASURES):
        _by_point(fig, table, measure, there, len(roles) + 1, 1 + column * width)
    _bar(fig, height + TOP + 70)
    frame(fig)
    title = "How alike are the models' streams?"
    n = int(largest(table, "n") / max(1, len(words.seeds(result))))
    told = f"{words.sample(result, n)}<br>{_biased(result.tables['sizes'])}"
    return finish(fig, title, told, height=int(height) + TOP + 70, top=TOP, bottom=70)


def _biased(sizes: pd.DataFrame) -> str:
    """What the usual estimator would say of the same streams on different texts."""
    rows = select(sizes, comparison="shuffled", texts=largest(sizes, "texts"))
    return f"unbiased CKA; on different texts the biased one would be {first(select(rows, estimator='biased'), 'value'):.2f}"


def _map(fig: go.Figure, rows: pd.DataFrame, points: list[int], row: int, column: int) -> None:
    orders = sorted(int(o) for o in distinct(rows, "order"))
    names = [str(first(select(rows, order=order), "place")) for order in orders]
    z = np.full((len(points), len(orders)), np.nan)
    for point, order, value in zip(rows["point"], rows["order"], rows["value"], strict=True):
        z[points.index(int(point)), orders.index(int(order))] = value
    where: dict[str, Any] = {"row": row, "col": column}
    fig.add_trace(
        go.Heatmap(
            z=z,
            coloraxis="coloraxis",
            customdata=np.array([[[name, point] for name in names] for point in points]),
            hovertemplate="%{customdata[0]}, after block %{customdata[1]}: %{z:.3f}<extra></extra>",
            hoverongaps=False,
        ),
        **where,
    )
    said = {"request": "ans"}
    fig.update_xaxes(name_axis([said.get(name, name) for name in names]), tickangle=-90, **where)
    fig.update_yaxes(name_axis([str(point) for point in points]), showticklabels=column == 1, **where)


def _bar(fig: go.Figure, height: float) -> None:
    bar: dict[str, Any] = {"title": {"text": "CKA", "side": "right", "font": {"size": 12}}, "orientation": "h", "len": 0.5}
    bar |= {"x": 0, "xanchor": "left", "y": 1 - 64 / height, "yref": "container", "yanchor": "top"}
    bar |= {"thickness": 8, "outlinewidth": 0, "nticks": 6, "tickfont": {"size": 11}}
    fig.update_layout(coloraxis={"cmin": 0.0, "cmax": 1.0, "colorscale": AMOUNT, "colorbar": bar})


def _by_point(fig: go.Figure, table: pd.DataFrame, measure: str, there: list[str], row: int, column: int) -> None:
    rows = select(table, measure=measure, role="pt", part="request")
    rows = keep(rows, np.isfinite(values(rows, "value")))
    series = {"shuffled": SHUFFLED, **{name: COMPARED[name] for name in reversed(there)}}
    for comparison, (name, look) in series.items():  # controls first: they lie behind
        mine = select(rows, comparison=comparison)
        curve(fig, mine, "point", look, name, log=False, row=row, column=column, legend=column == 1, hover="after block")
    points = sorted(int(p) for p in distinct(table, "point"))
    where: dict[str, Any] = {"row": row, "col": column}
    known = [int(p) for p in distinct(rows, "point")] or points
    ends = {"range": [known[0] - 0.15, known[-1] + 0.15], "tickvals": points}
    fig.update_xaxes(title_text="stream after block", zeroline=False, **ends, **where)
    fig.update_yaxes(range=[-0.05, 1.05], zeroline=False, showticklabels=column == 1, **where)
    fig.update_yaxes(title_text="similarity" if column == 1 else "", **where)


def alt(result: Result) -> str:
    """How near the tuned and the other models come to the base where the answer is predicted."""
    found = {m.metric: m for m in result.headline}
    pt, _ = words.subject(result)
    said = [f"the fine-tuned model's last stream has CKA {words.interval(found['cka_base_tuned'])} with the base's"]
    for name, who in (
        ("revived", "the revived one's"),
        ("another_seed", "that of another seed's base"),
        ("never_had_it", "that of a model that never had it"),
        ("untrained", "that of random weights"),
    ):
        if f"cka_base_{name}" in found:
            said.append(f"{who} {words.interval(found[f'cka_base_{name}'])}")
    return (
        f"Where {pt} is answered, {', '.join(said)}; on different texts it is {words.interval(found['cka_shuffled'])}. "
        f"Procrustes similarity of base and fine-tuned model is {words.interval(found['procrustes_base_tuned'])}, on different "
        f"texts {words.interval(found['procrustes_shuffled'])}."
    )
