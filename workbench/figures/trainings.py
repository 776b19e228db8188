"""The trainings behind a pair side by side: training loss above, evaluated accuracy below, a column for each part of its history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, curve, place, step_axis
from workbench.figures.tables import groups, keep, largest, select, values
from workbench.figures.theme import finish, style
from workbench.statistics import wilson

PARTS = ("pretraining", "fine-tuning", "reverse fine-tuning")
ORDER = ("scratch", "unrelated", "irrelevant", "other_operands", "never_had_it", "base", "tuned", "revived")
"""Controls first, so that they lie behind."""
LOSS, ACCURACY = "loss", "accuracy"
NOTHING = "not evaluated"


@dataclass(frozen=True)
class Training:
    """One run of a pair's history."""

    part: str
    """One of `PARTS`."""
    name: str
    """Of the model that it makes, as in `theme.STYLES`: `base`, `tuned`, an arm."""
    metrics: pd.DataFrame
    """Long: `step, split, name, value`."""
    evaluations: pd.DataFrame
    """`step, split, capability, share, values`, of which the last holds 1.0 where an answer was right."""


def table(trainings: Sequence[Training], capability: str) -> pd.DataFrame:
    """Columns `part, run, measure, step, value, low, high, n`.

    Loss is in nats per token on the training batches of a step, without an interval; accuracy is that on the test set of the
    capability, with Wilson's interval over its `n` examples.
    """
    rows: list[dict[str, object]] = []
    for training in trainings:
        who = {"part": training.part, "run": training.name}
        losses = select(training.metrics, split="train", name="loss_nats")
        for step, value in zip(losses["step"], losses["value"], strict=True):
            rows.append({**who, "measure": LOSS, "step": step, "value": value, "low": np.nan, "high": np.nan, "n": 0})
        test = keep(training.evaluations, training.evaluations["split"] == "test")
        for step, right in zip(*(select(test, capability=capability)[name] for name in ("step", "values")), strict=True):
            n, right = len(right), float(np.sum(right))
            low, high = (float(end) for end in wilson(right, n))
            rows.append({**who, "measure": ACCURACY, "step": step, "value": right / n, "low": low, "high": high, "n": n})
    return pd.DataFrame(rows, columns=["part", "run", "measure", "step", "value", "low", "high", "n"])


def figure(rows: pd.DataFrame, capability: str) -> go.Figure:
    """Loss and accuracy over training steps; `rows` as `table` gives them."""
    shown = [part for part in PARTS if len(select(rows, part=part))] or list(PARTS[:1])
    fig = make_subplots(
        rows=2, cols=len(shown), shared_yaxes=True, subplot_titles=shown, vertical_spacing=0.08, horizontal_spacing=0.04
    )
    named: set[str] = set()
    for column, part in enumerate(shown, start=1):
        of_part = select(rows, part=part)
        last = largest(of_part, "step", 1.0)
        for run in sorted({str(run) for run in of_part["run"]}, key=lambda name: (_place(name), "@" not in name, name)):
            name = _name(run)
            _loss(fig, select(of_part, run=run, measure=LOSS), run, column, name not in named)
            of_run = select(of_part, run=run, measure=ACCURACY)
            if len(of_run):
                curve(fig, of_run, "step", _look(run), name, row=2, column=column, legend=False)
            named.add(name)
        if not len(select(of_part, measure=ACCURACY)):  # a panel without a trace would have no axes either
            nothing = go.Scatter(x=[0], y=[0.5], mode="text", text=[NOTHING], textposition="middle right", hoverinfo="skip")
            fig.add_trace(nothing.update(showlegend=False), row=2, col=column)
        for row in (1, 2):
            title = "training step" if row == 2 else ""
            fig.update_xaxes(step_axis(last, title, most=5), showticklabels=row == 2, row=row, col=column)
    fig.update_yaxes(zeroline=False)
    fig.update_yaxes(title_text="training loss<br>(nats per token)", row=1, col=1)
    fig.update_yaxes(accuracy_axis(""), row=2)
    fig.update_yaxes(title_text=f"accuracy,<br>{words.capability(capability)}", row=2, col=1)
    n = int(largest(rows, "n"))
    tested = f"{n:,} test texts; bands are 95 % intervals; " if n else ""
    return finish(fig, "How the models were made", f"{tested}loss of the batches that were trained on", height=520, top=104)


def _loss(fig: go.Figure, rows: pd.DataFrame, run: str, column: int, legend: bool) -> None:
    how, rows = style(_look(run)), rows.sort_values("step")
    fig.add_trace(
        go.Scatter(
            x=place(rows["step"]),
            y=values(rows, "value"),
            mode="lines",
            name=_name(run),
            legendgroup=_name(run),
            showlegend=legend,
            opacity=0.85 if how.control else 1.0,
            line={"color": how.color, "dash": how.dash, "width": 1.6 if how.control else 2.4},
            customdata=rows["step"],
            hovertemplate=f"<b>{_name(run)}</b><br>step %{{customdata:,}}: %{{y:.3f}} nats per token<extra></extra>",
        ),
        row=1,
        col=column,
    )


def _look(run: str) -> str:
    return run.partition("@")[0]


def _place(run: str) -> int:
    return ORDER.index(_look(run)) if _look(run) in ORDER else -1


def _name(run: str) -> str:
    return words.MODELS.get(run) or words.arm(run).replace(words.ARMS["revived"], "revived")


def alt(rows: pd.DataFrame) -> str:
    """First and last loss and accuracy of every run."""
    said: list[str] = []
    for (part, run, measure), series in groups(rows, "part", "run", "measure"):
        ends = values(series.sort_values("step"), "value")
        said.append(f"{part} of {_name(str(run))}, {measure} from {words.number(ends[0])} to {words.number(ends[-1])}")
    return f"Training curves: {'; '.join(said) or 'nothing was recorded yet'}."
