"""Hessian batch path: the training loss on straight lines between solutions of small-batch and of large-batch training."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.marks import accuracy_axis, curve
from workbench.figures.tables import distinct, select
from workbench.figures.theme import finish
from workbench.results import Result

PATHS = {
    "other_start": ("random", "small batch to small batch from another start"),
    "direct": ("base", "small batch to large batch"),
    "continued": ("tuned", "small batch to large batch, continued with small ones"),
    "own": ("revived", "large batch to its continuation"),
}
"""How each path is drawn, the control first and so behind."""


def figure(result: Result) -> go.Figure:
    """Columns: sources. Above: training loss along each path. Below: accuracy on test rows."""
    table = result.tables["table"]
    sources = distinct(table, "source")
    titles = [f"{source}: training" for source in sources] + [f"{source}: test" for source in sources]
    fig = make_subplots(rows=2, cols=len(sources), subplot_titles=titles, vertical_spacing=0.16, horizontal_spacing=0.07)
    for column, source in enumerate(sources, start=1):
        for row, (split, measure) in enumerate((("train", "loss"), ("test", "accuracy")), start=1):
            for path, (look, name) in PATHS.items():
                rows = select(table, source=source, path=path, split=split, measure=measure)
                legend = row == 1 and column == 1
                curve(fig, rows, "alpha", look, name, log=False, row=row, column=column, legend=legend, hover="α")
                fig.data[-1].update(marker_size=4)
            fig.update_xaxes(title_text="α, share of the way" if row == 2 else "", row=row, col=column)
        fig.update_yaxes(title_text="loss (nats)" if column == 1 else "", rangemode="tozero", row=1, col=column)
        fig.update_yaxes(accuracy_axis("accuracy" if column == 1 else ""), row=2, col=column)
    n = max(m.n for m in result.headline)
    seeds = words.listed(words.seeds(result))
    below = f"{n:,} training rows at most, seeds {seeds}; bands are 95 % intervals over seeds"
    return finish(fig, "Are small-batch and large-batch solutions joined?", below, height=700)


def alt(result: Result) -> str:
    """Barriers of all paths, and the sharpness at both ends."""
    found = {m.metric: m for m in result.headline}
    said: list[str] = []
    for source in distinct(result.tables["table"], "source"):
        heights = [words.interval(found[f"barrier_{path}_{source}"]) for path in ("direct", "continued", "other_start")]
        sharp = [words.interval(found[f"lambda_1_{end}_{source}"]) for end in ("small", "large")]
        said.append(
            f"On {source} the training loss rises by {heights[0]} nats on the line from the small- to the large-batch solution, by "
            f"{heights[1]} after continued training with small batches, and by {heights[2]} to a solution from another start; the "
            f"largest eigenvalue is {sharp[0]} with small batches and {sharp[1]} with large ones."
        )
    return " ".join(said)
