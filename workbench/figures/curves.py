"""Curves of one training run: every metric over its steps, a panel for each, splits as series."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, place, step_axis
from workbench.figures.tables import groups, keep, largest, values
from workbench.figures.theme import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, finish

MOST_POINTS = 2000
"""Points of one series; more are thinned to the extremes of as many stretches."""
UNITS = {"loss_nats": "loss (nats per token)", "learning_rate": "learning rate", "gradient_norm": "gradient norm (L2)"}
_LOOKS = ((BLUE, "solid"), (VERMILLION, "dash"), (GREEN, "dot"), (ORANGE, "dashdot"), (PURPLE, "longdash"), (SKY, "solid"))


def metrics(frame: pd.DataFrame) -> go.Figure:
    """Loss, learning rate, gradient norm and accuracies of a run over training steps.

    Args:
        frame: long, with columns `step`, `split`, `name`, `value`.
    """
    panels = _panels(frame)
    fig = make_subplots(rows=max(1, len(panels)), cols=1, shared_xaxes=True, vertical_spacing=0.09 if len(panels) < 4 else 0.05)
    last = largest(frame, "step", 1.0)
    thinned = False
    for row, (label, rows) in enumerate(panels.items(), start=1):
        for index, ((split, name), series) in enumerate(groups(rows, "split", "name")):
            points = _thin(series.sort_values("step"))
            thinned |= len(points) < len(series)
            color, dash = _LOOKS[index % len(_LOOKS)]
            text = _series(str(split), str(name))
            fig.add_trace(
                go.Scattergl(
                    x=place(points["step"]),
                    y=points["value"],
                    mode="lines" if len(points) > 1 else "markers",
                    name=text,
                    showlegend=label == "accuracy",
                    line={"color": color, "dash": dash, "width": 1.8},
                    customdata=points["step"],
                    hovertemplate=f"step %{{customdata:,}}: %{{y:.4g}}<extra>{text}</extra>",
                ),
                row=row,
                col=1,
            )
        fig.update_yaxes(title_text=label, row=row, col=1, zeroline=False, exponentformat="power")
        if label == "accuracy":
            fig.update_yaxes(accuracy_axis("accuracy"), row=row, col=1)
        title = "training step" if row == len(panels) else ""
        fig.update_xaxes(step_axis(last, title, most=10), showticklabels=row == len(panels), row=row, col=1)
    said = f"{int(last):,} steps" + (f"; thinned to {MOST_POINTS:,} points a series" if thinned else "")
    said = said if len(frame) else "nothing was recorded yet"
    finish(fig, "Training", said, height=150 + 170 * max(1, len(panels)))
    return fig.update_layout(margin_l=84)


def _panels(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows by axis label, accuracies of all sets together; the order in which they were recorded."""
    label = frame["name"].map(
        lambda n: "accuracy" if str(n).startswith("accuracy") else UNITS.get(str(n), words.metric(str(n)))
    )
    return {str(key): keep(frame, label == key) for key in dict.fromkeys(label)}


def _series(split: str, name: str) -> str:
    where, _, ability = split.partition(": ")
    share = name.partition("C=")[2]
    texts = f", {words.texts(float(share))}" if share else ""
    return f"{words.capability(ability)}{texts} ({where})" if ability else split


def _thin(series: pd.DataFrame) -> pd.DataFrame:
    if len(series) <= MOST_POINTS:
        return series
    stretch = np.arange(len(series)) * (MOST_POINTS // 2) // len(series)
    grouped = series["value"].reset_index(drop=True).groupby(stretch)
    keep = np.unique(np.concatenate([grouped.idxmin().dropna(), grouped.idxmax().dropna()]).astype(int))
    return series.iloc[keep]


def alt(frame: pd.DataFrame) -> str:
    """First and last value of each metric."""
    said: list[str] = []
    for (split, name), series in groups(frame, "split", "name"):
        ends = values(series.sort_values("step"), "value")
        what = _series(str(split), str(name)) if str(name).startswith("accuracy") else UNITS.get(str(name), str(name))
        said.append(f"{what} from {words.number(float(ends[0]))} to {words.number(float(ends[-1]))}")
    return f"Training curves: {'; '.join(said[:6]) or 'nothing recorded yet'}."
