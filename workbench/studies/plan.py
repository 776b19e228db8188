"""From a study to its graph of stages, each addressed by the hash of everything that it depends on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from workbench.errors import UserError
from workbench.examples import Correlation
from workbench.protocols import Task, compiled_weights, load_protocol, load_task
from workbench.registry import analyses
from workbench.runs import Store, stage_key
from workbench.studies.spec import NEVER, FinetuneSpec, PretrainSpec, StudySpec
from workbench.training.schedule import evaluation_grid
from workbench.training.settings import TrainSettings

TRAINING_VERSION = 1
"""Raised when the same training spec would give other weights or other measurements."""
FLOPS_PER_SECOND = 3.0e10
"""What one busy CPU core does on models of this size; the plan's estimate rests on it."""
START_UP_SECONDS = 6.0


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
    tuned: Stage
    never: Stage | None
    arms: Mapping[str, Stage]
    analyses: Mapping[str, Stage]


@dataclass(frozen=True)
class Plan:
    """All stages of a study in an order in which parents come first, and its pairs."""

    spec: StudySpec
    stages: tuple[Stage, ...]
    pairs: tuple[PairPlan, ...]

    def missing(self, store: Store) -> tuple[Stage, ...]:
        """Stages that are not done in the store."""
        return tuple(stage for stage in self.stages if not is_done(store, stage))


def is_done(store: Store, stage: Stage) -> bool:
    """Whether the stage's run exists, whole."""
    run = store.find(stage.key)
    return run is not None and run.done


def plan(spec: StudySpec) -> Plan:
    """Expand a study.

    Raises:
        UserError: the task, a protocol or an analysis refuses its settings; nothing has been run by then.
    """
    builder = _Builder(spec, load_task(spec.task))
    pairs = tuple(pair for seed in spec.seeds for pair in builder.pairs(seed))
    return Plan(spec, tuple(builder.stages.values()), pairs)


class _Builder:
    """Collects stages by key, so that what two pairs share is made once."""

    def __init__(self, spec: StudySpec, task: Task) -> None:
        self.spec, self.task = spec, task
        self.stages: dict[str, Stage] = {}
        if spec.model.kind == "compiled":
            try:
                self.parameters = compiled_weights(task).parameters()
            except UserError as error:
                raise UserError(f"model.kind: {error}") from error
        else:
            self.parameters = spec.model.parameters(task.vocab_size, task.context)

    def add(self, stage: Stage) -> Stage:
        return self.stages.setdefault(stage.key, stage)

    def pairs(self, seed: int) -> Iterator[PairPlan]:
        spec = self.spec
        pretrained = {
            name: self.add(
                self.training(
                    f"pretrain-{name}-s{seed}",
                    "pretrain",
                    seed,
                    p.protocol,
                    p.protocol_settings,
                    p.settings,
                    compiled=self.compiled(name, p),
                )
            )
            for name, p in spec.pretrain.items()
        }
        for name, tuned_spec in spec.finetune.items():
            yield self.pair(name, tuned_spec, seed, pretrained)

    def compiled(self, name: str, pretrain: PretrainSpec) -> dict[str, Any] | None:
        """The compiled weights that an entry starts from; a capability that has none is refused by name."""
        if pretrain.compiled is None:
            return None
        try:
            compiled_weights(self.task, pretrain.compiled)
        except UserError as error:
            raise UserError(f"pretrain.{name}.compiled: {error}") from error
        return {"capability": pretrain.compiled, "noise": pretrain.noise}

    def pair(self, name: str, tuned_spec: FinetuneSpec, seed: int, pretrained: Mapping[str, Stage]) -> PairPlan:
        correlation = _correlation(tuned_spec)
        kept = (
            self.spec.revive.capability if self.spec.revive else (correlation.partner if correlation else tuned_spec.capability)
        )
        self.check(name, kept, correlation)
        settings = {"capability": tuned_spec.capability, **tuned_spec.protocol_settings}
        if tuned_spec.correlation:
            settings["correlation"] = tuned_spec.correlation.model_dump(by_alias=True)
        cells = [(c, share) for c in dict.fromkeys([kept, tuned_spec.capability]) for share in (0.0, 1.0)]
        tuned = self.add(
            self.training(
                f"finetune-{name}-s{seed}",
                "finetune",
                seed,
                tuned_spec.protocol,
                settings,
                tuned_spec.settings,
                start=pretrained[tuned_spec.start],
                sets=_sets(cells, correlation),
            )
        )
        never = pretrained.get(NEVER)
        arms = self.arms(name, seed, tuned, never, correlation) if name in self.spec.revived else {}
        base = pretrained[tuned_spec.against or self.spec.reference]
        body = {
            "base": base.key,
            "tuned": tuned.key,
            "never_had_it": never.key if never else None,
            "task": self.spec.task,
            "capability": kept,
            "tuned_on": tuned_spec.capability,
            "correlation": _as_dict(correlation),
            "examples": self.spec.evaluation.final_examples,
        }
        made = {
            a: self.add(self.analysis(a, s, name, seed, body, (base, tuned, never), arms))
            for a, s in self.spec.analyses.items()
            if arms or "arms" not in analyses[a].needs
        }
        return PairPlan(name, seed, kept, tuned_spec.capability, correlation, base, tuned, never, arms, made)

    def check(self, name: str, kept: str, correlation: Correlation | None) -> None:
        """Ask the task for what the pair needs, so that impossible cells are refused by name before anything runs."""
        try:
            for share in (0.0, 1.0):
                self.task.capability(kept, correlation.at(share) if correlation else None)
        except UserError as error:
            raise UserError(f"finetune.{name}: {error}") from error

    def arms(
        self, name: str, seed: int, tuned: Stage, never: Stage | None, correlation: Correlation | None
    ) -> dict[str, Stage]:
        revive = self.spec.revive
        assert revive is not None
        on_task = {"capability": revive.capability, **revive.protocol_settings}
        starts: dict[str, tuple[Stage | None, str, dict[str, Any], str]] = {
            "revived": (tuned, revive.protocol, on_task, f"revived-{name}"),
            "never_had_it": (never, revive.protocol, on_task, "never_had_it"),
            "scratch": (None, revive.protocol, on_task, "scratch"),
            "irrelevant": (tuned, revive.irrelevant_protocol, {"capability": revive.capability}, f"irrelevant-{name}"),
        }
        sets = _sets([(revive.capability, 0.0)], correlation)
        stop = revive.stop.model_dump() if revive.stop else None
        out: dict[str, Stage] = {}
        for arm in revive.arms:
            start, protocol, settings, label = starts[arm]
            stage = self.training(
                f"reverse-{label}-s{seed}",
                "reverse",
                seed,
                protocol,
                settings,
                revive.settings,
                start=start,
                sets=sets,
                stop=stop,
            )
            out[arm] = self.add(stage)
        return out

    def training(
        self,
        name: str,
        kind: str,
        seed: int,
        protocol: str,
        protocol_settings: Mapping[str, Any],
        settings: TrainSettings,
        *,
        start: Stage | None = None,
        sets: list[dict[str, Any]] | None = None,
        stop: Mapping[str, Any] | None = None,
        compiled: Mapping[str, Any] | None = None,
    ) -> Stage:
        try:
            load_protocol(protocol, self.task, protocol_settings, settings.batch_size, seed)
        except UserError as error:
            raise UserError(f"{name.rsplit('-s', 1)[0].replace('-', '.', 1)}: {error}") from error
        spec = {
            "kind": kind,
            "task": dict(self.spec.task),
            "model": self.spec.model.model_dump(),
            "start": start.key if start else None,
            "protocol": {"name": protocol, "settings": dict(protocol_settings)},
            "training": settings.model_dump(mode="json"),
            # Without sets a stage is measured on its own protocol, and no study's choice of sets enters its key.
            "evaluation": {"examples": self.spec.evaluation.examples, "sets": sets} if sets else {"sets": []},
            "stop": dict(stop) if stop else None,
            "seed": seed,
            # Only where there are any, so that the keys of all other stages stay what they were.
            **({"compiled": dict(compiled)} if compiled else {}),
        }
        grid = len(evaluation_grid(settings.steps))
        tokens = self.task.context * (
            settings.steps * settings.batch_size + grid * self.spec.evaluation.examples * len(sets or [0]) / 3
        )
        return Stage(
            name=name,
            kind=kind,
            seed=seed,
            spec=spec,
            parents=(start.key,) if start else (),
            version=TRAINING_VERSION,
            seconds=6 * self.parameters * tokens / FLOPS_PER_SECOND,
            bytes=4 * self.parameters * (grid + 2),
        )

    def analysis(
        self,
        analysis: str,
        settings: Mapping[str, Any],
        pair: str,
        seed: int,
        body: Mapping[str, Any],
        models: tuple[Stage | None, ...],
        arms: Mapping[str, Stage],
    ) -> Stage:
        entry = analyses[analysis]
        if settings:
            entry.load().settings(settings)  # pyright: ignore[reportFunctionMemberAccess]
        needed = dict(arms) if "arms" in entry.needs else {}
        parents = [m.key for m in (*models, *needed.values()) if m is not None]
        spec = {
            "kind": "analyse",
            "analysis": analysis,
            "settings": dict(settings),
            "pair": {**body, "arms": {arm: stage.key for arm, stage in needed.items()}},
            "seed": seed,
        }
        passes = 60 * self.spec.evaluation.final_examples * self.task.context * 2 * self.parameters
        return Stage(
            name=f"{analysis}-{pair}-s{seed}",
            kind="analyse",
            seed=seed,
            spec=spec,
            parents=tuple(dict.fromkeys(parents)),
            version=entry.version,
            seconds=passes / FLOPS_PER_SECOND,
            bytes=200_000,
        )


def _correlation(tuned: FinetuneSpec) -> Correlation | None:
    if tuned.correlation is None:
        return None
    return Correlation(tuned.capability, tuned.correlation.partner, tuned.correlation.offset, tuned.correlation.share)


def _as_dict(correlation: Correlation | None) -> dict[str, Any] | None:
    if correlation is None:
        return None
    return {
        "target": correlation.target,
        "partner": correlation.partner,
        "offset": correlation.offset,
        "share": correlation.share,
    }


def _sets(cells: list[tuple[str, float]], correlation: Correlation | None) -> list[dict[str, Any]]:
    """Evaluation sets; without a correlation there is one per capability, on plain texts."""
    if correlation is None:
        return [{"capability": c, "correlation": None} for c in dict.fromkeys(c for c, _ in cells)]
    return [{"capability": c, "correlation": _as_dict(correlation.at(share))} for c, share in cells]
