"""Crosscoder: whose features they are, what latent scaling says of them, what their change does, and what they are about."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import ACCURACY, whiskers
from workbench.figures.tables import distinct, first, keep, select, values
from workbench.figures.theme import GREY, finish, rgba, style
from workbench.results import Result

ALONE, NU_ERROR, NU_RECONSTRUCTION, FEW = 0.9, 0.2, 0.5, 8
"""The thresholds of the analysis."""
KINDS = {
    "shared": ("of both models", "random"),
    "tuned": ("of the tuned model alone", "tuned"),
    "base": ("of the base alone", "base"),
}
SETS = {
    "base": "nothing (base)",
    "offset": "the same offset<br>everywhere",
    "random_tuned_only": "as many<br>random ones",
    "tuned_only": "the tuned<br>model's own",
    "random": f"{FEW} random ones",
    "random_direction": f"those {FEW}, turned<br>elsewhere",
    "most_changed": f"the {FEW} that<br>changed most",
    "all": "all",
    "all_offset": "all and<br>the offset",
    "stream": "the tuned<br>model's stream",
}
"""What is put into the base, controls before what they belong to."""
CONTROLS = frozenset({"base", "offset", "random", "random_direction", "random_tuned_only", "stream"})
REACH = (-0.5, 1.5)
"""Ratios beyond are drawn at these ends."""
LISTED = 12
BIN = 0.05
TOP, GAP = 118, 92


def figure(result: Result) -> go.Figure:
    """Relative norms and ratios; divergence and accuracy with each set of latents; the latents that changed most, in words."""
    latents = result.tables["latents"]
    heights = [230.0, 320.0, 24.0 * min(LISTED, _listed(latents).shape[0]) + 30]
    height = sum(heights) + 2 * GAP
    table = result.tables["table"]
    pt, _ = words.subject(result)
    fig = make_subplots(
        rows=3,
        cols=2,
        specs=[[{}, {}], [{}, {}], [{"colspan": 2}, None]],
        row_heights=heights,
        column_widths=[0.5, 0.5],
        horizontal_spacing=0.12,
        vertical_spacing=GAP / height,
        subplot_titles=[
            "whose features are they?",
            "how much of each is in the base as well?",
            "the base with the change of ... in it",
            f"its answers, {pt}",
            f"features that changed most{_seed(latents)}: where they are on, and what else tells when",
        ],
    )
    _norms(fig, latents)
    _ratios(fig, latents)
    _effects(fig, table)
    _about(fig, _listed(latents))
    found = {m.metric: m for m in result.headline}
    explained = ", ".join(f"{name} {found[f'explained_{name}'].value:.0%}" for name in ("base", "tuned", "difference"))
    told = f"{words.sample(result, found['kl_all'].n)}<br>variance explained: {explained}; "
    told += f"never on: {_count(found['dead'].value)} of {found['dead'].n} features"
    title = f"Which features changed after block {found['point'].value:.0f}, on texts for {pt}?"
    finish(fig, title, told, height=int(height) + TOP + 60, top=TOP, bottom=60)
    return fig.update_layout(margin={"l": 116})


def _seed(latents: pd.DataFrame) -> str:
    return f" (seed {first(latents, 'seed')})" if "seed" in latents and len(latents) else ""


def _listed(latents: pd.DataFrame) -> pd.DataFrame:
    """The described latents of the first seed, most changed first."""
    rows = select(latents, seed=first(latents, "seed")) if "seed" in latents and len(latents) else latents
    rows = keep(rows, rows["place"].notna())
    return rows.sort_values("moved", ascending=False, kind="stable").iloc[:LISTED]


def _norms(fig: go.Figure, latents: pd.DataFrame) -> None:
    edges = np.linspace(0, 1, round(1 / BIN) + 1)
    tuned, base = latents["tuned_only"].to_numpy(bool), latents["base_only"].to_numpy(bool)
    for kind, mask in (("shared", ~tuned & ~base), ("base", base), ("tuned", tuned)):
        name, look = KINDS[kind]
        counts, _ = np.histogram(values(keep(latents, mask), "relative_norm"), edges)
        fig.add_trace(
            go.Bar(
                x=(edges[:-1] + edges[1:]) / 2,
                y=counts,
                width=0.9 * BIN,
                name=f"features {name} ({int(mask.sum())})",
                marker={"color": style(look).color, "opacity": 0.6 if kind == "shared" else 1.0},
                hovertemplate="relative norm %{x:.2f}: %{y} features<extra></extra>",
            ),
            row=1,
            col=1,
        )
    for x in (1 - ALONE, ALONE):
        fig.add_vline(x=x, line={"color": GREY, "dash": "dot", "width": 1.3}, row=1, col=1)  # pyright: ignore[reportArgumentType]
    fig.update_layout(barmode="stack")
    title = "relative decoder norm<br>(0: base alone, .5: shared, 1: tuned model alone)"
    fig.update_xaxes(title_text=title, range=[0, 1], zeroline=False, row=1, col=1)
    fig.update_yaxes(title_text="features", row=1, col=1)


def _ratios(fig: go.Figure, latents: pd.DataFrame) -> None:
    known = keep(latents, np.isfinite(values(latents, "nu_error")) & np.isfinite(values(latents, "nu_reconstruction")))
    candidate = values(known, "relative_norm") > ALONE
    for mask, name, look in ((~candidate, "other features", "random"), (candidate, f"relative norm above {ALONE:g}", "tuned")):
        rows, how = keep(known, mask), style(look)
        fig.add_trace(
            go.Scatter(
                x=np.clip(values(rows, "nu_error"), *REACH),
                y=np.clip(values(rows, "nu_reconstruction"), *REACH),
                mode="markers",
                name=f"{name} ({int(mask.sum())})",
                marker={"symbol": how.marker, "size": 6, "color": how.color, "opacity": 0.7},
                customdata=rows[["latent", "relative_norm", "nu_error", "nu_reconstruction"]].to_numpy(),
                hovertemplate="feature %{customdata[0]}, relative norm %{customdata[1]:.2f}<br>"
                "ν<sub>ε</sub> %{customdata[2]:.2f}, ν<sub>r</sub> %{customdata[3]:.2f}<extra></extra>",
            ),
            row=1,
            col=2,
        )
    box: Any = {"row": 1, "col": 2}
    ends = {"x0": REACH[0], "x1": NU_ERROR, "y0": REACH[0], "y1": NU_RECONSTRUCTION}
    tuned = style("tuned").color
    fig.add_shape(
        type="rect",
        **ends,
        fillcolor=rgba(tuned, 0.1),
        line={"color": tuned, "dash": "dot", "width": 1.3},
        layer="below",
        **box,
    )
    reach = [REACH[0] - 0.08, REACH[1] + 0.08]
    title = "ν<sub>ε</sub>: share found in the base's error<br>(shaded: not in the base)"
    fig.update_xaxes(title_text=title, range=reach, zeroline=False, **box)
    fig.update_yaxes(title_text="ν<sub>r</sub>: in its reconstruction", range=reach, zeroline=False, **box)


def _effects(fig: go.Figure, table: pd.DataFrame) -> None:
    names = [name for name in SETS if name in distinct(table, "set")]
    for column, (measure, title) in enumerate(
        (("kl", "KL to the tuned model at the answer (nats)"), ("accuracy", ACCURACY)), 1
    ):
        for group, control in (("controls", True), ("latents", False)):
            mine = [name for name in names if (name in CONTROLS) == control]
            rows = pd.DataFrame([_mean(select(table, set=name, measure=measure)) for name in mine])
            color = GREY if control else style("tuned").color
            fig.add_trace(
                go.Bar(
                    y=[SETS[name] for name in mine],
                    x=values(rows, "value"),
                    orientation="h",
                    width=0.7,
                    name={"controls": "controls", "latents": "change of latents put into the base"}[group],
                    legendgroup=group,
                    showlegend=column == 1,
                    marker={"color": color, "opacity": 0.75},
                    error_x=whiskers(rows, color),
                    hovertemplate="%{y}: %{x:.3f}<extra></extra>",
                ),
                row=2,
                col=column,
            )
        where: dict[str, Any] = {"row": 2, "col": column}
        order = [SETS[name] for name in reversed(names)]
        fig.update_yaxes(categoryorder="array", categoryarray=order, showticklabels=column == 1, tickfont_size=11, **where)
        fig.update_xaxes(title_text=title, rangemode="tozero", **where)
    fig.update_xaxes(range=[0, 1.04], row=2, col=2)


def _mean(rows: pd.DataFrame) -> dict[str, float]:
    """A set's numbers; of random sets the mean, with the range over sets in place of an interval."""
    value = values(rows, "value")
    if len(rows) == 1:
        return {name: float(first(rows, name)) for name in ("value", "low", "high")}
    return {"value": float(value.mean()), "low": float(value.min()), "high": float(value.max())}


def _about(fig: go.Figure, rows: pd.DataFrame) -> None:
    places = list(range(len(rows)))
    moved = values(rows, "moved")
    said = [describe(row) for row in rows.to_dict("records")]
    own = rows["tuned_only"].to_numpy(bool)
    fig.add_trace(
        go.Bar(
            y=places,
            x=moved,
            orientation="h",
            width=0.6,
            showlegend=False,
            name="",
            text=said,
            textposition="outside",
            cliponaxis=False,
            marker={"color": [style("tuned").color if mine else GREY for mine in own], "opacity": 0.75},
            customdata=rows[["latent", "on", "relative_norm", "cosine"]].to_numpy(),
            hovertemplate="feature %{customdata[0]}: on at %{customdata[1]:.1%} of the positions, relative norm "
            "%{customdata[2]:.2f}, cosine of its two directions %{customdata[3]:.2f}<extra></extra>",
        ),
        row=3,
        col=1,
    )
    ticks = [f"{latent}" for latent in rows["latent"]]
    reach = 3.2 * float(moved.max(initial=0.01))
    fig.update_yaxes(
        title_text="feature", tickvals=places, ticktext=ticks, range=[len(rows) - 0.4, -0.6], showgrid=False, row=3, col=1
    )
    fig.update_xaxes(title_text="share of the streams' change on such texts", range=[0, reach], tickformat=".0%", row=3, col=1)


def describe(row: dict[Any, Any]) -> str:
    """`text (71 %), token here b (53 % told)`: where a latent is on most, and the best label with its value."""
    place = {"request": "answer", "prompt": "frame of the prompt"}.get(row["place"], row["place"])
    where = f"{place} ({row['at_place']:.0%})"
    if not row["label"]:
        return f"{where}; no label tells more than chance"
    value = row["label_value"]
    value = words.capability(value) if row["label"] == "asked for" else value
    label = {"token here": "token", "asked for": "asked for"}.get(row["label"], words.capability(row["label"]) + " =")
    return f"{where}, {label} {value} (tells {row['told']:.0%})"


def alt(result: Result) -> str:
    """How many features are one model's alone, by either rule, and what the change of few does."""
    found = {m.metric: m for m in result.headline}
    pt, _ = words.subject(result)
    moved = found["moved_most_changed"]
    share = words.interval(moved) if math.isfinite(moved.value) else "no defined share"
    return (
        f"Of {_count(found['live'].value)} features in use, {_count(found['tuned_only'].value)} are the tuned model's "
        f"alone ({_count(found['by_relative_norm'].value)} by decoder norms); the dictionary explains "
        f"{found['explained_difference'].value:.0%} of the difference between the streams. Put into the base, the change of the "
        f"{FEW} that changed most takes away {share} of its divergence from the tuned model, {FEW} random ones "
        f"{words.interval(found['moved_random'])}, all {words.interval(found['moved_all'])}; {pt} goes from "
        f"{words.interval(found['pt_base'])} to {words.interval(found['pt_most_changed'])} with the {FEW}."
    )


def _count(value: float) -> str:
    """A number of features, which over seeds is a mean."""
    return f"{value:.0f}" if value == round(value) else f"{value:.1f}"
