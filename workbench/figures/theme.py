"""How figures look: one colour per role everywhere, controls grey and behind, backgrounds that fit light and dark pages.

Text and grid colours live in templates and never in a figure, so that a page can exchange them with its own theme.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import plotly.graph_objects as go

# Okabe and Ito's palette without yellow and black, which one of the two backgrounds would swallow.
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
GREY = "#8C8C8C"
RED = "#D62728"
CLEAR = "rgba(0,0,0,0)"
REVISION = "workbench"
"""One `uirevision` for all figures keeps zoom and hidden series when a page runs again."""
WIDE = 24
"""Legend entries longer than this (characters) need a row of their own where two figures stand side by side."""


@dataclass(frozen=True)
class Style:
    """How one series looks; dash and marker repeat what the colour says."""

    color: str
    dash: str
    marker: str
    control: bool = False

    @property
    def faint(self) -> str:
        """The colour of its interval band."""
        return rgba(self.color, 0.14 if self.control else 0.20)


STYLES: Mapping[str, Style] = {
    "base": Style(BLUE, "solid", "circle"),
    "tuned": Style(VERMILLION, "dash", "square"),
    "revived": Style(GREEN, "solid", "diamond"),
    "pt": Style(PURPLE, "solid", "circle"),
    "ft": Style(ORANGE, "dash", "square"),
    "other": Style(SKY, "dot", "triangle-up"),
    "never_had_it": Style(GREY, "dash", "x", control=True),
    "scratch": Style(GREY, "dot", "cross", control=True),
    "irrelevant": Style(GREY, "dashdot", "triangle-down", control=True),
    "other_operands": Style(GREY, "longdash", "star", control=True),
    "unrelated": Style(GREY, "longdashdot", "hexagon", control=True),
    "untrained": Style(GREY, "dot", "cross", control=True),
    "shuffled": Style(GREY, "dashdot", "triangle-down", control=True),
    "random": Style(GREY, "dot", "circle-open", control=True),
}
OTHERS = ("triangle-up", "star", "hexagon", "pentagon")
"""Markers that tell abilities apart that fine-tuning should have left alone; they share a colour."""
STATES: Mapping[str, str] = {
    "done": GREEN,
    "running": SKY,
    "interrupted": ORANGE,
    "failed": VERMILLION,
    "damaged": RED,
}


def style(name: str) -> Style:
    """The style of a role, model or arm; a grey one for what has none of its own."""
    return STYLES.get(name, Style(GREY, "dot", "circle", control=True))


def rgba(color: str, alpha: float) -> str:
    """A hex colour with transparency."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def template(text: str = "#767676", faint: str | None = None, grid: str = "rgba(128,128,128,0.22)") -> go.layout.Template:
    """A template of these colours; the default one can be read on white and on black."""
    line = "rgba(128,128,128,0.55)"
    axis: dict[str, Any] = {
        "gridcolor": grid,
        "linecolor": line,
        "zerolinecolor": grid,
        "ticks": "outside",
        "tickcolor": line,
        "title": {"standoff": 8, "font": {"size": 13}},
        "tickfont": {"size": 12},
    }
    return go.layout.Template(
        layout={
            "font": {"color": text, "size": 13, "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"},
            "title": {"font": {"size": 16}, "subtitle": {"font": {"size": 12.5, **({"color": faint} if faint else {})}}},
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
            "colorway": [BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY],
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"align": "left", "font": {"size": 12}},
        }
    )


@cache
def page_templates() -> dict[str, Any]:
    """Templates for a page that knows its scheme: plain data under `light` and `dark`."""
    light = template("#1f2328", "#59636e", "rgba(31,35,40,0.10)")
    dark = template("#e6edf3", "#9198a1", "rgba(230,237,243,0.14)")
    return {"light": light.to_plotly_json(), "dark": dark.to_plotly_json()}


def finish(fig: go.Figure, title: str, subtitle: str, *, height: int = 460, top: int = 92, bottom: int = 58) -> go.Figure:
    """Title, legend and margins of every figure; the room under the axes grows with the legend.

    The legend stands below in as many rows as its entries need in a narrow column.

    Args:
        fig: the figure, with its traces.
        title: the finding's subject; empty for none.
        subtitle: what the figure rests on.
        height: in pixels, without the legend.
        top: margin for title and panel titles.
        bottom: margin for tick labels and the axis title.
    """
    traces: list[Any] = list(fig.data)
    entries = [str(t.name) for t in traces if t.name and getattr(t, "showlegend", None) is not False]
    columns = 2 if max(map(len, entries), default=0) < WIDE else 1
    legend = 20 * -(-len(entries) // columns) + 10 if entries else 0
    if title:
        fig.update_layout(
            title={
                "text": title,
                "subtitle": {"text": subtitle},
                "x": 0,
                "xanchor": "left",
                "y": 1,
                "yref": "container",
                "yanchor": "top",
                "pad": {"t": 14, "l": 8},
            }
        )
    fig.update_layout(
        template=template(),
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": legend / (height + legend),
            "yref": "container",
            "yanchor": "top",
            "bgcolor": CLEAR,
            "traceorder": "normal",
            "font": {"size": 12},
        },
        showlegend=bool(entries),
        # Streamlit's own template pads axes, which would part maps from their frames and lay titles upon these.
        margin={"l": 76, "r": 20, "t": top, "b": bottom + legend, "pad": 0},
        height=height + legend,
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        hovermode="closest",
        uirevision=REVISION,
    )
    fig.update_yaxes(title_standoff=16)
    return fig.update_annotations(font_size=12)


def nothing(title: str) -> go.Figure:
    """A figure that says that there is nothing to draw."""
    return finish(go.Figure(), title, "nothing was measured")
