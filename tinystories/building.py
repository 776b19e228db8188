"""From rows of files to a corpus on disk: stories cleaned, repeats dropped, sides drawn by hash; three Arrow files, one per split.

Two passes over the stories. The first reads, cleans and writes what is kept; the second deals it out, once every story's place
among those of its source is known. Of each story 8 bytes of hash and a few numbers stay in memory, its text does not.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from tinystories.sources import LABELS, Row

if TYPE_CHECKING:
    import datasets

SPLITS = ("train", "validation", "test")
TEST_PERCENT = 10
VALIDATION_PERCENT = 5
"""Of the stories of each source; what is left is for training."""
BATCH = 4000
"""Stories that are in memory at once."""
_STRAIGHT = str.maketrans("‘’‚‛“”„‟", "''''\"\"\"\"")


class Counts(TypedDict):
    """What became of the rows: `read` is the sum of `skipped`, `empty`, `repeated` and `kept`."""

    read: int
    skipped: int
    """Pieces of instruct text that are no records, such as those that have lost their separator."""
    empty: int
    repeated: int
    """Rows that say the same as an earlier one."""
    kept: int
    by_source: dict[str, int]
    """Stories kept."""
    held_out: int
    """Stories of the data set's own validation and test files, which are counted and not used."""
    leaked: int
    """Those of them that are among the stories kept."""


def tidy(text: str) -> str:
    r"""A story with `\n` for every line break and nothing blank around it."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def normalised(text: str) -> str:
    """What two stories have in common if they count as one: letter case, white space and the shape of quotes are taken out."""
    return " ".join(text.translate(_STRAIGHT).casefold().split())


def text_hash(text: str) -> int:
    """64 bits of the normalised text; among 2.5 million stories two share them with a chance of one in six million."""
    return int.from_bytes(hashlib.blake2b(normalised(text).encode(), digest_size=8).digest(), "little")


def hashes_of(texts: Sequence[str]) -> np.ndarray:
    """`text_hash` of each text, uint64 [n]."""
    return np.fromiter((text_hash(text) for text in texts), np.uint64, len(texts))


def sides(hashes: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """The split of every story as an index into `SPLITS`, uint8 [n].

    Within each source stories stand in the order of their hashes; the first `TEST_PERCENT` are the test set, the next
    `VALIDATION_PERCENT` the validation set, both rounded to whole stories, halves up.

    So a side depends on the story and on which stories its source has, and on no order of files or rows. Stories added to one
    source change no side in another. In the source itself the two borders move to the new percentiles of the hashes: only
    stories between an old and a new border change, and each border passes about sqrt(p (1 - p) added) of them.

    Args:
        hashes: uint64 [n].
        sources: which source each story is of, int [n], from 0.
    """
    found = np.full(len(hashes), SPLITS.index("train"), np.uint8)
    order = np.lexsort((hashes, sources))
    start = 0
    for n in np.bincount(sources).tolist():
        test, validation = ((n * percent + 50) // 100 for percent in (TEST_PERCENT, VALIDATION_PERCENT))
        found[order[start : start + test]] = SPLITS.index("test")
        found[order[start + test : start + test + validation]] = SPLITS.index("validation")
        start += n
    return found


class _Seen:
    """The hashes of all stories so far, sorted."""

    def __init__(self) -> None:
        self.known = np.empty(0, np.uint64)

    def has(self, hashes: np.ndarray) -> np.ndarray:
        """Which hashes are known, bool [n]."""
        if not len(self.known):
            return np.zeros(len(hashes), bool)
        at = np.minimum(np.searchsorted(self.known, hashes), len(self.known) - 1)
        return self.known[at] == hashes

    def fresh(self, hashes: np.ndarray) -> np.ndarray:
        """Which hashes are neither known nor earlier in `hashes`, bool [n]."""
        first = np.zeros(len(hashes), bool)
        first[np.unique(hashes, return_index=True)[1]] = True
        return first & ~self.has(hashes)

    def add(self, hashes: np.ndarray) -> None:
        new = np.sort(hashes)
        self.known = np.insert(self.known, np.searchsorted(self.known, new), new)


def build(
    folder: Path, rows: Iterable[Row], held_out: Iterable[Row], labelled: bool, skipped: Counter[str], limit: int | None
) -> tuple[Counts, str]:
    """Write `train.arrow`, `validation.arrow` and `test.arrow` into a folder; within each, stories stay in the order of `rows`.

    Args:
        folder: an empty folder.
        rows: each with its source.
        held_out: stories to look for among those kept.
        labelled: whether to write the columns of instructions.
        skipped: filled by whoever yields `rows`.
        limit: how many stories to keep at most; rows after the last of them are not counted.

    Returns:
        The counts, and the sha256 of the stories kept: of each as one line of JSON, `[text, source]` or with the labels after.
    """
    import pyarrow as pa

    schema = features(labelled).arrow_schema
    unsplit = pa.schema([field for field in schema if field.name != "split"])
    temporary = folder / "unsplit.arrow"
    counts = Counts(read=0, skipped=0, empty=0, repeated=0, kept=0, by_source={}, held_out=0, leaked=0)
    digest, seen = hashlib.sha256(), _Seen()
    hashes, codes = [np.empty(0, np.uint64)], [np.empty(0, np.int32)]
    as_json = json.JSONEncoder(ensure_ascii=False).encode
    code_of: dict[str, int] = {}
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, unsplit) as writer:
        left = limit
        for batch in _batches(rows):
            texts = [tidy(row.text) for row in batch]
            some = hashes_of(texts)
            full = np.array([bool(text) for text in texts])
            fresh = full & seen.fresh(some)
            if left is not None and fresh.sum() >= left:
                end = int(np.flatnonzero(fresh)[left - 1]) + 1
                some, full, fresh = some[:end], full[:end], fresh[:end]
            counts["read"] += len(full)
            counts["empty"] += int((~full).sum())
            counts["repeated"] += int((full & ~fresh).sum())
            kept = [row._replace(text=text) for row, text in compress(zip(batch, texts, strict=True), fresh)]
            seen.add(some[fresh])
            hashes.append(some[fresh])
            codes.append(np.array([code_of.setdefault(row.source or "", len(code_of)) for row in kept], np.int32))
            columns = _columns(kept, labelled)
            for values in zip(*columns.values(), strict=True):
                digest.update(as_json(values).encode() + b"\n")
            writer.write_batch(pa.RecordBatch.from_pydict(columns, schema=unsplit))
            if left is not None:
                left -= len(kept)
                if not left:
                    break
    for batch in _batches(held_out):
        texts = [text for text in (tidy(row.text) for row in batch) if text]
        counts["held_out"] += len(texts)
        counts["leaked"] += int(seen.has(hashes_of(texts)).sum())
    counts["skipped"] = skipped.total()
    counts["read"] += counts["skipped"]
    del seen
    source = np.concatenate(codes)
    counts["kept"] = len(source)
    counts["by_source"] = dict(zip(code_of, np.bincount(source, minlength=len(code_of)).tolist(), strict=True))
    _deal(folder, temporary, schema, sides(np.concatenate(hashes), source))
    temporary.unlink()
    return counts, digest.hexdigest()


def features(labelled: bool) -> datasets.Features:
    """The columns of a corpus."""
    from datasets import Features, List, Value

    kinds = (List(Value("string")), List(Value("string")), Value("string"), Value("string"))
    labels = dict(zip(LABELS, kinds, strict=True)) if labelled else {}
    return Features({"text": Value("string"), "source": Value("string"), **labels, "split": Value("string")})


def _columns(rows: Sequence[Row], labelled: bool) -> dict[str, list[Any]]:
    names = ("text", "source", *(LABELS if labelled else ()))
    return {name: [getattr(row, name) for row in rows] for name in names}


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while batch := list(islice(rows, BATCH)):
        yield batch


def _deal(folder: Path, unsplit: Path, schema: Any, side: np.ndarray) -> None:
    """Copy every story into the file of its split, batch by batch."""
    import pyarrow as pa

    sinks = [pa.OSFile(str(folder / f"{name}.arrow"), "wb") for name in SPLITS]
    writers = [pa.ipc.new_stream(sink, schema) for sink in sinks]
    start = 0
    # Read rather than mapped: pages of a map would count as memory of this process.
    with pa.OSFile(str(unsplit)) as source, pa.ipc.open_stream(source) as batches:
        for batch in batches:
            here = side[start : start + batch.num_rows]
            start += batch.num_rows
            for index, (name, writer) in enumerate(zip(SPLITS, writers, strict=True)):
                chosen = batch.filter(pa.array(here == index))
                if chosen.num_rows:
                    writer.write_batch(chosen.append_column("split", pa.array([name] * chosen.num_rows)).cast(schema))
    for writer, sink in zip(writers, sinks, strict=True):
        writer.close()
        sink.close()
