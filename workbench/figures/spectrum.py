"""Spectra: where the eigenvalues of the loss's Hessian lie, model by model, the bulk at zero as a density and the ends as sticks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.tables import distinct, first, keep, largest, select, values
from workbench.figures.theme import finish, nothing, style
from workbench.results import Result

NAMES = {
    "model": "this model",
    "base": "base",
    "tuned": "fine-tuned",
    "revived": "revived",
    "never_had_it": "never had it",
    "behind": "base",
}
LOOKS = {"model": "base", "behind": "untrained"}
"""Styles of what has none of its own."""
TRAININGS = {"finetune": "fine-tuning", "revived": "reviving"}
MODELS = ("model", "base", "tuned", "revived")
LINEAR = 1e-3
"""The axis is linear within this share of the largest eigenvalue of all, logarithmic beyond."""
WIDTH = 0.08
"""Width of the kernel that smooths the density for the eye, in decades of the axis."""
POINTS = 400


def figure(result: Result) -> go.Figure:
    """Columns: models. Rows: losses. The model that never had the ability lies grey behind."""
    table, ends = result.tables["density"], result.tables["eigenvalues"]
    if table.empty:
        return nothing("Where do the eigenvalues lie?")
    roles, models = distinct(table, "role"), [m for m in MODELS if m in set(table["model"])]
    edge = float(np.abs(values(table, "node")).max())
    linear = LINEAR * edge
    fig = make_subplots(
        rows=len(roles),
        cols=len(models),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=0.17,
        subplot_titles=[_title(result, model, role) for role in roles for model in models],
    )
    low, high = (axis(f(values(table, "node")), linear) for f in (np.min, np.max))
    grid = np.linspace(float(low) - 0.3, float(high) + 0.3, POINTS)
    floor, ceiling = _range(table, roles, models, grid, linear)
    shown: set[str] = set()
    for row, role in enumerate(roles, start=1):
        for column, model in enumerate(models, start=1):
            for name in ("never_had_it", "behind", model):
                mine = select(table, model=name, role=role)
                if not mine.empty:
                    _curve(fig, mine, name, grid, linear, row, column, name not in shown)
                    shown.add(name)
                    _sticks(fig, select(ends, model=name, role=role), name, linear, floor, row, column)
            _axes(fig, edge, linear, floor, ceiling, grid, row, column, row == len(roles))
    return finish(
        fig,
        "Where do the eigenvalues of the loss's Hessian lie?",
        f"{largest(select(result.tables['table'], measure='parameters'), 'value'):,.0f} parameters; {_batch(result)}; "
        "sticks: the largest and smallest eigenvalues, a cross where one did not converge",
        height=150 + 250 * len(roles),
        top=108,
    )


def at_checkpoint(result: Result, training: str, step: int) -> go.Figure:
    """The same of one checkpoint of a training; the base's spectrum lies grey behind."""
    return figure(_view(result, training, step))


def at_checkpoint_alt(result: Result, training: str, step: int) -> str:
    """The ends of the spectrum at a checkpoint, for each loss."""
    path = select(result.tables["path"], training=training, step=step)
    parts: list[str] = []
    for role in distinct(path, "role"):
        mine = select(path, role=role)
        top, loss = (
            [float(first(select(mine, measure=m), end)) for end in ("value", "low", "high")] for m in ("lambda_max", "loss")
        )
        parts.append(
            f"the loss of {words.capability(str(first(mine, 'capability')))} is {words.number(loss[0])} nats and its sharpest direction "
            f"{words.number(top[0])} [{words.number(top[1])}, {words.number(top[2])}]"
        )
    return f"At step {step:,} of {TRAININGS.get(training, training)} {words.listed(parts)}."


def _view(result: Result, training: str, step: int) -> Result:
    """A result whose only model is a checkpoint, with the base as its control."""
    tables = dict(result.tables)
    for name in ("density", "eigenvalues"):
        here = select(tables[f"path_{name}"], training=training, step=step).assign(model="model")
        behind = select(tables[name], model="base").assign(model="behind")
        tables[name] = pd.concat([here, behind], ignore_index=True)
    tables["table"] = select(tables["path"], training=training, step=step).assign(model="model")
    return replace(result, tables=tables)


def axis(value: Any, linear: float) -> np.ndarray:
    """A place on the axis: linear around zero, in decades beyond, smooth between."""
    return np.asarray(np.arcsinh(np.asarray(value, dtype=np.float64) / (2 * linear)) / np.log(10))


def _smooth(rows: pd.DataFrame, grid: np.ndarray, linear: float) -> np.ndarray:
    apart = (grid[:, None] - axis(values(rows, "node"), linear)) / WIDTH
    return np.exp(-(apart**2) / 2) @ values(rows, "weight") / (WIDTH * np.sqrt(2 * np.pi))


def _range(table: pd.DataFrame, roles: list[str], models: list[str], grid: np.ndarray, linear: float) -> tuple[float, float]:
    """What is shown on the y axis: from a tenth of an eigenvalue's mass to the highest peak."""
    peaks = [
        _smooth(rows, grid, linear).max()
        for role in roles
        for model in models
        if not (rows := select(table, role=role, model=model)).empty
    ]
    least = float(values(keep(table, table["weight"] > 1e-12), "weight").min())
    smallest = max(least, 1e-6)
    return smallest / 10, 3 * float(max(peaks))


def _curve(
    fig: go.Figure, rows: pd.DataFrame, name: str, grid: np.ndarray, linear: float, row: int, column: int, legend: bool
) -> None:
    how = style(LOOKS.get(name, name))
    fig.add_trace(
        go.Scatter(
            x=grid,
            y=_smooth(rows, grid, linear),
            customdata=2 * linear * np.sinh(grid * np.log(10)),
            mode="lines",
            name=NAMES[name],
            legendgroup=name,
            showlegend=legend,
            line={"color": how.color, "width": 1.3 if how.control else 2, "dash": how.dash if how.control else "solid"},
            fill=None if how.control else "tozeroy",
            fillcolor=how.faint,
            hovertemplate=f"<b>{NAMES[name]}</b><br>eigenvalue %{{customdata:.3g}}: %{{y:.3g}} of all per decade<extra></extra>",
        ),
        row=row,
        col=column,
    )


def _sticks(fig: go.Figure, rows: pd.DataFrame, name: str, linear: float, floor: float, row: int, column: int) -> None:
    """A stick at each end of the spectrum that is known by itself."""
    if rows.empty:
        return
    how = style(LOOKS.get(name, name))
    at, top = axis(values(rows, "eigenvalue"), linear), floor * (4 if how.control else 12)
    x, y = np.repeat(at, 3), np.tile([floor, top, np.nan], len(at))
    fig.add_trace(
        go.Scatter(
            x=x,
            y=y,
            mode="lines",
            name=NAMES[name],
            legendgroup=name,
            showlegend=False,
            line={"color": how.color, "width": 1.2},
            hoverinfo="skip",
        ),
        row=row,
        col=column,
    )
    fig.add_trace(
        go.Scatter(
            x=at,
            y=np.full(len(at), top),
            mode="markers",
            legendgroup=name,
            showlegend=False,
            marker={
                "color": how.color,
                "size": 4 if how.control else 5,
                "symbol": ["circle" if sure else "x" for sure in rows["converged"]],
            },
            customdata=np.column_stack([values(rows, "eigenvalue"), values(rows, "residual")]),
            hovertemplate=f"<b>{NAMES[name]}</b><br>eigenvalue %{{customdata[0]:.4g}}, residual %{{customdata[1]:.1e}}<extra></extra>",
        ),
        row=row,
        col=column,
    )


def _axes(
    fig: go.Figure,
    edge: float,
    linear: float,
    floor: float,
    ceiling: float,
    grid: np.ndarray,
    row: int,
    column: int,
    last: bool,
) -> None:
    decades = 10.0 ** np.arange(np.floor(np.log10(linear)) + 2, np.ceil(np.log10(edge)) + 1)
    if len(decades) > 2:  # the outermost would run into the next panel's
        decades = decades[:-1][::-1][:: 1 if len(decades) < 5 else 2][::-1]
    ticks = np.concatenate([-decades[::-1], [0.0], decades])
    shown = [t for t in ticks if grid[0] <= axis(t, linear) <= grid[-1]]
    fig.update_xaxes(
        tickvals=[float(axis(t, linear)) for t in shown],
        ticktext=[f"{t:g}".replace("-", "−") for t in shown],
        range=[grid[0], grid[-1]],
        zeroline=False,
        tickangle=0,
        title_text="eigenvalue (nats per squared step)" if last else "",
        row=row,
        col=column,
    )
    fig.update_yaxes(
        type="log",
        range=[np.log10(floor), np.log10(ceiling)],
        exponentformat="power",
        dtick=2,
        title_text="share of eigenvalues<br>per decade" if column == 1 else "",
        row=row,
        col=column,
    )


def _title(result: Result, model: str, role: str) -> str:
    rows = select(result.tables["table"], model=model, role=role)
    capability = str(rows["capability"].iloc[0]) if len(rows) else role
    return f"{NAMES[model]}, loss of {words.capability(capability)}"


def _batch(result: Result) -> str:
    settings = result.settings
    what = "all tokens that training predicts" if settings.get("on") == "text" else "answers"
    return f"loss of the {what} of {settings.get('n', '?')} examples"


def alt(result: Result) -> str:
    """The sharpest direction of each model, and how many lie flat."""
    found = {m.metric: m for m in result.headline}
    pt, _ = words.subject(result)
    said = [
        f"{words.interval(found[f'lambda_max_{name}_pt'])} at the {NAMES[name]} model"
        for name in (*MODELS, "never_had_it")
        if f"lambda_max_{name}_pt" in found
    ]
    flat = next((m for name, m in found.items() if name.startswith("flat_")), None)
    bulk = f" {100 * flat.value:.3g} % of the eigenvalues lie within a thousandth of the largest." if flat else ""
    return f"The largest eigenvalue of the Hessian of the loss of {pt} is {words.listed(said)}.{bulk}"
