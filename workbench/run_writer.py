"""Writing a run directory.

One process writes a run, held by a lock that dies with it. Everything but `log.txt` is replaced in one step, so a killed
run can be read and resumed.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock, Timeout

from workbench.errors import UserError
from workbench.files import (
    atomic_folder,
    atomic_json,
    atomic_parquet,
    atomic_text,
    canonical_json,
    explain_full_disk,
    remove_folder,
    sweep,
)
from workbench.run_records import (
    EVALUATION_COLUMNS,
    LOCK,
    MANIFEST,
    METRIC_COLUMNS,
    PROVENANCE,
    SPEC,
    STATUS,
    Run,
    read_run,
)

if TYPE_CHECKING:
    from workbench.results import Result

HOLDER = ".holder.json"
STATUS_EVERY, FLUSH_EVERY, PATIENCE = 0.5, 5.0, 0.5  # seconds
_PACKAGES = (
    "revival torch transformers transformer-lens accelerate safetensors tokenizers numpy scipy scikit-learn pandas pyarrow"
)


@cache
def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that results depend on, None where not installed; imports none of them."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES.split():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


@cache
def _git(folder: str) -> dict[str, Any] | None:
    """Revision of the checkout around `folder` and whether files differ from it; None without git or a checkout."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # reading must not take the user's index lock

    def git(*words: str) -> str:
        command = ["git", "-C", folder, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True, env=environment).stdout.strip()

    try:
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _threads() -> int | str | None:
    torch = sys.modules.get("torch")  # asked only where it is loaded anyway
    return torch.get_num_threads() if torch else os.environ.get("OMP_NUM_THREADS")


class RunWriter:
    """Writes one run; made by `Store.write` and used in a `with` statement.

    On entry the spec is written before all else. A run that is already done is left alone: `already_done` is True and
    there is nothing to do. A run cut short is continued: `resume_step` is its last checkpoint, and `truncate` drops
    what was recorded after. On leaving, the state becomes done, failed (with the exception's sentence) or interrupted.
    """

    def __init__(
        self, path: Path, identity: Mapping[str, Any], spec: Mapping[str, Any], extra: Mapping[str, Any], force: bool
    ) -> None:
        self.path = path
        self.already_done = False
        self._identity, self._spec, self._extra, self._force = identity, spec, extra, force
        self._lock = FileLock(path / LOCK, timeout=0, thread_local=False)
        self._status: dict[str, Any] = {}
        self._provenance: dict[str, Any] = {}
        # Keyed by what identifies a row, so that a row recorded again after a resume replaces its first version.
        self._metrics: dict[tuple[int, str, str], float] = {}
        self._evaluations: dict[tuple[int, str, str, float | None], Any] = {}
        self._dirty: set[str] = set()
        self._started = self._written = self._flushed = 0.0
        self._before = 0.0  # seconds that earlier, interrupted attempts took

    @property
    def run(self) -> Run:
        """The run as it lies on disk."""
        return read_run(self.path, *(str(self._identity[name]) for name in ("study", "stage", "key")))

    @property
    def resume_step(self) -> int | None:
        """Step of the last checkpoint on disk, None when there is none."""
        found = self.run.checkpoints
        return found[-1].step if found else None

    def __enter__(self) -> RunWriter:
        """Take the lock and write spec, provenance and status.

        Raises:
            UserError: another live process writes this run, or the store cannot be written.
            DiskFull: there is no room.
        """
        self._acquire()
        try:
            before = self.run
            if before.done and not self._force:
                self.already_done = True
                self._lock.release()
                return self
            with explain_full_disk(self.path):
                self._begin(before)
        except BaseException:
            self._lock.release()
            raise
        return self

    def _acquire(self) -> None:
        deadline = time.monotonic() + PATIENCE  # a reader's probe of the lock, or a holder that has not yet said its name
        while True:
            try:
                with explain_full_disk(self.path):
                    self.path.mkdir(parents=True, exist_ok=True)
                    self._lock.acquire()
                return
            except FileNotFoundError:  # removed between the two lines
                continue
            except Timeout:
                try:
                    holder = cast(dict[str, Any], json.loads((self.path / HOLDER).read_text()))
                    who = f"process {holder['pid']} on {holder['host']}"
                except (OSError, ValueError, KeyError, TypeError):
                    who = "another process"
                if time.monotonic() > deadline:
                    raise UserError(f"{self.path} is being written by {who}; wait for it or stop it") from None
                time.sleep(0.02)
            except OSError as error:
                fix = "set WORKBENCH_HOME to a folder that can"
                raise UserError(f"{self.path} cannot be written ({error.strerror}); {fix}") from error

    def _begin(self, before: Run) -> None:
        me = {"pid": os.getpid(), "host": socket.gethostname()}
        atomic_json(self.path / HOLDER, me)
        sweep(self.path, everything=True)  # under the lock, so whatever is temporary is dead
        sweep(self.path / "checkpoints", everything=True)
        if self._force:
            for entry in sorted(self.path.iterdir()):
                if entry.is_dir() and not entry.is_symlink():
                    remove_folder(entry)
                elif entry.name not in (LOCK, HOLDER):
                    entry.unlink()
            before = self.run
        import yaml

        atomic_text(self.path / SPEC, yaml.safe_dump(dict(self._spec), sort_keys=False))
        attempt = {**me, "started": _now(), "threads": _threads(), "versions": versions(), "git": _git(os.getcwd())}
        unknown = {
            "seed": self._spec.get("seed"),
            "device": None,
            "dtype": None,
            "data_hash": before.provenance.get("data_hash"),
        }
        attempts: Any = before.provenance.get("attempts")
        provenance = {
            **unknown,
            "platform": platform.platform(),
            **self._extra,
            **attempt,
            **self._identity,
            "spec_json": canonical_json(self._spec),
            "attempts": [*(cast(list[Any], attempts) if isinstance(attempts, list) else []), attempt],
        }
        self._provenance = provenance
        atomic_json(self.path / PROVENANCE, provenance)
        seconds = before.status.get("seconds")
        self._before = float(seconds) if isinstance(seconds, int | float) else 0.0
        self._started = self._flushed = time.monotonic()
        self._status = {"state": "running", "reason": "", "step": None, "steps": None, "values": {}, **me}
        self._write_status()
        if (self.path / "metrics.parquet").exists():
            self.metrics(cast(Iterable[tuple[int, str, str, float]], before.metrics().itertuples(index=False, name=None)))
        if (self.path / "evaluations.parquet").exists():
            for row in before.evaluations().itertuples(index=False, name=None):
                self.evaluation(*cast(tuple[int, str, str, float | None, Any], row))
        self._dirty.clear()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Flush, write the last status and release the lock; a failure to do so never hides the body's error."""
        if self.already_done:
            return
        try:
            if error is None:
                try:
                    self.flush()
                except Exception as late:
                    self._fail("failed", late)
                    raise
                atomic_json(self.path / MANIFEST, self._sizes())
                self._status.update(state="done", reason="")
                self._write_status()
            else:
                with suppress(Exception):
                    self.flush()
                self._fail("interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed", error)
        finally:
            self._lock.release()

    def _sizes(self) -> dict[str, int]:
        """Bytes of every file that is not written any more."""
        living = {STATUS, MANIFEST, LOCK, HOLDER, "log.txt"}
        files = (file for file in sorted(self.path.rglob("*")) if file.is_file() and file.name not in living)
        return {file.relative_to(self.path).as_posix(): file.stat().st_size for file in files}

    def _fail(self, state: str, error: BaseException) -> None:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".rstrip(": ")
        self._status.update(state=state, reason=reason)
        with suppress(Exception):  # the disk may be full; the error that led here matters more
            self._write_status()
        with suppress(Exception):
            self.log("".join(traceback.format_exception(error)).rstrip())

    def _write_status(self) -> None:
        self._written = time.monotonic()
        self._status.update(seconds=round(self._before + self._written - self._started, 3), updated=_now())
        atomic_json(self.path / STATUS, self._status)

    def note(self, **facts: Any) -> None:
        """Add to `provenance.json` what is known only once the work has begun, such as the device and the hash of the data."""
        self._provenance.update(facts)
        atomic_json(self.path / PROVENANCE, self._provenance)

    def progress(self, step: int, steps: int, **values: float) -> None:
        """Say how far the run is; written every half second at most, the last word always.

        Args:
            step: steps done.
            steps: steps in all.
            **values: what to show, for instance loss and accuracy.
        """
        self._status.update(
            step=step, steps=steps, values={**self._status["values"], **{name: float(value) for name, value in values.items()}}
        )
        now = time.monotonic()
        if now - self._flushed > FLUSH_EVERY:
            self.flush()
        if now - self._written > STATUS_EVERY:
            self._write_status()

    def log(self, text: str) -> None:
        """Append lines to `log.txt`, which alone is not written atomically: a kill may cut its last line."""
        with explain_full_disk(self.path / "log.txt"), (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{_now()} {text}\n")

    def metrics(self, rows: Iterable[Mapping[str, Any] | tuple[int, str, str, float]]) -> None:
        """Record rows of (step, split, name, value), as tuples or mappings; on disk after `flush`."""
        for row in rows:
            step, split, name, value = (row[c] for c in METRIC_COLUMNS) if isinstance(row, Mapping) else row
            self._metrics[int(step), str(split), str(name)] = float(value)
            self._dirty.add("metrics")

    def evaluation(self, step: int, split: str, capability: str, share: float | None, values: Sequence[float] | Any) -> None:
        """Record one evaluation; on disk after `flush`.

        Args:
            step: training step.
            split: which examples.
            capability: which ability.
            share: share of examples with the spurious correlation, None where there is none.
            values: the measure of each example `[n]`.
        """
        import numpy as np

        known = None if share is None or np.isnan(share) else float(share)  # NaN equals nothing, so it is no key
        self._evaluations[int(step), str(split), str(capability), known] = np.array(values, dtype=np.float64)
        self._dirty.add("evaluations")

    def flush(self) -> None:
        """Bring recorded rows to disk."""
        import pandas as pd

        def write(name: str, columns: Sequence[str], rows: Mapping[Any, Any], types: dict[str, str]) -> None:
            if name in self._dirty:
                data: dict[str, Any] = {column: [key[i] for key in rows] for i, column in enumerate(columns[:-1])}
                # One object per row: arrays of equal length must not become a matrix.
                data[columns[-1]] = pd.Series(list(rows.values()), dtype="object")
                frame = pd.DataFrame(data).astype(types)
                atomic_parquet(self.path / f"{name}.parquet", frame)
                self._dirty.discard(name)

        write("metrics", METRIC_COLUMNS, self._metrics, {"step": "int64", "value": "float64"})
        write("evaluations", EVALUATION_COLUMNS, self._evaluations, {"step": "int64", "share": "float64"})
        self._flushed = time.monotonic()

    def truncate(self, step: int) -> None:
        """Drop rows and checkpoints after `step`, before training goes on from there; -1 drops all."""
        self._metrics = {key: value for key, value in self._metrics.items() if key[0] <= step}
        self._evaluations = {key: value for key, value in self._evaluations.items() if key[0] <= step}
        self._dirty |= {name for name in ("metrics", "evaluations") if (self.path / f"{name}.parquet").exists()}
        for checkpoint in self.run.checkpoints:
            if checkpoint.step > step:
                remove_folder(checkpoint.path)
        self.flush()

    @contextmanager
    def checkpoint(self, step: int) -> Generator[Path]:
        """A temporary folder that becomes `checkpoints/step-N` when the body succeeds.

        Rows recorded before are on disk by then, so a run resumed from here misses none of them.
        """
        self.flush()
        folder = self.path / "checkpoints"
        with explain_full_disk(folder):
            folder.mkdir(exist_ok=True)
        with atomic_folder(folder / f"step-{step}") as temporary:
            yield temporary

    def drop_checkpoint(self, step: int, file: str | None = None) -> None:
        """Remove a checkpoint, or one file of it such as the optimizer's state; what is not there is no error."""
        path = self.path / "checkpoints" / f"step-{step}"
        if file is not None:
            if Path(file).name != file:
                raise ValueError(f"{file!r} is no plain file name")
            (path / file).unlink(missing_ok=True)
        elif path.is_dir():
            remove_folder(path)

    def result(self, result: Result) -> None:
        """Write an analysis' result; `result.json` comes last, so where it lies its tables are whole."""
        if clash := self._dirty.intersection(result.tables):
            raise ValueError(f"a table of {result.name} is called {clash.pop()}, which is the name of the run's own file")
        with atomic_folder(self.path / ".result") as folder:
            result.save(folder)
        (self.path / "result.json").unlink(missing_ok=True)
        for file in sorted((self.path / ".result").iterdir(), key=lambda path: path.suffix == ".json"):
            os.replace(file, self.path / file.name)
        (self.path / ".result").rmdir()
