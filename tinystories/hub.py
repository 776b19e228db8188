"""Where the files of a corpus are: a data set of the Hugging Face hub, or a local folder laid out as one.

A hub data set is fetched into the hub's own cache (`HF_HOME`, `HF_HUB_CACHE`) and from there on is a local folder, so that
both are read by the same code. With `HF_HUB_OFFLINE=1` that cache alone is used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

from tinystories.sources import EXTENSIONS, extension
from workbench.errors import UserError
from workbench.hub import PATIENCE, Unreachable, asking, cache, offline

COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
_HELD_OUT = {"validation", "valid", "val", "dev", "test", "eval"}


class Files(NamedTuple):
    """The files of a corpus in a fixed order."""

    stories: tuple[Path, ...]
    held_out: tuple[Path, ...] = ()
    """Validation and test files of a data set that has training files too."""


def resolve(name: str, revision: str | None) -> tuple[str, bool]:
    """The commit that a branch, a tag or the default branch stands for, and whether it is the hub that says so, not its cache.

    Raises:
        Unreachable: the hub cannot be reached and its cache does not know the data set.
        UserError: there is no such data set or revision, or it is not open to you.
    """
    from huggingface_hub import HfApi

    if not offline():
        with suppress(Unreachable), _asking(name, revision):
            return str(HfApi().dataset_info(name, revision=revision, timeout=PATIENCE).sha), True
    return _snapshot(name, revision, ["README.md"], local=True).name, False


def fetch(name: str, commit: str, local: bool) -> Files:
    """The files of a hub data set at a commit, downloaded where they are not in the hub's cache; `local`: that cache alone.

    What the README's `configs` name, else what is in `data/`, else every file that can be read: the repository of TinyStories
    holds its stories several times over, in several formats.

    Raises:
        Unreachable, UserError: as `resolve`; or no file there can be read, or one is missing from the cache.
    """
    folder = _snapshot(name, commit, ["README.md"], local)
    patterns = [pattern for _, some in _configured(folder) for pattern in some]
    attempts = [patterns] if patterns else [["data/*"], [f"*{known}" for known in EXTENSIONS]]
    for wanted in attempts:
        _snapshot(name, commit, wanted, local)
        if files := _found(folder):
            return files
    raise UserError(f"the data set {name!r} has no file that ends in {', '.join(EXTENSIONS)}; take another data set.")


def files_of(path: Path) -> Files:
    """The files of a local folder, or the one file that `path` is.

    Raises:
        UserError: nothing in the folder can be read.
    """
    if not path.is_dir():
        return Files((path,))
    files = _found(path)
    if files is None:
        there = sorted(entry.name for entry in path.iterdir())
        shown = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "") if there else "nothing"
        raise UserError(f"the folder {path} has no file that ends in {', '.join(EXTENSIONS)}; it holds {shown}.")
    return files


def _snapshot(name: str, revision: str | None, patterns: list[str], local: bool) -> Path:
    from huggingface_hub import snapshot_download

    with _asking(name, revision):
        return Path(
            snapshot_download(
                name, repo_type="dataset", revision=revision, allow_patterns=patterns, cache_dir=cache(), local_files_only=local
            )
        )


def _asking(name: str, revision: str | None) -> AbstractContextManager[None]:
    return asking("data set", name, revision, "a local folder, or 'sample'")


def _configured(folder: Path) -> list[tuple[str, list[str]]]:
    """`(split, patterns)` of the default configuration in the README's header; empty where it names no files."""
    readme = folder / "README.md"
    if not readme.is_file():
        return []
    header = re.match(r"---\s*\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    configs = _yaml(readme, header[1]).get("configs") if header else None
    if not isinstance(configs, list):
        return []
    usable = [cast(dict[str, Any], c) for c in cast(list[Any], configs) if isinstance(c, dict) and "data_files" in c]
    if not usable:
        return []
    chosen = next((c for c in usable if c.get("default") or c.get("config_name") == "default"), usable[0])["data_files"]
    entries: list[Any] = cast(list[Any], chosen) if isinstance(chosen, list) else [chosen]
    found: list[tuple[str, list[str]]] = []
    for entry in entries:
        one = cast(dict[str, Any], entry) if isinstance(entry, dict) else {"path": entry}
        paths = one.get("path", [])
        patterns = [str(pattern) for pattern in (cast(list[Any], paths) if isinstance(paths, list) else [paths])]
        for pattern in patterns:
            if PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
                raise UserError(f"{readme} names the files {pattern!r}, outside its folder; name files inside it.")
        found.append((str(one.get("split", "train")), patterns))
    return found


def _yaml(readme: Path, text: str) -> dict[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"the header of {readme} is no YAML; mend what is between its lines of ---.") from None
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _found(folder: Path) -> Files | None:
    """Files as configured, else those of `data/`, of the folder itself, or of all its folders; None where there are none."""
    configured = _configured(folder)
    if configured:
        by_split = [(split, _readable(folder, patterns)) for split, patterns in configured]
        files = [(path, _is_held_out([split])) for split, paths in by_split for path in paths]
    else:
        tried = (_readable(folder, [pattern]) for pattern in ("data/**/*", "*", "**/*"))
        files = [(path, _is_held_out(_tokens(path.relative_to(folder)))) for path in next(filter(None, tried), [])]
    _check_shards(folder, [path for path, _ in files])
    held_out = tuple(path for path, apart in files if apart)
    stories = tuple(path for path, apart in files if not apart)
    if not files:
        return None
    return Files(stories, held_out) if stories else Files(held_out)


def _check_shards(folder: Path, files: Sequence[Path]) -> None:
    """Files that are numbered as parts of a whole must all be there: a cut download would be a smaller corpus."""
    parts: dict[tuple[str, int], set[int]] = {}
    for path in files:
        if match := _SHARD.search(path.name):
            whole = (path.relative_to(folder).with_name(path.name[: match.start()]).as_posix(), int(match[2]))
            parts.setdefault(whole, set()).add(int(match[1]))
    for (name, n), there in parts.items():
        if missing := sorted(set(range(n)) - there):
            raise UserError(
                f"{folder} lacks part {missing[0]} of the {n} of {name!r} (from 0); fetch it, or name one file alone."
            )


def _readable(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files that match and can be read, each once, in the order of their names."""
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file() and extension(path)}
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _tokens(path: Path) -> list[str]:
    return re.findall(r"[a-z]+", path.as_posix().lower())


def _is_held_out(tokens: Sequence[str]) -> bool:
    """Whether a split's or file's name says validation or test and not train, as the hub's own loader reads names."""
    return "train" not in tokens and bool(_HELD_OUT & set(tokens))
