"""The task of compiled models [Jain+23 §B.1]: random letters behind BOS, and one program's questions about them."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from pydantic import Field
from torch import Tensor

from synthetic_tasks.chance import best_constant, best_given
from synthetic_tasks.counterfactuals import one_substitution, other_counts
from synthetic_tasks.rasp.compiler import compile_program
from synthetic_tasks.rasp.questions import QUESTIONS, Counter, Question
from synthetic_tasks.rasp.vocabulary import Vocabulary
from workbench.errors import UserError, did_you_mean
from workbench.examples import Correlation, Examples
from workbench.protocols import Compiled
from workbench.seeds import numpy_generator
from workbench.settings import Settings, read_settings

Texts = UInt8[np.ndarray, "n length"]

REFERENCE_TEXTS = 4096
"""Texts of the same distribution that `Examples.chance` is computed on."""


class RaspSettings(Settings):
    """Settings of the task `rasp`; length and number of letters are the program's own when not given."""

    program: str = "counter"
    length: int | None = Field(default=None, ge=2, le=64)
    letters: int | None = Field(default=None, ge=2, le=26)


@dataclass(frozen=True, eq=False)
class RaspTask:
    """Texts with the exact answers of one program; a `workbench.protocols.CompilingTask`.

    A sequence is BOS and the text; the logits at the program's read position are the answer, which stands in no token.
    """

    question: Question
    chances: dict[Any, dict[str, float]] = field(default_factory=dict[Any, dict[str, float]], repr=False)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> RaspTask:
        """The task of a study's `task:` section.

        Raises:
            UserError: on an unknown setting or program, a value out of range, or too few letters for texts without repeats.
        """
        read = read_settings(RaspSettings, settings, "task rasp")
        if read.program not in QUESTIONS:
            raise UserError(f"task rasp has no program {read.program!r}{did_you_mean(read.program, QUESTIONS)}")
        kind = QUESTIONS[read.program]
        length = kind.default_length if read.length is None else read.length
        letters = kind.default_letters if read.letters is None else read.letters
        if not kind.repeats and letters < length:
            raise UserError(
                f"task rasp program {read.program!r} needs different letters, and {letters} do not fill texts of length "
                f"{length}; raise 'letters' to {length} or shorten the texts."
            )
        return cls(kind(tuple(string.ascii_lowercase[:letters]), length))

    @property
    def resolved(self) -> dict[str, Any]:
        """Settings that make this task again."""
        size = {"length": self.question.length, "letters": len(self.question.letters)}
        names = {kind: name for name, kind in QUESTIONS.items()}
        return {"kind": "rasp", "program": names[type(self.question)], **size}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Token names and ids."""
        numbers = tuple(map(str, range(self.question.length + 1))) if self.question.counts else ()
        return Vocabulary(self.question.letters, numbers)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return len(self.vocabulary.names)

    @property
    def context(self) -> int:
        """Tokens of every sequence: BOS and the text."""
        return self.question.length + 1

    @cached_property
    def capabilities(self) -> tuple[str, ...]:
        """Names such as `count_a` or `largest_5`."""
        return tuple(f"{self.question.family}_{operand}" for operand in self.question.operands)

    def locate(self, capability: str) -> int:
        """The operand of a capability.

        Raises:
            UserError: on a capability that the task does not have.
        """
        if capability not in self.capabilities:
            raise UserError(f"the task has no capability {capability!r}{did_you_mean(capability, self.capabilities)}")
        return self.capabilities.index(capability)

    def family(self, capability: str) -> str:
        """The one family, for instance `count`."""
        self.locate(capability)
        return self.question.family

    def describe(self, tokens: Sequence[int]) -> str:
        """Tokens as text, for instance `BOS cadab`."""
        return self.vocabulary.describe(tokens)

    def compiled(self, capability: str) -> Compiled:
        """The weights that have exactly this capability, and no other of the task.

        Raises:
            UserError: on a capability that the task does not have.
        """
        operand = self.locate(capability)
        return compile_program(self.question.program(operand), self.vocabulary, self.question.length)

    def capability(self, name: str, correlation: Correlation | None = None) -> RaspCapability:
        """A source of examples of one capability.

        Raises:
            UserError: on an unknown capability, or a correlation that no text can have.
        """
        self.locate(name)
        if correlation is not None:
            self.check_correlation(correlation)
        return RaspCapability(self, name, correlation)

    def check_correlation(self, correlation: Correlation) -> None:
        """Raise a `UserError` on a correlation of unknown capabilities, or one that texts cannot have or cannot lack."""
        both = self.locate(correlation.target), self.locate(correlation.partner)
        for share in (0.0, 1.0):
            self.question.correlated(1, both, correlation.at(share), numpy_generator(0, "rasp", "check"))

    def texts(
        self, n: int, correlation: Correlation | None, rng: np.random.Generator
    ) -> tuple[Texts, Bool[np.ndarray, " n"] | None]:
        """Texts, and which are correlated (None without a correlation)."""
        if correlation is None:
            return self.question.texts(n, rng), None
        both = self.locate(correlation.target), self.locate(correlation.partner)
        return self.question.correlated(n, both, correlation, rng)

    def sequences(self, texts: Texts) -> Int[Tensor, "n t"]:
        """Whole sequences of texts of letter indices."""
        tokens = np.zeros((len(texts), self.context), dtype=np.int64)  # BOS has id 0
        tokens[:, 1:] = texts + self.vocabulary.ids[self.question.letters[0]]
        return torch.from_numpy(tokens)

    def ask(
        self, capability: str, texts: Texts, chance: Mapping[str, float], flags: Mapping[str, Tensor] | None = None
    ) -> Examples:
        """What a capability asks of given texts; the labels hold those of all capabilities and `flags`."""
        question, operand, n = self.question, self.locate(capability), len(texts)
        labels = {name: question.label(texts, i) for i, name in enumerate(self.capabilities)}
        tokens = self.sequences(texts)
        place = torch.arange(self.context).expand_as(tokens)
        decides = np.concatenate([np.zeros((n, 1), dtype=bool), question.decides(texts, operand)], axis=1)
        return Examples(
            tokens=tokens,
            loss_mask=torch.zeros_like(tokens, dtype=torch.bool),
            answer_position=self.answer_position(n, operand),
            answer=torch.from_numpy(self.answer_ids[labels[capability]])[:, None],
            candidates=torch.from_numpy(self.answer_ids),
            labels={**{name: torch.from_numpy(values) for name, values in labels.items()}, **(flags or {})},
            roles={
                "operand": torch.from_numpy(decides),
                "text": place > 0,
                "request": place == question.read_index(operand) + 1,
            },
            chance=chance,
        )

    def counterfactual(self, capability: str, examples: Examples, seed: int) -> Examples:
        """The same question about texts that are edited, as little as possible, to another answer; row by row.

        Labels and roles are those of the edited texts; whether an edited text is correlated is not among them.

        Raises:
            UserError: no text can have another answer.
        """
        question, operand = self.question, self.locate(capability)
        rng = numpy_generator(seed, "rasp", "counterfactual", capability)
        letters = len(question.letters)
        texts = (examples.tokens[:, 1:].cpu().numpy() - self.vocabulary.ids[question.letters[0]]).astype(np.uint8)
        if isinstance(question, Counter):
            edited = other_counts(texts, question.length, operand, letters, rng)
        else:
            edited = one_substitution(texts, letters, lambda t: question.label(t, operand), rng, (), question.repeats)
        return self.ask(capability, edited, examples.chance)

    @cached_property
    def answer_ids(self) -> Int[np.ndarray, " classes"]:
        """Token ids of every possible answer, by label."""
        return np.array(self.vocabulary.encode(self.vocabulary.answers if self.question.counts else self.question.letters))

    def answer_position(self, n: int, operand: int) -> Int[Tensor, " n"]:
        """Positions in the sequence whose logits answer."""
        return torch.full((n,), self.question.read_index(operand) + 1)


@dataclass(frozen=True)
class RaspCapability:
    """One capability on one distribution of texts; a `workbench.examples.Capability`.

    The texts are a function of the seed, the split and the distribution: all capabilities are asked of the same ones.
    """

    task: RaspTask
    name: str
    correlation: Correlation | None

    def draw(self, n: int, seed: int, split: str) -> tuple[Texts, Bool[np.ndarray, " n"] | None]:
        """The texts of a split, and which are correlated (None without a correlation)."""
        c = self.correlation
        kind = () if c is None else (c.target, c.partner, str(c.offset), str(float(c.share)))
        return self.task.texts(n, c, numpy_generator(seed, "rasp", "texts", split, *kind))

    def examples(self, n: int, seed: int, split: str = "test") -> Examples:
        """`n` examples; the labels hold those of all capabilities (letters as indices) and, if any, `correlated`.

        Roles: `text`, `request` (the read position) and, for the letters that decide it, `operand`.

        Raises:
            UserError: when `n` is below 1.
        """
        if n < 1:
            raise UserError(f"{n} examples of {self.name!r} were asked for; ask for at least 1.")
        texts, correlated = self.draw(n, seed, split)
        flags = {} if correlated is None else {"correlated": torch.from_numpy(correlated.astype(np.int64))}
        return self.task.ask(self.name, texts, self.chance(), flags)

    def chance(self) -> dict[str, float]:
        """`majority` and, for the other capabilities, `given count_b`: see `synthetic_tasks.chance`.

        Computed once on `REFERENCE_TEXTS` further texts of the same distribution, so that it does not depend on `n`.
        """
        key = (self.name, self.correlation)
        if key not in self.task.chances:
            question, operand = self.task.question, self.task.locate(self.name)
            texts, _ = self.draw(REFERENCE_TEXTS, 0, "chance reference")
            values = [question.label(texts, i) for i in range(len(self.task.capabilities))]
            chance = {"majority": best_constant(values[operand])}
            for i, name in enumerate(self.task.capabilities):
                if i != operand:
                    chance[f"given {name}"] = best_given(values[operand], values[i])
            self.task.chances[key] = chance
        return dict(self.task.chances[key])
