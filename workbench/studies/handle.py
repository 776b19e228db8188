"""The handle of a study: run it, open its pairs, read its results and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from workbench.errors import UserError, did_you_mean
from workbench.files import atomic_text, explain_full_disk
from workbench.registry import analyses
from workbench.results import Evidence, Result
from workbench.runs import Run, Store
from workbench.studies.loading import load_study, parse_study
from workbench.studies.plan import Plan, plan
from workbench.studies.spec import StudySpec
from workbench.studies.stage import PairPlan, Stage, not_done
from workbench.subjects import Pair, open_pair
from workbench.verdict import Verdict, judge_kept, judge_trained

STUDY_FILE = "study.yaml"


@dataclass(frozen=True)
class Study:
    """A study in a store. `Study.load("quickstart").run()` does what is not done yet; everything else reads."""

    spec: StudySpec
    store: Store

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        store: Store | str | Path | None = None,
        overrides: Sequence[str] = (),
        seeds: Sequence[int] | None = None,
    ) -> Study:
        """A study from a preset or file, in a store or the folder of one.

        Raises:
            UserError: as `load_study`.
        """
        where = Store.default() if store is None else store if isinstance(store, Store) else Store(store)
        return cls(load_study(name_or_path, overrides, seeds), where)

    @classmethod
    def open(cls, store: Store, name: str) -> Study:
        """A study that was run in a store, as it was last run there.

        Raises:
            UserError: the store has no such study, or its file is damaged.
        """
        if name not in store.studies():
            raise UserError(f"the store {store.root} has no study {name!r}{did_you_mean(name, store.studies())}")
        path = store.root / name / STUDY_FILE
        try:
            body = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"{path} is missing or damaged; run the study again to rewrite it.") from error
        return cls(parse_study(body if isinstance(body, dict) else {}, str(path)), store)

    @property
    def name(self) -> str:
        """The study's name, which is its folder."""
        return self.spec.study

    @cached_property
    def plan(self) -> Plan:
        """All stages and pairs."""
        return plan(self.spec)

    @cached_property
    def _every(self) -> Plan:
        """The plan as if every analysis were asked for, at its defaults where the study does not say otherwise."""
        rest = {name: dict[str, Any]() for name in analyses.names() if name not in self.spec.analyses}
        return plan(self.spec.model_copy(update={"analyses": {**self.spec.analyses, **rest}}))

    def run(
        self,
        workers: int | None = None,
        *,
        device: str = "auto",
        engine: Literal["local", "inline"] = "local",
        progress: bool = True,
    ) -> Study:
        """Do every stage that is not done.

        Raises:
            UserError: a stage failed.
            KeyboardInterrupt: interrupted; run again to go on.
        """
        from workbench.engine.local import run_stages
        from workbench.engine.progress import Silent, Terminal

        self.save()
        reporter = Terminal(self.store) if progress else Silent()
        inline = engine == "inline"
        run_stages(self.plan.stages, self.store, self.name, reporter=reporter, workers=workers, device=device, inline=inline)
        return self

    @property
    def _pinned(self) -> StudySpec:
        """The spec with what its files held: they may not be there, or be others, when it is opened."""
        return self.spec.model_copy(update={"task": dict(self.plan.task), "model": self.plan.model})

    def replaces(self) -> str | None:
        """What differs in the study of this name that the store holds, seeds aside: `finetune.wrapped.steps`; None if nothing.

        Its runs stay in the store either way, but `open` finds the study as it was last run.
        """
        if self.name not in self.store.studies():
            return None
        try:
            before = Study.open(self.store, self.name).spec
        except UserError:
            return None
        here = self._pinned.model_copy(update={"seeds": ()})
        changed = _differences(before.model_copy(update={"seeds": ()}).model_dump(), here.model_dump())
        return ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "") if changed else None

    def save(self) -> None:
        """Write the resolved study into its folder, where the app and `open` find it.

        Seeds that were run before stay, while all else is as it was: a study grows by seeds.

        Raises:
            UserError: the store cannot be written.
        """
        spec = self._pinned
        if self.name in self.store.studies() and self.replaces() is None:
            with suppress(UserError):  # a damaged file is written anew
                before = Study.open(self.store, self.name).spec
                spec = spec.model_copy(update={"seeds": tuple(dict.fromkeys((*before.seeds, *spec.seeds)))})
        folder = self.store.root / self.name
        try:
            with explain_full_disk(folder):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be made ({error.strerror}); give another --store or WORKBENCH_HOME.") from error
        # With its defaults, so that it stays the same study when a later version has others.
        body = spec.model_dump(mode="json", by_alias=True)
        atomic_text(folder / STUDY_FILE, yaml.safe_dump(body, sort_keys=False))

    def runs(self) -> list[tuple[Stage, Run | None]]:
        """Every stage with its run, or None where there is none yet."""
        found = self.store.find_all(stage.key for stage in self.plan.stages)
        return [(stage, found.get(stage.key)) for stage in self.plan.stages]

    def progress(self) -> tuple[int, int]:
        """`(stages done, stages)`."""
        return sum(run is not None and run.done for _, run in self.runs()), len(self.plan.stages)

    def __repr__(self) -> str:
        """The study in a line."""
        done, total = self.progress()
        return f"Study({self.name!r}, {done} of {total} stages done, pairs {', '.join(self.pair_names)}, in {self.store.root})"

    @property
    def pair_names(self) -> tuple[str, ...]:
        """Names of the pairs: the fine-tunes."""
        return tuple(self.spec.finetune)

    def _known(self, pair: str, seed: int | None = None) -> None:
        if pair not in self.spec.finetune:
            raise UserError(f"study {self.name!r} has no pair {pair!r}{did_you_mean(pair, self.pair_names)}")
        if seed is not None and seed not in self.spec.seeds:
            have = ", ".join(map(str, self.spec.seeds))
            raise UserError(f"study {self.name!r} has no seed {seed}; it has {have} (`study run` with --seeds adds more).")

    def _plans(self, name: str) -> list[PairPlan]:
        self._known(name)
        return [pair for pair in self.plan.pairs if pair.name == name]

    def pair(self, name: str, seed: int | None = None, device: str = "cpu") -> Pair:
        """A pair with its arms, to analyse.

        Raises:
            UserError: no such pair or seed, or its models are not done yet.
        """
        self._known(name, seed)
        wanted = self.spec.seeds[0] if seed is None else seed
        planned = next(p for p in self._plans(name) if p.seed == wanted)
        for stage in not_done(self.store, planned.models):
            raise UserError(f"{stage.name} of pair {name!r} is not done; run the study first.")
        lacking = not_done(self.store, (*planned.arms.values(), *(s for both in planned.siblings.values() for s in both)))
        done = [arm for arm, stage in planned.arms.items() if stage not in lacking]
        siblings = [n for n, both in planned.siblings.items() if not any(stage in lacking for stage in both)]
        body = planned.body(self.plan.task, self.spec.evaluation.final_examples, done, siblings)
        return open_pair(body, self.store, name, wanted, device)

    def result(self, pair: str, analysis: str, seed: int | None = None) -> Result | None:
        """The result of an analysis of the study (by its name there) on a pair, or None if it is not done for any seed.

        It is the one of a seed, or pooled over the seeds that are done. An analysis that the study does not name is found as
        well, where `analyze` ran it with its defaults.
        """
        self._plans(pair)
        every = self.plan if analysis in self.spec.analyses else self._every
        planned = [p for p in every.pairs if p.name == pair and seed in (None, p.seed)]
        wanted = [p.analyses[analysis].key for p in planned if analysis in p.analyses]
        runs = self.store.find_all(wanted)
        done = [runs[key].result() for key in wanted if key in runs and runs[key].done]
        if not done:
            return None
        found = done[0] if seed is not None else pool(done)
        return replace(found, evidence=tuple(replace(line, analysis=analysis) for line in found.evidence))

    def variants(self, pair: str, analysis: str, seed: int | None = None) -> dict[str, Result]:
        """Results that `analyze` made with settings of its own, by these settings (`n=32, points=3`), the newest first.

        Of one seed, or pooled over those that are done. No verdict rests on them.
        """
        mine = [run for run in self.store.runs(self.name) if run.done and run.stage.startswith(f"{analysis}-{pair}-s")]
        tried = [run.spec["settings"] for run in sorted(mine, key=lambda run: run.path.stat().st_mtime, reverse=True)]
        found: dict[str, Result] = {}
        for settings in tried:
            text = ", ".join(f"{name}={value}" for name, value in settings.items())
            if not text or text in found:
                continue
            with suppress(UserError):  # settings of an older version, or one that cannot be read
                runs = self.store.find_all(stage.key for stage in self.stages_of(pair, analysis, settings, seed))
                if done := [run.result() for run in runs.values() if run.done]:
                    found[text] = done[0] if seed is not None else pool(done)
        return found

    def analyze(
        self,
        pair: str,
        analysis: str,
        settings: Mapping[str, Any] | None = None,
        seed: int | None = None,
        *,
        progress: bool = False,
    ) -> tuple[Result, list[Path]]:
        """Run an analysis with settings of its own on a pair, keep it in the store, and give the result over seeds.

        Raises:
            UserError: no such pair or analysis, settings that do not fit, or models that are not made yet.
        """
        from workbench.engine.local import run_stages
        from workbench.engine.progress import Silent, Terminal

        stages = self.stages_of(pair, analysis, settings, seed)
        missing = not_done(self.store, stages)
        needed = {key for stage in missing for key in stage.parents}
        if lacking := not_done(self.store, [stage for stage in self.plan.stages if stage.key in needed]):
            names = ", ".join(stage.name for stage in lacking)
            raise UserError(
                f"{analysis} of {pair!r} needs {names}, not done yet; `workbench study run {self.name}` goes on with it."
            )
        reporter = Terminal(self.store) if progress and missing else Silent()
        run_stages(stages, self.store, self.name, reporter=reporter, inline=True)
        runs = [run for stage in stages if (run := self.store.find(stage.key))]
        return pool([run.result() for run in runs]), [run.path for run in runs]

    def stages_of(
        self, pair: str, analysis: str, settings: Mapping[str, Any] | None = None, seed: int | None = None
    ) -> list[Stage]:
        """What `analyze` would run, one stage for each seed; nothing is run.

        Raises:
            UserError: no such pair or analysis, or settings that do not fit.
        """
        # What can be said at once comes first: planning a study takes seconds.
        entry = analyses[analysis]
        self._known(pair, seed)
        entry.load().settings(settings or {})  # pyright: ignore[reportFunctionMemberAccess]
        one = Study(self.spec.model_copy(update={"analyses": {analysis: dict(settings or {})}}), self.store)
        stages = [p.analyses[analysis] for p in one._plans(pair) if seed in (None, p.seed) and analysis in p.analyses]
        if not stages:
            raise UserError(
                f"{analysis} cannot run on {pair!r}: it needs the reverse fine-tunings, which this pair has none of."
            )
        return stages

    def results(self, pair: str) -> dict[str, Result]:
        """All pooled results of a pair that are there, those of the study first.

        One that cannot be read hides no other (`runs verify` names it).
        """
        found: dict[str, Result] = {}
        for name in dict.fromkeys((*self.spec.analyses, *analyses.names())):
            with suppress(UserError):
                if (result := self.result(pair, name)) is not None:
                    found[name] = result
        return found

    def verdicts(self) -> list[Verdict]:
        """One verdict per pair and capability."""
        out: list[Verdict] = []
        for name in self.pair_names:
            planned = self._plans(name)[0]
            results = self.results(name)
            seeds = tuple(sorted({s for r in results.values() for s in r.provenance.get("seeds", [])}))
            lines = tuple(line for result in results.values() for line in result.evidence)
            kept = tuple(e for e in lines if e.capability in ("", planned.capability))
            out.append(Verdict(name, name, planned.capability, seeds, *judge_kept(results, planned.capability), kept))
            if planned.tuned_on != planned.capability:
                trained: tuple[Evidence, ...] = tuple(e for e in lines if e.capability == planned.tuned_on)
                judged = judge_trained(results, planned.tuned_on)
                out.append(Verdict(name, name, planned.tuned_on, seeds, *judged, trained, kept=False))
        return out


def _differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Dotted places where two pieces of plain data differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        a, b = cast(dict[str, Any], before), cast(dict[str, Any], after)
        names = dict.fromkeys((*a, *b))
        return [d for n in names for d in _differences(a.get(n), b.get(n), f"{where}.{n}" if where else str(n))]
    return [] if before == after else [where]


def pool(results: Sequence[Result]) -> Result:
    """One result of the same analysis over seeds, its evidence read anew from the pooled numbers."""
    from importlib import import_module

    from workbench.replicates import combine_results

    pooled = combine_results(results)
    read = import_module(analyses[pooled.name].module).evidence
    seeds = sorted({int(r.provenance["seed"]) for r in results})
    try:
        evidence = read(pooled)
    except KeyError as error:
        lacking = f"a stored result of {pooled.name} lacks a number ({error.args[0]})"
        raise UserError(f"{lacking}; remove its run (`workbench runs remove`) and redo it.") from error
    return replace(pooled, evidence=evidence, provenance={**pooled.provenance, "seeds": seeds})
