from __future__ import annotations

import os
import shutil
import time
from concurrent.futures.process import BrokenProcessPool

import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies.tiny import run_of, weights, write_study

import workbench.engine.local as local
from workbench.engine.local import cores, run_stages
from workbench.engine.progress import Silent
from workbench.errors import UserError
from workbench.runs import Store
from workbench.studies.handle import Study
from workbench.studies.stage import Stage


class Recorder(Silent):
    """What a reporter is told."""

    def __init__(self):
        self.heard: list[tuple[str, str]] = []
        self.reasons: dict[str, str] = {}

    def begin(self, stages, done):
        self.heard.append(("begin", f"{len(stages)} to do, {done} done"))

    def started(self, stage):
        self.heard.append(("started", stage.name))

    def ended(self, stage, reason):
        self.heard.append(("ended" if reason is None else "failed", stage.name))
        self.reasons[stage.name] = reason or ""

    def stopping(self):
        self.heard.append(("stopping", ""))

    def close(self):
        self.heard.append(("close", ""))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "runs")


# --- the order of work


@st.composite
def graphs(draw) -> list[Stage]:
    """Any graph whose parents come first."""
    stages: list[Stage] = []
    for i in range(draw(st.integers(1, 10))):
        chosen = draw(st.lists(st.sampled_from(stages), unique_by=lambda s: s.name, max_size=3)) if stages else []
        seconds = draw(st.floats(0, 100))
        stages.append(Stage(f"s{i}", "pretrain", 0, {"i": i}, tuple(s.key for s in chosen), 1, seconds, 0, 0))
    return stages


def descendants(stages: list[Stage], key: str) -> set[str]:
    below = {key}
    for stage in stages:  # parents come first
        if below.intersection(stage.parents):
            below.add(stage.key)
    return below - {key}


@given(stages=graphs(), data=st.data())
def test_every_stage_runs_once_after_its_parents_and_only_descendants_of_a_failure_do_not(stages, data):
    """Two workers that end in any order; any stages fail."""
    doomed = data.draw(st.sets(st.sampled_from([s.key for s in stages])))
    schedule = local._Schedule({stage.key: stage for stage in stages})
    running: list[Stage] = []
    done: set[str] = set()
    seen: list[str] = []
    while True:
        while len(running) < 2 and (stage := schedule.next()):
            assert done.issuperset(stage.parents)
            assert stage.key not in seen
            seen.append(stage.key)
            running.append(stage)
        if not running:
            break
        stage = running.pop(data.draw(st.integers(0, len(running) - 1)))
        if stage.key in doomed:
            schedule.fail(stage, "bad luck")
        else:
            schedule.done(stage)
            done.add(stage.key)
    lost = set().union(*(descendants(stages, key) for key in schedule.failed))
    assert set(schedule.blocked) == lost
    assert set(seen) == {s.key for s in stages} - lost
    assert done == set(seen) - doomed
    if schedule.failed:
        with pytest.raises(UserError, match="bad luck"):
            schedule.raise_failures("study")
    else:
        schedule.raise_failures("study")


@given(graphs())
def test_the_longest_way_to_the_end_goes_first(stages):
    by_key = {stage.key: stage for stage in stages}

    def way(stage: Stage) -> float:
        return stage.seconds + max((way(s) for s in by_key.values() if stage.key in s.parents), default=0.0)

    first = local._Schedule(by_key).next()
    assert first is not None
    assert way(first) == pytest.approx(max(way(s) for s in stages if not s.parents))


def test_the_sentence_about_failures():
    stages = [Stage(f"s{i}", "pretrain", 0, {"i": i}, (), 1, 1.0, 0, 0) for i in range(3)]
    child = Stage("child", "finetune", 0, {}, (stages[0].key,), 1, 1.0, 0, 0)
    schedule = local._Schedule({stage.key: stage for stage in (*stages, child)})
    schedule.fail(stages[0], "it was too hot.")
    schedule.fail(stages[2], "so was it")
    with pytest.raises(UserError) as caught:
        schedule.raise_failures("demo")
    assert str(caught.value) == (
        "demo: s0 failed: it was too hot. 1 more failed: s2. 1 stages that need it were not run. Run the same command to go on."
    )


# --- in this process


def test_the_reporter_hears_it_all_and_parents_come_first(whole, store):
    recorder = Recorder()
    wanted = [s for s in whole.plan.stages if s.name.startswith(("pretrain", "finetune", "reverse-scratch"))]
    run_stages(wanted[:1], store, "x", reporter=Silent(), inline=True)
    run_stages(wanted, store, "x", reporter=recorder, inline=True)
    assert recorder.heard[0] == ("begin", "3 to do, 1 done")
    assert recorder.heard[-1] == ("close", "")
    told = recorder.heard[1:-1]
    assert [what for what, _ in told] == ["started", "ended"] * 3
    assert {name for _, name in told} == {stage.name for stage in wanted[1:]}
    for stage in wanted:
        run, expected = store.find(stage.key), whole.store.find(stage.key)
        assert run is not None
        assert expected is not None
        assert weights(run) == weights(expected)


def test_a_failed_stage_costs_its_descendants_and_nothing_else(tmp_path, store):
    study = Study.load(write_study(tmp_path), store, ["pretrain.base.lr=1e30", "analyses=[behaviour]"])
    recorder = Recorder()
    with pytest.raises(UserError) as caught:
        run_stages(study.plan.stages, store, study.name, reporter=recorder, inline=True)
    message = str(caught.value)
    assert message.startswith("tiny: pretrain-base-s0 failed: loss ")
    assert "4 stages that need it were not run" in message
    assert "\n" not in message
    states = {stage.name: run.status["state"] if run else None for stage, run in study.runs()}
    assert states == {
        "pretrain-base-s0": "failed",
        "pretrain-never_had_it-s0": "done",
        "finetune-wrapped-s0": None,
        "reverse-revived-wrapped-s0": None,
        "reverse-never_had_it-s0": "done",
        "reverse-scratch-s0": "done",
        "reverse-irrelevant-wrapped-s0": None,
        "behaviour-wrapped-s0": None,
    }
    assert run_of(study, "pretrain-base").status["reason"] in recorder.reasons["pretrain-base-s0"]
    assert recorder.heard[-1] == ("close", "")


def test_a_damaged_run_is_made_again_and_bothers_no_other(whole, tmp_path):
    shutil.copytree(whole.store.root, tmp_path / "copied")
    study = Study(whole.spec, Store(tmp_path / "copied"))
    (run_of(study, "reverse-scratch").path / "spec.yaml").unlink()
    recorder = Recorder()
    run_stages(study.plan.stages, study.store, study.name, reporter=recorder, inline=True)
    assert [name for what, name in recorder.heard if what == "ended"] == ["reverse-scratch-s0"]
    assert study.progress() == (11, 11)


# --- in worker processes


def test_workers_make_the_same_weights_and_one_that_died_idle_is_replaced(whole, store, monkeypatch):
    made = []

    def pool():
        made.append(real())
        if len(made) == 1:
            for process in local._processes(made):
                process.kill()
            deadline = time.monotonic() + 20
            while not made[0]._broken and time.monotonic() < deadline:
                time.sleep(0.01)
            with pytest.raises(BrokenProcessPool):
                made[0].submit(int)
        return made[-1]

    real = local._pool
    monkeypatch.setattr(local, "_pool", pool)
    wanted = [s for s in whole.plan.stages if s.name.startswith(("pretrain-base", "finetune", "reverse-rev"))]
    recorder = Recorder()
    before = dict(os.environ)
    run_stages(wanted, store, "x", reporter=recorder, workers=1)
    assert len(made) == 2
    assert [name for what, name in recorder.heard if what == "ended"] == [s.name for s in wanted]
    for stage in wanted:
        run, expected = store.find(stage.key), whole.store.find(stage.key)
        assert run is not None
        assert expected is not None
        assert weights(run) == weights(expected)
        assert run.provenance["threads"] == 1
        assert run.provenance["pid"] != os.getpid()
    assert dict(os.environ) == before


def test_nothing_to_do_starts_no_worker(whole, monkeypatch):
    monkeypatch.setattr(local, "_pool", lambda: pytest.fail("a worker was started"))
    recorder = Recorder()
    run_stages(whole.plan.stages, whole.store, whole.name, reporter=recorder)
    assert recorder.heard == [("begin", "0 to do, 11 done"), ("close", "")]


def test_cores_are_those_this_process_may_use():
    assert 1 <= cores() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(allowed)})
            assert cores() == 1
        finally:
            os.sched_setaffinity(0, allowed)
