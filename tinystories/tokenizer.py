"""Tokenizers of stories: our own byte-level BPE, GPT-2's, that of stories260K, any fast one of Hugging Face.

Encoding never adds a special token and never makes one: a story that holds the characters `<|eos|>` is plain text, and
becomes the tokens of those seven characters. Beginning, end and padding are put in by `tinystories.packing`, by id.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tinystories.wordwise import Wordwise, wordwise
from workbench.errors import UserError, did_you_mean
from workbench.files import atomic_text
from workbench.seeds import numpy_generator

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
"""The special tokens of our own tokenizers; their ids are 0, 1 and 2."""
SMALLEST, LARGEST = 512, 8192
"""Vocabularies that `train_bpe` makes; 256 bytes and 3 special tokens are in each."""
_ENDED_BY = {"5adcdc54ac73ce90": "<s>"}
"""Vocabularies (by the first digits of their hash) whose stories ended otherwise than their own settings say: in llama2.c's
512 tokens, those of stories260K, `<s>` stands between stories and `</s>` was never trained."""
_ROOM = 0.02
"""Rows of an embedding beyond the tokenizer's ids that count as padding of the table (the largest seen is phi-2's 1.8 %)."""
_MULTIPLE = 128


@dataclass(frozen=True, eq=False)
class StoryTokenizer:
    """A tokenizer with the three ids that stories need; made by `load_tokenizer` or `train_bpe`."""

    source: str
    """The folder or hub name that it was loaded from."""
    vocab_size: int
    """The highest id plus one: rows that a model's embedding needs."""
    bos_id: int
    """Stands before every story."""
    eos_id: int
    """Ends a story when generating; may be `bos_id`."""
    pad_id: int
    """Never stands in a text, and neither begins nor ends one."""
    sha256: str
    """Of all that decides which ids a text gets: vocabulary, merges, normaliser, cut into words."""
    _backend: Tokenizer
    _unseen: frozenset[int]
    """Ids that no text can have."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest of uint16 and uint32 that holds every id."""
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")

    @cached_property
    def _wordwise(self) -> Wordwise | None:
        return wordwise(self._backend, self.dtype)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens; errors as in `encode_many`."""
        return self.encode_many([text])[0].tolist()

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids `[t]` of each text in `dtype`, read-only, without special tokens.

        Raises:
            UserError: a text that is not valid Unicode, or one that the tokenizer would read as a special token.
        """
        _check_unicode(texts)
        fast = self._wordwise
        found: list[np.ndarray | None] = [None] * len(texts) if fast is None else [fast.encode(text) for text in texts]
        rest = [i for i, ids in enumerate(found) if ids is None]
        encodings = self._backend.encode_batch_fast([texts[i] for i in rest], add_special_tokens=False) if rest else []
        for i, encoding in zip(rest, encodings, strict=True):
            ids = np.array(encoding.ids, self.dtype)
            ids.flags.writeable = False
            special = self._unseen.intersection(encoding.ids)
            if special:
                name = self._backend.id_to_token(min(special))
                raise UserError(
                    f"the text that begins {texts[i][:40]!r} holds {name!r}, which this tokenizer reads as a special token; "
                    "remove it from the text, or use another tokenizer."
                )
            found[i] = ids
        return cast(list[np.ndarray], found)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids; special tokens and padding have none.

        Decode a continuation together with what it continues: some tokenizers drop the space that a text begins with.

        Raises:
            UserError: an id that the tokenizer does not have.
        """
        plain = [int(i) for i in ids]
        self._check_ids(plain)
        unseen = self._unseen
        return self._backend.decode([i for i in plain if i not in unseen], skip_special_tokens=True)

    def token_text(self, token: int) -> str:
        """What one token adds to a text (with its leading space), or the name of a special token.

        A token that is a part of a character gives the replacement character U+FFFD.

        Raises:
            UserError: an id that the tokenizer does not have.
        """
        self._check_ids([int(token)])
        anchor = self._anchor  # some decoders drop a space at the beginning of a text, so no token is decoded alone
        before = self._backend.decode([anchor], skip_special_tokens=False)
        return self._backend.decode([anchor, int(token)], skip_special_tokens=False).removeprefix(before)

    @cached_property
    def _anchor(self) -> int:
        return self.encode("a")[-1]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Characters `[start, end)` that each token of `encode(text)` stands for, its leading space included.

        Tokens that share a character all have it in their span; a token that only stands for the space that some
        tokenizers put before a text has the span of what follows, or an empty one.
        """
        _check_unicode([text])
        return [(int(a), int(b)) for a, b in self._backend.encode(text, add_special_tokens=False).offsets]

    def _check_ids(self, ids: Sequence[int]) -> None:
        wrong = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if wrong is not None:
            raise UserError(
                f"id {wrong} is not one of the tokenizer {self.source} (0 to {self.vocab_size - 1}); it belongs to another one."
            )


def _check_unicode(texts: Sequence[str]) -> None:
    for text in texts:
        if text.isascii():
            continue
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the text that begins {text[:40]!r} holds {text[error.start]!r} at character {error.start}, half a surrogate pair "
                "and no Unicode; read the corpus as UTF-8, and repair or drop that story."
            ) from None


def check_fits(tokenizer: StoryTokenizer, rows: int) -> None:
    """Whether a tokenizer can be that of a model whose embedding has `rows` rows.

    A table may be padded: by up to 2 %, and up to the next multiple of 128.

    Raises:
        UserError: ids without a row, or so many rows without an id that the model was made with another tokenizer.
    """
    size = tokenizer.vocab_size
    most = math.ceil(size * (1 + _ROOM) / _MULTIPLE) * _MULTIPLE
    if not size <= rows <= most:
        raise UserError(
            f"the tokenizer {tokenizer.source} has ids up to {size - 1}, the model has {rows} rows in its embedding; "
            "use the tokenizer that the model was trained with."
        )


def load_tokenizer(name_or_folder: str | Path, eos: str | None = None) -> StoryTokenizer:
    """A tokenizer from a folder (ours, or with `vocab.json` and `merges.txt`, or any of Hugging Face's) or by its hub name.

    No code that comes with a tokenizer is run.

    Args:
        name_or_folder: `HF_HOME` and `HF_HUB_OFFLINE` are honoured for hub names.
        eos: the token that ends a story, where the tokenizer's own is not the one that the model was trained with.

    Raises:
        UserError: nothing there, no network, no fast tokenizer, or no token that can begin, end or pad a story.
    """
    from tokenizers import Tokenizer

    source = str(name_or_folder)
    opened = _open(name_or_folder)
    inner = getattr(opened, "backend_tokenizer", None)
    if not isinstance(inner, Tokenizer):
        raise UserError(f"the tokenizer {source} has no fast form (tokenizer.json); convert it with transformers first.")
    backend = Tokenizer.from_str(inner.to_str())  # a copy: what is set here is set for nobody else
    backend.encode_special_tokens = True  # as plain text
    backend.post_processor = None  # pyright: ignore[reportAttributeAccessIssue]
    backend.no_padding()
    backend.no_truncation()
    parts = json.loads(backend.to_str())
    vocabulary = backend.get_vocab(with_added_tokens=True)
    by_text = hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()
    if eos is None:
        eos = next((token for start, token in _ENDED_BY.items() if by_text.startswith(start)), None)
    elif eos not in vocabulary:
        special = [token["content"] for token in parts["added_tokens"]]
        raise UserError(f"eos is {eos!r}, which is no token of {source}{did_you_mean(eos, special)}")
    ids: list[int | None] = [opened.bos_token_id, opened.eos_token_id if eos is None else vocabulary[eos]]
    begin, end = (ids[0] if ids[0] is not None else ids[1]), (ids[1] if ids[1] is not None else ids[0])
    if begin is None or end is None:
        raise UserError(f"the tokenizer {source} names no token that begins or ends a text; name one with eos='...'.")
    pad = _padding(parts, vocabulary, {begin, end}, opened.unk_token_id, opened.pad_token_id)
    if pad is None:
        raise UserError(
            f"the tokenizer {source} has no token that is free for padding; add one, such as {PAD!r}, and a row for it."
        )
    return StoryTokenizer(
        source, max(vocabulary.values()) + 1, begin, end, pad, _digest(parts, vocabulary), backend, frozenset({begin, end, pad})
    )


def _open(name_or_folder: str | Path) -> Any:
    """Hugging Face's tokenizer object."""
    from transformers import AutoTokenizer, GPT2Tokenizer

    folder = Path(name_or_folder).expanduser()
    text = str(name_or_folder)
    local = bool(text) and folder.is_dir()
    if not local and (isinstance(name_or_folder, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1 or not text):
        raise UserError(f"there is no tokenizer folder {text!r}; give an existing folder or a name of the Hugging Face hub.")
    bare = local and not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "config.json"))
    if bare and not all((folder / name).exists() for name in ("vocab.json", "merges.txt")):
        raise UserError(f"the folder {text} holds no tokenizer; it needs tokenizer.json, or vocab.json and merges.txt.")
    kind = GPT2Tokenizer if bare else AutoTokenizer
    try:
        return kind.from_pretrained(str(folder) if local else text, trust_remote_code=False)
    except Exception as error:  # whatever the two libraries raise on files and hubs that are not theirs to mend
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if local:
            raise UserError(
                f"the tokenizer in {text} cannot be opened ({reason}); save it again with save_pretrained."
            ) from error
        raise UserError(
            f"{text!r} is no folder here and could not be had from the Hugging Face hub ({reason}); "
            "give the folder of a tokenizer that you have, or connect once to download it."
        ) from error


def _padding(parts: Any, vocabulary: dict[str, int], ends: set[int], unknown: int | None, own: int | None) -> int | None:
    """An id that no text contains: the tokenizer's padding, else an idle special token, else the byte 0xFF, which is in no UTF-8."""
    taken = ends if unknown is None else ends | {unknown}
    free = sorted(token["id"] for token in parts["added_tokens"] if token["special"] and token["id"] not in taken)
    if own in free:
        return own
    if free:
        return free[0]
    return vocabulary.get("ÿ" if '"ByteLevel"' in json.dumps(parts["pre_tokenizer"]) else "<0xFF>")


def _digest(parts: Any, vocabulary: dict[str, int]) -> str:
    model = parts["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", ())]
    scores = model["vocab"] if isinstance(model["vocab"], list) else None
    what = [sorted(vocabulary.items()), merges, scores, parts["normalizer"], parts["pre_tokenizer"]]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def train_bpe(texts: Iterable[str], vocab_size: int, folder: Path, seed: int = 0, limit: int | None = None) -> StoryTokenizer:
    """Train byte-level BPE [Radford+19] and save it as a Hugging Face tokenizer folder; equal input, equal bytes.

    Args:
        texts: stories; read once.
        vocab_size: 512 to 8192, the three special tokens and the 256 bytes included.
        folder: where `tokenizer.json` and `tokenizer_config.json` go; made if absent.
        seed: draws which texts are used, where there is a limit.
        limit: texts to train on at most; they are held in memory, and without it all are used and none is held.

    Raises:
        UserError: a vocabulary outside the range, or texts too small for it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if not SMALLEST <= vocab_size <= LARGEST:
        raise UserError(f"vocab_size is {vocab_size}; a vocabulary of stories has {SMALLEST} to {LARGEST} tokens.")
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; train the tokenizer on at least one text, or leave it out.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts if limit is None else _sample(texts, limit, seed), trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise UserError(
            f"the texts give {tokenizer.get_vocab_size()} tokens (pairs that occur twice or more), fewer than vocab_size "
            f"{vocab_size}; train on more stories, or ask for a smaller vocabulary."
        )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    atomic_text(folder / "tokenizer_config.json", json.dumps(settings, indent=1) + "\n")
    atomic_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    return load_tokenizer(folder)


def _sample(texts: Iterable[str], limit: int, seed: int) -> list[str]:
    """`limit` of the texts, each equally likely, in one pass (reservoir sampling)."""
    stream = iter(texts)
    kept = list(islice(stream, limit))
    rng = numpy_generator(seed, "tokenizer texts")
    seen = len(kept)
    while block := list(islice(stream, 4096)):
        places = rng.integers(0, np.arange(seen + 1, seen + 1 + len(block)))  # the i-th text takes one of i places, if kept
        for text, place in zip(block, places.tolist(), strict=True):
            if place < limit:
                kept[place] = text
        seen += len(block)
    return kept
