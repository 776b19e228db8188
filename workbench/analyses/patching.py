"""Activation patching: which components, at which place, carry the difference between a prompt and its counterfactual."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import Field
from transformers import PreTrainedModel

from workbench.analyses._places import REQUEST, Place
from workbench.analyses._prompts import (
    FLOOR,
    Effects,
    Prompts,
    alike,
    draw_prompts,
    effect_columns,
    placed,
    places_of,
)
from workbench.analysis import Settings, analysis
from workbench.measures import DRAWS, correct_answers, derived, draw, mean_metric, proportion, shares
from workbench.models.anatomy import head_shape
from workbench.models.attribution import attribution_grid
from workbench.models.patching import Cell, patch_grid
from workbench.models.sites import Site
from workbench.results import Evidence, Metric, Result
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair

EVERYWHERE = "everywhere"
"""The place of a patch of the whole prompt."""
METHODS = ("patched", "first_order")
NOTICED = 0.01
"""Share of the difference between the prompts that an effect must have by either method to be ranked: below is noise."""


class PatchingSettings(Settings):
    """Settings of `patching`."""

    capability: Literal["pt", "ft"] = Field("pt", description="whose prompts: the ability that may be lost, or the trained one")
    n: int = Field(128, ge=16, description="prompts, each with its counterfactual")
    positions: int = Field(32, ge=1, description="positions of a text, at most; evenly spaced, the last one among them")


@analysis(
    version=2,
    holds=800,
    n=128,
    paper="Vig+20 2004.12265; Meng+22 2202.05262; Zhang+24 2309.16042",
    group="patching",
    uses=("revived",),
    passes=470,
)
def patching(pair: Pair, settings: PatchingSettings) -> Result:
    """Effects of single activations of the counterfactual run, in base, tuned and revived model [Vig+20; Meng+22; 2309.16042].

    A counterfactual is the same question about a text that is edited as little as possible to another answer. One site's
    activation at one place (or at all: `everywhere`) is taken from the run on it. The read-out is LD = logit of the
    counterfactual's answer - logit of the right one; an effect is (LD patched - LD) / (LD counterfactual - LD), a ratio of
    means: 0 nothing, 1 all. Below a difference of `FLOOR` logits it is undefined, and so it is (`changed` = 0) where a patch
    puts in what was there or what no answer can see.

    `table`: effects by model (`change`: tuned minus base on the same prompts), component and place. Sites are the stream
    that a block is given, what its attention writes, each head, and its MLP. Method `patched` is exact; `first_order` is the
    estimate (counterfactual - own activation) . dLD/d activation [2310.10348]. `changed`: in which share of the prompts a
    patch changed anything. `gaps`: LD on both prompts, also of models without the ability. `largest`: the head or MLP and
    place whose effect changed most on split `select`, with its effects on the test prompts.

    `largest_change`: the size of that change on the test prompts, negative where its sign is not that of `select` (so signs do
    not cancel over seeds). `heads_*`, `mlps_*`: sums of the effects of single heads, of single MLPs, at the position that
    answers. `rank_*`: rank correlation of the two methods over cells of an effect of at least `NOTICED`. `told_apart_*`: the
    denominators. `base_pt`, `tuned_pt`: accuracy on O_PT.
    """
    base = alike(pair)
    prompts, select = (draw_prompts(pair, settings.capability, settings.n, split) for split in ("test", "select"))
    sites = sites_of(base)
    places, at = places_of(pair, prompts.examples, settings.positions)
    cells = [Cell(site, at[:, i]) for site in sites for i in range(len(places))] + [Cell(site) for site in sites]
    named = [(site, place) for site in sites for place in places] + [(site, Place(EVERYWHERE, EVERYWHERE)) for site in sites]
    found = {name: _effects(model, prompts, cells, pair.seed) for name, model in pair.states.items()}
    chosen, sign = _largest(pair, select, sites, places, settings.positions)
    components = pd.DataFrame([_coordinates(site, place) for site, place in named])
    gaps = {name: prompts.gap(model) for name, model in _models(pair).items()}
    result = Result(
        name="patching",
        tables={
            "table": _table(components, found),
            "changed": _changed(components, found, settings.n),
            "gaps": _gaps(gaps, pair.seed),
            "largest": _where(components, found, chosen),
        },
        headline=tuple(_headline(pair, settings, named, found, gaps, (chosen, sign))),
        limits=(
            "What carries the difference between two prompts need not be where fine-tuning changed the model.",
            "Effects of single components do not add up: what one stops doing another may do, and some act only together.",
            "The contrast is one minimal edit of the text; other contrasts may run through other components.",
            "Models that were not trained from one another need not use the same head for the same thing.",
            f"Below {FLOOR:g} logit between the two prompts effects are undefined: such a model does not tell them apart.",
        ),
        settings=settings.model_dump(mode="json"),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def sites_of(model: PreTrainedModel) -> list[Site]:
    """Per block the stream that it is given, its attention, each head and its MLP."""
    blocks, heads = head_shape(model)
    found: list[Site] = []
    for b in range(blocks):
        found += [Site("stream", b), Site("attention", b), *(Site("head", b, h) for h in range(heads)), Site("mlp", b)]
    return found


def _models(pair: Pair) -> dict[str, PreTrainedModel]:
    never = {} if pair.never_had_it is None else {"never_had_it": pair.never_had_it}
    return {**pair.states, **never, "untrained": pair.untrained}


class _Found:
    """Effects of all cells in one model."""

    def __init__(self, exact: Effects, estimate: Effects, changed: np.ndarray) -> None:
        self.by_method = dict(zip(METHODS, (exact, estimate), strict=True))
        self.changed = changed
        """In how many prompts, `[cells]`."""


def _effects(model: PreTrainedModel, prompts: Prompts, cells: Sequence[Cell], seed: int) -> _Found:
    donor = prompts.donor(model)
    grid = patch_grid(model, prompts.examples, donor, cells, prompts.read)
    estimate = attribution_grid(model, prompts.examples, donor, cells, prompts.read).double().numpy()
    before, after = prompts.gap(model)
    exact = (grid.values - grid.plain).double().numpy()
    gap = after - before
    return _Found(Effects(exact, gap, seed), Effects(estimate, gap, seed), grid.rows_changed.numpy())


def _largest(pair: Pair, prompts: Prompts, sites: Sequence[Site], places: Sequence[Place], most: int) -> tuple[int, float]:
    """The cell of a head or an MLP whose effect changes most on prompts of split `select`: its number, and the change's sign."""
    here, at = places_of(pair, prompts.examples, most)
    assert [place.name for place in here] == [place.name for place in places]
    numbers: list[int] = []
    cells: list[Cell] = []
    for s, site in enumerate(sites):
        if site.kind in ("head", "mlp"):
            numbers += [s * len(places) + i for i in range(len(places))] + [len(sites) * len(places) + s]
            cells += [Cell(site, at[:, i]) for i in range(len(places))] + [Cell(site)]
    effects: list[np.ndarray] = []
    for model in (pair.base, pair.tuned):
        grid = patch_grid(model, prompts.examples, prompts.donor(model), cells, prompts.read)
        before, after = prompts.gap(model)
        # Also where shares are undefined a place must be named: there it is the change in logits.
        gap = float((after - before).mean())
        effects.append((grid.values - grid.plain).double().mean(1).numpy() / (gap if gap >= FLOOR else FLOOR))
    change = effects[1] - effects[0]
    most_changed = int(np.abs(change).argmax())
    return numbers[most_changed], float(np.copysign(1, change[most_changed]))


def _coordinates(site: Site, place: Place) -> dict[str, object]:
    return {"component": str(site), "kind": site.kind, "block": site.block, "place": place.name, "role": place.role}


def _table(components: pd.DataFrame, found: dict[str, _Found]) -> pd.DataFrame:
    frames: list[pd.DataFrame] = []
    for method in METHODS:
        values: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, effects in found.items():
            value, drawn = effects.by_method[method].shares()
            silent = effects.changed == 0
            values[name] = np.where(silent, np.nan, value), np.where(silent, np.nan, drawn)
        (after, after_drawn), (before, before_drawn) = values["tuned"], values["base"]
        values["change"] = after - before, after_drawn - before_drawn
        for name, (value, drawn) in values.items():
            n = len(found["base"].by_method[method].gap)
            frames.append(components.assign(model=name, method=method, **effect_columns(value, drawn, n)))
    return pd.concat(frames, ignore_index=True)


def _changed(components: pd.DataFrame, found: dict[str, _Found], n: int) -> pd.DataFrame:
    frames = [components.assign(model=name, value=effects.changed / n) for name, effects in found.items()]
    return pd.concat(frames, ignore_index=True).assign(n=n, unit="share of the prompts")


def _gaps(gaps: dict[str, Float[np.ndarray, "two n"]], seed: int) -> pd.DataFrame:
    rows: list[dict[str, object]] = []
    for name, (before, after) in gaps.items():
        for what, values in (("prompt", before), ("counterfactual", after), ("difference", after - before)):
            low, high = np.percentile(bootstrap_mean(values, DRAWS, seed), [2.5, 97.5])
            row = {"value": float(values.mean()), "low": float(low), "high": float(high), "n": len(values), "unit": "logits"}
            rows.append({"model": name, "of": what, **row})
    return pd.DataFrame(rows)


def _where(components: pd.DataFrame, found: dict[str, _Found], chosen: int) -> pd.DataFrame:
    row = components.iloc[[chosen]].reset_index(drop=True)
    return row.assign(**{name: float(effects.by_method["patched"].shares()[0][chosen]) for name, effects in found.items()})


def _headline(
    pair: Pair,
    settings: PatchingSettings,
    named: Sequence[tuple[Site, Place]],
    found: dict[str, _Found],
    gaps: dict[str, Float[np.ndarray, "two n"]],
    chosen: tuple[int, float],
) -> list[Metric]:
    at_request = np.array([place.name == REQUEST for _, place in named])
    kinds = np.array([site.kind for site, _ in named])
    exact = {name: effects.by_method["patched"] for name, effects in found.items()}
    (before, before_drawn), (after, after_drawn) = (exact[name].shares() for name in ("base", "tuned"))
    cell, sign = chosen
    change, drawn = sign * float((after - before)[cell]), sign * (after_drawn - before_drawn)[:, cell]
    out = [derived("largest_change", change, drawn, settings.n, "share of the effect")]
    for name, effects in exact.items():
        out += [effects.total(f"{kind}s_{name}", at_request & (kinds == kind)) for kind in ("head", "mlp")]
        out.append(_rank(f"rank_{name}", found[name], pair.seed))
        out.append(mean_metric(f"told_apart_{name}", gaps[name][1] - gaps[name][0], pair.seed, "logits"))
    examples = draw(pair, pair.capability, shares(pair, pair.capability)[0], settings.n)
    for name, model in (("base", pair.base), ("tuned", pair.tuned)):
        out.append(proportion(f"{name}_pt", correct_answers(model, examples), pair.seed))
    return out


def _rank(name: str, found: _Found, seed: int) -> Metric:
    """Spearman's correlation of both methods over the cells that either of them gives an effect of `NOTICED`."""
    both = [found.by_method[method] for method in METHODS]
    size = np.abs([effects.change.mean(1) for effects in both]).max(0)
    exact, estimate = (effects.change[size >= NOTICED * abs(both[0].gap.mean())] for effects in both)

    def ranks(x: Float[np.ndarray, "*rest cells"]) -> Float[np.ndarray, "*rest cells"]:
        placed = x.argsort(-1).argsort(-1).astype(np.float64)
        placed -= placed.mean(-1, keepdims=True)
        return placed / np.maximum(np.linalg.norm(placed, axis=-1, keepdims=True), 1e-12)

    drawn = [ranks(bootstrap_mean(x.T, DRAWS, seed)) for x in (exact, estimate)]
    value = float((ranks(exact.mean(1)) * ranks(estimate.mean(1))).sum()) if len(exact) > 2 else np.nan
    return derived(name, value, (drawn[0] * drawn[1]).sum(-1), exact.shape[1], "rank correlation")


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line that takes no side: where the difference is carried says nothing of what became of an ability."""
    return placed(result, "largest_change", _told)


def _told(found: Mapping[str, Metric], capability: str) -> str:
    return (
        f"Of the difference between prompts for {capability} and their counterfactuals the share of the component that was chosen "
        f"on other prompts changed by {found['largest_change'].value:.2f} in size; at the position that answers, effects of single "
        f"heads sum to {found['heads_base'].value:.2f} before and {found['heads_tuned'].value:.2f} after, of single MLPs to "
        f"{found['mlps_base'].value:.2f} and {found['mlps_tuned'].value:.2f}."
    )
