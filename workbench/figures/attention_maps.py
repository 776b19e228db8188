"""Attention maps: patterns of one text in the models and their difference, and where the read position looks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.maps import ceiling, color_axes, frame, heat, name_axis
from workbench.figures.marks import whiskers
from workbench.figures.tables import distinct, first, keep, largest, select, values
from workbench.figures.theme import GREY, finish, style
from workbench.results import Result

MOST_BLOCKS = 4
MOST_NAMES = 18
"""Tokens of a text whose names can be read under three maps side by side."""


def figure(result: Result) -> go.Figure:
    """A row of maps per block (base, fine-tuned, revived, difference); below, the attention mass of one head.

    That head is the one that moved most, or the one that the settings name.
    """
    maps, texts = (_one_text(result.tables[name]) for name in ("maps", "texts"))
    models = [str(model) for model in distinct(maps, "model")]
    every = {int(b): _matrices(select(maps, block=b), models, len(texts)) for b in distinct(maps, "block")}
    # Of a deep model, the blocks in which most changed.
    blocks = sorted(sorted(every, key=lambda b: -float(np.abs(every[b][-1]).sum()))[:MOST_BLOCKS])
    rows, columns = len(blocks) + 1, len(models) + 1
    last: list[dict[str, int] | None] = [{"colspan": columns}, *[None] * (columns - 1)]
    places: list[list[dict[str, int] | None]] = [[{} for _ in range(columns)] for _ in blocks]
    head, block = _moved_most(result)
    titles = [*(_name(model) for model in models), "fine-tuned minus base"] + [""] * (columns * (len(blocks) - 1))
    heights = [210.0] * len(blocks) + [200.0]
    height = sum(heights) + 40 * rows + 264
    fig = make_subplots(
        rows=rows,
        cols=columns,
        specs=[*places, last],
        row_heights=heights,
        horizontal_spacing=0.035,
        vertical_spacing=40 / (height - 264),
        subplot_titles=[*titles, f"from the read position, block {block + 1}, head {head + 1}"],
    )
    amount, change = (ceiling(np.stack([m for b in blocks for m in every[b][part]])) for part in (slice(-1), slice(-1, None)))
    fig.update_layout(color_axes(amount, change, "attention", height))
    for row, b in enumerate(blocks, start=1):
        _maps(fig, every[b], texts, row, f"block {b + 1}, head {int(first(select(maps, block=b), 'head')) + 1}")
    _marks(fig, texts, (len(blocks), columns), result)
    _masses(fig, result, models, (block, head), rows)
    frame(fig)
    pt, _ = words.subject(result)
    return finish(
        fig, f"Where attention looks on texts for {pt}", words.sample(result), height=int(height), top=146, bottom=118
    )


def _one_text(table: pd.DataFrame) -> pd.DataFrame:
    """The first text of the first seed."""
    rows = select(table, text=0)
    return select(rows, seed=first(rows, "seed")) if "seed" in rows else rows


def _name(model: str) -> str:
    return words.MODELS.get(model, model)


def _matrices(maps: pd.DataFrame, models: list[str], size: int) -> list[np.ndarray]:
    """A pattern per model, and last the fine-tuned minus the base's."""
    out: dict[str, np.ndarray] = {}
    for model in models:
        rows = select(maps, model=model)
        out[model] = np.zeros((size, size))
        out[model][rows["query"].to_numpy(), rows["key"].to_numpy()] = values(rows, "attention")
    return [*out.values(), out["tuned"] - out["base"]]


def _maps(fig: go.Figure, matrices: list[np.ndarray], texts: pd.DataFrame, row: int, name: str) -> None:
    names = [str(token) for token in texts["token"]]
    read = int(np.argmax(texts["read"].to_numpy(bool)))
    size = len(names)
    said = [f"{i + 1}: {token}" for i, token in enumerate(names)]
    hover = np.array([[f"{query} attends to {key}" for key in said] for query in said])
    for column, matrix in enumerate(matrices, start=1):
        where: dict[str, Any] = {"row": row, "col": column}
        axis, signed = ("coloraxis2", "%{z:+.3f}") if column == len(matrices) else ("coloraxis", "%{z:.3f}")
        fig.add_trace(heat(matrix, hover, axis, "%{text}<br>" + signed), **where)
        # Columns of a long text are narrower than a letter; what an ability is about is marked above them.
        fig.update_xaxes(name_axis(names, [] if size > MOST_NAMES else None), range=[-0.5, size - 0.5], tickangle=0, **where)
        fig.update_xaxes(title_text="attended token" if row == 1 and size > MOST_NAMES and column == 2 else "", **where)
        labels = ["read" if i == read else token for i, token in enumerate(names)]
        only = [read] if size > MOST_NAMES else None
        fig.update_yaxes(name_axis(labels, only), range=[size - 0.5, -0.5 - 0.09 * size], **where)
        fig.update_yaxes(showticklabels=column == 1, **where)
    fig.update_yaxes(title_text=f"{name}<br>attending token", row=row, col=1)


def _marks(fig: go.Figure, texts: pd.DataFrame, grid: tuple[int, int], result: Result) -> None:
    """Triangles over the columns that an ability is about, in every map of a grid."""
    pt, ft = words.subject(result)
    height = -0.5 - 0.045 * len(texts)
    for role, name in (("pt", pt), ("ft", ft)):
        about = np.flatnonzero((texts["about"] == role).to_numpy(bool))
        for place in range(grid[0] * grid[1] if len(about) else 0):
            fig.add_trace(
                go.Scatter(
                    x=about,
                    y=np.full(len(about), height),
                    mode="markers",
                    name=f"operand of {name}",
                    legendgroup=role,
                    showlegend=place == 0,
                    marker={"symbol": "triangle-down", "size": 6, "color": style(role).color},
                    hoverinfo="skip",
                ),
                row=place // grid[1] + 1,
                col=place % grid[1] + 1,
            )


def _moved_most(result: Result) -> tuple[int, int]:
    """`(head, block)` of the largest change of a mass, among those that the settings leave."""
    named = {key: result.settings[key] for key in ("block", "head") if result.settings.get(key) is not None}
    top = _top(select(result.tables["table"], model="change", **named))
    return int(first(top, "head")), int(first(top, "block"))


def _top(change: pd.DataFrame) -> pd.DataFrame:
    """The one row of the largest change."""
    return change.iloc[[int(np.argmax(np.abs(values(change, "value"))))]]


def _masses(fig: go.Figure, result: Result, models: list[str], at_head: tuple[int, int], row: int) -> None:
    rows = select(result.tables["table"], block=at_head[0], head=at_head[1])
    rows = keep(rows, ~rows["class"].isin(["text", "window"]) | (rows["kind"] == "token"))
    classes = [(str(kind), str(name)) for kind, name in rows[["kind", "class"]].drop_duplicates().itertuples(index=False)]
    places = {key: i for i, key in enumerate(classes)}
    positions = result.tables["classes"]
    total = max(1.0, largest(select(result.tables["texts"], text=0), "position") + 1)
    spread = [float(first(select(positions, kind=k, **{"class": c}), "value")) / total for k, c in classes]
    at: dict[str, Any] = {"row": row, "col": 1}
    fig.add_trace(
        go.Scatter(
            x=list(range(len(classes))),
            y=spread,
            mode="markers",
            name="if all positions were attended alike",
            marker={"symbol": "line-ew-open", "size": 22, "color": GREY, "line": {"width": 2}},
            hovertemplate="uniform: %{y:.3f}<extra></extra>",
        ),
        **at,
    )
    for i, model in enumerate(models):
        one, how, shift = select(rows, model=model), style(model), 0.24 * (i / (len(models) - 1) - 0.5)
        x = [places[str(k), str(c)] + shift for k, c in zip(one["kind"], one["class"], strict=True)]
        value = values(one, "value")
        fig.add_trace(
            go.Scatter(
                x=x,
                y=value,
                mode="markers",
                name=f"{_name(model)} model",
                marker={"symbol": how.marker, "size": 8, "color": how.color},
                error_y=whiskers(one, how.color),
                hovertemplate=f"{_name(model)}: %{{y:.3f}}<extra></extra>",
            ),
            **at,
        )
    labels = [_class_name(result, kind, name) for kind, name in classes]
    fig.update_xaxes(tickvals=list(range(len(classes))), ticktext=labels, tickangle=-35, zeroline=False, **at)
    top = max(0.05, 1.12 * largest(rows, "high"))
    fig.update_yaxes(title_text="attention mass", range=[-0.03 * top, top], zeroline=False, **at)


def _class_name(result: Result, kind: str, name: str) -> str:
    pt, ft = words.subject(result)
    if kind == "token":
        return f"token {name}"
    return {"operand": f"operand of {pt}", "request": "read position"}.get(
        name, f"operand of {ft}" if name.startswith("operand of") else name
    )


def alt(result: Result) -> str:
    """How far attention moved, and on what."""
    head, block = _moved_most(result)
    rows = select(result.tables["table"], block=block, head=head)
    top = _top(select(rows, model="change"))
    at = {"kind": first(top, "kind"), "class": first(top, "class")}
    was, now = (float(first(select(rows, model=model, **at), "value")) for model in ("base", "tuned"))
    pt, _ = words.subject(result)
    name = _class_name(result, str(at["kind"]), str(at["class"]))
    return (
        f"On texts for {pt} fine-tuning moved {words.interval(result.metric('moved'))} of the attention at the read position in the "
        f"head that was chosen on other texts. The mass that changed most on these: block {block + 1}, head {head + 1} attends to "
        f"{name} with {was:.2f} before and {now:.2f} after."
    )
