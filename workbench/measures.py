"""What analyses of a pair share: drawing its test sets, measuring right answers, and numbers with intervals and draws.

Draws of numbers that were measured on the same texts are paired: equal seeds and numbers of examples resample the same ones.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from workbench.examples import Examples
from workbench.models.forward import accuracy, evaluate
from workbench.results import Metric
from workbench.seeds import stream
from workbench.statistics import bootstrap_mean, paired_difference, wilson
from workbench.subjects import Pair, Question

DRAWS = 400
PLAIN = math.nan
"""The share of texts to which no correlation applies."""
UNRELATED = "Fine-tuning did not start from the base: a head, an MLP or a direction of the residual stream is not the same in both models."


def derived(name: str, value: float, draws: np.ndarray, n: int, unit: str = "") -> Metric:
    """A number with the percentile interval of its draws; `undefined` where the value is not a number."""
    if not math.isfinite(value):
        return Metric(name, math.nan, math.nan, math.nan, n, unit, "undefined", draws=(math.nan,) * len(draws))
    draws = np.where(np.isfinite(draws), draws, np.nan)  # a draw without a denominator says nothing
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Metric(name, value, float(low), float(high), n, unit, draws=tuple(np.round(draws, 6).tolist()))


def mean_metric(name: str, values: np.ndarray, seed: int, unit: str) -> Metric:
    """The mean of a number that each example has."""
    return derived(name, float(values.mean()), bootstrap_mean(values, DRAWS, seed), len(values), unit)


def proportion(name: str, correct: np.ndarray, seed: int, unit: str = "accuracy") -> Metric:
    """The share of ones, such as right answers, with its Wilson interval."""
    row = proportion_row(correct)
    draws = tuple(np.round(bootstrap_mean(correct, DRAWS, seed), 6).tolist())
    return Metric(name, row["value"], row["low"], row["high"], row["n"], unit, draws=draws)


def other_texts(seed: int, name: str) -> int:
    """The seed of a resampling that is independent of the pair's: for texts other than those of C_Te = 0."""
    return stream(seed, "resampling", name)


def certain(name: str, value: float, n: int, unit: str) -> Metric:
    """A number that does not depend on which examples were drawn."""
    return Metric(name, value, value, value, n, unit, draws=(round(value, 6),) * DRAWS)


def proportion_row(correct: np.ndarray, unit: str = "accuracy") -> dict[str, Any]:
    """`value low high n unit` of a table: the share of ones with its Wilson interval."""
    n = len(correct)
    low, high = wilson(float(np.sum(correct)), n)
    return {"value": float(np.mean(correct)), "low": float(low), "high": float(high), "n": n, "unit": unit}


def paired_change(name: str, after: np.ndarray, before: np.ndarray, seed: int) -> Metric:
    """Change of the share of right answers on the same examples, with Newcombe's interval for paired proportions."""
    found = paired_difference(after, before)
    draws = tuple(np.round(bootstrap_mean(after - before, DRAWS, seed), 6).tolist())
    return Metric(name, found.value, found.low, found.high, len(after), "accuracy", draws=draws)


def floors(pair: Pair, examples: Examples) -> dict[str, float]:
    """Accuracies that need no ability; best guesses from labels that neither model was trained to read are left out."""
    asked = (pair.capability, pair.tuned_on)

    def concerns(kind: str) -> bool:
        known = kind.removeprefix("given ")
        return known == kind or known in asked or known not in pair.task.capabilities

    return {kind: value for kind, value in examples.chance.items() if concerns(kind)}


def shares(pair: Question, capability: str) -> tuple[float, ...]:
    """The C_Te at which a capability has test sets: 0 and 1 where the correlation speaks of its family, else plain texts."""
    related = pair.correlation is not None and pair.task.family(capability) == pair.task.family(pair.correlation.target)
    return (0.0, 1.0) if related else (PLAIN,)


def trained_share(pair: Question) -> float:
    """C_Tr of fine-tuning, `PLAIN` where no correlation applies: O_FT is measured on the texts that taught it."""
    plain = shares(pair, pair.tuned_on)[0]
    return pair.correlation.share if pair.correlation is not None and plain == 0.0 else plain


def draw(pair: Question, capability: str, share: float, n: int, split: str = "test") -> Examples:
    """Examples at C_Te = `share`, which may be `PLAIN`."""
    return pair.examples(capability, share=0.0 if math.isnan(share) else share, n=n, split=split)


def correct_answers(model: Any, examples: Examples) -> np.ndarray:
    """1.0 where the answer is right, `[n]`."""
    return evaluate(model, examples, accuracy).numpy().astype(np.float64)


def unrelated(pair: Pair) -> tuple[str, ...]:
    """`UNRELATED`, as a limit of what holds parts or activations of the two models against each other, where it is so."""
    return () if pair.start is pair.base else (UNRELATED,)


def role_of(pair: Pair, capability: str) -> str:
    """`pt` for the ability that may be lost, `ft` for the one that was trained, `alias` for `pt` asked otherwise, `other`."""
    roles = {**dict.fromkeys(pair.aliases, "alias"), pair.tuned_on: "ft", pair.capability: "pt"}
    return roles.get(capability, "other")


def truth_of(examples: Examples, capability: str) -> np.ndarray:
    """The label of a capability per example; the answer's first token where the examples carry no such label."""
    return (examples.labels[capability] if capability in examples.labels else examples.answer[:, 0]).cpu().numpy()
