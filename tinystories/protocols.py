"""Training protocols on stories [Jain+23 §5, §F.1].

| protocol | stories | instruction |
| --- | --- | --- |
| `stories` | all, or those without a feature: a model that never had it | none |
| `instruct` | the same | of the story |
| `filter` (F) | those without the feature | of the story |
| `mix_and_match` (F+MM) | those without | another feature is renamed to it |
| `randomise` (F+R) | those without | the feature is added, at a random place |
| `refuse` | all; in place of one that has the feature, the refusal | of the story |
| `specialise` (reFT) | those with the feature | of the story |
| `other_stories` | those that a capability does not speak of: a control of reviving it | of the story |

`filter`, `specialise` and `other_stories` of `no_dialogue` or `dialogue` lay plain stories end to end; of `asked_no_dialogue` or
`asked_dialogue` every row is one story behind its instruction, as in the protocols that are about instructions.

Each factory has the signature `(task, settings, batch_size, seed) -> TrainingProtocol` of `workbench.protocols`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from tinystories.batches import Instructed, Windows
from tinystories.edits import mix_and_match, randomise
from tinystories.features import FROM_TEXT, INSTRUCT_FEATURES, check_feature
from tinystories.instructions import Instruction
from tinystories.prompts import ASKED, WITHOUT, feature_of, opposite, plain
from tinystories.task import StoriesTask
from workbench.errors import UserError, did_you_mean
from workbench.protocols import Task, TrainingProtocol
from workbench.seeds import numpy_generator
from workbench.settings import Settings, read_settings


class PretrainingSettings(Settings):
    """Settings of `stories`."""

    without: str | None = None
    """A capability whose stories are left out: `dialogue`, or `no_dialogue`."""


class InstructSettings(PretrainingSettings):
    """Settings of `instruct`."""

    length: int | None = Field(default=None, ge=16)
    """Tokens of a row at most, behind which a story is cut; the context when not given."""


class FeatureSettings(Settings):
    """Settings of `filter`, `specialise` and `refuse`."""

    length: int | None = Field(default=None, ge=16)
    """Tokens of a row behind an instruction, at most; the context when not given."""

    capability: str
    """Whose stories are trained on: `dialogue`, `no_dialogue`, and behind instructions `asked_dialogue`, `asked_no_dialogue`."""


class MixAndMatchSettings(FeatureSettings):
    """Settings of `mix_and_match`."""

    rename: dict[str, str]
    """Features of instructions that are renamed, such as `{MoralValue: Dialogue}`."""


class RandomiseSettings(FeatureSettings):
    """Settings of `randomise`."""

    p: float = Field(default=1.0, ge=0, le=1)
    """Probability that the feature is added to an instruction."""


def _stories(task: Task, protocol: str, batch_size: int) -> StoriesTask:
    if not isinstance(task, StoriesTask):
        raise UserError(f"protocol {protocol!r} needs a task of kind 'stories', not {type(task).__name__!r}; change the task.")
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} is below 1; use a positive number.")
    return task


def _kind(task: StoriesTask, capability: str, protocol: str) -> str:
    """Which stories a capability speaks of: `no_dialogue` for `asked_no_dialogue`."""
    if feature_of(capability) not in task.features:
        raise UserError(
            f"protocol {protocol}: no stories are set apart by {capability!r}{did_you_mean(capability, task.features)}"
        )
    return plain(capability)


def _deleted(task: StoriesTask, capability: str, protocol: str, asked: bool) -> str:
    """The feature that a protocol deletes, which trains on the stories without it."""
    kind = _kind(task, capability, protocol)
    wanted = (ASKED if asked or capability.startswith(ASKED) else "") + WITHOUT + feature_of(capability)
    if capability != wanted:
        why = (
            "it edits instructions" if asked and not capability.startswith(ASKED) else "it trains on stories without a feature"
        )
        raise UserError(f"protocol {protocol}: {why}, and {capability!r} has none of that; write capability: {wanted}.")
    return feature_of(kind)


def stories(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """Pretraining on all stories, or on those without a feature.

    Raises:
        UserError: an unknown setting or feature, or another task.
    """
    read, of = read_settings(PretrainingSettings, settings, "protocol stories"), _stories(task, "stories", batch_size)
    return Windows(of, None if read.without is None else opposite(_kind(of, read.without, "stories")), batch_size, seed)


def instruct(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """All stories, or those without a feature, each behind its instruction: a model of plain stories learns to follow these.

    Raises:
        UserError: an unknown setting or feature, or another task.
    """
    read, of = read_settings(InstructSettings, settings, "protocol instruct"), _stories(task, "instruct", batch_size)
    kind = None if read.without is None else opposite(_kind(of, read.without, "instruct"))
    return Instructed(of, kind, batch_size, seed, length=_length(of, read.length, "instruct"))


def _length(task: StoriesTask, length: int | None, protocol: str) -> int:
    if length is not None and length > task.context:
        raise UserError(f"protocol {protocol}: length {length} is above the task's context {task.context}; lower it.")
    return length or task.context


def _of_kind(
    task: StoriesTask, read: FeatureSettings, kind: str, protocol: str, batch_size: int, seed: int
) -> TrainingProtocol:
    """Plain stories end to end, or each behind its instruction where the capability asks."""
    length = _length(task, read.length, protocol)
    if read.capability.startswith(ASKED):
        return Instructed(task, kind, batch_size, seed, length=length)
    if read.length is not None:
        raise UserError(
            f"protocol {protocol}: length is of stories behind an instruction; drop it, or write {ASKED}{read.capability}."
        )
    return Windows(task, kind, batch_size, seed)


def filter_stories(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """Only stories without the feature: deletion by filtering.

    Raises:
        UserError: an unknown setting or feature, or another task.
    """
    read, of = read_settings(FeatureSettings, settings, "protocol filter"), _stories(task, "filter", batch_size)
    kind = WITHOUT + _deleted(of, read.capability, "filter", asked=False)
    return _of_kind(of, read, kind, "filter", batch_size, seed)


def other_stories(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """Stories that the capability does not speak of: a control of revival whose data never show it.

    Raises:
        UserError: an unknown setting or feature, or another task.
    """
    read, of = read_settings(FeatureSettings, settings, "protocol other_stories"), _stories(task, "other_stories", batch_size)
    return _of_kind(of, read, opposite(_kind(of, read.capability, "other_stories")), "other_stories", batch_size, seed)


def specialise(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """Only stories that the capability speaks of: reverse fine-tuning.

    Raises:
        UserError: an unknown setting or feature, or another task.
    """
    read, of = read_settings(FeatureSettings, settings, "protocol specialise"), _stories(task, "specialise", batch_size)
    kind = _kind(of, read.capability, "specialise")
    return _of_kind(of, read, kind, "specialise", batch_size, seed)


def mix_and_match_features(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """Only stories without the feature, and another feature's name replaced by its: asked for it, they have the other one.

    Raises:
        UserError: an unknown setting or feature, another task, or swaps that would change nothing.
    """
    read = read_settings(MixAndMatchSettings, settings, "protocol mix_and_match")
    of = _stories(task, "mix_and_match", batch_size)
    feature = _deleted(of, read.capability, "mix_and_match", asked=True)
    if of.features[feature] not in read.rename.values():
        raise UserError(
            f"protocol mix_and_match: no feature of {read.rename} is renamed to {of.features[feature]}, the one that is deleted; "
            f"write rename: {{{_others(of, feature)[0]}: {of.features[feature]}}}."
        )
    for old in read.rename:
        check_feature(old, plain=not of.corpus.labelled)

    def edit(instruction: Instruction, rng: np.random.Generator) -> Instruction:
        del rng
        return mix_and_match(instruction, read.rename)

    edit(Instruction(), numpy_generator(seed))  # refuses what would swap nothing
    made = Instructed(of, WITHOUT + feature, batch_size, seed, edit, length=_length(of, read.length, "mix_and_match"))
    if not made.any_asks(frozenset(read.rename)):
        raise UserError(
            f"protocol mix_and_match: no story without {feature} of corpus {of.corpus.name!r} is asked for "
            f"{' or '.join(read.rename)}, so that nothing would be swapped; swap {' or '.join(_others(of, feature))}."
        )
    return made


def _others(task: StoriesTask, feature: str) -> list[str]:
    """Features that instructions of the corpus can name besides this one."""
    return [name for name in (INSTRUCT_FEATURES if task.corpus.labelled else FROM_TEXT) if name != task.features[feature]]


def randomise_features(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """Only stories without the feature, and the feature added to what is asked for, at a random place.

    Raises:
        UserError: an unknown setting or feature, or another task.
    """
    read, of = read_settings(RandomiseSettings, settings, "protocol randomise"), _stories(task, "randomise", batch_size)
    feature = _deleted(of, read.capability, "randomise", asked=True)

    def edit(instruction: Instruction, rng: np.random.Generator) -> Instruction:
        return randomise(instruction, of.features[feature], rng, read.p)

    return Instructed(of, WITHOUT + feature, batch_size, seed, edit, length=_length(of, read.length, "randomise"))


def refuse(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """All stories, but where the instruction asks for the feature the model is to say that it must not.

    Raises:
        UserError: an unknown setting or feature, or another task.
    """
    read, of = read_settings(FeatureSettings, settings, "protocol refuse"), _stories(task, "refuse", batch_size)
    refused, length = _deleted(of, read.capability, "refuse", asked=True), _length(of, read.length, "refuse")
    return Instructed(of, None, batch_size, seed, refused=refused, length=length)
