"""The local engine: one single-threaded worker process per core, each kept alive over many stages.

Two workers of one thread do more than one of two threads on models of this size. Every worker is a pool of its own,
so that one that dies (killed, out of memory) costs its stage and nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from workbench.errors import UserError
from workbench.runs import Store
from workbench.studies.plan import Stage, is_done

POLL_SECONDS = 0.4
GRACE_SECONDS = 30.0
"""How long an interrupted worker may take to save where it is."""


class Reporter(Protocol):
    """Shows what happens; called in the main process only."""

    def begin(self, stages: Sequence[Stage], done: int) -> None:
        """The stages to do, and how many were done before."""
        ...

    def started(self, stage: Stage) -> None:
        """A stage was handed to a worker."""
        ...

    def tick(self, running: Sequence[Stage]) -> None:
        """Called a few times a second."""
        ...

    def ended(self, stage: Stage, reason: str | None) -> None:
        """A stage is done, or failed for a reason."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


def run_stages(
    stages: Sequence[Stage],
    store: Store,
    study: str,
    *,
    reporter: Reporter,
    workers: int | None = None,
    device: str = "auto",
    inline: bool = False,
) -> None:
    """Run all stages that are not done, parents first.

    Args:
        stages: a graph in an order in which parents come first.
        store: where runs lie.
        study: folder for new runs.
        reporter: shows progress.
        workers: processes; one per core when None.
        device: where models are trained and analysed.
        inline: run in this process, one after the other (for debugging).

    Raises:
        UserError: a stage failed; stages that do not need it were done all the same.
        KeyboardInterrupt: interrupted; running trainings saved a checkpoint to resume from.
    """
    todo = {stage.key: stage for stage in stages if not is_done(store, stage)}
    reporter.begin(tuple(todo.values()), len(stages) - len(todo))
    schedule = _Schedule(todo)
    try:
        if inline:
            _inline(schedule, store, study, device, reporter)
        else:
            _pooled(schedule, store, study, device, reporter, workers or cores())
    finally:
        reporter.close()
    schedule.raise_failures(study)


class _Schedule:
    """Which stages can run: those whose parents are done, the one with the longest way to the end first."""

    def __init__(self, todo: dict[str, Stage]) -> None:
        self.waiting = dict(todo)
        self.failed: dict[str, tuple[Stage, str]] = {}
        self.blocked: dict[str, Stage] = {}
        self.weight: dict[str, float] = {}
        for stage in reversed(tuple(todo.values())):
            after = [self.weight[s.key] for s in todo.values() if stage.key in s.parents]
            self.weight[stage.key] = stage.seconds + max(after, default=0.0)
        self.unfinished = set(todo)

    def next(self) -> Stage | None:
        ready = [s for s in self.waiting.values() if not self.unfinished.intersection(s.parents)]
        if not ready:
            return None
        return self.waiting.pop(max(ready, key=lambda s: self.weight[s.key]).key)

    def done(self, stage: Stage) -> None:
        self.unfinished.discard(stage.key)

    def fail(self, stage: Stage, reason: str) -> None:
        """Descendants of a failed stage are blocked; nothing else is."""
        self.failed[stage.key] = (stage, reason)
        lost = {stage.key}
        for candidate in tuple(self.waiting.values()):
            if lost.intersection(candidate.parents):
                lost.add(candidate.key)
                self.blocked[candidate.key] = self.waiting.pop(candidate.key)

    def raise_failures(self, study: str) -> None:
        if not self.failed:
            return
        (stage, reason), *more = self.failed.values()
        also = f" {len(more)} more failed: {', '.join(s.name for s, _ in more)}." if more else ""
        blocked = f" {len(self.blocked)} stages that need it were not run." if self.blocked else ""
        raise UserError(f"{study}: {stage.name} failed: {reason.rstrip('.')}.{also}{blocked} Run the same command to go on.")


def _inline(schedule: _Schedule, store: Store, study: str, device: str, reporter: Reporter) -> None:
    from workbench.stages import execute

    while stage := schedule.next():
        reporter.started(stage)
        try:
            execute(stage, store, study, device)
        except UserError as error:
            schedule.fail(stage, str(error))
            reporter.ended(stage, str(error))
        else:
            schedule.done(stage)
            reporter.ended(stage, None)


def _pooled(schedule: _Schedule, store: Store, study: str, device: str, reporter: Reporter, workers: int) -> None:
    pools = [_pool() for _ in range(min(workers, max(1, len(schedule.waiting))))]
    running: dict[Future[str | None], tuple[Stage, int]] = {}
    idle = list(range(len(pools)))
    try:
        while True:
            while idle and (stage := schedule.next()):
                slot = idle.pop(0)
                running[pools[slot].submit(_work, stage, store.root, study, device)] = (stage, slot)
                reporter.started(stage)
            if not running:
                return
            finished, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in finished:
                stage, slot = running.pop(future)
                reason = _outcome(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    pools[slot].shutdown(wait=False)
                    pools[slot] = _pool()
                idle.append(slot)
                if reason is None:
                    schedule.done(stage)
                else:
                    schedule.fail(stage, reason)
                reporter.ended(stage, reason)
            reporter.tick([stage for stage, _ in running.values()])
    except KeyboardInterrupt:
        _interrupt(pools, running)
        raise
    finally:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)


def _outcome(future: Future[str | None]) -> str | None:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, BrokenProcessPool):
        return "its worker process died (killed, or out of memory); use fewer --workers if memory is short"
    return f"{type(error).__name__}: {error}"


def _interrupt(pools: Sequence[ProcessPoolExecutor], running: dict[Future[str | None], Any]) -> None:
    """Ask the workers to save and stop; those that do not in time are killed, which loses work but damages nothing."""
    processes = [process for pool in pools for process in _processes(pool)]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    wait(running, timeout=GRACE_SECONDS)
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()) if process.is_alive() and running else 0.1)
        if process.is_alive():
            process.kill()


def _processes(pool: ProcessPoolExecutor) -> list[Any]:
    return list((pool._processes or {}).values())  # pyright: ignore[reportPrivateUsage]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pool() -> ProcessPoolExecutor:
    # Spawned, not forked: a forked copy of a process with torch threads can hang.
    with _environment(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false"):
        pool = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(),)
        )
        pool.submit(int)  # starts the process now, under this environment
        return pool


@contextmanager
def _environment(**values: str) -> Any:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Worker:
    """State of a worker process: who started it, and whether it was asked to stop."""

    parent = 0
    stopping = False
    training = False

    @classmethod
    def should_stop(cls) -> bool:
        # A worker whose parent was killed saves and stops too, so that the study can be started again.
        return cls.stopping or os.getppid() != cls.parent


def _start_worker(parent: int) -> None:
    import torch

    _Worker.parent = parent
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _asked_to_stop)


def _asked_to_stop(number: int, frame: FrameType | None) -> None:
    _Worker.stopping = True
    if not _Worker.training:
        raise SystemExit(1)


def _work(stage: Stage, root: Path, study: str, device: str) -> str | None:
    """Execute a stage in a worker; returns the reason of a failure, so that no exception has to cross processes."""
    from workbench.stages import execute

    _Worker.training = stage.kind != "analyse"
    stop: Callable[[], bool] = _Worker.should_stop
    try:
        execute(stage, Store(root), study, device, stop)
    except UserError as error:
        return str(error)
    except KeyboardInterrupt:
        return "interrupted; its last step is saved"
    finally:
        _Worker.training = False
    return None
