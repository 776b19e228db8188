"""Stories tokenised once, into files that are mapped into memory: a corpus of any size costs no memory to hold.

A store is a folder of `tokens.npy` (all stories end to end, without separators), `offsets.npy` (where each begins, and the
end) and `store.json` (what it was made from, and checksums). It appears in one step, so that half a store is never seen.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from tinystories.tokenizer import StoryTokenizer
from workbench.errors import UserError
from workbench.files import atomic_folder, atomic_json, sweep

FORMAT = 1
TOKENS, OFFSETS, ABOUT = "tokens.npy", "offsets.npy", "store.json"
CHUNK_STORIES = 2048
"""Stories in memory at once while tokenising, about 2 MB of text."""


@dataclass(frozen=True)
class TokenStore:
    """The tokens of `len(store)` stories."""

    folder: Path
    tokens: np.ndarray
    """`[n_tokens]` uint16 or uint32, read from disk as it is used."""
    offsets: np.ndarray
    """`[stories + 1]` int64: story i is `tokens[offsets[i]:offsets[i + 1]]`."""
    tokenizer_sha256: str
    corpus_sha256: str
    checksums: tuple[int, int]
    """CRC-32 of the tokens and of the offsets, as written."""

    @staticmethod
    def open(folder: Path) -> TokenStore:
        """Open a store, whatever its size, in milliseconds.

        Raises:
            UserError: there is none, or its files do not fit together; `damage` looks at every byte besides.
        """
        if not (folder / ABOUT).is_file():
            raise UserError(f"there is no token store in {folder}; make one with tokenise.")
        try:
            about = json.loads((folder / ABOUT).read_text())
            if about["format"] != FORMAT:
                raise UserError(
                    f"the token store in {folder} has format {about['format']}, this version reads {FORMAT}; tokenise again."
                )
            files = [folder / TOKENS, folder / OFFSETS]
            tokens, offsets = (np.load(file, mmap_mode="r", allow_pickle=False) for file in files)
            fits = (
                [tokens.dtype.str, offsets.dtype.str] == [about["dtype"], "<i8"]
                and [tokens.shape, offsets.shape] == [(about["tokens"],), (about["stories"] + 1,)]
                and [file.stat().st_size for file in files] == [a.offset + a.nbytes for a in (tokens, offsets)]
                and [offsets[0], offsets[-1]] == [0, about["tokens"]]
                and bool((np.diff(offsets) > 0).all())
            )
            if not fits:
                raise ValueError("its files do not fit together")
            checksums = (int(about["crc32"]["tokens"]), int(about["crc32"]["offsets"]))
            # Plain arrays: slices of np.memmap objects cost a microsecond more each, of the same memory.
            plain = (tokens.view(np.ndarray), offsets.view(np.ndarray))
            return TokenStore(folder, *plain, str(about["tokenizer_sha256"]), str(about["corpus_sha256"]), checksums)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
            raise UserError(f"the token store in {folder} is damaged ({error}); tokenise again, which remakes it.") from error

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_tokens(self) -> int:
        """Tokens of all stories, without separators."""
        return len(self.tokens)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each story `[stories]` int64."""
        return np.diff(self.offsets)

    def story(self, i: int) -> np.ndarray:
        """Tokens `[t]` of story `i`, read-only and not copied.

        Raises:
            IndexError: no such story.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"story {i} of a store of {len(self)}")
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    def stories(self, indices: Iterable[int] | np.ndarray) -> list[np.ndarray]:
        """Tokens of several stories; errors as in `story`."""
        return [self.story(int(i)) for i in indices]

    def damage(self) -> str | None:
        """What is wrong with the bytes, or None; reads all of them (about a second per gigabyte)."""
        found = [zlib.crc32(a.data) for a in (self.tokens, self.offsets)]
        wrong = [name for name, a, b in zip((TOKENS, OFFSETS), found, self.checksums, strict=True) if a != b]
        return f"the checksum of {' and '.join(wrong)} is wrong" if wrong else None


def tokenise(texts: Iterable[str], tokenizer: StoryTokenizer, folder: Path, corpus_sha256: str) -> TokenStore:
    """Tokenise stories into a store, or open it if it was made before from the same corpus and tokenizer.

    A damaged store, or one of another corpus or tokenizer, is replaced. Memory does not grow with the corpus.
    Of several processes that want the same store, one makes it and the others wait.

    Args:
        texts: the stories in order, each read once, and none if the store is there; a split of a corpus has its own store.
        tokenizer: encodes them; no separators are stored.
        folder: of the store.
        corpus_sha256: the hash that stands for `texts`; it is trusted, so it must change whenever they do.

    Raises:
        UserError: an empty story, no story, text that is not Unicode, or a folder that holds other files.
        DiskFull: no room; a store that was there before is intact.
    """
    from filelock import FileLock

    others = {p.name for p in folder.iterdir()} - {TOKENS, OFFSETS, ABOUT} if folder.is_dir() else set[str]()
    if others or folder.is_file():
        what = f"holds other files, such as {min(others)}" if others else "is a file"
        raise UserError(f"{folder} {what}; a token store is replaced as a whole, so give it a folder of its own.")
    made = _made_before(folder, tokenizer.sha256, corpus_sha256)  # before the lock: such a store may be on a read-only disk
    if made is not None:
        return made
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        made = _made_before(folder, tokenizer.sha256, corpus_sha256)  # by another process meanwhile
        if made is not None:
            return made
        sweep(folder.parent)
        with atomic_folder(folder) as temporary:
            _write(texts, tokenizer, temporary, corpus_sha256)
        return TokenStore.open(folder)


def _made_before(folder: Path, tokenizer_sha256: str, corpus_sha256: str) -> TokenStore | None:
    try:
        store = TokenStore.open(folder)
    except UserError:
        return None
    same = (store.tokenizer_sha256, store.corpus_sha256) == (tokenizer_sha256, corpus_sha256)
    return store if same and store.damage() is None else None


def _write(texts: Iterable[str], tokenizer: StoryTokenizer, folder: Path, corpus_sha256: str) -> None:
    with _Column(folder / TOKENS, tokenizer.dtype) as tokens, _Column(folder / OFFSETS, np.dtype("<i8")) as offsets:
        offsets.append(np.zeros(1, np.int64))
        for chunk in _chunks(texts):
            encoded = tokenizer.encode_many(chunk)
            lengths = np.array([len(ids) for ids in encoded], np.int64)
            if not lengths.all():
                number = len(offsets) - 1 + int(lengths.argmin())
                raise UserError(f"story {number} (counted from 0) is empty; drop empty stories before tokenising.")
            ends = len(tokens) + np.cumsum(lengths)
            tokens.append(np.concatenate(encoded))
            offsets.append(ends)
        if not len(tokens):
            raise UserError("there are no stories to tokenise; check the corpus and its split.")
    about = {
        "format": FORMAT,
        "tokenizer_sha256": tokenizer.sha256,
        "corpus_sha256": corpus_sha256,
        "dtype": tokenizer.dtype.str,
        "stories": len(offsets) - 1,
        "tokens": len(tokens),
        "crc32": {"tokens": tokens.crc32, "offsets": offsets.crc32},
    }
    atomic_json(folder / ABOUT, about)


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    stream = iter(texts)
    while chunk := list(islice(stream, CHUNK_STORIES)):
        yield chunk


class _Column:
    """A one-dimensional .npy file written piece by piece; its header gets the length when it is closed."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._length = 0
        self.crc32 = 0
        self._file = path.open("wb")
        self._header()
        self._begin = self._file.tell()

    def __enter__(self) -> _Column:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._file.seek(0)
            self._header()
            # NumPy leaves room in the header for any length, so that it always ends at the same byte.
            assert self._file.tell() == self._begin
        finally:
            self._file.close()

    def __len__(self) -> int:
        return self._length

    def append(self, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values, self._dtype).data.cast("B")
        self._file.write(data)
        self.crc32 = zlib.crc32(data, self.crc32)
        self._length += len(values)

    def _header(self) -> None:
        what = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(cast(Any, self._file), what)
