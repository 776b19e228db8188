"""Grafting: what small shares of fine-tuning's change do, taken out of the tuned model and put into the one before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, band, curve
from workbench.figures.tables import first, select, values
from workbench.figures.theme import GREY, finish, style
from workbench.results import Result

TICKS = {0.0: "0", 1e-4: ".01 %", 1e-3: ".1 %", 0.01: "1 %", 0.1: "10 %", 1.0: "all"}
TITLES = {"revert": "fine-tuned model, set back", "graft": "model before, set to the fine-tuned"}
RANKINGS = {"first_order": "by first-order effect", "magnitude": "by size of the change"}


def place(shares: Any) -> np.ndarray:
    """Shares on the axis: decades, and 0 one decade before the first."""
    given = np.asarray(shares, dtype=np.float64)
    return np.log10(np.where(given > 0, given, 1e-5))


def figure(result: Result) -> go.Figure:
    """Columns: the two directions. Rows: the two rankings. In each: O_PT and O_FT, and the ability in question for random weights."""
    table = result.tables["table"]
    found = {m.metric: m for m in result.headline}
    titles = [f"{TITLES[d]}<br>{RANKINGS[r]}" for r in RANKINGS for d in TITLES]
    fig = make_subplots(rows=2, cols=2, horizontal_spacing=0.09, vertical_spacing=0.17, subplot_titles=titles)
    sparse = float(np.median(values(select(table, ranking="random"), "share_of_weights")))
    shown = False
    for row, ranking in enumerate(RANKINGS, start=1):
        for column, direction in enumerate(TITLES, start=1):
            at: dict[str, Any] = {"row": row, "col": column}
            mine = select(table, direction=direction)
            _random(fig, select(mine, ranking="random", role="pt" if direction == "revert" else "ft"), row, column, not shown)
            for role in ("ft", "pt"):
                rows = select(mine, ranking=ranking, role=role)
                text = words.ability(str(first(rows, "capability")), role, float(first(rows, "share")))
                drawn = rows.assign(at=place(rows["share_of_weights"]))
                curve(fig, drawn, "at", role, text, log=False, row=row, column=column, legend=not shown, hover="log10 share")
            shown = True
            fig.add_vline(x=float(place([sparse])[0]), line={"color": GREY, "dash": "dot", "width": 1.3}, layer="below", **at)
            ticks = {"tickvals": list(place(list(TICKS))), "ticktext": list(TICKS.values()), "range": [-5.2, 0.2]}
            title = "share of the changed weights<br>(dotted: where the headline is read)" if row == 2 else ""
            fig.update_xaxes(title_text=title, zeroline=False, **ticks, **at)
            fig.update_yaxes(accuracy_axis() if column == 1 else accuracy_axis(""), **at)
    pt, _ = words.subject(result)
    title = f"Where does the change sit that hides {pt}?"
    return finish(fig, title, words.sample(result, found["reverted_pt"].n), height=700, top=112, bottom=78)


def _random(fig: go.Figure, random: pd.DataFrame, row: int, column: int, legend: bool) -> None:
    """Mean and range over random choices of weights, of the ability that the direction is about."""
    how, name = style("random"), f"as many random weights ({random['draw'].nunique()} draws, range)"
    spread = random.groupby("share_of_weights")["value"].agg(["mean", "min", "max"]).reset_index()
    at = place(spread["share_of_weights"])
    band(fig, at, values(spread, "min"), values(spread, "max"), how.faint, name, column, row)
    fig.add_trace(
        go.Scatter(
            x=at,
            y=spread["mean"],
            mode="lines+markers",
            name=name,
            legendgroup=name,
            showlegend=legend,
            line={"color": how.color, "dash": how.dash, "width": 1.6},
            marker={"symbol": how.marker, "size": 6, "color": how.color},
            hovertemplate="random weights: %{y:.3f}<extra></extra>",
        ),
        row=row,
        col=column,
    )


def alt(result: Result) -> str:
    """What the declared share of weights does in both directions, against random ones."""
    pt, ft = words.subject(result)
    found = {m.metric: m for m in result.headline}
    return (
        f"Setting 1 % of the changed weights back takes {pt} from {words.interval(found['tuned_pt'])} to "
        f"{words.interval(found['reverted_pt'])}; random ones give {words.interval(found['random_reverted_pt'])}, before it was "
        f"{words.interval(found['start_pt'])}. Grafting 1 % onto the model before takes {ft} where it was trained from "
        f"{words.interval(found['start_ft_correlated'])} to {words.interval(found['grafted_ft_correlated'])}; random ones give "
        f"{words.interval(found['random_grafted_ft'])}, the fine-tuned model has {words.interval(found['tuned_ft_correlated'])}."
    )
