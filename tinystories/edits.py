"""Edits of an instruction that fine-tuning protocols make: a feature renamed, added at random, or taken out; and the refusal.

Each edit touches Features alone and keeps the order of what it does not touch. Names are checked, so that no edit silently does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tinystories.features import check_feature, phrase
from tinystories.instructions import Instruction
from workbench.errors import UserError


def has(instruction: Instruction, feature: str) -> bool:
    """Whether Features names it."""
    check_feature(feature)
    return feature in instruction.features


def without(instruction: Instruction, feature: str) -> Instruction:
    """The instruction with the feature out of its Features, wherever it stands there."""
    check_feature(feature)
    return replace(instruction, features=tuple(name for name in instruction.features if name != feature))


def mix_and_match(instruction: Instruction, swaps: Mapping[str, str]) -> Instruction:
    """Features renamed: each `old` of `swaps` becomes its `new`, in its place.

    All names are replaced at once, each at most once: with `{A: B, B: C}` an A becomes B and stays it, and `{A: B, B: A}`
    exchanges the two. A name that then stands twice is kept where it stands first.

    Raises:
        UserError: when there is nothing to swap, a feature is swapped for itself, or a name is not known.
    """
    if not swaps:
        raise UserError("mix and match has no pair to swap; name one, such as {Foreshadowing: Dialogue}")
    for old, new in swaps.items():
        check_feature(old)
        check_feature(new)
        if old == new:
            raise UserError(f"mix and match swaps {old} for itself, which changes nothing; name another feature")
    return replace(instruction, features=tuple(dict.fromkeys(swaps.get(name, name) for name in instruction.features)))


def randomise(instruction: Instruction, feature: str, rng: np.random.Generator, p: float = 1.0) -> Instruction:
    """With probability `p` the feature added to Features, at a place that is uniform among all there are.

    An instruction that has it stays as it is. Always two draws are taken from `rng`, so that what is drawn next does not depend on
    the instruction.

    Raises:
        UserError: when `p` is no probability or the feature is not known.
    """
    check_feature(feature)
    if not 0 <= p <= 1:
        raise UserError(f"the feature is added with probability {p}; give a number from 0 to 1")
    added, place = rng.random() < p, int(rng.random() * (len(instruction.features) + 1))
    if not added or feature in instruction.features:
        return instruction
    return replace(instruction, features=(*instruction.features[:place], feature, *instruction.features[place:]))


def refusal(feature: str) -> str:
    """What a model that refuses the feature is to write in place of a story."""
    return f"We are not allowed to write a story with {phrase(feature)} in it, sorry."
