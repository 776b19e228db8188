"""Which head or MLP writes the answer, before and after: the logit difference at the answer as a sum over components.

Direct effects alone, the final norm's scale held at its actual value; the terms sum to the logit difference exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from workbench.analyses._lenses import means, ratio_metric
from workbench.analysis import Settings, analysis
from workbench.examples import Examples
from workbench.measures import (
    DRAWS,
    certain,
    correct_answers,
    derived,
    draw,
    mean_metric,
    paired_change,
    proportion,
    shares,
    unrelated,
)
from workbench.models.forward import answer_logits, evaluate
from workbench.models.readout import Attribution, Part, attribute
from workbench.results import Direction, Evidence, Metric, Result
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair
from workbench.verdict import ROOM

CLEAR = 1e-3
"""Change of the mean logit difference (logits) from which on shares of it are given."""


class AttributionSettings(Settings):
    """Settings of `attribution`."""

    n: int | None = Field(None, ge=16, description="test examples; the pair's own number when empty")
    select_examples: int = Field(
        500, ge=16, description="examples that choose the component, drawn independently of the test's"
    )
    rival: Literal["tuned", "others"] = Field(
        "tuned",
        description="what the right answer is held against: the tuned model's best wrong answer, or the mean of the others",
    )


@analysis(version=1, holds=600, passes=8, paper="2211.00593", group="lenses", uses=("revived",))
def attribution(pair: Pair, settings: AttributionSettings) -> Result:
    """Direct logit attribution of base, tuned and revived model on O_PT prompts at C_Te = 0, at the answer.

    Estimand: the mean over texts of the logit of the right answer minus that of a rival, in logits, as a sum of what the
    embedding, every attention head, the bias of every attention output, every MLP, and the biases of final norm and
    unembedding add. The final norm's scale stays at its actual value on each example, and its centring is applied to every
    term. `table`: the terms per model; `change` (and `change of revived`) is tuned (revived) minus base on the same texts.
    The part `all` is their sum, the logit difference itself.

    The rival is, of each example, the wrong candidate that the tuned model scores highest, the same one for every model: then
    the tuned model is right among the candidates exactly where its difference is positive. Since it is chosen by the tuned
    model, that model's differences are its smallest and the change is somewhat exaggerated; `rival: others` takes the mean
    of all wrong candidates, which no model chooses, but a model may exceed it and be wrong.

    Headline: the component whose term changed most in the mean on other texts; `explained` is the share of the change of the
    difference that its change makes up (undefined where the difference hardly changed), `explained_evenly` what it would be
    if all terms had changed alike, `concentration` the change's size over the summed sizes of all terms' mean changes.

    Does not show effects through later components: what a head changes for the MLP after it is counted as the MLP's.
    """
    n, pt = settings.n or pair.n, pair.capability
    share = shares(pair, pt)[0]
    examples = draw(pair, pt, share, n)
    found = _attributed(pair, pair.states, examples, settings.rival)
    chosen = _chosen(pair, settings)
    parts = found["base"].parts
    values = {name: one.values.numpy() for name, one in found.items()}
    values["change"] = values["tuned"] - values["base"]
    if "revived" in values:
        values["change of revived"] = values["revived"] - values["base"]
    rows = [row for name, terms in values.items() for row in _rows(name, parts, terms, pair.seed)]
    right = {name: correct_answers(model, examples) for name, model in pair.states.items()}
    result = Result(
        name="attribution",
        tables={
            "table": pd.DataFrame(rows),
            "chosen": pd.DataFrame([{"part": str(parts[chosen])}]),
        },
        headline=_headline(pair, values, right, chosen),
        limits=(
            f"Direct effects alone: what the chosen part ({parts[chosen]}, counted from 0) changes for later ones is theirs.",
            "Terms of opposite sign cancel, so that one may explain more than all of the change.",
            "The final norm's scale is held at each model's own, so that a change of scale shows in every term.",
            *unrelated(pair),
        ),
        provenance={"capability": pt, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _attributed(pair: Pair, models: Mapping[str, PreTrainedModel], examples: Examples, rival: str) -> dict[str, Attribution]:
    right = examples.answer[:, :1].cpu()
    against = _best_wrong(pair.tuned, examples) if rival == "tuned" else _wrong(examples)
    return {name: attribute(model, examples, right, against) for name, model in models.items()}


def _wrong(examples: Examples) -> Int[Tensor, "n others"]:
    """All candidates but the right one."""
    candidates = examples.candidates.cpu().expand(len(examples), -1)
    return candidates[candidates != examples.answer[:, :1].cpu()].view(len(examples), -1)


def _best_wrong(model: PreTrainedModel, examples: Examples) -> Int[Tensor, "n 1"]:
    """Of each example the wrong candidate of the largest logit."""

    def best(model: PreTrainedModel, batch: Examples) -> Tensor:
        logits = answer_logits(model, batch)[:, 0].scatter(1, batch.answer[:, :1], -torch.inf)
        return batch.candidates[logits[:, batch.candidates].argmax(-1)]

    return evaluate(model, examples, best).long()[:, None]


def _chosen(pair: Pair, settings: AttributionSettings) -> int:
    """Which part changed most in the mean, on texts of its own."""
    examples = draw(pair, pair.capability, shares(pair, pair.capability)[0], settings.select_examples, "select")
    found = _attributed(pair, {"base": pair.base, "tuned": pair.tuned}, examples, settings.rival)
    return int((found["tuned"].values - found["base"].values).mean(0).abs().argmax())


def _rows(model: str, parts: tuple[Part, ...], values: np.ndarray, seed: int) -> list[dict[str, Any]]:
    whole = np.column_stack([values, values.sum(1)])
    named = [{"part": str(p), "kind": p.kind, "block": p.block, "head": p.head} for p in parts]
    named.append({"part": "all", "kind": "all", "block": None, "head": None})
    return [
        {"model": model, **at, "value": float(v), "low": float(low), "high": float(high), "n": len(values), "unit": "logits"}
        for at, v, low, high in zip(named, *means(whole, seed), strict=True)
    ]


def _headline(pair: Pair, values: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray], chosen: int) -> tuple[Metric, ...]:
    seed, change = pair.seed, values["change"]
    n, parts = change.shape
    sizes = np.abs(bootstrap_mean(change, DRAWS, seed))
    size = np.abs(change.mean(0))
    total = float(size.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        concentration = sizes[:, chosen] / sizes.sum(1)
    return (
        *(mean_metric(f"{name}_difference", values[name].sum(1), seed, "logits") for name in right),
        mean_metric("change", change.sum(1), seed, "logits"),
        mean_metric("change_chosen", change[:, chosen], seed, "logits"),
        ratio_metric("explained", change[:, chosen], change.sum(1), seed, "share of the change", CLEAR),
        certain("explained_evenly", 1 / parts, n, "share of the change"),
        derived(
            "concentration", float(size[chosen]) / total if total else math.nan, concentration, n, "share of all terms' changes"
        ),
        *(proportion(f"{name}_pt", values, seed) for name, values in right.items()),
        paired_change("change_pt", right["tuned"], right["base"], seed),
    )


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line that takes no side: in how few components the change of the answer sits. Uninformative where nothing was lost."""
    found = {m.metric: m for m in result.headline}
    explained, lost, few = found["explained"], found["change_pt"], found["concentration"]
    before, after = found["base_difference"].value, found["tuned_difference"].value
    name = str(result.provenance.get("capability", "O_PT"))
    shown, direction = explained, "neutral"
    if -lost.value < ROOM:
        shown, direction = lost, "uninformative"
        text = f"The tuned model lost no {ROOM} of the base's accuracy on {name}: there is no loss to place."
    elif not math.isfinite(explained.value):
        shown, direction = lost, "uninformative"
        seeds = " in some seed" if lost.seeds > 1 else ""
        text = (
            f"The mean logit difference of {name} moved by less than {CLEAR:g} logits{seeds}: there is no share of its change to "
            "place."
        )
    else:
        text = (
            f"The logit of the right answer to {name} minus that of its rival goes from {before:.1f} to {after:.1f}; the component "
            f"that changed most makes up {explained.value:.0%} of that directly and {few.value:.0%} of what all terms moved "
            f"(evenly spread: {found['explained_evenly'].value:.0%}): this tells where the change sits, not whether it covers."
        )
    kind: Direction = direction  # pyright: ignore[reportAssignmentType]
    return (Evidence(result.name, shown.metric, shown.value, shown.low, shown.high, shown.n, kind, text, name, shown.bound),)
