"""What latents of a dictionary say: where in the prompt they are on, and which label tells when, beyond the place itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from workbench.seeds import numpy_generator

SHUFFLES = 20
"""Random orders behind each null: a label is named where it tells more than the best label of every one of them."""


@dataclass(frozen=True)
class Samples:
    """Positions of prompts, and what is known of them."""

    place: Int[np.ndarray, " s"]
    """Index of the part of the prompt."""
    prompt: Int[np.ndarray, " s"]
    """Which prompt a position belongs to."""
    of_position: Mapping[str, Int[np.ndarray, " s"]]
    """Labels that differ within a prompt, such as the token."""
    of_prompt: Mapping[str, Int[np.ndarray, " p"]]
    """Labels of whole prompts: the counts, and what is asked."""


@dataclass(frozen=True)
class Description:
    """What a latent is about."""

    place: int
    """Where it is on most often."""
    at_place: float
    """Share of its positions that lie there."""
    label: str
    """The label that tells most; empty where none tells more than shuffled ones."""
    label_value: int
    """The value of that label which is most over-represented at that place while the latent is on."""
    told: float
    """Share of the latent's entropy, given the place, that the best label explains, less what shuffled labels do."""
    null: float
    """The most that a best shuffled label told."""


def describe_latents(codes: Float[np.ndarray, "s j"], samples: Samples, seed: int) -> list[Description]:
    """A description of each latent: I(level; label | place) / H(level | place), level being off, weakly or strongly on.

    Token labels are shuffled among the positions of one part of the prompt, labels of prompts among prompts.
    """
    rng = numpy_generator(seed, "latent labels")
    names = [*samples.of_position, *samples.of_prompt]
    shuffled = [_values(samples, rng) for _ in range(SHUFFLES)]
    true = _values(samples, None)
    found: list[Description] = []
    for code in codes.T:
        on = code > 0
        level = np.where(on, 1 + (code > np.median(code[on])), 0) if on.any() else on.astype(np.int64)
        entropy = _entropy(samples.place, level) - _entropy(samples.place)
        null = np.array([[_told(samples.place, level, values[name], entropy) for name in names] for values in shuffled])
        told = np.array([_told(samples.place, level, true[name], entropy) for name in names]) - null.mean(0)
        best, most = int(told.argmax()), float((null - null.mean(0)).max())
        place = int(np.bincount(samples.place[on]).argmax()) if on.any() else 0
        here = samples.place == place
        surely = told[best] > max(most, 0.0)
        found.append(
            Description(
                place=place,
                at_place=float(here[on].mean()) if on.any() else 0.0,
                label=names[best] if surely else "",
                label_value=_typical(true[names[best]][here], on[here]) if surely else 0,
                told=max(float(told[best]), 0.0),
                null=max(most, 0.0),
            )
        )
    return found


def _values(samples: Samples, rng: np.random.Generator | None) -> dict[str, Int[np.ndarray, " s"]]:
    """All labels per position, in their own order or shuffled."""
    out: dict[str, np.ndarray] = {}
    for name, values in samples.of_position.items():
        order = np.arange(len(values))
        for place in np.unique(samples.place) if rng is not None else ():
            at = np.flatnonzero(samples.place == place)
            order[at] = rng.permutation(at) if rng is not None else at
        out[name] = values[order]
    for name, values in samples.of_prompt.items():
        out[name] = (values if rng is None else values[rng.permutation(len(values))])[samples.prompt]
    return out


def _entropy(*labels: Int[np.ndarray, " s"]) -> float:
    """Joint entropy in nats."""
    key = np.zeros(len(labels[0]), dtype=np.int64)
    for values in labels:
        key = key * (int(values.max()) - int(values.min()) + 1) + (values - values.min())
    share = np.bincount(key) / len(key)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


def _told(place: np.ndarray, level: np.ndarray, label: np.ndarray, entropy: float) -> float:
    """I(level; label | place) as a share of H(level | place)."""
    if entropy <= 1e-12:
        return 0.0
    left = _entropy(place, label, level) - _entropy(place, label)
    return 1 - left / entropy


def _typical(values: Int[np.ndarray, " h"], on: Bool[np.ndarray, " h"]) -> int:
    """The value whose share grows most from all positions to those where the latent is on."""
    distinct, index = np.unique(values, return_inverse=True)
    share = np.bincount(index[on], minlength=len(distinct)) / on.sum() - np.bincount(index) / len(index)
    return int(distinct[share.argmax()])
