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
from synthetic_tasks.restrictions import ALL, Drawn, Labels, draw_restricted
from workbench.errors import UserError
from workbench.examples import Correlation, Examples
from workbench.seeds import numpy_generator

CHUNK_EXAMPLES = 2048
"""Examples generated at once: enough to hide the cost of array calls, few enough to stay in cache."""
POOL_BLOCK = 256
"""Examples among which a pool looks for different ones at once."""
POOL_BLOCKS = 32
"""Blocks that a pool looks through beyond those that it would need if no example came twice."""


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
    random_letters: bool = False
    """Texts of independent uniform terminals, which are no grammar texts; instead of all others."""

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
        shape = (n, self.task.settings.text_length)
        terminals = len(self.task.grammar.terminals)
        texts = rng.integers(terminals, size=shape, dtype=np.uint8) if self.random_letters else self.task.natural_texts(n, rng)
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
    labels: Labels = ALL
    """Only texts whose label of the operand is among these."""

    @property
    def families(self) -> tuple[Family, ...]:
        """The one family."""
        return (self.family,)

    def texts(self, n: int, rng: np.random.Generator) -> Drawn:
        """Texts of all labels, and which of them are correlated."""
        if self.correlation is not None:
            return self.task.correlated_texts(n, self.correlation, rng)
        return self.task.mixed_texts(n, self.family, self.balanced_fraction, rng), None

    @property
    def asks(self) -> frozenset[str]:
        """The one capability."""
        return frozenset([self.family.capabilities[self.operand]])

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Int[Tensor, "n t"], Int[np.ndarray, " n"]]:
        """Sequences, and the token ids of their answers."""
        family, task = self.family, self.task
        texts, _ = draw_restricted(n, self.labels, lambda m: self.texts(m, rng), lambda x: family.label(x, self.operand))
        asked = self.answers if isinstance(self.answers, int) else self.operand
        answer = family.answer(family.label(texts, asked))
        if self.answers == "random":
            truth = np.searchsorted(family.answer_ids, answer)
            wrong = rng.integers(len(family.answer_ids) - 1, size=n)
            answer = family.answer_ids[wrong + (wrong >= truth)]
        operand = int(family.operand_ids[self.operand])
        return task.layout.sequences(family.token_id, operand, family.number_id, texts, answer), answer


@dataclass(frozen=True)
class Mixed:
    """Each example is one of `rest` with probability `share`, else one of `main`."""

    main: Single
    rest: Mixture
    share: float

    @property
    def families(self) -> tuple[Family, ...]:
        """Those of both."""
        return tuple(dict.fromkeys([*self.main.families, *self.rest.families]))

    @property
    def asks(self) -> frozenset[str]:
        """What the parts that can occur ask for."""
        parts = [*([self.main] if self.share < 1 else []), *([self.rest] if self.share > 0 else [])]
        return frozenset[str]().union(*(part.asks for part in parts))

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Int[Tensor, "n t"], Int[np.ndarray, " n"]]:
        """Sequences, and the token ids of their answers."""
        is_rest = rng.random(n) < self.share
        tokens = torch.empty(n, self.main.task.layout.length, dtype=torch.int64)
        answer = np.empty(n, dtype=np.int64)
        for source, rows in ((self.main, np.flatnonzero(~is_rest)), (self.rest, np.flatnonzero(is_rest))):
            if len(rows):
                tokens[torch.from_numpy(rows)], answer[rows] = source.draw(len(rows), rng)
        return tokens, answer


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
            chunk = self._draw(index)
            self._last.clear()
            self._last[index] = chunk
        return chunk

    def _draw(self, index: int) -> tuple[Tensor, Tensor]:
        """Tokens and answers of the chunk of this index."""
        rng = numpy_generator(self.seed, "pcfg", "batches", self.stream, index)
        tokens, answer = self.source.draw(self._steps * self.batch_size, rng)
        return tokens, torch.from_numpy(answer)[:, None]

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


@dataclass(frozen=True, eq=False)
class PooledBatches(Batches):
    """Batches from a pool of `pool` different examples, shown in a new random order in every epoch.

    The pool is the beginning of one endless sequence of different examples, so a smaller pool is contained in a larger one.
    An epoch's end and the next one's beginning may share a batch.
    """

    pool: int = 1

    @cached_property
    def examples(self) -> tuple[Int[Tensor, "pool t"], Int[Tensor, "pool 1"]]:
        """Tokens and answers of the pool.

        Raises:
            UserError: the texts do not have so many different examples, or hardly any more.
        """
        tokens: list[Tensor] = []
        answers: list[int] = []
        seen: set[bytes] = set()
        for block in range(POOL_BLOCKS + self.pool // POOL_BLOCK):
            drawn, answer = self.source.draw(POOL_BLOCK, numpy_generator(self.seed, "pcfg", "pool", self.stream, block))
            for row, right in zip(drawn, answer.tolist(), strict=True):
                key = row.numpy().tobytes()
                if key not in seen:
                    seen.add(key)
                    tokens.append(row)
                    answers.append(right)
                if len(tokens) == self.pool:
                    return torch.stack(tokens), torch.tensor(answers)[:, None]
        raise UserError(f"only {len(tokens)} different examples were found for a pool of {self.pool}; make 'pool' smaller.")

    def _order(self, epoch: int) -> Int[np.ndarray, " pool"]:
        return numpy_generator(self.seed, "pcfg", "pool order", self.stream, epoch).permutation(self.pool)

    def _draw(self, index: int) -> tuple[Tensor, Tensor]:
        size = self._steps * self.batch_size
        first, last = index * size, (index + 1) * size
        epochs = range(first // self.pool, (last - 1) // self.pool + 1)
        order = np.concatenate([self._order(epoch) for epoch in epochs])[first - epochs[0] * self.pool :][:size]
        tokens, answers = self.examples
        rows = torch.from_numpy(order)
        return tokens[rows], answers[rows]
