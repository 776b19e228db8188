"""Direction: what one constant vector takes from the fine-tuned model and gives to the base, and whose vectors do the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, band, levels, whiskers
from workbench.figures.tables import distinct, first, groups, keep, largest, select, values
from workbench.figures.theme import BLUE, GREEN, GREY, OTHERS, SKY, VERMILLION, finish, rgba, style
from workbench.results import Result

LOOKS = {
    "subtract": ("solid", "circle"),
    "recentre": ("dash", "square"),
    "ablate": ("dot", "diamond"),
    "add": ("solid", "circle"),
}
"""Dash and marker of an intervention; the colour is that of the ability that is measured."""
SHIFTS = {"recentre": 0.015, "ablate": 0.03}
"""Apart on the axis, in shares of it, so that intervals do not cover each other."""
SAID = {
    "subtract": "subtracted (left), added (right)",
    "recentre": "set to the base's mean along it",
    "ablate": "projected out everywhere",
    "add": "added",
}
_SOURCES = {
    "own": "the vector itself",
    "same base": "of fine-tune {}, same base",
    "another seed": "of another seed, mapped",
    "other family": "on prompts for {}",
}
_PARTNERS = {
    "revival": ("of the revival", GREEN, "solid", "diamond"),
    "other family": ("on prompts for {}", SKY, "dot", *OTHERS),
    "same base": ("of fine-tune {}, same base", BLUE, "dash", "square", "square-open", "pentagon"),
    "another seed": ("of another seed, mapped", VERMILLION, "solid", "circle"),
    "another seed, not mapped": ("of another seed, not mapped", GREY, "dash", "x"),
    "for the revived": ("{}, in place of the revived", GREY, "dot", "diamond-open", "diamond-wide-open"),
    "for the fine-tune": ("{}, in place of that fine-tune", GREY, "dot", "square-open", "square-cross-open"),
}
"""Name, colour, dash and marker of what the vector is held against."""


RANDOM = "random, 95 %"
ORDER = ("own", "same base", "another seed", "other family", "random")


def figure(result: Result) -> go.Figure:
    """Above, accuracy by residual point in both models; below, other vectors at the chosen point, and angles by point."""
    table = result.tables["table"]
    pt, _ = words.subject(result)
    scale = float(result.settings.get("scale", 1.0))
    fig = make_subplots(
        rows=3,
        cols=2,
        specs=[[{}, {}], [{"colspan": 2}, None], [{"colspan": 2}, None]],
        row_heights=[0.36, 0.32, 0.32],
        horizontal_spacing=0.09,
        vertical_spacing=0.12,
        subplot_titles=[
            "fine-tuned model, the vector taken out",
            "base, the vector added",
            "fine-tuned model, other vectors of equal length taken out at the chosen point",
            "cosine of the vector with others (grey band: 95 % of random ones)",
        ],
    )
    found = {m.metric: m for m in result.headline}
    named = [(found["base_pt"].value, "base"), (found["tuned_pt"].value, "fine-tuned")]
    for column, kinds in enumerate((("subtract", "recentre", "ablate"), ("add",)), start=1):
        _random(fig, select(table, intervention=kinds[0], source="random"), kinds[0], column)
        for kind in kinds:
            _curve(fig, select(table, intervention=kind, source="own", scale=scale), kind, column)
        levels(fig, [*named, (found["chance_pt"].value, "best guess")], column=column)
        at: dict[str, Any] = {"row": 1, "col": column}
        fig.update_xaxes(_points(table, 0.7), **at)
        fig.update_yaxes(accuracy_axis(f"accuracy on {pt}" if column == 1 else ""), **at)
    _transfer(fig, result, scale)
    _angles(fig, result)
    n = max(int(m.n) for m in result.headline if m.metric == "tuned_pt")
    title = f"Does one constant vector hide {pt}?"
    return finish(fig, title, words.sample(result, n), height=1010, top=112, bottom=64)


def _points(table: pd.DataFrame, right: float = 0.12) -> dict[str, Any]:
    """An axis of residual points by name, with room on its right for labels of levels."""
    found = sorted(int(p) for p in distinct(table, "point"))
    return {
        "tickvals": found,
        "ticktext": ["embedding" if p == 0 else f"block {p}" for p in found],
        "range": [-0.12 * max(found), (1 + right) * max(found)],
        "title": {"text": "residual stream after"},
        "zeroline": False,
    }


def _curve(fig: go.Figure, rows: pd.DataFrame, kind: str, column: int) -> None:
    dash, marker = LOOKS[kind]
    color = style("pt").color
    fig.add_trace(
        go.Scatter(
            x=values(rows, "point") + SHIFTS.get(kind, 0.0) * largest(rows, "point"),
            y=rows["value"],
            mode="lines+markers",
            name=SAID[kind],
            legendgroup="subtract" if kind == "add" else kind,
            showlegend=kind != "add",
            line={"color": color, "dash": dash, "width": 2.2},
            marker={"symbol": marker, "size": 8, "color": color},
            error_y=whiskers(rows, color),
            hovertemplate=f"{SAID[kind]}: %{{y:.3f}}<extra></extra>",
        ),
        row=1,
        col=column,
    )


def _random(fig: go.Figure, rows: pd.DataFrame, kind: str, column: int) -> None:
    """Mean and range over random directions of equal norm."""
    how, name = style("random"), f"random directions of equal norm ({rows['draw'].nunique()} draws, range)"
    spread = rows.groupby("point")["value"].agg(["mean", "min", "max"]).reset_index()
    at = values(spread, "point")
    band(fig, at, values(spread, "min"), values(spread, "max"), how.faint, "random", column)
    fig.add_trace(
        go.Scatter(
            x=at,
            y=spread["mean"],
            mode="lines+markers",
            name=name,
            legendgroup="random",
            showlegend=column == 1,
            line={"color": how.color, "dash": how.dash, "width": 1.6},
            marker={"symbol": how.marker, "size": 6, "color": how.color},
            hovertemplate=f"random, {SAID[kind]}: %{{y:.3f}}<extra></extra>",
        ),
        row=1,
        col=column,
    )


def _transfer(fig: go.Figure, result: Result, scale: float) -> None:
    """Bars: O_PT with each vector taken out at the point that was chosen for the vector itself."""
    bars: list[tuple[str, float, float, float, str]] = []
    table = result.tables["transfer"].sort_values("scale", kind="stable")
    for (source, size), rows in sorted(
        groups(table, "source", "scale"), key=lambda group: ORDER.index(group[0][0].partition(":")[0])
    ):
        value = values(rows, "value")
        kind = str(source).partition(":")[0]
        if source == "random":  # the mean of the draws, and their range
            bars.append(("random ones (range)", float(value.mean()), float(value.min()), float(value.max()), GREY))
            continue
        low, high = values(rows, "low").mean(), values(rows, "high").mean()
        times = "" if size == scale else f", {size / scale:g} times"
        color = {"own": style("pt").color, "another seed": VERMILLION, "same base": BLUE, "other family": SKY}[kind]
        bars.append((_source(str(source), _SOURCES) + times, float(value.mean()), float(low), float(high), color))
    names, value, low, high, colors = ([bar[i] for bar in reversed(bars)] for i in range(5))
    reach = {
        "array": np.subtract(high, value),
        "arrayminus": np.subtract(value, low),
        "thickness": 1.4,
        "width": 3,
        "color": GREY,
    }
    at: dict[str, Any] = {"row": 2, "col": 1}
    fig.add_trace(
        go.Bar(
            x=value,
            y=names,
            orientation="h",
            showlegend=False,
            marker={"color": colors, "opacity": 0.8},
            error_x=reach,
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        ),
        **at,
    )
    pt, _ = words.subject(result)
    fig.update_xaxes(title_text=f"accuracy on {pt}", range=[0, 1.03], zeroline=False, **at)
    fig.update_yaxes(type="category", automargin=True, ticks="", ticksuffix="  ", **at)
    lines = (("base_pt", style("base").color, "solid"), ("tuned_pt", style("tuned").color, "dash"))
    for metric, color, dash in lines:
        fig.add_vline(x=result.metric(metric).value, line={"color": color, "dash": dash, "width": 1.5}, layer="below", **at)


def _source(name: str, said: Mapping[str, str]) -> str:
    """`same base: learned` -> `of fine-tune learned, same base`."""
    kind, _, which = name.partition(": ")
    return said.get(kind, kind).format(words.capability(which))


def _angles(fig: go.Figure, result: Result) -> None:
    """Cosines by residual point; grey, 95 % of those of random directions, and models without the ability in another's place.

    These are the floor where a mean is shared with our vector: there unrelated vectors do not give 0.
    """
    table = result.tables["directions"]
    at: dict[str, Any] = {"row": 3, "col": 1}
    cosines = keep(table, table["measure"].isin(["cosine", "cosine, unmapped"]))
    markers = dict.fromkeys(_PARTNERS, 0)
    for (measure, partner), rows in groups(cosines, "measure", "with"):
        kind = str(partner).partition(":")[0] + (", not mapped" if measure == "cosine, unmapped" else "")
        if kind not in _PARTNERS:
            continue
        said, color, dash, *shapes = _PARTNERS[kind]
        marker = shapes[markers[kind] % len(shapes)]
        markers[kind] += 1
        name = said.format(words.capability(str(partner).partition(": ")[2]))
        mean = _mean(rows)
        fig.add_trace(
            go.Scatter(
                x=mean["point"],
                y=mean["value"],
                mode="lines+markers",
                name=name,
                line={"color": color, "dash": dash, "width": 2},
                marker={"symbol": marker, "size": 8, "color": color},
                error_y=whiskers(mean, color),
                hovertemplate=f"{name}: %{{y:.3f}}<extra></extra>",
            ),
            **at,
        )
    size = float(first(select(table, measure="cosine", **{"with": RANDOM}), "value"))
    fig.add_hrect(y0=-size, y1=size, fillcolor=rgba(GREY, 0.18), line_width=0, layer="below", **at)
    fig.update_xaxes(_points(table), **at)
    fig.update_yaxes(title_text="cosine", range=[-1.06, 1.06], zeroline=True, **at)


def _mean(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per point: several other seeds have one name."""
    found = [(point, *(values(at, name).mean() for name in ("value", "low", "high"))) for (point,), at in groups(rows, "point")]
    return pd.DataFrame(found, columns=["point", "value", "low", "high"])


def alt(result: Result) -> str:
    """What the vector does in both models, against random ones, and how it lies to others."""
    pt, _ = words.subject(result)
    found = {m.metric: m for m in result.headline}
    said = (
        f"Taking one constant vector out of the fine-tuned model takes {pt} from {words.interval(found['tuned_pt'])} to "
        f"{words.interval(found['subtracted_pt'])}, random ones to {words.interval(found['random_subtracted_pt'])}; the base has "
        f"{words.interval(found['base_pt'])}, and {words.interval(found['added_pt'])} with the vector added (random ones: "
        f"{words.interval(found['random_added_pt'])})."
    )
    for metric, text in (("cosine_another_seed", "another seed's, mapped,"), ("cosine_revival", "the revival")):
        if metric in found:
            said += f" Its cosine with {text} is {words.interval(found[metric])}."
    for metric, text in (("cosine_revival_never", "that never had it"), ("cosine_revival_untrained", "of random weights")):
        if metric in found:
            said += f" With a model {text} in place of the revived one it is {words.interval(found[metric])}."
    floor = found.get("undone_by_never", found.get("undone_by_untrained"))
    if "undone_by_revival" in found and floor is not None:
        said += (
            f" The revival undoes {words.interval(found['undone_by_revival'])} of the vector, a model without the ability in its place "
            f"{words.interval(floor)}."
        )
    return said
