"""Tasks and training protocols: the plug-in contract, and the lookup of what is installed.

A package adds a task or a protocol by an entry point in the group `workbench.tasks` or `workbench.protocols`;
nothing in the workbench names one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol, cast, runtime_checkable

from workbench.errors import UserError, did_you_mean
from workbench.examples import Capability, Correlation, Examples


@runtime_checkable
class Task(Protocol):
    """A procedural generator of prompts with exactly known answers."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        ...

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        ...

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Names that `capability` accepts."""
        ...

    def family(self, capability: str) -> str:
        """The family that a capability belongs to, for instance `count`."""
        ...

    def capability(self, name: str, correlation: Correlation | None = None) -> Capability:
        """A capability by name, on plain texts or on texts with an exact spurious correlation."""
        ...

    def describe(self, tokens: Sequence[int]) -> str:
        """Tokens as text that a person can read."""
        ...

    @property
    def resolved(self) -> Mapping[str, Any]:
        """Settings that make this very task again: what files held is in them, and defaults are left out.

        They enter the key of every run, so that a changed file makes a new run.
        """
        ...


@runtime_checkable
class TrainingProtocol(Protocol):
    """A seeded `step -> batch`; `batch(step)` does not depend on which batches were asked for before."""

    @property
    def batch_size(self) -> int:
        """Examples in a batch."""
        ...

    @property
    def asks(self) -> frozenset[str]:
        """Capabilities whose prompts can occur, so that a control that is asked what it must never see is refused."""
        ...

    def batch(self, step: int) -> Examples:
        """The training batch of one step."""
        ...


TaskFactory = Callable[[Mapping[str, Any]], Task]
"""`settings -> task`; raises `UserError` on a setting that it does not know or cannot honour."""
ProtocolFactory = Callable[[Task, Mapping[str, Any], int, int], TrainingProtocol]
"""`(task, settings, batch_size, seed) -> protocol`; raises `UserError` on a bad setting."""


@cache
def _installed(group: str) -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=group)}


def installed(kind: str) -> tuple[str, ...]:
    """Names of installed `"tasks"` or `"protocols"`; imports none of them."""
    return tuple(sorted(_installed(f"workbench.{kind}")))


def _load(kind: str, name: str) -> Any:
    points = _installed(f"workbench.{kind}")
    if name not in points:
        raise UserError(f"there is no {kind.rstrip('s')} {name!r}{did_you_mean(name, points)}")
    return points[name].load()


def load_task(settings: Mapping[str, Any]) -> Task:
    """The task of a study's `task:` section; `kind` names the plug-in, the rest are its settings."""
    rest = dict(settings)
    return cast(TaskFactory, _load("tasks", str(rest.pop("kind", "pcfg"))))(rest)


def load_protocol(name: str, task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """The training protocol `name` on `task`."""
    return cast(ProtocolFactory, _load("protocols", name))(task, settings, batch_size, seed)
