"""A corpus of stories: the bundled sample, a data set of the hub, or local files; cleaned, split once, and mapped from disk.

    corpus = load_corpus("roneneldan/TinyStories", revision="main")
    corpus.split("train")["text"]

The first load streams the stories into the cache (`tinystories.building`), a second one opens what is there.

**Splits.** The stories of each source are put in the order of a hash of their text; the first 10 % are the test set, the next
5 % the validation set (`tinystories.building.sides` says what keeps its side when stories are added). A data set that brings
validation or test files of its own is split all the same, and from its training files alone: TinyStories' validation file was
not freed of stories that are in its training file. `counts["leaked"]` says how many these are; the file is not used otherwise.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from filelock import FileLock

from tinystories import hub
from tinystories.building import SPLITS, Counts, build, hashes_of
from tinystories.sources import Row, extension, has_labels, read_rows
from workbench.errors import UserError, did_you_mean
from workbench.files import atomic_folder, atomic_json, atomic_text, canonical_json, sweep
from workbench.hub import home

if TYPE_CHECKING:
    import datasets
    import pandas as pd

SAMPLE = "sample"
VERSION = 1
"""Of reading, cleaning and splitting; another number, and every corpus is made anew."""
TOLD_EVERY = 1000
"""Rows between two calls of `on_read`."""
_SHARD = re.compile(r"-\d{5}-of-\d{5}(-[0-9a-f]+)?$")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Stories in three splits, mapped from disk.

    `dataset` has the columns `text`, `source` and `split`; with instructions also `features` and `words` (lists of text),
    `summary` and `sentence` (text or None). Training stories come first, then validation, then test.
    """

    name: str
    """As given to `load_corpus`."""
    revision: str | None
    """The commit of a hub data set; None for local files and the sample."""
    sha256: str
    """Of the stories with their sources and labels, in the order in which they were read."""
    dataset: datasets.Dataset
    counts: Counts

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def labelled(self) -> bool:
        """Whether stories come with instructions."""
        return "features" in self.dataset.column_names

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        import pyarrow.compute as pc

        column: Any = self.dataset.select_columns("split").with_format("arrow")[:]["split"] if len(self.dataset) else None
        return {
            name: np.flatnonzero(pc.equal(column, name).to_numpy()) if column is not None else np.empty(0, int)  # pyright: ignore
            for name in SPLITS
        }

    def split(self, name: str) -> datasets.Dataset:
        """The stories of one of `train`, `validation` and `test`; empty where the sources are too small to have any.

        Raises:
            UserError: another name.
        """
        if name not in SPLITS:
            raise UserError(f"a corpus has no split {name!r}{did_you_mean(name, SPLITS)}.")
        rows = self._rows[name]
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows):  # a range stays a plain piece of the map
            return self.dataset.select(range(int(rows[0]), int(rows[-1]) + 1))
        return self.dataset.select(rows)

    def texts(self, split: str) -> Iterator[str]:
        """The texts of a split, a thousand in memory at once.

        Raises:
            UserError: no such split.
        """
        chosen = self.split(split)
        return (
            text for batch in chosen.select_columns("text").iter(1000) for text in cast(dict[str, list[str]], batch)["text"]
        )


def load_corpus(
    name: str = SAMPLE,
    *,
    revision: str | None = None,
    cache: Path | None = None,
    limit: int | None = None,
    on_read: Callable[[int], None] | None = None,
) -> Corpus:
    """The corpus `name`, made on the first call and found in the cache from then on.

    Args:
        name: `sample`; a data set of the hub, such as `roneneldan/TinyStories`; or a local file or folder (which goes before a
            data set of that name). Rows without a `source` get the file's name, or the data set's, as their source.
        revision: branch, tag or commit of a hub data set.
        cache: where corpora are kept; by default `$HF_HOME/revival`.
        limit: keep the first so many stories only.
        on_read: called now and then, while the corpus is made, with the number of rows that were read.

    Raises:
        UserError: nothing is called so, the hub cannot be reached, a file is damaged or holds no story, the cache cannot be
            written, or an argument makes no sense. `tinystories.sources.read_rows` and `tinystories.hub` list the cases.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it must be at least 1, or None for all stories.")
    folder = Path(cache) if cache is not None else home() / "revival"
    path = _local(name)
    if path is None:
        return _from_hub(name, revision, folder, limit, on_read)
    if revision is not None:
        raise UserError(f"revision {revision!r} was given with {name!r}, which is not on the hub; leave it out.")
    files = hub.files_of(path)
    identity = {"name": str(path) if name != SAMPLE else name, "limit": limit, "files": _file_hashes(files, path, folder)}
    return _cached(name, None, folder, identity) or _make(
        name, None, folder, identity, files, path if path.is_dir() else path.parent, on_read
    )


def leakage(corpus: Corpus) -> int:
    """How many stories of the validation and test sets say the same as one of another split, but for case, space and quotes.

    0 for whatever `load_corpus` returns: of stories that say the same it keeps one.
    """
    found, earlier = 0, np.empty(0, np.uint64)
    for name in SPLITS:
        here = _split_hashes(corpus, name)
        found += int(np.isin(here, earlier).sum())
        earlier = np.concatenate([earlier, here])
    return found


def describe(corpus: Corpus) -> pd.DataFrame:
    """Columns `source`, `split`, `stories`, `words`, `mean words` and `dialogue` (share of stories), a row per source and split."""
    import pandas as pd

    from tinystories.features import RULES

    has_dialogue = RULES["Dialogue"].of
    totals: dict[tuple[str, str], np.ndarray] = {}
    for batch in corpus.dataset.select_columns(["text", "source", "split"]).iter(1000):
        columns = cast(dict[str, list[str]], batch)
        for text, source, split in zip(columns["text"], columns["source"], columns["split"], strict=True):
            row = np.array([1, len(text.split()), has_dialogue(text)])
            totals[source, split] = totals.get((source, split), 0) + row
    order = sorted(totals, key=lambda key: (key[0], SPLITS.index(key[1])))
    records = [(*key, *totals[key].tolist()) for key in order]
    table = pd.DataFrame(records, columns=["source", "split", "stories", "words", "dialogue"])
    table.insert(4, "mean words", table["words"] / table["stories"])
    return table.assign(dialogue=table["dialogue"] / table["stories"])


def _split_hashes(corpus: Corpus, name: str) -> np.ndarray:
    batches = corpus.split(name).select_columns("text").iter(1000)
    return np.concatenate(
        [np.empty(0, np.uint64), *(hashes_of(cast(dict[str, list[str]], batch)["text"]) for batch in batches)]
    )


def _local(name: str) -> Path | None:
    """The file or folder meant; None for what can only be on the hub."""
    if name == SAMPLE:
        return Path(str(resources.files("tinystories"))) / "sample" / "stories.jsonl"
    path = Path(name).expanduser()
    if path.exists():
        return path.resolve()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and extension(path) is None and not name.startswith("."):
        return None
    raise UserError(f"there is no file or folder {name!r}; give one, a data set of the hub as owner/name, or 'sample'.")


def _from_hub(
    name: str, revision: str | None, folder: Path, limit: int | None, on_read: Callable[[int], None] | None
) -> Corpus:
    pinned = revision if revision is not None and hub.COMMIT.fullmatch(revision) else None
    if pinned is not None and (found := _cached(name, pinned, folder, _hub_identity(name, pinned, limit))):
        return found  # nothing to ask the hub
    try:
        commit, reachable = hub.resolve(name, revision)
    except hub.Unreachable:
        known = _known_commit(name, revision, folder)  # the hub's cache may have been emptied since
        if known is None:
            raise
        commit, reachable = known, False
    identity = _hub_identity(name, commit, limit)
    found = _cached(name, commit, folder, identity)
    if found is None:
        found = _make(name, commit, folder, identity, hub.fetch(name, commit, local=not reachable), None, on_read)
    _remember_commit(name, revision, folder, commit)
    return found


def _hub_identity(name: str, commit: str, limit: int | None) -> dict[str, Any]:
    return {"name": name, "limit": limit, "files": commit}


def _commit_file(name: str, revision: str | None, folder: Path) -> Path:
    return folder / "revisions" / (hashlib.sha256(f"{name}@{revision or ''}".encode()).hexdigest()[:16] + ".txt")


def _known_commit(name: str, revision: str | None, folder: Path) -> str | None:
    file = _commit_file(name, revision, folder)
    return file.read_text() if file.is_file() else None


def _remember_commit(name: str, revision: str | None, folder: Path, commit: str) -> None:
    if _known_commit(name, revision, folder) != commit:
        file = _commit_file(name, revision, folder)
        file.parent.mkdir(exist_ok=True)
        atomic_text(file, commit)


def _file_hashes(files: hub.Files, path: Path, cache: Path) -> list[list[str]]:
    """`[name, role, sha256]` of every file; read again only when size or time of change differ."""
    found: list[list[str]] = []
    for role, paths in zip(("stories", "held out"), files, strict=True):
        for file in paths:
            stat = file.stat()
            tag = hashlib.sha256(f"{file}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:24]
            memo = cache / "hashes" / f"{tag}.txt"
            if memo.is_file():
                digest = memo.read_text()
            else:
                try:
                    with file.open("rb") as opened:
                        digest = hashlib.file_digest(opened, "sha256").hexdigest()
                except OSError as error:
                    raise UserError(f"{file} cannot be read: {error.strerror}; mend the path or its permissions.") from None
                with _writing(cache):
                    memo.parent.mkdir(parents=True, exist_ok=True)
                    atomic_text(memo, digest)
            found.append([file.relative_to(path).as_posix() if file != path else file.name, role, digest])
    return found


def _with_source(paths: tuple[Path, ...], base: Path, name: str | None, skipped: Counter[str] | None = None) -> Iterator[Row]:
    """The rows of files one after another; a row that names no source gets the data set's name, or its file's."""
    for path in paths:
        stem = path.relative_to(base).as_posix()[: -len(extension(path) or "")]
        source = name or _SHARD.sub("", stem)
        empty = True
        for row in read_rows(path, skipped):
            empty = empty and not row.text.strip()
            yield row if row.source else row._replace(source=source)
        if empty:
            raise UserError(f"{path} holds no story; remove the file, or fetch it again.")


def _make(
    name: str,
    commit: str | None,
    folder: Path,
    identity: dict[str, Any],
    files: hub.Files,
    base: Path | None,
    on_read: Callable[[int], None] | None,
) -> Corpus:
    """Read, clean, split and write; another process that makes the same corpus is waited for."""
    target = _entry(name, folder, identity)
    root = base if base is not None else Path(os.path.commonpath([path.parent for path in files.stories]))
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{target}.lock")
        lock.acquire()
    try:
        if found := _cached(name, commit, folder, identity):
            return found
        sweep(folder)
        labelled = any(has_labels(path) for path in files.stories)
        skipped: Counter[str] = Counter()
        rows = _with_source(files.stories, root, name if base is None else None, skipped)
        rows = rows if on_read is None else _counted(rows, on_read)
        with _writing(folder), atomic_folder(target) as temporary:
            held_out = chain.from_iterable(map(read_rows, files.held_out))
            counts, sha256 = build(temporary, rows, held_out, labelled, skipped, identity["limit"])
            about = {"name": name, "revision": commit, "sha256": sha256, "counts": counts, "identity": identity}
            atomic_json(temporary / "corpus.json", about)
    finally:
        lock.release()
    return _open(name, commit, target)


def _counted(rows: Iterator[Row], on_read: Callable[[int], None]) -> Iterator[Row]:
    for number, row in enumerate(rows):
        if number % TOLD_EVERY == 0:
            on_read(number)
        yield row


def _entry(name: str, folder: Path, identity: dict[str, Any]) -> Path:
    key = hashlib.sha256(canonical_json({"version": VERSION, **identity}).encode()).hexdigest()[:16]
    slug = re.sub(r"[^\w.-]+", "--", Path(name).name if Path(name).exists() else name)
    return folder / f"{slug}-{key}"


def _cached(name: str, commit: str | None, folder: Path, identity: dict[str, Any]) -> Corpus | None:
    target = _entry(name, folder, identity)
    return _open(name, commit, target) if (target / "corpus.json").is_file() else None


def _open(name: str, commit: str | None, target: Path) -> Corpus:
    """Map what `build` wrote."""
    from datasets import Dataset, concatenate_datasets

    about = json.loads((target / "corpus.json").read_text())
    parts = [Dataset.from_file(str(target / f"{split}.arrow")) for split in SPLITS]
    return Corpus(name, commit, about["sha256"], concatenate_datasets(parts), about["counts"])


@contextmanager
def _writing(cache: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise
        raise UserError(
            f"the cache {cache} cannot be written ({error.strerror}); set HF_HOME or cache to a folder of yours."
        ) from None
