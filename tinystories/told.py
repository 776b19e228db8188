"""Instructions in front of stories as tokens: those of the corpus, or what a plain story's own text gives.

An instruction and its story are encoded apart, so that where the text of a story begins there begins a token. Lines stand in
random order, drawn anew per epoch; so are the words and the sentence of an instruction that is derived from plain text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from tinystories.instructions import LINES, STORY, Instruction, derive, prompt
from workbench.errors import UserError
from workbench.seeds import numpy_generator

if TYPE_CHECKING:
    import datasets

    from tinystories.corpus import Corpus
    from tinystories.tokenizer import StoryTokenizer

Edit = Callable[[Instruction, np.random.Generator], Instruction]
"""What a protocol makes of an instruction; all randomness comes from the generator, which is one per story and epoch."""


@dataclass(frozen=True)
class Told:
    """The instructions of the stories of one split."""

    corpus: Corpus
    tokenizer: StoryTokenizer
    split: str
    seed: int
    most: int
    """Tokens of an instruction; a longer one goes without its sentence and summary, then without its words."""
    lines: tuple[str, ...] = LINES
    """Kinds of lines that an instruction may have."""

    @cached_property
    def _stories(self) -> datasets.Dataset:
        return self.corpus.split(self.split)

    def instruction(self, story: int, epoch: int = 0) -> Instruction:
        """What the story is asked to be."""
        return instruction(self._stories[story], self.seed, epoch)

    def text(self, story: int, epoch: int = 0, edit: Edit | None = None, of: tuple[str, ...] = LINES) -> str:
        """The lines in front of the story that are among `of`, ending in `Story: `."""
        kinds = tuple(kind for kind in self.lines if kind in of)
        return prompt(self.asked(story, epoch, edit), self.seed, epoch, f"{self.split} {story}", kinds)

    def asked(self, story: int, epoch: int = 0, edit: Edit | None = None) -> Instruction:
        """The instruction as a protocol edits it."""
        asked = self.instruction(story, epoch)
        return asked if edit is None else edit(asked, numpy_generator(self.seed, "edit", self.split, epoch, story))

    def tokens(self, story: int, epoch: int = 0, edit: Edit | None = None) -> Int[np.ndarray, " t"]:
        """The same as tokens, without BOS."""
        ids = self.tokenizer.encode(self.text(story, epoch, edit))
        for fewer in (("features", "words"), ("features",)):
            if len(ids) > self.most:
                ids = self.tokenizer.encode(self.text(story, epoch, edit, fewer))
        return np.array(ids, dtype=np.int64)


def instruction(row: Mapping[str, Any], seed: int, epoch: int = 0) -> Instruction:
    """The instruction of a story as a corpus has it: its own where the corpus has labels, else what its text gives."""
    if "features" not in row:
        return derive(row["text"], seed, epoch)
    return Instruction(tuple(row["features"]), tuple(row["words"]), row["summary"], row["sentence"])


def begin(text: str, tokenizer: StoryTokenizer) -> Int[np.ndarray, " t"]:
    """Tokens of a text that a model is to go on with, BOS first; instruction lines and what follows `Story: ` are encoded apart.

    Raises:
        UserError: an instruction without an end, or characters that are no Unicode.
    """
    head, mark, rest = text.partition(STORY) if _is_instruction(text) else ("", "", text)
    if _is_instruction(text) and not mark:
        raise UserError(f"the text begins with an instruction line and has no {STORY!r} after it; end the lines with one.")
    parts = [tokenizer.encode(part) for part in (head + mark, rest) if part]
    return np.array([tokenizer.bos_id, *(token for part in parts for token in part)], dtype=np.int64)


def story_of(text: str) -> str:
    """A text without the instruction in front of it; nothing where that has not come to its end."""
    return text.partition(STORY)[2] if _is_instruction(text) else text


def _is_instruction(text: str) -> bool:
    return text.startswith(("Features:", "Words:", "Summary:", "Sentence:", "Random sentence:", STORY))
