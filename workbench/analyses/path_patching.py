"""Path patching: which component hands the difference between a prompt and its counterfactual to which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import Field
from transformers import PreTrainedModel

from workbench.analyses._circuits import Ranked, around, index, overlap, random_jaccard
from workbench.analyses._prompts import (
    FLOOR,
    Effects,
    Prompts,
    alike,
    draw_prompts,
    effect_columns,
    other_prompts,
    placed,
)
from workbench.analysis import Settings, analysis
from workbench.measures import DRAWS, certain, correct_answers, derived, draw, mean_metric, proportion, shares
from workbench.models.paths import connected, path_grid, receivers_of, senders_of
from workbench.models.sites import EMBEDDING, Site
from workbench.results import Evidence, Metric, Result
from workbench.subjects import Pair
from workbench.verdict import ROOM

TOP = 10
"""Paths of the largest effects that `overlap` compares, declared beforehand; all where there are fewer."""
OTHER = "other ability"


class PathPatchingSettings(Settings):
    """Settings of `path_patching`."""

    capability: Literal["pt", "ft"] = Field("pt", description="whose prompts: the ability that may be lost, or the trained one")
    n: int = Field(100, ge=16, description="prompts, each with its counterfactual")
    receivers: Literal["all", "heads"] = Field("all", description="`heads` leaves MLPs and the logits out")


@analysis(
    version=2,
    holds=700,
    n=100,
    paper="Wang+22 2211.00593; Goldowsky-Dill+23 2304.05969",
    group="patching",
    uses=("revived",),
    passes=750,
)
def path_patching(pair: Pair, settings: PathPatchingSettings) -> Result:
    """Effects of direct paths between components, in base, tuned and revived model [Wang+22 2211.00593; 2304.05969].

    A path is a sender (the embedding, a head, an MLP) and a receiver that reads it (a later head by query, key and value at
    once, an MLP, the logits). The receiver's input is its own plus what the sender writes on the counterfactual prompt minus
    what it writes on this one, at every position; all other readers of the sender see what it wrote. What the receiver then
    does runs on. Effects are shares as in `patching`: 0 nothing, 1 all of the difference between the two prompts;
    undefined for a model that tells them apart by less than `FLOOR` logits.

    `table`: effects by model (`change`: tuned minus base on the same prompts), sender and receiver. `changed`: in which share of
    the prompts a path changed anything. `largest`: the path whose effect changed most on split `select`, with its effects on the
    test prompts.

    `largest_change`: the size of that change on the test prompts, negative where its sign is not that of `select` (so signs do
    not cancel over seeds). `direct_*`: summed effects of all components on the logits, past all others.
    `overlap`: Jaccard index of the `TOP` paths of base and tuned model by the size of their mean effect in logits, each on prompts
    of its own (splits `select` and `test`, the mean of both ways); `overlap_revived`: of base and revived model. `_ceiling`: the mean
    of both models with themselves, what two equal ones would reach. Floors: `overlap_other`, the base's own paths for an ability
    of another family, and `overlap_random`, random sets of paths. Intervals: bootstrap over prompts, around the value.
    `told_apart_*`: the denominators, in logits. `base_pt`, `tuned_pt`: accuracy on O_PT.
    """
    base = alike(pair)
    prompts, select = (draw_prompts(pair, settings.capability, settings.n, split) for split in ("test", "select"))
    paths = paths_of(base, settings.receivers)
    found: dict[str, Effects] = {}
    frames: list[pd.DataFrame] = []
    coordinates = pd.DataFrame([coordinates_of(*path) for path in paths])
    for name, model in pair.states.items():
        found[name], rows = _effects(model, prompts, paths, pair.seed)
        frames.append(coordinates.assign(model=name, value=rows / settings.n, n=settings.n, unit="share of the prompts"))
    again = {name: _effects(model, select, paths, pair.seed)[0] for name, model in pair.states.items()}
    moved = _scaled(again["tuned"]) - _scaled(again["base"])
    chosen = int(np.abs(moved).argmax())
    changed = pd.concat(frames, ignore_index=True)
    result = Result(
        name="path_patching",
        tables={
            "table": _table(coordinates, found, changed),
            "changed": changed,
            "largest": coordinates.iloc[[chosen]]
            .reset_index(drop=True)
            .assign(**{name: float(effects.shares()[0][chosen]) for name, effects in found.items()}),
        },
        headline=(
            *_headline(pair, settings.n, paths, found, (chosen, float(np.copysign(1, moved[chosen])))),
            *_overlaps(pair, settings.n, paths, again, found),
        ),
        limits=(
            "A path that carries the difference between two prompts need not be one that fine-tuning changed.",
            "Only paths of two components are patched; what needs three is spread over several of them.",
            "Effects of paths do not add up where a norm or a softmax stands between.",
            "Models that were not trained from one another need not use the same head for the same thing.",
            f"Below {FLOOR:g} logit between the two prompts effects are undefined: such a model does not tell them apart.",
        ),
        settings=settings.model_dump(mode="json"),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def paths_of(model: PreTrainedModel, receivers: str) -> list[tuple[Site, Site]]:
    """Every sender with every receiver that reads it."""
    readers = [site for site in receivers_of(model) if receivers == "all" or site.kind == "head"]
    return [(sender, reader) for sender in senders_of(model) for reader in readers if connected(sender, reader)]


def _name(site: Site, sends: bool) -> str:
    if site == EMBEDDING and sends:
        return "embedding"
    return "logits" if site.kind == "stream" else str(site)


def coordinates_of(sender: Site, receiver: Site) -> dict[str, object]:
    """What tables call a path."""
    return {"sender": _name(sender, True), "receiver": _name(receiver, False)}


def _effects(
    model: PreTrainedModel, prompts: Prompts, paths: Sequence[tuple[Site, Site]], seed: int
) -> tuple[Effects, np.ndarray]:
    """Effects of all paths, and in how many prompts each changed anything."""
    grid = path_grid(model, prompts.examples, prompts.donor(model), paths, prompts.read)
    before, after = prompts.gap(model)
    return Effects((grid.values - grid.plain).double().numpy(), after - before, seed), grid.rows_changed.numpy()


def _scaled(effects: Effects) -> Float[np.ndarray, " paths"]:
    """Mean effects to choose by: shares, in units of `FLOOR` logits where shares are undefined."""
    gap = float(effects.gap.mean())
    return effects.change.mean(1) / (gap if gap >= FLOOR else FLOOR)


def _table(coordinates: pd.DataFrame, found: dict[str, Effects], changed: pd.DataFrame) -> pd.DataFrame:
    values = {name: effects.shares() for name, effects in found.items()}
    for name, (value, drawn) in values.items():
        silent = changed.loc[changed["model"] == name, "value"].to_numpy() == 0
        values[name] = np.where(silent, np.nan, value), np.where(silent, np.nan, drawn)
    (after, after_drawn), (before, before_drawn) = values["tuned"], values["base"]
    values["change"] = after - before, after_drawn - before_drawn
    n = len(found["base"].gap)
    frames = [coordinates.assign(model=name, **effect_columns(*of, n)) for name, of in values.items()]
    return pd.concat(frames, ignore_index=True)


def _headline(
    pair: Pair, n: int, paths: Sequence[tuple[Site, Site]], found: dict[str, Effects], chosen: tuple[int, float]
) -> list[Metric]:
    to_logits = np.array([receiver.kind == "stream" for _, receiver in paths])
    (before, before_drawn), (after, after_drawn) = (found[name].shares() for name in ("base", "tuned"))
    path, sign = chosen
    change, drawn = sign * float((after - before)[path]), sign * (after_drawn - before_drawn)[:, path]
    out = [derived("largest_change", change, drawn, n, "share of the effect")]
    for name, effects in found.items():
        if to_logits.any():
            out.append(effects.total(f"direct_{name}", to_logits))
        out.append(mean_metric(f"told_apart_{name}", effects.gap, pair.seed, "logits"))
    examples = draw(pair, pair.capability, shares(pair, pair.capability)[0], n)
    for name, model in (("base", pair.base), ("tuned", pair.tuned)):
        out.append(proportion(f"{name}_pt", correct_answers(model, examples), pair.seed))
    return out


def _overlaps(
    pair: Pair, n: int, paths: Sequence[tuple[Site, Site]], select: Mapping[str, Effects], test: Mapping[str, Effects]
) -> list[Metric]:
    """Jaccard indices of the paths of the largest effects: of base and other models, of models with themselves, and floors."""
    k, seed = min(TOP, len(paths)), pair.seed
    ranked = {name: Ranked.of(select[name].change.T, test[name].change.T, seed) for name in test}
    unclear = {name for name, effects in test.items() if not effects.told_apart}  # an order of noise
    if other := other_prompts(pair, n):
        own = [_effects(pair.base, prompts, paths, seed)[0] for prompts in other]
        ranked[OTHER] = Ranked.of(own[0].change.T, own[1].change.T, seed)
        unclear |= set() if own[1].told_apart else {OTHER}

    def shared(a: str, b: str) -> tuple[float, Float[np.ndarray, " draws"]]:
        return (math.nan, np.full(DRAWS, np.nan)) if unclear & {a, b} else overlap(ranked[a], ranked[b], k)

    out: list[Metric] = []
    for name, after in (("overlap", "tuned"), ("overlap_revived", "revived")):
        if after in ranked:
            (one, one_drawn), (two, two_drawn) = shared("base", "base"), shared(after, after)
            ceiling = (one + two) / 2
            out.append(index(name, *shared("base", after), n))
            out.append(index(f"{name}_ceiling", ceiling, around(ceiling, (one_drawn + two_drawn) / 2), n))
    if OTHER in ranked:
        out.append(index("overlap_other", *shared("base", OTHER), n))
    out.append(certain("overlap_random", random_jaccard(len(paths), k, seed)[0], n, "Jaccard index"))
    return out


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line that takes no side: by which paths a difference runs says nothing of what became of an ability."""
    (line,) = placed(result, "overlap", _told)
    found = {m.metric: m for m in result.headline}
    if found["overlap_ceiling"].value - found["overlap_random"].value < ROOM:
        short = " Paths of one model agree hardly better than random ones, so nothing could be shown."
        line = replace(line, direction="uninformative", text=line.text + short)
    return (line,)


def _told(found: Mapping[str, Metric], capability: str) -> str:
    defined = "overlap_other" in found and math.isfinite(found["overlap_other"].value)
    other = f"the base's own for another ability {found['overlap_other'].value:.2f}, " if defined else ""
    return (
        f"Of the {TOP} paths that carry the difference between prompts for {capability} and their counterfactuals most, base and "
        f"tuned model share {found['overlap'].value:.2f} (Jaccard; one model on other prompts "
        f"{found['overlap_ceiling'].value:.2f}, {other}random paths {found['overlap_random'].value:.2f}); the share of the path that "
        f"was chosen on other prompts changed by {found['largest_change'].value:.2f} in size."
    )
