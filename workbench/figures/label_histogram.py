"""Labels of training texts: how they are spread with and without the correlation."""

from __future__ import annotations

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import words
from workbench.figures.tables import distinct, largest, select, values
from workbench.figures.theme import GREY, finish, style
from workbench.results import Result


def figure(result: Result) -> go.Figure:
    """A panel per share of correlated texts, both labels side by side."""
    table = result.tables["table"]
    shares = distinct(table, "share")
    titles = [words.texts(float(share)) for share in shares]
    fig = make_subplots(rows=1, cols=len(shares), shared_yaxes=True, horizontal_spacing=0.05, subplot_titles=titles)
    for column, share in enumerate(shares, start=1):
        for role, capability in zip(("pt", "ft"), distinct(table, "capability"), strict=False):
            rows = select(table, share=share, capability=capability).sort_values("label")
            name = words.capability(str(capability))
            spread = {
                "array": values(rows, "high") - values(rows, "value"),
                "arrayminus": values(rows, "value") - values(rows, "low"),
            }
            fig.add_trace(
                go.Bar(
                    x=rows["label"],
                    y=values(rows, "value"),
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1,
                    marker={
                        "color": style(role).color,
                        "pattern": {
                            "shape": "" if role == "pt" else "/",
                            "fillmode": "overlay",
                            "fgcolor": "#FFFFFF",
                            "solidity": 0.2,
                        },
                    },
                    error_y={**spread, "thickness": 1.5, "width": 3, "color": GREY},
                    hovertemplate=f"{name} = %{{x}}: %{{y:.3f}} of the texts<extra></extra>",
                ),
                row=1,
                col=column,
            )
        fig.update_xaxes(title_text="label", dtick=max(1, int(largest(table, "label") // 10)), row=1, col=column)
    fig.update_yaxes(title_text="share of texts", row=1, col=1)
    fig.update_layout(barmode="group", bargap=0.15)
    return finish(fig, str(result.settings["title"]), f"{int(largest(table, 'n')):,} texts; 95 % intervals", height=400)


def alt(result: Result) -> str:
    """The most frequent labels."""
    said = "; ".join(f"{m.metric} {m.value:.2f}" for m in result.headline)
    return f"{result.settings['title']}: {said}."
