"""Cross-model activation patching: which single component carries what fine-tuning changed, swapped both ways between the models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from workbench.analyses._prompts import places_of
from workbench.analysis import Settings, analysis
from workbench.examples import Examples
from workbench.measures import DRAWS, derived, draw, other_texts, paired_change, proportion, proportion_row, shares, unrelated
from workbench.models.forward import answer_tokens
from workbench.models.matrices import check_alike
from workbench.models.sites import EMBEDDING, Site
from workbench.models.swaps import Answered, answers, swap_sites, swapped_answers
from workbench.results import Direction, Evidence, Metric, Result
from workbench.seeds import stream
from workbench.statistics import bootstrap_mean, paired_difference
from workbench.subjects import Pair
from workbench.verdict import ROOM

CHOICE = ("head", "mlp", "attention", "stream")
"""Kinds of components; of equally good ones the first is chosen. Of streams only the embedding is a candidate."""
LOSS_ROOM = 0.1
"""Nats by which two models' losses must differ for a share of the difference to be defined."""
RANDOM = "random"
"""The donor of changes as large as a donor's, in random directions."""
EFFECT, AGREEMENT = "share of the effect", "share of the donor's answers"


class CrossPatchingSettings(Settings):
    """Settings of `cross_patching`."""

    n: int | None = Field(None, ge=16, description="test examples per set; the pair's own number when empty")
    control_examples: int = Field(
        128, ge=16, description="examples (at most) for choosing components, for controls and for single places"
    )
    places: int = Field(
        8, ge=0, le=64, description="positions of the text swapped one at a time (at most); 0: no single places"
    )


@dataclass(frozen=True)
class Effect:
    """A swap from `donor` into `receiver`, and the texts on which it is measured."""

    name: str
    donor: str
    receiver: str
    role: str
    capability: str
    share: float
    seed: int
    """Of the bootstrap of its texts."""

    @property
    def sign(self) -> int:
        """Whether the donor should be better (1) or worse (-1) than the receiver."""
        return -1 if self.name == "breaks" else 1


@dataclass(frozen=True)
class Outcome:
    """What a model answers on the texts of an effect."""

    right: Float[np.ndarray, " n"]
    alike: Float[np.ndarray, " n"]
    """1.0 where the answer is the donor's own, right or wrong."""
    loss: Float[np.ndarray, " n"]
    """Of the right answer, in nats."""
    changed: Float[np.ndarray, " n"]
    """1.0 where the swap changed anything that the answer can see."""

    def first(self, n: int) -> Outcome:
        """On the first n texts."""
        return Outcome(self.right[:n], self.alike[:n], self.loss[:n], self.changed[:n])


Swapped = Mapping[tuple[str, Site], Outcome]
"""By name of the positions and site."""


@analysis(version=2, holds=700, group="patching", uses=("revived",), passes=300, paper="Prakash+24 2402.14811")
def cross_patching(pair: Pair, settings: CrossPatchingSettings) -> Result:
    """Answers when one component's activations come from the other model on the same prompts [CMAP of 2402.14811].

    `restores`: the base's in the tuned model, O_PT at C_Te = 0. `breaks`: the tuned model's in the base, same texts.
    `installs`: the tuned model's in the base, O_FT where it was trained. `revives`: the revived model's in the tuned one, O_PT.
    Components: the embedding, each head, attention and MLP (what they write into the residual stream; a head with an equal
    share of the output bias), and the residual stream after each block, which is all before it. `positions`: `all`, those
    that predict the `answer`, and single places of the prompt; of controls `all`.

    `change`: accuracy, patched minus receiver, on the same texts. `explained`: (patched - receiver) / (donor - receiver) of the
    accuracy, `explained_loss` of the right answer's loss; undefined where the two differ by less than `ROOM` (`LOSS_ROOM`) in
    the direction in question. `agreement`: answers that are the donor's own; mere damage breaks without it. `changed`: the
    share of prompts in which the swap changed anything that the answer can see; at 0 it had no effect, and its change is 0.
    Controls: the same swap from a model that never had the ability, else from random weights; and, as a swap damages by
    itself, changes as large as the donor's in random directions (`random`).

    Headline: the single component (streams aside) whose swap at all positions gives most of the donor's answers on separate
    texts; `chosen` names it. `restores_answer` is the same component at the answer alone, `restores_control` and
    `restores_random` what the controls explain; `_over_control` and `_over_random`, the differences of the accuracies on the same
    texts, must both be above 0 for a component to be named as the place.

    Says where the change is carried on these prompts, not whether the ability survived it: what restores is the base's own.
    """
    control = "never_had_it" if pair.never_had_it is not None else "untrained"
    models = {**pair.states, control: pair.never_had_it or pair.untrained}
    check_alike(list(models.values()), f"pair {pair.name!r}")
    rows: list[dict[str, Any]] = []
    chosen: list[dict[str, Any]] = []
    before: dict[str, Metric] = {}
    headline: list[Metric] = []
    for effect in _effects(pair):
        found = _measure(pair, settings, effect, models, control)
        rows += found.rows
        for model, end in ((effect.receiver, found.start), (effect.donor, found.goal)):
            name = f"{model}_pt" if effect.role == "pt" else f"{model}_ft_correlated"
            before[name] = proportion(name, end.right, effect.seed)
        headline += found.numbers
        told = {m.metric.removeprefix(effect.name).removeprefix("_") or "explained": m.value for m in found.numbers}
        chosen.append({"effect": effect.name, **_site(found.best), **told})
    result = Result(
        name="cross_patching",
        tables={"table": pd.DataFrame(rows), "chosen": pd.DataFrame(chosen)},
        headline=(*before.values(), *headline),
        limits=(
            "What a swap restores is computed by the base: it tells where the change is carried, not whether the ability survived it.",
            "One component at a time: parts that carry the change only together are not found.",
            "A swapped component also hands on what earlier ones of its own model did differently; a stream hands on all before it.",
            *unrelated(pair),
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _effects(pair: Pair) -> list[Effect]:
    pt, ft = (pair.capability, shares(pair, pair.capability)[0]), (pair.tuned_on, shares(pair, pair.tuned_on)[-1])
    elsewhere = other_texts(pair.seed, "correlated") if pair.correlation else pair.seed
    found = [
        Effect("restores", "base", "tuned", "pt", *pt, pair.seed),
        Effect("breaks", "tuned", "base", "pt", *pt, pair.seed),
        Effect("installs", "tuned", "base", "ft", *ft, elsewhere),
    ]
    return found if pair.revived is None else [*found, Effect("revives", "revived", "tuned", "pt", *pt, pair.seed)]


@dataclass(frozen=True)
class _Found:
    """What was measured of one effect."""

    best: Site
    start: Outcome
    goal: Outcome
    rows: list[dict[str, Any]]
    numbers: list[Metric]


def _measure(
    pair: Pair, settings: CrossPatchingSettings, effect: Effect, models: Mapping[str, PreTrainedModel], control: str
) -> _Found:
    n = settings.n or pair.n
    few = min(n, settings.control_examples)
    sites = swap_sites(pair.base)
    test, select = (draw(pair, effect.capability, effect.share, k, split) for k, split in ((n, "test"), (few, "select")))
    receiver, donor = models[effect.receiver], models[effect.donor]
    goals = answers(donor, test)
    start, goal = (_outcome(found, goals.given, test) for found in (answers(receiver, test), goals))
    whole: dict[str, Tensor | None] = {"all": None}

    def swap(giver: PreTrainedModel, k: int, some: Sequence[Site], at: Mapping[str, Tensor | None], **how: Any) -> Swapped:
        cut = {name: None if mask is None else mask[:k] for name, mask in at.items()}
        found = swapped_answers(receiver, giver, test[:k], some, cut, **how)
        return {key: _outcome(one, goals.given[:k], test[:k]) for key, one in found.items()}

    swapped = swap(donor, n, sites, {**whole, "answer": _answers(test)})
    held = {
        control: swap(models[control], few, sites, whole),
        RANDOM: swap(donor, few, sites, whole, random=stream(pair.seed, RANDOM, effect.name)),
    }
    rows = _rows(effect, effect.donor, swapped, start, goal)
    for name, controlled in held.items():
        rows += _rows(effect, name, controlled, start, goal)
    if settings.places:
        spots = _spots(pair, test[:few], settings.places)
        rows += _rows(effect, effect.donor, swap(donor, few, sites, spots), start, goal)
    best = _choose(receiver, donor, select, sites)
    numbers = _numbers(effect, best, swapped, held[control], held[RANDOM], start, goal)
    return _Found(best, start, goal, rows, numbers)


def _answers(examples: Examples) -> Bool[Tensor, "n t"]:
    """The positions that predict the answer's tokens."""
    mask = torch.zeros(examples.tokens.shape, dtype=torch.bool, device=examples.tokens.device)
    return mask.scatter(1, answer_tokens(examples) - 1, True)


def _spots(pair: Pair, examples: Examples, most: int) -> dict[str, Tensor | None]:
    """A mask per place; positions of a text are called by their distance from its end."""
    places, at = places_of(pair, examples, most)
    empty = torch.zeros(examples.tokens.shape, dtype=torch.bool)
    names = [f"text {place.name}" if place.role in ("text", "window") else place.name for place in places]
    return {name: empty.scatter(1, where[:, None], True) for name, where in zip(names, at.T, strict=True)}


def _outcome(found: Answered, goals: Tensor, examples: Examples) -> Outcome:
    right, alike = examples.to("cpu").right(found.given).all(-1), found.given.eq(goals).all(-1)
    return Outcome(*(x.numpy().astype(np.float64) for x in (right, alike, found.loss, found.changed)))


def _choose(receiver: PreTrainedModel, donor: PreTrainedModel, examples: Examples, sites: Sequence[Site]) -> Site:
    """The single component that gives most of the donor's answers."""
    candidates = [site for site in sites if site.kind != "stream" or site == EMBEDDING]
    candidates.sort(key=lambda site: CHOICE.index(site.kind))
    goals = answers(donor, examples).given
    found = swapped_answers(receiver, donor, examples, candidates, {"all": None})
    return max(candidates, key=lambda site: float(found["all", site].given.eq(goals).all(-1).float().mean()))


def _site(site: Site) -> dict[str, Any]:
    name = "embedding" if site == EMBEDDING else str(site)
    return {"component": name, "kind": name.split()[0], "block": site.block, "head": -1 if site.head is None else site.head}


def _share(
    effect: Effect, after: Float[np.ndarray, "n s"], start: np.ndarray, goal: np.ndarray, room: float, sign: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which part of the way from receiver to donor swaps go: values `[s]` and draws `[draws, s]`.

    Undefined where the donor is not better than the receiver by `room` (a larger number for sign 1, a smaller for -1).
    """
    whole = float(goal.mean() - start.mean())
    low, high = (bootstrap_mean(values, DRAWS, effect.seed)[:, None] for values in (start, goal))
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = (bootstrap_mean(after, DRAWS, effect.seed) - low) / (high - low)
    draws = np.where(np.isfinite(draws), draws, np.nan)
    if sign * whole < room:
        return np.full(after.shape[1], math.nan), draws
    return (after.mean(0) - start.mean()) / whole, draws


def _explained(effect: Effect, swapped: Sequence[Outcome], start: Outcome, goal: Outcome, what: str) -> tuple[Any, Any]:
    """`_share` of the accuracy (`right`) or of the `loss`, on as many texts as were swapped."""
    n = len(swapped[0].right)
    after = np.stack([getattr(outcome, what) for outcome in swapped], axis=1)
    room, sign = (ROOM, effect.sign) if what == "right" else (LOSS_ROOM, -effect.sign)
    return _share(effect, after, getattr(start, what)[:n], getattr(goal, what)[:n], room, sign)


def _rows(effect: Effect, donor: str, swapped: Swapped, start: Outcome, goal: Outcome) -> list[dict[str, Any]]:
    """One row per swap and measure; start and goal may have more texts than the swaps."""
    outcomes = list(swapped.values())
    n = len(outcomes[0].right)
    shares_of = {name: _explained(effect, outcomes, start, goal, what) for name, what in _EXPLAINED.items()}
    ends = {name: _ends(*found) for name, found in shares_of.items()}
    rows: list[dict[str, Any]] = []
    for i, ((positions, site), outcome) in enumerate(swapped.items()):
        at: dict[str, Any] = {"effect": effect.name, "donor": donor, "positions": positions, **_site(site)}
        at |= {"capability": effect.capability, "role": effect.role, "share": effect.share}
        change, changed = paired_difference(outcome.right, start.right[:n]), float(outcome.changed.mean())
        rows += [
            {**at, "measure": "accuracy", **proportion_row(outcome.right)},
            {**at, "measure": "agreement", **proportion_row(outcome.alike)},
            {**at, "measure": "change", **_row(change.value, change.low, change.high, n, "change of accuracy")},
            {**at, "measure": "changed", **_row(changed, changed, changed, n, "share of the prompts")},
        ]
        for name, (told, _) in shares_of.items():
            low, high = ends[name][:, i]
            rows.append({**at, "measure": name, **_row(told[i], low, high, n, EFFECT)})
    return rows


_EXPLAINED = {"explained": "right", "explained_loss": "loss"}


def _ends(told: Float[np.ndarray, " s"], draws: Float[np.ndarray, "draws s"]) -> Float[np.ndarray, "two s"]:
    if np.isnan(told).any():  # all are undefined at once
        return np.full((2, len(told)), math.nan)
    return np.nanpercentile(draws, [2.5, 97.5], axis=0)


def _row(value: float, low: float, high: float, n: int, unit: str) -> dict[str, Any]:
    return {"value": float(value), "low": float(low), "high": float(high), "n": n, "unit": unit}


def _numbers(
    effect: Effect, best: Site, swapped: Swapped, held: Swapped, random: Swapped, start: Outcome, goal: Outcome
) -> list[Metric]:
    """What the chosen component explains, changes, and explains at the answer alone; and what the controls explain."""
    name = effect.name
    one, other, aside = swapped["all", best], held["all", best], random["all", best]

    def explained(metric: str, outcome: Outcome, what: str = "right") -> Metric:
        value, draws = _explained(effect, [outcome], start, goal, what)
        return derived(metric, float(value[0]), draws[:, 0], len(outcome.right), EFFECT)

    return [
        explained(name, one),
        explained(f"{name}_answer", swapped["answer", best]),
        explained(f"{name}_control", other),
        explained(f"{name}_random", aside),
        explained(f"{name}_loss", one, "loss"),
        paired_change(f"{name}_change", one.right, start.right, effect.seed),
        paired_change(f"{name}_over_control", one.first(len(other.right)).right, other.right, effect.seed),
        paired_change(f"{name}_over_random", one.first(len(aside.right)).right, aside.right, effect.seed),
        proportion(f"{name}_agreement", one.alike, effect.seed, AGREEMENT),
        proportion(f"{name}_agreement_before", start.alike, effect.seed, AGREEMENT),
        proportion(f"{name}_agreement_control", other.alike, effect.seed, AGREEMENT),
        proportion(f"{name}_agreement_random", aside.alike, effect.seed, AGREEMENT),
    ]


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line that takes no side: how much of the loss a single component carries. Uninformative where nothing was lost."""
    found = {m.metric: m for m in result.headline}
    base, tuned, back = (found[k] for k in ("base_pt", "tuned_pt", "restores"))
    gain, ahead, aside = (found[f"restores_{k}"] for k in ("change", "over_control", "over_random"))
    given = found["breaks_agreement"]
    capability = str(result.provenance.get("capability", "O_PT"))
    shown, kind = back, "neutral"
    told = (
        f"One component of the base restores {_said(back)} of the loss of {capability} in the tuned model (the control model's "
        f"{_said(found['restores_control'])}, a random change as large {_said(found['restores_random'])})"
    )
    if base.value - tuned.value < ROOM or not math.isfinite(back.value):
        shown, kind = gain, "uninformative"
        seeds = " in some seed" if base.value - tuned.value >= ROOM else ""
        text = f"The tuned model lost no {ROOM} of the base's {capability}{seeds}: there is no loss to place in a component."
    elif gain.low <= 0:
        text = (
            f"The single component of the base that gave most of its answers on other texts does not surely restore {capability} "
            f"in the tuned model ({_said(gain, '+.2f')})."
        )
    elif ahead.low <= 0 and given.low > found["breaks_agreement_control"].high:
        text = (
            f"{told}: a control's does as much, so that what counts is the tuned model's own; with one of its components the base "
            f"gives {_said(given)} of its answers."
        )
    elif ahead.low <= 0:
        shown, kind = ahead, "uninformative"
        text = f"{told}: not surely more than the control, so that nothing could be placed."
    elif aside.low <= 0:
        shown, kind = aside, "uninformative"
        text = f"{told}: not surely more than the random change, so that nothing could be placed."
    else:
        text = (
            f"{told}; with one of the tuned model's the base gives {_said(given)} of its answers (before: "
            f"{found['breaks_agreement_before'].value:.0%}): this says where the change is carried, not whether the ability "
            "survived it."
        )
    direction: Direction = "uninformative" if kind == "uninformative" else "neutral"
    numbers = (shown.value, shown.low, shown.high, shown.n)
    return (Evidence(result.name, shown.metric, *numbers, direction, text, capability, shown.bound),)


def _said(metric: Metric, form: str = ".0%") -> str:
    if not math.isfinite(metric.value):
        return "an undefined share"
    return f"{metric.value:{form}} [{metric.low:{form}}, {metric.high:{form}}]"
