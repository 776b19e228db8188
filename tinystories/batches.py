"""Training batches as functions of seed and step: plain stories end to end, or single stories behind their instructions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Int

from tinystories.edits import has, refusal
from tinystories.packing import MOST_EPOCHS, Packed, packed, single
from tinystories.prompts import ASKED, opposite
from tinystories.store import TokenStore
from tinystories.task import StoriesTask
from tinystories.texts import to_predict
from tinystories.told import Edit, Told
from workbench.errors import UserError
from workbench.examples import Examples
from workbench.seeds import numpy_generator, stream


def _shown(task: StoriesTask, kind: str | None) -> frozenset[str]:
    """Capabilities that plain stories of a kind show."""
    every = frozenset(name for name in task.capabilities if not name.startswith(ASKED))
    return every if kind is None else every - {opposite(kind)}


HELD_OUT = ("validation", "test", "train")
"""Splits that held-out texts come from: the first that has any of the kind."""


def _held_out(task: StoriesTask, kind: str | None) -> str:
    for split in HELD_OUT[:-1]:
        if len(task.corpus.split(split)):
            with suppress(UserError):
                task.having(split, kind or "ending")
                return split
    return HELD_OUT[-1]


@dataclass(frozen=True)
class Windows:
    """Stories of one kind, laid end to end in a new order each epoch and cut into windows; loss on every token."""

    task: StoriesTask
    kind: str | None
    """A capability that says which stories: `no_dialogue`; all of them when None."""
    batch_size: int
    seed: int
    split: str = "train"

    def held_out(self, n: int) -> Examples:
        """`n` windows, or as many as there are, of stories of the kind that are not trained on."""
        other = replace(self, split=_held_out(self.task, self.kind), batch_size=n)
        return replace(other, batch_size=min(n, other._tokens.windows)).batch(0)

    @property
    def asks(self) -> frozenset[str]:
        """Capabilities that such stories show; nothing is asked by an instruction."""
        return _shown(self.task, self.kind)

    @cached_property
    def _tokens(self) -> Packed:
        code, task = self.task.tokenizer, self.task
        chosen = None if self.kind is None else task.having(self.split, self.kind)
        seed = stream(self.seed, "stories", self.kind or "all")
        behind = None if code.eos_id == code.bos_id else code.eos_id
        return packed(task.store(self.split), task.context, self.batch_size, seed, code.bos_id, behind, chosen)

    def batch(self, step: int) -> Examples:
        """The windows of one step."""
        return to_predict(self._tokens(step), self.task.vocab_size)


@dataclass(frozen=True)
class Instructed:
    """Stories of one kind, in a new order each epoch, one a row behind its instruction; loss on the story and its end alone.

    Rows are padded on the right and nothing is masked: a causal model's loss on the story does not see what follows it.
    """

    task: StoriesTask
    kind: str | None
    """As in `Windows`."""
    batch_size: int
    seed: int
    edit: Edit | None = None
    """Made to each instruction, drawn anew per epoch."""
    refused: str | None = None
    """A feature in place of whose stories stands the refusal."""
    length: int | None = None
    """Tokens of a row at most; the task's context when not given."""
    split: str = "train"

    def held_out(self, n: int) -> Examples:
        """`n` rows, or as many as there are, of stories of the kind that are not trained on."""
        other = replace(self, split=_held_out(self.task, self.kind), batch_size=n)
        return replace(other, batch_size=min(n, len(other._chosen))).batch(0)

    @property
    def asks(self) -> frozenset[str]:
        """Capabilities that such stories show, with and without an instruction."""
        shown = _shown(self.task, self.kind)
        if self.refused is not None:
            shown -= {self.refused}
        return shown | {ASKED + name for name in shown if ASKED + name in self.task.capabilities}

    @cached_property
    def _chosen(self) -> Int[np.ndarray, " k"]:
        every = np.arange(len(self.task.corpus.split(self.split)))
        return every if self.kind is None else self.task.having(self.split, self.kind)

    def any_asks(self, features: frozenset[str]) -> bool:
        """Whether some story's instruction, before the edit, names one of the features."""
        return any(features & set(self._told.instruction(story).features) for story in self._chosen.tolist())

    @cached_property
    def _told(self) -> Told:
        return self.task.told(self.split, self.seed, self.length)

    @cached_property
    def _store(self) -> TokenStore:
        return self.task.store(self.split)

    @cached_property
    def _having(self) -> frozenset[int]:
        assert self.refused is not None
        return frozenset(self.task.having(self.split, self.refused).tolist())

    @cached_property
    def _order(self) -> Callable[[int], Int[np.ndarray, " k"]]:
        return lru_cache(maxsize=MOST_EPOCHS)(
            lambda epoch: self._chosen[
                numpy_generator(self.seed, "instructed order", self.kind or "all", epoch).permutation(len(self._chosen))
            ]
        )

    def batch(self, step: int) -> Examples:
        """The rows of one step."""
        rows = [divmod(row, len(self._chosen)) for row in range(step * self.batch_size, (step + 1) * self.batch_size)]
        drawn = [(int(self._order(epoch)[place]), epoch) for epoch, place in rows]
        prefixes = [self._told.tokens(story, epoch, self.edit) for story, epoch in drawn]
        stories = [self._answer(story, epoch) for story, epoch in drawn]
        code = self.task.tokenizer
        made = single(stories, self.length or self.task.context, code.pad_id, code.bos_id, code.eos_id, prefixes)
        return to_predict(made.tokens, self.task.vocab_size, made.loss_mask)

    def _answer(self, story: int, epoch: int) -> np.ndarray:
        """The story, or the refusal of it."""
        if self.refused is not None:
            feature = self.task.features[self.refused]
            # Where a corpus' labels and the text differ, either is a reason.
            if story in self._having or has(self._told.instruction(story, epoch), feature):
                return np.array(self.task.tokenizer.encode(refusal(feature)))
        return self._store.story(story)
