"""Records: the directory that one executed stage leaves behind, addressed by what was asked for.

`<store>/<study>/<stage>-<key>/` holds `spec.yaml` (written first), `provenance.json`, `status.json`, and by kind
`metrics.parquet`, `evaluations.parquet` and `checkpoints/step-N/`, or `result.json` with its tables. Nothing here is
ever unpickled. This module reads one run; `workbench.runs` finds them, `workbench.run_writer` writes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from workbench.errors import UserError
from workbench.files import canonical_json, folder_bytes

if TYPE_CHECKING:
    import pandas as pd

    from workbench.results import Result

SPEC, PROVENANCE, STATUS, LOCK = "spec.yaml", "provenance.json", "status.json", ".lock"
MANIFEST = "manifest.json"
"""Sizes of a finished run's files: one look at the disk tells whether any was cut or lost."""
STATES = ("running", "done", "failed", "interrupted")
METRIC_COLUMNS = ("step", "split", "name", "value")
EVALUATION_COLUMNS = ("step", "split", "capability", "share", "values")
KEY_DIGITS = 10
_KEY = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")
NAME = re.compile(r"\w[\w.=,+@-]{0,199}")  # one folder name: no separator, and no leading dot, so neither `..` nor `.tmp-`
_STEP = re.compile(r"step-(?P<step>\d{1,18})")


def check_name(name: str, what: str) -> str:
    """`name` when it is safe as one folder name.

    Raises:
        UserError: it holds a separator or another character that could lead out of the store.
    """
    if not NAME.fullmatch(name):
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
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


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


def _lost(path: Path) -> str | None:
    """The first file of a finished run that is not as long as it was written, or None; no file is opened."""
    try:
        sizes = cast(dict[str, int], _mapping(path / MANIFEST, json.loads))
    except ValueError as error:
        return str(error)
    for name, size in sizes.items():
        try:
            found = os.stat(path / name).st_size
        except OSError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found:,} bytes, {size:,} were written"
    return None


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
    if status.get("state") == "done" and (lost := _lost(path)):
        reasons.append(lost)
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
