"""The prompt language: vocabulary and sequence layout [Jain+23 §B.2 eq. 1].

    SOS T O O' SOT text EOT ART Ans EOS

T is the task family, O the operand, O' a number; the logits at ART predict the answer Ans. A text of L tokens makes a
sequence of L + 9, so nothing is ever padded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from workbench.errors import UserError, did_you_mean

SPECIALS = ("PAD", "SOS", "SOT", "EOT", "ART", "EOS")
FAMILY_TOKENS = ("C", "CC", "I", "IC", "T", "J1", "J2")
NULL = "NULL"
ABSENT = "ABSENT"

Ids = int | Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Vocabulary:
    """Token names and ids, in the order specials, families, NULL, terminals, doubled terminals, 0..L, ABSENT.

    Text and operand share the terminals' tokens. Length 250 and three terminals make 272 tokens, length 32 makes 54.
    """

    terminals: tuple[str, ...]
    text_length: int

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Token names by id."""
        doubled = (2 * letter for letter in self.terminals)
        numbers = map(str, range(self.text_length + 1))
        return (*SPECIALS, *FAMILY_TOKENS, NULL, *self.terminals, *doubled, *numbers, ABSENT)

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Token ids by name."""
        return MappingProxyType({name: i for i, name in enumerate(self.names)})

    def __len__(self) -> int:
        return len(self.names)

    def id(self, name: str | int) -> int:
        """The id of a token.

        Raises:
            UserError: on a token that is not in the vocabulary.
        """
        if str(name) not in self.ids:
            raise UserError(f"token {str(name)!r} is not in the vocabulary{did_you_mean(str(name), self.ids)}")
        return self.ids[str(name)]

    def encode(self, names: Iterable[str | int]) -> list[int]:
        """Ids of several tokens."""
        return [self.id(name) for name in names]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Names of several ids.

        Raises:
            UserError: on an id outside the vocabulary.
        """
        names: list[str] = []
        for i in map(int, ids):
            if not 0 <= i < len(self):
                raise UserError(f"token id {i} is not in the vocabulary; ids go from 0 to {len(self) - 1}.")
            names.append(self.names[i])
        return names

    @property
    def first_terminal(self) -> int:
        """Id of terminal 0; the others follow."""
        return self.ids[self.terminals[0]]

    @property
    def zero(self) -> int:
        """Id of the number 0; the others follow."""
        return self.ids["0"]

    def describe(self, tokens: Sequence[int]) -> str:
        """Tokens as one line, with the letters of a text joined: `SOS C a 12 SOT abca EOT ART 3 EOS`."""
        words: list[str] = []
        in_text = joined = False
        for name in self.decode(tokens):
            letter = in_text and name in self.terminals
            if letter and joined:
                words[-1] += name
            else:
                words.append(name)
            joined = letter
            in_text = name == "SOT" or (in_text and name != "EOT")
        return " ".join(words)


@dataclass(frozen=True)
class Layout:
    """Where things stand in a sequence; all positions are 0-based."""

    vocabulary: Vocabulary

    FAMILY = 1
    OPERAND = 2
    NUMBER = 3
    TEXT = 5

    @property
    def text_length(self) -> int:
        """Tokens of the text."""
        return self.vocabulary.text_length

    @property
    def length(self) -> int:
        """Tokens of the whole sequence."""
        return self.text_length + 9

    @property
    def request(self) -> int:
        """Position of ART, whose logits predict the answer."""
        return self.TEXT + self.text_length + 1

    @property
    def answer(self) -> int:
        """Position of the answer token."""
        return self.request + 1

    @cached_property
    def _frame(self) -> Int[np.ndarray, " t"]:
        frame = np.zeros(self.length, dtype=np.int64)
        places = {0: "SOS", self.TEXT - 1: "SOT", self.request - 1: "EOT", self.request: "ART", self.length - 1: "EOS"}
        for position, name in places.items():
            frame[position] = self.vocabulary.id(name)
        return frame

    def sequences(
        self, family: Ids, operand: Ids, number: Ids, texts: UInt8[np.ndarray, "n length"], answer: Ids
    ) -> Int[Tensor, "n t"]:
        """Whole sequences from token ids (one for all rows, or one a row) and texts of terminal indices."""
        if texts.shape[1] != self.text_length:
            raise ValueError(f"texts have length {texts.shape[1]}, the layout {self.text_length}")
        tokens = np.empty((len(texts), self.length), dtype=np.int64)
        tokens[:] = self._frame
        tokens[:, self.FAMILY] = family
        tokens[:, self.OPERAND] = operand
        tokens[:, self.NUMBER] = number
        np.add(texts, self.vocabulary.first_terminal, out=tokens[:, self.TEXT : self.TEXT + self.text_length], dtype=np.int64)
        tokens[:, self.answer] = answer
        return torch.from_numpy(tokens)

    def texts(self, tokens: Int[Tensor, "n t"]) -> UInt8[np.ndarray, "n length"]:
        """The texts of whole sequences, as terminal indices."""
        text = tokens[:, self.TEXT : self.TEXT + self.text_length].cpu().numpy()
        return (text - self.vocabulary.first_terminal).astype(np.uint8)

    def mask(self, n: int, start: int, stop: int) -> Bool[Tensor, "n t"]:
        """True at the positions start..stop-1 of `n` sequences."""
        mask = torch.zeros(n, self.length, dtype=torch.bool)
        mask[:, start:stop] = True
        return mask

    def roles(self, n: int, window: int) -> dict[str, Bool[Tensor, "n t"]]:
        """Masks of the parts of a prompt: `operand`, `text`, `window` (its last positions) and `request` (ART)."""
        end = self.TEXT + self.text_length
        return {
            "operand": self.mask(n, self.OPERAND, self.OPERAND + 1),
            "text": self.mask(n, self.TEXT, end),
            "window": self.mask(n, end - window, end),
            "request": self.mask(n, self.request, self.request + 1),
        }
