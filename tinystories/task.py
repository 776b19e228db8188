"""The task `stories`: real text as a task of the workbench, with abilities that are decided by the characters of a story."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator
from torch import Tensor

from tinystories import texts
from tinystories.features import RULES
from tinystories.instructions import LINES
from tinystories.jury import Jury
from tinystories.prompts import ASKED, QUOTES, WITHOUT, StoryCapability, feature_of, plain
from tinystories.told import Told, begin, story_of
from workbench.errors import UserError, did_you_mean
from workbench.examples import Correlation, Examples, partners
from workbench.hub import home
from workbench.protocols import Openings
from workbench.settings import Settings, read_settings

if TYPE_CHECKING:
    from tinystories.corpus import Corpus
    from tinystories.judging import FeatureScore
    from tinystories.store import TokenStore
    from tinystories.tokenizer import StoryTokenizer

PLAIN_FEATURES = {"dialogue": "Dialogue"}
"""Capabilities that any stories have, and the exact rule (`tinystories.features.RULES`) that says which stories."""
LABELLED_FEATURES = {
    "twist": "Twist",
    "foreshadowing": "Foreshadowing",
    "bad_ending": "BadEnding",
    "moral": "MoralValue",
    "conflict": "Conflict",
}
"""Those of a corpus with instructions, by its own labels."""
VERSION = 1
"""Of the rules and tokenizers behind what is kept beside a corpus; another number, and it is made anew."""


class StoriesSettings(Settings):
    """Settings of the task."""

    corpus: str = "sample"
    """`sample`, a hub id, or a local file or folder."""
    revision: str | None = None
    """Of a hub id; the newest when not given."""
    limit: int | None = Field(default=None, ge=1)
    """Keep the first so many stories; all when not given."""
    sha256: str | None = None
    """Of the corpus, where a study was planned with it; another one is refused."""
    tokenizer: int | str = 1024
    """Size of a vocabulary to be trained on the training stories, or the folder or hub id of a tokenizer."""
    context: int = Field(default=256, ge=16, le=65_536)
    """Tokens of a training window."""
    prompt: int = Field(default=48, ge=4)
    """Tokens before an answer; behind an instruction all of the story up to there."""
    lines: tuple[Literal["features", "words", "summary", "sentence"], ...] = Field(default=LINES, min_length=1)
    """Kinds of lines that instructions have. With `[features]` alone a small model soon learns to heed them."""

    @field_validator("lines")
    @classmethod
    def _asks(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        if "features" not in lines:
            raise ValueError(f"an instruction without a line of features asks for none; add 'features' to {list(lines)}")
        return tuple(kind for kind in LINES if kind in lines)


@dataclass(frozen=True)
class StoriesTask:
    """Stories, cut into tokens once; a `workbench.protocols.WritingTask`."""

    settings: StoriesSettings
    corpus: Corpus
    determined = False
    """A story may go on in many ways: the best score at a place is not 1."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> StoriesTask:
        """The task of a study's `task:` section.

        Raises:
            UserError: a setting that does not fit, a corpus that cannot be read, or one that changed since.
        """
        from tinystories.corpus import load_corpus

        read = read_settings(StoriesSettings, settings, "task stories")
        if read.prompt >= read.context:
            raise UserError(f"task stories: prompt {read.prompt} does not fit into context {read.context}; shorten the prompt.")
        corpus = load_corpus(read.corpus, revision=read.revision, limit=read.limit)
        if read.sha256 not in (None, corpus.sha256):
            raise UserError(
                f"task stories: corpus {read.corpus!r} changed: its sha256 is {corpus.sha256[:12]}, it was {str(read.sha256)[:12]}; "
                "give the study another name, or bring the old stories back."
            )
        return cls(read, corpus)

    @property
    def resolved(self) -> dict[str, Any]:
        """Settings that make this task again: the corpus by its hash, so that changed stories make new runs."""
        kept = self.settings.model_dump(exclude_defaults=True)
        return {"kind": "stories", **kept, "corpus": self.settings.corpus, "sha256": self.corpus.sha256}

    @cached_property
    def tokenizer(self) -> StoryTokenizer:
        """The tokenizer; one of our own is trained once and kept beside the corpus."""
        from tinystories.tokenizer import load_tokenizer, train_bpe

        wanted = self.settings.tokenizer
        if isinstance(wanted, str):
            return load_tokenizer(wanted)
        folder = self._kept / f"tokenizer-{wanted}"
        whole = (folder / "tokenizer.json").is_file()  # written last; two processes at once write the same bytes
        return load_tokenizer(folder) if whole else train_bpe(self.corpus.texts("train"), wanted, folder)

    def check_tokenizer(self, folder: Path, rows: int) -> None:
        """Refuse a folder whose tokenizer writes some training stories with other ids; without one the rows must fit the ids.

        Raises:
            UserError: other ids, a tokenizer that cannot be opened, or more rows than padding of the vocabulary explains.
        """
        from tinystories.tokenizer import check_fits, load_tokenizer

        check_fits(self.tokenizer, rows)
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            return
        other = load_tokenizer(folder)
        if other.sha256 == self.tokenizer.sha256:
            return
        some = list(islice(self.corpus.texts("train"), 16))
        if any(not np.array_equal(a, b) for a, b in zip(*(t.encode_many(some) for t in (self.tokenizer, other)), strict=True)):
            raise UserError(
                f"task.tokenizer {self.settings.tokenizer!r} writes stories with other ids than the tokenizer in {folder}, "
                f"which the model was trained with; write tokenizer: {folder}"
            )

    @property
    def _kept(self) -> Path:
        """Where what is made of the corpus once is kept."""
        folder = home() / "revival" / "made" / f"{self.corpus.sha256[:16]}-{VERSION}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.settings.tokenizer if isinstance(self.settings.tokenizer, int) else self.tokenizer.vocab_size

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        return self.settings.context

    @property
    def features(self) -> Mapping[str, str]:
        """Capabilities that have stories of their own, and the name of the feature in an instruction."""
        return {**PLAIN_FEATURES, **LABELLED_FEATURES} if self.corpus.labelled else PLAIN_FEATURES

    @property
    def capabilities(self) -> tuple[str, ...]:
        """`dialogue`: whether a quotation opens. `no_dialogue`: any token of a story without one. `ending`: where a story ends.

        `asked_...`: behind the instruction of its story. A feature that only labels tell is measured at any token of its stories.
        """
        known = [name for feature in self.features for name in (feature, WITHOUT + feature)]
        return (*known, *(ASKED + name for name in known), "ending")

    def family(self, capability: str) -> str:
        """Every capability is a family of its own, with and without an instruction."""
        if capability not in self.capabilities:
            raise UserError(f"the task has no capability {capability!r}{did_you_mean(capability, self.capabilities)}")
        return plain(capability)

    def check_examples(self, capability: str, n: int) -> None:
        """Nothing, where so many test examples of a capability can be drawn.

        Raises:
            UserError: there are fewer.
        """
        self.capability(capability).examples(n, 0)

    def describe(self, tokens: Sequence[int]) -> str:
        """Tokens as the text that they stand for."""
        return self.tokenizer.decode(list(tokens))

    def capability(self, name: str, correlation: Correlation | None = None) -> StoryCapability:
        """A source of examples.

        Raises:
            UserError: an unknown capability, or a correlation, which stories have none of.
        """
        self.family(name)
        if correlation is not None:
            raise UserError(f"stories know no correlation with {correlation.partner!r}; drop it.")
        return StoryCapability(self, name)

    def store(self, split: str) -> TokenStore:
        """The stories of a split as tokens, cut once and kept beside the corpus."""
        from tinystories.store import tokenise

        name = f"tokens-{self.tokenizer.sha256[:12]}-{split}"
        return tokenise(self.corpus.texts(split), self.tokenizer, self._kept / name, f"{self.corpus.sha256} {split}")

    def told(self, split: str, seed: int, length: int | None = None) -> Told:
        """The instructions of the stories of a split; one takes half of a row at most, which is the context or shorter."""
        return Told(self.corpus, self.tokenizer, split, seed, (length or self.context) // 2, self.settings.lines)

    def having(self, split: str, capability: str) -> Int[np.ndarray, " k"]:
        """Numbers of the stories of a split that a capability speaks of.

        Raises:
            UserError: there is none.
        """
        if capability == "ending":
            return np.arange(len(self.corpus.split(split)))
        feature, lacks = feature_of(capability), plain(capability).startswith(WITHOUT)
        fits = self._labels(split, feature) != lacks
        if capability.startswith(ASKED) and self.corpus.labelled:  # what is asked must be what the text has
            fits &= self._told_of(split, feature) != lacks
        chosen = np.nonzero(fits)[0]
        if not len(chosen):
            raise UserError(
                f"no story of corpus {self.corpus.name!r} ({split}) is one for {capability!r}; take another corpus or capability."
            )
        return chosen

    def _labels(self, split: str, feature: str) -> Bool[np.ndarray, " n"]:
        name = self.features[feature]
        if feature in LABELLED_FEATURES:
            return self._told_of(split, feature)
        file = self._kept / f"labels-{feature}-{split}.npy"
        if file.exists():
            return np.load(file, allow_pickle=False)
        rule = RULES[name].of
        found = np.fromiter((rule(text) for text in self.corpus.texts(split)), dtype=np.bool_)
        _save(file, found)
        return found

    def _told_of(self, split: str, feature: str) -> Bool[np.ndarray, " n"]:
        """Whether a story's instruction names the feature, in a corpus that brings instructions."""
        name = self.features[feature]
        return np.array([name in found for found in self.corpus.split(split)["features"]], dtype=np.bool_)

    @cached_property
    def openers(self) -> Int[Tensor, " vocab"]:
        """Per token id, 1 where it holds a double quotation mark, which no other token can open a quotation with."""
        return torch.tensor([int(bool(QUOTES & set(self.tokenizer.token_text(i)))) for i in range(self.vocab_size)])

    @property
    def end(self) -> int:
        """The token that ends a story."""
        return self.tokenizer.eos_id

    @property
    def padding(self) -> int:
        """A token that stands in no story."""
        return self.tokenizer.pad_id

    def begin(self, text: str) -> Int[np.ndarray, " t"]:
        """Tokens of a text to be gone on with, BOS first; errors as in `tinystories.told.begin`."""
        return begin(text, self.tokenizer)

    def without_instruction(self, text: str) -> str:
        """What follows `Story: ` where a text begins with instruction lines; else all of it."""
        return story_of(text)

    def openings(self, capability: str, n: int, seed: int, tokens: int, more: int) -> Openings:
        """Beginnings of test stories none of which shows the feature yet; see `tinystories.texts.openings`."""
        return texts.openings(self, capability, n, seed, tokens, more)

    def kinds(self, capability: str) -> tuple[str, ...]:
        """Kinds of whole stories that tell what a capability's loss depends on; see `tinystories.texts.kinds`."""
        return texts.kinds(capability)

    def feature(self, capability: str) -> str:
        """The label of a whole story that a capability speaks of: `Dialogue` for `asked_no_dialogue`.

        Raises:
            UserError: nothing tells which stories those are.
        """
        feature = feature_of(capability)
        if feature not in self.features:
            raise UserError(f"nothing tells which texts show {capability!r}{did_you_mean(capability, self.features)}")
        return self.features[feature]

    def hints(self, capability: str, pieces: Sequence[str]) -> Bool[np.ndarray, " n"]:
        """Pieces that give the feature away: the rule holds of them alone, or, for dialogue, a quotation mark stands in them."""
        name = self.feature(capability)
        marks = texts.QUOTES if name == "Dialogue" else frozenset[str]()
        rule = RULES[name].of if name in RULES else None
        return np.array([bool(marks & set(x)) or (rule is not None and rule(x)) for x in pieces], dtype=np.bool_)

    def whole(self, kind: str | None, n: int, seed: int, split: str = "test") -> Examples:
        """Whole stories of a kind (None: any), to be predicted; see `tinystories.texts.whole`."""
        return texts.whole(self, kind, n, seed, split)

    @property
    def rules(self) -> Mapping[str, str]:
        """The statement of every rule."""
        return {name: rule.statement for name, rule in RULES.items()}

    def marks(self, written: Sequence[str]) -> Mapping[str, Bool[np.ndarray, " n"]]:
        """What the rules say of texts, rule by rule; `tinystories.features.RULES` states them."""
        return {name: np.array([rule.of(text) for text in written], dtype=np.bool_) for name, rule in RULES.items()}

    @cached_property
    def _jury(self) -> Jury:
        return Jury(self.corpus, self.features, PLAIN_FEATURES, self._kept, lambda feature: self._labels("train", feature))

    def shows(self, capability: str, written: Sequence[str]) -> Float[np.ndarray, " n"]:
        """1.0 where a text has the feature (for `no_...`: lacks it); errors as in `tinystories.jury.Jury`."""
        return self._jury.shows(capability, written)

    def judged_by(self, capability: str) -> str:
        """Who says so, and how far to trust it, in a clause."""
        return self._jury.judged_by(capability)

    def judged(self, capability: str, written: Sequence[str], seed: int) -> tuple[FeatureScore, ...]:
        """The share of texts that show it by every judge that there is, the one that decides first."""
        return self._jury.judged(capability, written, seed)

    def counterfactual(self, capability: str, examples: Examples, seed: int) -> Examples:
        """For `dialogue` prompts as long after which it is the other way about; for others another prompt each."""
        if plain(capability) not in PLAIN_FEATURES:
            return partners(examples, seed)
        return StoryCapability(self, capability).counterfactual(examples, seed)


def _save(file: Path, values: np.ndarray) -> None:
    """Whole or not at all, since several processes may come here at once."""
    import os

    half = file.with_name(f"{file.name}.{os.getpid()}.npy")
    np.save(half, values)
    half.replace(file)
