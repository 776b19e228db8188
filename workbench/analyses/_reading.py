"""What the probing analyses share: whose activations are read, what is asked, and the line of evidence on what is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.measures import DRAWS, derived
from workbench.results import Direction, Evidence, Metric, Result
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair
from workbench.verdict import GONE, KEPT, ROOM


def models_of(pair: Pair) -> dict[str, PreTrainedModel]:
    """Base and tuned model with their controls: random weights, and a model that never had the ability if there is one."""
    models = {"base": pair.base, "tuned": pair.tuned, "untrained": pair.untrained}
    return {**models, "never_had_it": pair.never_had_it} if pair.never_had_it is not None else models


def questions(pair: Pair, *drawn: Mapping[str, Examples]) -> list[tuple[str, str, str]]:
    """`(target, prompt, kind)`: labels that are read, and what the prompt asks for while they are.

    `matching` asks for the target itself; `tuned_on` asks for O_FT with O_PT as target, where the drawn examples carry
    that label.
    """
    pt, ft = pair.capability, pair.tuned_on
    found = [(c, c, "matching") for c in dict.fromkeys([pt, ft])]
    if ft != pt and all(pt in examples[ft].labels for examples in drawn):
        found.append((pt, ft, "tuned_on"))
    return found


def rooms(read: Mapping[str, np.ndarray], seed: int, unit: str = "accuracy") -> tuple[Metric, ...]:
    """What the controls leave to show, and how much of it the tuned model keeps.

    `room` = base - untrained, `room_never` = base - never (with that control), `share_kept` = (tuned - untrained) / room,
    undefined where the room is below `ROOM`.

    Args:
        read: how well each example is read `[n]`, larger is better, by `base`, `tuned`, `untrained` and perhaps `never`.
        seed: of the resampling of examples.
        unit: of the rooms.
    """
    mean = {name: float(values.mean()) for name, values in read.items()}
    draws = {name: bootstrap_mean(values, DRAWS, seed) for name, values in read.items()}
    return rooms_of(mean, draws, len(read["base"]), unit)


def rooms_of(mean: Mapping[str, float], draws: Mapping[str, np.ndarray], n: int, unit: str = "accuracy") -> tuple[Metric, ...]:
    """As `rooms`, of any measure of all examples at once and its paired draws, both by model."""
    room = mean["base"] - mean["untrained"]
    kept = (mean["tuned"] - mean["untrained"]) / room if room >= ROOM else math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        kept_draws = (draws["tuned"] - draws["untrained"]) / (draws["base"] - draws["untrained"])
    controls = (("room", "untrained"), ("room_never", "never"))
    return (
        *(derived(m, mean["base"] - mean[c], draws["base"] - draws[c], n, unit) for m, c in controls if c in mean),
        derived("share_kept", kept, kept_draws, n, "share of the room"),
    )


def kept_line(result: Result, told: str, untrained: str, never: str | None) -> tuple[Evidence, ...]:
    """The line of a result whose headline has `room`, `room_never` (with that control) and `share_kept`.

    Args:
        result: of the analysis.
        told: the beginning of the sentence, with the numbers of base and tuned model.
        untrained: the number of the model of random weights, in words.
        never: that of the model that never had it; None without one.
    """
    found = {m.metric: m for m in result.headline}
    kept = shown = found["share_kept"]
    direction: Direction
    if found["room"].value < ROOM:
        shown, direction = found["room"], "uninformative"
        text = f"{told}, but from a model of random weights at {untrained} already: no room to show anything."
    elif never is None:
        shown, direction = found["room"], "uninformative"
        text = f"{told}; without a model that never had it, a probe does not tell the ability from its ingredients."
    elif found["room_never"].value < ROOM:
        shown, direction = found["room_never"], "uninformative"
        text = f"{told}, but from a model that never had it at {never} already: no room to show anything."
    elif not math.isfinite(kept.value):
        direction = "uninformative"
        text = f"{told}; in some seed a model of random weights is read almost as well: no room to show anything."
    elif kept.low >= KEPT:
        direction = "masked"
        text = f"{told} (random weights {untrained}, never had it {never}): {kept.value:.0%} of the room is kept."
    elif kept.high < GONE:
        direction = "erased"
        text = f"{told}, hardly better than from random weights ({untrained}): {kept.value:.0%} of the room is kept."
    else:
        direction = "neutral"
        text = f"{told} (random weights {untrained}): a part of the room is kept, which takes no side."
    capability = str(result.provenance.get("capability", "O_PT"))
    numbers = (shown.value, shown.low, shown.high, shown.n)
    return (Evidence(result.name, shown.metric, *numbers, direction, text, capability, shown.bound),)
