"""The study file: what it may say, checked with sentences that quote the line and name the fix; imports no torch."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, field_validator, model_validator

from workbench.errors import UserError, did_you_mean
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


def _compiled_or_grid(schema: dict[str, Any]) -> None:
    """Compiled weights are ready, so that an entry need not say how they are trained."""
    _or_grid(schema)
    schema["anyOf"].append({"required": ["compiled"]})


class PretrainSpec(_Training):
    """Training from random weights, or from weights that the task writes down for a capability."""

    model_config = ConfigDict(json_schema_extra=_compiled_or_grid)

    protocol: str = "pretraining"
    compiled: str | None = Field(default=None, description="capability whose compiled weights it starts from; 0 steps then")
    noise: float | None = Field(
        default=None, ge=0, description="standard deviation of the noise on compiled weights; 0.0001 when absent"
    )

    @model_validator(mode="before")
    @classmethod
    def _compiled_is_ready(cls, body: Any) -> Any:
        """Compiled weights need no training; what is trained nevertheless is the capability that they have."""
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

    @model_validator(mode="after")
    def _consistent(self) -> StudySpec:
        for name in [self.study, *self.pretrain, *self.finetune]:
            if not _NAME.fullmatch(name):
                raise ValueError(f"name {name!r} cannot name a folder; use letters, digits, '_', '-', '.', '=', at most 150")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds {list(self.seeds)} must be different non-negative numbers, at least one")
        if not self.pretrain:
            raise ValueError("pretrain is empty; name at least one model to pretrain")
        for name, trained in self.pretrain.items():
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


def preset_names() -> tuple[str, ...]:
    """Bundled study files."""
    return tuple(sorted(p.name.removesuffix(".yaml") for p in files("workbench.presets").iterdir() if p.name.endswith(".yaml")))


def read_study(name_or_path: str | Path) -> str:
    """The text of a preset or of a file.

    Raises:
        UserError: neither exists, or the file cannot be read.
    """
    path = Path(name_or_path)
    if str(name_or_path) in preset_names():
        return files("workbench.presets").joinpath(f"{name_or_path}.yaml").read_text()
    try:
        if path.is_file():
            return path.read_text()
    except OSError as error:
        raise UserError(f"the study file {str(name_or_path)!r} cannot be read: {error.strerror}.") from error
    raise UserError(f"there is no study file or preset {str(name_or_path)!r}{did_you_mean(str(name_or_path), preset_names())}")


def load_study(name_or_path: str | Path, overrides: Sequence[str] = (), seeds: Sequence[int] | None = None) -> StudySpec:
    """A study from a preset or file, with `a.b=c` overrides applied.

    Raises:
        UserError: a missing file, a YAML error, an unknown key or a value out of range, each with the place and the fix.
    """
    try:
        body = yaml.safe_load(read_study(name_or_path))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{name_or_path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(body, dict):
        raise UserError(f"{name_or_path} is no study: it holds {type(body).__name__}, not keys such as 'study' and 'pretrain'.")
    body = cast(dict[str, Any], body)
    for override in overrides:
        section, _, rest = override.partition("=")[0].strip().partition(".")
        entries, entry = body.get(section), rest.partition(".")[0]
        if section in ("pretrain", "finetune") and "." in rest and isinstance(entries, dict) and entry not in entries:
            known = cast(dict[str, Any], entries)
            raise UserError(f"--set {override!r}: {section} has no entry {entry!r}{did_you_mean(entry, known)}")
        apply_override(body, override)
    if seeds:
        body["seeds"] = list(seeds)
    return parse_study(body, str(name_or_path))


def parse_study(body: Mapping[str, Any], origin: str = "study") -> StudySpec:
    """A study from plain data, grids expanded.

    Raises:
        UserError: as `load_study`.
    """
    expanded = copy.deepcopy(dict(body))
    for section in ("pretrain", "finetune"):
        entries = expanded.get(section)
        if isinstance(entries, dict):
            expanded[section] = _expand_grids(cast(dict[str, Any], entries), section)
    try:
        return StudySpec.model_validate(expanded)
    except ValidationError as error:
        raise UserError(f"{origin}: {_sentence(error)}") from error


def apply_override(body: dict[str, Any], override: str) -> None:
    """Set one value of nested plain data from `a.b=c`; the value is read as YAML.

    Raises:
        UserError: no '=', a value that is not YAML, or a path through something that is not a section.
    """
    path, equals, value = override.partition("=")
    if not equals:
        raise UserError(f"--set {override!r} has no '='; write it as section.key=value.")
    try:
        _set(body, path.strip(), yaml.safe_load(value), f"--set {override!r}")
    except yaml.YAMLError as error:
        raise UserError(f"--set {override!r}: {value!r} is not valid YAML: {' '.join(str(error).split())}") from error


def _set(body: dict[str, Any], path: str, value: Any, origin: str) -> None:
    *sections, last = path.split(".")
    place: Any = body
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise UserError(f"{origin}: {section!r} is not a section of the study.")
    place[last] = number_or(value)


def number_or(value: Any) -> Any:
    """YAML 1.1 reads `3e-4` as text; people mean a number."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _expand_grids(entries: dict[str, Any], section: str) -> dict[str, Any]:
    """`grid: {lr: [a, b], correlation.share: [0, 1]}` makes one entry per combination, named by its values."""
    out: dict[str, Any] = {}
    for name, entry in entries.items():
        if not isinstance(entry, dict) or "grid" not in entry:
            out[name] = entry
            continue
        rest = {key: value for key, value in cast(dict[str, Any], entry).items() if key != "grid"}
        axes: Any = entry["grid"]
        if not isinstance(axes, dict) or not all(isinstance(v, list) and v for v in axes.values()):
            raise UserError(f"{section}.{name}.grid must name keys with lists of values, such as {{lr: [1.0e-4, 3.0e-4]}}.")
        names = [str(key) for key in axes]
        for values in itertools.product(*axes.values()):
            member = copy.deepcopy(rest)
            for key, value in zip(names, values, strict=True):
                _set(member, key, copy.deepcopy(value), f"{section}.{name}.grid")
            label = ",".join(f"{key.split('.')[-1]}={value}" for key, value in zip(names, values, strict=True))
            if f"{name},{label}" in {**entries, **out}:
                raise UserError(f"{section}.{name}.grid makes two entries called {f'{name},{label}'!r}; drop one.")
            out[f"{name},{label}"] = member
    return out


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        *parents, key = [str(part) for part in first["loc"]]
        place = ".".join(parents) or "the study"
        return f"unknown key {key!r} in {place}{did_you_mean(key, _known_keys(parents))}"
    if first["type"] == "missing":
        return f"{where} is missing; add it."
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{where}: {message}" if where else message
    shown = repr(first["input"])
    return f"{where} is {shown if len(shown) < 80 else shown[:77] + '...'}: {message[0].lower() + message[1:]}."


def _known_keys(parents: Sequence[str]) -> list[str]:
    """Keys allowed in a section, found by walking the models along the path."""
    model: Any = StudySpec
    for part in parents:
        field = getattr(model, "model_fields", {}).get(part)
        annotation = field.annotation if field else model
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return [f.alias or name for name, f in model.model_fields.items()]
