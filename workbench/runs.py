"""The store: a folder of studies with their runs, found by key, listed whole however damaged, removed with care."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from workbench.errors import UserError, did_you_mean
from workbench.files import plain
from workbench.run_records import KEY_DIGITS, NAME, Checkpoint, Run, check_key, check_name, read_run, stage_key

if TYPE_CHECKING:
    from workbench.run_checks import Problem
    from workbench.run_writer import RunWriter

__all__ = ["Checkpoint", "Run", "Store", "stage_key"]

_FOLDER = re.compile(rf"(?P<stage>.+)-(?P<key>[0-9a-f]{{{KEY_DIGITS}}})")


@dataclass(frozen=True, init=False)
class Store:
    """A folder of studies, each a folder of runs."""

    root: Path

    def __init__(self, root: str | Path) -> None:
        object.__setattr__(self, "root", Path(root).expanduser().absolute())

    @classmethod
    def default(cls) -> Store:
        """`$WORKBENCH_HOME`, else `runs/` under the working directory."""
        return cls(Path(os.environ.get("WORKBENCH_HOME") or "runs"))

    def folders(self, study: str | None = None, keys: Collection[str] | None = None) -> Iterator[Run]:
        """Run directories by name alone, unread; links are not followed, so that none leads out of the store.

        Args:
            study: only those of this study.
            keys: only those with one of these keys.
        """
        try:
            studies = [entry.name for entry in os.scandir(self.root) if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return
        for name in sorted(studies):
            if not NAME.fullmatch(name) or (study is not None and name != study):
                continue
            try:
                entries = [e for e in os.scandir(self.root / name) if keys is None or e.name[-KEY_DIGITS:] in keys]
            except OSError:
                continue
            for entry in sorted(entries, key=lambda entry: entry.name):
                match = _FOLDER.fullmatch(entry.name)
                if match is None or not NAME.fullmatch(match["stage"]) or not entry.is_dir():
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
        return self.find_all([key]).get(key)

    def find_all(self, keys: Iterable[str]) -> dict[str, Run]:
        """As `find` for many keys at once, by key; those that have no run are left out. The store is listed once."""
        found: dict[str, list[Run]] = {}
        for folder in self.folders(keys=set(keys)):
            found.setdefault(folder.key, []).append(folder)
        return {key: self._best(folders) for key, folders in found.items()}

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
        from workbench.run_checks import remove

        return remove(self, runs, dry)

    def verify(self, run: Run, weights_hash: Callable[[Path], str] | None = None) -> list[Problem]:
        """What is wrong with a run: unreadable files, truncated or changed weights, missing parents.

        Args:
            run: a run of this store.
            weights_hash: checkpoint folder -> sha256 of its weights, held against `fingerprint.json`; None skips that.
        """
        from workbench.run_checks import verify

        return verify(self, run, weights_hash)
