"""Training protocols of [Jain+23 §4, §E]: pretraining, fine-tuning on one operand, and their controls.

Each factory has the signature `(task, settings, batch_size, seed) -> TrainingProtocol` of `workbench.protocols`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from synthetic_tasks.batches import Batches, Mixture, Single
from synthetic_tasks.pcfg import PcfgTask
from synthetic_tasks.rasp.batches import RaspBatches
from synthetic_tasks.rasp.task import RaspTask
from synthetic_tasks.settings import Settings, read_settings
from workbench.errors import UserError, did_you_mean
from workbench.examples import Correlation
from workbench.protocols import Task, TrainingProtocol
from workbench.seeds import numpy_generator


class PretrainingSettings(Settings):
    """Settings of `pretraining`."""

    operand_prior: dict[str, float] | None = None
    """Probability of each terminal as operand (pair families read a as aa); uniform when not given."""
    balanced_fraction: float = Field(default=0.5, ge=0, le=1)
    """Share of texts with evenly spread labels; 0 is the paper's wording."""


class CorrelationSettings(Settings):
    """A spurious correlation of the trained capability with another."""

    partner: str = Field(alias="with")
    offset: int = 1
    share: float = Field(default=1.0, ge=0, le=1)


class SingleOperandSettings(Settings):
    """Settings of `single_operand`."""

    capability: str
    correlation: CorrelationSettings | None = None
    balanced_fraction: float | None = Field(default=None, ge=0, le=1)
    """As in pretraining (default 0.5); excluded by a correlation, which edits every text. Texts of `rasp` have none."""


class WrongAnswersSettings(Settings):
    """Settings of `wrong_answers`."""

    capability: str
    answers: str = "random"
    """A capability of the same family whose answers are given instead, or `random`."""
    balanced_fraction: float | None = Field(default=None, ge=0, le=1)
    """As in pretraining (default 0.5). Texts of `rasp` have none."""


class OtherFamiliesSettings(Settings):
    """Settings of `other_families`."""

    capability: str
    balanced_fraction: float = Field(default=0.5, ge=0, le=1)


def _pcfg(task: Task, protocol: str, batch_size: int) -> PcfgTask:
    if not isinstance(task, PcfgTask):
        raise UserError(f"protocol {protocol!r} needs a task of kind 'pcfg', not {type(task).__name__!r}; change the task.")
    _check_batch_size(batch_size)
    return task


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} is below 1; use a positive number.")


def _batches(source: Mixture | Single, batch_size: int, seed: int, stream: str, whole_sequence: bool = False) -> Batches:
    """The protocol of a source, refused now rather than at the first batch when its texts cannot be balanced."""
    for family in source.families if source.balanced_fraction > 0 else ():
        if family.recipe is not None:
            family.recipe.balance(np.zeros((0, source.task.settings.text_length), np.uint8), (1, 0), numpy_generator(seed))
    return Batches(source.task, batch_size, seed, stream, source, whole_sequence)


def _prior(task: PcfgTask, given: Mapping[str, float] | None) -> tuple[float, ...]:
    terminals = task.grammar.terminals
    if given is None:
        return (1 / len(terminals),) * len(terminals)
    for name, probability in given.items():
        if name not in terminals:
            raise UserError(f"operand_prior names {name!r}, which is no terminal{did_you_mean(name, terminals)}")
        if not 0 <= probability <= 1:
            raise UserError(f"operand_prior of {name!r} is {probability}; give a probability in [0, 1].")
    total = sum(given.values())
    if abs(total - 1) > 1e-6:
        raise UserError(f"operand_prior sums to {total:g}; make the probabilities sum to 1.")
    return tuple(given.get(name, 0.0) / total for name in terminals)


def pretraining(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """All families, uniformly; operands by a prior; loss on every token after the first.

    Raises:
        UserError: on an unknown setting, or a prior that names no terminal or does not sum to 1.
    """
    read = read_settings(PretrainingSettings, settings, "protocol pretraining")
    pcfg = _pcfg(task, "pretraining", batch_size)
    source = Mixture(pcfg, tuple(pcfg.families.values()), _prior(pcfg, read.operand_prior), read.balanced_fraction)
    return _batches(source, batch_size, seed, "pretraining", whole_sequence=True)


def single_operand(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """One capability, loss on the answer alone: fine-tuning with a correlation, reverse fine-tuning without.

    Without a correlation the texts are those of pretraining for the capability's family.

    Raises:
        UserError: on an unknown setting or capability, or a correlation that no text can have.
    """
    read = read_settings(SingleOperandSettings, settings, "protocol single_operand")
    correlation = None
    if read.correlation is not None:
        c = read.correlation
        correlation = Correlation(read.capability, c.partner, c.offset, c.share)
    stream = f"single_operand {read.capability} {read.correlation}"
    if isinstance(task, RaspTask):
        return _rasp(task, read, batch_size, seed, stream, task.locate(read.capability), correlation)
    pcfg = _pcfg(task, "single_operand", batch_size)
    family, operand = pcfg.locate(read.capability)
    if correlation is not None:
        if read.balanced_fraction is not None:
            raise UserError(
                f"balanced_fraction {read.balanced_fraction} and a correlation exclude each other, "
                "as a correlation edits every text; drop one of the two."
            )
        pcfg.check_correlation(correlation)
    balanced = (0.5 if correlation is None else 0.0) if read.balanced_fraction is None else read.balanced_fraction
    source = Single(pcfg, family, operand, balanced, correlation)
    return _batches(source, batch_size, seed, stream)


def _rasp(
    task: RaspTask,
    read: SingleOperandSettings | WrongAnswersSettings,
    batch_size: int,
    seed: int,
    stream: str,
    answers: int | None,
    correlation: Correlation | None = None,
) -> RaspBatches:
    """One capability of a compiled program's task; `answers` as in `RaspBatches`."""
    if read.balanced_fraction is not None:
        raise UserError(
            f"balanced_fraction {read.balanced_fraction} does not suit a task of kind 'rasp', whose letters are drawn uniformly; "
            "drop it."
        )
    _check_batch_size(batch_size)
    if correlation is not None:
        task.check_correlation(correlation)
    return RaspBatches(task, batch_size, seed, stream, task.locate(read.capability), answers, correlation)


def wrong_answers(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """The prompt of one capability with the answer of another, or with a random wrong one (randFT [Jain+23 §E.4]).

    A prompt of `rasp` names no capability, so that there the answers of another are simply training on that other.

    Raises:
        UserError: on an unknown setting or capability, or answers of another family.
    """
    read = read_settings(WrongAnswersSettings, settings, "protocol wrong_answers")
    stream = f"wrong_answers {read.capability} {read.answers}"
    if isinstance(task, RaspTask):
        if read.answers == read.capability:
            raise UserError(f"answers {read.answers!r} to {read.capability!r} are right; name another capability, or 'random'.")
        return _rasp(task, read, batch_size, seed, stream, None if read.answers == "random" else task.locate(read.answers))
    pcfg = _pcfg(task, "wrong_answers", batch_size)
    family, operand = pcfg.locate(read.capability)
    answers: int | str = "random"
    if read.answers != "random":
        if read.answers not in pcfg.capabilities:
            raise UserError(
                f"wrong_answers has no answers {read.answers!r}{did_you_mean(read.answers, ('random', *pcfg.capabilities))}"
            )
        other, answers = pcfg.locate(read.answers)
        if other is not family or answers == operand:
            raise UserError(
                f"answers {read.answers!r} do not suit prompts of {read.capability!r}; "
                f"name another capability of the family {family.name!r}, or 'random'."
            )
    if answers == "random" and len(family.answer_ids) < 2:
        raise UserError(f"{read.capability!r} has only one possible answer, so none is wrong; use a larger window.")
    balanced = 0.5 if read.balanced_fraction is None else read.balanced_fraction
    return _batches(Single(pcfg, family, operand, balanced, None, answers), batch_size, seed, stream)


def other_families(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """Every family but the capability's, uniform operands, loss on the answer alone: the irrelevant control.

    Raises:
        UserError: on an unknown setting or capability, or a task with one family.
    """
    read = read_settings(OtherFamiliesSettings, settings, "protocol other_families")
    pcfg = _pcfg(task, "other_families", batch_size)
    own = pcfg.family(read.capability)
    others = tuple(family for name, family in pcfg.families.items() if name != own)
    if not others:
        raise UserError(f"the task has no family besides {own!r} of {read.capability!r}; add one to its 'families'.")
    source = Mixture(pcfg, others, _prior(pcfg, None), read.balanced_fraction)
    return _batches(source, batch_size, seed, f"other_families {read.capability}")
