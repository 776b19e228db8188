"""A table of the paper, redone: every cell as a dot with its interval, the printed value as a faint mark beside it."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.tables import distinct, select, values
from workbench.figures.theme import GREY, finish, style
from workbench.figures.words import broken
from workbench.results import Result

ROW = 17
"""Height of a cell's line in pixels."""
TITLE = 16
"""Characters of a measure's name that fit over its column in a narrow page."""


def figure(result: Result) -> go.Figure:
    """One column of dots per measure, one line per cell."""
    table = result.tables["table"]
    measures, cells = distinct(table, "measure"), distinct(table, "cell")
    titles = [broken(str(measure), TITLE) for measure in measures]
    fig = make_subplots(
        rows=1,
        cols=len(measures),
        shared_yaxes=True,
        horizontal_spacing=0.025,
        subplot_titles=["<br>".join(lines) for lines in titles],
    )
    for column, measure in enumerate(measures, start=1):
        rows = select(table, measure=measure)
        how = style(str(rows["role"].iloc[0]))
        y = [cells.index(cell) for cell in rows["cell"]]
        paper = values(rows, "paper")
        for name, x, marker, color in (
            (f"the paper, {result.settings.get('printed', 'its own model')}", paper, "line-ns-open", GREY),
            ("measured here", values(rows, "value"), "circle", how.color),
        ):
            error = None
            if name == "measured here":
                spread = {"array": values(rows, "high") - x, "arrayminus": x - values(rows, "low")}
                error = {**spread, "thickness": 1.2, "width": 0}
            fig.add_trace(
                go.Scatter(
                    x=x,
                    y=y,
                    mode="markers",
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1,
                    error_x=error,
                    marker={
                        "symbol": marker,
                        "size": 8 if marker == "circle" else 11,
                        "color": color,
                        "line": {"width": 0 if marker == "circle" else 2},
                    },
                    text=[str(cell) for cell in rows["cell"]],
                    hovertemplate=f"%{{text}}<br>{measure}: %{{x:.3f}}<extra>{name}</extra>",
                ),
                row=1,
                col=column,
            )
        fig.update_xaxes(range=[-0.04, 1.04], tickvals=[0, 0.5, 1], title_text="accuracy", row=1, col=column)
    fig.update_yaxes(
        tickvals=list(range(len(cells))), ticktext=[str(c) for c in cells], range=[len(cells) - 0.4, -0.6], zeroline=False
    )
    sample = words.sample(result, int(max(values(table, "n") / values(table, "seeds"), default=0)))
    subtitle = "; ".join(filter(None, (sample, str(result.settings.get("rates", "")))))
    top = 78 + 15 * max(map(len, titles), default=0)
    finish(fig, str(result.settings["title"]), subtitle, height=top + 70 + ROW * len(cells), top=top)
    return fig.update_layout(margin_l=20 + 6.5 * max((len(str(c)) for c in cells), default=0))


def alt(result: Result) -> str:
    """How far the cells are from the printed ones."""
    cells = f"{result.settings['title']}: {result.tables['table']['cell'].nunique()} cells"
    if not result.headline:
        return f"{cells}, none of them printed in the paper."
    mean = result.headline[0]
    return f"{cells}, {mean.n} values beside printed ones: {mean.metric} {mean.value:.2f} (from {mean.low:.2f} to {mean.high:.2f})."
