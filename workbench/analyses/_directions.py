"""Mean-difference directions: random ones of equal norm, a map between two residual bases, and those of other fine-tunes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from transformers import PreTrainedModel

from workbench.errors import UserError
from workbench.examples import Examples
from workbench.measures import DRAWS, derived, draw, other_texts, shares
from workbench.models.spectra import random_cosine
from workbench.models.steering import answer_streams
from workbench.results import Metric
from workbench.seeds import numpy_generator
from workbench.statistics import bootstrap_mean, resampling
from workbench.subjects import Pair

NOTHING = 1e-6
"""What varies by less than this share of its norm is rounding (float32 activations)."""
ANOTHER_SEED = "another seed"
FOR_REVIVED, FOR_SIBLING = "for the revived", "for the fine-tune"
"""A model without the ability takes the place of the revived one, or of another fine-tune of the same base."""
RANDOM_RANGE = "random, 95 %"


def length(vectors: Float[np.ndarray, "*rest d"]) -> Float[np.ndarray, "*rest 1"]:
    """Euclidean norms, with a last axis of one."""
    return np.linalg.norm(vectors, axis=-1, keepdims=True)


def unit(vectors: Float[np.ndarray, "*rest d"]) -> Float[np.ndarray, "*rest d"]:
    """Vectors of length 1; zero vectors stay zero."""
    norms = length(vectors)
    return vectors / np.where(norms > 0, norms, 1)


def random_units(seed: int, count: int, width: int) -> Float[np.ndarray, "count d"]:
    """Directions drawn uniformly from the sphere."""
    return unit(numpy_generator(seed, "random directions").standard_normal((count, width)))


def cosine(a: Float[np.ndarray, "*rest d"], b: Float[np.ndarray, "*rest d"]) -> Float[np.ndarray, "*rest"]:
    """Cosines along the last axis, NaN for zero vectors."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(-1) / (length(a) * length(b))[..., 0])


def procrustes(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"] | None:
    """The orthogonal Q that brings centred `x @ Q` nearest to centred `y`; None where either does not vary."""
    a, b = x - x.mean(0), y - y.mean(0)
    if any(np.linalg.norm(c) <= NOTHING * np.linalg.norm(raw) for c, raw in ((a, x), (b, y))):
        return None
    left, _, right = np.linalg.svd(a.T @ b)
    return left @ right


def fit_of(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"], q: Float[np.ndarray, "d d"]) -> float:
    """Share of the variance of `y` that `x @ q` explains; to be taken on texts that q was not fitted to. May be negative."""
    a, b = x - x.mean(0), y - y.mean(0)
    return 1 - float(((b - a @ q) ** 2).sum() / (b**2).sum())


def mean_draws(values: Float[np.ndarray, "points n d"], seed: int) -> Float[np.ndarray, "points draws d"]:
    """Means over resampled examples: the same ones at every point, and in every call with this seed and number of them."""
    return resampling(values.shape[1], DRAWS, seed) @ values


def random_draws(correct: Float[np.ndarray, "directions n"], seed: int) -> Float[np.ndarray, " draws"]:
    """Draws of the mean over random directions, on the resampled examples of `seed`; the directions are resampled as well."""
    each = np.stack([bootstrap_mean(row, DRAWS, seed) for row in correct], axis=1)
    picked = numpy_generator(seed, "which directions").integers(0, len(correct), size=each.shape)
    return np.take_along_axis(each, picked, axis=1).mean(axis=1)


Changes = Float[np.ndarray, "points n d"]
"""What one model has in the residual stream at the answer less what another has, per residual point and text."""


def streams(model: PreTrainedModel, examples: Examples) -> Changes:
    """The residual stream at the answer, in float64."""
    return answer_streams(model, examples).numpy()


@dataclass(frozen=True)
class Foreign:
    """The change of another fine-tune, or on other prompts."""

    change: Changes
    """In the basis of our base; NaN at points where no map to it is defined."""
    same_texts: bool
    unmapped: Changes | None = None
    """In its own basis, where that is another one."""
    fit: Float[np.ndarray, " points"] | None = None
    """How well the map fits on texts that it was not fitted to."""


def foreign_changes(pair: Pair, learn: Examples, base: Changes) -> dict[str, list[Foreign]]:
    """Changes of other fine-tunes on the texts of `learn`, and of this one on prompts of other families.

    A fine-tune of another base is mapped by the orthogonal matrix that fits that base's stream to ours, per residual point,
    on O_PT texts of split `select`. All those of other seeds have one name, for seeds to be pooled.

    Args:
        pair: with siblings.
        learn: O_PT texts on which directions are estimated.
        base: stream of our base on them.
    """
    found: dict[str, list[Foreign]] = {}
    for name in pair.others:
        asked = draw(pair, name, shares(pair, name)[0], len(learn), "score")
        change = streams(pair.tuned, asked) - streams(pair.base, asked)
        found[f"other family: {name}"] = [Foreign(change, same_texts=False)]
    fitted = draw(pair, pair.capability, shares(pair, pair.capability)[0], len(learn), "select")
    ours: Changes | None = None
    for name, (base_path, _) in pair.siblings.items():
        their_base, their_tuned = pair.sibling(name)
        their = streams(their_base, learn)
        if their.shape != base.shape:
            raise UserError(f"sibling {name!r} of pair {pair.name!r} has a residual stream of another size; leave it out.")
        change = streams(their_tuned, learn) - their
        if base_path == pair.base_path:
            found[f"same base: {name}"] = [Foreign(change, same_texts=True)]
            continue
        ours = streams(pair.base, fitted) if ours is None else ours
        maps = [procrustes(x, y) for x, y in zip(streams(their_base, fitted), ours, strict=True)]
        undefined = np.full(change.shape[1:], np.nan)
        mapped = np.stack([undefined if q is None else c @ q for c, q in zip(change, maps, strict=True)])
        fits = [math.nan if q is None else fit_of(x, y, q) for x, y, q in zip(their, base, maps, strict=True)]
        found.setdefault(ANOTHER_SEED, []).append(Foreign(mapped, True, change, np.array(fits)))
    return found


Compared = Mapping[str, Mapping[str, Sequence[tuple[Float[np.ndarray, " points"], Float[np.ndarray, "points draws"]]]]]
"""Numbers and their draws at every residual point, by measure and by what the direction is held against."""


def compare(pair: Pair, learn: Examples, base: Changes, tuned: Changes, foreign: Mapping[str, Sequence[Foreign]]) -> Compared:
    """How long our direction is, and how it lies to those of other fine-tunes, other prompts and the revival.

    What ends at the base's mean or starts at the tuned model's shares a mean with our direction: means that have nothing to do
    with each other then give a cosine of -1/2 to the revival's and undo 1/2, and give 1/2 to a fine-tune of the same base. So
    the floor of these is what a model without the ability gives in place of the revived or of the other fine-tuned one.
    """
    change, own = tuned - base, mean_draws(tuned - base, pair.seed)
    r, size = change.mean(1), length(base)
    unrelated = other_texts(pair.seed, "other prompts")
    found: dict[str, dict[str, list[tuple[np.ndarray, np.ndarray]]]] = {
        "relative norm": {
            "base stream": [(length(r)[:, 0] / size.mean((1, 2)), (length(own) / mean_draws(size, pair.seed))[..., 0])]
        }
    }

    def add(measure: str, name: str, value: np.ndarray, draws: np.ndarray | None = None) -> None:
        repeated = np.repeat(value[:, None], DRAWS, axis=1) if draws is None else draws
        found.setdefault(measure, {}).setdefault(name, []).append((value, repeated))

    for name, several in foreign.items():
        for each in several:
            drawn = mean_draws(each.change, pair.seed if each.same_texts else unrelated)
            add("cosine", name, cosine(r, each.change.mean(1)), cosine(own, drawn))
            if each.unmapped is not None and each.fit is not None:
                drawn = mean_draws(each.unmapped, pair.seed)
                add("cosine, unmapped", name, cosine(r, each.unmapped.mean(1)), cosine(own, drawn))
                add("map fit", name, each.fit)
    without = {"never had it": pair.never_had_it, "untrained": pair.untrained}
    strange = {name: streams(model, learn) for name, model in without.items() if model is not None}
    if pair.revived is not None:
        ends = {"revival": streams(pair.revived, learn)} | {f"{FOR_REVIVED}: {name}": x for name, x in strange.items()}
        for name, end in ends.items():
            back = end - tuned
            drawn = mean_draws(back, pair.seed)
            add("cosine", name, cosine(r, back.mean(1)), cosine(own, drawn))
            with np.errstate(invalid="ignore", divide="ignore"):
                add("undone", name, -(r * back.mean(1)).sum(-1) / (r**2).sum(-1), -(own * drawn).sum(-1) / (own**2).sum(-1))
    if any(name.startswith(KINDS["same_base"]) for name in foreign):
        for name, end in strange.items():
            drawn = mean_draws(end - base, pair.seed)
            add("cosine", f"{FOR_SIBLING}: {name}", cosine(r, (end - base).mean(1)), cosine(own, drawn))
    add("cosine", RANDOM_RANGE, np.full(len(r), random_cosine(r.shape[-1])))
    return found


UNITS = {"relative norm": "share of the norm", "undone": "share of the direction", "map fit": "share of the variance"}


def rows_of(compared: Compared, n: int) -> list[dict[str, Any]]:
    """One row per measure, partner and residual point; several where several seeds share a name."""
    rows: list[dict[str, Any]] = []
    for measure, partners in compared.items():
        for name, several in partners.items():
            for values, draws in several:
                for point, (value, drawn) in enumerate(zip(values, draws, strict=True)):
                    m = derived(measure, float(value), drawn, n, UNITS.get(measure, "cosine"))
                    at = {"measure": measure, "with": name, "point": point}
                    rows.append({**at, "value": m.value, "low": m.low, "high": m.high, "n": n, "unit": m.unit})
    return rows


KINDS = {"same_base": "same base", "another_seed": ANOTHER_SEED, "other_family": "other family", "revival": "revival"}
"""Names of sources begin with these."""


def closeness(compared: Compared, point: int, n: int) -> list[Metric]:
    """Headline: the same at the chosen point, averaged over the sources of one kind."""
    out: list[Metric] = []

    def at(metric: str, measure: str, begins: str) -> None:
        several = [pair for name, found in compared.get(measure, {}).items() if name.startswith(begins) for pair in found]
        if several:
            value = float(np.mean([values[point] for values, _ in several]))
            out.append(
                derived(metric, value, np.mean([drawn[point] for _, drawn in several], axis=0), n, UNITS.get(measure, "cosine"))
            )

    at("relative_norm", "relative norm", "")
    for metric, begins in KINDS.items():
        at(f"cosine_{metric}", "cosine", begins)
    at("cosine_unmapped", "cosine, unmapped", "")
    at("cosine_random", "cosine", "random")
    at("map_fit", "map fit", "")
    at("undone_by_revival", "undone", "revival")
    for short, name in (("never", "never had it"), ("untrained", "untrained")):
        at(f"undone_by_{short}", "undone", f"{FOR_REVIVED}: {name}")
        at(f"cosine_revival_{short}", "cosine", f"{FOR_REVIVED}: {name}")
        at(f"cosine_same_base_{short}", "cosine", f"{FOR_SIBLING}: {name}")
    return out
