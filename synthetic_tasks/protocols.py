"""Training protocols of [Jain+23 §4, §E]: pretraining, fine-tuning on one operand or mixed, and their controls.

Each factory has the signature `(task, settings, batch_size, seed) -> TrainingProtocol` of `workbench.protocols`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from synthetic_tasks.batches import Batches, Mixed, Mixture, PooledBatches, Single
from synthetic_tasks.families import Family
from synthetic_tasks.pcfg import PcfgTask
from synthetic_tasks.rasp.batches import RaspBatches
from synthetic_tasks.rasp.task import RaspTask
from synthetic_tasks.restrictions import at_most_and_above, parse
from workbench.errors import UserError, did_you_mean
from workbench.examples import Correlation
from workbench.protocols import Task, TrainingProtocol
from workbench.seeds import numpy_generator
from workbench.settings import Settings, read_settings


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
    labels_at_most: int | None = None
    """Train on texts of such labels alone, whatever labels the capability's name says that it is tested on."""
    labels_above: int | None = None
    pool: int | None = Field(default=None, ge=1, le=1_000_000)
    """Number of different examples that there are; endlessly many when not given."""


class MixedSettings(Settings):
    """Settings of `mixed`."""

    capability: str
    pretraining_share: float = Field(ge=0, le=1)
    """Probability that an example comes from the pretraining distribution."""
    correlation: CorrelationSettings | None = None
    operand_prior: dict[str, float] | None = None
    """Of the pretraining examples; uniform when not given."""
    balanced_fraction: float = Field(default=0.5, ge=0, le=1)
    """Of the pretraining examples, and of the others where no correlation edits their texts."""


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


class OtherOperandsSettings(Settings):
    """Settings of `other_operands`."""

    capability: str
    balanced_fraction: float = Field(default=0.5, ge=0, le=1)


class UnrelatedSettings(Settings):
    """Settings of `unrelated`."""

    capability: str


def _pcfg(task: Task, protocol: str, batch_size: int) -> PcfgTask:
    if not isinstance(task, PcfgTask):
        raise UserError(f"protocol {protocol!r} needs a task of kind 'pcfg', not {type(task).__name__!r}; change the task.")
    _check_batch_size(batch_size)
    return task


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} is below 1; use a positive number.")


def _check_balance(source: Mixture | Single) -> None:
    """Refuse a source now rather than at the first batch when its texts cannot be balanced."""
    for family in source.families if source.balanced_fraction > 0 else ():
        if family.recipe is not None:
            family.recipe.balance(np.zeros((0, source.task.settings.text_length), np.uint8), (1, 0), numpy_generator(0))


def _batches(source: Mixture | Single, batch_size: int, seed: int, stream: str, whole_sequence: bool = False) -> Batches:
    _check_balance(source)
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


def _everything(task: PcfgTask, given: Mapping[str, float] | None, balanced_fraction: float) -> Mixture:
    """The pretraining distribution: families uniformly, operands by a prior.

    Families that only ask for an operand of probability zero (further identifiers of counting a) are left out: a model
    that never had an ability must not be asked for it by another name.
    """
    prior = _prior(task, given)
    families = tuple(f for f in task.families.values() if f.kind == f.name or prior[0] > 0)
    return Mixture(task, families, prior, balanced_fraction)


def pretraining(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """All families, uniformly; operands by a prior; loss on every token after the first.

    Raises:
        UserError: on an unknown setting, or a prior that names no terminal or does not sum to 1.
    """
    read = read_settings(PretrainingSettings, settings, "protocol pretraining")
    pcfg = _pcfg(task, "pretraining", batch_size)
    source = _everything(pcfg, read.operand_prior, read.balanced_fraction)
    return _batches(source, batch_size, seed, "pretraining", whole_sequence=True)


def _correlation(task: PcfgTask, capability: str, given: CorrelationSettings | None) -> Correlation | None:
    if given is None:
        return None
    correlation = Correlation(capability, given.partner, given.offset, given.share)
    task.check_correlation(correlation)
    return correlation


def single_operand(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """One capability, loss on the answer alone: fine-tuning with a correlation, reverse fine-tuning without.

    Without a correlation the texts are those of pretraining for the capability's family. With `labels_at_most` or
    `labels_above` only texts of such labels are kept, to retrain on some labels and test on others (`count_a>4`); with
    `pool` there are so many different examples and no more, the same first ones for every size of pool.

    Raises:
        UserError: on an unknown setting or capability, a correlation that no text can have, labels that hardly any text
            has, or a pool larger than the number of different texts.
    """
    read = read_settings(SingleOperandSettings, settings, "protocol single_operand")
    if isinstance(task, RaspTask):
        return _rasp_single(task, read, batch_size, seed)
    pcfg = _pcfg(task, "single_operand", batch_size)
    family, operand = pcfg.locate(read.capability)
    if read.correlation is not None and read.balanced_fraction is not None:
        raise UserError(
            f"balanced_fraction {read.balanced_fraction} and a correlation exclude each other, "
            "as a correlation edits every text; drop one of the two."
        )
    plain, own = parse(read.capability)
    labels = at_most_and_above(read.labels_at_most, read.labels_above) or own
    correlation = _correlation(pcfg, plain, read.correlation)
    balanced = (0.5 if correlation is None else 0.0) if read.balanced_fraction is None else read.balanced_fraction
    source = Single(pcfg, family, operand, balanced, correlation, labels=labels)
    _check_balance(source)
    if labels:
        pcfg.check_labels(plain, labels, lambda n: source.texts(n, numpy_generator(0, "pcfg", "check")))
    stream = f"single_operand {plain}{labels} {read.correlation}"
    if read.pool is None:
        return Batches(pcfg, batch_size, seed, stream, source)
    pooled = PooledBatches(pcfg, batch_size, seed, stream, source, pool=read.pool)
    _ = pooled.examples  # a pool that cannot be filled is refused now
    return pooled


def mixed(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """One capability mixed with pretraining data [Jain+23 §E.1]; loss on the answer alone for all.

    Each example is a pretraining one (all families, operands by the prior) with probability `pretraining_share`.

    Raises:
        UserError: on an unknown setting or capability, a correlation that no text can have, or a prior under which
            pretraining never asks for the operand that is trained with a correlation.
    """
    read = read_settings(MixedSettings, settings, "protocol mixed")
    pcfg = _pcfg(task, "mixed", batch_size)
    family, operand = pcfg.locate(read.capability)
    plain, labels = parse(read.capability)
    correlation = _correlation(pcfg, plain, read.correlation)
    rest = _everything(pcfg, read.operand_prior, read.balanced_fraction)
    if correlation is not None and rest.prior[operand] == 0 and read.pretraining_share > 0:
        raise UserError(
            f"operand_prior gives {pcfg.grammar.terminals[operand]!r} no probability, yet {read.capability!r} is trained on it "
            "with a correlation; give it some in the mixed-in data, or train another capability."
        )
    main = Single(pcfg, family, operand, 0.0 if correlation else read.balanced_fraction, correlation, labels=labels)
    for source in (main, rest):
        _check_balance(source)
    if labels:
        pcfg.check_labels(plain, labels, lambda n: main.texts(n, numpy_generator(0, "pcfg", "check")))
    stream = f"mixed {read.capability} {read.correlation} {read.pretraining_share}"
    return Batches(pcfg, batch_size, seed, stream, Mixed(main, rest, read.pretraining_share))


def _rasp_single(task: RaspTask, read: SingleOperandSettings, batch_size: int, seed: int) -> RaspBatches:
    for name in ("labels_at_most", "labels_above", "pool"):
        if getattr(read, name) is not None:
            raise UserError(f"{name} {getattr(read, name)} does not suit a task of kind 'rasp'; drop it.")
    correlation = None
    if read.correlation is not None:
        c = read.correlation
        correlation = Correlation(read.capability, c.partner, c.offset, c.share)
    stream = f"single_operand {read.capability} {read.correlation}"
    return _rasp(task, read, batch_size, seed, stream, task.locate(read.capability), correlation)


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
    source = Mixture(pcfg, _other_families(pcfg, read.capability), _prior(pcfg, None), read.balanced_fraction)
    return _batches(source, batch_size, seed, f"other_families {read.capability}")


def _other_families(task: PcfgTask, capability: str) -> tuple[Family, ...]:
    """Every family that asks another question than the capability's, by whatever identifier.

    Raises:
        UserError: there is none.
    """
    own, _ = task.locate(capability)
    others = tuple(family for family in task.families.values() if family.kind != own.kind)
    if not others:
        raise UserError(f"the task has no family besides {own.name!r} of {capability!r}; add one to its 'families'.")
    return others


def other_operands(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """The capability's family with every operand but its own, uniformly; loss on the answer alone.

    Retraining on what is like the ability but is not it, tested on the ability [Deeb & Roger 2024, arXiv 2410.08827].

    Raises:
        UserError: on an unknown setting or capability, or a family with one operand.
    """
    read = read_settings(OtherOperandsSettings, settings, "protocol other_operands")
    pcfg = _pcfg(task, "other_operands", batch_size)
    family, operand = pcfg.locate(read.capability)
    if len(family.capabilities) == 1:
        raise UserError(f"{read.capability!r} is the only capability of its family {family.name!r}; use 'other_families'.")
    others = len(family.capabilities) - 1
    prior = tuple(0.0 if i == operand else 1 / others for i in range(others + 1))
    source = Mixture(pcfg, (family,), prior, read.balanced_fraction)
    return _batches(source, batch_size, seed, f"other_operands {read.capability}")


def unrelated(task: Task, settings: Mapping[str, Any], batch_size: int, seed: int) -> TrainingProtocol:
    """Texts of uniformly random letters under the prompts of other families; loss on every token after the first.

    The answers are true. Nothing shows the ability: neither its family (by any identifier) nor texts of the grammar.

    Raises:
        UserError: on an unknown setting or capability, or a task with one family.
    """
    read = read_settings(UnrelatedSettings, settings, "protocol unrelated")
    pcfg = _pcfg(task, "unrelated", batch_size)
    source = Mixture(pcfg, _other_families(pcfg, read.capability), _prior(pcfg, None), 0.0, random_letters=True)
    return _batches(source, batch_size, seed, f"unrelated {read.capability}", whole_sequence=True)
