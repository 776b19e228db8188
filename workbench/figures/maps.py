"""Maps that figures share: locked colour scales that fit light and dark pages, and axes that name tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from workbench.figures.theme import BLUE, CLEAR, GREEN, ORANGE, VERMILLION, rgba

AMOUNT = ((0.0, rgba(GREEN, 0.0)), (0.15, rgba(GREEN, 0.45)), (0.5, GREEN), (1.0, ORANGE))
"""From nothing, which is the page itself, to the most."""
CHANGE = ((0.0, BLUE), (0.5, rgba("#808080", 0.0)), (1.0, VERMILLION))
"""Less, the same (the page itself), more."""
MOST_LABELS = 24


def ceiling(values: np.ndarray) -> float:
    """The upper end of a scale: the largest number, rounded up to one digit that people read."""
    largest = float(np.max(np.abs(values), initial=0.0))
    if largest == 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(largest))
    return float(next(step * power for step in (1, 2, 5, 10) if step * power >= largest * (1 - 1e-9)))


def color_axes(amount: float, change: float, what: str, height: float) -> dict[str, dict[str, Any]]:
    """`coloraxis` from 0 to `amount`, and `coloraxis2` from -`change` to `change` with a neutral zero; bars under the title."""

    def axis(low: float, high: float, colors: Any, title: str, x: float, length: float) -> dict[str, Any]:
        bar: dict[str, Any] = {  # plotly trims spaces at the end of a title; the last character, of no width, keeps them
            "title": {"text": f"{title}\u00a0\u00a0\u2060", "side": "right", "font": {"size": 12}},
            "orientation": "h",
            "x": x,
            "xanchor": "left",
            "y": 1 - 78 / height,
            "yref": "container",
            "yanchor": "top",
            "len": length,
            "thickness": 8,
            "nticks": 3,
            "tickfont": {"size": 11},
            "outlinewidth": 0,
        }
        return {"cmin": low, "cmax": high, "colorscale": colors, "colorbar": bar}

    return {
        "coloraxis": axis(0.0, amount, AMOUNT, what, 0.0, 0.5),
        "coloraxis2": axis(-change, change, CHANGE, "difference", 0.62, 0.36),
    }


def heat(z: np.ndarray, hover: np.ndarray, axis: str, template: str) -> go.Heatmap:
    """A map on a named colour axis; `hover` has one text per cell."""
    return go.Heatmap(z=z, coloraxis=axis, text=hover, hovertemplate=f"{template}<extra></extra>", xgap=0, ygap=0)


def name_axis(names: Sequence[str], only: Sequence[int] | None = None) -> dict[str, Any]:
    """Ticks with these names, or with those at `only` where not all can be read."""
    places = range(len(names)) if only is None and len(names) <= MOST_LABELS else (only or [])
    return {
        "tickmode": "array",
        "tickvals": list(places),
        "ticktext": [names[i] for i in places],
        "tickfont": {"size": 10},
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
    }


def frame(fig: go.Figure) -> None:
    """A thin frame around every map, since a map's nothing is the page itself."""
    line = "rgba(128,128,128,0.55)"
    for update in (fig.update_xaxes, fig.update_yaxes):
        update(showline=True, mirror=True, linecolor=line, selector={"showgrid": False})
    fig.update_layout(plot_bgcolor=CLEAR)
