"""Path patching: effects of direct paths by sender and receiver, in every model and their difference."""

from __future__ import annotations

import plotly.graph_objects as go

from workbench.figures import words
from workbench.figures.patching import apart, asked, component, panels
from workbench.figures.tables import distinct, first
from workbench.figures.theme import finish
from workbench.results import Result


def figure(result: Result) -> go.Figure:
    """Matrices of senders and receivers: base, fine-tuned, their difference, and revived."""
    table, changed = (result.tables[name] for name in ("table", "changed"))
    rows, columns = distinct(table, "sender"), _in_order(distinct(table, "receiver"))
    fig, height = panels(table, changed, ("sender", "receiver"), (rows, columns), (component, component), between=120)
    for column in (1, 2):
        fig.update_xaxes(title_text="receiver", row=2, col=column)
    title = f"By which paths is a prompt for {asked(result)} told from its counterfactual?"
    return finish(fig, title, words.sample(result), height=int(height), top=146, bottom=110)


def _in_order(receivers: list[str]) -> list[str]:
    """From the first block to the logits, heads before the MLP of their block."""

    def key(name: str) -> tuple[float, int]:
        kind, _, block = name.partition(" ")
        return (float("inf"), 2) if not block else (float(block.partition(".")[0]), int(kind == "mlp"))

    return sorted(receivers, key=key)


def alt(result: Result) -> str:
    """How far base and tuned model use the same paths, and the path that changed most."""
    found = {m.metric: m for m in result.headline}
    where = result.tables["largest"]
    path = f"{component(str(first(where, 'sender')))} to {component(str(first(where, 'receiver')))}"
    floors = f"random ones {words.interval(found['overlap_random'])}"
    if "overlap_other" in found:
        floors = f"the base's own for another ability {words.interval(found['overlap_other'])}, {floors}"
    return (
        f"Direct paths that tell prompts for {asked(result)} from their counterfactuals: {apart(result)} Of the ten largest, base and "
        f"fine-tuned model share {words.interval(found['overlap'])} (Jaccard), one model on other prompts "
        f"{words.interval(found['overlap_ceiling'])}, {floors}. The effect of the path that was chosen on other prompts ({path}) "
        f"changed by {words.interval(found['largest_change'])} in size."
    )
