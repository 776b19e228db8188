# ruff: noqa: PT012 - what happens inside a context manager when its body fails is the subject here
from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from workbench.errors import UserError
from workbench.files import DiskFull
from workbench.results import Metric, Result
from workbench.run_records import is_locked, read_run
from workbench.runs import Run, Store, stage_key

KEY, OTHER, THIRD = "0123456789", "abcdef0123", "0199999999"
SPEC = {"seed": 3, "task": {"kind": "pcfg", "families": ["count", "index"]}, "lr": 3e-4, "note": "yes: größer\n# 1e3"}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "runs")


def write(store: Store, stage: str = "pretrain", key: str = KEY, study: str = "demo", parents: tuple[str, ...] = ()) -> Run:
    with store.write(study, stage, "pretrain", key, SPEC, parents, {"device": "cpu", "dtype": "float32"}) as writer:
        with writer.checkpoint(5) as folder:
            save_file({"w": np.arange(6, dtype=np.float32)}, folder / "model.safetensors")
            (folder / "fingerprint.json").write_text('{"weights_sha256": "good"}')
        writer.metrics([(5, "train", "loss", 1.5)])
    return store.get(f"{study}/{stage}-{key}")


# --- keys

SPECS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def reorder(value):
    if isinstance(value, dict):
        return {k: reorder(value[k]) for k in reversed(list(value))}
    if isinstance(value, list):
        return tuple(map(reorder, value))
    return float(value) if type(value) is int and float(min(max(value, -(2**53)), 2**53)) == value else value


def typed(value):
    """Equal exactly when two specs mean the same: True is not 1, but 1 is 1.0."""
    if isinstance(value, dict):
        return {k: typed(v) for k, v in value.items()}
    return [typed(v) for v in value] if isinstance(value, list) else (isinstance(value, bool), value)


@given(spec=st.dictionaries(st.text(max_size=3), SPECS, max_size=3))
def test_key_ignores_order_and_the_spelling_of_numbers(spec):
    assert stage_key(spec, 1, "float32", []) == stage_key(reorder(spec), 1, "float32", ())


@given(a=SPECS, b=SPECS)
def test_key_changes_with_any_value(a, b):
    same = typed(a) == typed(b)
    assert (stage_key({"x": a}, 1, "float32", []) == stage_key({"x": b}, 1, "float32", [])) is same


def test_key_depends_on_every_argument_and_is_stable():
    base = stage_key({"a": 1}, 1, "float32", ["p", "q"])
    assert base == stage_key({"a": np.float64(1.0)}, 1, "float32", ("p", "q"))
    # sha256 of {"dtype":"float32","parents":["p","q"],"spec":{"a":1},"version":1}, by sha256sum
    assert base == "d3421a8bcf"
    others = [({"a": 2}, 1, "float32", "pq"), ({"a": 1}, 2, "float32", "pq"), ({"a": 1}, 1, "float64", "pq")]
    others += [({"a": 1}, 1, "float32", "qp"), ({"a": "1"}, 1, "float32", "pq"), ({"a": True}, 1, "float32", "pq")]
    assert len({base, *(stage_key(*o[:3], list(o[3])) for o in others)}) == 7
    assert stage_key({"a": -0.0}, 1, "x", []) == stage_key({"a": 0}, 1, "x", [])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_key_refuses_what_is_no_number(bad):
    with pytest.raises(UserError, match=r"spec\.train\.lr is (nan|inf)"):
        stage_key({"train": {"lr": bad}}, 1, "float32", [])


# --- writing and reading


def test_a_run_is_read_as_it_was_written(store):
    with store.write("demo", "pretrain", "pretrain", KEY, SPEC, [OTHER], {"device": "cpu", "dtype": "float32"}) as writer:
        assert json.loads((writer.path / "status.json").read_text())["state"] == "running"
        assert writer.run.status["state"] == "running"
        assert is_locked(writer.path)
        writer.metrics([(0, "train", "loss", 2.0), {"step": 1, "split": "train", "name": "loss", "value": np.float32(1.5)}])
        writer.evaluation(0, "held_out", "count_a", 0.5, [1, 0, 1])
        writer.evaluation(0, "plain", "count_a", None, np.array([1.0, 0.0, 0.0]))
        writer.evaluation(5, "plain", "count_b", None, [0.25])
        for step in (20, 5):
            with writer.checkpoint(step) as folder:
                (folder / "config.json").write_text("{}")
        writer.progress(7, 20, loss=float("nan"), accuracy=np.float64(0.5))
    run = store.find(KEY)
    assert run is not None
    assert run.done
    assert run.damaged is None
    assert not is_locked(run.path)
    assert (run.study, run.stage, run.kind, run.seed, run.parents) == ("demo", "pretrain", "pretrain", 3, (OTHER,))
    assert run.spec == SPEC
    assert (run.status["step"], run.status["steps"]) == (7, 20)
    assert run.status["values"] == {"loss": None, "accuracy": 0.5}
    assert [c.step for c in run.checkpoints] == [5, 20]
    assert run.checkpoint().path == run.path / "checkpoints" / "step-20"
    assert run.checkpoint(5).step == 5
    with pytest.raises(UserError, match="no checkpoint of step 6; it has steps 5, 20"):
        run.checkpoint(6)
    loss = pd.DataFrame({"step": [0, 1], "split": "train", "name": "loss", "value": [2.0, 1.5]})
    pd.testing.assert_frame_equal(run.metrics(), loss, check_dtype=False)
    evaluations = run.evaluations()
    assert list(evaluations.columns) == ["step", "split", "capability", "share", "values"]
    assert evaluations["share"].tolist()[0] == 0.5
    assert np.isnan(evaluations["share"][1])
    assert [list(v) for v in evaluations["values"]] == [[1, 0, 1], [1, 0, 0], [0.25]]
    assert evaluations["values"][0].dtype == np.float64
    assert run.bytes == sum(p.stat().st_size for p in run.path.rglob("*") if p.is_file())


def test_provenance_says_what_made_it(store):
    provenance = write(store).provenance
    assert provenance["versions"]["numpy"] == np.__version__
    assert provenance["versions"]["torch"]
    assert provenance["device"] == "cpu"
    assert provenance["dtype"] == "float32"
    assert provenance["pid"] == os.getpid()
    assert provenance["seed"] == 3


def test_provenance_knows_the_git_checkout(tmp_path):
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    from workbench.run_writer import _git

    assert _git(str(tmp_path / "none")) is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "x")
    (tmp_path / "f").write_text("x")
    assert _git(str(tmp_path)) == {"revision": git("rev-parse", "HEAD").strip(), "dirty": True}


def test_a_missing_table_is_empty_and_a_broken_one_names_the_fix(store):
    run = write(store)
    assert run.evaluations().empty
    assert list(run.evaluations().columns) == ["step", "split", "capability", "share", "values"]
    (run.path / "metrics.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"metrics\.parquet cannot be read .*remove the run"):
        run.metrics()


def test_result_round_trip_and_replacement(store):
    def result(value: float) -> Result:
        metric = Metric("accuracy", value, 0.0, 1.0, 10)
        return Result("behaviour", {"table": pd.DataFrame({"value": [value]}), "extra": pd.DataFrame({"a": [1]})}, (metric,))

    with store.write("demo", "behaviour", "analysis", KEY, {}) as writer:
        writer.result(result(0.25))
        writer.result(result(0.5))
    run = store.get(KEY)
    assert run.result().metric("accuracy").value == 0.5
    assert run.result().tables["table"]["value"].tolist() == [0.5]
    assert sorted(p.name for p in run.path.iterdir() if p.suffix == ".parquet") == ["extra.parquet", "table.parquet"]
    assert not list(run.path.glob(".result*"))
    with pytest.raises(UserError, match="no readable result"):
        write(store, key=OTHER).result()


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (ValueError("too hot"), "failed", "ValueError: too hot"),
        (UserError("lr is 'x'; write a number"), "failed", "lr is 'x'; write a number"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
    ],
)
def test_leaving_by_an_error_keeps_rows_and_says_why(store, error, state, reason):
    with pytest.raises(type(error)), store.write("demo", "pretrain", "pretrain", KEY, SPEC) as writer:
        writer.metrics([(0, "train", "loss", 2.0)])
        raise error
    run = store.get(KEY)
    assert (run.status["state"], run.status["reason"]) == (state, reason)
    assert len(run.metrics()) == 1
    assert "Traceback" in (run.path / "log.txt").read_text()
    assert not is_locked(run.path)


def test_resume_has_no_row_twice(store):
    with pytest.raises(ValueError, match="stop"), store.write("demo", "pretrain", "pretrain", KEY, SPEC) as writer:
        assert writer.resume_step is None
        for step in range(8):
            writer.metrics([(step, "train", "loss", float(step))])
            writer.evaluation(step, "plain", "count_a", None, [step, step])
            if step in (3, 5):
                with writer.checkpoint(step) as folder:
                    (folder / "config.json").write_text("{}")
        raise ValueError("stop")
    with store.write("demo", "pretrain", "pretrain", KEY, SPEC) as writer:
        assert writer.resume_step == 5
        writer.truncate(3)
        assert writer.resume_step == 3
        assert writer.run.metrics()["step"].tolist() == [0, 1, 2, 3]
        for step in range(3, 8):  # step 3 is said again
            writer.metrics([(step, "train", "loss", -1.0)])
            writer.evaluation(step, "plain", "count_a", None, [step, -1])
    run = store.get(KEY)
    assert run.done
    assert run.metrics()["value"].tolist() == [0, 1, 2, -1, -1, -1, -1, -1]
    assert run.metrics()["step"].tolist() == run.evaluations()["step"].tolist() == list(range(8))
    assert list(run.evaluations()["values"][2]) == [2, 2]
    assert len(run.provenance["attempts"]) == 2
    with store.write("demo", "again", "pretrain", OTHER, SPEC) as writer:
        writer.metrics([(0, "train", "loss", 0.0)])
        writer.flush()
        writer.truncate(-1)
        assert writer.run.metrics().empty


def test_rows_before_a_checkpoint_are_on_disk_with_it(store):
    with store.write("demo", "pretrain", "pretrain", KEY, SPEC) as writer:
        writer.metrics([(5, "train", "loss", 1.0)])
        with writer.checkpoint(5):
            assert writer.run.metrics()["step"].tolist() == [5]


def test_a_done_run_is_left_alone_unless_forced(store):
    run = write(store)
    stamp = (run.path / "status.json").read_bytes()
    with store.write("demo", "pretrain", "pretrain", KEY, SPEC) as writer:
        assert writer.already_done
        assert not is_locked(run.path)
    assert (run.path / "status.json").read_bytes() == stamp
    with store.write("demo", "pretrain", "pretrain", KEY, SPEC, force=True) as writer:
        assert not writer.already_done
        assert writer.resume_step is None
        assert writer.run.metrics().empty
    assert store.get(KEY).checkpoints == ()


def test_progress_is_throttled(store, monkeypatch):
    import workbench.run_writer as module

    with store.write("demo", "pretrain", "pretrain", KEY, SPEC) as writer:
        real, names = module.atomic_json, []
        monkeypatch.setattr(module, "atomic_json", lambda path, obj: (names.append(path.name), real(path, obj)))
        for step in range(1000):
            writer.progress(step, 1000, loss=1.0)
        assert len(names) < 10
        monkeypatch.setattr(module, "STATUS_EVERY", -1.0)
        writer.progress(1000, 1000, loss=0.5)
        assert writer.run.status["step"] == 1000
        monkeypatch.setattr(module, "FLUSH_EVERY", -1.0)
        writer.metrics([(0, "train", "loss", 2.0)])
        writer.progress(1000, 1000)
        assert len(writer.run.metrics()) == 1


def test_drop_checkpoint_and_one_of_its_files(store):
    run = write(store)
    with store.write("demo", "pretrain", "pretrain", KEY, SPEC, force=True) as writer:
        for step in (1, 2):
            with writer.checkpoint(step) as folder:
                for name in ("model.safetensors", "training_state.safetensors"):
                    (folder / name).write_text("x")
        writer.drop_checkpoint(1)
        writer.drop_checkpoint(9)
        writer.drop_checkpoint(2, "training_state.safetensors")
        with pytest.raises(ValueError, match="no plain file name"):
            writer.drop_checkpoint(2, "../../spec.yaml")
    assert [c.step for c in run.checkpoints] == [2]
    assert [p.name for p in run.checkpoint(2).path.iterdir()] == ["model.safetensors"]


def test_a_run_that_is_just_starting_is_not_damaged(store):
    from filelock import FileLock

    path = store.root / "demo" / f"pretrain-{KEY}"
    path.mkdir(parents=True)
    with FileLock(path / ".lock", timeout=0):
        run = store.get(KEY)
        assert (run.damaged, run.status["state"]) == (None, "running")
    assert "spec.yaml is missing" in (store.get(KEY).damaged or "")


def test_leftovers_go_under_the_lock_whosever_process_id_they_bear(store):
    path = store.root / "demo" / f"pretrain-{KEY}"
    names = [path / f".tmp-{os.getpid()}-00000000-00000000", path / "checkpoints" / f".tmp-{os.getpid()}-00000000-00000000"]
    for name in names:
        name.mkdir(parents=True)
    with store.write("demo", "pretrain", "pretrain", KEY, SPEC):
        assert not any(name.exists() for name in names)


def test_a_full_disk_fails_one_run_and_no_other(store, monkeypatch):
    other = write(store, key=OTHER)
    real = os.write

    def refuse(handle, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFull, match=r"metrics\.parquet"), store.write("demo", "pretrain", "pretrain", KEY, SPEC) as writer:
        writer.metrics([(0, "train", "loss", 2.0)])
        writer.flush()
        writer.metrics([(1, "train", "loss", 2.0)])
        monkeypatch.setattr(os, "write", refuse)
    monkeypatch.setattr(os, "write", real)
    run = store.get(KEY)
    assert run.status["state"] == "interrupted"  # the last status could not be written, and the lock is free
    assert run.metrics()["step"].tolist() == [0]
    assert store.verify(run) == []
    assert store.get(OTHER).done
    assert store.verify(other) == []
    with pytest.raises(RuntimeError, match="first"), store.write("demo", "pretrain", "pretrain", THIRD, SPEC):
        monkeypatch.setattr(os, "write", refuse)
        raise RuntimeError("first")
    monkeypatch.setattr(os, "write", real)
    with pytest.raises(DiskFull):
        monkeypatch.setattr(os, "write", refuse)
        store.write("demo", "new", "pretrain", "f" * 10, SPEC).__enter__()
    monkeypatch.setattr(os, "write", real)
    assert not is_locked(store.root / "demo" / f"new-{'f' * 10}")


def test_an_unwritable_store_is_one_sentence(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match=r"cannot be written .*WORKBENCH_HOME"):
        Store(tmp_path / "runs").write("demo", "pretrain", "pretrain", KEY, SPEC).__enter__()


# --- other processes

WRITER = """
import sys, time
from pathlib import Path
from workbench.errors import UserError
from workbench.runs import Store
mode, root = sys.argv[1], Path(sys.argv[2])
try:
    with Store(root).write("demo", "pretrain", "pretrain", "0123456789", {"seed": 3}) as writer:
        if writer.already_done:
            print("skipped", flush=True)
            sys.exit(0)
        if mode == "hold":
            print("holding", flush=True)
            time.sleep(60)
        if mode == "race":
            print("won", flush=True)
            time.sleep(3)
        for step in range(10**6 if mode == "spin" else 3):
            writer.metrics([(step, "train", "loss", float(step))])
            writer.evaluation(step, "plain", "count_a", None, [step] * 100)
            with writer.checkpoint(step) as folder:
                for name in "abc":
                    (folder / name).write_text(str(step) * 1000)
            if step >= 4:
                writer.drop_checkpoint(step - 4)
            if step == 5:
                print("spinning", flush=True)
except UserError as error:
    print(error, flush=True)
    sys.exit(2)
"""


def start(mode: str, store: Store) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, mode, str(store.root)], stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_two_processes_race_for_one_run(store):
    processes = [start("race", store), start("race", store)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 2]
    winner, loser = codes.index(0), codes.index(2)
    assert outputs[winner].strip() == "won"
    assert f"is being written by process {processes[winner].pid} on " in outputs[loser]
    assert store.get(KEY).done
    assert store.get(KEY).metrics()["step"].tolist() == [0, 1, 2]
    again = start("plain", store)
    assert again.communicate(timeout=60)[0].strip() == "skipped"


def test_a_live_run_is_running_and_cannot_be_removed_and_a_killed_one_is_interrupted(store):
    process = start("hold", store)
    try:
        assert first_line(process) == "holding"
        run = store.get(KEY)
        assert run.status["state"] == "running"
        for dry in (True, False):
            with pytest.raises(UserError, match="being written by a live process"):
                store.remove([run], dry=dry)
        with pytest.raises(UserError, match=f"process {process.pid} on"):
            store.write("demo", "pretrain", "pretrain", KEY, SPEC).__enter__()
    finally:
        end(process)
    run = store.get(KEY)
    assert run.status["state"] == "interrupted"
    assert f"process {process.pid}" in run.status["reason"]
    with store.write("demo", "pretrain", "pretrain", KEY, {"seed": 3}):
        pass
    assert store.get(KEY).done


def test_kill_9_in_the_middle_of_writes_then_resume(store):
    for wait in (0.0, 0.037, 0.083):
        process = start("spin", store)
        try:
            assert first_line(process) == "spinning"
            time.sleep(wait)
        finally:
            end(process)
        run = store.get(KEY)
        assert run.damaged is None
        assert store.verify(run) == []
        steps = run.metrics()["step"].tolist()
        assert steps == list(range(len(steps)))
        last = run.checkpoint().step
        assert last in steps  # what was recorded before a checkpoint is there with it
        for checkpoint in run.checkpoints:
            assert [p.read_text() for p in sorted(checkpoint.path.iterdir())] == [str(checkpoint.step) * 1000] * 3
        with pytest.raises(KeyboardInterrupt), store.write("demo", "pretrain", "pretrain", KEY, {"seed": 3}) as writer:
            assert not list(run.path.rglob(".tmp-*"))
            writer.truncate(last)
            raise KeyboardInterrupt
        assert store.get(KEY).metrics()["step"].tolist() == list(range(last + 1))
        with store.write("demo", "pretrain", "pretrain", KEY, {"seed": 3}, force=True) as writer:
            pass
        shutil.rmtree(run.path)


# --- the store


def test_default_store(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORKBENCH_HOME", raising=False)
    assert Store.default().root == tmp_path / "runs"
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    assert Store.default().root == tmp_path / "home"
    assert Store.default().runs() == []


def test_get_find_children(store):
    base = write(store)
    child = write(store, "finetune", OTHER, parents=(KEY,))
    write(store, "pretrain", THIRD)
    write(store, "pretrain", THIRD, study="more")
    for name in (KEY, "012", f"pretrain-{KEY}", f"demo/pretrain-{KEY}", base.name):
        assert store.get(name).path == base.path
    assert store.get(f"more/pretrain-{THIRD}").study == "more"
    assert store.get(THIRD).study == "demo"
    assert store.children(base) == [child]
    assert store.find("ffffffffff") is None
    assert store.studies() == ["demo", "more"]
    assert [run.study for run in store.runs("more")] == ["more"]
    with pytest.raises(UserError, match="'01' begins several runs; write more of one: demo/pretrain-0123456789"):
        store.get("01")
    with pytest.raises(UserError, match=f"did you mean 'pretrain-{KEY}'"):
        store.get("pretrain-0123456788")
    with pytest.raises(UserError, match="there is no run ''"):
        store.get("")


def test_find_prefers_a_run_that_is_done(store):
    with pytest.raises(ValueError, match="x"), store.write("a", "pretrain", "pretrain", KEY, SPEC):
        raise ValueError("x")
    write(store, study="b")
    found = store.find(KEY)
    assert found is not None
    assert found.study == "b"


def test_many_are_found_in_one_listing(store, monkeypatch):
    base, child = write(store), write(store, "finetune", OTHER, parents=(KEY,))
    write(store, "pretrain", THIRD)
    write(store, "pretrain", THIRD, study="more")
    read: list[str] = []
    monkeypatch.setattr("workbench.runs.read_run", lambda *at: read.append(at[-1]) or read_run(*at))
    assert store.find_all([KEY, OTHER, "ffffffffff"]) == {KEY: base, OTHER: child}
    assert sorted(read) == sorted([KEY, OTHER])
    assert store.find_all([]) == {}
    assert [folder.key for folder in store.folders("more", [KEY, THIRD])] == [THIRD]


@pytest.mark.parametrize("bad", ["..", ".", "", "a/b", "../x", "/tmp", "a\\b", ".tmp-1", "a\n", "a\0b", "-rf", "x" * 300])
def test_names_cannot_leave_the_store(store, bad):
    for study, stage in ((bad, "pretrain"), ("demo", bad)):
        with pytest.raises(UserError, match="cannot name a"):
            store.write(study, stage, "pretrain", KEY, SPEC)
    with pytest.raises(UserError):
        store.get(bad)
    with pytest.raises(UserError, match="is no key"):
        store.write("demo", "pretrain", "pretrain", bad, SPEC)
    assert store.find(bad) is None
    assert not store.root.exists()


def test_get_does_not_reach_outside(store, tmp_path):
    outside = write(Store(tmp_path / "outside"))
    write(store, key=OTHER)
    for name in (f"../outside/demo/pretrain-{KEY}", str(outside.path), f"../demo/pretrain-{OTHER}"):
        with pytest.raises(UserError, match="there is no run"):
            store.get(name)
    with pytest.raises(UserError, match="is no run of the store"):
        store.remove([outside])
    assert outside.path.exists()


def test_links_do_not_lead_out_of_the_store(store, tmp_path):
    outside = write(Store(tmp_path / "outside"))
    write(store, key=OTHER)
    (store.root / "linked").symlink_to(outside.path.parent)
    (store.root / "demo" / outside.path.name).symlink_to(outside.path)
    assert store.studies() == ["demo"]
    run = store.get(KEY)
    assert "link" in (run.damaged or "")
    assert run.spec == {}
    assert "link" in store.verify(run)[0].text
    for study in ("linked", "demo"):
        with pytest.raises(UserError, match="is a link"):
            store.write(study, "pretrain", "pretrain", KEY, SPEC)
    store.remove([run])
    assert not run.path.exists()
    assert outside.path.exists()


def test_damaged_runs_are_listed_with_a_reason_and_hide_no_other(store):
    good = write(store)
    names = ["nospec", "yaml", "list", "status", "state", "provenance", "binary", "parents"]
    keys = {name: f"{i}" * 10 for i, name in enumerate(names, 1)}
    paths = {name: write(store, name, key).path for name, key in keys.items()}
    (paths["nospec"] / "spec.yaml").unlink()
    (paths["yaml"] / "spec.yaml").write_text("a: [1\nb")
    (paths["list"] / "spec.yaml").write_text("- 1")
    (paths["status"] / "status.json").write_text('{"state": ')
    (paths["state"] / "status.json").write_text('{"state": "sleeping"}')
    (paths["provenance"] / "provenance.json").unlink()
    (paths["binary"] / "provenance.json").write_bytes(b"\xff\xfe")
    (paths["parents"] / "provenance.json").write_text('{"parents": [1]}')
    (store.root / "demo" / "notes").mkdir()
    (store.root / "cache").mkdir()
    (store.root / "file").write_text("x")
    (store.root / "demo" / f"empty-{OTHER}").mkdir()
    runs = {run.stage: run for run in store.runs()}
    assert set(runs) == {*keys, "pretrain", "empty"}
    assert runs["pretrain"] == good
    assert good.damaged is None
    expected = {
        "nospec": "spec.yaml is missing",
        "yaml": "spec.yaml cannot be read",
        "list": "spec.yaml holds no mapping",
        "status": "status.json cannot be read",
        "state": "status.json has the state 'sleeping'; known: running",
        "provenance": "provenance.json is missing",
        "binary": "provenance.json cannot be read",
        "parents": "no list of parents",
        "empty": "spec.yaml is missing; provenance.json is missing; status.json is missing",
    }
    for stage, reason in expected.items():
        assert reason in (runs[stage].damaged or ""), stage
        assert not runs[stage].done
        assert store.verify(runs[stage])
    with store.write("demo", "yaml", "pretrain", keys["yaml"], SPEC):  # running the stage again mends it
        pass
    assert store.get(keys["yaml"]).done


def test_verify_finds_truncated_weights_broken_tables_and_missing_parents(store):
    run = write(store, parents=(OTHER,))
    good = write(store, key=THIRD)
    weights = run.checkpoint().path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    (run.path / "metrics.parquet").write_bytes((run.path / "metrics.parquet").read_bytes()[:-3])
    (run.path / "result.json").write_text("{")
    (run.path / "spec.yaml").write_text("seed: 4\n")
    problems = {p.path.name: p.text for p in store.verify(run)}
    assert set(problems) == {run.path.name, "model.safetensors", "metrics.parquet", "result.json", "spec.yaml"}
    assert "truncated" in problems["model.safetensors"]
    assert f"parent {OTHER} is missing" in problems[run.path.name]
    assert "was changed" in problems["spec.yaml"]
    assert store.verify(good) == []
    assert len(store.runs()) == 2


@pytest.mark.parametrize("file", ["checkpoints/step-5/model.safetensors", "metrics.parquet"])
def test_a_finished_run_with_a_file_that_was_cut_or_lost_is_damaged_and_made_again(store, file):
    run = write(store)
    before = (run.path / file).read_bytes()
    (run.path / file).write_bytes(before[:-3])
    damaged = store.get(KEY)
    assert damaged.damaged == f"{file} has {len(before) - 3:,} bytes, {len(before):,} were written"
    assert not damaged.done
    (run.path / file).unlink()
    assert store.get(KEY).damaged == f"{file} is missing"
    (run.path / file).write_bytes(before)
    assert store.get(KEY).done
    (run.path / "manifest.json").unlink()
    assert store.get(KEY).damaged == "manifest.json is missing"
    assert write(store).done


def test_verify_sees_a_flipped_bit_in_a_table(store):
    with store.write("demo", "pretrain", "pretrain", KEY, SPEC) as writer:
        writer.metrics((step, "train", "loss", float(np.sin(step))) for step in range(2000))
    path = writer.path / "metrics.parquet"
    data = bytearray(path.read_bytes())
    data[data.rindex(np.float64(np.sin(7.0)).tobytes())] ^= 1  # a value that still is one
    path.write_bytes(data)
    assert [p.path for p in store.verify(store.get(KEY))] == [path]


def test_verify_compares_fingerprints(store):
    run = write(store)
    asked: list[Path] = []

    def weights_hash(path: Path) -> str:
        asked.append(path)
        return "good" if len(asked) == 1 else "bad"

    assert store.verify(run, weights_hash) == []
    problem = store.verify(run, weights_hash)[0]
    assert problem.path == run.checkpoint().path
    assert "hash to bad, its fingerprint says good" in problem.text
    assert asked == [run.checkpoint().path] * 2


def test_nothing_is_ever_unpickled(store, tmp_path):
    run = write(store)

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    for name in ("pytorch_model.bin", "optimizer.pt", "state.pkl"):
        (run.checkpoint().path / name).write_bytes(pickle.dumps(Bomb()))
    assert store.verify(run) == []
    assert store.runs()[0].done
    assert not (tmp_path / "exploded").exists()
    pickle.loads((run.checkpoint().path / "state.pkl").read_bytes())
    assert (tmp_path / "exploded").exists()


def test_remove_refuses_parents_of_what_remains(store):
    base, tuned, revived = write(store), write(store, "finetune", OTHER, parents=(KEY,)), None
    revived = write(store, "revive", THIRD, parents=(OTHER,))
    with pytest.raises(UserError, match=f"run {KEY} is a parent of demo/finetune-{OTHER}; remove those too .*--with-children"):
        store.remove([base])
    with pytest.raises(UserError, match="is a parent of demo/revive"):
        store.remove([base, tuned])
    assert len(store.runs()) == 3
    expected = base.bytes + tuned.bytes + revived.bytes
    assert store.remove([base, tuned, revived], dry=True) == expected
    assert len(store.runs()) == 3
    assert store.remove([base, tuned, revived]) == expected
    assert store.runs() == []
    assert list(store.root.iterdir()) == []


def test_a_parent_that_another_study_holds_too_may_go(store):
    base = write(store)
    write(store, study="more")
    write(store, "finetune", OTHER, parents=(KEY,))
    assert store.remove([base]) > 0
    found = store.find(KEY)
    assert found is not None
    assert found.study == "more"


def test_children_go_before_parents(store, monkeypatch):
    import workbench.run_checks as module

    runs = [write(store), write(store, "finetune", OTHER, parents=(KEY,)), write(store, "revive", THIRD, parents=(OTHER,))]
    order: list[str] = []
    monkeypatch.setattr(module, "remove_folder", lambda path: (order.append(path.name[-10:]), shutil.rmtree(path)))
    store.remove(runs)
    assert order == [THIRD, OTHER, KEY]


def test_a_thousand_runs_are_listed_in_two_seconds(store):
    run = write(store)
    for number in range(1000):
        shutil.copytree(run.path, store.root / f"study{number % 10}" / f"stage-{number:010x}")
    started = time.perf_counter()
    runs = store.runs()
    seconds = time.perf_counter() - started
    assert sum(run.done for run in runs) == 1001
    assert seconds < 2


def test_listing_imports_nothing_heavy():
    code = "import sys, workbench.runs, workbench.files; workbench.runs.Store('x').runs(); "
    code += "print([m for m in ('torch', 'pandas', 'pyarrow', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_sigterm_is_no_success(store):
    process = start("hold", store)
    assert first_line(process) == "holding"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert store.get(KEY).status["state"] == "interrupted"
