"""Behaviour when every matrix of a fine-tuning keeps, or loses, the first ranks of its change."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.measures import correct_answers, proportion_row
from workbench.models.matrices import Part, change
from workbench.models.spectra import random_part
from workbench.seeds import torch_generator

RANKS = (0, 1, 2, 4, 8, 16, 32, 64)
"""Ranks of each matrix that are kept or removed; in a model, those below its largest full rank, and that one."""
RANDOM_AT = (1, 4, 16)
"""Ranks at which random parts of the change are the control."""
DIRECTIONS = {"keep": "ft", "remove": "pt"}
"""And the ability that each is about, which is the one that the control measures."""

Correct = dict[tuple[str, int, str, int], np.ndarray]
"""`(direction, draw, role, k) -> 1.0 where right [n]`; draw 0 is the best approximation, others are random parts."""


class Ranks:
    """The models between the start and the tuned one whose matrices differ by some ranks of the change.

    Vectors (norms, biases) are the tuned ones in all of them, since they have no ranks: with rank 0 kept, they alone are tuned.
    """

    def __init__(self, start: PreTrainedModel, tuned: PreTrainedModel, parts: Sequence[Part], seed: int) -> None:
        self.seed, self.work = seed, copy.deepcopy(tuned)
        matrices = [part for part in parts if part.is_matrix]
        self.changes = [change(part, start, tuned) for part in matrices]
        self.factors = [torch.linalg.svd(step, full_matrices=False) for step in self.changes]
        self.start, self.tuned, self.made = ([part.of(m).detach() for part in matrices] for m in (start, tuned, self.work))

    @property
    def grid(self) -> tuple[int, ...]:
        """`RANKS` below the largest full rank of a matrix, and that rank."""
        full = max(min(step.shape) for step in self.changes)
        return (*(k for k in RANKS if k < full), full)

    @torch.no_grad()
    def model(self, direction: str, k: int, draw: int = 0) -> PreTrainedModel:
        """One of them; the next call overwrites it. At rank 0 and at full rank no weight is computed, only copied."""
        generator = torch_generator(self.seed, "random ranks", draw) if draw else None
        for index, made in enumerate(self.made):
            made.copy_(self._weights(index, direction, k, generator))
        return self.work

    def _weights(self, index: int, direction: str, k: int, generator: torch.Generator | None) -> Tensor:
        start, tuned, step = self.start[index], self.tuned[index], self.changes[index]
        if k == 0:
            return start if direction == "keep" else tuned
        if k >= min(step.shape):
            return tuned if direction == "keep" else start
        u, s, vh = self.factors[index]
        some = (u[:, :k] * s[:k]) @ vh[:k] if generator is None else random_part(step, k, float(s[:k].norm()), generator)
        some = some.to(start.device)
        return start.double() + some if direction == "keep" else tuned.double() - some


def rank_test(ranks: Ranks, sets: Mapping[str, Examples], draws: int, few: int) -> tuple[Correct, tuple[int, ...]]:
    """Right answers on all sets for every direction and rank, and for random parts on the set that a direction is about.

    Args:
        ranks: the models.
        sets: by role, `pt` and `ft`.
        draws: of random parts.
        few: texts for these.

    Returns:
        Right answers, and the ranks that were tried.
    """
    tried = ranks.grid
    found: Correct = {}
    for direction, about in DIRECTIONS.items():
        for k in tried:
            # To remove all ranks is to keep none, and the other way round.
            twin = {0: tried[-1], tried[-1]: 0}.get(k) if direction == "remove" else None
            model = ranks.model(direction, k) if twin is None else None
            for role, examples in sets.items():
                right = found["keep", 0, role, twin] if twin is not None else correct_answers(model, examples)
                found[direction, 0, role, k] = right
        for draw in range(1, draws + 1):
            for k in (k for k in RANDOM_AT if k < tried[-1]):
                found[direction, draw, about, k] = correct_answers(ranks.model(direction, k, draw), sets[about][:few])
    return found, tried


def rank_rows(correct: Correct, before: Mapping[str, np.ndarray], coordinates: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Accuracies of a rank test, and those of the start (`direction` is `start`).

    `coordinates` has by role what a row says of its ability.
    """
    every = {**correct, **{("start", 0, role, 0): right for role, right in before.items()}}
    rows = [
        {"direction": direction, "ranking": "random" if draw else "leading", "draw": draw, "k": k, "role": role}
        | {**coordinates[role], **proportion_row(right)}
        for (direction, draw, role, k), right in every.items()
    ]
    return pd.DataFrame(rows)
