"""Learning curves of probes, and what the labels cost to send: a panel per label that is read and question that is asked."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, curve, levels, place
from workbench.figures.tables import distinct, first, largest, select, values
from workbench.figures.theme import finish, style
from workbench.results import Result

MODELS = ("never_had_it", "untrained", "base", "tuned")
"""Controls first, so that they lie behind."""
SHUFFLED = "shuffled"
_ROUND = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)


def figure(result: Result) -> go.Figure:
    """Above: accuracy over the number of examples. Below: bits per label by model, against the uniform code."""
    table, costs = result.tables["table"], result.tables["codelength"]
    pt, ft = words.subject(result)
    panels = list(table[["target", "prompt"]].drop_duplicates().itertuples(index=False, name=None))
    fig = make_subplots(
        rows=2,
        cols=len(panels),
        row_heights=[0.66, 0.34],
        shared_yaxes=True,
        horizontal_spacing=0.035,
        vertical_spacing=0.17,
        subplot_titles=[_title(str(target), str(prompt), pt, ft) for target, prompt in panels],
    )
    top = 1.08 * max(largest(select(costs, measure="bits per label"), "high"), largest(_uniform(result), "value"))
    for column, (target, prompt) in enumerate(panels, start=1):
        here = {"target": target, "prompt": prompt}
        codes = select(result.tables["codes"], **here)
        chance = largest(select(codes, kind="majority"), "value")
        levels(fig, [(chance, f"chance: {chance:.2f}")], column)
        shuffled = select(table, **here, model="tuned", labels=SHUFFLED)
        curve(fig, shuffled, "examples", SHUFFLED, "shuffled labels", column=column, legend=column == 1, hover="examples")
        for model in MODELS:
            rows = select(table, **here, model=model, labels="true")
            name = words.MODELS[model] + (" model" if model in ("base", "tuned") else "")
            curve(fig, rows, "examples", model, name, column=column, legend=column == 1, hover="examples")
        _costs(fig, select(costs, **here, measure="bits per label"), codes, column, top)
        _axes(fig, [int(e) for e in distinct(table, "examples")], column, middle=column == (len(panels) + 1) // 2)
    n = int(largest(table, "n") / max(1, len(words.seeds(result))))
    return finish(fig, f"With how few examples can {pt} be read?", words.sample(result, n), height=640, top=108)


def _title(target: str, prompt: str, pt: str, ft: str) -> str:
    read = words.capability(target)
    return f"{read},<br>asked for it" if prompt == "matching" else f"{read},<br>asked for {ft}"


def _uniform(result: Result) -> pd.DataFrame:
    return select(result.tables["codes"], kind="uniform code")


def _axes(fig: go.Figure, sizes: list[int], column: int, *, middle: bool) -> None:
    small, large = min(sizes), max(sizes)
    ticks = [small, *(e for e in _ROUND if 1.6 * small < e < large / 1.6), large]
    low, high = (float(p) for p in place([small, large]))
    room = 0.06 * (high - low)
    fig.update_xaxes(
        title_text="examples that the probe is fitted on" if middle else "",
        tickvals=[float(p) for p in place(ticks)],
        ticktext=[f"{tick:,}" for tick in ticks],
        tickangle=-45,
        range=[low - room, high + room],
        zeroline=False,
        row=1,
        col=column,
    )
    axis = accuracy_axis("probe accuracy (share of labels right)")
    fig.update_yaxes({**axis, "title": {"text": ""}} if column > 1 else axis, row=1, col=column)
    fig.update_xaxes(title_text="bits per label (dotted: without a model)" if middle else "", row=2, col=column)


def _costs(fig: go.Figure, rows: pd.DataFrame, codes: pd.DataFrame, column: int, top: float) -> None:
    """A dot with its interval per model, the cheapest code on top, and the cost without a model as a line."""
    drawn: list[tuple[str, str, pd.DataFrame]] = [("shuffled", SHUFFLED, select(rows, model="tuned", labels=SHUFFLED))]
    for model in MODELS:
        drawn.append((words.MODELS[model].removesuffix(" (random weights)"), model, select(rows, model=model, labels="true")))
    for name, look, one in drawn:
        if one.empty:
            continue
        how, value = style(look), float(first(one, "value"))
        low, high = (float(values(one, end)[0]) for end in ("low", "high"))
        fig.add_trace(
            go.Scatter(
                x=[value],
                y=[name],
                mode="markers",
                marker={"symbol": how.marker, "size": 9, "color": how.color},
                error_x={"type": "data", "array": [high - value], "arrayminus": [value - low], "color": how.color},
                showlegend=False,
                legendgroup=name,
                hovertemplate=f"<b>{name}</b>: %{{x:.3f}} [{low:.3f}, {high:.3f}] bits per label<extra></extra>",
            ),
            row=2,
            col=column,
        )
    where: dict[str, Any] = {"row": 2, "col": column}
    uniform = largest(select(codes, kind="uniform code"), "value")
    fig.add_vline(x=uniform, line={"color": style("random").color, "dash": "dot", "width": 1.3}, layer="below", **where)
    fig.update_xaxes(range=[0, top], zeroline=False, **where)
    fig.update_yaxes(tickfont={"size": 11}, range=[-0.6, len(drawn) - 0.4], **where)


def alt(result: Result) -> str:
    """Accuracies at the fewest examples, and bits per label, at the chosen point."""
    pt, _ = words.subject(result)
    target = result.provenance.get("capability", distinct(result.table, "target")[0] if len(result.table) else "")
    rows = select(result.table, target=target, prompt="matching", labels="true")
    fewest = min((int(e) for e in distinct(rows, "examples")), default=0)
    few = select(rows, examples=fewest)
    read = ", ".join(f"{words.MODELS[str(m)]} {v:.2f}" for m, v in zip(few["model"], few["value"], strict=True))
    found = {m.metric: m for m in result.headline}
    cost = ", ".join(
        f"{name} {words.number(found[f'{key}_bits'].value)}"
        for key, name in (("base", "base"), ("tuned", "fine-tuned"), ("untrained", "untrained"), ("never", "never had it"))
        if f"{key}_bits" in found
    )
    uniform = words.number(found["uniform_bits"].value)
    return (
        f"Fitted on {fewest} examples, a linear probe for {pt} is right in a share of: {read}; a label costs, in bits: {cost} "
        f"(without a model {uniform})."
    )
