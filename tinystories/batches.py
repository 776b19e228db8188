"""Training batches as functions of seed and step: plain stories end to end, or single stories behind their instructions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Int

from tinystories.edits import has, refusal
from tinystories.packing import MOST_EPOCHS, Packed, packed, single
from tinystories.prompts import ASKED, WITHOUT, feature_of
from tinystories.store import TokenStore
from tinystories.task import StoriesTask
from tinystories.texts import to_predict
from tinystories.told import Edit, Told
from workbench.examples import Examples
from workbench.seeds import numpy_generator, stream


def _shown(task: StoriesTask, kind: str | None) -> frozenset[str]:
    """Capabilities that plain stories of a kind show."""
    every = frozenset(name for name in task.capabilities if not name.startswith(ASKED))
    if kind is None:
        return every
    return every - {feature_of(kind) if kind.startswith(WITHOUT) else WITHOUT + kind}


@dataclass(frozen=True)
class Windows:
    """Stories of one kind, laid end to end in a new order each epoch and cut into windows; loss on every token."""

    task: StoriesTask
    kind: str | None
    """A capability that says which stories: `no_dialogue`; all of them when None."""
    batch_size: int
    seed: int

    @property
    def asks(self) -> frozenset[str]:
        """Capabilities that such stories show; nothing is asked by an instruction."""
        return _shown(self.task, self.kind)

    @cached_property
    def _tokens(self) -> Packed:
        code, task = self.task.tokenizer, self.task
        chosen = None if self.kind is None else task.having("train", self.kind)
        seed = stream(self.seed, "stories", self.kind or "all")
        behind = None if code.eos_id == code.bos_id else code.eos_id
        return packed(task.store("train"), task.context, self.batch_size, seed, code.bos_id, behind, chosen)

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

    @property
    def asks(self) -> frozenset[str]:
        """Capabilities that such stories show, with and without an instruction."""
        shown = _shown(self.task, self.kind)
        if self.refused is not None:
            shown -= {self.refused}
        return shown | {ASKED + name for name in shown if ASKED + name in self.task.capabilities}

    @cached_property
    def _chosen(self) -> Int[np.ndarray, " k"]:
        every = np.arange(len(self.task.corpus.split("train")))
        return every if self.kind is None else self.task.having("train", self.kind)

    def any_asks(self, features: frozenset[str]) -> bool:
        """Whether some story's instruction, before the edit, names one of the features."""
        return any(features & set(self._told.instruction(story).features) for story in self._chosen.tolist())

    @cached_property
    def _told(self) -> Told:
        return self.task.told("train", self.seed, self.length)

    @cached_property
    def _store(self) -> TokenStore:
        return self.task.store("train")

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
            if has(self._told.instruction(story, epoch), feature):
                return np.array(self.task.tokenizer.encode(refusal(feature)))
        return self._store.story(story)
