"""The tokens of RASP texts: BOS, the letters, and the answers that are no letters, in one vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from workbench.errors import UserError, did_you_mean

BOS = "BOS"


@dataclass(frozen=True)
class Vocabulary:
    """Token names and ids in the order BOS, letters, further answers."""

    letters: tuple[str, ...]
    answers: tuple[str, ...] = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Token names by id."""
        return (BOS, *self.letters, *self.answers)

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Token ids by name."""
        return MappingProxyType({name: i for i, name in enumerate(self.names)})

    def id(self, name: str) -> int:
        """The id of a token.

        Raises:
            UserError: on a token that is not in the vocabulary.
        """
        if name not in self.ids:
            raise UserError(f"token {name!r} is not in the vocabulary{did_you_mean(name, self.ids)}")
        return self.ids[name]

    def encode(self, names: Iterable[str]) -> list[int]:
        """Ids of several tokens."""
        return [self.id(name) for name in names]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Names of several ids.

        Raises:
            UserError: on an id outside the vocabulary.
        """
        names: list[str] = []
        for i in map(int, ids):
            if not 0 <= i < len(self.names):
                raise UserError(f"token id {i} is not in the vocabulary; ids go from 0 to {len(self.names) - 1}.")
            names.append(self.names[i])
        return names

    def describe(self, tokens: Sequence[int]) -> str:
        """Tokens as one line, with neighbouring letters joined: `BOS cadab`, `6`."""
        words: list[str] = []
        joined = False
        for name in self.decode(tokens):
            letter = name in self.letters
            if letter and joined:
                words[-1] += name
            else:
                words.append(name)
            joined = letter
        return " ".join(words)
