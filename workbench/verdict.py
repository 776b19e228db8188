"""The verdict of one capability on one pair: all thresholds, and a pure function of headline numbers.

Behaviour says whether the ability is there before and after, revival decides what became of a lost one, and every
other analysis supports or contradicts. An interval that crosses a threshold makes the verdict inconclusive, and so does
a control that is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from workbench.results import Evidence, Metric, Result

UNTOUCHED = 0.05
"""A measure within this of the base's counts as unchanged."""
HAS_IT = 0.80
"""A model has an ability from this share of the way between chance and a perfect score on."""
MASKED = 1 / 3
"""Largest ratio of steps to 95 %, against the model that never had it, at which a lost ability was only masked."""
ERASED = 0.8
"""Smallest such ratio at which it is gone."""
ROOM = 0.10
"""A line whose base and control are closer than this cannot show anything and is uninformative."""
REVIVED_AT = 0.95
"""Accuracy that counts as revived; where a prompt does not determine its answer, this share of the way from chance to the base."""
RECOVERED = 0.25
"""Share of the lost accuracy above chance that a few removed neurons must bring back before it counts as a hidden ability."""
KEPT = 0.8
"""From this share of a probe's room on, an ability that is lost in behaviour counts as still encoded."""
GONE = 0.2
"""Below this share of the room it is no more readable than in a model of random weights."""

Class = Literal["untouched", "learned", "masked", "erased", "altered", "inconclusive"]


@dataclass(frozen=True)
class Verdict:
    """What became of a capability in a pair, over its seeds."""

    pair: str
    tuned: str
    capability: str
    seeds: tuple[int, ...]
    verdict: Class
    reason: str
    evidence: tuple[Evidence, ...] = field(repr=False)
    kept: bool = True
    """Whether it is about the ability that fine-tuning may have hidden, and not about the one that it trained."""


def judge_kept(results: Mapping[str, Result], capability: str) -> tuple[Class, str]:
    """The verdict on the ability that fine-tuning may have hidden, and the sentence that explains it.

    Args:
        results: by their names in the study; `behaviour` is needed for any verdict, `revival` for one on a lost ability.
        capability: its name, for the sentence.
    """
    if "behaviour" not in results:
        return "inconclusive", "behaviour was not measured."
    behaviour = results["behaviour"]
    base, tuned, chance = (behaviour.metric(name) for name in ("base_pt", "tuned_pt", "chance_pt"))
    was = f"accuracy on {capability} {_went(base, tuned, chance)}"
    bar = has_it(chance.value, ceiling_of(behaviour, "pt"))
    change = behaviour.metric("change_pt")  # measured on the same texts, so narrower than the two intervals apart
    drop = _Interval(-change.high, -change.low)
    if _relative(behaviour) and base.low - chance.value < ROOM:
        return "inconclusive", f"the base hardly has the ability: {was}."
    if drop.low >= -UNTOUCHED and drop.high <= UNTOUCHED:
        return "untouched", f"{was}, within {UNTOUCHED} of the base{_without(base, bar)}."
    if base.low < bar:
        return "inconclusive", f"the base does not have the ability for sure: {was}."
    if drop.low <= UNTOUCHED <= drop.high or drop.low <= -UNTOUCHED <= drop.high:
        return "inconclusive", f"{was}: the interval of the change crosses {UNTOUCHED}."
    if drop.high < 0:
        return "altered", f"{was}: the ability became better."
    if "revival" not in results:
        return "inconclusive", f"{was}, but no reverse fine-tuning with a model that never had it was run."
    never = next((m for m in behaviour.headline if m.metric == "never_pt"), None)
    if never is not None and never.high >= bar:
        return "inconclusive", f"{was}, but the model that never had it scores {never.value:.2f} and is no control."
    found = judge_revival(results["revival"])
    against = _contradiction(found.verdict, results, capability)
    if against:
        return "inconclusive", f"{was}; {found.how}, but {against.analysis} contradicts: {against.text}"
    return found.verdict, f"{was}; {found.how}."


def judge_trained(results: Mapping[str, Result], capability: str) -> tuple[Class, str]:
    """The verdict on the ability that fine-tuning trained; it counts as learned only where the shortcut fails (C_Te = 0)."""
    if "behaviour" not in results:
        return "inconclusive", "behaviour was not measured."
    behaviour = results["behaviour"]
    base, tuned, chance = (behaviour.metric(name) for name in ("start_ft", "tuned_ft", "chance_ft"))
    shortcut = next((m for m in behaviour.headline if m.metric == "tuned_ft_correlated"), None)
    where = "" if shortcut is None else " where the shortcut fails"
    was = f"accuracy on {capability}{where} {_went(base, tuned, chance)}"
    bar = has_it(chance.value, ceiling_of(behaviour, "ft"))
    drop = _difference(base, tuned)
    if _relative(behaviour) and not (drop.low >= -UNTOUCHED and drop.high <= UNTOUCHED):
        # What a perfect model would score is not known, so that nothing can be said to be learned.
        sure = drop.high < -UNTOUCHED or drop.low > UNTOUCHED
        return ("altered", f"{was}.") if sure else ("inconclusive", f"{was}: the interval of the change crosses {UNTOUCHED}.")
    if base.high < bar <= tuned.low:
        return "learned", f"{was}."
    if drop.low >= -UNTOUCHED and drop.high <= UNTOUCHED:
        return "untouched", f"{was}, within {UNTOUCHED} of the base{_without(base, bar)}."
    if base.high < bar and tuned.high < bar:
        found = 0.0 if shortcut is None else shortcut.value
        rest = f"; it answers {found:.2f} right where the shortcut holds" if found >= bar else ""
        return "inconclusive", f"neither model has the ability: {was}{rest}."
    return "inconclusive", f"{was}: an interval crosses {bar:.2f}, or the loss was not followed by reverse fine-tuning."


def _went(before: Metric, after: Metric, chance: Metric) -> str:
    return f"went from {before.value:.2f} to {after.value:.2f} (without the ability up to {chance.value:.2f})"


def _without(base: Metric, bar: float) -> str:
    return "" if base.low >= bar else ", which does not have it for sure either"


def ceiling_of(behaviour: Result, role: str) -> float:
    """The best score that there is to have: 1, or what `behaviour` says where prompts do not determine their answers."""
    return next((m.value for m in behaviour.headline if m.metric == f"ceiling_{role}"), 1.0)


def _relative(behaviour: Result) -> bool:
    """Whether prompts do not determine their answers."""
    return any(m.metric.startswith("ceiling_") for m in behaviour.headline)


def has_it(chance: float, ceiling: float = 1.0) -> float:
    """The accuracy from which a model has an ability: `HAS_IT` of the way from chance to the best score that there is."""
    return chance + HAS_IT * (ceiling - chance)


def goal_of(revival: Result) -> tuple[float, str]:
    """The accuracy that counts as revived, and the words for it."""
    found = next((m.value for m in revival.headline if m.metric == "goal"), None)
    said = f"{100 * REVIVED_AT:g} %"
    return (REVIVED_AT, said) if found is None else (found, f"{said} of what the base has over chance ({found:.2f})")


def goal_between(chance: float, base: float) -> float:
    """The goal where the best score is not 1: `REVIVED_AT` of the way from chance to the base."""
    return chance + REVIVED_AT * (base - chance)


@dataclass(frozen=True)
class _Interval:
    low: float
    high: float


def _difference(a: Metric, b: Metric) -> _Interval:
    """Interval of `a - b` from the two intervals, as if independent [Newcombe 1998, method 10]."""
    low = a.value - b.value - ((a.value - a.low) ** 2 + (b.high - b.value) ** 2) ** 0.5
    high = a.value - b.value + ((a.high - a.value) ** 2 + (b.value - b.low) ** 2) ** 0.5
    return _Interval(low, high)


@dataclass(frozen=True)
class Revival:
    """What reverse fine-tuning says of a lost ability, for the verdict and for its line of evidence alike."""

    verdict: Class
    how: str
    """What was found, as the end of a sentence."""
    metric: Metric | None
    """The number that says so; None where there is none."""
    informative: bool
    """False where a control is missing or none, so that nothing could have been shown."""


def judge_revival(revival: Result) -> Revival:
    """Masked, erased or between, by the ratio to the model that never had the ability, if all controls hold.

    What is masked must also come back in fewer steps than random weights take: where they are as fast, the model that
    never had the ability was merely slow.
    """
    found = {m.metric: m for m in revival.headline}

    def nothing(how: str, metric: Metric | None = None) -> Revival:
        return Revival("inconclusive", how, metric, informative=False)

    if "ratio" not in found:
        return nothing("the ratio to the model that never had it was not measured")
    ratio, (goal, said) = found["ratio"], goal_of(revival)
    for arm, why in (("revived", "there is next to nothing to revive"), ("never_had_it", "it is no control")):
        start = found.get(f"start_{arm}")
        if start is not None and start.value > goal - ROOM:
            who = "the tuned model" if arm == "revived" else "the model that never had it"
            return nothing(f"{who} starts at {start.value:.2f}: {why}", start)
    if ratio.bound == "undefined" or not math.isfinite(ratio.value):
        return nothing(f"neither the tuned model nor the one that never had it surely reaches {said}", ratio)
    sign = {"exact": "", "upper": "at most ", "lower": "at least "}[ratio.bound]
    how = f"reverse fine-tuning takes {sign}{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] of the steps of a model that never had it"
    if ratio.high <= MASKED and ratio.bound != "lower":
        steps, scratch = found.get("steps_revived"), found.get("steps_scratch")
        if steps is not None and scratch is not None and scratch.bound == "exact" and steps.high >= scratch.low:
            also = f"random weights learn it as fast ({scratch.value:.0f} steps against {steps.value:.0f})"
            return Revival("inconclusive", f"{how}, but {also}", ratio, informative=True)
        return Revival("masked", how, ratio, informative=True)
    if ratio.low >= ERASED and ratio.bound != "upper":
        return Revival("erased", how, ratio, informative=True)
    if ratio.bound == "exact" and ratio.low > MASKED and ratio.high < ERASED:
        return Revival("altered", how, ratio, informative=True)
    crossed = [f"{t:.2f}" for t in (MASKED, ERASED) if ratio.low <= t <= ratio.high]
    why = f"the interval crosses {' and '.join(crossed)}" if crossed else "a bound alone does not decide"
    return Revival("inconclusive", f"{how}: {why}", ratio, informative=True)


def _contradiction(verdict: Class, results: Mapping[str, Result], capability: str) -> Evidence | None:
    """The first line of another analysis on the same ability that points to the opposite of what revival says."""
    opposite = {"masked": "erased", "erased": "masked"}.get(verdict)
    others = (result for result in results.values() if result.name not in ("behaviour", "revival"))
    lines = (line for result in others for line in result.evidence)
    about = (line for line in lines if line.capability in ("", capability))
    return next((line for line in about if line.direction == opposite), None)


def as_json(study: str, verdicts: Sequence[Verdict]) -> dict[str, object]:
    """What `study show --json` prints."""
    keys = ("analysis", "metric", "value", "low", "high", "n", "direction", "bound", "text")
    return {
        "study": study,
        "pairs": [
            {
                "name": v.pair,
                "tuned": v.tuned,
                "capability": v.capability,
                "seeds": list(v.seeds),
                "verdict": v.verdict,
                "reason": v.reason,
                "evidence": [{k: _plain(getattr(line, k)) for k in keys} for line in v.evidence],
            }
            for v in verdicts
        ],
    }


def _plain(value: object) -> object:
    """JSON has neither NaN nor infinities."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
