"""Curvature and fine-tuning: sharpness along trainings, overlaps of sharp directions, shares of steps, and how blocks differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.maps import AMOUNT, ceiling, frame, name_axis
from workbench.figures.marks import place, step_axis, whiskers
from workbench.figures.tables import distinct, first, groups, keep, largest, select, values
from workbench.figures.theme import GREY, finish, style
from workbench.results import Result

TRAININGS = {
    "random": ("random steps as long as fine-tuning's", "random"),
    "never_had_it": ("the model that never had it, taught", "never_had_it"),
    "finetune": ("fine-tuning", "tuned"),
    "revived": ("reviving", "revived"),
}
"""In words, and the style of their line; controls first, for they lie behind."""
COMPARED = {
    ("base", "tuned"): "base –<br>tuned",
    ("tuned", "revived"): "tuned –<br>revived",
    ("base", "revived"): "base –<br>revived",
    ("base", "never_had_it"): "base –<br>never had it",
}
SHORT = {"base": "base", "tuned": "tuned", "revived": "revived", "never_had_it": "never had it"}
STEPS = {"finetuning": "fine-tuning", "reviving": "reviving", "teaching": "teaching"}
APART = {"pt": -0.12, "ft": 0.12}
"""Both abilities side by side."""
TOP = 104


def figure(result: Result) -> go.Figure:
    """Rows: sharpness of either ability's loss; overlaps and shares; distances between blocks, where they were measured."""
    blocks = result.tables.get("heterogeneity")
    rows = 3 if blocks is not None else 2
    pt, ft = words.subject(result)
    overlaps, directions = result.tables["overlaps"], result.tables["directions"]
    random, chance = (float(first(select(t, measure=m), "value")) for t, m in ((overlaps, "random"), (directions, "chance")))
    titles = [
        f"loss of {pt}",
        f"loss of {ft}",
        f"overlap of the sharpest directions<br>(random ones: {words.number(random)})",
        f"share of a step inside the sharpest directions<br>(dotted: chance, {words.number(chance)})",
    ]
    titles += ["blocks of the base: JS0", "blocks of the fine-tuned model: JS0"] if rows == 3 else []
    fig = make_subplots(rows=rows, cols=2, horizontal_spacing=0.13, vertical_spacing=0.13, subplot_titles=titles)
    shown: set[str] = set()
    for column, role in enumerate(("pt", "ft"), start=1):
        _path(fig, result.tables["path"], role, column, shown)
    _overlaps(fig, overlaps, random, shown)
    _shares(fig, directions, chance, shown)
    if blocks is not None:
        for column, model in enumerate(("base", "tuned"), start=1):
            _map(fig, select(blocks, model=model, measure="js0"), column)
        top = ceiling(values(select(blocks, measure="js0"), "value"))
        bar: dict[str, Any] = {
            "title": {"text": "JS0 (nats)", "side": "right", "font": {"size": 12}},
            "len": 0.22,
            "thickness": 8,
        }
        bar |= {"y": 0.0, "yanchor": "bottom", "outlinewidth": 0, "nticks": 4, "tickfont": {"size": 11}}
        fig.update_layout(coloraxis={"cmin": 0.0, "cmax": top, "colorscale": AMOUNT, "colorbar": bar})
        frame(fig)
    batch = int(first(result.tables["models"], "batch"))
    sample = words.sample(result, result.metric("sharpness_base_pt").n)
    told = f"{sample}<br>each curvature is that of the mean loss of {batch} texts"
    return finish(
        fig, "What has fine-tuning to do with the curvature of the loss?", told, height=330 * rows, top=TOP, bottom=70
    )


def _entry(name: str, shown: set[str]) -> dict[str, Any]:
    """Name and legend group of a series; its entry stands once."""
    new = name not in shown
    shown.add(name)
    return {"name": name, "legendgroup": name, "showlegend": new}


def _path(fig: go.Figure, table: pd.DataFrame, role: str, column: int, shown: set[str]) -> None:
    at: dict[str, Any] = {"row": 1, "col": column}
    rows = select(table, role=role, measure="sharpness")
    for training, (name, look) in TRAININGS.items():
        mine = select(rows, training=training).sort_values("step")
        if mine.empty:
            continue
        how = style(look)
        fig.add_trace(
            go.Scatter(
                x=place(mine["step"]),
                y=values(mine, "value"),
                mode="markers" if training == "random" else "lines+markers",
                opacity=0.85 if how.control else 1.0,
                line={"color": how.color, "dash": how.dash, "width": 1.6 if how.control else 2.4},
                marker={"symbol": how.marker, "size": 7, "color": how.color},
                error_y=whiskers(mine, how.color) if bool((mine["high"] > mine["low"]).any()) else None,
                customdata=values(mine, "step"),
                hovertemplate=f"<b>{name}</b><br>step %{{customdata:,}}: %{{y:.4g}}<extra></extra>",
                **_entry(name, shown),
            ),
            **at,
        )
    if rows.empty:
        axis = "" if column == 1 else str(column)
        where: Any = {"xref": f"x{axis} domain", "yref": f"y{axis} domain", "x": 0.5, "y": 0.5}
        fig.add_annotation(text="no checkpoints were kept", showarrow=False, **where)
    fig.update_xaxes(step_axis(largest(rows, "step", 1.0), "training step"), **at)
    title = "sharpness λ₁ (nats per<br>squared weight)" if column == 1 else ""
    fig.update_yaxes(
        type="log" if not rows.empty and float(values(rows, "value").min()) > 0 else "linear", title_text=title, **at
    )


def _dots(
    fig: go.Figure, rows: pd.DataFrame, x: Sequence[float], look: str, at: dict[str, Any], least: float, **entry: Any
) -> None:
    """Points with whiskers; on a logarithmic axis nothing lies below `least`."""
    how = style(look)
    cut = rows.assign(**{name: np.maximum(values(rows, name), least) for name in ("value", "low", "high")})
    fig.add_trace(
        go.Scatter(
            x=list(x),
            y=values(cut, "value"),
            mode="markers",
            marker={"symbol": how.marker, "size": 8, "color": how.color},
            error_y=whiskers(cut, how.color),
            customdata=np.column_stack([values(rows, "value"), values(rows, "low"), values(rows, "high"), values(rows, "n")]),
            hovertemplate=f"<b>{entry['name']}</b><br>%{{customdata[0]:.3g}} [%{{customdata[1]:.3g}}, %{{customdata[2]:.3g}}]"
            "<br>n = %{customdata[3]:,}<extra></extra>",
            **entry,
        ),
        **at,
    )


def _overlaps(fig: go.Figure, table: pd.DataFrame, random: float, shown: set[str]) -> None:
    at: dict[str, Any] = {"row": 2, "col": 1}
    measured = select(table, measure="overlap")
    models = select(measured, kind="models")
    there = [pair for pair in COMPARED if not select(models, a=pair[0], b=pair[1]).empty]
    for role, apart in APART.items():
        for index, (a, _) in enumerate(there):  # controls first: they lie behind
            own = select(measured, a=a, b=a, role=role)
            _dots(fig, own, [index + apart] * len(own), "shuffled", at, -1, **_entry("one model, other examples", shown))
    for role, apart in APART.items():
        for index, (a, b) in enumerate(there):
            mine = select(models, a=a, b=b, role=role)
            name = f"{words.capability(str(first(mine, 'capability')))}: its loss"
            _dots(fig, mine, [index + apart], role, at, -1, **_entry(name, shown))
    _line(fig, random, at)
    axis = {"tickvals": list(range(len(there))), "ticktext": [COMPARED[pair] for pair in there], "tickangle": 0}
    fig.update_xaxes(**axis, range=[-0.5, len(there) - 0.5], zeroline=False, **at)
    fig.update_yaxes(range=[-0.04, 1.06], title_text="mean squared cosine", zeroline=False, **at)


def _shares(fig: go.Figure, table: pd.DataFrame, chance: float, shown: set[str]) -> None:
    at: dict[str, Any] = {"row": 2, "col": 2}
    share = select(table, measure="share")
    least = chance / 100
    own = keep(share, share["direction"].isin(list(STEPS)))
    there = [key for key, _ in groups(own, "direction", "model")]
    there.sort(key=lambda key: (list(STEPS).index(key[0]), list(SHORT).index(key[1])))
    for kind in ("random", "step"):
        for role, apart in APART.items():
            for index, (step, model) in enumerate(there):
                wanted = f"random_{step}" if kind == "random" else step
                rows = select(share, direction=wanted, model=model, role=role)
                ability = f"{words.capability(str(first(rows, 'capability')))}: its loss"
                name = ability if kind == "step" else "random steps of equal length"
                _dots(fig, rows, [index + apart], role if kind == "step" else "random", at, least, **_entry(name, shown))
    _line(fig, chance, at)
    labels = [f"{STEPS[step]}<br>at {SHORT[model].replace(' ', '<br>', 1)}" for step, model in there]
    fig.update_xaxes(tickvals=list(range(len(there))), ticktext=labels, tickangle=0, zeroline=False, **at)
    fig.update_xaxes(range=[-0.5, max(1, len(there)) - 0.5], **at)
    limits = [math.log10(least) - 0.1, 0.1]
    fig.update_yaxes(type="log", range=limits, title_text="share of the squared norm", exponentformat="power", dtick=1, **at)


def _line(fig: go.Figure, y: float, at: dict[str, Any]) -> None:
    line = {"color": GREY, "dash": "dot", "width": 1.3}
    how: dict[str, Any] = {"line": line, "layer": "below", "exclude_empty_subplots": False, **at}
    fig.add_hline(y=y, **how)


def _map(fig: go.Figure, rows: pd.DataFrame, column: int) -> None:
    at: dict[str, Any] = {"row": 3, "col": column}
    names = [str(name) for name in distinct(rows.sort_values("order_a"), "a")]
    z = rows.pivot_table(index="order_a", columns="order_b", values="value", dropna=False).to_numpy(dtype=float)
    hover = [[f"{a} – {b}" for b in names] for a in names]
    template = "%{text}: %{z:.3f} nats<extra></extra>"
    fig.add_trace(go.Heatmap(z=z, coloraxis="coloraxis", text=hover, hovertemplate=template, showlegend=False), **at)
    fig.update_xaxes(name_axis(names), tickangle=-45, **at)
    fig.update_yaxes(name_axis(names), autorange="reversed", showticklabels=column == 1, **at)


def alt(result: Result) -> str:
    """Sharpness before and after, overlaps beside their ceiling, shares beside their controls, and how far blocks differ."""
    found = {m.metric: m for m in result.headline}
    pt, ft = words.subject(result)
    said = [
        f"The loss of {name} has sharpness {words.interval(found[f'sharpness_base_{role}'])} at the base and "
        f"{words.interval(found[f'sharpness_tuned_{role}'])} at the fine-tuned model"
        for role, name in (("pt", pt), ("ft", ft))
    ]
    overlap = f"the sharpest directions of {pt} overlap by {words.interval(found['overlap_base_tuned_pt'])}"
    if "overlap_ceiling_base_pt" in found:
        overlap += f", those of the base on other examples by {words.interval(found['overlap_ceiling_base_pt'])}"
    said.append(overlap[0].upper() + overlap[1:])
    if "share_finetuning_at_base_pt" in found:
        said.append(
            f"Of fine-tuning's step {words.interval(found['share_finetuning_at_base_pt'])} lies in those of the base, of random steps of "
            f"equal length {words.interval(found['share_random_finetuning_at_base_pt'])}; chance is {words.interval(found['share_chance'])}"
        )
    if "heterogeneity_base" in found:
        said.append(
            f"Spectra of blocks are {words.interval(found['heterogeneity_base'])} nats apart at the base and "
            f"{words.interval(found['heterogeneity_tuned'])} at the fine-tuned model "
            f"(from half the steps {words.interval(found['heterogeneity_half_base'])})"
        )
    return ". ".join(said) + "."
