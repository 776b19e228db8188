"""Interpolated Kneser-Ney n-grams [Kneser+95; Chen+99]: what a model of real stories must beat before it counts as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from workbench.errors import UserError

Story = Int[np.ndarray, " _"]


@dataclass(frozen=True)
class _Order:
    """The k-grams of one order. A k-gram is known by its number: the rank of its key among all of the order."""

    keys: Int[np.ndarray, " grams"]
    """Sorted: number of the first k - 1 tokens as a gram of the order below, times the vocabulary, plus the last token."""
    counts: Float[np.ndarray, " grams"]
    """How often it occurs; below the highest order, after how many different tokens, save for one that begins a story."""
    total: Float[np.ndarray, " contexts"]
    """Sum of the counts after each context."""
    distinct: Float[np.ndarray, " contexts"]
    """Number of different tokens after each context."""
    discount: float


@dataclass(frozen=True)
class KneserNey:
    """An interpolated Kneser-Ney model with one discount an order, D = n1 / (n1 + 2 n2).

    `P_k(w | c) = max(count(c w) - D, 0) / total(c) + D distinct(c) / total(c) P_{k-1}(w | c without its first token)`, and
    below the unigrams the uniform distribution. Contexts do not reach over the beginning of a story.
    """

    vocab_size: int
    orders: tuple[_Order, ...]

    @classmethod
    def fit(cls, stories: Sequence[Story], vocab_size: int, order: int = 5) -> KneserNey:
        """Counts of stories `[t]`, each from its first token (such as BOS, which is a context and never predicted) on.

        Raises:
            UserError: no story has two tokens, the order is below 1, or a token is outside the vocabulary.
        """
        if order < 1:
            raise UserError(f"an n-gram of order {order} is none; use 5, say.")
        tokens, age = _end_to_end(stories)
        if not (age > 0).any():
            raise UserError("no story has two tokens, so that there is nothing to count.")
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            raise UserError(
                f"token {tokens.max()} is outside a vocabulary of {vocab_size}; use the tokenizer that made the stories."
            )
        grams, keys = [np.zeros(len(tokens), dtype=np.int64)], [np.zeros(1, dtype=np.int64)]
        for k in range(1, order + 1):
            there = age >= k - 1
            found, numbers = np.unique(_keys(grams[-1], tokens, vocab_size)[there], return_inverse=True)
            at = np.full(len(tokens), -1, dtype=np.int64)
            at[there] = numbers
            grams.append(at)
            keys.append(found)
        orders: list[_Order] = []
        for k in range(1, order + 1):
            predicted = (grams[k] >= 0) & (age > 0)
            size, contexts = len(keys[k]), len(keys[k - 1])
            counts = np.bincount(grams[k][predicted], minlength=size).astype(np.float64)
            if k < order:
                _, one = np.unique(grams[k + 1], return_index=True)  # an occurrence of each longer gram; -1 is none
                longer = one[(grams[k + 1][one] >= 0) & (age[one] > 0)]
                continued = np.bincount(grams[k][longer], minlength=size).astype(np.float64)
                begins = np.zeros(size, dtype=bool)
                begins[grams[k][predicted & (age == k - 1)]] = True
                counts = np.where(begins, counts, continued)
            context = keys[k] // vocab_size
            ones, twos = float((counts == 1).sum()), float((counts == 2).sum())
            orders.append(
                _Order(
                    keys=keys[k],
                    counts=counts,
                    total=np.bincount(context, counts, minlength=contexts).astype(np.float64),
                    distinct=np.bincount(context, counts > 0, minlength=contexts).astype(np.float64),
                    discount=ones / (ones + 2 * twos) if ones else 0.5,
                )
            )
        return cls(vocab_size, tuple(orders))

    def log_probability(self, story: Int[np.ndarray, " t"]) -> Float[np.ndarray, " t-1"]:
        """Nats, of every token after the first given those before it."""
        tokens, age = _end_to_end([story])
        gram, p = np.zeros(len(tokens), dtype=np.int64), np.full(len(tokens), 1 / self.vocab_size)
        for k, order in enumerate(self.orders, start=1):
            if not len(order.keys):  # no story is so long
                break
            before = np.concatenate([[-1], gram[:-1]]) if k > 1 else np.zeros(len(tokens), dtype=np.int64)
            known = (age >= k - 1) & (before >= 0)
            context = np.where(known, before, 0)
            key = context * self.vocab_size + tokens
            rank = np.searchsorted(order.keys, key).clip(0, len(order.keys) - 1)
            found = known & (order.keys[rank] == key)
            gram = np.where(found, rank, -1)
            total = order.total[context]
            usable = known & (total > 0)
            counted = np.where(found, np.maximum(order.counts[rank] - order.discount, 0), 0.0)
            spared = np.minimum(order.discount, 1.0) * order.distinct[context]
            p = np.where(usable, (counted + spared * p) / np.where(usable, total, 1.0), p)
        return np.log(p[1:])


def _end_to_end(stories: Sequence[Story]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """All tokens, and how many tokens of its story stand before each."""
    lengths = np.array([len(story) for story in stories], dtype=np.int64)
    if not lengths.sum():
        raise UserError("there is no story to count.")
    tokens = np.concatenate([np.asarray(story, dtype=np.int64) for story in stories])
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return tokens, np.arange(len(tokens)) - starts


def _keys(gram: Int[np.ndarray, " n"], tokens: Int[np.ndarray, " n"], vocab_size: int) -> Int[np.ndarray, " n"]:
    """Key of the gram that ends at each token, from the number of the gram one shorter that ends before it."""
    before = np.concatenate([[0], gram[:-1]])
    return before * vocab_size + tokens
