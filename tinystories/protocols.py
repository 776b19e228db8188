"""Training protocols on stories [Jain+23 §5, §F.1]: all of them, those without a feature (filter), those with it (specialise).

Each factory has the signature `(task, settings, batch_size, seed) -> TrainingProtocol` of `workbench.protocols`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tinystories.packing import Packed, packed
from tinystories.task import FEATURES, WITHOUT, StoriesTask, to_predict
from workbench.errors import UserError, did_you_mean
from workbench.examples import Examples
from workbench.protocols import Task, TrainingProtocol
from workbench.seeds import stream
from workbench.settings import Settings, read_settings


class StoriesPretrainingSettings(Settings):
    """Settings of `stories`."""

    without: str | None = None
    """A capability whose stories are left out: `dialogue`."""


class FeatureSettings(Settings):
    """Settings of `filter` and `specialise`."""

    capability: str
    """`dialogue`; `no_dialogue` names the same feature."""


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
        """Capabilities that such stories show."""
        if self.kind is None:
            return frozenset(self.task.capabilities)
        other = self.kind.removeprefix(WITHOUT) if self.kind.startswith(WITHOUT) else WITHOUT + self.kind
        return frozenset(self.task.capabilities) - {other}

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


def _stories(task: Task, protocol: str, batch_size: int) -> StoriesTask:
    if not isinstance(task, StoriesTask):
        raise UserError(f"protocol {protocol!r} needs a task of kind 'stories', not {type(task).__name__!r}; change the task.")
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} is below 1; use a positive number.")
    return task


def _feature(capability: str, protocol: str) -> str:
    feature = capability.removeprefix(WITHOUT)
    if feature not in FEATURES:
        raise UserError(f"protocol {protocol}: no stories are set apart by {capability!r}{did_you_mean(capability, FEATURES)}")
    return feature


def stories(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """Pretraining on all stories, or on those without a feature: a model that never had it.

    Raises:
        UserError: an unknown setting or feature, or another task.
    """
    read = read_settings(StoriesPretrainingSettings, settings, "protocol stories")
    kind = None if read.without is None else WITHOUT + _feature(read.without, "stories")
    return Windows(_stories(task, "stories", batch_size), kind, batch_size, seed)


def filter_stories(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """Only stories without the feature: deletion by filtering [Jain+23 §F.1, F].

    Raises:
        UserError: an unknown setting or feature, or another task.
    """
    read = read_settings(FeatureSettings, settings, "protocol filter")
    kind = WITHOUT + _feature(read.capability, "filter")
    return Windows(_stories(task, "filter", batch_size), kind, batch_size, seed)


def specialise(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """Only stories with the feature: reverse fine-tuning [Jain+23 §F.1, reFT].

    Raises:
        UserError: an unknown setting or feature, or another task.
    """
    read = read_settings(FeatureSettings, settings, "protocol specialise")
    return Windows(_stories(task, "specialise", batch_size), _feature(read.capability, "specialise"), batch_size, seed)
