"""The local engine: one single-threaded worker process per core, each kept alive over many stages.

Two workers of one thread do more than one of two threads on models of this size. Every worker is a pool of its own,
so that one that dies (killed, out of memory) costs its stage and nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import connection, resource_tracker
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Protocol, runtime_checkable

from workbench.errors import UserError
from workbench.runs import Store
from workbench.studies.stage import Stage, not_done

POLL_SECONDS = 0.4
GRACE_SECONDS = 30.0
"""How long an interrupted worker may take to save where it is."""


@runtime_checkable
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

    def stopping(self) -> None:
        """Workers were asked to save and stop, which takes a moment."""
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
    todo = {stage.key: stage for stage in not_done(store, stages)}
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
    pools = [_pool() for _ in range(min(workers, len(schedule.waiting)))]
    running: dict[Future[str | None], tuple[Stage, int]] = {}
    idle = list(range(len(pools)))
    try:
        while True:
            while idle and (stage := schedule.next()):
                slot = idle.pop(0)
                running[_submit(pools, slot, stage, store.root, study, device)] = (stage, slot)
                reporter.started(stage)
            if not running:
                return
            finished, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            for future in finished:
                stage, slot = running.pop(future)
                reason = _outcome(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    _close([pools[slot]])
                    pools[slot] = _pool()
                idle.append(slot)
                if reason is None:
                    schedule.done(stage)
                else:
                    schedule.fail(stage, reason)
                reporter.ended(stage, reason)
            reporter.tick([stage for stage, _ in running.values()])
    except BaseException:
        reporter.stopping()
        _interrupt(pools, running)
        raise
    finally:
        _close(pools)


def _submit(pools: list[ProcessPoolExecutor], slot: int, *work: Any) -> Future[str | None]:
    try:
        return pools[slot].submit(_work, *work)
    except BrokenProcessPool:  # its process died while it had nothing to do
        _close([pools[slot]])
        pools[slot] = _pool()
        return pools[slot].submit(_work, *work)


def _outcome(future: Future[str | None]) -> str | None:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, BrokenProcessPool):
        return "its worker process died (killed, or out of memory); use fewer --workers if memory is short"
    return f"{type(error).__name__}: {error}"


def _interrupt(pools: Sequence[ProcessPoolExecutor], running: dict[Future[str | None], Any]) -> None:
    """Ask the workers to save and stop; those that do not in time are killed, which loses work but damages nothing."""
    for process in _processes(pools):
        process.terminate()
    wait(running, timeout=GRACE_SECONDS)


def _close(pools: Sequence[ProcessPoolExecutor]) -> None:
    """End the workers, and the threads that manage them, which else race with the end of the interpreter."""
    processes = _processes(pools)
    threads: list[Any] = [pool._executor_manager_thread for pool in pools]  # pyright: ignore[reportPrivateUsage]
    for pool in pools:
        pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()
    for thread in threads:
        if thread is not None:
            thread.join()


def _processes(pools: Sequence[ProcessPoolExecutor]) -> list[Any]:
    return [process for pool in pools for process in (pool._processes or {}).values()]  # pyright: ignore[reportPrivateUsage]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pool() -> ProcessPoolExecutor:
    # Spawned, not forked: a forked copy of a process with torch threads can hang.
    resource_tracker.ensure_running()  # it would unblock the signal that is held below
    with ExitStack() as held:
        held.enter_context(_environment(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false"))
        held.enter_context(_no_script())
        held.enter_context(_no_interrupt())
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
        pool.submit(int)  # starts the process now, under all of this
        return pool


@contextmanager
def _no_script() -> Generator[None]:
    """Workers need nothing of the user's script, which spawning would run once more in each."""
    script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


@contextmanager
def _no_interrupt() -> Generator[None]:
    """Hold Ctrl-C back, also in a process that is started here, until it has a handler."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(**values: str) -> Generator[None]:
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
    """State of a worker process: what it does, and whether it was asked to stop."""

    ready = False
    stopping = False
    training = False

    @classmethod
    def should_stop(cls) -> bool:
        return cls.stopping


def _start_worker() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _asked_to_stop)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    _Worker.ready = True


def _asked_to_stop(number: int, frame: FrameType | None) -> None:
    if not _Worker.ready:
        os._exit(1)
    again, _Worker.stopping = _Worker.stopping, True
    if not (_Worker.training or again):
        raise SystemExit(1)


def _end_with_parent() -> None:
    """A worker whose parent was killed saves and ends, so that the study can be started again."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    _Worker.stopping = True
    deadline = time.monotonic() + GRACE_SECONDS
    while _Worker.training and time.monotonic() < deadline:
        time.sleep(0.02)
    os._exit(1)


def _work(stage: Stage, root: Path, study: str, device: str) -> str | None:
    """Execute a stage in a worker; returns the reason of a failure, so that no exception has to cross processes."""
    from workbench.stages import execute

    _Worker.stopping, _Worker.training = False, stage.kind != "analyse"
    try:
        execute(stage, Store(root), study, device, _Worker.should_stop)
    except UserError as error:
        return str(error)
    except (KeyboardInterrupt, SystemExit):
        return "its worker process was asked to stop; what is saved is kept"
    finally:
        _Worker.stopping = _Worker.training = False
    return None
