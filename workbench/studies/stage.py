"""What a plan is made of: stages, each addressed by the hash of all that it depends on, and the stages of a pair."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from workbench.examples import Correlation
from workbench.runs import Store, stage_key


@dataclass(frozen=True)
class Stage:
    """One unit of work; everything that its outcome depends on is in `spec`, `version` and `parents`."""

    name: str
    kind: str
    seed: int
    spec: Mapping[str, Any]
    parents: tuple[str, ...]
    version: int
    seconds: float
    """Rough cost on one core."""
    bytes: int
    """Disk when done."""
    memory: int
    """About the most bytes of memory that a process needs for it alone."""

    @cached_property
    def key(self) -> str:
        """Ten hexadecimal digits that name the run."""
        return stage_key(self.spec, self.version, "float32", self.parents)


@dataclass(frozen=True)
class PairPlan:
    """The stages that make one pair under one seed."""

    name: str
    seed: int
    capability: str
    """O_PT: the ability that may be lost."""
    tuned_on: str
    """O_FT: the ability that was trained."""
    correlation: Correlation | None
    base: Stage
    start: Stage
    """What fine-tuning started from; the base, as a rule."""
    tuned: Stage
    never: Stage | None
    arms: Mapping[str, Stage]
    siblings: Mapping[str, tuple[Stage, Stage]] = field(default_factory=dict[str, tuple[Stage, Stage]])
    """Base and tuned stage of the other fine-tunes of this base, and of the same pair under other seeds."""
    analyses: Mapping[str, Stage] = field(default_factory=dict[str, Stage])

    @property
    def models(self) -> tuple[Stage, ...]:
        """The trainings that an analysis needs, arms aside."""
        made = (self.base, self.start, self.tuned, *([self.never] if self.never else []))
        return tuple({stage.key: stage for stage in made}.values())

    def body(
        self,
        task: Mapping[str, Any],
        examples: int,
        arms: Collection[str] = (),
        siblings: Collection[str] = (),
    ) -> dict[str, Any]:
        """The `pair` section of an analysis' spec, which `workbench.subjects.open_pair` reads, with these arms and siblings."""
        others = {name: both for name, both in self.siblings.items() if name in siblings}
        return {
            "base": self.base.key,
            **({} if self.start.key == self.base.key else {"start": self.start.key}),
            "tuned": self.tuned.key,
            "never_had_it": self.never.key if self.never else None,
            "task": dict(task),
            "capability": self.capability,
            "tuned_on": self.tuned_on,
            "correlation": correlation_dict(self.correlation),
            "examples": examples,
            "arms": {arm: stage.key for arm, stage in self.arms.items() if arm in arms},
            **({"siblings": {name: {"base": b.key, "tuned": t.key} for name, (b, t) in others.items()}} if others else {}),
        }


def not_done(store: Store, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages without a whole run; lists the store once."""
    runs = store.find_all(stage.key for stage in stages)
    return tuple(stage for stage in stages if stage.key not in runs or not runs[stage.key].done)


def correlation_dict(correlation: Correlation | None) -> dict[str, Any] | None:
    """As it stands in the spec of a stage."""
    if correlation is None:
        return None
    return {
        "target": correlation.target,
        "partner": correlation.partner,
        "offset": correlation.offset,
        "share": correlation.share,
    }
