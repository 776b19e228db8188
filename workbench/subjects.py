"""What an analysis looks at: a pair of models with its task, controls, fine-tuning and revival arms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import UserError
from workbench.examples import Correlation, Examples, partners
from workbench.protocols import Task, load_task
from workbench.runs import Run, Store

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Trajectory:
    """Checkpoints of one run in order, and what was measured at each."""

    run: Run

    @property
    def evaluations(self) -> pd.DataFrame:
        """One row per step and evaluation set: `step, capability, share, values` (1.0 where the answer was right)."""
        return self.run.evaluations()

    @property
    def metrics(self) -> pd.DataFrame:
        """Long table: `step, split, name, value`."""
        return self.run.metrics()


@dataclass(frozen=True)
class Question:
    """What a pair is asked; it is known before there are any models.

    `capability` (O_PT) is the ability that may have been lost, `tuned_on` (O_FT) the one that was trained.
    """

    name: str
    seed: int
    task: Task
    capability: str
    tuned_on: str
    correlation: Correlation | None
    n: int = field(default=1000, kw_only=True)
    """Examples per test set."""

    def examples(self, capability: str, *, share: float = 0.0, n: int | None = None, split: str = "test") -> Examples:
        """Examples of a capability on this pair's texts at C_Te = `share`; splits are independent streams.

        For every capability of one family the texts are the same. Without a correlation, and for families that the
        correlation does not speak of, texts are plain.
        """
        related = self.correlation is not None and self.task.family(capability) == self.task.family(self.correlation.target)
        correlation = self.correlation.at(share) if self.correlation and related else None
        return self.task.capability(capability, correlation).examples(n or self.n, self.seed, split)

    @property
    def aliases(self) -> tuple[str, ...]:
        """Capabilities that ask for the one that may be lost under another identifier; most tasks have none."""
        find: Callable[[str], tuple[str, ...]] | None = getattr(self.task, "aliases", None)
        return find(self.capability) if find else ()

    def counterfactual(self, examples: Examples, capability: str) -> Examples:
        """The examples with `counterfactual` filled: row by row a prompt of the same layout with another answer.

        A task that can edit its texts (a method `counterfactual(capability, examples, seed)`) changes as little as possible;
        without it every example is given another one of the same draw.

        Raises:
            UserError: there is no such prompt for some example.
        """
        make: Callable[[str, Examples, int], Examples] | None = getattr(self.task, "counterfactual", None)
        other = make(capability, examples, self.seed) if make else partners(examples, self.seed)
        c = self.correlation
        if c is not None and "correlated" in examples.labels and {c.target, c.partner} <= set(other.labels):
            target, partner = other.labels[c.target], other.labels[c.partner]
            held = (target == partner + c.offset) & (target >= 0) & (partner >= 0)  # what is absent has no distance
            other = replace(other, labels={**other.labels, "correlated": held.long()})
        return replace(examples, counterfactual=other)

    def labelled(self, examples: Examples) -> Examples:
        """The examples with `token_labels` filled by a task that knows something of single tokens (a method `token_labels`)."""
        label: Callable[[Examples], Mapping[str, Tensor]] | None = getattr(self.task, "token_labels", None)
        return replace(examples, token_labels=label(examples)) if label else examples

    def label_name(self, label: str, code: int) -> str:
        """What a code of `token_labels` means, by the task's method `label_name`, else the number."""
        name: Callable[[str, int], str] | None = getattr(self.task, "label_name", None)
        return name(label, code) if name else str(code)

    @property
    def determined(self) -> bool:
        """Whether a prompt determines its answer, so that a perfect model scores 1; a task of real texts says False."""
        return bool(getattr(self.task, "determined", True))

    @property
    def others(self) -> tuple[str, ...]:
        """One capability of every other family: what fine-tuning should have left alone."""
        touched = {self.task.family(self.capability), self.task.family(self.tuned_on)}
        first: dict[str, str] = {}
        for capability in self.task.capabilities:
            first.setdefault(self.task.family(capability), capability)
        return tuple(c for family, c in first.items() if family not in touched)


@dataclass(frozen=True)
class Pair(Question):
    """A base and a tuned model that are held against each other on one ability.

    Models are loaded when first asked for and kept as long as the pair is.
    """

    base_path: Path
    tuned_path: Path
    start_path: Path | None = None
    """The model that fine-tuning started from, where that is not the base."""
    never_path: Path | None = None
    """A model pretrained alike to which `capability` was never asked."""
    trajectory: Trajectory | None = None
    arms: Mapping[str, Trajectory] = field(default_factory=dict[str, Trajectory])
    siblings: Mapping[str, tuple[Path, Path]] = field(default_factory=dict[str, tuple[Path, Path]])
    """Base and tuned model of other pairs by name: other fine-tunes of this base (`learned`), other seeds (`wrapped, seed 1`)."""
    device: str = "cpu"

    def __repr__(self) -> str:
        """The pair in a line."""
        arms = f", arms {', '.join(self.arms)}" if self.arms else ""
        return f"Pair({self.name!r}, seed {self.seed}: may lose {self.capability}, tuned on {self.tuned_on}{arms})"

    @cached_property
    def base(self) -> PreTrainedModel:
        """The model before fine-tuning."""
        return self._load(self.base_path)

    @cached_property
    def tuned(self) -> PreTrainedModel:
        """The model after fine-tuning."""
        return self._load(self.tuned_path)

    @cached_property
    def start(self) -> PreTrainedModel:
        """The model that fine-tuning started from: what it taught and damaged is measured against this one."""
        return self._load(self.start_path) if self.start_path else self.base

    @cached_property
    def never_had_it(self) -> PreTrainedModel | None:
        """The control that never had the ability."""
        return self._load(self.never_path) if self.never_path else None

    @cached_property
    def revived(self) -> PreTrainedModel | None:
        """The tuned model after reverse fine-tuning on the ability that was lost: the end of that arm, where it was run."""
        return self._load(self.arms["revived"].run.checkpoint().path) if "revived" in self.arms else None

    @property
    def states(self) -> dict[str, PreTrainedModel]:
        """`base`, `tuned` and, where there is one, `revived`, in this order."""
        states = {"base": self.base, "tuned": self.tuned}
        return states if self.revived is None else {**states, "revived": self.revived}

    def sibling(self, name: str) -> tuple[PreTrainedModel, PreTrainedModel]:
        """Base and tuned model of another pair; loaded anew by every call."""
        base, tuned = self.siblings[name]
        return self._load(base), self._load(tuned)

    @cached_property
    def untrained(self) -> PreTrainedModel:
        """A model of the base's configuration with random weights."""
        from workbench.models.build import random_twin

        return random_twin(self.base, self.seed)

    def _load(self, path: Path) -> PreTrainedModel:
        from workbench.models.checkpoints import load_model, pick_device

        return load_model(path, pick_device(self.device))

    def swapped(self) -> Pair:
        """The pair with base and tuned exchanged."""
        return replace(self, base_path=self.tuned_path, tuned_path=self.base_path)


def open_pair(body: Mapping[str, Any], store: Store, name: str, seed: int, device: str = "cpu") -> Pair:
    """A pair from the `pair` section of an analysis' spec.

    Raises:
        UserError: a run that it names is not in the store or is damaged.
    """

    def run(key: str) -> Run:
        found = store.find(key)
        if found is None or found.damaged:
            raise UserError(
                f"run {key} of pair {name!r} is {'damaged' if found else 'missing'}; run the study again to remake it."
            )
        return found

    correlation = body["correlation"]
    tuned = run(body["tuned"])
    never = body.get("never_had_it")
    return Pair(
        name=name,
        seed=seed,
        task=load_task(body["task"]),
        capability=body["capability"],
        tuned_on=body["tuned_on"],
        correlation=Correlation(**correlation) if correlation else None,
        base_path=run(body["base"]).checkpoint().path,
        tuned_path=tuned.checkpoint().path,
        start_path=run(body["start"]).checkpoint().path if body.get("start") else None,
        never_path=run(never).checkpoint().path if never else None,
        trajectory=Trajectory(tuned),
        arms={arm: Trajectory(run(key)) for arm, key in body.get("arms", {}).items()},
        siblings={
            sibling: (run(keys["base"]).checkpoint().path, run(keys["tuned"]).checkpoint().path)
            for sibling, keys in body.get("siblings", {}).items()
        },
        n=body["examples"],
        device=device,
    )
