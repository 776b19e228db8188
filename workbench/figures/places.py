"""Places of a prompt as an axis, from left to right, and text above panels of a grid."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from workbench.figures.words import MODELS


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """One row per place of a prompt, from left to right, of rows with `place`, `order` and `part`."""
    return table.drop_duplicates("order").sort_values("order")


def place_axis(places: pd.DataFrame) -> dict[str, Any]:
    """An axis with a unit for every place: names of words, and of a text, numbered from its end, the two ends alone."""
    names = [str(name) for name in places["place"]]
    text = [i for i, part in enumerate(places["part"]) if part in ("text", "window")]
    ends = {i: "text end" if names[i] == "0" else f"text −{names[i]}" for i in (text[:1] + text[-1:])}
    shown = [i for i in range(len(names)) if i not in text or i in ends]
    return {
        "tickmode": "array",
        "tickvals": shown,
        "ticktext": [ends.get(i, "read" if names[i] == "request" else names[i]) for i in shown],
        "tickangle": -90,
        "tickfont": {"size": 10},
        "range": [-0.5, len(names) - 0.5],
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
    }


def model_name(model: str) -> str:
    """`tuned` -> `fine-tuned`."""
    return MODELS.get(model, model.replace("_", " "))


def above(fig: go.Figure, text: str, row: int, column: int, *, shift: int = 3, left: bool = False) -> None:
    """Write over a panel: in its middle, or from its left end."""
    panel: Any = fig.get_subplot(row, column)
    across, up = (axis.plotly_name.replace("axis", "") + " domain" for axis in (panel.xaxis, panel.yaxis))
    where: dict[str, Any] = {"xref": across, "yref": up, "yanchor": "bottom", "yshift": shift}
    fig.add_annotation(text=text, x=0 if left else 0.5, xanchor="left" if left else "center", y=1, showarrow=False, **where)
