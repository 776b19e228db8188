"""Revival: how fast the ability comes back by reverse fine-tuning, beside the arms that show what is special about it."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, curve, level, place, step_axis
from workbench.figures.tables import distinct, first, keep, largest, select
from workbench.figures.theme import finish, style
from workbench.results import Result
from workbench.verdict import goal_of

ORDER = ("scratch", "unrelated", "irrelevant", "other_operands", "never_had_it", "revived")
"""Controls first, so that they lie behind."""


def figure(result: Result) -> go.Figure:
    """Accuracy over reverse fine-tuning steps for every arm, its arrival at 95 % marked with its interval."""
    table, steps = result.tables["table"], _steps(result)
    pt, _ = words.subject(result)
    fig = go.Figure()
    goal, said = goal_of(result)
    level(fig, goal, f"{said}: counts as revived", left=True)
    there = distinct(table, "arm")
    arms = sorted(there, key=lambda arm: (_place(arm), "@" not in arm))
    last = largest(table, "step", 1.0)
    for arm in arms:
        curve(fig, select(table, arm=arm), "step", _look(arm), f"{words.arm(arm)}: {_arrival(steps, arm)}")
        if "@" in arm:  # another rate: thinner, open markers
            fig.data[-1].update(line={"width": 1.3}, marker={"symbol": f"{style(_look(arm)).marker}-open"})
    for arm in arms:  # over all curves: the arrivals are what the figure is read for
        _mark(fig, steps, arm, table, goal, said)
    fig.update_xaxes(step_axis(last, "reverse fine-tuning step", most=10))
    fig.update_yaxes(accuracy_axis())
    n = int(largest(table, "n") / max(1, len(words.seeds(result))))
    return finish(fig, f"How cheaply does {pt} come back?", _subtitle(result, n), top=96)


def _look(arm: str) -> str:
    """The style of an arm at whatever rate."""
    return arm.partition("@")[0]


def _place(arm: str) -> int:
    """Rank of an arm, controls first; -1 for arms that are not known here."""
    return ORDER.index(_look(arm)) if _look(arm) in ORDER else -1


def _subtitle(result: Result, n: int) -> str:
    ratios = [m for m in result.headline if m.metric == "ratio"]
    said = words.interval(ratios[0]) if ratios else "not defined"
    ratio = f"{said} of the steps of a model that never had it<br>" if said != "not defined" else ""
    return ratio + words.sample(result, n)


def _steps(result: Result) -> pd.DataFrame:
    """Steps to 95 %, a row per arm; without the rows in examples."""
    steps = result.tables["steps"]
    rows = select(steps, unit="steps") if "unit" in steps else steps
    # Pooled over seeds an arm has one row per bound that occurred; its headline number knows them all.
    found = {m.metric.removeprefix("steps_"): m for m in result.headline if m.metric.startswith("steps_")}
    known = [{"arm": a, "value": m.value, "low": m.low, "high": m.high, "bound": m.bound} for a, m in found.items()]
    rest = keep(rows, ~rows["arm"].isin(list(found)))
    return pd.DataFrame([*known, *(dict(row) for _, row in rest[["arm", "value", "low", "high", "bound"]].iterrows())])


def _arrival(steps: pd.DataFrame, arm: str) -> str:
    rows = select(steps, arm=arm)
    if rows.empty or not math.isfinite(float(first(rows, "value"))):
        return "steps not known"
    row = rows.iloc[0]
    if row["bound"] == "lower":
        return f"more than {row['value']:.0f} steps"
    ends = f" [{row['low']:.0f}, {row['high']:.0f}]" if row["high"] - row["low"] >= 0.5 else ""
    return f"{words.number(float(row['value']))}{ends} steps"


def _mark(fig: go.Figure, steps: pd.DataFrame, arm: str, table: pd.DataFrame, goal: float, said: str) -> None:
    """A marker at the crossing with its interval; where there is none, an arrow at the end of the curve."""
    rows = select(steps, arm=arm)
    if rows.empty or not math.isfinite(float(first(rows, "value"))):
        return
    how, row = style(_look(arm)), rows.iloc[0]
    late = row["bound"] == "lower"
    end = select(table, arm=arm).sort_values("step").iloc[-1]
    at = float(place([end["step"] if late else row["value"]])[0])
    low, high = (float(place([row[end] if math.isfinite(row[end]) else row["value"]])[0]) for end in ("low", "high"))
    fig.add_trace(
        go.Scatter(
            x=[at],
            y=[float(end["value"]) if late else goal],
            mode="markers",
            name=words.arm(arm),
            legendgroup=f"{words.arm(arm)}: {_arrival(steps, arm)}",
            showlegend=False,
            marker={
                "symbol": "arrow-right" if late else how.marker,
                "size": 14 if late else 11,
                "color": how.color,
                "line": {"width": 0},
            },
            error_x={
                "array": [0 if late else max(0.0, high - at)],
                "arrayminus": [0 if late else max(0.0, at - low)],
                "color": how.color,
                "thickness": 2,
                "width": 6,
            },
            hovertemplate=f"<b>{words.arm(arm)}</b><br>{_arrival(steps, arm)} to {said}<extra></extra>",
        )
    )


def alt(result: Result) -> str:
    """Steps to 95 % of every arm."""
    steps, table = _steps(result), result.table
    pt, _ = words.subject(result)
    arms = sorted(distinct(table, "arm"), key=lambda arm: (-_place(arm), "@" in arm))
    said = "; ".join(f"{words.arm(arm)} {_arrival(steps, arm)}" for arm in arms)
    return f"Reverse fine-tuning until {goal_of(result)[1]} on {pt}: {said}."
