"""Cross patching: accuracy after each component was swapped, both ways side by side, and which places carry the effect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.maps import CHANGE, frame, name_axis
from workbench.figures.marks import whiskers
from workbench.figures.patching import component as named
from workbench.figures.tables import distinct, first, keep, select, values
from workbench.figures.theme import GREY, finish, rgba, style
from workbench.results import Result

PANELS = (
    ("restores", "accuracy", "restores", "base's in<br>fine-tuned"),
    ("breaks", "accuracy", "breaks", "fine-tuned's<br>in base"),
    ("breaks", "agreement", "takes over", "fine-tuned's<br>in base"),
    ("installs", "accuracy", "installs", "fine-tuned's<br>in base"),
    ("revives", "accuracy", "revives", "revived's in<br>fine-tuned"),
)
"""Effect, measure, title, and whose activations go where; `revives` where there is a revived model."""
MEASURES = {"accuracy": "accuracy", "agreement": "share of the<br>fine-tuned's answers"}
MOST = 60
"""Components drawn; of more, the heads that change least are left out."""
ROW = 17.0


def label(component: str) -> str:
    """`head 1.3` -> `block 2 head 4`; the stream after a block is all up to it."""
    kind, _, block = component.partition(" ")
    return f"all up to block {block}" if kind == "stream" else named(component)


def figure(result: Result) -> go.Figure:
    """Columns: restores, breaks (accuracy, and answers that are the fine-tuned model's own), installs, revives. Rows: components.

    Above: swapped at all positions and at the answer; below, where places were swapped alone: by component and place.
    """
    table = result.tables["table"]
    effects = set(distinct(table, "effect"))
    panels = [panel for panel in PANELS if panel[0] in effects]
    shown = _shown(table)
    places = [p for p in distinct(table, "positions") if p not in ("all", "answer")]
    heights = [ROW * len(shown) + 24] + ([ROW * len(shown) + 10] if places else [])
    gap = 100.0
    inner = sum(heights) + gap * (len(heights) - 1)
    titles = [f"<b>{name}</b><br>{who}" for _, _, name, who in panels]
    fig = make_subplots(
        rows=len(heights),
        cols=len(panels),
        shared_yaxes=True,
        horizontal_spacing=0.025,
        vertical_spacing=gap / inner if len(heights) > 1 else 0,
        row_heights=heights,
        subplot_titles=titles + [""] * (len(panels) * (len(heights) - 1)),
    )
    for column, (effect, measure, _, _) in enumerate(panels, start=1):
        _dots(fig, result, select(table, effect=effect, measure=measure), shown, column)
    if places:
        for column, (effect, measure, _, _) in enumerate(panels, start=1):
            before = result.metric(f"{effect}_agreement_before").value if measure == "agreement" else 0.0
            _map(fig, select(table, effect=effect), measure, before, shown, places, column)
        scale = {"cmin": -1.0, "cmax": 1.0, "colorscale": CHANGE}
        bar = {"title": {"text": "change", "side": "right"}, "thickness": 8, "len": heights[1] / inner, "y": 0}
        fig.update_layout(coloraxis2={**scale, "colorbar": {**bar, "yanchor": "bottom", "tickfont": {"size": 11}}})
        frame(fig)
    pt, _ = words.subject(result)
    title = f"Which component carries the change of {pt}?"
    sample = f"{words.sample(result, max(m.n for m in result.headline))}; dotted: the two models without a swap<br>"
    sample += f"{_texts(select(table, effect='restores'))}; installs: {_texts(select(table, effect='installs'))}"
    fig = finish(fig, title, sample, height=int(inner) + (204 if places else 170), top=134, bottom=92 if places else 58)
    return fig.update_layout(margin={"l": 128})


def _texts(rows: pd.DataFrame) -> str:
    return f"{words.capability(str(first(rows, 'capability')))}, {words.texts(float(first(rows, 'share')))}"


def _shown(table: pd.DataFrame) -> list[str]:
    """Components in the order of the computation."""
    every = [str(c) for c in distinct(table, "component")]
    if len(every) <= MOST:
        return every
    moved = keep(table, (table["measure"] == "change") & (table["kind"] == "head"))
    size: Any = moved.assign(size=np.abs(values(moved, "value"))).groupby("component")["size"].max()
    room = max(0, MOST - sum(not c.startswith("head") for c in every))
    kept = set(size.sort_values(ascending=False).index[:room])
    return [c for c in every if not c.startswith("head") or c in kept]


def _dots(fig: go.Figure, result: Result, rows: pd.DataFrame, shown: list[str], column: int) -> None:
    effect = str(first(rows, "effect"))
    donor = str(first(rows, "donor"))
    (control,) = set(distinct(rows, "donor")) - {donor, "random"}
    at: dict[str, Any] = {"row": 1, "col": column}
    measure, suffix = str(first(rows, "measure")), "pt" if effect != "installs" else "ft_correlated"
    receiver = "base" if donor == "tuned" else "tuned"
    ends = {model: result.metric(f"{model}_{suffix}").value for model in (receiver, donor)}
    if measure == "agreement":
        ends = {donor: 1.0, receiver: result.metric(f"{effect}_agreement_before").value}
    for model, x in ends.items():
        line = {"color": style(model).color, "dash": "dot", "width": 1.5}
        fig.add_vline(x=x, line=line, layer="below", exclude_empty_subplots=False, **at)
    names = [label(c) for c in shown]
    look = style(donor)
    other = words.MODELS.get(str(control), str(control))
    series = (
        ("random", "all", "control: random change as large", style("random"), "circle-open", 0.0),
        (control, "all", f"control: {other}", style(str(control)), "x", 0.0),
        (donor, "all", "swapped at all positions (controls too)", look, look.marker, 0.16),
        (donor, "answer", "swapped where it is answered alone", look, f"{look.marker}-open", -0.16),
    )
    for who, positions, text, how, marker, shift in series:
        one = select(rows, donor=who, positions=positions).drop_duplicates("component").set_index("component")
        one = one.reindex(shown).reset_index()
        fig.add_trace(
            go.Scatter(
                x=values(one, "value"),
                y=np.arange(len(shown)) + shift,
                mode="markers",
                name=text,
                legendgroup=text,
                showlegend=not any(t.name == text for t in _traces(fig)),
                marker={"symbol": marker, "size": 5 if how.control else 7, "color": how.color},
                error_x=None if how.control else {**whiskers(one, rgba(how.color, 0.55)), "width": 2},
                customdata=names,
                hovertemplate=f"%{{customdata}}<br>{text}: %{{x:.3f}}<extra></extra>",
            ),
            **at,
        )
    for i, component in enumerate(shown):  # streams are all before them: set apart from single components
        if component.startswith("stream"):
            shade = {"fillcolor": rgba(GREY, 0.12), "line_width": 0, "layer": "below"}
            fig.add_hrect(y0=i - 0.5, y1=i + 0.5, **shade, **at)
    silent = select(result.tables["table"], effect=effect, measure="changed", donor=donor, positions="all", value=0.0)
    idle = [i for i, c in enumerate(shown) if c in set(silent["component"])]
    _silent(fig, [0.5] * len(idle), idle, at)
    fig.update_yaxes(tickvals=list(range(len(shown))), ticktext=names, range=[len(shown) - 0.4, -0.6], zeroline=False, **at)
    fig.update_xaxes(title_text=MEASURES[measure], range=[-0.04, 1.06], tickvals=[0, 0.25, 0.5, 0.75, 1], zeroline=False, **at)
    fig.update_xaxes(ticktext=["0", "", ".5", "", "1"], **at)


def _traces(fig: go.Figure) -> tuple[Any, ...]:
    return tuple(cast(Any, fig.data))


def _silent(fig: go.Figure, x: Sequence[float], y: Sequence[float], at: dict[str, Any]) -> None:
    """Grey crosses where a swap changes nothing: an effect of 0 looks like a small one."""
    name = "no effect: the swap changes nothing that the answer sees"
    fig.add_trace(
        go.Scatter(
            x=list(x),
            y=list(y),
            mode="markers",
            name=name,
            legendgroup=name,
            showlegend=len(x) > 0 and not any(t.name == name and len(t.x) > 0 for t in _traces(fig)),
            marker={"symbol": "x-thin-open", "size": 5, "color": GREY},
            hoverinfo="skip",
        ),
        **at,
    )


def _map(
    fig: go.Figure, rows: pd.DataFrame, measure: str, before: float, components: list[str], places: list[str], column: int
) -> None:
    """Change by component and place."""
    donor = str(first(rows, "donor"))

    def grid(what: str) -> np.ndarray:
        cells = select(rows, measure=what, donor=donor).pivot_table(
            index="component", columns="positions", values="value", sort=False, dropna=False
        )
        return cells.reindex(index=components, columns=places).to_numpy(dtype=np.float64)

    hover = np.array([[f"{label(c)}, {p}" for p in places] for c in components])
    at: dict[str, Any] = {"row": 2, "col": column}
    z = grid("change") if measure == "accuracy" else grid(measure) - before
    cell = "%{text}: %{z:+.3f}<extra></extra>"
    fig.add_trace(go.Heatmap(z=z, coloraxis="coloraxis2", text=hover, hovertemplate=cell, showlegend=False), **at)
    y, x = np.nonzero(grid("changed") == 0)
    _silent(fig, x.tolist(), y.tolist(), at)
    every = list(range(0, len(places), max(1, math.ceil(len(places) / 14))))
    fig.update_xaxes(name_axis(places, every), tickangle=-90, **at)
    fig.update_yaxes(name_axis([label(c) for c in components], list(range(len(components)))), autorange="reversed", **at)
    fig.update_xaxes(title_text="place swapped alone" if column == 1 else "", **at)


def alt(result: Result) -> str:
    """How much the best single component does in each direction, against the control's."""
    pt, ft = words.subject(result)
    found = {m.metric: m for m in result.headline}

    def said(name: str) -> str:
        return words.interval(found[name])

    return (
        f"The best single component of the base, put into the fine-tuned model, restores {said('restores')} of the loss of {pt} "
        f"({said('restores_answer')} at the answer alone, the control model's {said('restores_control')}). The best one of the "
        f"fine-tuned model, put into the base, breaks {said('breaks')} of it and gives {said('breaks_agreement')} of the fine-tuned "
        f"model's answers (the control's {said('breaks_agreement_control')}); for {ft} where it was trained one installs "
        f"{said('installs')} of the difference (the control's {said('installs_control')})."
        + (f" One of the revived model brings back {said('revives')}." if "revives" in found else "")
    )
