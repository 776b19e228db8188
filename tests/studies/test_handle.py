from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from studies.tiny import TINY, run_of, stage_of, write_study

from workbench.errors import UserError
from workbench.report import write_report
from workbench.results import Evidence, Metric, Result
from workbench.runs import Store
from workbench.studies.handle import Study, pool


@pytest.fixture
def copied(whole, tmp_path) -> Study:
    """The done study in a store of its own, to be spoiled."""
    shutil.copytree(whole.store.root, tmp_path / "runs")
    return Study(whole.spec, Store(tmp_path / "runs"))


def load(tmp_path, *overrides: str, store: Store | None = None, seeds=None) -> Study:
    return Study.load(write_study(tmp_path), store or Store(tmp_path / "runs"), overrides, seeds)


# --- running and growing


def test_a_whole_study_is_done(whole):
    assert whole.progress() == (11, 11)
    assert all(run is not None and run.done for _, run in whole.runs())
    assert [run.kind for _, run in whole.runs()] == [stage.kind for stage in whole.plan.stages]
    assert len(whole.store.runs()) == 11


def test_running_again_does_nothing(copied):
    before = {path: path.stat().st_mtime_ns for path in copied.store.root.rglob("*.parquet")}
    before |= {path: path.stat().st_mtime_ns for path in copied.store.root.rglob("status.json")}
    assert copied.run(engine="inline", progress=False) is copied
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_a_new_seed_runs_only_what_is_new_and_other_studies_share(copied, tmp_path, monkeypatch):
    import workbench.stages

    ran: list[str] = []
    real = workbench.stages.execute
    monkeypatch.setattr(workbench.stages, "execute", lambda stage, *rest: (ran.append(stage.name), real(stage, *rest))[1])
    grown = load(tmp_path, "analyses=[behaviour]", "study=grown", store=copied.store, seeds=[0, 1])
    grown.run(engine="inline", progress=False)
    assert {name.rsplit("-", 1)[1] for name in ran} == {"s1"}
    assert len(ran) == len(set(ran)) == 8
    assert grown.progress() == (16, 16)
    pooled = grown.result("wrapped", "behaviour")
    assert pooled is not None
    assert pooled.provenance["seeds"] == [0, 1]
    assert pooled.metric("base_pt").seeds == 2
    one = grown.result("wrapped", "behaviour", seed=1)
    assert one is not None
    assert one.provenance["seed"] == 1
    assert grown.verdicts()[0].seeds == (0, 1)
    assert copied.verdicts()[0].seeds == (0,)


# --- the study's file


def test_the_saved_study_is_opened_again(copied):
    assert Study.open(copied.store, "tiny").spec == copied.spec
    with pytest.raises(UserError, match="has no study 'tinny'; did you mean 'tiny'"):
        Study.open(copied.store, "tinny")
    (copied.store.root / "tiny" / "study.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"study.yaml is missing or damaged; run the study again"):
        Study.open(copied.store, "tiny")
    copied.save()
    assert Study.open(copied.store, "tiny").spec == copied.spec


def test_seeds_stay_when_a_study_is_run_with_others(copied, tmp_path):
    load(tmp_path, store=copied.store, seeds=[3, 0]).save()
    assert Study.open(copied.store, "tiny").spec.seeds == (0, 3)
    load(tmp_path, "revive.steps=9", store=copied.store, seeds=[4]).save()  # another study by now
    assert Study.open(copied.store, "tiny").spec.seeds == (4,)


def test_a_store_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match=r"tiny cannot be made \(Not a directory\); give another --store"):
        load(tmp_path).run(engine="inline", progress=False)


# --- pairs


def test_a_pair_has_the_plans_models_and_arms(whole):
    from workbench.models.fingerprint import folder_sha256, weights_sha256

    pair = whole.pair("wrapped")
    assert (pair.name, pair.seed, pair.capability, pair.tuned_on, pair.n) == ("wrapped", 0, "count_a", "count_b", 16)
    for model, start in ((pair.base, "pretrain-base"), (pair.tuned, "finetune"), (pair.never_had_it, "pretrain-never")):
        assert weights_sha256(model) == folder_sha256(run_of(whole, start).checkpoint().path)
    assert list(pair.arms) == ["revived", "never_had_it", "scratch", "irrelevant"]
    assert pair.trajectory is not None
    assert pair.trajectory.evaluations["step"].max() == 8


def test_no_such_pair_or_seed(whole, tmp_path):
    with pytest.raises(UserError, match="study 'tiny' has no pair 'wraped'; did you mean 'wrapped'"):
        whole.pair("wraped")
    with pytest.raises(UserError, match=r"study 'tiny' has no seed 7; it has 0"):
        whole.pair("wrapped", seed=7)
    with pytest.raises(UserError, match="pretrain-base-s0 of pair 'wrapped' is not done; run the study first"):
        load(tmp_path).pair("wrapped")


def unfinish(study: Study, start: str) -> None:
    """As an interruption leaves it: checkpoints are there, and the last is not the end."""
    path = run_of(study, start).path / "status.json"
    path.write_text(path.read_text().replace('"done"', '"interrupted"'))


def test_half_trained_models_are_never_looked_at(copied):
    unfinish(copied, "reverse-revived")
    assert "revived" not in copied.pair("wrapped").arms
    unfinish(copied, "finetune")
    with pytest.raises(UserError, match="finetune-wrapped-s0 of pair 'wrapped' is not done"):
        copied.pair("wrapped")
    with pytest.raises(UserError, match="needs finetune-wrapped-s0, not done yet"):
        copied.analyze("wrapped", "behaviour", {"n": 32})


# --- results and verdicts


def test_results_are_those_of_the_runs(whole):
    results = whole.results("wrapped")
    assert list(results) == ["behaviour", "pruning", "probing", "revival"]
    for name, result in results.items():
        stored = run_of(whole, f"{name}-").result()
        assert [m.value for m in result.headline] == pytest.approx([m.value for m in stored.headline], nan_ok=True)
        assert result.provenance["seeds"] == [0]
    assert whole.result("wrapped", "nope") is None
    assert whole.result("wrapped", "behaviour", seed=9) is None


def test_verdicts_are_one_per_pair_and_ability(whole, tmp_path):
    kept, trained = whole.verdicts()
    assert [(v.pair, v.capability, v.seeds) for v in (kept, trained)] == [
        ("wrapped", "count_a", (0,)),
        ("wrapped", "count_b", (0,)),
    ]
    assert {e.analysis for e in kept.evidence} == {"behaviour", "pruning", "probing", "revival"}
    assert {e.capability for e in kept.evidence} <= {"", "count_a"}
    assert {e.capability for e in trained.evidence} == {"count_b"}
    assert [(v.verdict, v.reason, v.evidence) for v in load(tmp_path).verdicts()] == [
        ("inconclusive", "behaviour was not measured.", ())
    ] * 2


@pytest.mark.parametrize("kind", [str, Path, Store])
def test_a_store_may_be_given_as_its_folder(tmp_path, kind):
    study = Study.load(write_study(tmp_path), kind(tmp_path / "elsewhere"))
    assert study.store.root == tmp_path / "elsewhere"


def test_a_pair_that_trains_what_may_be_lost_has_one_verdict(tmp_path):
    text = TINY.replace("capability: count_b, correlation: {with: count_a, offset: 1, share: 1.0}", "capability: count_a")
    study = Study.load(write_study(tmp_path, text), Store(tmp_path / "runs"))
    assert [v.capability for v in study.verdicts()] == ["count_a"]


def test_pooling_reads_the_evidence_from_the_pooled_numbers(whole):
    (one,) = [run.result() for stage, run in whole.runs() if stage.name == "behaviour-wrapped-s0" and run]
    values = {"base_pt": 1.0, "tuned_pt": 0.0, "change_pt": -1.0, "chance_pt": 0.2}
    sure = tuple(
        Metric(m.metric, v, v, v, 16, draws=(v,) * len(m.draws)) if (v := values.get(m.metric)) is not None else m
        for m in one.headline
    )
    lost = Result("behaviour", {"table": pd.DataFrame()}, sure, (), provenance={**one.provenance, "seed": 1})
    stale = Evidence("behaviour", "x", 0, 0, 0, 0, "masked", "stale")
    (both,) = [pool([Result(lost.name, lost.tables, lost.headline, (stale,), provenance={**lost.provenance, "seed": 5})])]
    assert both.provenance["seeds"] == [5]
    assert stale not in both.evidence
    assert "1.00 before fine-tuning, 0.00 after" in both.evidence[0].text


def test_an_analysis_that_stands_there_twice_is_evidence_twice(copied, tmp_path):
    entries = {
        **copied.spec.analyses,
        "pruning_heads": {"analysis": "pruning", "units": "heads"},
        "again": {"analysis": "probing"},
    }
    study = Study(copied.spec.model_copy(update={"analyses": entries}), copied.store)
    assert [stage.name for stage in study.plan.missing(study.store)] == ["pruning_heads-wrapped-s0"]  # probing again is probing
    study.run(engine="inline", progress=False)
    found = study.results("wrapped")
    assert {name: result.name for name, result in found.items() if name != result.name} == {
        "pruning_heads": "pruning",
        "again": "probing",
    }
    assert found["pruning_heads"].metric("units").unit == "heads"
    assert found["pruning_heads"].provenance["replicates"][0]["pair"] == "wrapped"
    lines = dict.fromkeys(line.analysis for line in study.verdicts()[0].evidence)
    assert list(lines) == ["behaviour", "pruning", "probing", "revival", "pruning_heads", "again"]
    one = study.result("wrapped", "pruning_heads", 0)
    assert one is not None
    assert {line.analysis for line in one.evidence} == {"pruning_heads"}
    page = write_report(study, tmp_path / "report.html").read_text()
    assert all(f'id="wrapped-{name}"' in page for name in entries)
    assert "study.result(&#x27;wrapped&#x27;, &#x27;pruning_heads&#x27;)" in page
    with pytest.raises(UserError, match="pruning has no setting 'analysis'"):
        study.analyze("wrapped", "pruning", {"analysis": "probing"})


def test_an_analysis_with_other_settings_is_a_run_of_its_own(copied):
    first = run_of(copied, "behaviour")
    stored = {path.name: path.read_bytes() for path in first.path.iterdir() if path.is_file()}
    result, (path,) = copied.analyze("wrapped", "behaviour", {"n": 32})
    assert result.metric("base_pt").n == 32
    assert path != first.path
    assert path.name.startswith("behaviour-wrapped-s0-")
    assert {p.name: p.read_bytes() for p in first.path.iterdir() if p.is_file()} == stored
    unchanged = copied.result("wrapped", "behaviour")
    assert unchanged is not None
    assert unchanged.metric("base_pt").n == 16
    assert copied.analyze("wrapped", "behaviour", {"n": 32})[1] == [path]
    assert copied.analyze("wrapped", "behaviour")[1] == [first.path]
    assert len(copied.store.runs()) == 12
    # It is found by its settings, beside the study's own, and never in place of it.
    assert list(copied.variants("wrapped", "behaviour")) == ["n=32"]
    assert copied.variants("wrapped", "behaviour", 0)["n=32"].metric("base_pt").n == 32
    assert copied.variants("wrapped", "probing") == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("wraped", "behaviour"), "no pair 'wraped'"),
        (("wrapped", "behavior"), "no analysis 'behavior'; did you mean 'behaviour'"),
        (("wrapped", "behaviour", {"m": 3}), "behaviour has no setting 'm'"),
        (("wrapped", "behaviour", {}, 7), "study 'tiny' has no seed 7; it has 0"),
    ],
)
def test_what_cannot_be_analysed_is_one_sentence(copied, words, message):
    with pytest.raises(UserError, match=message):
        copied.analyze(*words)
    assert len(copied.store.runs()) == 11


def test_what_an_analysis_looks_at_must_be_done(copied):
    unfinish(copied, "finetune")
    with pytest.raises(UserError, match="needs finetune-wrapped-s0, not done yet; `workbench study run tiny` goes on"):
        copied.analyze("wrapped", "behaviour", {"n": 32})
    assert len(copied.store.runs()) == 11


def test_a_stored_result_that_lacks_a_number_is_one_sentence(whole):
    result = whole.result("wrapped", "behaviour", seed=0)
    lacking = replace(result, headline=tuple(m for m in result.headline if m.metric != "tuned_pt"))
    with pytest.raises(UserError, match=r"a stored result of behaviour lacks a number \(tuned_pt\).*runs remove"):
        pool([lacking])


def test_revival_needs_arms(copied, tmp_path):
    study = load(tmp_path, "revive.pairs=[]", store=copied.store)
    with pytest.raises(UserError, match="revival cannot run on 'wrapped': it needs the reverse fine-tunings"):
        study.analyze("wrapped", "revival")


def test_the_plan_is_made_once(whole):
    assert whole.plan is whole.plan
    assert stage_of(whole, "finetune").name == "finetune-wrapped-s0"
    assert whole.pair_names == ("wrapped",)
