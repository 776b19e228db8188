"""Counterfactual texts: edited as little as possible to another answer, so that two prompts differ in little else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt8

from synthetic_tasks.edits import set_counts
from synthetic_tasks.labels import ABSENT, count
from workbench.errors import UserError

Texts = UInt8[np.ndarray, "n length"]
Read = Callable[[Texts], Int[np.ndarray, " n"]]
"""The label of each text."""

CANDIDATE_BYTES = 2**24
"""Edited texts that are looked at together."""


def other_counts(texts: Texts, window: int, operand: int, terminals: int, rng: np.random.Generator) -> Texts:
    """Texts in which a symbol occurs another number of times in the last `window` positions.

    The new count is one that lies in the range of these texts, where the window has room for it. Of the other symbols only
    the last one gives way, so that exactly as many positions change as the two counts differ by; where a window holds
    neither it nor the operand, all others do.

    Raises:
        UserError: there is one symbol only, so that its count is the window.
    """
    if terminals < 2:
        raise UserError("texts of one symbol have one count, so there is no counterfactual; use a grammar of two or more.")
    own = count(texts, operand, window)
    *held, filler = [s for s in range(terminals) if s != operand]
    room = own + count(texts, filler, window)
    stuck = room == 0
    room = np.where(stuck, window, room)
    low, high = np.full(len(own), own.min(initial=window)), np.minimum(own.max(initial=0), room)
    none = low == high  # no other count of the range fits, so any that fits must do
    low, high = np.where(none, 0, low), np.where(none, room, high)
    wanted = low + np.floor(rng.random(len(own)) * (high - low)).astype(np.int64)
    wanted += wanted >= own
    edited = texts.copy()
    for rows, kept in ((~stuck, held), (stuck, [])):
        targets = {operand: wanted[rows], **{s: count(texts[rows], s, window) for s in kept}}
        edited[rows] = set_counts(texts[rows], window, targets, terminals, rng)
    return edited


def one_substitution(
    texts: Texts,
    letters: int,
    label: Read,
    rng: np.random.Generator,
    held: Sequence[Read] = (),
    repeats: bool = True,
) -> Texts:
    """Texts in which one letter is replaced by another so that `label` is another.

    All such edits are tried. Preferred are those after which there still is an occurrence, then those that leave the labels
    `held` as they are, then those whose label lies in the range of these texts; one of the best is taken at random. A
    text that no single edit gives another label is exchanged for another one of these.

    Args:
        texts: letter indices.
        letters: how many there are.
        label: what must change; `ABSENT` is a label too.
        rng: chooses.
        held: labels that should stay.
        repeats: whether a letter may be put in that the text already has.

    Raises:
        UserError: a text of which no edit has another label, and neither has any other text.
    """
    n, length = texts.shape
    own = label(texts)
    seen = own[own != ABSENT]
    first, last = (seen.min(), seen.max()) if len(seen) else (0, 0)
    edited, found = texts.copy(), np.zeros(n, dtype=bool)
    size = max(1, CANDIDATE_BYTES // (length * (letters - 1) * length))
    for start in range(0, n, size):
        part = slice(start, start + size)
        tried = _substitutions(texts[part], letters)  # [m, edits, length]
        m, edits = tried.shape[:2]
        flat = tried.reshape(-1, length)
        new = label(flat).reshape(m, edits)
        score = 4 * (new != ABSENT) + ((first <= new) & (new <= last))
        if held:
            same = [read(flat).reshape(m, edits) == read(texts[part])[:, None] for read in held]
            score = score + 2 * np.logical_and.reduce(same)
        allowed = new != own[part][:, None]
        if not repeats:
            allowed &= _all_different(flat).reshape(m, edits)
        rank = np.where(allowed, score + rng.random((m, edits)), -1.0)
        best = rank.argmax(1)
        found[part] = rank.max(1) >= 0
        edited[part] = np.where(found[part][:, None], tried[np.arange(m), best], texts[part])
    lost = np.flatnonzero(~found)
    if len(lost):
        edited[lost] = texts[_partners(own, lost, rng)]
    return edited


def _substitutions(texts: Texts, letters: int) -> UInt8[np.ndarray, "n edits length"]:
    """Every text with each position replaced by each other letter."""
    n, length = texts.shape
    step = np.arange(1, letters, dtype=np.int64)
    tried = np.broadcast_to(texts[:, None, None], (n, length, letters - 1, length)).copy()
    place = np.arange(length)
    tried[:, place, :, place] = ((texts.T[:, :, None] + step) % letters).astype(np.uint8)
    return tried.reshape(n, length * (letters - 1), length)


def _all_different(texts: Texts) -> Bool[np.ndarray, " n"]:
    ordered = np.sort(texts, axis=1)
    return (ordered[:, 1:] != ordered[:, :-1]).all(1)


def _partners(own: Int[np.ndarray, " n"], rows: Int[np.ndarray, " r"], rng: np.random.Generator) -> Int[np.ndarray, " r"]:
    """For some rows, another row of another label."""
    differs = own[rows][:, None] != own
    if not differs.any(1).all():
        raise UserError(
            f"all {len(own)} texts have one answer, and no edit of one letter gives some of them another; draw more texts."
        )
    return np.where(differs, rng.random(differs.shape), -1.0).argmax(1)
