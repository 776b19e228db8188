"""Files of stories, read one row at a time: parquet, JSON lines, text with `<|endoftext|>`, and the instruct text format.

Nothing here holds a file in memory. Rows come in the order of the file, as they stand there; what counts as a story, and what
as a repeat, is for `tinystories.building` to say.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedIOBase
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from workbench.errors import UserError

if TYPE_CHECKING:
    import pyarrow.parquet as pq

END = "<|endoftext|>"
"""Stands between two stories of a text file."""
LABELS = ("features", "words", "summary", "sentence")
"""What an instruct story was asked for; the first two are lists."""
EXTENSIONS = (".parquet", ".jsonl", ".jsonl.gz", ".txt", ".txt.gz")
LONGEST = 1_000_000
"""Characters of a story, a line or a row; more means that the file is of another kind, and would fill the memory."""
_CHUNK = 1 << 18
"""Bytes read at once."""
_PEEK = 1000
"""Rows, or lines, that are looked at to tell how a file is laid out."""
_ASKED = re.compile(r"^(Features|Words|Summary|Random sentence|Sentence):", re.MULTILINE)
_STORY = re.compile(r"^Story:", re.MULTILINE)


class Row(NamedTuple):
    """One story as its file has it."""

    text: str
    source: str | None = None
    """Where the story comes from, if the file says so."""
    features: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    summary: str | None = None
    sentence: str | None = None


def extension(path: Path) -> str | None:
    """The one of `EXTENSIONS` that a file's name ends in, in either case."""
    return next((known for known in EXTENSIONS if path.name.lower().endswith(known)), None)


def has_labels(path: Path) -> bool:
    """Whether the stories of a file come with instructions; looks at its beginning only.

    Raises:
        UserError: as `read_rows` does, as far as the beginning shows it.
    """
    kind = _kind(path)
    if kind == ".parquet":
        with _parquet(path) as file:
            return bool(set(LABELS) & set(file.schema_arrow.names)) or _is_instruct("\n".join(_peek_parquet(path, file)))
    if kind.startswith(".jsonl"):
        return any(set(LABELS) & set(row) for _, row in islice(_objects(path), _PEEK))
    return _is_instruct(next(_decoded(path), ""))


def read_rows(path: Path, skipped: Counter[str] | None = None) -> Iterator[Row]:
    """The rows of one file, empty stories included; memory does not grow with the file.

    A parquet file whose rows are the lines of a text file, as the hub has of the instruct set, is read as that text.

    Args:
        path: the file.
        skipped: where pieces of instruct text that are no records are counted, by reason (`instructions.parse_records`).

    Raises:
        UserError: an unknown extension, a damaged file, broken UTF-8 (with the byte), a bad JSON line (with its number), a table
            without a `text` column, a value of the wrong type, or something too long to be a story.
    """
    kind = _kind(path)
    if kind == ".parquet":
        yield from _read_parquet(path, skipped)
    elif kind.startswith(".jsonl"):
        yield from _read_jsonl(path)
    else:
        yield from _read_text(path, _decoded(path), skipped)


def _kind(path: Path) -> str:
    known = extension(path)
    if known is None:
        raise UserError(f"{path} is no file of stories that can be read; use one that ends in {', '.join(EXTENSIONS)}.")
    return known


@contextmanager
def _reading(path: Path) -> Generator[None]:
    """Errors of opening and unpacking, as one sentence."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is a damaged or cut gzip file ({error}); fetch or pack it again.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; mend the path or its permissions.") from None


def _open(path: Path) -> BufferedIOBase:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _broken(path: Path, offset: int) -> UserError:
    return UserError(f"{path} is not UTF-8 at byte {offset} (counted from 0); write it as UTF-8, or leave that story out.")


def _too_long(path: Path, what: str) -> UserError:
    return UserError(f"{path} has more than {LONGEST:,} characters without {what}; put {what} between its stories.")


# ---- text


def _decoded(path: Path) -> Iterator[str]:
    """The text of a file in chunks, without a byte order mark; offsets of errors are those of the unpacked file."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    before = 0
    with _reading(path), _open(path) as file:
        while True:
            chunk = file.read(_CHUNK)
            pending = len(decoder.getstate()[0])  # bytes of a character that the last chunk cut
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise _broken(path, before - pending + error.start) from None
            yield text if before else text.removeprefix("\ufeff")
            before += len(chunk)
            if not chunk:
                return


def _pieces(path: Path, chunks: Iterable[str], separator: str, name: str) -> Iterator[str]:
    """What stands between separators; the last piece only if it is more than white space."""
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(separator)
        yield from whole
        if len(rest) > LONGEST:
            raise _too_long(path, name)
    if rest.strip():
        yield rest


def _is_instruct(beginning: str) -> bool:
    return bool(_STORY.search(beginning) and _ASKED.search(beginning))


def _read_text(path: Path, chunks: Iterator[str], skipped: Counter[str] | None) -> Iterator[Row]:
    """Plain or instruct text, told apart by its first chunk."""
    first = next(chunks, "")
    chunks = chain([first], chunks)
    if not _is_instruct(first):
        yield from (Row(story) for story in _pieces(path, chunks, END, END))
        return
    from tinystories.instructions import parse_records

    for record in parse_records(_pieces(path, chunks, "\n", "a line break"), skipped):
        asked = record.instruction
        yield Row(record.story, None, tuple(asked.features), tuple(asked.words), asked.summary, asked.sentence)


# ---- JSON lines


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(place, object)` of every line that is not blank."""
    offset = 0
    with _reading(path), _open(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
            where = f"{path}, line {number}"
            if len(line) == LONGEST and not line.endswith(b"\n"):
                raise _too_long(path, "a line break")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _broken(path, offset + error.start) from None
            offset += len(line)
            if not text.strip():
                continue
            try:
                value = json.loads(text.rstrip())
                if rb"\ud" in line.lower():  # escapes may name half a character, which no file can hold
                    json.dumps(value, ensure_ascii=False).encode()
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is no JSON ({_reason(error)}); mend or remove that line.") from None
            if not isinstance(value, dict):
                raise UserError(f"{where} is no object; write {{'text': '...'}} on every line, in JSON.")
            yield where, cast(dict[str, Any], value)


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[0].lower() + error.msg[1:]}, column {error.colno}"
    return "half of a surrogate pair" if isinstance(error, UnicodeEncodeError) else "nested too deeply"


def _read_jsonl(path: Path) -> Iterator[Row]:
    labelled = has_labels(path)
    for where, row in _objects(path):
        if "text" not in row:
            raise _no_text(where, row)
        if not labelled and set(LABELS) & set(row):
            raise UserError(
                f"{where} has labels, and the first {_PEEK} lines have none; sort the labelled stories to the front."
            )
        yield _row(where, row)


# ---- parquet


@contextmanager
def _parquet(path: Path) -> Generator[pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _reading(path):
        try:
            with pq.ParquetFile(path, pre_buffer=False) as file:
                yield file
        except pa.ArrowException as error:
            raise UserError(
                f"{path} is no whole parquet file ({str(error).splitlines()[0]}); fetch or write it again."
            ) from None


def _peek_parquet(path: Path, file: pq.ParquetFile) -> list[str]:
    """The first texts of a table."""
    import pyarrow as pa

    if "text" not in file.schema_arrow.names:
        raise _no_text(str(path), file.schema_arrow.names)
    kind = file.schema_arrow.field("text").type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f"{path} has a column 'text' of type {kind}; it must hold text.")
    batch = next(file.iter_batches(batch_size=_PEEK, columns=["text"]), None)
    return [] if batch is None else [text or "" for text in _values(path, batch.to_pylist, 0, "text")]


def _values(path: Path, read: Any, first: int, column: str | None = None) -> list[Any]:
    """The rows of a batch that starts at row `first`; of one column where `column` is given."""
    try:
        rows = read()
    except UnicodeDecodeError as error:
        where = f"rows {first} and after, byte {error.start} of a text"
        raise UserError(f"{path} is not UTF-8 ({where}); write it as UTF-8, or leave that story out.") from None
    return rows if column is None else [row[column] for row in rows]


def _read_parquet(path: Path, skipped: Counter[str] | None) -> Iterator[Row]:
    with _parquet(path) as file:
        beginning = _peek_parquet(path, file)
        columns = [name for name in ("text", "source", *LABELS) if name in file.schema_arrow.names]
        labelled = set(LABELS) & set(columns)
        as_lines = any(text.strip() == END for text in beginning)
        if not labelled and (as_lines or _is_instruct("\n".join(beginning))):
            after = "\n" if as_lines else f"\n{END}\n"
            texts = (text + after for _, text in _table(path, file, ["text"], lambda _, row: row["text"] or ""))
            yield from _read_text(path, _joined(texts), skipped)
        else:
            yield from (row for _, row in _table(path, file, columns, _row))


def _joined(texts: Iterator[str]) -> Iterator[str]:
    """Short texts as chunks that are long enough to be told apart by the first."""
    while some := list(islice(texts, _PEEK)):
        yield "".join(some)


def _table(path: Path, file: pq.ParquetFile, columns: list[str], make: Any) -> Iterator[tuple[int, Any]]:
    number = 0
    for batch in file.iter_batches(batch_size=_PEEK, columns=columns):
        for row in _values(path, batch.to_pylist, number):
            yield number, make(f"{path}, row {number}", row)
            number += 1


# ---- rows with names


def _no_text(where: str, columns: Iterable[str]) -> UserError:
    return UserError(
        f"{where} has no column 'text'; it has {', '.join(sorted(columns)) or 'none'}: rename the one of the stories."
    )


def _row(where: str, values: Mapping[str, Any]) -> Row:
    """A row of a table, checked; a text that is missing is an empty one."""
    for name in ("text", "source", "summary", "sentence"):
        if not isinstance(values.get(name), str | None):
            raise UserError(f"{where}: {name} is {values[name]!r:.80}; it must be text.")
    lists: dict[str, tuple[str, ...]] = {}
    for name in ("features", "words"):
        value = values.get(name)
        entries = [] if value is None else value
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in cast(list[Any], entries)):
            raise UserError(f"{where}: {name} is {value!r:.80}; it must be a list of texts.")
        lists[name] = tuple(cast(list[str], entries))
    summary, sentence = values.get("summary"), values.get("sentence")
    return Row(values.get("text") or "", values.get("source"), lists["features"], lists["words"], summary, sentence)
