"""Writing along training: a column for fine-tuning and one for its reverse; shares of texts above, losses below."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, curve, level, step_axis
from workbench.figures.tables import distinct, largest, select, values
from workbench.figures.theme import finish, nothing
from workbench.results import Result

COLUMNS = {"fine-tuning": ("finetune",), "reverse fine-tuning": ("never_had_it", "revived")}
"""Trainings of each column, controls first."""
LOOKS = {
    "finetune": ("tuned", "fine-tuned"),
    "revived": ("revived", "revived"),
    "never_had_it": ("never_had_it", "never had it"),
}


def figure(result: Result) -> go.Figure:
    """Share of written texts that show it, then the loss on each kind of real text, over training steps."""
    table, loss = result.tables["table"], result.tables["loss"]
    if table.empty or loss.empty:
        return nothing("Writing along training")
    kinds = [str(kind) for kind in distinct(loss, "kind")]
    there = set(distinct(table, "training"))
    columns = [name for name, of in COLUMNS.items() if there & set(of)]
    pt, _ = words.subject(result)
    titles = [f"{name}: texts that show {pt}" for name in columns] + [
        f"loss, {words.kind(kind)}" for kind in kinds for _ in columns
    ]
    fig = make_subplots(
        rows=1 + len(kinds),
        cols=len(columns),
        shared_yaxes="rows",  # pyright: ignore[reportArgumentType]
        subplot_titles=titles,
        horizontal_spacing=0.06,
        vertical_spacing=0.09,
        row_heights=[0.4, *[0.6 / len(kinds)] * len(kinds)],
    )
    shown = set[str]()
    for column, name in enumerate(columns, start=1):
        for training in (t for t in COLUMNS[name] if t in there):
            look, said = LOOKS[training]
            for row, rows in enumerate([select(table, training=training), *_by_kind(loss, training, kinds)], start=1):
                curve(fig, rows, "step", look, said, row=row, column=column, legend=said not in shown, hover="step")
                shown.add(said)
        last = largest(select(table, training=COLUMNS[name][-1]), "step", 1.0)
        for row in range(1, len(kinds) + 2):
            title = "training step" if row == len(kinds) + 1 else ""
            fig.update_xaxes(step_axis(last, title, most=6), row=row, col=column)
        for model, said in (("base", "base"), ("real", "real texts")):
            height = largest(select(result.tables["bounds"], model=model), "value")
            level(fig, height, said, column=column, left=model == "real" or name != "fine-tuning")  # where no curve is
        for row, kind in enumerate(kinds, start=2):
            base = values(select(result.tables["bound_losses"], kind=kind), "value")
            fig.add_hline(y=float(base[0]), line={"dash": "dot", "width": 1.3, "color": "#8C8C8C"}, row=row, col=column)  # pyright: ignore[reportArgumentType]
    fig.update_yaxes(accuracy_axis(""), row=1)
    fig.update_yaxes(accuracy_axis("share of texts"), row=1, col=1)
    for row in range(2, len(kinds) + 2):
        fig.update_yaxes(zeroline=False, range=_range(select(loss, kind=kinds[row - 2])), row=row)
        fig.update_yaxes(title_text="nats per token", row=row, col=1)
    n = int(largest(table, "n") / max(1, len(words.seeds(result))))
    sub = f"{words.sample(result, n)}; dotted: base (and real texts)"
    return finish(fig, f"How soon {pt} leaves the models' own texts, and returns", sub, height=260 + 190 * len(kinds), top=118)


def _range(rows: pd.DataFrame) -> list[float]:
    """From the lowest to the highest end of an interval, with room for markers."""
    low, high = float(np.nanmin(values(rows, "low"))), float(np.nanmax(values(rows, "high")))
    room = 0.08 * max(high - low, 0.05)
    return [low - room, high + room]


def _by_kind(loss: pd.DataFrame, training: str, kinds: list[str]) -> list[pd.DataFrame]:
    return [select(loss, training=training, kind=kind) for kind in kinds]


def alt(result: Result) -> str:
    """First and last share of each training."""
    pt, _ = words.subject(result)
    found = {m.metric: m for m in result.headline}
    said = [
        f"{name} from {words.interval(found[f'first_{training}'])} to {words.interval(found[f'last_{training}'])}"
        for training, (_, name) in LOOKS.items()
        if f"first_{training}" in found
    ]
    return f"Share of texts that show {pt}: {'; '.join(said) or 'no training was kept'}."
