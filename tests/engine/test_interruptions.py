"""Real processes of the command line, killed and interrupted; what comes out is held against what nothing stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from studies.tiny import TRAININGS, resumable, run_of, stage_of, weights, write_study

from workbench.runs import Run, Store
from workbench.studies.handle import Study
from workbench.training.schedule import evaluation_grid

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
PATIENCE = 90.0


class Command:
    """`workbench study run` in a session of its own, as a terminal would start it."""

    def __init__(self, study: Study, path: Path, script: str | None = None) -> None:
        words = [sys.executable, "-c", "from workbench.cli import main; main()", "study", "run", str(path), "--no-report"]
        if script is not None:
            path.with_suffix(".py").write_text(script)
            words = [sys.executable, str(path.with_suffix(".py"))]
        else:
            words += ["--workers", "1"]
        self.study = study
        environment = {**os.environ, "WORKBENCH_HOME": str(study.store.root), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
        )
        self.pid = self.process.pid

    def members(self) -> list[int]:
        """Living processes of the session: the command, its workers, and their helpers."""
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            try:
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            except (OSError, ValueError):
                continue
            if entry.name.isdigit() and int(session) == self.pid and state != "Z":
                found.append(int(entry.name))
        return found

    def until_checkpoint(self, start: str, step: int) -> int:
        """Wait until a stage has saved this step; returns the process that trains it."""
        key = stage_of(self.study, start).key
        for _ in self.waiting():
            run = self.study.store.find(key)
            if run is not None and any(c.step == step for c in run.checkpoints):
                return int(json.loads((run.path / "status.json").read_text())["pid"])
        raise AssertionError

    def waiting(self) -> Iterator[None]:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            yield
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.005)
        pytest.fail("it took too long")

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=PATIENCE)
        assert "Traceback" not in err + out
        return self.process.returncode, out, err

    def gone(self) -> None:
        """Nothing of the session is left, in the time that saving takes."""
        deadline = time.monotonic() + 15
        while self.members() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self.members() == []


@pytest.fixture
def study(tmp_path) -> Study:
    return Study.load(write_study(tmp_path, TRAININGS), Store(tmp_path / "runs"))


@pytest.fixture
def start(study, tmp_path) -> Iterator[Any]:
    """`start(script=None) -> Command`; whatever is left of one when the test ends is killed."""
    made: list[Command] = []

    def begin(script: str | None = None) -> Command:
        made.append(Command(study, tmp_path / "study.yaml", script))
        return made[-1]

    yield begin
    for command in made:
        for pid in command.members():
            os.kill(pid, signal.SIGKILL)
        command.process.communicate()


def whole_and_equal(study: Study, uninterrupted: Study) -> None:
    assert study.progress() == (3, 3)
    for name in ("pretrain-base", "pretrain-other", "finetune"):
        assert weights(run_of(study, name)) == weights(run_of(uninterrupted, name))
        assert resumable(run_of(study, name)) == []
        assert study.store.verify(run_of(study, name)) == []


def state(run: Run | None) -> tuple[Any, Any]:
    return (run.status["state"], run.status["reason"]) if run else (None, None)


def test_a_killed_worker_costs_its_stage_and_ctrl_c_saves_and_both_go_on_bit_for_bit(start, study, uninterrupted):
    command = start()
    os.kill(command.until_checkpoint("pretrain-base", 5), signal.SIGKILL)
    code, _, err = command.end()
    assert code == 2
    command.gone()
    (sentence,) = [text for text in err.splitlines() if text.startswith("error: ")]
    assert "pretrain-base-s0 failed: its worker process died (killed, or out of memory)" in sentence
    assert "1 stages that need it were not run. Run the same command to go on." in sentence
    states = {stage.name: state(run) for stage, run in study.runs()}
    assert states["pretrain-base-s0"][0] == "interrupted"  # it could say no last word, and holds no lock
    assert "ended without a word; run the stage again to resume" in states["pretrain-base-s0"][1]
    assert states["pretrain-other-s0"] == ("done", "")
    assert states["finetune-tuned-s0"] == (None, None)
    saved = max(resumable(run_of(study, "pretrain-base")))  # the kill may have come before an older state was dropped

    command = start()
    command.until_checkpoint("pretrain-base", min(s for s in evaluation_grid(400) if s > max(saved, 40)))
    began = time.monotonic()
    os.killpg(command.pid, signal.SIGINT)  # as a terminal sends it: to the command and its workers
    code, out, err = command.end()
    assert code == 130
    assert time.monotonic() - began < 10  # it waits for the checkpoint and for nothing else
    assert "2 stages to do (1 done)" in out
    assert err.strip().splitlines()[-1] == "stopped; finished work is kept, and the same command goes on from there."
    command.gone()
    run = run_of(study, "pretrain-base")
    assert run.status["state"] == "interrupted"
    (step,) = resumable(run)
    assert saved < step == run.status["step"] == run.checkpoint().step < 400
    assert run.metrics()["step"].min() == 0  # what was measured before the kill is kept

    study.run(engine="inline", progress=False)
    whole_and_equal(study, uninterrupted)
    assert len(run_of(study, "pretrain-base").provenance["attempts"]) == 3


def test_ctrl_c_before_anything_has_begun(start, study):
    command = start()
    for _ in command.waiting():
        if len(command.members()) > 2:  # a worker is starting: it has no handler yet, or is still importing
            break
    os.killpg(command.pid, signal.SIGINT)
    code, _, err = command.end()
    assert code == 130
    assert err.strip().splitlines()[-1] == "stopped; finished work is kept, and the same command goes on from there."
    assert set(err.strip().splitlines()[:-1]) <= {"stopping: running stages save where they are ..."}
    command.gone()
    assert study.progress() == (0, 3)


SCRIPT = """
import sys
from workbench.runs import Store
from workbench.studies.handle import Study
from workbench.training.schedule import evaluation_grid

print("the script ran", flush=True)
study = Study.load({path!r}, Store({store!r})).run(workers=1, progress=False)
print(study.progress())
"""
"""A user's script without `if __name__ == "__main__"`."""


@pytest.mark.slow
def test_a_second_command_disturbs_nothing_and_workers_of_a_killed_one_save_and_end(start, study, uninterrupted, tmp_path):
    first = start(SCRIPT.format(path=str(tmp_path / "study.yaml"), store=str(study.store.root)))
    worker = first.until_checkpoint("pretrain-base", 5)
    os.kill(worker, signal.SIGSTOP)  # for as long as the second one takes to start
    second = start()
    code, _, err = second.end()
    assert code == 2
    (sentence,) = [text for text in err.splitlines() if text.startswith("error: ")]
    assert f"is being written by process {worker} on " in sentence
    assert "wait for it or stop it" in sentence

    os.kill(worker, signal.SIGCONT)
    assert first.until_checkpoint("pretrain-base", 57) == worker  # it goes on as if nothing had been
    os.kill(first.pid, signal.SIGKILL)
    third = start()
    out, err = first.process.communicate()
    assert out == "the script ran\n"  # workers do not run it again
    # Python's own helper counts the semaphores that a killed process could not give back; nothing else may be said.
    assert all("resource_tracker" in line for line in err.splitlines()), err
    first.gone()
    assert len(resumable(run_of(study, "pretrain-base"))) == 1
    code, _, err = third.end()
    assert code == 0, err
    whole_and_equal(study, uninterrupted)
    third.gone()
