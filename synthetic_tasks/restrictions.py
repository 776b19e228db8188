"""Texts of some labels only: what a capability such as `count_a>4` or a training on labels up to 4 is drawn from.

A restriction is honoured by drawing whole distributions and keeping what satisfies it, so the texts are those of the
distribution given the label.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt8

from synthetic_tasks.labels import ABSENT
from workbench.errors import UserError

Texts = UInt8[np.ndarray, "n length"]
Drawn = tuple[Texts, Bool[np.ndarray, " n"] | None]
"""Texts, and which of them are correlated where that is a question."""

RAREST = 0.01
"""Restrictions that fewer of a distribution's texts satisfy are refused."""
PROBE_TEXTS = 4096
_NAME = re.compile(r"(?P<name>.+?)(?P<relation><=|>)(?P<label>\d+)")


@dataclass(frozen=True)
class Labels:
    """An interval of labels, ends included; an absent occurrence has no label and lies in none."""

    low: int | None = None
    high: int | None = None

    def __bool__(self) -> bool:
        return self.low is not None or self.high is not None

    def hold(self, labels: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Which labels lie inside."""
        inside = labels != ABSENT
        if self.low is not None:
            inside &= labels >= self.low
        if self.high is not None:
            inside &= labels <= self.high
        return inside

    def __str__(self) -> str:
        ends = [f">{self.low - 1}"] if self.low is not None else []
        return "".join([*ends, *([f"<={self.high}"] if self.high is not None else [])])


ALL = Labels()


def at_most_and_above(at_most: int | None, above: int | None) -> Labels:
    """The labels that settings `labels_at_most` and `labels_above` leave.

    Raises:
        UserError: they leave none.
    """
    if at_most is not None and above is not None and at_most <= above:
        raise UserError(
            f"labels_above {above} and labels_at_most {at_most} leave no label; raise labels_at_most above {above}."
        )
    return Labels(None if above is None else above + 1, at_most)


def parse(capability: str) -> tuple[str, Labels]:
    """`count_a>4` -> `count_a` and the labels from 5 on; a plain name has all labels."""
    found = _NAME.fullmatch(capability)
    if found is None:
        return capability, ALL
    label = int(found["label"])
    return found["name"], Labels(high=label) if found["relation"] == "<=" else Labels(low=label + 1)


def check(
    name: str, labels: Labels, answers: tuple[int, int], draw: Callable[[int], Drawn], read: Callable[[Texts], np.ndarray]
) -> None:
    """Refuse a restriction that no text or hardly any text can satisfy.

    Args:
        name: of the capability, for the message.
        labels: the restriction.
        answers: smallest and largest label that the family has at all.
        draw: texts of the distribution.
        read: their labels.

    Raises:
        UserError: a bound that leaves out nothing or everything, or labels of fewer than `RAREST` of the texts.
    """
    first, last = answers
    for bound in (None if labels.low is None else labels.low - 1, labels.high):
        if bound is not None and not first <= bound < last:
            raise UserError(
                f"{name}{labels} splits no labels, since those of {name!r} go from {first} to {last}; "
                f"use a bound from {first} to {last - 1}."
            )
    found = read(draw(PROBE_TEXTS)[0])
    share = float(labels.hold(found).mean())
    if share < RAREST:
        seen = found[found != ABSENT]
        where = f"from {seen.min()} to {seen.max()}" if len(seen) else "absent"
        raise UserError(
            f"{name}{labels} holds in {share:.1%} of these texts, whose labels are {where}; use a bound well inside that range."
        )


def draw_restricted(
    n: int, labels: Labels, draw: Callable[[int], Drawn], read: Callable[[Texts], np.ndarray]
) -> tuple[Texts, Bool[np.ndarray, " n"] | None]:
    """`n` texts with such labels, by drawing as many as are missing (and some more) until there are enough."""
    if not labels:
        return draw(n)
    texts: list[np.ndarray] = []
    flags: list[np.ndarray] = []
    missing = n
    while missing > 0:
        some, correlated = draw(max(64, 2 * missing))
        kept = np.flatnonzero(labels.hold(read(some)))[:missing]
        texts.append(some[kept])
        if correlated is not None:
            flags.append(correlated[kept])
        missing -= len(kept)
    return np.concatenate(texts), np.concatenate(flags) if flags else None
