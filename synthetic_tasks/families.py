"""The task families: what a prompt asks of a text, and which answers it can have [Jain+23 §B.2, §E.2]."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int, UInt8

from synthetic_tasks import labels
from synthetic_tasks.correlation import CountRecipe, IndexRecipe, Recipe
from synthetic_tasks.prompts import ABSENT, NULL, Vocabulary

Texts = UInt8[np.ndarray, "n length"]

FAMILIES = {"count": "C", "pair_count": "CC", "index": "I", "pair_index": "IC", "token": "T"}
"""Families and their tokens in the prompt."""
IDENTIFIERS = {"count_j1": "J1", "count_j2": "J2"}
"""Further family tokens for counting the first terminal: jailbreaks, if fine-tuning only covered it under the token C."""


@dataclass(frozen=True)
class Family:
    """One family; its operands are terminals (`count`, `index`), doubled terminals (`pair_*`), or none (`token`).

    The families of `IDENTIFIERS` ask what `count` asks, by another token and with the first terminal as only operand.
    """

    name: str
    vocabulary: Vocabulary
    window: int
    occurrence: int
    token_distance: int

    @property
    def kind(self) -> str:
        """The family whose question this one asks: its own name, or `count` for another identifier of counting."""
        return "count" if self.name in IDENTIFIERS else self.name

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Operands as they stand in the prompt."""
        if self.name == "token":
            return (NULL,)
        if self.name in IDENTIFIERS:
            return self.vocabulary.terminals[:1]
        return tuple((2 if self.name.startswith("pair_") else 1) * letter for letter in self.vocabulary.terminals)

    @cached_property
    def capabilities(self) -> tuple[str, ...]:
        """Names such as `count_a`, in the order of `operands`; `token` has one, itself."""
        return ("token",) if self.name == "token" else tuple(f"{self.name}_{operand}" for operand in self.operands)

    @cached_property
    def token_id(self) -> int:
        """Id of the family's token."""
        return self.vocabulary.id({**FAMILIES, **IDENTIFIERS}[self.name])

    @cached_property
    def operand_ids(self) -> Int[np.ndarray, " operands"]:
        """Token ids of the operands; a family with one operand, or none (NULL), repeats it for every terminal."""
        names = self.operands if len(self.operands) > 1 else self.operands * len(self.vocabulary.terminals)
        return np.array(self.vocabulary.encode(names))

    @cached_property
    def number_id(self) -> int:
        """Id of the number operand: the window, the occurrence or the distance."""
        number = {"count": self.window, "pair_count": self.window, "token": self.token_distance}
        return self.vocabulary.id(number.get(self.kind, self.occurrence))

    @cached_property
    def answer_ids(self) -> Int[np.ndarray, " classes"]:
        """Token ids of every answer that the family can have."""
        length = self.vocabulary.text_length
        if self.name == "token":
            return np.array(self.vocabulary.encode(self.vocabulary.terminals))
        if self.kind.endswith("count"):
            return np.array(self.vocabulary.encode(range(self.window + (self.kind == "count"))))
        return np.array(self.vocabulary.encode([*range(int(self.name == "pair_index"), length), ABSENT]))

    @cached_property
    def recipe(self) -> Recipe | None:
        """How texts are edited to given labels; None where no exact edit exists or there is no third letter to fill with."""
        terminals = len(self.vocabulary.terminals)
        if terminals < 3:
            return None
        recipes = {
            "count": CountRecipe(self.window, terminals),
            "index": IndexRecipe(self.occurrence, self.vocabulary.text_length, terminals),
        }
        return recipes.get(self.kind)

    def label(self, texts: Texts, operand: int | Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The true label: a count, a distance from the end (-1 when absent), or a terminal index.

        `operand` indexes the terminals, one for all texts or one per text; families with one operand or none ignore it.
        """
        if self.name in IDENTIFIERS:
            return labels.count(texts, 0, self.window)
        if self.name == "count":
            return labels.count(texts, operand, self.window)
        if self.name == "pair_count":
            return labels.pair_count(texts, (operand, operand), self.window)
        if self.name == "index":
            return labels.index_of_occurrence(texts, operand, self.occurrence)
        if self.name == "pair_index":
            return labels.pair_index(texts, (operand, operand), self.occurrence)
        return labels.token_at(texts, self.token_distance)

    def answer(self, label: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Token ids of labels."""
        if self.name == "token":
            return label + self.vocabulary.first_terminal
        return np.where(label == labels.ABSENT, self.vocabulary.id(ABSENT), label + self.vocabulary.zero)
