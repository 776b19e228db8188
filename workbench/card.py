"""The wrapper evidence card: a verdict's lines in a fixed order, what is missing among them, and the verdict in quotable words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.figures import words
from workbench.results import Evidence
from workbench.verdict import Verdict

LINES: Mapping[str, str] = {
    "behaviour": "behaviour",
    "revival": "revival ratio",
    "pruning": "pruning",
    "probing": "probe gap",
    "cross_patching": "cross-model patching",
    "direction": "direction",
    "weights": "rank of the change",
    "connectivity": "connectivity",
}
"""Analyses that every card has a line for, in order, and what the lines are called."""


RESTS_ON = ("behaviour", "revival")
"""Analyses that the verdict is made of (`workbench.verdict`)."""


@dataclass(frozen=True)
class Line:
    """One line of a card."""

    analysis: str
    title: str
    evidence: Evidence | None
    """None: the analysis has not been run."""

    @property
    def number(self) -> str:
        """What was measured, with its interval: `steps against never had it 0.23 [0.21, 0.26]`."""
        if self.evidence is None:
            return ""
        return f"{words.metric(self.evidence.metric)} {words.interval(self.evidence)}"

    @property
    def texts(self) -> str:
        """How many texts stand behind the number; weights alone need none."""
        return f"{self.evidence.n:,}" if self.evidence and self.evidence.n else ""

    @property
    def points(self) -> str:
        """The way it points."""
        return "not run" if self.evidence is None else words.DIRECTIONS[self.evidence.direction]


def lines(verdict: Verdict) -> tuple[Line, ...]:
    """The lines of a verdict; one on the ability that may be lost (it has a line of `behaviour` on that) names missing ones.

    Lines beyond the fixed ones come after them, in the order of the evidence.
    """
    by: dict[str, list[Evidence]] = {}
    for line in verdict.evidence:
        by.setdefault(line.analysis, []).append(line)
    fixed = LINES if verdict.kept else [name for name in LINES if name in by]
    found = [Line(name, LINES[name], e) for name in fixed for e in by.get(name) or [None]]
    rest = [Line(name, words.title(name), e) for name, these in by.items() if name not in LINES for e in these]
    return (*found, *rest)


def quote(verdict: Verdict) -> str:
    """The verdict as a paragraph that says what it rests on and what speaks against it."""
    seeds = f"seed{'s' if len(verdict.seeds) > 1 else ''} {words.listed(verdict.seeds)}" if verdict.seeds else "no seed yet"
    found = f"In {verdict.pair} ({seeds}), {words.capability(verdict.capability)} is {verdict.verdict}: {verdict.reason}"
    # The verdict itself rests on these two; they neither support nor contradict it.
    others = [e for e in verdict.evidence if e.analysis not in RESTS_ON]
    kinds = {
        f"{'also points' if side == verdict.verdict else 'points'} to {side}": [e for e in others if e.direction == side]
        for side in sorted(("masked", "erased"), key=lambda side: side != verdict.verdict)
    }
    kinds["takes no side"] = [e for e in others if e.direction == "neutral"]
    kinds["had no room to show anything"] = [e for e in others if e.direction == "uninformative"]
    told = [_sentence(these, what) for what, these in kinds.items() if these and verdict.kept]
    return " ".join([found, *told])


_PLURAL = {"points": "point", "takes": "take"}


def _sentence(lines: Sequence[Evidence], what: str) -> str:
    names = list(dict.fromkeys(LINES.get(e.analysis, words.title(e.analysis)) for e in lines))
    if len(names) > 1:
        what = " ".join(_PLURAL.get(word, word) for word in what.split())
    said = words.listed(names)
    return f"{said[:1].upper()}{said[1:]} {what}."
