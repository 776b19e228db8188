"""Runs: the directories that executed stages leave behind, addressed by what was asked for.

`<store>/<study>/<stage>-<key>/` holds `spec.yaml` (written first), `provenance.json`, `status.json`, and by kind
`metrics.parquet`, `evaluations.parquet` and `checkpoints/step-N/`, or `result.json` with its tables. Nothing here is
ever unpickled. This module reads; `workbench.run_writer` writes, removes and verifies.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from workbench.errors import UserError, did_you_mean
from workbench.files import canonical_json, folder_bytes, plain

if TYPE_CHECKING:
    import pandas as pd

    from workbench.results import Result
    from workbench.run_writer import Problem, RunWriter

SPEC, PROVENANCE, STATUS, LOCK = "spec.yaml", "provenance.json", "status.json", ".lock"
STATES = ("running", "done", "failed", "interrupted")
METRIC_COLUMNS = ("step", "split", "name", "value")
EVALUATION_COLUMNS = ("step", "split", "capability", "share", "values")
_KEY = re.compile(r"[0-9a-f]{10}")
_FOLDER = re.compile(r"(?P<stage>.+)-(?P<key>[0-9a-f]{10})")
_NAME = re.compile(r"\w[\w.=,+@-]{0,199}")  # one folder name: no separator, and no leading dot, so neither `..` nor `.tmp-`
_STEP = re.compile(r"step-(?P<step>\d{1,18})")


def check_name(name: str, what: str) -> str:
    """`name` when it is safe as one folder name.

    Raises:
        UserError: it holds a separator or another character that could lead out of the store.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} cannot name a {what}; use letters, digits and . _ - = , + @, beginning with a letter or digit"
        )
    return name


def check_key(key: str) -> str:
    """`key` when it is one.

    Raises:
        UserError: it is not 10 hex digits.
    """
    if not _KEY.fullmatch(key):
        raise UserError(f"{key!r} is no key of a run; a key is 10 hex digits, see `workbench runs list`")
    return key


def stage_key(spec: Mapping[str, Any], version: int, dtype: str, parents: Sequence[str]) -> str:
    """The address of a stage's run: 10 hex digits of sha256 over what determines its outcome.

    Equal specs give equal keys whatever the order of their keys; 1 and 1.0 are the same number, as are 0.0 and -0.0.

    Args:
        spec: the resolved spec: text keys; text, finite numbers, booleans, None, lists and mappings below.
        version: the stage's or analysis' own version number.
        dtype: the dtype that it computes in.
        parents: the parents' keys, in order.

    Raises:
        UserError: the spec holds NaN, an infinity, or something that YAML cannot hold.
    """
    text = canonical_json({"spec": spec, "version": version, "dtype": dtype, "parents": list(parents)})
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Checkpoint:
    """A `save_pretrained` folder of one training step."""

    step: int
    path: Path


@dataclass(frozen=True)
class Run:
    """One run directory as it lay on disk when it was read."""

    path: Path
    study: str
    stage: str
    key: str
    kind: str = ""
    seed: int | None = None
    spec: Mapping[str, Any] = field(default_factory=dict[str, Any])
    status: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """`state` (one of `STATES`), `reason`, `step`, `steps`, `values`, `seconds`, `pid`, `host`, `updated`."""
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])
    parents: tuple[str, ...] = ()
    damaged: str | None = None
    """Why the run cannot be used, or None."""

    @property
    def name(self) -> str:
        """`study/stage-key`, which `Store.get` accepts."""
        return f"{self.study}/{self.stage}-{self.key}"

    @property
    def done(self) -> bool:
        """Whether the run finished and is whole."""
        return self.damaged is None and self.status.get("state") == "done"

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The checkpoints on disk, by step."""
        return checkpoints(self.path)

    def checkpoint(self, step: int | None = None) -> Checkpoint:
        """The checkpoint of a step, or the last.

        Raises:
            UserError: there is none; the message lists those that are there.
        """
        found = {c.step: c for c in self.checkpoints}
        if step is None and found:
            return found[max(found)]
        if step is None or step not in found:
            there = f"it has steps {', '.join(map(str, found))}" if found else "it has none"
            raise UserError(f"{self.name} has no checkpoint{'' if step is None else f' of step {step}'}; {there}")
        return found[step]

    def metrics(self) -> pd.DataFrame:
        """Training metrics, long: `step`, `split`, `name`, `value`; empty when none were written."""
        return _table(self, "metrics.parquet", METRIC_COLUMNS)

    def evaluations(self) -> pd.DataFrame:
        """One row per step and split: `step`, `split`, `capability`, `share` (NaN: none), `values` (float64 `[n]`)."""
        return _table(self, "evaluations.parquet", EVALUATION_COLUMNS)

    def result(self) -> Result:
        """The analysis' result.

        Raises:
            UserError: the run holds no readable result.
        """
        from workbench.results import Result

        return Result.load(self.path)

    @property
    def bytes(self) -> int:
        """Size of all files in bytes."""
        return folder_bytes(self.path)


def checkpoints(path: Path) -> tuple[Checkpoint, ...]:
    """The checkpoints in a run directory, by step."""
    try:
        entries = [(match, entry) for entry in os.scandir(path / "checkpoints") if (match := _STEP.fullmatch(entry.name))]
    except OSError:
        return ()
    found = (
        Checkpoint(int(match["step"]), Path(entry.path)) for match, entry in entries if entry.is_dir(follow_symlinks=False)
    )
    return tuple(sorted(found, key=lambda c: c.step))


def _table(run: Run, file: str, columns: tuple[str, ...]) -> pd.DataFrame:
    import pandas as pd

    path = run.path / file
    if not path.exists():
        return pd.DataFrame({name: [] for name in columns})
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove the run and run its stage again") from error


def is_locked(path: Path) -> bool:
    """Whether a live process writes the run directory at `path`; a killed one holds no lock."""
    if not (path / LOCK).exists():
        return False
    from filelock import FileLock, Timeout

    try:
        with FileLock(path / LOCK, timeout=0, thread_local=False):
            return False
    except Timeout:
        return True
    except OSError:  # not ours to open, on a shared disk say: believe status.json
        return True


def _mapping(path: Path, load: Callable[[str], Any]) -> dict[str, Any]:
    import yaml

    try:
        body = load(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path.name} cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(body, dict):
        raise ValueError(f"{path.name} holds no mapping")
    return cast(dict[str, Any], body)


def load_yaml(text: str) -> Any:
    """Plain YAML; the C loader is 7 times as fast, which listing a thousand runs needs."""
    import yaml

    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def read_run(path: Path, study: str, stage: str, key: str) -> Run:
    """Read a run directory; whatever is wrong with it becomes `damaged`, nothing is raised."""
    parts: dict[str, dict[str, Any]] = {}
    reasons: list[str] = []
    readers: tuple[tuple[str, Callable[[str], Any]], ...] = ((SPEC, load_yaml), (PROVENANCE, json.loads), (STATUS, json.loads))
    for name, load in readers:
        try:
            parts[name] = _mapping(path / name, load)
        except ValueError as error:
            reasons.append(str(error))
    spec, provenance, status = (parts.get(name, {}) for name in (SPEC, PROVENANCE, STATUS))
    if STATUS in parts and status.get("state") not in STATES:
        reasons.append(f"{STATUS} has the state {status.get('state')!r}; known: {', '.join(STATES)}")
    parents = provenance.get("parents", [])
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in cast(list[Any], parents)):
        reasons.append(f"{PROVENANCE} has no list of parents' keys")
        parents = []
    # Only a status that claims to be running, or a start in this very moment, needs the lock's word.
    if status.get("state") == "running" or reasons:
        live = is_locked(path)
        if live and reasons and STATUS not in parts:
            reasons, status = [], {"state": "running", "reason": "starting"}
        elif not live and status.get("state") == "running":
            who = f"process {status.get('pid')} on {status.get('host')}"
            status = {**status, "state": "interrupted", "reason": f"{who} ended without a word; run the stage again to resume"}
    seed = provenance.get("seed", spec.get("seed"))
    return Run(
        path=path,
        study=study,
        stage=stage,
        key=key,
        kind=str(provenance.get("kind", "")),
        seed=seed if isinstance(seed, int) else None,
        spec=spec,
        status=status,
        provenance=provenance,
        parents=tuple(cast(list[str], parents)),
        damaged="; ".join(reasons) or None,
    )


@dataclass(frozen=True)
class Store:
    """A folder of studies, each a folder of runs."""

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root).expanduser().absolute())

    @classmethod
    def default(cls) -> Store:
        """`$WORKBENCH_HOME`, else `runs/` under the working directory."""
        return cls(Path(os.environ.get("WORKBENCH_HOME") or "runs"))

    def folders(self, study: str | None = None) -> Iterator[Run]:
        """Run directories by name alone, unread; links are not followed, so that none leads out of the store."""
        try:
            studies = [entry.name for entry in os.scandir(self.root) if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return
        for name in sorted(studies):
            if not _NAME.fullmatch(name) or (study is not None and name != study):
                continue
            try:
                entries = sorted(os.scandir(self.root / name), key=lambda entry: entry.name)
            except OSError:
                continue
            for entry in entries:
                match = _FOLDER.fullmatch(entry.name)
                if match is None or not _NAME.fullmatch(match["stage"]) or not entry.is_dir():
                    continue
                damaged = "it is a link, which could lead out of the store" if entry.is_symlink() else None
                yield Run(Path(entry.path), name, match["stage"], match["key"], damaged=damaged)

    def _read(self, folder: Run) -> Run:
        return folder if folder.damaged else read_run(folder.path, folder.study, folder.stage, folder.key)

    def _best(self, folders: Sequence[Run]) -> Run:
        """Of several runs with one key, equal by construction, one that is done."""
        runs = [self._read(folder) for folder in folders]
        return next((run for run in runs if run.done), next((run for run in runs if run.damaged is None), runs[0]))

    def studies(self) -> list[str]:
        """Names of the studies that hold a run."""
        return sorted({folder.study for folder in self.folders()})

    def runs(self, study: str | None = None) -> list[Run]:
        """All runs by study and stage, damaged ones included; reads small files only."""
        return [self._read(folder) for folder in self.folders(study)]

    def find(self, key: str) -> Run | None:
        """The run with this key in any study (a done one where several studies hold it), or None; reads no other run."""
        folders = [folder for folder in self.folders() if folder.key == key]
        return self._best(folders) if folders else None

    def get(self, name: str) -> Run:
        """The run that a user means by a key, a unique beginning of one, `stage-key` or `study/stage-key`.

        Raises:
            UserError: no run or several are meant.
        """
        folders = list(self.folders())
        wanted = name.strip()
        exact = [f for f in folders if wanted in (f.name, f"{f.stage}-{f.key}", f.key)]
        found = exact or [f for f in folders if wanted and f.key.startswith(wanted)]
        if len({f.key for f in found}) == 1:
            return self._best(found)
        if found:
            raise UserError(f"{name!r} begins several runs; write more of one: {', '.join(f.name for f in found[:5])}")
        names = sorted({f"{f.stage}-{f.key}" for f in folders} | ({f.name for f in folders} if "/" in wanted else set[str]()))
        hint = did_you_mean(wanted, names)
        if len(names) > 12 and hint.startswith("; known"):
            hint = "; `workbench runs list` shows what there is"
        raise UserError(f"there is no run {name!r} in {self.root}{hint}")

    def children(self, run: Run) -> list[Run]:
        """The runs that name `run` as a parent."""
        return [other for other in self.runs() if run.key in other.parents]

    def write(
        self,
        study: str,
        stage: str,
        kind: str,
        key: str,
        spec: Mapping[str, Any],
        parents: Sequence[str] = (),
        provenance_extra: Mapping[str, Any] | None = None,
        force: bool = False,
    ) -> RunWriter:
        """A context manager that writes the run `study/stage-key`; see `RunWriter`.

        Args:
            study: folder of the run.
            stage: name of the stage.
            kind: what made it, for instance `pretrain` or `analysis`.
            key: from `stage_key`.
            spec: the resolved spec.
            parents: keys of the runs that it builds on.
            provenance_extra: device, dtype, seed, data_hash and whatever else `provenance.json` should say.
            force: begin anew, also when the run is done.

        Raises:
            UserError: a name or the key could lead out of the store, or the spec is not plain.
        """
        from workbench.run_writer import RunWriter

        path = self.root / check_name(study, "study") / f"{check_name(stage, 'stage')}-{check_key(key)}"
        if path.is_symlink() or path.parent.is_symlink():
            raise UserError(f"{path} is a link, which could lead out of the store; remove the link")
        identity = {"study": study, "stage": stage, "kind": kind, "key": key, "parents": list(parents)}
        return RunWriter(path, identity, cast(dict[str, Any], plain(spec)), {**(provenance_extra or {})}, force)

    def remove(self, runs: Collection[Run], dry: bool = False) -> int:
        """Remove runs, children before parents.

        Args:
            runs: runs of this store.
            dry: only check and count.

        Returns:
            Bytes freed (or, dry, that would be).

        Raises:
            UserError: a run that remains names one of them as its parent, a live process writes one, or one is elsewhere.
        """
        from workbench.run_writer import remove

        return remove(self, runs, dry)

    def verify(self, run: Run, weights_hash: Callable[[Path], str] | None = None) -> list[Problem]:
        """What is wrong with a run: unreadable files, truncated or changed weights, missing parents.

        Args:
            run: a run of this store.
            weights_hash: checkpoint folder -> sha256 of its weights, held against `fingerprint.json`; None skips that.
        """
        from workbench.run_writer import verify

        return verify(self, run, weights_hash)
