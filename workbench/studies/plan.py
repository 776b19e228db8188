"""From a study to its graph of stages, each addressed by the hash of everything that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workbench.errors import UserError
from workbench.examples import Correlation
from workbench.models.given import check_fits, resolve
from workbench.models.spec import ModelSpec
from workbench.protocols import Task, TokenizedTask, compiled_weights, load_protocol, load_task, unrestricted
from workbench.registry import analyses
from workbench.runs import Store
from workbench.studies.spec import NEVER, UNSHOWN, FinetuneSpec, PretrainSpec, StudySpec
from workbench.studies.stage import PairPlan, Stage, correlation_dict, not_done
from workbench.subjects import Question
from workbench.training.schedule import evaluation_grid
from workbench.training.settings import TrainSettings

TRAINING_VERSION = 1
"""Raised when the same training spec would give other weights or other measurements."""
FLOPS_PER_SECOND = 4.0e10
"""What one busy CPU core does on models of this size; the plan's estimate rests on it."""
STOPS_AFTER = 0.6
"""Share of its steps that a reverse fine-tuning takes on average where it may stop early (measured on grid_counting)."""
START_UP_SECONDS = 6.0
STAGE_SECONDS = 0.7
"""What a stage takes besides its work: reading its parents, hashing, writing."""
PROCESS_BYTES = 620_000_000
"""What a process takes before its first batch, its libraries above all."""
MODELS_HELD = 10
"""Models that an analysis holds at once, copies of the base among them, or their weights in double precision."""


@dataclass(frozen=True)
class Plan:
    """All stages of a study in an order in which parents come first, and its pairs."""

    spec: StudySpec
    task: Mapping[str, Any]
    """The task's settings, resolved: a file that they name is in them."""
    stages: tuple[Stage, ...]
    pairs: tuple[PairPlan, ...]
    model: ModelSpec
    """As in the spec; of a checkpoint with the place and the hash of its files."""

    def missing(self, store: Store) -> tuple[Stage, ...]:
        """Stages that are not done in the store."""
        return not_done(store, self.stages)


def plan(spec: StudySpec) -> Plan:
    """Expand a study.

    Raises:
        UserError: the task, a protocol or an analysis refuses its settings; nothing has been run by then.
    """
    builder = _Builder(spec, load_task(spec.task))
    made = [pair for seed in spec.seeds for pair in builder.pairs(seed)]
    pairs = tuple(builder.analysed(pair, made) for pair in made)
    return Plan(spec, builder.resolved, tuple(builder.stages.values()), pairs, builder.model)


class _Builder:
    """Collects stages by key, so that what two pairs share is made once."""

    def __init__(self, spec: StudySpec, task: Task) -> None:
        self.spec, self.task, self.resolved = spec, task, dict(task.resolved)
        self.stages: dict[str, Stage] = {}
        self.lost = {unrestricted(spec.revive.capability)} if spec.revive and spec.revived else set[str]()
        self.asked: dict[str, frozenset[str]] = {}
        self.drawn = set[str]()
        self.model = spec.model
        if spec.model.kind == "checkpoint":
            try:
                self.model, found = resolve(spec.model)
                check_fits(found, task.vocab_size, task.context)
                if isinstance(task, TokenizedTask) and any(trained.given for trained in spec.pretrain.values()):
                    task.check_tokenizer(found.folder, found.vocab_size)
            except UserError as error:
                raise UserError(f"model.path: {error}") from error
            self.parameters, self.blocks, width, hidden = found.parameters, found.blocks, found.width, found.hidden
        elif spec.model.kind == "compiled":
            try:
                compiled = compiled_weights(task)
            except UserError as error:
                raise UserError(f"model.kind: {error}") from error
            self.parameters, self.blocks = compiled.parameters(), compiled.blocks
            width, hidden = compiled.width, compiled.hidden
        else:
            self.blocks = spec.model.blocks
            self.parameters = spec.model.parameters(task.vocab_size, task.context)
            width, hidden = spec.model.width, spec.model.hidden
        self.activations = 4 * task.context * self.blocks * (8 * width + 2 * hidden)
        """Bytes of what one example makes of the streams, keys, values and neurons of every block."""

    def add(self, stage: Stage) -> Stage:
        return self.stages.setdefault(stage.key, stage)

    def pairs(self, seed: int) -> Iterator[PairPlan]:
        spec = self.spec
        pretrained: dict[str, Stage] = {}
        self.asked = {}
        for name, p in spec.pretrain.items():
            pretrained[name] = self.add(
                self.training(
                    f"pretrain-{name}-s{seed}",
                    "pretrain",
                    seed,
                    p.protocol,
                    p.protocol_settings,
                    p.settings,
                    start=pretrained[p.start] if p.start else None,
                    compiled=self.compiled(name, p),
                    given=p.given,
                )
            )
            asks = load_protocol(p.protocol, self.task, p.protocol_settings, p.settings.batch_size, seed).asks
            if p.given:  # what others trained it on is not known; it may have seen all of it
                asks |= frozenset(self.task.capabilities)
            self.asked[name] = asks | (self.asked[p.start] if p.start else frozenset())
        if refused := self.asked.get(NEVER, frozenset[str]()) & self.lost:
            raise UserError(
                f"pretrain.{NEVER}: its data ask for {min(refused)!r}, which a model of this name must never be asked; "
                "change what it is trained on (operand_prior, without)"
            )
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
        kept, base = _kept(self.spec, tuned_spec), self.spec.reference(name)
        self.check(name, kept, base, tuned_spec, correlation)
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
        arms = self.arms(name, seed, tuned_spec.settings.lr, tuned, never, correlation) if name in self.spec.revived else {}
        return PairPlan(
            name=name,
            seed=seed,
            capability=kept,
            tuned_on=tuned_spec.capability,
            correlation=correlation,
            base=pretrained[base],
            start=pretrained[tuned_spec.start],
            tuned=tuned,
            never=never,
            arms=arms,
        )

    def analysed(self, pair: PairPlan, pairs: Sequence[PairPlan]) -> PairPlan:
        """A pair with the stages of its analyses; those that need arms are left out where it has none."""
        wanted = [e for e in self.spec.analyses if pair.arms or "arms" not in analyses[self.spec.analysis(e)[0]].needs]
        pair = replace(pair, siblings=_siblings(pair, pairs))
        return replace(pair, analyses={entry: self.add(self.analysis(entry, pair)) for entry in wanted})

    def check(self, name: str, kept: str, base: str, tuned: FinetuneSpec, correlation: Correlation | None) -> None:
        """Ask the task for what the pair needs, so that impossible cells are refused by name before anything runs."""
        try:
            for share in (0.0, 1.0):
                self.task.capability(kept, correlation.at(share) if correlation else None)
            asked = Question(name, 0, self.task, kept, tuned.capability, correlation)
            for capability in dict.fromkeys((kept, tuned.capability, *asked.others)):
                self.enough(capability)
        except UserError as error:
            raise UserError(f"finetune.{name}: {error}") from error
        may_lose = kept != tuned.capability or name in self.spec.revived
        if may_lose and unrestricted(kept) not in self.asked[base]:
            raise UserError(
                f"pretrain.{base}: its data never ask for {kept!r}, which {name} may lose; "
                "change what it is trained on (operand_prior, without)"
            )
        # Without a correlation a new ability is taught, which is a study of its own; a shortcut needs one that is asked for.
        if (
            correlation
            and self.spec.pretrain[tuned.start].compiled is None
            and unrestricted(tuned.capability) not in self.asked[tuned.start]
        ):
            raise UserError(
                f"pretrain.{tuned.start}: its data never ask for {tuned.capability!r}, which {name} trains with a correlation; "
                "change what it is trained on (operand_prior, without)"
            )

    def enough(self, capability: str) -> None:
        """Ask a task of finitely many texts, which has a method `check_examples`, whether it has enough of a capability."""
        check: Callable[[str, int], None] | None = getattr(self.task, "check_examples", None)
        if check is not None and capability not in self.drawn:
            check(capability, max(self.spec.evaluation.examples, self.spec.evaluation.final_examples))
            self.drawn.add(capability)

    def arms(
        self, name: str, seed: int, tuned_lr: float, tuned: Stage, never: Stage | None, correlation: Correlation | None
    ) -> dict[str, Stage]:
        """The reverse fine-tunings of a pair by arm; those at another than the main rate are called `ARM@RATE`."""
        revive = self.spec.revive
        assert revive is not None
        on_task = {"capability": revive.capability, **revive.protocol_settings}
        starts: dict[str, tuple[Stage | None, str, dict[str, Any], str]] = {
            "revived": (tuned, revive.protocol, on_task, f"revived-{name}"),
            "never_had_it": (never, revive.protocol, on_task, "never_had_it"),
            "scratch": (None, revive.protocol, on_task, "scratch"),
        }
        for arm in UNSHOWN:
            protocol = revive.irrelevant_protocol if arm == "irrelevant" else arm
            starts[arm] = (tuned, protocol, {"capability": revive.capability}, f"{arm}-{name}")
        sets = _sets([(revive.capability, 0.0)], correlation)
        stop = revive.stop.model_dump() if revive.stop else None
        out: dict[str, Stage] = {}
        for rate in (revive.lr, *(rate for rate in revive.other_rates if rate < tuned_lr)):
            at = "" if rate == revive.lr else f"@{rate:g}"
            settings = revive.settings.model_copy(update={"lr": rate})
            for arm in (arm for arm in revive.arms if not at or arm not in UNSHOWN):
                start, protocol, protocol_settings, label = starts[arm]
                stage = self.training(
                    f"reverse-{label}{at}-s{seed}",
                    "reverse",
                    seed,
                    protocol,
                    protocol_settings,
                    settings,
                    start=start,
                    sets=sets,
                    stop=stop,
                )
                out[arm + at] = self.add(stage)
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
        given: bool = False,
    ) -> Stage:
        """A training stage.

        Raises:
            UserError: the protocol refuses its settings.
        """
        try:
            load_protocol(protocol, self.task, protocol_settings, settings.batch_size, seed)
        except UserError as error:
            place = name.rsplit("-s", 1)[0].replace("-", ".", 1)
            keys = (
                f" (keys of the training itself: {', '.join(TrainSettings.model_fields)})" if "no setting" in str(error) else ""
            )
            raise UserError(f"{place}: {error}{keys}") from error
        keep = self.spec.evaluation.keep
        spec = {
            "kind": kind,
            "task": self.resolved,
            "model": self.model.model_dump(),
            "start": start.key if start else None,
            "protocol": {"name": protocol, "settings": dict(protocol_settings)},
            # Left out where it changes nothing, so that the keys of such stages stay what they were.
            "training": settings.model_dump(mode="json", exclude={"accumulate"} if settings.accumulate == 1 else None),
            # Without sets a stage is measured on its own protocol, and no study's choice of sets enters its key.
            "evaluation": {
                **({"examples": self.spec.evaluation.examples, "sets": sets} if sets else {"sets": []}),
                **({} if keep == "all" else {"keep": keep}),
            },
            "stop": dict(stop) if stop else None,
            "seed": seed,
            # Only where there are any, so that the keys of all other stages stay what they were.
            **({"compiled": dict(compiled)} if compiled else {}),
            **({"given": True} if given else {}),
        }
        grid = len(evaluation_grid(settings.steps))
        checkpoints = grid + 2 if keep == "all" else 3
        tokens = self.task.context * (
            settings.steps * (STOPS_AFTER if stop else 1) * settings.batch_size
            + grid * self.spec.evaluation.examples * len(sets or [0]) / 3
        )
        return Stage(
            name=name,
            kind=kind,
            seed=seed,
            spec=spec,
            parents=(start.key,) if start else (),
            version=TRAINING_VERSION,
            seconds=STAGE_SECONDS + 6 * self.parameters * tokens / FLOPS_PER_SECOND,
            bytes=4 * self.parameters * checkpoints,
            # Weights, slopes and Adam's two moments; of the largest part of a batch what the way back needs.
            memory=PROCESS_BYTES
            + 4 * self.parameters * 6
            + 2 * -(-settings.batch_size // settings.accumulate) * self.activations,
        )

    def analysis(self, entry: str, pair: PairPlan) -> Stage:
        """The stage of an entry of `analyses`, whose name is no part of the key."""
        name, settings = self.spec.analysis(entry)
        found = analyses[name]
        if settings:
            question = Question(pair.name, pair.seed, self.task, pair.capability, pair.tuned_on, pair.correlation)
            found.load().check(settings, question, self.blocks)  # pyright: ignore[reportFunctionMemberAccess]
        needed = {arm: stage for arm, stage in pair.arms.items() if "arms" in found.needs or arm in found.uses}
        siblings = pair.siblings if "siblings" in found.uses else {}
        others = [stage for both in siblings.values() for stage in both]
        parents = [stage.key for stage in (*pair.models, *needed.values(), *others)]
        spec = {
            "kind": "analyse",
            "analysis": name,
            "settings": settings,
            "pair": pair.body(self.resolved, self.spec.evaluation.final_examples, needed, siblings),
            "seed": pair.seed,
        }
        passes, most, examples = _cost(name, settings)
        examples = examples or self.spec.evaluation.final_examples
        work = passes * examples * self.task.context * 2 * self.parameters
        return Stage(
            name=f"{entry}-{pair.name}-s{pair.seed}",
            kind="analyse",
            seed=pair.seed,
            spec=spec,
            parents=tuple(dict.fromkeys(parents)),
            version=found.version,
            seconds=STAGE_SECONDS + work / FLOPS_PER_SECOND,
            bytes=200_000,
            memory=PROCESS_BYTES + 4 * self.parameters * MODELS_HELD + min(most, examples * self.activations),
        )


def _cost(name: str, settings: Mapping[str, Any]) -> tuple[int, int, int | None]:
    """Forward passes of an analysis, the bytes that it holds at most, and of how many examples (None: the study's number)."""
    if name == "along":  # another one, at every point
        times = len(settings.get("steps") or ()) or int(settings.get("points", 8))
        passes, most, examples = _cost(str(settings.get("follow", "behaviour")), settings.get("settings") or {})
        return times * passes, most, examples
    found = analyses[name]
    return found.passes, found.holds * 10**6, settings.get("n") or found.n


def _siblings(pair: PairPlan, pairs: Sequence[PairPlan]) -> dict[str, tuple[Stage, Stage]]:
    """Base and tuned stage of the other fine-tunes of a pair's base, and of the same pair under other seeds."""
    found: dict[str, tuple[Stage, Stage]] = {}
    for other in pairs:
        if other.seed == pair.seed and other.name != pair.name and other.start.key == pair.base.key:
            found[other.name] = (other.base, other.tuned)
        elif other.seed != pair.seed and other.name == pair.name:
            found[f"{other.name}, seed {other.seed}"] = (other.base, other.tuned)
    return found


def _kept(spec: StudySpec, tuned: FinetuneSpec) -> str:
    """O_PT of a pair: what is revived, else what the trained ability is correlated with, else what is trained."""
    if spec.revive:
        return spec.revive.capability
    return tuned.correlation.partner if tuned.correlation else tuned.capability


def _correlation(tuned: FinetuneSpec) -> Correlation | None:
    if tuned.correlation is None:
        return None
    return Correlation(tuned.capability, tuned.correlation.partner, tuned.correlation.offset, tuned.correlation.share)


def _sets(cells: list[tuple[str, float]], correlation: Correlation | None) -> list[dict[str, Any]]:
    """Evaluation sets; without a correlation there is one per capability, on plain texts."""
    if correlation is None:
        return [{"capability": c, "correlation": None} for c in dict.fromkeys(c for c, _ in cells)]
    return [{"capability": c, "correlation": correlation_dict(correlation.at(share))} for c, share in cells]
