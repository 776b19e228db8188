"""Probes of labels at all places of a prompt and all residual points: fitted, tested, and held against the token alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from workbench.analyses._places import Place, find_places
from workbench.examples import Examples
from workbench.models.lens import residual_streams
from workbench.probes import fit_probes, is_uneven, standardised
from workbench.subjects import Pair

FINISHED = 1e-2
"""Largest gradient entry (nats per standard deviation) at which a fit counts as finished here. Going on to a tenth of it moved
accuracies by .002 on average over the cells of a map, and by .05 in the worst."""
CHUNK = 2**25
"""Probabilities (probes x examples x classes) that one fit holds at once."""
VARIES = 1e-4
"""A stream whose features spread less than this, relative to their size, is the same in all examples but for rounding."""
MEASURES = ("accuracy", "balanced accuracy")


@dataclass(frozen=True)
class Fit:
    """How probes are fitted."""

    places: int
    """Positions of the text, at most."""
    penalty: float
    iterations: int


@dataclass(frozen=True)
class Reading:
    """All probes of one label on one set of prompts."""

    target: str
    places: Sequence[Place]
    truth: Int[np.ndarray, " n"]
    right: Mapping[str, Bool[np.ndarray, "points k n"]]
    """By model."""
    token: Bool[np.ndarray, "k n"]
    """Where the best guess from the token at the place alone is right."""
    balanced: bool
    """Whether the classes of the training labels are uneven."""
    gradient: Float[np.ndarray, " probes"]

    @property
    def measure(self) -> str:
        """The one that fits the classes."""
        return MEASURES[self.balanced]


def read_labels(
    pair: Pair,
    models: Mapping[str, PreTrainedModel],
    train: Sequence[Examples],
    test: Sequence[Examples],
    labels: Mapping[str, tuple[np.ndarray, np.ndarray]],
    fit: Fit,
) -> list[Reading]:
    """Fit and test all probes of these labels; `train` and `test` are sets of prompts that follow one another.

    One model's activations are held at a time: `4 * points * places * (train + test) * width` bytes, twice while they are
    standardised. The probes of one label on one model are one problem, or as few as `CHUNK` allows.
    """
    laid = [[find_places(pair.task, part, fit.places) for part in parts] for parts in (train, test)]
    places = _common([found for parts in laid for found, _ in parts])
    at = [[where for _, where in parts] for parts in laid]
    tokens = [
        torch.cat([part.tokens.cpu().gather(1, where) for part, where in zip(parts, wheres, strict=True)]).numpy()
        for parts, wheres in zip((train, test), at, strict=True)
    ]
    kept: Tensor | None = None
    right: dict[str, dict[str, np.ndarray]] = {target: {} for target in labels}
    gradients: dict[str, list[np.ndarray]] = {target: [] for target in labels}
    for name, model in models.items():
        x, y = (_streams(model, parts, wheres) for parts, wheres in zip((train, test), at, strict=True))
        if kept is None:  # what no text can change in the base is the same in all examples of every model
            kept = (x.std(-2, correction=0).amax(-1) > VARIES * x.abs().mean((-2, -1))).any(0).nonzero().flatten()
        points = len(x)
        x, y = standardised(x[:, kept].flatten(0, 1), y[:, kept].flatten(0, 1))
        for target, (known, truth) in labels.items():
            hits, gradient = _probe(x, y, known, truth, fit)
            right[target][name] = hits.reshape(points, len(kept), -1)
            gradients[target].append(gradient)
    assert kept is not None
    columns = kept.tolist()
    return [
        Reading(
            target,
            [places[k] for k in columns],
            truth,
            right[target],
            np.stack([_guess(tokens[0][:, k], known, tokens[1][:, k]) == truth for k in columns]),
            is_uneven(known),
            np.concatenate(gradients[target]),
        )
        for target, (known, truth) in labels.items()
    ]


def _streams(model: PreTrainedModel, parts: Sequence[Examples], wheres: Sequence[Tensor]) -> Float[Tensor, "points k n d"]:
    """Residual streams at each part's positions, the parts one after the other."""
    found = [residual_streams(model, part, 128, positions=at) for part, at in zip(parts, wheres, strict=True)]
    return rearrange(torch.cat(found, dim=1), "points n k d -> points k n d")


def _common(found: Sequence[Sequence[Place]]) -> list[Place]:
    """The places of several sets of prompts as one; where tokens differ between the sets, the place has its number."""
    out: list[Place] = []
    for i, column in enumerate(zip(*found, strict=True)):
        out.append(column[0] if len(set(column)) == 1 else Place(f"token {i}", column[0].role))
    return out


def _probe(
    x: Float[Tensor, "p n d"], y: Float[Tensor, "p m d"], known: np.ndarray, truth: np.ndarray, fit: Fit
) -> tuple[Bool[np.ndarray, "p m"], Float[np.ndarray, " p"]]:
    """Right answers on the test activations, and gradients; as many probes at once as `CHUNK` allows."""
    width = len(np.unique(known))
    step = max(1, CHUNK // (len(known) * width))
    right: list[np.ndarray] = []
    gradient: list[np.ndarray] = []
    for start in range(0, len(x), step):
        part = x[start : start + step]
        labels = np.broadcast_to(known, (len(part), len(known)))
        probes = fit_probes(part, labels, fit.penalty, fit.iterations, FINISHED / 2)
        right.append(probes.predict(y[start : start + step]) == truth)
        gradient.append(probes.gradient)
    return np.concatenate(right), np.concatenate(gradient)


def _guess(seen: np.ndarray, labels: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The most frequent training label of each token; the most frequent of all for a token that training lacks."""
    values, counts = np.unique(labels, return_counts=True)
    best = {int(t): values[np.bincount(np.searchsorted(values, labels[seen == t])).argmax()] for t in np.unique(seen)}
    return np.array([best.get(int(t), values[counts.argmax()]) for t in tokens])
