"""What every figure of an analysis must be, whatever it shows."""

from __future__ import annotations

import pandas as pd

from workbench.figures import alt, figure, has_builder


def check_figure(name, given, *, entries, titles, pooled):
    """Its tables stay as they are; legend, axes, background, sample and spoken text are there. Returns the figure."""
    assert has_builder(name)
    before = {key: table.copy() for key, table in given.tables.items()}
    fig = figure(given)
    for key, table in given.tables.items():
        pd.testing.assert_frame_equal(table, before[key])
    shown = [t.name for t in fig.data if t.name and t.showlegend is not False]
    assert len(shown) == len(set(shown)) >= entries
    assert not any("_" in entry for entry in shown)
    named = [axis.title.text for axis in (*fig.select_xaxes(), *fig.select_yaxes()) if axis.title.text]
    assert len(named) >= titles
    assert fig.layout.paper_bgcolor == fig.layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert ("seeds 0 and 1" if pooled else "seed 0") in fig.layout.title.subtitle.text
    said = alt(given)
    assert said.endswith(".")
    assert "counting a" in said
    return fig
