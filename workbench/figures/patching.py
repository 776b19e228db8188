"""Activation patching: effects by component and place in every model and their difference, and how well slopes foretell them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.maps import CHANGE, MOST_LABELS, ceiling, color_axes, frame, heat, name_axis
from workbench.figures.tables import distinct, first, keep, select, values
from workbench.figures.theme import GREY, finish, style
from workbench.results import Result

TITLES = {"base": "base", "tuned": "fine-tuned", "change": "fine-tuned minus base", "revived": "revived"}
ROW = 15.0
"""Pixels of a row of a map."""
BEYOND = 1.2
"""A share of so little above 1 is drawn as 1, so that the scale need not double for it."""
Label = Callable[[str], str]


def component(name: str) -> str:
    """`head 1.3` -> `block 2 head 4`: figures count from 1."""
    found = re.fullmatch(r"(\w+) (\d+)(?:\.(\d+))?", name)
    if not found:
        return name
    kind, block, head = found.groups()
    said = {"mlp": "MLP", "stream": "stream in"}.get(kind, kind)
    return f"block {int(block) + 1} {said}" + (f" {int(head) + 1}" if head else "")


def figure(result: Result) -> go.Figure:
    """Maps of base, fine-tuned, their difference and revived; below, the estimate of first order against the exact effect."""
    table = select(result.tables["table"], method="patched")
    changed = result.tables["changed"]
    table, changed = (frame_.assign(at=_places(frame_)) for frame_ in (table, changed))
    some = set(keep(changed, values(changed, "value") > 0)["at"])
    columns = [place for place in distinct(table, "at") if place in some]
    rows = distinct(table, "component")
    maps, height = panels(table, changed, ("component", "at"), (rows, columns), (component, lambda at: at.partition("|")[0]), 1)
    _estimates(maps, result)
    pt = asked(result)
    sites = "place: the prompt's token, or its distance from the end of the text"
    maps.update_xaxes(title_text=sites, row=2, col=1)
    title = f"Which components tell a prompt for {pt} from its counterfactual?"
    return finish(maps, title, words.sample(result), height=int(height), top=146, bottom=70)


def _places(table: pd.DataFrame) -> list[str]:
    """Places by name and role, since a number may be a token as well as a distance."""
    names = [{"request": "read", "everywhere": "all"}.get(str(place), str(place)) for place in table["place"]]
    return [f"{name}|{role}" for name, role in zip(names, table["role"], strict=True)]


def asked(result: Result) -> str:
    """The ability whose prompts were patched, in words."""
    return words.subject(result)[0 if result.settings.get("capability", "pt") == "pt" else 1]


def panels(
    table: pd.DataFrame,
    changed: pd.DataFrame,
    names: tuple[str, str],
    axes: tuple[Sequence[str], Sequence[str]],
    labels: tuple[Label, Label],
    more: int = 0,
    between: float = 70,
) -> tuple[go.Figure, float]:
    """Two by two maps of `value` on locked scales, with room for further rows below; and the height.

    Args:
        table: effects by `model` and two coordinates.
        changed: by the same, in which share of the prompts a patch changed anything.
        names: the coordinates of rows and columns.
        axes: their values in order.
        labels: what these are called.
        more: further rows of one panel of the whole width.
        between: pixels between rows, for the names of columns.
    """
    models = [model for model in TITLES if len(select(table, model=model))]
    (rows, columns), size = axes, max(150.0, ROW * len(axes[0]))
    heights = [size, size, *[230.0] * more]
    height = sum(heights) + between * (len(heights) - 1) + 216
    specs: list[list[dict[str, int] | None]] = [[{}, {}], [{}, {}], *[[{"colspan": 2}, None] for _ in range(more)]]
    titles = [TITLES[model] for model in models] + [""] * (4 - len(models))
    fig = make_subplots(
        rows=len(heights),
        cols=2,
        specs=specs,
        row_heights=heights,
        horizontal_spacing=0.04,
        vertical_spacing=between / (height - 216),
        subplot_titles=titles,
    )
    grids = {model: _grid(select(table, model=model), names, axes) for model in models}
    amount = ceiling(np.nan_to_num(np.stack([grids[m] for m in models if m != "change"])) / BEYOND)
    scales = color_axes(amount, ceiling(np.nan_to_num(grids["change"])), "share of the effect", height)
    scales["coloraxis"] |= {"cmin": -amount, "colorscale": CHANGE}
    fig.update_layout(scales)
    for number, model in enumerate(models):
        at: dict[str, Any] = {"row": number // 2 + 1, "col": number % 2 + 1}
        source = "base" if model == "change" else model
        share = np.nan_to_num(_grid(select(changed, model=source), names, axes))
        known = _grid(select(changed, model=source), names, axes)
        hover = np.array(
            [
                [
                    f"{labels[0](r)} → {labels[1](c)}<br>changed in {share[i, j]:.0%} of the prompts"
                    for j, c in enumerate(columns)
                ]
                for i, r in enumerate(rows)
            ]
        )
        axis = "coloraxis2" if model == "change" else "coloraxis"
        fig.add_trace(heat(grids[model], hover, axis, "%{text}<br>%{z:+.3f}"), **at)
        if np.isfinite(grids[model]).any():
            _silent(fig, known == 0, number == 0, at)
        else:
            fig.add_annotation(
                text="undefined: the prompts are not told apart",
                showarrow=False,
                x=0.5,
                y=0.5,
                xref="x domain",
                yref="y domain",
                **at,
            )
        shown = [labels[1](c) for c in columns]
        only = None if len(shown) <= MOST_LABELS else list(range(len(shown) - 1, -1, -max(1, len(shown) // 12)))
        fig.update_xaxes(name_axis(shown, only), tickangle=-45, range=[-0.5, len(columns) - 0.5], **at)
        fig.update_yaxes(name_axis([labels[0](r) for r in rows], list(range(len(rows)))), **at)
        fig.update_yaxes(range=[len(rows) - 0.5, -0.5], showticklabels=number % 2 == 0, automargin=True, **at)
    if len(models) == 3:
        fig.update_xaxes(visible=False, row=2, col=2).update_yaxes(visible=False, row=2, col=2)
    frame(fig)
    return fig, height


def _grid(table: pd.DataFrame, names: tuple[str, str], axes: tuple[Sequence[str], Sequence[str]]) -> np.ndarray:
    """Values by row and column, NaN where the table has none."""
    places = [{name: i for i, name in enumerate(axis)} for axis in axes]
    grid = np.full((len(axes[0]), len(axes[1])), np.nan)
    for row, column, value in zip(table[names[0]], table[names[1]], values(table, "value"), strict=True):
        if row in places[0] and column in places[1]:
            grid[places[0][row], places[1][column]] = value
    return grid


def _silent(fig: go.Figure, silent: np.ndarray, legend: bool, at: dict[str, Any]) -> None:
    """Small grey crosses where a patch changes nothing: an effect of 0 looks like the page as well."""
    y, x = np.nonzero(silent)
    fig.add_trace(
        go.Scatter(
            x=x,
            y=y,
            mode="markers",
            name="the patch changes nothing",
            legendgroup="silent",
            showlegend=legend and len(x) > 0,
            marker={"symbol": "x-thin-open", "size": 4, "color": GREY, "opacity": 0.6},
            hoverinfo="skip",
        ),
        **at,
    )


def _estimates(fig: go.Figure, result: Result) -> None:
    """Estimates of first order over exact effects, one mark per cell."""
    table = result.tables["table"]
    both = [select(table, method=method) for method in ("patched", "first_order")]
    where: dict[str, Any] = {"row": 3, "col": 1}
    ends = np.nan_to_num(values(keep(both[0], both[0]["model"] != "change"), "value"))
    reach = [min(-0.1, float(ends.min())), max(1.0, float(ends.max()))]
    line = {"color": GREY, "dash": "dot", "width": 1.3}
    fig.add_trace(go.Scatter(x=reach, y=reach, mode="lines", name="estimate = effect", line=line, hoverinfo="skip"), **where)
    for model in ("base", "tuned"):
        exact, estimate = (select(of, model=model) for of in both)
        how = style(model)
        said = [f"{component(str(c))}, {p}" for c, p in zip(exact["component"], exact["place"], strict=True)]
        rank = words.interval(result.metric(f"rank_{model}"))
        fig.add_trace(
            go.Scatter(
                x=values(exact, "value"),
                y=values(estimate, "value"),
                mode="markers",
                name=f"{words.MODELS[model]} model, rank correlation {rank}",
                marker={"symbol": how.marker, "size": 6, "color": how.color, "opacity": 0.7},
                text=said,
                hovertemplate="%{text}<br>exact %{x:.3f}, first order %{y:.3f}<extra></extra>",
            ),
            **where,
        )
    fig.update_xaxes(title_text="exact effect (share)", **where)
    fig.update_yaxes(title_text="first-order estimate", **where)


def alt(result: Result) -> str:
    """The largest change and where, and what heads and MLPs carry at the position that answers."""
    found = {m.metric: m for m in result.headline}
    where = result.tables["largest"]
    at = f"{component(str(first(where, 'component')))}, {first(where, 'place')}"
    return (
        f"Patches from counterfactual prompts for {asked(result)}: {apart(result)} "
        f"Where the model reads, effects of single heads sum to {words.interval(found['heads_base'])} of that before and "
        f"{words.interval(found['heads_tuned'])} after, of single MLPs to {words.interval(found['mlps_base'])} and "
        f"{words.interval(found['mlps_tuned'])}. The effect of the component that was chosen on other prompts ({at}) changed by "
        f"{words.interval(found['largest_change'])} in size."
    )


def apart(result: Result) -> str:
    """How far both models tell the prompts apart, as a sentence."""
    base, tuned = (words.interval(result.metric(f"told_apart_{model}")) for model in ("base", "tuned"))
    return f"the two prompts differ by {base} logits in the base and by {tuned} in the fine-tuned model."
