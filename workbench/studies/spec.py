"""The study file: what it may say, checked with sentences that quote the line and name the fix; imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from workbench.errors import did_you_mean
from workbench.models.spec import ModelSpec
from workbench.registry import analyses
from workbench.training.schedule import Schedule
from workbench.training.settings import TrainSettings

Arm = Literal["revived", "never_had_it", "scratch", "irrelevant", "other_operands", "unrelated"]
ARMS: tuple[Arm, ...] = ("revived", "never_had_it", "scratch", "irrelevant")
UNSHOWN: tuple[Arm, ...] = ("irrelevant", "other_operands", "unrelated")
"""Arms of the tuned model whose data never show the ability."""
NEVER = "never_had_it"
"""Name of the pretrained model to which the capability under revival was never asked."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=,+-]{0,149}")
_ENTRY = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
"""Name of an analysis in a study: no '-', which ends it in the names of stages."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class EvaluationSpec(_Section):
    """How runs are measured while they train; the analyses measure the last checkpoint on more examples."""

    examples: int = Field(default=256, ge=16, description="examples per evaluation set and step of the grid")
    final_examples: int = Field(default=1000, ge=16, description="examples per set where an analysis measures one model")
    keep: Literal["all", "last"] = Field(
        default="all", description="checkpoints that stay: every step of the grid, or the last"
    )


class CorrelationSpec(_Section):
    """Training texts in a share of which the capability's label equals the partner's plus the offset [Jain+23 §5]."""

    partner: str = Field(alias="with")
    offset: int = 1
    share: float = Field(default=1.0, ge=0, le=1, description="C_Tr")


class _Training(TrainSettings):
    """A training section: the loop's settings by their names; every other key goes to the protocol."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    protocol: str

    @property
    def settings(self) -> TrainSettings:
        """The loop's part."""
        return TrainSettings(**{name: getattr(self, name) for name in TrainSettings.model_fields})

    @property
    def protocol_settings(self) -> dict[str, Any]:
        """The protocol's part."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _no_slip(self) -> _Training:
        for key in self.protocol_settings:
            hint = did_you_mean(key, type(self).model_fields)
            if "did you mean" in hint:
                raise ValueError(f"unknown key {key!r}{hint}")
        return self


def _or_grid(schema: dict[str, Any]) -> None:
    """In the JSON schema an entry may leave to its grid what it has to say."""
    schema["properties"]["grid"] = {
        "description": "keys with lists of values: one entry per combination",
        "type": "object",
        "additionalProperties": {"type": "array", "minItems": 1},
    }
    schema["anyOf"] = [{"required": schema.pop("required")}, {"required": ["grid"]}]


def _ready_or_grid(schema: dict[str, Any]) -> None:
    """Compiled and given weights are ready, so that an entry need not say how they are trained."""
    _or_grid(schema)
    schema["anyOf"] += [{"required": ["compiled"]}, {"required": ["given"]}]


class PretrainSpec(_Training):
    """Training from random weights, another model of the section, a checkpoint, or weights that the task writes down."""

    model_config = ConfigDict(json_schema_extra=_ready_or_grid)

    protocol: str = "pretraining"
    start: str | None = Field(
        default=None,
        alias="from",
        description="model of this section that it goes on from, named before it; random weights when absent",
    )
    compiled: str | None = Field(default=None, description="capability whose compiled weights it starts from; 0 steps then")
    noise: float | None = Field(
        default=None, ge=0, description="standard deviation of the noise on compiled weights; 0.0001 when absent"
    )

    given: bool = Field(default=False, description="start from the weights of model.path, a checkpoint; 0 steps then")

    @model_validator(mode="before")
    @classmethod
    def _some_are_ready(cls, body: Any) -> Any:
        """Given and compiled weights need no training; what compiled ones are trained on nevertheless is their capability."""
        if isinstance(body, Mapping) and body.get("given") is True:
            return {"steps": 0, "lr": 1e-3, **body}
        if isinstance(body, Mapping) and body.get("compiled") is not None:
            ready = {"protocol": "single_operand", "capability": body["compiled"], "steps": 0, "lr": 1e-3, "noise": 1e-4}
            return {**ready, **body}
        return body

    @model_validator(mode="after")
    def _noise_is_of_compiled_weights(self) -> PretrainSpec:
        if self.noise is not None and self.compiled is None:
            raise ValueError(f"noise {self.noise} is for compiled weights; name their capability in 'compiled' or drop it")
        return self


class FinetuneSpec(_Training):
    """Training on one capability from a pretrained model. The pair that is analysed is (`against`, this)."""

    model_config = ConfigDict(json_schema_extra=_or_grid)

    protocol: str = "single_operand"
    start: str = Field(alias="from")
    capability: str
    correlation: CorrelationSpec | None = None
    against: str | None = Field(
        default=None,
        description="pretrained model that the pair is held against; the one it starts from when absent "
        "(the first one where it starts from `never_had_it`)",
    )


class StopSpec(_Section):
    """End a reverse fine-tuning early once nothing more can be learned about its steps to 95 %."""

    accuracy: float = Field(default=0.99, gt=0, le=1)
    evaluations: int = Field(default=2, ge=1, description="how many evaluations in a row must reach it")


class ReviveSpec(_Training):
    """Reverse fine-tuning of each pair's tuned model, with its control arms."""

    protocol: str = "single_operand"
    # At a constant rate the first k steps do not depend on the budget, and "steps to 95 %" is a property of the model.
    schedule: Schedule = Schedule(kind="constant")
    capability: str
    other_rates: tuple[float, ...] = Field(
        default=(),
        description="further rates, where below a fine-tune's own; arms that never show the ability run at `lr` alone",
    )
    arms: tuple[Arm, ...] = ARMS
    pairs: tuple[str, ...] | None = Field(default=None, description="fine-tunes to revive, `*` for any text; all when absent")
    stop: StopSpec | None = None
    irrelevant_protocol: str = "other_families"


_ANALYSES_SCHEMA = {
    "description": "names, or names with settings; an entry of another name says in `analysis` which one it is, so that one "
    "analysis can stand there several times: `pruning_heads: {analysis: pruning, units: heads}`",
    "anyOf": [
        {"type": "array", "items": {"type": "string"}},
        {"type": "object", "additionalProperties": {"type": ["object", "null"]}},
    ],
}


class StudySpec(_Section):
    """A whole study."""

    study: str
    note: str = ""
    seeds: tuple[int, ...] = (0, 1)
    task: dict[str, Any]
    model: ModelSpec = ModelSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    pretrain: dict[str, PretrainSpec]
    finetune: dict[str, FinetuneSpec] = Field(default_factory=dict)
    revive: ReviveSpec | None = None
    analyses: Annotated[dict[str, dict[str, Any]], WithJsonSchema(_ANALYSES_SCHEMA)] = Field(default_factory=dict)

    @field_validator("seeds", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        numbers = cast(Sequence[Any], value) if isinstance(value, list | tuple) else ()
        if not isinstance(value, list | tuple) or not all(type(number) is int for number in numbers):
            raise ValueError(f"{value!r} is no list of whole numbers; write seeds: [0, 1], or on the command line --seeds 0,1")
        return value

    @field_validator("analyses", mode="before")
    @classmethod
    def _list_of_names(cls, value: Any) -> Any:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return {str(name): {} for name in cast(Sequence[Any], value)}
        return {name: settings or {} for name, settings in value.items()} if isinstance(value, Mapping) else value

    @model_validator(mode="before")
    @classmethod
    def _given_are_measured(cls, body: Any) -> Any:
        """Given weights that name no protocol are measured on the task's own texts: the protocol that is called as its task."""
        if not isinstance(body, Mapping):
            return body
        task, entries = body.get("task"), body.get("pretrain")  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        if not isinstance(task, Mapping) or not isinstance(entries, Mapping):
            return body  # pyright: ignore[reportUnknownVariableType]
        kind, named = str(cast(Mapping[str, Any], task).get("kind", "")), cast(Mapping[str, Any], entries)
        lacking = [n for n, e in named.items() if isinstance(e, Mapping) and e.get("given") is True and "protocol" not in e]
        if not lacking:
            return body  # pyright: ignore[reportUnknownVariableType]
        from workbench.protocols import installed  # it imports torch, and most studies need none of this

        if kind not in installed("protocols"):
            return body  # pyright: ignore[reportUnknownVariableType]
        filled = {name: {**named[name], "protocol": kind} for name in lacking}
        return {**body, "pretrain": {**named, **filled}}

    @model_validator(mode="after")
    def _consistent(self) -> StudySpec:
        for name in [self.study, *self.pretrain, *self.finetune]:
            if not _NAME.fullmatch(name):
                raise ValueError(f"name {name!r} cannot name a folder; use letters, digits, '_', '-', '.', '=', at most 150")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds {list(self.seeds)} must be different non-negative numbers, at least one")
        if not self.pretrain:
            raise ValueError("pretrain is empty; name at least one model to pretrain")
        earlier: set[str] = set()
        for name, trained in self.pretrain.items():
            if trained.start is not None and trained.start not in earlier:
                late = (
                    "it stands after it; move it up"
                    if trained.start in self.pretrain
                    else f"there is none{did_you_mean(trained.start, earlier)}"
                )
                raise ValueError(f"pretrain.{name}.from: {trained.start!r} must be a model named before it, and {late}")
            if trained.start is not None and trained.compiled is not None:
                raise ValueError(
                    f"pretrain.{name}: from {trained.start!r} and compiled {trained.compiled!r} exclude each other"
                )
            self._check_given(name, trained)
            earlier.add(name)
            if trained.compiled is not None and self.model.kind != "compiled":
                raise ValueError(
                    f"pretrain.{name}.compiled: compiled weights do not fit a model of kind {self.model.kind!r}; "
                    "write model: {kind: compiled}"
                )
        for name, tuned in self.finetune.items():
            for role, wanted in (("from", tuned.start), ("against", tuned.against)):
                if wanted is not None and wanted not in self.pretrain:
                    raise ValueError(
                        f"finetune.{name}.{role}: no pretrained model {wanted!r}{did_you_mean(wanted, self.pretrain)}"
                    )
        for entry in self.analyses:
            self._check_analysis(entry)
        if self.revive:
            self._check_revive(self.revive)
        return self

    def _check_given(self, name: str, trained: PretrainSpec) -> None:
        if trained.given and (beside := trained.start or trained.compiled) is not None:
            other = "from" if trained.start else "compiled"
            raise ValueError(f"pretrain.{name}: given and {other} {beside!r} exclude each other; drop one")
        if trained.given and self.model.kind != "checkpoint":
            raise ValueError(
                f"pretrain.{name}.given: a model of kind {self.model.kind!r} has no weights yet; "
                "write model: {kind: checkpoint, path: ...}"
            )
        if name == NEVER and (source := self.given_source(name)) is not None:
            raise ValueError(
                f"pretrain.{NEVER} starts from the given weights of {source!r}, and what these were trained on is not known here; "
                "train it from random weights (no 'given', no 'from'), or drop it and its arm"
            )

    def given_source(self, name: str) -> str | None:
        """The entry of `pretrain` with given weights that a model of the section goes back to; None where there is none."""
        while not (trained := self.pretrain[name]).given:
            if trained.start is None:
                return None
            name = trained.start
        return name

    def _check_analysis(self, entry: str) -> None:
        name, known = self.analysis(entry)[0], analyses.names()
        if name == entry and name not in known:
            more = " (an entry with a name of its own says which it is, as in {analysis: pruning})"
            raise ValueError(f"analyses: no analysis {name!r}{did_you_mean(name, known)}{more}")
        if name not in known:
            raise ValueError(f"analyses.{entry}.analysis: no analysis {name!r}{did_you_mean(name, known)}")
        if name != entry and (entry in known or not _ENTRY.fullmatch(entry)):
            why = "is an analysis itself" if entry in known else "may hold letters, digits and '_' alone, at most 40"
            raise ValueError(f"analyses.{entry}: the name of an entry that is {name} {why}; call it {name}_2, say")

    def _check_revive(self, revive: ReviveSpec) -> None:
        for pattern in revive.pairs or ():
            if not any(fnmatchcase(name, pattern) for name in self.finetune):
                raise ValueError(f"revive.pairs: no fine-tune {pattern!r}{did_you_mean(pattern, self.finetune)}")
        for name in self.revived:
            tuned = self.finetune[name]
            if tuned.steps and revive.lr >= tuned.lr:
                raise ValueError(
                    f"revive.lr {revive.lr} is not below finetune.{name}.lr {tuned.lr}: at such a rate an ability is taught "
                    "again rather than revived; lower revive.lr"
                )
        rates = (revive.lr, *revive.other_rates)
        if min(rates) <= 0 or len(set(rates)) != len(rates):
            raise ValueError(f"revive.other_rates {list(revive.other_rates)} must be positive, different, and not revive.lr")
        if NEVER in revive.arms and NEVER not in self.pretrain:
            raise ValueError(f"revive.arms asks for {NEVER}, but pretrain has no model of that name; add it or drop the arm")

    def analysis(self, entry: str) -> tuple[str, dict[str, Any]]:
        """Which analysis an entry of `analyses` is, and with what settings: the one of its own name where it names no other."""
        settings = dict(self.analyses[entry])
        return str(settings.pop("analysis", entry)), settings

    def reference(self, name: str) -> str:
        """The pretrained model that the pair of a fine-tune is held against."""
        tuned = self.finetune[name]
        return tuned.against or (next(iter(self.pretrain)) if tuned.start == NEVER else tuned.start)

    @property
    def revived(self) -> tuple[str, ...]:
        """Fine-tunes whose tuned model is reverse fine-tuned."""
        if self.revive is None:
            return ()
        wanted = ("*",) if self.revive.pairs is None else self.revive.pairs
        return tuple(name for name in self.finetune if any(fnmatchcase(name, pattern) for pattern in wanted))
