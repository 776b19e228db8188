"""Removing runs without orphaning what was made from them, and verifying what lies on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from workbench.errors import UserError
from workbench.files import canonical_json, folder_bytes, remove_folder, safetensors_problem, sweep
from workbench.run_records import LOCK, PROVENANCE, SPEC, STATUS, Run, is_locked, read_run
from workbench.run_writer import HOLDER
from workbench.runs import Store


def remove(store: Store, runs: Collection[Run], dry: bool) -> int:
    """The work of `Store.remove`."""
    going = {run.path: run for run in runs}
    known = {run.path: run for run in store.runs()}
    for path in going:
        if path not in known:
            raise UserError(f"{path} is no run of the store {store.root}; remove it by hand if you mean it")
    kept = [run for path, run in known.items() if path not in going]
    lost = {run.key for run in going.values()} - {run.key for run in kept}  # another study may hold the same run
    for parent in sorted(lost):
        children = [child.name for child in kept if parent in child.parents]
        if children:
            more = f" and {len(children) - 1} more" if len(children) > 1 else ""
            raise UserError(
                f"run {parent} is a parent of {children[0]}{more}; remove those too (`workbench runs remove --with-children`), "
                "or first"
            )
    order: list[Run] = []
    rest = [known[path] for path in going]
    while rest:  # children first, so that a kill on the way leaves no run without its parent
        named = {parent for run in rest for parent in run.parents}
        leaves = [run for run in rest if run.key not in named] or rest  # a cycle can only be damage, and goes too
        order += leaves
        rest = [run for run in rest if run not in leaves]
    freed = sum(folder_bytes(run.path) for run in order)
    with ExitStack() as locks:
        for run in order:
            try:
                if not dry and not run.path.is_symlink():
                    locks.enter_context(FileLock(run.path / LOCK, timeout=0, thread_local=False))
                elif is_locked(run.path):
                    raise Timeout(str(run.path))
            except Timeout:
                raise UserError(f"{run.name} is being written by a live process; stop that first") from None
        for run in () if dry else order:
            run.path.unlink() if run.path.is_symlink() else remove_folder(run.path)
            sweep(run.path.parent)
            with suppress(OSError):  # other runs are still in it
                run.path.parent.rmdir()
    return freed


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a run."""

    path: Path
    text: str


def _file_problem(path: Path) -> str | None:
    if path.suffix == ".safetensors":
        return safetensors_problem(path)
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        parquet.read_table(path, page_checksum_verification=True)
    return None  # pickled files and others are never opened


def verify(store: Store, run: Run, weights_hash: Callable[[Path], str] | None = None) -> list[Problem]:
    """The work of `Store.verify`."""
    if run.path.is_symlink():
        return [Problem(run.path, run.damaged or "it is a link")]
    run = read_run(run.path, run.study, run.stage, run.key)
    problems = [Problem(run.path, reason) for reason in (run.damaged or "").split("; ") if reason]
    for parent in run.parents:
        if store.find(parent) is None:
            problems.append(Problem(run.path, f"its parent {parent} is missing"))
    if run.spec and run.provenance.get("spec_json") not in (None, canonical_json(run.spec)):
        problems.append(Problem(run.path / SPEC, "was changed after the run was written"))
    for path in sorted(run.path.rglob("*")):
        if path.name in (PROVENANCE, STATUS, HOLDER) or path.is_symlink() or not path.is_file():
            continue
        try:
            problem = _file_problem(path)
        except Exception as error:  # whatever a damaged file makes its reader raise is the finding
            problem = f"cannot be read ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        if problem:
            problems.append(Problem(path, problem))
    bad = {problem.path.parent for problem in problems}
    for checkpoint in run.checkpoints if weights_hash else ():
        mark = checkpoint.path / "fingerprint.json"
        if checkpoint.path in bad or not mark.exists() or weights_hash is None:
            continue
        stored = json.loads(mark.read_text()).get("weights_sha256")
        if stored != (found := weights_hash(checkpoint.path)):
            problems.append(Problem(checkpoint.path, f"its weights hash to {found}, its fingerprint says {stored}"))
    return problems
