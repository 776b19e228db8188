"""The task `stories`: real text as a task of the workbench, with abilities that are decided by the characters of a story."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from tinystories.features import RULES, quotations
from tinystories.packing import single
from workbench.errors import UserError, did_you_mean
from workbench.examples import Correlation, Examples, partners
from workbench.hub import home
from workbench.protocols import Openings
from workbench.seeds import numpy_generator
from workbench.settings import Settings, read_settings

if TYPE_CHECKING:
    from tinystories.corpus import Corpus
    from tinystories.store import TokenStore
    from tinystories.tokenizer import StoryTokenizer

FEATURES = {"dialogue": "Dialogue"}
"""Capabilities that have stories of their own, and the rule (`tinystories.features.RULES`) that says which."""
QUOTES = frozenset('"“”')
"""No opening that a model goes on from may have begun to speak."""
VERSION = 1
"""Of the rules and tokenizers behind what is kept beside a corpus; another number, and it is made anew."""
WITHOUT = "no_"
"""`no_dialogue`: the stories without it."""


class StoriesSettings(Settings):
    """Settings of the task."""

    corpus: str = "sample"
    """`sample`, a hub id, or a local file or folder."""
    revision: str | None = None
    """Of a hub id; the newest when not given."""
    sha256: str | None = None
    """Of the corpus, where a study was planned with it; another one is refused."""
    tokenizer: int | str = 1024
    """Size of a vocabulary to be trained on the training stories, or the folder or hub id of a tokenizer."""
    context: int = Field(default=256, ge=16, le=65_536)
    """Tokens of a training window."""
    prompt: int = Field(default=48, ge=4)
    """Tokens before an answer."""


@dataclass(frozen=True)
class StoriesTask:
    """Stories, cut into tokens once; a `workbench.protocols.Task`."""

    settings: StoriesSettings
    corpus: Corpus

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
        corpus = load_corpus(read.corpus, revision=read.revision)
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
        texts = list(islice(self.corpus.texts("train"), 16))
        if any(not np.array_equal(a, b) for a, b in zip(*(t.encode_many(texts) for t in (self.tokenizer, other)), strict=True)):
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
    def capabilities(self) -> tuple[str, ...]:
        """`dialogue`: where a quotation opens. `no_dialogue`: any token of a story without one. `ending`: where a story ends."""
        return (*FEATURES, *(WITHOUT + name for name in FEATURES), "ending")

    def family(self, capability: str) -> str:
        """Every capability is a family of its own."""
        if capability not in self.capabilities:
            raise UserError(f"the task has no capability {capability!r}{did_you_mean(capability, self.capabilities)}")
        return capability

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

    def having(self, split: str, capability: str) -> Int[np.ndarray, " k"]:
        """Numbers of the stories of a split that a capability speaks of.

        Raises:
            UserError: there is none.
        """
        if capability == "ending":
            return np.arange(len(self.corpus.split(split)))
        feature = capability.removeprefix(WITHOUT)
        found = self._labels(split, feature)
        chosen = np.nonzero(found != capability.startswith(WITHOUT))[0]
        if not len(chosen):
            raise UserError(
                f"no story of corpus {self.corpus.name!r} ({split}) is one for {capability!r}; take another corpus or capability."
            )
        return chosen

    def _labels(self, split: str, feature: str) -> Bool[np.ndarray, " n"]:
        file = self._kept / f"labels-{feature}-{split}.npy"
        if file.exists():
            return np.load(file, allow_pickle=False)
        rule = RULES[FEATURES[feature]].of
        found = np.fromiter((rule(text) for text in self.corpus.texts(split)), dtype=np.bool_)
        _save(file, found)
        return found

    @property
    def end(self) -> int:
        """The token that ends a story."""
        return self.tokenizer.eos_id

    @property
    def padding(self) -> int:
        """A token that stands in no story."""
        return self.tokenizer.pad_id

    def openings(self, capability: str, n: int, seed: int, tokens: int, more: int) -> Openings:
        """Beginnings of test stories of every kind, BOS first, none of which shows the feature yet; once more where they run out.

        Raises:
            UserError: a capability without stories of its own, or no test story that is so long.
        """
        rule = self._rule(capability)
        stories, code = self.corpus.split("test"), self.tokenizer
        prompts: list[Int[np.ndarray, " t"]] = []
        written: list[str] = []
        for story in numpy_generator(seed, "stories", "openings").permutation(len(stories)):
            ids = code.encode(stories[int(story)]["text"])
            if len(prompts) == n:
                break
            begun = code.decode(ids[:tokens])
            if len(ids) > tokens and not rule(begun) and QUOTES.isdisjoint(begun):
                prompts.append(np.array([code.bos_id, *ids[:tokens]], dtype=np.int64))
                written.append(code.decode(ids[: tokens + more]))
        if not prompts:
            raise UserError(
                f"no test story of corpus {self.corpus.name!r} has an opening of {tokens} tokens; take shorter ones, or a larger corpus."
            )
        return Openings(tuple(prompts[i % len(prompts)] for i in range(n)), tuple(written))

    def shows(self, capability: str, texts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """1.0 where a text has the feature by its exact rule."""
        rule = self._rule(capability)
        return np.array([float(rule(text)) for text in texts])

    def judged_by(self, capability: str) -> str:
        """The rule, in a clause."""
        self._rule(capability)
        return f"an exact rule: {RULES[FEATURES[capability]].statement}"

    def _rule(self, capability: str) -> Callable[[str], bool]:
        if capability not in FEATURES:
            raise UserError(f"no rule says which texts show {capability!r}{did_you_mean(capability, FEATURES)}")
        return RULES[FEATURES[capability]].of

    def whole(self, capability: str, n: int, seed: int) -> Examples:
        """`n` whole test stories that a capability speaks of, or all that there are, cut at the context; loss on every token.

        Raises:
            UserError: there is none.
        """
        chosen = self.having("test", capability)
        order = numpy_generator(seed, "stories", "whole", capability).permutation(chosen)[:n]
        code = self.tokenizer
        rows = single(self.store("test"), order, self.context, code.pad_id, code.bos_id, code.eos_id)
        return to_predict(rows.tokens, self.vocab_size, rows.loss_mask, rows.attention_mask)

    def counterfactual(self, capability: str, examples: Examples, seed: int) -> Examples:
        """For `dialogue` prompts as long that end in a comma after which nobody speaks; for others another prompt each."""
        if capability not in FEATURES:
            return partners(examples, seed)
        return StoryCapability(self, capability, spoken=False).examples(len(examples), seed, "counterfactual")


def _save(file: Path, values: np.ndarray) -> None:
    """Whole or not at all, since several processes may come here at once."""
    import os

    half = file.with_name(f"{file.name}.{os.getpid()}.npy")
    np.save(half, values)
    half.replace(file)


def _opening(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Tokens that hold the first character of a quotation."""
    starts = [start for start, _ in quotations(text)]
    return [i for i, (a, b) in enumerate(spans) for start in starts if a <= start < b]


def _unspoken(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Tokens after a comma that open no quotation and stand in none."""
    inside = np.zeros(len(text) + 1, dtype=bool)
    for start, end in quotations(text):
        inside[start:end] = True
    return [
        i for i in range(1, len(spans)) if text[: spans[i][0]].endswith(",") and not inside[spans[i][0] : spans[i][1]].any()
    ]


@dataclass(frozen=True)
class StoryCapability:
    """One capability; a `workbench.examples.Capability`. A prompt is so many tokens of a story, the answer its next token."""

    task: StoriesTask
    name: str
    spoken: bool = True

    def examples(self, n: int, seed: int, split: str = "test") -> Examples:
        """`n` prompts and what follows; `test` draws on the test stories, every other split on the training stories.

        Stories come in seeded order, one place of each; where they run out, a second place of each, and so on.
        All prompts are `settings.prompt` tokens long and need no padding. Roles: `text`, and `request`, the last token.

        Raises:
            UserError: `n` is below 1, or the stories have fewer such places.
        """
        if n < 1:
            raise UserError(f"{n} examples of {self.name!r} were asked for; ask for at least 1.")
        rows = self._rows(n, seed, split)
        tokens = torch.from_numpy(np.stack([row for _, row in rows]))
        length = tokens.shape[1] - 1
        place = torch.arange(length + 1).expand_as(tokens)
        return Examples(
            tokens=tokens,
            loss_mask=place == length,
            answer_position=torch.full((n,), length - 1),
            answer=tokens[:, -1:].clone(),
            candidates=torch.unique(tokens[:, -1]),
            labels={"story": torch.tensor([story for story, _ in rows])},
            roles={"text": place < length, "request": place == length - 1},
        )

    def _rows(self, n: int, seed: int, split: str) -> list[tuple[int, Int[np.ndarray, " t"]]]:
        """`(number of the story, prompt and answer)`."""
        task, side = self.task, "test" if split == "test" else "train"
        stories = task.having(side, self.name)
        rng = numpy_generator(seed, "stories", split, self.name, str(self.spoken))
        order = stories[rng.permutation(len(stories))]
        found: list[tuple[int, Int[np.ndarray, " t"]]] = []
        later: list[tuple[int, list[Int[np.ndarray, " t"]]]] = []
        for story in order:
            if len(found) == n:
                return found
            if windows := list(self._windows(side, int(story), rng)):
                found.append((int(story), windows[0]))
                later.append((int(story), windows[1:]))
        depth = 0
        while len(found) < n and any(len(rest) > depth for _, rest in later):
            found += [(story, rest[depth]) for story, rest in later if len(rest) > depth]
            depth += 1
        if len(found) < n:
            raise UserError(
                f"{n} examples of {self.name!r} were asked for, and the {side} stories of corpus {task.corpus.name!r} have "
                f"{len(found)} places for it with {task.settings.prompt} tokens before; ask for fewer, or take a larger corpus."
            )
        return found[:n]

    def _windows(self, side: str, story: int, rng: np.random.Generator) -> Iterator[Int[np.ndarray, " t"]]:
        """Prompts with their answers at the places of a story, in random order."""
        task, length = self.task, self.task.settings.prompt
        text = task.corpus.split(side)[story]["text"]
        ids = np.array([task.tokenizer.bos_id, *task.tokenizer.encode(text), task.tokenizer.eos_id])
        if self.name in FEATURES:
            spans = task.tokenizer.offsets(text)
            places = [i + 1 for i in (_opening if self.spoken else _unspoken)(text, spans)]
        elif self.name == "ending":
            places = [len(ids) - 1]
        else:
            places = list(range(1, len(ids) - 1))
        places = [place for place in places if place >= length]
        for place in rng.permutation(np.array(places, dtype=np.int64)):
            yield ids[place - length : place + 1].astype(np.int64)


def to_predict(
    tokens: Int[Tensor, "b t"],
    vocab_size: int,
    loss: Bool[Tensor, "b t"] | None = None,
    attention: Bool[Tensor, "b t"] | None = None,
) -> Examples:
    """Stories to be predicted at every token after the first (or those of `loss`)."""
    mask = torch.ones_like(tokens, dtype=torch.bool) if loss is None else loss.clone()
    mask[:, 0] = False  # nothing predicts the first token
    return Examples(
        tokens=tokens,
        loss_mask=mask,
        answer_position=torch.full((len(tokens),), tokens.shape[1] - 2),
        answer=tokens[:, -1:].clone(),
        candidates=torch.arange(vocab_size),
        attention_mask=attention,
    )
