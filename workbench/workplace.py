"""Where a long computation may keep what it has so far, and whom it tells how far it is; set by whoever runs it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workplace:
    """What a computation finds around it; the empty one keeps nothing and tells nobody."""

    folder: Path | None = None
    """For files that the same computation goes on from after a kill; its owner removes it when the work is done."""
    progress: Callable[[int, int, str], None] = lambda done, total, what: None
    """`(done, total, what comes next)` in steps of the computation's own choice; nothing is said of the last where all are alike."""


_here: ContextVar[Workplace] = ContextVar("workplace", default=Workplace())  # noqa: B039  # frozen


def workplace() -> Workplace:
    """The one that is set around the caller."""
    return _here.get()


@contextmanager
def working(place: Workplace) -> Generator[None]:
    """Set it for what runs inside."""
    token = _here.set(place)
    try:
        yield
    finally:
        _here.reset(token)


class Meter:
    """Counts up to about a total and tells the workplace."""

    def __init__(self, total: int) -> None:
        self.done, self.total, self._place = 0, total, workplace()

    def tick(self, more: int) -> None:
        """So much more is done; an estimate that was too low stops at its end."""
        self.done += more
        self._place.progress(min(self.done, self.total), self.total, "")
