"""Prompts of one capability: the tokens of a story up to a place, and the token that stands there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tinystories.features import quotations
from workbench.errors import UserError
from workbench.examples import Examples
from workbench.seeds import numpy_generator

if TYPE_CHECKING:
    from tinystories.task import StoriesTask
    from tinystories.told import Told

WITHOUT = "no_"
"""`no_dialogue`: the stories without it."""
ASKED = "asked_"
"""`asked_dialogue`: the same behind the instruction of its story, which asks for what the story has."""
QUOTES = frozenset('"“”')
"""No opening that a model goes on from may have begun to speak."""
DRAWS = 8
"""Instructions of a story that are tried until a counterfactual prompt is as long as the one that it stands against."""


def plain(capability: str) -> str:
    """The capability without an instruction: `no_dialogue` for `asked_no_dialogue`."""
    return capability.removeprefix(ASKED)


def feature_of(capability: str) -> str:
    """What it is about: `dialogue` for `asked_no_dialogue`."""
    return plain(capability).removeprefix(WITHOUT)


def opposite(capability: str) -> str:
    """The stories that a capability does not speak of: `no_dialogue` for `dialogue`, `asked_dialogue` for `asked_no_dialogue`."""
    asked = ASKED if capability.startswith(ASKED) else ""
    bare = plain(capability)
    return asked + (bare.removeprefix(WITHOUT) if bare.startswith(WITHOUT) else WITHOUT + bare)


class Window(NamedTuple):
    """A prompt and its answer."""

    story: int
    tokens: Int[np.ndarray, " t"]
    instruction: int
    """How many of the tokens stand before the story, BOS included where there is an instruction."""


def opening(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Tokens that hold the first character of a quotation."""
    starts = [start for start, _ in quotations(text)]
    return [i for i, (a, b) in enumerate(spans) for start in starts if a <= start < b]


def unspoken(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Tokens after a comma that open no quotation and stand in none."""
    inside = np.zeros(len(text) + 1, dtype=bool)
    for start, end in quotations(text):
        inside[start:end] = True
    return [
        i for i in range(1, len(spans)) if text[: spans[i][0]].endswith(",") and not inside[spans[i][0] : spans[i][1]].any()
    ]


@dataclass(frozen=True)
class StoryCapability:
    """One capability; a `workbench.examples.Capability`.

    Without an instruction a prompt is the `settings.prompt` tokens before its answer, and nothing is padded. With one it is BOS,
    the instruction and the story up to the answer, at most half the context, padded on the left.
    """

    task: StoriesTask
    name: str
    places: Literal["both", "opening", "unspoken"] = "both"
    """Of `dialogue`: where a quotation opens, and after a comma after which nobody speaks, by turns; or one of them alone."""

    @property
    def asked(self) -> bool:
        """Whether an instruction stands in front."""
        return self.name.startswith(ASKED)

    @property
    def two_sided(self) -> bool:
        """Whether every other prompt is one after which nobody speaks."""
        return plain(self.name) == "dialogue" and self.places == "both"

    def examples(self, n: int, seed: int, split: str = "test") -> Examples:
        """`n` prompts and what follows; `test` draws on the test stories, every other split on the training stories.

        Stories come in seeded order, one place of each; where they run out, a second place of each, and so on.
        For `dialogue` every other prompt is one after which nobody speaks, and right is whoever opens a quotation, with whatever
        token, where one opens and nowhere else: a model that always does, or never, is right on half of them.
        Roles: `text` (of the story), `request` (the last token), and `instruction` where there is one.

        Raises:
            UserError: `n` is below 1, or the stories have fewer such places.
        """
        if n < 1:
            raise UserError(f"{n} examples of {self.name!r} were asked for; ask for at least 1.")
        if not self.two_sided:
            return self.drawn(self._rows(n, seed, split), split)
        rows: list[Window | None] = [None] * n
        for first, places in enumerate(("opening", "unspoken")):
            if wanted := len(rows[first::2]):
                rows[first::2] = replace(self, places=places)._rows(wanted, seed, split)
        return self.drawn([row for row in rows if row is not None], split)

    def counterfactual(self, examples: Examples, seed: int) -> Examples:
        """Row by row a prompt that is as long, from a story of the same split, after which it is the other way about.

        Raises:
            UserError: no story has such a place.
        """
        split = "test" if bool(examples.labels["test"][0]) else "counterfactual"
        real = (
            torch.ones_like(examples.tokens, dtype=torch.bool) if examples.attention_mask is None else examples.attention_mask
        )
        opens = examples.labels[self.name].bool().tolist()
        wanted = defaultdict[tuple[bool, int], list[int]](list)
        for row, length in enumerate(real.sum(1).tolist()):
            wanted[opens[row], length].append(row)
        found: dict[int, Window] = {}
        pool: dict[tuple[bool, int], Window] = {}
        for draw in range(DRAWS):
            for opened, places in ((True, "unspoken"), (False, "opening")):
                for window in replace(self, places=places).windows(seed, split, draw + 1):
                    key = (opened, len(window.tokens))
                    if waiting := wanted.get(key):
                        found[waiting.pop()] = pool[key] = window
                    if not any(rows for (was, _), rows in wanted.items() if was == opened):
                        break
        for key, rows in wanted.items():  # of few stories one serves several prompts
            found |= {row: pool[key] for row in rows if key in pool}
        if len(found) < len(examples):
            raise UserError(
                f"{len(examples) - len(found)} of {len(examples)} prompts of {self.name!r} have no counterpart of their length where "
                "it is the other way about; ask for fewer, or take a larger corpus."
            )
        return self.drawn([found[row] for row in range(len(examples))], split)

    def drawn(self, rows: Sequence[Window], split: str) -> Examples:
        """The examples that windows of a split make, padded on the left to the longest."""
        n, width = len(rows), max(len(row.tokens) for row in rows)
        tokens = torch.full((n, width), self.task.padding)
        begins = torch.tensor([width - len(row.tokens) for row in rows])[:, None]
        for line, row in zip(tokens, rows, strict=True):
            line[width - len(row.tokens) :] = torch.from_numpy(row.tokens)
        place = torch.arange(width).expand_as(tokens)
        real, length = place >= begins, width - 1
        story = begins + torch.tensor([row.instruction for row in rows])[:, None]
        roles: dict[str, Bool[Tensor, "n t"]] = {
            "text": (place >= story) & (place < length),
            "request": place == length - 1,
        }
        if self.asked:
            roles["instruction"] = real & (place < story)
        labels = {
            "story": torch.tensor([row.story for row in rows]),
            "test": torch.full((n,), int(split == "test")),
        }
        classes, chance = None, dict[str, float]()
        if plain(self.name) == "dialogue":
            classes = self.task.openers
            labels[self.name] = classes[tokens[:, -1]]
            share = float(labels[self.name].float().mean())
            chance = {"majority": max(share, 1 - share)}
        return Examples(
            tokens=tokens,
            loss_mask=place == length,
            answer_position=torch.full((n,), length - 1),
            answer=tokens[:, -1:].clone(),
            candidates=torch.unique(tokens[:, -1]),
            attention_mask=None if bool(real.all()) else real,
            labels=labels,
            roles=roles,
            chance=chance,
            classes=classes,
        )

    def _rows(self, n: int, seed: int, split: str) -> list[Window]:
        side = "test" if split == "test" else "train"
        first: list[Window] = []
        later: list[list[Window]] = []
        for windows in self._by_story(seed, split, 0):
            if len(first) == n:
                return first
            if windows:
                first.append(windows[0])
                later.append(windows[1:])
        depth = 0
        while len(first) < n and any(len(rest) > depth for rest in later):
            first += [rest[depth] for rest in later if len(rest) > depth]
            depth += 1
        if len(first) < n:
            room = f"{self._longest} tokens at most" if self.asked else f"{self.task.settings.prompt} tokens before"
            raise UserError(
                f"{n} examples of {self.name!r} were asked for, and the {side} stories of corpus {self.task.corpus.name!r} have "
                f"{len(first)} places for it with {room}; ask for fewer, or take a larger corpus."
            )
        return first[:n]

    def windows(self, seed: int, split: str, draw: int) -> Iterator[Window]:
        """Prompts of all stories in random order, the places of a story one after another."""
        for windows in self._by_story(seed, split, draw):
            yield from windows

    def _by_story(self, seed: int, split: str, draw: int) -> Iterator[list[Window]]:
        """The prompts of one story after another, each story's in random order."""
        side = "test" if split == "test" else "train"
        stories = self.task.having(side, self.name)
        rng = numpy_generator(seed, "stories", split, self.name, str(self.places != "unspoken"), *([draw] if draw else []))
        told = self.task.told(side, seed) if self.asked else None
        texts = self.task.corpus.split(side)
        for story in stories[rng.permutation(len(stories))].tolist():
            yield list(self._windows(texts[story]["text"], story, told, draw, rng))

    @cached_property
    def _longest(self) -> int:
        """Tokens of a prompt with an instruction."""
        return self.task.context // 2

    def _windows(self, text: str, story: int, told: Told | None, draw: int, rng: np.random.Generator) -> Iterator[Window]:
        code = self.task.tokenizer
        before = [code.bos_id] if told is None else [code.bos_id, *told.tokens(story, draw).tolist()]
        ids = np.array([*before, *code.encode(text), code.eos_id])
        places = [place + len(before) for place in self._places(text, len(ids) - len(before))]
        shortest, longest = (self.task.settings.prompt, len(ids)) if told is None else (len(before) + 1, self._longest)
        for place in rng.permutation(np.array([p for p in places if shortest <= p <= longest], dtype=np.int64)):
            begin = place - self.task.settings.prompt if told is None else 0
            yield Window(story, ids[begin : place + 1].astype(np.int64), 0 if told is None else len(before))

    def _places(self, text: str, tokens: int) -> list[int]:
        """Where the answers of a story stand, counted in its own tokens, its end among them."""
        feature, code = feature_of(self.name), self.task.tokenizer
        if feature == "dialogue" and WITHOUT not in self.name:
            return (unspoken if self.places == "unspoken" else opening)(text, code.offsets(text))
        return [tokens - 1] if feature == "ending" else list(range(tokens - 1))
