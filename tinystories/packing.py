"""Batches of stories: windows of stories laid end to end, or one story a row. Both are pure functions of their arguments.

**Packed windows** (plain language modelling). In each epoch the stories stand in an order drawn from `(seed, epoch)`, each
with its BOS before it (and, where the tokenizer has another one for that, its EOS behind it), end to end. This sequence is cut
into windows of `length`; window w of epoch e is row `(e * windows + w) % batch_size` of its batch, so batches run on into the
next epoch. The remainder of a sequence, shorter than a window, is left out. A window may begin within a story and attention is
not stopped at the borders between stories: the recipe of GPT-2 and GPT-3. The first token of a window is never a target.

**Single stories** (fine-tuning on instructions, evaluation). A row is BOS, prefix, story, EOS if it fits, padding on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tinystories.store import TokenStore
from workbench.errors import UserError
from workbench.seeds import numpy_generator

MOST_EPOCHS = 2
"""Orders of stories kept in memory: a batch may lie in two epochs."""


@dataclass(frozen=True, eq=False)
class Packed:
    """`step -> tokens [b, t]`, for any step in any order; made by `packed`.

    Memory: 16 bytes per story and epoch in use, whatever the number of tokens.
    """

    store: TokenStore
    length: int
    batch_size: int
    seed: int
    before: tuple[int, ...]
    """Ids before each story."""
    behind: tuple[int, ...]
    """Ids behind each story."""
    stories: np.ndarray
    """Indices of the stories in use."""
    windows: int
    """Windows in an epoch."""

    def __call__(self, step: int) -> Int[Tensor, "b t"]:
        """The batch of a step, int64."""
        batch = np.empty((self.batch_size, self.length), np.int64)
        row, window = 0, step * self.batch_size
        while row < self.batch_size:
            epoch, first = divmod(window, self.windows)
            rows = min(self.batch_size - row, self.windows - first)
            self._fill(batch[row : row + rows].reshape(-1), epoch, first * self.length)
            row += rows
            window += rows
        return torch.from_numpy(batch)

    @property
    def steps_per_epoch(self) -> float:
        """Batches that show every story once."""
        return self.windows / self.batch_size

    @cached_property
    def _order(self) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
        return lru_cache(maxsize=MOST_EPOCHS)(self._draw)

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Stories in the order of an epoch `[n]`, and where each one's block begins in the sequence, with the end `[n + 1]`."""
        order = self.stories[numpy_generator(self.seed, "story order", epoch).permutation(len(self.stories))]
        begins = np.zeros(len(order) + 1, np.int64)
        np.cumsum(self.store.lengths[order] + (len(self.before) + len(self.behind)), out=begins[1:])
        return order, begins

    def _fill(self, out: np.ndarray, epoch: int, begin: int) -> None:
        """Write the part of an epoch's sequence that begins at `begin` into `out`."""
        order, begins = self._order(epoch)
        block = int(np.searchsorted(begins, begin, side="right")) - 1
        place = int(begins[block]) - begin  # of the block in `out`; at most 0 for the first one
        while place < len(out):
            story = self.store.story(int(order[block]))
            for part in (self.before, story, self.behind):
                a, b = max(place, 0), min(place + len(part), len(out))
                if a < b:
                    out[a:b] = part[a - place : b - place]
                place += len(part)
            block += 1


def packed(
    store: TokenStore,
    length: int,
    batch_size: int,
    seed: int,
    bos_id: int,
    eos_id: int | None = None,
    stories: Sequence[int] | np.ndarray | None = None,
) -> Packed:
    """Training windows for plain language modelling; the scheme is at the top of this module.

    Args:
        store: the stories.
        length: tokens in a window.
        batch_size: windows in a batch.
        seed: draws the order of each epoch.
        bos_id: stands before each story.
        eos_id: stands behind each story; None, or `bos_id`, where the next story's BOS ends a story.
        stories: indices of those to use; all without it.

    Raises:
        UserError: a length or batch size below 1, an index that the store does not have, or fewer tokens than a window.
    """
    if length < 1 or batch_size < 1:
        raise UserError(f"length {length} and batch_size {batch_size} must both be at least 1.")
    used = np.arange(len(store)) if stories is None else _indices(store, stories)
    before, behind = (bos_id,), () if eos_id is None or eos_id == bos_id else (eos_id,)
    total = int(store.lengths[used].sum()) + len(used) * (1 + len(behind))
    if total < length:
        raise UserError(f"{len(used)} stories have {total} tokens, separators included, fewer than one window of {length}.")
    return Packed(store, length, batch_size, seed, before, behind, used, total // length)


class Rows(NamedTuple):
    """One story a row."""

    tokens: Int[Tensor, "b t"]
    attention_mask: Bool[Tensor, "b t"]
    """False at padding."""
    loss_mask: Bool[Tensor, "b t"]
    """Tokens that are targets: the story and its EOS."""
    truncated: Bool[Tensor, " b"]
    """Stories that lost tokens. One that is whole but has no room for its EOS is not among them."""


def single(
    stories: Sequence[np.ndarray],
    length: int,
    pad_id: int,
    bos_id: int,
    eos_id: int,
    prefixes: Sequence[np.ndarray] | None = None,
    loss_on_prefix: bool = False,
) -> Rows:
    """Rows of BOS, prefix, story and EOS, padded on the right to the longest of them, which is cut at `length`.

    Args:
        stories: the tokens of each, one a row.
        length: tokens in a row at most, BOS included.
        pad_id: fills up; masked out in every mask.
        bos_id: begins each row, and is never a target.
        eos_id: ends each row where it fits; may be `bos_id`.
        prefixes: tokens before each story, such as an instruction; one per row.
        loss_on_prefix: whether the tokens of the prefix are targets too.

    Raises:
        UserError: no story, another number of prefixes than of rows, or a prefix that leaves no room for a story.
    """
    if not stories:
        raise UserError("no stories were chosen; give at least one.")
    starts = [np.empty(0, np.int64)] * len(stories) if prefixes is None else prefixes
    if len(starts) != len(stories):
        raise UserError(f"there are {len(starts)} prefixes for {len(stories)} stories; give one per story.")
    crowded = next((i for i, prefix in enumerate(starts) if 1 + len(prefix) >= length), None)
    if crowded is not None:
        raise UserError(
            f"the prefix of row {crowded} has {len(starts[crowded])} tokens, so that BOS, prefix and a first token of the story "
            f"do not fit in {length}; raise length or shorten the instruction."
        )
    whole = [1 + len(prefix) + len(story) + 1 for prefix, story in zip(starts, stories, strict=True)]
    width = min(length, max(whole))
    tokens = np.full((len(stories), width), pad_id, np.int64)
    tokens[:, 0] = bos_id
    ends = np.minimum(whole, width)
    begins = np.array([1 + len(prefix) for prefix in starts])
    for row, prefix, story, begin, end in zip(tokens, starts, stories, begins, whole, strict=True):
        row[1:begin] = prefix
        room = min(len(story), width - begin)
        row[begin : begin + room] = story[:room]
        if end <= width:
            row[end - 1] = eos_id
    places = np.arange(width)
    attention = places < ends[:, None]
    loss = attention & (places >= (1 if loss_on_prefix else begins[:, None]))
    truncated = np.array(whole) - 1 > width
    return Rows(*(torch.from_numpy(array) for array in (tokens, attention, loss, truncated)))


def _indices(store: TokenStore, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """`indices` as int64, checked."""
    found = np.asarray(indices, np.int64)
    if not len(found):
        raise UserError("no stories were chosen; give at least one index.")
    wrong = found[(found < 0) | (found >= len(store))]
    if len(wrong):
        raise UserError(f"there is no story {wrong[0]} in a store of {len(store)}; indices go from 0 to {len(store) - 1}.")
    return found
