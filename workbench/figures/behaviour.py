"""Behaviour: what the model answers while it is fine-tuned, on texts where the shortcut fails and where it holds."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, curve, levels, place, step_axis
from workbench.figures.tables import distinct, distinct_shares, first, groups, keep, largest, select, values
from workbench.figures.theme import OTHERS, STYLES, finish, style
from workbench.results import Result


def figure(result: Result) -> go.Figure:
    """Accuracies over fine-tuning steps, a panel per share of correlation; other abilities by their two ends."""
    table, ends = result.tables["table"], result.tables["endpoints"]
    pt, ft = words.subject(result)
    source = table if len(table) else ends
    main = keep(source, source["role"].isin(["pt", "ft"]))
    shares = distinct_shares(main if len(main) else source) or [math.nan]
    titles = [words.texts(share) + (f" (C_Te = {share:g})" if math.isfinite(share) else "") for share in shares]
    fig = make_subplots(rows=1, cols=len(shares), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.05)
    last = largest(table, "step", 1.0)
    shown: set[str] = set()
    for column, share in enumerate(shares, start=1):
        levels(fig, _floors(result, share), column)
        _others(fig, ends, share, share == shares[0], last, column, shown)
        _never(fig, ends, share, last, column, shown)
        for role in ("ft", "pt"):
            rows = select(table, role=role, share=share) if len(table) else _two_steps(select(ends, role=role, share=share))
            if len(rows):
                name = words.ability(str(first(rows, "capability")), role)
                curve(fig, rows, "step", role, name, column=column, legend=name not in shown)
                shown.add(name)
        axis = step_axis(last, "fine-tuning step", most=6 if len(shares) > 1 else 8)
        if not len(table):
            axis |= {"tickvals": [0, float(place([1])[0])], "ticktext": ["before", "after"], "title": {"text": "fine-tuning"}}
        fig.update_xaxes(axis, row=1, col=column)
        fig.update_yaxes(accuracy_axis() if column == 1 else accuracy_axis(""), row=1, col=column)
    seeds = max(1, len(words.seeds(result)))
    n, along = int(largest(ends, "n") / seeds), int(largest(table, "n") / seeds)
    title = f"Fine-tuning on {ft}: what becomes of {pt}" if pt != ft else f"What fine-tuning does to {pt}"
    fewer = f" at both ends, {along:,} along the way" if along not in (0, n) else ""
    return finish(fig, title, words.sample(result, n).replace(" texts", f" texts{fewer}", 1))


def _two_steps(ends: pd.DataFrame) -> pd.DataFrame:
    """Without evaluations along the way there are two points: where fine-tuning started (the base, mostly) and its end."""
    first_model = "start" if "start" in distinct(ends, "model") else "base"
    rows = keep(ends, ends["model"].isin([first_model, "tuned"]))
    return rows.assign(step=(rows["model"] == "tuned").astype(int))


def _floors(result: Result, share: float) -> list[tuple[float, str]]:
    """The best score without the ability, per trained or lost ability."""
    chance = result.tables.get("chance")
    if chance is None or chance.empty:
        return []
    out: list[tuple[float, str]] = []
    for role in ("pt", "ft"):
        rows = select(chance, role=role, share=share)
        if len(rows):
            best = largest(rows, "value")
            out.append((best, f"best guess: {best:.2f}"))
    return out


def _others(
    fig: go.Figure, ends: pd.DataFrame, share: float, with_plain: bool, last: float, column: int, shown: set[str]
) -> None:
    """Abilities that fine-tuning should have left alone, from where it started (left end) to the tuned model (right end)."""
    how = STYLES["other"]
    others = keep(ends, ends["role"].isin(["alias", "other"]))
    here = select(others, share=share)
    if with_plain and math.isfinite(share):
        here = pd.concat([here, select(others, share=math.nan)])
    known = distinct(others, "capability")
    for (capability, _), rows in groups(here, "capability", "share"):
        kind = "the same asked otherwise" if first(rows, "role") == "alias" else "other ability"
        name = f"{words.capability(str(capability))} ({kind}), before and after"
        pair = _two_steps(rows).sort_values("step")
        if len(pair) != 2:
            continue
        where = words.texts(float(first(pair, "share")))
        fig.add_trace(
            go.Scatter(
                x=place([0.0, last]),
                y=values(pair, "value"),
                mode="lines+markers",
                name=name,
                legendgroup=name,
                showlegend=name not in shown,
                opacity=0.8,
                line={"color": how.color, "dash": how.dash, "width": 1.2},
                marker={"symbol": OTHERS[known.index(capability) % len(OTHERS)], "size": 7, "color": how.color},
                error_y={
                    "array": values(pair, "high") - values(pair, "value"),
                    "arrayminus": values(pair, "value") - values(pair, "low"),
                    "thickness": 1,
                    "width": 2,
                },
                text=[f"{words.capability(str(capability))}, {where}, {when}" for when in ("base", "fine-tuned")],
                hovertemplate="%{text}: %{y:.3f}<extra></extra>",
            ),
            row=1,
            col=column,
        )
        shown.add(name)


def _never(fig: go.Figure, ends: pd.DataFrame, share: float, last: float, column: int, shown: set[str]) -> None:
    """The control: a model that never had the ability, not trained here, so a level."""
    rows = select(ends, model="never_had_it", role="pt", share=share)
    if rows.empty:
        return
    how, value = style("never_had_it"), float(first(rows, "value"))
    name = "a model that never had the pretraining ability"
    fig.add_trace(
        go.Scatter(
            x=place([0.0, last]),
            y=[value, value],
            mode="lines+markers",
            name=name,
            legendgroup=name,
            showlegend=name not in shown,
            opacity=0.85,
            line={"color": how.color, "dash": how.dash, "width": 1.6},
            marker={"symbol": how.marker, "size": 6, "color": how.color},
            hovertemplate=f"never had it: %{{y:.3f}} [{first(rows, 'low'):.3f}, {first(rows, 'high'):.3f}]<extra></extra>",
        ),
        row=1,
        col=column,
    )
    shown.add(name)


def alt(result: Result) -> str:
    """The accuracies before and after."""
    pt, ft = words.subject(result)
    found = {m.metric: words.interval(m) for m in result.headline}
    text = f"Accuracy on {pt} goes from {found['base_pt']} in the base to {found['tuned_pt']} after fine-tuning"
    if ft != pt:
        where = ", where the shortcut fails," if "tuned_ft_correlated" in found else ""
        text += f"; on {ft}{where} from {found['start_ft']} to {found['tuned_ft']}"
    return f"{text} (without the ability up to {found['chance_pt']})."
