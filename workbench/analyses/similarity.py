"""How alike the models' residual streams are at each place of the prompt: linear CKA and orthogonal Procrustes, with floors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from workbench.analyses._places import REQUEST, Place
from workbench.analyses._prompts import places_of
from workbench.analyses._similarity import MEASURES, Similar, biased_cka, centred, cka
from workbench.analysis import Settings, analysis
from workbench.errors import UserError
from workbench.examples import Examples
from workbench.measures import DRAWS, correct_answers, derived, draw, proportion, role_of, shares
from workbench.models.anatomy import blocks
from workbench.models.steering import streams_at
from workbench.results import Direction, Evidence, Metric, Result
from workbench.seeds import numpy_generator
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair
from workbench.verdict import ROOM

COMPARED = (
    ("base", "tuned"),
    ("base", "revived"),
    ("tuned", "revived"),
    ("base", "another_seed"),
    ("base", "never_had_it"),
    ("base", "untrained"),
)
"""Models that are held against each other, where the pair has both."""
SHUFFLES = 10
"""Random orders of the texts behind each floor."""
SMALLEST = 32
"""Texts at which the table of sizes begins; it doubles from there."""
VARIES = 1e-4
"""A stream whose entries spread less than this, relative to their size, is the same on all texts but for rounding."""


class SimilaritySettings(Settings):
    """Settings of `similarity`."""

    n: int | None = Field(None, ge=32, description="texts; the pair's own number when empty")
    text_positions: int = Field(6, ge=1, description="positions of the text, evenly spaced, at most")


@analysis(
    version=1,
    holds=1000,
    paper="Kornblith+19 1905.00414; Williams+21 2110.14739; Davari+22 2210.16156",
    group="representations",
    uses=("revived", "siblings"),
    passes=20,
)
def similarity(pair: Pair, settings: SimilaritySettings) -> Result:
    """Similarity of two models' residual streams on the same prompts, per residual point and place of the prompt.

    `cka`: linear CKA [Kornblith+19] with unbiased HSIC, so that independent representations score 0 at any number of texts; the
    first, biased definition scores about width / texts there (table `sizes` has both, by number of texts). `procrustes`:
    |x'y|_* / (|x| |y|) = 1 - d^2 / 2, where d is the distance of the two, scaled to norm 1, after the best rotation; the cosine of
    the shape metric of [Williams+21]. Both are 1 where one stream is a rotated and scaled copy of the other.

    `comparison`: models of the pair on the same texts (C_Te = 0), asked for O_PT and for O_FT. Ceiling: `base-another_seed`, two
    models that were trained alike from other random weights. Floors: `shuffled`, base and tuned model on different texts (mean
    and range of `SHUFFLES` orders), and `base-untrained`. Intervals are bootstrapped over texts to first order: exact
    leave-one-outs (`cka`), derivatives by the texts' weights (`procrustes`).

    The headline is read where the answer is predicted, after the last block, asked for O_PT; `back` = base-revived less
    base-tuned, on the same texts. The analysis `along` follows it through a training.

    Does not show whether an ability survived: streams may move in directions that no answer depends on, and an answer may
    change by one direction that hardly shows in either number.
    """
    n = settings.n or pair.n
    models = _models(pair)
    found: list[Found] = []
    floors: list[dict[str, Any]] = []
    last: Streams = {}
    for capability in dict.fromkeys((pair.capability, pair.tuned_on)):
        examples = draw(pair, capability, shares(pair, capability)[0], n)
        reading = _read(pair, capability, models, examples, settings.text_positions)
        if capability == pair.capability:
            last = reading.at_answer()
        for at, streams in reading.cells(role_of(pair, capability)):
            found += [({**at, **key}, similar) for key, similar in _compare(streams)]
            floors += [{**at, **row, "n": n, "unit": "similarity"} for row in _floors(streams, pair.seed)]
        del reading  # before the next is made: it is all that takes memory
    asked = draw(pair, pair.capability, shares(pair, pair.capability)[0], n)
    known = {name: correct_answers(model, asked) for name, model in (("base", pair.base), ("tuned", pair.tuned))}
    result = Result(
        name="similarity",
        tables={
            "table": pd.concat([_rows(found, pair.seed), pd.DataFrame(floors)], ignore_index=True),
            "sizes": _sizes(last, pair.seed),
        },
        headline=(
            *_headline(last, pair.seed),
            *(proportion(f"{name}_pt", right, pair.seed) for name, right in known.items()),
        ),
        limits=(
            "Both numbers follow the directions of largest variance: a change that flips every answer may hardly show, and a few "
            "texts that move far may show as much as all that move [Davari+22].",
            "An offset that is the same on all texts is taken off with the mean: a wrapper that adds one changes neither number.",
            "Late streams hold the answer: models that answer alike look alike there, also where they share no weights.",
            "Procrustes similarity of unrelated streams is above 0 and falls with the number of texts: read it against `shuffled`.",
            "Where a model's stream does not vary between texts there is nothing to compare; such places are left out or empty.",
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


Key = dict[str, Any]
Found = tuple[Key, Similar]
"""The coordinates of a row, and what it shows."""
Streams = Mapping[str, Float[np.ndarray, "n d"]]
"""Model -> centred activations at one point and place."""


@dataclass(frozen=True)
class Reading:
    """Residual streams of all models on the same prompts of one ability."""

    capability: str
    streams: Mapping[str, Float[Tensor, "points n k d"]]
    places: Sequence[Place]
    varying: Sequence[int]
    """Columns at which the base's stream differs between texts at some point; elsewhere nothing can be compared."""

    def cells(self, role: str) -> Iterator[tuple[Key, Streams]]:
        """Every point and place: its coordinates, and the models' activations there."""
        for point in range(len(self.streams["base"])):
            for column in self.varying:
                place = self.places[column]
                at = {"asked": self.capability, "role": role, "point": point}
                at |= {"order": column, "place": place.name, "part": place.role}
                yield at, self._centred(point, column)

    def at_answer(self) -> Streams:
        """After the last block where the answer is predicted."""
        return self._centred(-1, [place.name for place in self.places].index(REQUEST))

    def _centred(self, point: int, column: int) -> Streams:
        return {name: centred(x[point, :, column].numpy()) for name, x in self.streams.items()}


def _models(pair: Pair) -> dict[str, PreTrainedModel]:
    """All models that the pair has, by name.

    Raises:
        UserError: they differ in their number of blocks.
    """
    models = {**pair.states, "untrained": pair.untrained}
    if pair.never_had_it is not None:
        models["never_had_it"] = pair.never_had_it
    elsewhere = [name for name, (base, _) in pair.siblings.items() if base != pair.base_path]
    if elsewhere:
        models["another_seed"] = pair.sibling(elsewhere[0])[0]
    depths = {name: len(blocks(model)) for name, model in models.items()}
    if len(set(depths.values())) > 1:
        told = ", ".join(f"{name} {depth}" for name, depth in depths.items())
        raise UserError(
            f"the models of pair {pair.name!r} differ in their number of blocks ({told}): no point is in all of them."
        )
    return models


def _read(pair: Pair, capability: str, models: Mapping[str, PreTrainedModel], examples: Examples, most: int) -> Reading:
    places, at = places_of(pair, examples, most)
    streams = {name: streams_at(model, examples, at).float() for name, model in models.items()}
    base = streams["base"]
    spread, size = base.std(1, correction=0).amax(-1), base.abs().mean((1, 3))
    varying = (spread > VARIES * size).any(0).nonzero().flatten().tolist()
    return Reading(capability, streams, places, varying)


def _compare(streams: Streams) -> list[Found]:
    """Both measures of all comparisons."""
    return [
        ({"comparison": f"{one}-{other}", "measure": measure}, similar(streams[one], streams[other]))
        for one, other in COMPARED
        if {one, other} <= set(streams)
        for measure, similar in MEASURES.items()
    ]


def _floors(streams: Streams, seed: int) -> list[Key]:
    """Base and tuned model on different texts: mean and range over orders."""
    base, tuned = streams["base"], streams["tuned"]
    rows: list[Key] = []
    for measure, similar in MEASURES.items():
        rng = numpy_generator(seed, "similarity", "orders")
        values = [similar(base, tuned[_deranged(len(tuned), rng)]).value for _ in range(SHUFFLES)]
        ends = {"value": float(np.mean(values)), "low": min(values), "high": max(values)}
        rows.append({"comparison": "shuffled", "measure": measure, **ends})
    return rows


def _deranged(n: int, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """A random order in which no text keeps its place: one long cycle."""
    order = rng.permutation(n)
    out = np.empty(n, dtype=np.int64)
    out[order] = np.roll(order, 1)
    return out


def _draws(found: Sequence[Similar], seed: int) -> Float[np.ndarray, "draws k"]:
    """Similarities on resampled texts, none above 1; the same texts for all."""
    influence = np.stack([similar.influence for similar in found], axis=1)
    return np.minimum([similar.value for similar in found] + bootstrap_mean(influence, DRAWS, seed), 1.0)


def _rows(found: Sequence[Found], seed: int) -> pd.DataFrame:
    similar = [one for _, one in found]
    low, high = np.percentile(_draws(similar, seed), [2.5, 97.5], axis=0)
    ends = {"value": [one.value for one in similar], "low": low, "high": high, "n": len(similar[0].influence)}
    return pd.DataFrame([key for key, _ in found]).assign(**ends, unit="similarity")


def _headline(last: Streams, seed: int) -> list[Metric]:
    found = _compare(last)
    n = len(last["base"])
    names = [f"{key['measure']}_{key['comparison']}".replace("-", "_") for key, _ in found]
    values, draws = [similar.value for _, similar in found], _draws([similar for _, similar in found], seed)
    known = {name: (value, draws[:, i]) for i, (name, value) in enumerate(zip(names, values, strict=True))}
    for measure in MEASURES if "revived" in last else ():
        (after, some), (before, others) = known[f"{measure}_base_revived"], known[f"{measure}_base_tuned"]
        known[f"{measure}_back"] = after - before, some - others
    out = [derived(name, value, draws, n, "similarity") for name, (value, draws) in known.items()]
    for row in _floors(last, seed):
        out.append(Metric(f"{row['measure']}_shuffled", row["value"], row["low"], row["high"], n, "similarity"))
    return out


def _sizes(last: Streams, seed: int) -> pd.DataFrame:
    """What the number of texts does to both estimators of CKA, for base and tuned model on the same and on different texts."""
    base, tuned = last["base"], last["tuned"]
    counts = [SMALLEST * 2**i for i in range(32) if SMALLEST * 2**i < len(base)] + [len(base)]
    rows: list[Key] = []
    for count in counts:
        rng = numpy_generator(seed, "similarity", "sizes")
        orders = {"base-tuned": [np.arange(count)], "shuffled": [_deranged(count, rng) for _ in range(SHUFFLES)]}
        x, y = centred(base[:count]), centred(tuned[:count])
        for comparison, order in orders.items():
            for estimator, measure in (("unbiased", lambda a, b: cka(a, b).value), ("biased", biased_cka)):
                at = {"comparison": comparison, "estimator": estimator, "texts": count}
                value = float(np.mean([measure(x, y[shuffled]) for shuffled in order]))
                rows.append({**at, "value": value, "n": count, "unit": "similarity"})
    return pd.DataFrame(rows).assign(low=math.nan, high=math.nan)


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line that takes no side; uninformative where nothing was lost, or random weights look like the base."""
    found = {m.metric: m for m in result.headline}
    tuned, untrained = found["cka_base_tuned"], found["cka_base_untrained"]
    base, now = found["base_pt"], found["tuned_pt"]
    capability = result.provenance.get("capability", "O_PT")
    others = [
        f"{name} {found[key].value:.2f}"
        for key, name in (
            ("cka_base_revived", "revived"),
            ("cka_base_another_seed", "the base of another seed"),
            ("cka_base_never_had_it", "a model that never had it"),
            ("cka_base_untrained", "random weights"),
        )
        if key in found
    ]
    told = (
        f"Where {capability} is answered, the tuned model's last stream has CKA {tuned.value:.2f} with the base's "
        f"({', '.join(others)})"
    )
    direction: Direction = "uninformative"
    if base.value - now.value < ROOM:
        text = f"{told}, and the tuned model is within {ROOM} of the base on {capability}: no loss to compare it with."
    elif untrained.value > 1 - ROOM:
        text = f"{told}: random weights are as near as can be, so the number has no room to say anything."
    else:
        direction = "neutral"
        text = (
            f"{told}, while its accuracy went from {base.value:.2f} to {now.value:.2f}: this says how far it moved, not whether "
            "the ability survived."
        )
    return (Evidence(result.name, tuned.metric, tuned.value, tuned.low, tuned.high, tuned.n, direction, text, capability),)
