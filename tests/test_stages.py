from __future__ import annotations

import errno
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from studies.tiny import TINY, resumable, run_of, run_once, stage_of, weights, write_study

import workbench.files
from workbench.errors import UserError
from workbench.files import DiskFull
from workbench.runs import Run, Store
from workbench.stages import execute
from workbench.studies.handle import Study
from workbench.studies.stage import Stage
from workbench.training.loop import Interrupted
from workbench.training.schedule import evaluation_grid

REVIVES = """
study: revives
seeds: [0]
task: {kind: pcfg, text_length: 12, window: 6, families: [count, token]}
model: {blocks: 1, heads: 2, width: 16}
evaluation: {examples: 64, final_examples: 16}
pretrain: {base: {steps: 0, lr: 1.0e-3, batch_size: 8}}
finetune: {tuned: {from: base, capability: count_a, steps: 0, lr: 1.0, batch_size: 8}}
revive: {capability: count_a, steps: 80, lr: 1.0e-2, batch_size: 8, arms: [scratch], stop: {accuracy: 0.15, evaluations: 2}}
"""


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Study:
    return run_once(tmp_path_factory, TINY)


@pytest.fixture(scope="session")
def revives(tmp_path_factory) -> Study:
    return run_once(tmp_path_factory, REVIVES)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "runs")


@pytest.fixture
def copied(whole, tmp_path) -> Study:
    shutil.copytree(whole.store.root, tmp_path / "copied")
    return Study(whole.spec, Store(tmp_path / "copied"))


def found(store: Store, stage: Stage) -> Run:
    run = store.find(stage.key)
    assert run is not None
    return run


def interrupt(stage: Stage, store: Store, at: int) -> Run:
    """Ask to stop when `at` further updates are done."""
    polls = iter(range(10**6))
    with pytest.raises(Interrupted):
        execute(stage, store, "cut", "cpu", lambda: next(polls) >= at)
    return found(store, stage)


def same_evaluations(a: Run, b: Run) -> None:
    pd.testing.assert_frame_equal(a.evaluations(), b.evaluations())


# --- what a stage leaves


def test_a_training_stage_leaves_its_grid_measured_and_saved(whole):
    run, stage = run_of(whole, "finetune"), stage_of(whole, "finetune")
    grid = list(evaluation_grid(8))
    assert [c.step for c in run.checkpoints] == grid == [0, 5, 7, 8]
    rows = run.evaluations()
    cells = [("count_a", 0.0), ("count_a", 1.0), ("count_b", 0.0), ("count_b", 1.0)]
    assert list(zip(rows["step"], rows["capability"], rows["share"], strict=True)) == [
        (s, *cell) for s in grid for cell in cells
    ]
    assert {len(values) for values in rows["values"]} == {16}
    assert {float(v) for values in rows["values"] for v in values} <= {0.0, 1.0}
    metrics = run.metrics()
    train = metrics[metrics["split"] == "train"]
    assert set(train["name"]) == {"loss_nats", "learning_rate", "gradient_norm"}
    assert train["step"].max() == 8
    assert {"accuracy at C=0", "accuracy at C=1"} <= set(metrics["name"])
    assert (run.status["step"], run.status["steps"]) == (8, 8)
    assert run.parents == stage.parents
    assert run.spec == stage.spec
    assert (run.seed, run.provenance["dtype"], run.provenance["device"]) == (0, "float32", "cpu")


def test_accuracies_are_those_of_the_saved_model_on_the_named_texts(whole):
    from workbench.examples import Correlation
    from workbench.models.checkpoints import load_model
    from workbench.models.forward import accuracy, evaluate
    from workbench.protocols import load_task

    run = run_of(whole, "finetune")
    task = load_task(whole.spec.task)
    rows = run.evaluations().set_index(["step", "capability", "share"])["values"]
    for step, share in ((5, 0.0), (8, 1.0)):
        examples = task.capability("count_b", Correlation("count_b", "count_a", 1, share)).examples(16, 0)
        measured = evaluate(load_model(run.checkpoint(step).path), examples, accuracy)
        assert measured.tolist() == list(rows[step, "count_b", share])


def test_held_out_texts_are_draws_of_the_protocol_that_training_never_sees(whole):
    from workbench.protocols import load_protocol, load_task
    from workbench.stages import _evaluation_sets

    stage, task = stage_of(whole, "pretrain-base"), load_task(whole.spec.task)
    ((split, capability, share, held_out),) = _evaluation_sets(stage, task)
    assert (split, capability, share) == ("held out", "all", None)
    settings = stage.spec["protocol"]["settings"]
    training = load_protocol("pretraining", task, settings, len(held_out), stage.seed)
    same = [(training.batch(step).tokens == held_out.tokens).all(1).float().mean().item() for step in range(3)]
    assert max(same) < 0.1
    assert (held_out.loss_mask == training.batch(0).loss_mask).all()


def test_a_stage_starts_from_its_parents_last_weights(whole):
    last = weights(run_of(whole, "pretrain-base"))[20]
    assert weights(run_of(whole, "finetune"))[0] == last
    assert weights(run_of(whole, "reverse-revived"))[0] == weights(run_of(whole, "finetune"))[8]
    assert weights(run_of(whole, "reverse-never"))[0] == weights(run_of(whole, "pretrain-never"))[20]
    assert weights(run_of(whole, "reverse-irrelevant"))[0] == weights(run_of(whole, "finetune"))[8]
    scratch = weights(run_of(whole, "reverse-scratch"))
    assert scratch[0] == weights(run_of(whole, "pretrain-base"))[0]  # the seed's random weights
    hashes = [sha for stage, run in whole.runs() if run for sha in list(weights(run).values())[1:]]
    assert len(set(hashes)) == len(hashes)  # every checkpoint differs: each stage trains, on data of its own


def test_a_done_stage_is_left_alone(copied):
    run = run_of(copied, "pretrain-base")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    execute(stage_of(copied, "pretrain-base"), copied.store, "tiny")
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_an_analysis_stage_keeps_its_result(whole):
    run = run_of(whole, "behaviour")
    assert run.kind == "analyse"
    assert run.result().provenance["pair"] == "wrapped"
    assert run.result().provenance["base_sha256"] == weights(run_of(whole, "pretrain-base"))[20]


def test_a_long_training_saves_by_the_clock_and_leaves_no_trace_of_it(whole, store, monkeypatch):
    monkeypatch.setattr("workbench.stages.SAVE_EVERY_SECONDS", -1.0)  # always due
    stage = stage_of(whole, "pretrain-base")
    run = interrupt(stage, store, 9)
    assert [c.step for c in run.checkpoints] == [0, 5, 7, 9]
    polls = iter(range(10**6))
    with pytest.raises(ZeroDivisionError):  # killed at step 13, say: nothing is offered to the listener any more
        execute(stage, store, "cut", "cpu", lambda: 1 / 0 if next(polls) == 4 else False)
    assert resumable(found(store, stage)) == [13]
    execute(stage, store, "cut", "cpu")
    assert [c.step for c in found(store, stage).checkpoints] == list(evaluation_grid(20))
    assert weights(found(store, stage)) == weights(run_of(whole, "pretrain-base"))


def test_checkpoints_can_be_kept_to_the_last(whole, store):
    stage = stage_of(whole, "pretrain-base")
    lean = replace(stage, spec={**stage.spec, "evaluation": {**stage.spec["evaluation"], "keep": "last"}})
    interrupt(lean, store, 6)
    assert [c.step for c in found(store, lean).checkpoints] == [6]
    execute(lean, store, "cut", "cpu")
    run = found(store, lean)
    assert [c.step for c in run.checkpoints] == [20]
    assert weights(run)[20] == weights(run_of(whole, "pretrain-base"))[20]
    same_evaluations(run, run_of(whole, "pretrain-base"))  # what was measured on the way stays


# --- interrupted and resumed


def test_a_run_that_was_begun_with_other_data_is_not_continued(whole, store):
    stage = stage_of(whole, "pretrain-base")
    run = interrupt(stage, store, 6)
    assert run.provenance["data_hash"] == run_of(whole, "pretrain-base").provenance["data_hash"]
    path = run.path / "provenance.json"
    path.write_text(path.read_text().replace(run.provenance["data_hash"], "0" * 64))
    with pytest.raises(UserError, match=r"was begun with other data \(000000000000, now "):
        execute(stage, store, "cut", "cpu")
    assert resumable(found(store, stage)) == [6]  # nothing is lost


@pytest.mark.parametrize(
    "stops",
    [(0,), (5,), (6,), (19,), (3, 4, 5), (6, 0, 0), (0, 0), (5, 0, 2), (20 - 1, 0)],
    ids=lambda stops: "-".join(map(str, stops)),
)
def test_interrupted_anywhere_and_resumed_is_as_if_never_interrupted(whole, store, stops):
    stage, reference = stage_of(whole, "pretrain-base"), run_of(whole, "pretrain-base")
    done = 0
    for more in stops:
        done += more
        run = interrupt(stage, store, more)
        assert run.status["state"] == "interrupted"
        on_grid = {step for step in evaluation_grid(20) if step <= done}
        assert [c.step for c in run.checkpoints] == sorted(on_grid | {done})  # earlier ones off the grid are gone
        assert resumable(run) == [done]
    execute(stage, store, "cut", "cpu")
    run = found(store, stage)
    assert run.done
    assert weights(run) == weights(reference)
    assert resumable(run) == []
    same_evaluations(run, reference)
    assert len(run.provenance["attempts"]) == len(stops) + 1
    metrics, expected = (r.metrics().set_index(["step", "split", "name"])["value"] for r in (run, reference))
    assert not metrics.index.duplicated().any()
    assert metrics[20, "train", "gradient_norm"] == expected[20, "train", "gradient_norm"]
    assert metrics[20, "train", "learning_rate"] == expected[20, "train", "learning_rate"]


def test_what_a_kill_leaves_between_a_save_and_its_clean_up_goes_later(whole, store):
    stage = stage_of(whole, "pretrain-base")
    run = interrupt(stage, store, 11)
    newest = run.checkpoint(11).path
    for name in ("training_state.safetensors", "training_state.json"):
        shutil.copy(newest / name, run.checkpoint(5).path / name)
    shutil.copytree(newest, newest.with_name("step-9"))
    assert resumable(found(store, stage)) == [5, 9, 11]
    execute(stage, store, "cut", "cpu")
    run = found(store, stage)
    assert weights(run) == weights(run_of(whole, "pretrain-base"))
    assert resumable(run) == []


def test_a_lost_training_state_means_starting_again(whole, store):
    stage = stage_of(whole, "pretrain-base")
    run = interrupt(stage, store, 6)
    for file in run.checkpoint(6).path.glob("training_state*"):
        file.unlink()
    execute(stage, store, "cut", "cpu")
    assert weights(found(store, stage)) == weights(run_of(whole, "pretrain-base"))
    same_evaluations(found(store, stage), run_of(whole, "pretrain-base"))


# --- the stop rule


def test_the_stop_rule_ends_a_reverse_run_early(revives):
    run = run_of(revives, "reverse-scratch")
    rows = run.evaluations()
    right = {int(s): float(v.mean()) for s, v in zip(rows["step"], rows["values"], strict=True)}
    reached = [value >= 0.15 for value in right.values()]
    first = next(i for i in range(1, len(reached)) if reached[i] and reached[i - 1])
    assert first == len(reached) - 1  # it ended at the second evaluation in a row that reached it, and no later
    last = max(right)
    assert 0 < last < 80
    assert run.done
    assert (run.status["step"], run.status["steps"]) == (last, 80)
    assert run.checkpoint().step == last
    assert resumable(run) == []


def test_the_stop_rule_counts_over_an_interruption(revives, store):
    stage, reference = stage_of(revives, "reverse-scratch"), run_of(revives, "reverse-scratch")
    *_, before, last = [c.step for c in reference.checkpoints]
    for stop in (before, before + 1):  # right after the first hit, asked twice there, and off the grid
        where = Store(store.root / str(stop))
        interrupt(stage, where, stop)
        interrupt(stage, where, 0)
        execute(stage, where, "cut", "cpu")
        run = found(where, stage)
        assert (run.checkpoint().step, run.done) == (last, True)
        assert weights(run) == weights(reference)
        same_evaluations(run, reference)


# --- what goes wrong is one sentence


def test_half_a_parent_is_no_parent(whole, store, copied):
    for start in ("finetune", "behaviour", "reverse-revived"):
        with pytest.raises(
            UserError, match=r"run [0-9a-f]{10}, which this stage starts from, is not done; run the study again"
        ):
            execute(stage_of(whole, start), store, "cut", "cpu")
    assert store.runs() == []
    interrupt(stage_of(whole, "pretrain-base"), store, 6)
    with pytest.raises(UserError, match="is not done"):
        execute(stage_of(whole, "finetune"), store, "cut", "cpu")


def test_truncated_weights_of_a_parent(copied):
    run = run_of(copied, "pretrain-base")
    file = run.checkpoint().path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    shutil.rmtree(run_of(copied, "finetune").path)
    stage = stage_of(copied, "finetune")
    said = rf"is damaged \(checkpoints/step-20/model.safetensors has {file.stat().st_size:,} bytes, .* were written\); run the study"
    with pytest.raises(UserError, match=said):
        execute(stage, copied.store, "tiny", "cpu")
    before = weights(run_of(Study(copied.spec, Store(copied.store.root)), "reverse-never"))
    copied.run(engine="inline", progress=False)  # makes it again, and what was removed, and nothing else
    assert run_of(copied, "pretrain-base").done
    assert found(copied.store, stage).done
    assert weights(run_of(copied, "reverse-never")) == before


def test_changed_weights_of_a_parent(copied):
    file = run_of(copied, "pretrain-base").checkpoint().path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    shutil.rmtree(run_of(copied, "finetune").path)
    with pytest.raises(UserError, match="the file was changed after it was saved"):
        execute(stage_of(copied, "finetune"), copied.store, "tiny", "cpu")


def test_a_diverged_training_says_so_and_keeps_the_last_good_point(tmp_path, store):
    study = Study.load(write_study(tmp_path), store, ["pretrain.base.lr=1e30"])
    stage = stage_of(study, "pretrain-base")
    with pytest.raises(UserError, match=r"loss .* at step \d+ are not finite \(learning rate .*\); lower lr"):
        execute(stage, store, "hot", "cpu")
    run = found(store, stage)
    assert run.status["state"] == "failed"
    assert "not finite" in run.status["reason"]
    assert store.verify(run) == []


def test_a_missing_device_is_one_sentence(whole, store):
    with pytest.raises(UserError, match="device 'abacus' is not available here"):
        execute(stage_of(whole, "pretrain-base"), store, "cut", "abacus")


@pytest.mark.parametrize("full_at", [0, 1, 3])
def test_a_full_disk_leaves_earlier_checkpoints_whole_and_the_rerun_completes(whole, store, monkeypatch, full_at):
    stage, reference = stage_of(whole, "pretrain-base"), run_of(whole, "pretrain-base")
    real, saved = workbench.files._sync, []

    def sync(path):
        if path.name == "model.safetensors":
            saved.append(path)
        if len(saved) > full_at and path.name == "model.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")  # delayed allocation: it shows when written out
        real(path)

    monkeypatch.setattr(workbench.files, "_sync", sync)
    with pytest.raises(
        DiskFull, match=r"step-\d+ was not written because the disk .* is full .*make room and run the same command"
    ):
        execute(stage, store, "full", "cpu")
    monkeypatch.setattr(workbench.files, "_sync", real)
    run = found(store, stage)
    assert (run.status["state"], "disk" in run.status["reason"]) == ("failed", True)
    assert store.verify(run) == []
    grid = evaluation_grid(20)
    assert weights(run) == {step: weights(reference)[step] for step in grid[:full_at]}
    assert resumable(run) == list(grid[:full_at][-1:])
    execute(stage, store, "full", "cpu")
    assert weights(found(store, stage)) == weights(reference)
    assert not list(store.root.rglob(".tmp-*"))
