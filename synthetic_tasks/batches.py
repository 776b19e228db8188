"""Batches as a pure function of (seed, settings, step), generated many steps at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from synthetic_tasks.families import Family
from synthetic_tasks.pcfg import PcfgTask
from workbench.examples import Correlation, Examples
from workbench.seeds import numpy_generator

CHUNK_EXAMPLES = 2048
"""Examples generated at once: enough to hide the cost of array calls, few enough to stay in cache."""


@runtime_checkable
class Source(Protocol):
    """A distribution of prompts with answers."""

    @property
    def families(self) -> tuple[Family, ...]:
        """Families that its prompts can belong to."""
        ...

    @property
    def asks(self) -> frozenset[str]:
        """Capabilities that its prompts can ask for."""
        ...

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Int[Tensor, "n t"], Int[np.ndarray, " n"]]:
        """Sequences, and the token ids of their answers."""
        ...


@dataclass(frozen=True)
class Mixture:
    """Families uniformly, operands by a prior over terminals, texts balanced for their own family or natural."""

    task: PcfgTask
    families: tuple[Family, ...]
    prior: tuple[float, ...]
    balanced_fraction: float

    @property
    def asks(self) -> frozenset[str]:
        """Every family with every operand of positive probability."""
        # A family without operand has one capability, whatever the operand that is drawn for it.
        return frozenset(f.capabilities[min(i, len(f.capabilities) - 1)] for f in self.families for i in self._operands[0])

    @cached_property
    def _operands(self) -> tuple[np.ndarray, np.ndarray]:
        """Operands of positive probability, and the inner ends of their probability intervals.

        The impossible ones are left out, so that no rounding can ever show an operand that must stay unseen.
        """
        possible = np.flatnonzero(self.prior)
        return possible, np.cumsum(np.array(self.prior)[possible])[:-1]

    @cached_property
    def _prompts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids: of the families [f], of the operands [f, terminals], of the numbers [f]."""
        return (
            np.array([family.token_id for family in self.families]),
            np.stack([family.operand_ids for family in self.families]),
            np.array([family.number_id for family in self.families]),
        )

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Int[Tensor, "n t"], Int[np.ndarray, " n"]]:
        """Sequences, and the token ids of their answers."""
        possible, ends = self._operands
        family = rng.integers(len(self.families), size=n)
        operand = possible[np.searchsorted(ends, rng.random(n), side="right")]
        balanced = rng.random(n) < self.balanced_fraction
        texts = self.task.natural_texts(n, rng)
        answer = np.empty(n, dtype=np.int64)
        for i, member in enumerate(self.families):
            of_member = family == i
            edited = np.flatnonzero(of_member & balanced)
            if member.recipe is not None and len(edited):
                texts[edited] = member.recipe.balance(texts[edited], (1, 0), rng)
            rows = np.flatnonzero(of_member)
            answer[rows] = member.answer(member.label(texts[rows], operand[rows]))
        families, operands, numbers = self._prompts
        sequences = self.task.layout.sequences(families[family], operands[family, operand], numbers[family], texts, answer)
        return sequences, answer


@dataclass(frozen=True)
class Single:
    """One prompt; texts of pretraining or with a correlation; true answers, those of another operand, or random wrong ones."""

    task: PcfgTask
    family: Family
    operand: int
    balanced_fraction: float
    correlation: Correlation | None = None
    answers: int | str | None = None
    """None: the truth. An integer: the label of that operand. `random`: any class but the true one."""

    @property
    def families(self) -> tuple[Family, ...]:
        """The one family."""
        return (self.family,)

    @property
    def asks(self) -> frozenset[str]:
        """The one capability."""
        return frozenset([self.family.capabilities[self.operand]])

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Int[Tensor, "n t"], Int[np.ndarray, " n"]]:
        """Sequences, and the token ids of their answers."""
        family, task = self.family, self.task
        if self.correlation is not None:
            texts, _ = task.correlated_texts(n, self.correlation, rng)
        else:
            texts = task.mixed_texts(n, family, self.balanced_fraction, rng)
        asked = self.answers if isinstance(self.answers, int) else self.operand
        answer = family.answer(family.label(texts, asked))
        if self.answers == "random":
            truth = np.searchsorted(family.answer_ids, answer)
            wrong = rng.integers(len(family.answer_ids) - 1, size=n)
            answer = family.answer_ids[wrong + (wrong >= truth)]
        operand = int(family.operand_ids[self.operand])
        return task.layout.sequences(family.token_id, operand, family.number_id, texts, answer), answer


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of a source; a `workbench.protocols.TrainingProtocol`.

    Whole chunks of steps are generated at once and the last one is kept, so asking in order is fast; what a step gives does
    not depend on the order. Batches are views of the chunk: do not change them in place. They carry no labels or roles.
    """

    task: PcfgTask
    batch_size: int
    seed: int
    stream: str
    """Names the random stream, so that protocols of one seed do not share texts."""
    source: Source
    whole_sequence: bool = False
    """Loss on every token after the first, instead of on the answer alone."""
    _last: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def asks(self) -> frozenset[str]:
        """Capabilities that the source's prompts can ask for."""
        return self.source.asks

    @cached_property
    def _steps(self) -> int:
        return max(1, CHUNK_EXAMPLES // self.batch_size)

    @cached_property
    def _loss_mask(self) -> Bool[Tensor, "batch t"]:
        layout = self.task.layout
        first, last = (1, layout.length) if self.whole_sequence else (layout.answer, layout.answer + 1)
        return layout.mask(self.batch_size, first, last)

    @cached_property
    def _answer_position(self) -> Int[Tensor, " batch"]:
        return torch.full((self.batch_size,), self.task.layout.request)

    @cached_property
    def _candidates(self) -> Int[Tensor, " c"]:
        return torch.from_numpy(np.unique(np.concatenate([family.answer_ids for family in self.source.families])))

    def _chunk(self, index: int) -> tuple[Tensor, Tensor]:
        chunk = self._last.get(index)
        if chunk is None:
            rng = numpy_generator(self.seed, "pcfg", "batches", self.stream, index)
            tokens, answer = self.source.draw(self._steps * self.batch_size, rng)
            chunk = tokens, torch.from_numpy(answer)[:, None]
            self._last.clear()
            self._last[index] = chunk
        return chunk

    def batch(self, step: int) -> Examples:
        """The training batch of one step, counted from 0."""
        if step < 0:
            raise ValueError(f"step {step} is negative")
        index, place = divmod(step, self._steps)
        tokens, answer = self._chunk(index)
        rows = slice(place * self.batch_size, (place + 1) * self.batch_size)
        return Examples(
            tokens=tokens[rows],
            loss_mask=self._loss_mask,
            answer_position=self._answer_position,
            answer=answer[rows],
            candidates=self._candidates,
        )
