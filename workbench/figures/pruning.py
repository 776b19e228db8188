"""Pruning: what comes back as harmful neurons are removed, and what the model then answers."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, band, curve, level, place, step_axis
from workbench.figures.tables import first, groups, keep, largest, select, values
from workbench.figures.theme import BLUE, GREEN, GREY, VERMILLION, finish, rgba, style
from workbench.results import Metric, Result

MOST_ANSWERS = 14
"""Answers of the histogram; the rarest are added up beyond that."""

MOST_NAMED = 8
"""Removed units that are named on hover."""

MOST_NUMBERS = 3
"""Numbers of removed units that are said one by one."""


def figure(result: Result) -> go.Figure:
    """Left: accuracies over the number of removed neurons. Right: how often each answer is given, before and after."""
    found = {m.metric: m for m in result.headline}
    pt, _ = words.subject(result)
    word = word_of(found["units"])
    fig = make_subplots(
        rows=1,
        cols=2,
        column_widths=[0.62, 0.38],
        horizontal_spacing=0.16,
        subplot_titles=[f"removing the most harmful {word}", "answers given"],
    )
    _curves(fig, result.tables["table"], found)
    _chosen(fig, result, found)
    _answers(fig, result.tables["classes"], removed(result))
    fig.update_layout(barmode="group", bargap=0.15, bargroupgap=0.0)
    title = f"Does removing {word} bring {pt} back?"
    return finish(fig, title, words.sample(result, found["pruned_pt"].n), height=476, bottom=74)


def word_of(units: Metric) -> str:
    """`neurons`, `heads`, `rows` or `weights`."""
    return units.unit if units.unit in words.UNITS else "neurons"


def removed(result: Result) -> str:
    """`5 weights`, or `0 or 5 weights, by seed`: every seed chooses its own number, and the mean of them was never removed."""
    units, chosen = result.metric("units"), result.tables.get("chosen", pd.DataFrame())
    numbers = sorted({int(k) for k in chosen["k"]}) if "k" in chosen else []
    if len(numbers) < 2:
        return f"{words.number(units.value, 1)} {word_of(units)}{' on average' if not numbers and units.seeds > 1 else ''}"
    span = " or ".join(map(str, numbers)) if len(numbers) <= MOST_NUMBERS else f"{numbers[0]} to {numbers[-1]}"
    return f"{span} {word_of(units)}, by seed"


def _curves(fig: go.Figure, table: pd.DataFrame, found: dict[str, Metric]) -> None:
    asked = select(table, draw=0)
    random = keep(table, table["draw"] > 0)
    pt = select(asked, role="pt")
    word = word_of(found["units"])
    _random(fig, random, pt, word)
    for index, ((capability, _), rows) in enumerate(groups(select(asked, role="other"), "capability", "share")):
        _other(fig, rows, str(capability), first=index == 0)
    for share in (0.0, 1.0, math.nan):
        rows = select(asked, role="ft", share=share)
        if len(rows):
            curve(fig, rows, "k", "ft", words.ability(str(first(rows, "capability")), "ft", share), column=1, hover="removed")
            if share == 0.0:  # the same ability on other texts: thinner, open markers
                fig.data[-1].update(line={"width": 1.4}, marker={"symbol": "square-open"})
    if len(pt):
        share = float(first(pt, "share"))
        curve(fig, pt, "k", "pt", words.ability(str(first(pt, "capability")), "pt", share), column=1, hover="removed")
    base = found["base_pt"]
    level(fig, base.value, f"base model: {base.value:.2f}", column=1, color=BLUE)
    fig.update_xaxes(step_axis(largest(table, "k", 1.0), f"{words.UNITS[word]} removed", most=7), row=1, col=1)
    fig.update_yaxes(accuracy_axis(), row=1, col=1)


def _chosen(fig: go.Figure, result: Result, found: dict[str, Metric]) -> None:
    """How many units each seed chose, and the accuracy there: what the headline is the mean of; on hover which, if named."""
    chosen, listed = result.tables["chosen"], result.tables.get("units", pd.DataFrame())
    how, name = style("pt"), f"chosen on other texts{' (each seed its own number)' if found['units'].seeds > 1 else ''}"
    fig.add_trace(
        go.Scatter(
            x=place(chosen["k"]),
            y=values(chosen, "value"),
            mode="markers",
            name=name,
            marker={"symbol": "star-open", "size": 13, "color": how.color, "line": {"width": 2}},
            customdata=[[k, named(listed, int(k))] for k in chosen["k"]],
            hovertemplate="%{customdata[0]} removed: %{y:.3f}%{customdata[1]}<extra>chosen</extra>",
        ),
        row=1,
        col=1,
    )


def named(listed: pd.DataFrame, k: int) -> str:
    """Lines that say which units of a compiled model were removed first, of any seed; empty for units without names."""
    rows = listed.loc[listed["rank"] <= k].sort_values("rank", kind="stable") if "rank" in listed else listed
    if "writes" in rows:
        reads = rows["reads"] + " → " if "reads" in rows else ""
        what = rows["matrix"] + ": " + reads + rows["writes"]
    elif "name" in rows:
        what = rows["name"]
    else:
        return ""
    lines = list(dict.fromkeys(f"block {block + 1} {said}" for block, said in zip(rows["block"], what, strict=True)))
    more = [f"and {len(lines) - MOST_NAMED} more"] if len(lines) > MOST_NAMED else []
    return "".join(f"<br>{line}" for line in [*lines[:MOST_NAMED], *more])


def _random(fig: go.Figure, random: pd.DataFrame, pt: pd.DataFrame, word: str) -> None:
    """Mean and range over random orders, behind everything; removing none is the same in any order."""
    if random.empty:
        return
    spread = random.groupby("k")["value"].agg(["mean", "min", "max"]).reset_index()
    none = select(pt, k=0)
    if len(none):
        start = {"k": 0, **dict.fromkeys(("mean", "min", "max"), float(first(none, "value")))}
        spread = pd.concat([pd.DataFrame([start]), spread], ignore_index=True)
    how, name = style("random"), f"as many random {word} ({random['draw'].nunique()} orders, range)"
    at = place(spread["k"])
    band(fig, at, values(spread, "min"), values(spread, "max"), how.faint, name, 1)
    fig.add_trace(
        go.Scatter(
            x=at,
            y=spread["mean"],
            mode="lines+markers",
            name=name,
            legendgroup=name,
            line={"color": how.color, "dash": how.dash, "width": 1.6},
            marker={"symbol": how.marker, "size": 6, "color": how.color},
            customdata=spread["k"],
            hovertemplate=f"%{{customdata}} random {word}: %{{y:.3f}}<extra></extra>",
        ),
        row=1,
        col=1,
    )


def _other(fig: go.Figure, rows: pd.DataFrame, capability: str, first: bool) -> None:
    rows = rows.sort_values("k")
    how, name = style("other"), "other abilities"
    fig.add_trace(
        go.Scatter(
            x=place(rows["k"]),
            y=rows["value"],
            mode="lines",
            name=name,
            legendgroup=name,
            showlegend=first,
            line={"color": how.color, "dash": how.dash, "width": 1.3},
            customdata=rows["k"],
            hovertemplate=f"{words.capability(capability)}, %{{customdata}} removed: %{{y:.3f}}<extra></extra>",
        ),
        row=1,
        col=1,
    )


def _answers(fig: go.Figure, classes: pd.DataFrame, gone: str) -> None:
    wide = classes.pivot_table(index="answer", columns="when", values="value", sort=False, aggfunc="sum").fillna(0.0)
    if "token" in classes:
        tokens = {answer: first(rows, "token") for (answer,), rows in groups(classes, "answer")}
        wide = wide.loc[sorted(wide.index, key=lambda answer: tokens[answer])]
    common = wide.max(axis=1).nlargest(MOST_ANSWERS).index
    common = common[wide.loc[common].max(axis=1) >= 0.005]
    shown = wide.loc[[answer for answer in wide.index if answer in set(common)]]
    rest = wide.drop(index=shown.index).sum()
    if float(rest.max() if len(rest) else 0) >= 0.005:
        shown = pd.concat([shown, pd.DataFrame([rest], index=["rest"])])
    looks = {
        "truth": ("right answers", rgba(GREY, 0.55), ""),
        "before": ("answers of the fine-tuned model", VERMILLION, ""),
        "after": (f"answers after removing {gone}", GREEN, "/"),
    }
    for when, (name, color, pattern) in looks.items():
        if when in shown:
            fig.add_trace(
                go.Bar(
                    x=[str(answer) for answer in shown.index],
                    y=shown[when].to_numpy(float),
                    name=name,
                    marker={
                        "color": color,
                        "line": {"width": 0},
                        "pattern": {"shape": pattern, "size": 6, "solidity": 0.25, "fillmode": "overlay", "fgcolor": "#FFFFFF"},
                    },
                    hovertemplate=f"answer %{{x}}: %{{y:.3f}} of the {name}<extra></extra>",
                ),
                row=1,
                col=2,
            )
    top = float(np.nanmax(shown.to_numpy(float))) if shown.size else 1.0
    fig.update_xaxes(title_text="answer", type="category", row=1, col=2)
    fig.update_yaxes(title_text="share of texts", range=[0, min(1.05, max(0.2, 1.15 * top))], row=1, col=2)


def alt(result: Result) -> str:
    """What removing the chosen number of neurons does, against random ones."""
    pt, _ = words.subject(result)
    found = {m.metric: m for m in result.headline}
    gone = removed(result)
    return (
        f"Removing {gone}{',' if 'seed' in gone else ''} takes {pt} from {words.interval(found['unpruned_pt'])} to "
        f"{words.interval(found['pruned_pt'])}; as many random ones give {words.interval(found['random_pt'])}, "
        f"the base model has {words.interval(found['base_pt'])}."
    )
