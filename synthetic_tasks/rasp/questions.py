"""What the programs answer: exact labels of texts, where the answer is read, and which letters decide it.

A text is a row of letter indices; a < b < c in index, and an earlier letter counts as larger [Jain+23 §B.1]. The prompt of a
compiled model is the text alone: which capability it has is a matter of its weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int, UInt8

from synthetic_tasks.correlation import MAX_ROUNDS, draw_correlated, select_natural
from synthetic_tasks.edits import set_counts
from synthetic_tasks.rasp import programs
from synthetic_tasks.rasp.nodes import Operator
from workbench.errors import UserError
from workbench.examples import Correlation

Texts = UInt8[np.ndarray, "n length"]


@dataclass(frozen=True)
class Question(ABC):
    """One family of capabilities on texts of `length` letters; operand i of the family is its i-th capability."""

    letters: tuple[str, ...]
    length: int

    family: ClassVar[str]
    default_length: ClassVar[int] = 8
    default_letters: ClassVar[int] = 6
    repeats: ClassVar[bool] = True
    """Whether a letter may occur more than once."""
    counts: ClassVar[bool] = False
    """Whether answers are numbers 0..length rather than letters."""

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """What capabilities are named after: positions of the text, counted from 0."""
        return tuple(map(str, range(self.length)))

    def read_index(self, operand: int) -> int:
        """The position of the text whose logits answer."""
        return operand

    @abstractmethod
    def program(self, operand: int) -> Operator:
        """The RASP program that has this capability."""

    @abstractmethod
    def label(self, texts: Texts, operand: int) -> Int[np.ndarray, " n"]:
        """The true answer: a count or a letter index."""

    @abstractmethod
    def decides(self, texts: Texts, operand: int) -> Bool[np.ndarray, "n length"]:
        """The letters that the answer is made of."""

    def texts(self, n: int, rng: np.random.Generator) -> Texts:
        """Letters uniformly at random."""
        size = len(self.letters)
        if self.repeats:
            return rng.integers(size, size=(n, self.length), dtype=np.uint8)
        return rng.permuted(np.tile(np.arange(size, dtype=np.uint8), (n, 1)), axis=1)[:, : self.length]

    def correlated(
        self, n: int, operands: tuple[int, int], correlation: Correlation, rng: np.random.Generator
    ) -> tuple[Texts, Bool[np.ndarray, " n"]]:
        """Texts with label(target) == label(partner) + offset exactly where the second value is true; `operands` are those two.

        Texts are chosen, not edited.
        """
        held = draw_correlated(correlation.share, n, rng)

        def relation(texts: Texts) -> tuple[np.ndarray, np.ndarray]:
            target, partner = (self.label(texts, operand) for operand in operands)
            return target == partner + correlation.offset, np.zeros(len(texts), dtype=bool)

        name = f"{correlation.target} = {correlation.partner} {correlation.offset:+d}"
        return select_natural(lambda m: self.texts(m, rng), relation, held, name), held


@dataclass(frozen=True)
class Counter(Question):
    """`count_a`: how often a letter occurs [Jain+23 Alg 1]."""

    family = "count"
    default_length, default_letters = 46, 10
    counts = True

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """The letters."""
        return self.letters

    def read_index(self, operand: int) -> int:
        """One index for all letters."""
        return programs.READ_INDEX

    def program(self, operand: int) -> Operator:
        """[Jain+23 Alg 1]."""
        return programs.counter(self.letters[operand])

    def label(self, texts: Texts, operand: int) -> Int[np.ndarray, " n"]:
        """The count."""
        return self.decides(texts, operand).sum(1)

    def decides(self, texts: Texts, operand: int) -> Bool[np.ndarray, "n length"]:
        """Where the letter stands."""
        return texts == operand

    def correlated(
        self, n: int, operands: tuple[int, int], correlation: Correlation, rng: np.random.Generator
    ) -> tuple[Texts, Bool[np.ndarray, " n"]]:
        """As few letters as possible are overwritten in a correlated text, only the target's and unconcerned ones.

        A text in which no such edit is possible, and one that must not be correlated but is, is drawn again.

        Raises:
            UserError: there is no third letter, or an offset that texts of this length cannot have.
        """
        target, partner = operands
        held, texts = draw_correlated(correlation.share, n, rng), self.texts(n, rng)
        for _ in range(MAX_ROUNDS if len(self.letters) > 2 else 0):
            given = self.label(texts, partner)
            wanted = given + correlation.offset
            impossible = (wanted < 0) | (given + wanted > self.length)
            again = np.flatnonzero(np.where(held, impossible, self.label(texts, target) == wanted))
            if not len(again):
                counts = {target: wanted[held], partner: given[held]}
                texts[held] = set_counts(texts[held], self.length, counts, len(self.letters), rng)
                return texts, held
            texts[again] = self.texts(len(again), rng)
        raise UserError(
            f"{correlation.target} = {correlation.partner} {correlation.offset:+d} cannot be written into texts of "
            f"{self.length} out of {len(self.letters)} letters; use at least 3 letters and an offset nearer to 0."
        )


@dataclass(frozen=True)
class KthLargest(Question):
    """`largest_5`: the k-th largest of different letters, a being the largest [Jain+23 Alg 2]."""

    family = "largest"
    default_length, default_letters = 10, 26
    repeats = False

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Ranks from 1."""
        return tuple(str(k + 1) for k in range(self.length))

    def read_index(self, operand: int) -> int:
        """One index for all ranks."""
        return programs.READ_INDEX

    def program(self, operand: int) -> Operator:
        """[Jain+23 Alg 2]."""
        return programs.kth_largest(operand + 1)

    def label(self, texts: Texts, operand: int) -> Int[np.ndarray, " n"]:
        """The letter."""
        return np.sort(texts, axis=1)[:, operand].astype(np.int64)

    def decides(self, texts: Texts, operand: int) -> Bool[np.ndarray, "n length"]:
        """Where that letter stands."""
        return texts == self.label(texts, operand)[:, None]


@dataclass(frozen=True)
class Reverse(Question):
    """`reverse_0`: the letter at a position of the text read backwards."""

    family = "reverse"

    def program(self, operand: int) -> Operator:
        """One program for all positions."""
        return programs.reverse()

    def label(self, texts: Texts, operand: int) -> Int[np.ndarray, " n"]:
        """The letter."""
        return texts[:, self.length - 1 - operand].astype(np.int64)

    def decides(self, texts: Texts, operand: int) -> Bool[np.ndarray, "n length"]:
        """The mirrored position."""
        return np.broadcast_to(np.arange(self.length) == self.length - 1 - operand, texts.shape)


@dataclass(frozen=True)
class Histogram(Question):
    """`histogram_0`: how often the letter at a position occurs in the text."""

    family = "histogram"
    counts = True

    def program(self, operand: int) -> Operator:
        """One program for all positions."""
        return programs.histogram()

    def label(self, texts: Texts, operand: int) -> Int[np.ndarray, " n"]:
        """The count."""
        return self.decides(texts, operand).sum(1)

    def decides(self, texts: Texts, operand: int) -> Bool[np.ndarray, "n length"]:
        """Where the same letter stands."""
        return texts == texts[:, operand : operand + 1]


@dataclass(frozen=True)
class Sort(Question):
    """`sort_0`: the letter at a position of the sorted text."""

    family = "sort"

    def program(self, operand: int) -> Operator:
        """One program for all positions."""
        return programs.sort()

    def label(self, texts: Texts, operand: int) -> Int[np.ndarray, " n"]:
        """The letter."""
        return np.sort(texts, axis=1)[:, operand].astype(np.int64)

    def decides(self, texts: Texts, operand: int) -> Bool[np.ndarray, "n length"]:
        """The letter that ends up there; of equal ones the first comes first."""
        return np.argsort(texts, axis=1, kind="stable")[:, operand : operand + 1] == np.arange(self.length)


QUESTIONS: dict[str, type[Question]] = {
    "counter": Counter,
    "kth_largest": KthLargest,
    "reverse": Reverse,
    "histogram": Histogram,
    "sort": Sort,
}
