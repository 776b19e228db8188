"""Byte-level BPE word by word: the library's ids, ten times as fast.

A byte-level tokenizer cuts a text into words by GPT-2's regular expression [Radford+19, encoder.py] and merges inside each word
alone. What a word becomes can therefore be looked up, and stories use few different words. A word that was never seen goes
through the library's own model. Texts with characters outside `ALPHABET` (an emoji, say) are left to the library, because
Python's and its regular expressions need not agree on them.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_WORDS = 1 << 18
"""Words that are remembered: far more than stories use, few enough (about 50 MB) for a corpus of anything."""
LONGEST_WORD = 64
"""Characters of the longest word that is remembered."""
ALPHABET = frozenset(
    chr(code)
    for first, end in ((0x0, 0x250), (0x2DC, 0x2DD), (0x2010, 0x2028), (0x20AC, 0x20AD), (0x2122, 0x2123))
    for code in range(first, end)
)
"""Latin letters, signs, and the punctuation of English and of its usual damage; the same in every version of Unicode."""
_SPACES = "\t\n\v\f\r \x85\xa0"  # Unicode's White_Space; Python's \s takes \x1c to \x1f as well


def _characters(first_letter: str) -> str:
    """The characters of `ALPHABET` in one of Unicode's general categories, for use within brackets."""
    return "".join(c for c in sorted(ALPHABET) if unicodedata.category(c).startswith(first_letter))


_L, _N = _characters("L"), _characters("N")
_WORDS = re.compile(
    f"'(?:[stmd]|re|ve|ll)| ?[{_L}]+| ?[{_N}]+| ?[^{_SPACES}{_L}{_N}]+|[{_SPACES}]+(?![^{_SPACES}])|[{_SPACES}]+"
)
_FOREIGN = re.compile(f"[^{re.escape(''.join(sorted(ALPHABET)))}]")


class _Memory(dict[str, bytes]):
    """The ids of words, as bytes; `learn` gives those of a new one."""

    def __init__(self, learn: Callable[[str], bytes]) -> None:
        super().__init__()
        self._learn = learn

    def __missing__(self, word: str) -> bytes:
        found = self._learn(word)
        if len(self) < MOST_WORDS and len(word) <= LONGEST_WORD:
            self[word] = found
        return found


class Wordwise:
    """Encodes with a memory of words; make it with `wordwise`, which knows for which tokenizers that is exact."""

    def __init__(self, backend: Tokenizer, dtype: np.dtype[Any], prefix_space: bool) -> None:
        from tokenizers.pre_tokenizers import ByteLevel

        self._prefix_space = prefix_space
        self._dtype = dtype
        as_bytes = ByteLevel(add_prefix_space=False, use_regex=False)
        model = backend.model

        def learn(word: str) -> bytes:
            spelled = "".join(part for part, _ in as_bytes.pre_tokenize_str(word))
            return np.array([token.id for token in model.tokenize(spelled)], dtype).tobytes()

        self._ids_of = _Memory(learn).__getitem__

    def encode(self, text: str) -> np.ndarray | None:
        """Ids `[t]` (read-only), or None for a text that the library has to encode."""
        if not text.isascii() and _FOREIGN.search(text):
            return None
        if self._prefix_space and text and not text.startswith(" "):
            text = " " + text
        return np.frombuffer(b"".join(map(self._ids_of, _WORDS.findall(text))), self._dtype)


def wordwise(backend: Tokenizer, dtype: np.dtype[Any]) -> Wordwise | None:
    """The fast encoder of a tokenizer, or None where going word by word could give other ids than the library.

    Args:
        backend: a tokenizer that reads the text of special tokens as plain text.
        dtype: of the ids.
    """
    parts = json.loads(backend.to_str())
    model, cut = parts["model"], parts["pre_tokenizer"] or {}
    exact = (
        model["type"] == "BPE"
        and not model.get("dropout")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and parts["normalizer"] is None
        and cut.get("type") == "ByteLevel"
        and cut.get("use_regex", True)
        and all(token["special"] for token in parts["added_tokens"])
    )
    return Wordwise(backend, dtype, bool(cut["add_prefix_space"])) if exact else None
