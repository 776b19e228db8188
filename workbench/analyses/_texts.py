"""What analyses of free writing share: texts that a model goes on with, and the loss of whole real texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from workbench.analysis import Settings
from workbench.errors import UserError
from workbench.examples import Examples
from workbench.measures import DRAWS, other_texts, proportion, proportion_row
from workbench.models.generation import generate, surprisal
from workbench.protocols import Openings, Score, WritingTask
from workbench.results import Metric
from workbench.statistics import bootstrap_mean
from workbench.subjects import Question

SHARE = "share of texts"
ALIKE = 50
"""Words of a text that are looked at for repetition."""
ENOUGH = 200
"""Texts below which a share is not to be relied on [Jain+23 §F.2 had 16]."""


class TextSettings(Settings):
    """How texts are written, and on which ones a loss is measured."""

    n: int = Field(200, ge=16, description="texts that each model writes")
    opening: int = Field(16, ge=0, description="tokens of a real test text that it goes on from, behind its instruction if any")
    new_tokens: int = Field(160, ge=1, description="tokens that it writes, at most")
    temperature: float = Field(1.0, ge=0, description="of the samples; 0 takes the most likely token")
    loss_texts: int = Field(200, ge=16, description="whole test texts of each kind, at most, whose loss is measured")


def check_room(settings: TextSettings, question: Question, who: str) -> None:
    """Refuse a task without texts, and texts that are longer than the context."""
    task = question.task
    if not isinstance(task, WritingTask):
        raise UserError(f"{who}: a {type(task).__name__} has no texts to go on with; use a task of kind 'stories'.")
    if settings.opening + settings.new_tokens > task.context:
        raise UserError(
            f"{who}: opening {settings.opening} and new_tokens {settings.new_tokens} exceed the context of {task.context} "
            "tokens; lower one of them."
        )


@dataclass(frozen=True)
class Share:
    """The share of some texts that show a capability, free of the judge's known errors."""

    shows: np.ndarray
    """As judged, 1.0 or 0.0 per text."""
    scores: Sequence[Score]
    """By every judge, the one that decides first."""
    seed: int

    @property
    def values(self) -> np.ndarray:
        """Numbers per text whose mean is the share."""
        return self.scores[0].unbiased(self.shows)

    @property
    def row(self) -> dict[str, Any]:
        """`value low high n unit` of a table."""
        first = self.scores[0]
        if not first.trust:
            return proportion_row(self.shows, SHARE)
        ends = {"value": first.corrected_rate, "low": first.corrected_low, "high": first.corrected_high}
        return {**ends, "n": first.n, "unit": SHARE}

    def metric(self, name: str) -> Metric:
        """The same as a number of the headline."""
        if not self.scores[0].trust:
            return proportion(name, self.shows, self.seed, SHARE)
        row, draws = self.row, bootstrap_mean(self.values, DRAWS, self.seed)
        return Metric(name, row["value"], row["low"], row["high"], row["n"], SHARE, draws=tuple(np.round(draws, 6).tolist()))


@dataclass(frozen=True)
class Desk:
    """The openings that all models go on from, with the same random streams, and the texts whose loss they are asked."""

    task: WritingTask
    capability: str
    settings: TextSettings
    seed: int

    @cached_property
    def openings(self) -> Openings:
        """Beginnings of test texts, none of which shows the capability yet."""
        return self.task.openings(self.capability, self.settings.n, self.seed, self.settings.opening, self.settings.new_tokens)

    @cached_property
    def _prompts(self) -> list[Tensor]:
        return [torch.from_numpy(prompt) for prompt in self.openings.prompts]

    @cached_property
    def kinds(self) -> Mapping[str, Examples]:
        """Whole test texts, kind by kind."""
        return {kind: self.task.whole(kind, self.settings.loss_texts, self.seed) for kind in self.task.kinds(self.capability)}

    def write(self, model: PreTrainedModel) -> list[str]:
        """What a model makes of the openings, opening included, instruction left out."""
        found = generate(
            model,
            self._prompts,
            new_tokens=self.settings.new_tokens,
            eos_id=self.task.end,
            pad_id=self.task.padding,
            temperature=self.settings.temperature,
            seed=self.seed,
        )
        written = [[*prompt.tolist(), *more.tolist()] for prompt, more in zip(self._prompts, found, strict=True)]
        return [self.task.describe(tokens[begin:]) for tokens, begin in zip(written, self.openings.begins, strict=True)]

    def share(self, texts: Sequence[str]) -> Share:
        """How many of the texts show the capability."""
        scores = self.task.judged(self.capability, texts, self.seed)
        return Share(self.task.shows(self.capability, texts), scores, self.seed)

    def costs(self, model: PreTrainedModel, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Nats of each text of a kind, and its tokens."""
        examples = self.kinds[kind]
        counted = examples.loss_mask[:, 1:].cpu().numpy()
        nats = surprisal(model, examples.tokens, examples.attention_mask).cpu().numpy() * counted
        return nats.sum(1).astype(np.float64), counted.sum(1).astype(np.float64)

    def heeds(self, model: PreTrainedModel) -> np.ndarray | None:
        """Per text what it costs, in nats per token, to be asked for what does not come; None without instructions.

        A model that follows instructions is the more surprised by a story the more it was told to expect another one.
        """
        if len(self.kinds) < 3:
            return None
        (_, asked, adversarial) = self.kinds
        (a, n), (b, m) = self.costs(model, asked), self.costs(model, adversarial)
        return b / m - a / n

    def loss(self, model: PreTrainedModel, kind: str) -> tuple[float, np.ndarray]:
        """Nats per token over all texts of a kind, and draws of it that resample texts."""
        total, tokens = self.costs(model, kind)
        seed = other_texts(self.seed, kind)
        draws = bootstrap_mean(total, DRAWS, seed) / bootstrap_mean(tokens, DRAWS, seed)
        return float(total.sum() / tokens.sum()), draws

    def loss_row(self, model: PreTrainedModel, kind: str) -> dict[str, Any]:
        """The same as `kind value low high n unit`, a row of a table."""
        value, draws = self.loss(model, kind)
        return {"kind": kind, **interval_row(value, draws), "n": len(self.kinds[kind]), "unit": "nats per token"}

    @property
    def _corrected(self) -> str:
        errs = bool(self.share(self.openings.written).scores[0].trust)
        return "; shares are corrected for how often it errs on held-out real texts" if errs else ""

    @property
    def limits(self) -> Sequence[str]:
        """What the judging, the number of texts and that of openings leave open."""
        n, openings = self.settings.n, len(self.openings.written)
        return [
            f"Judged by {self.task.judged_by(self.capability)}{self._corrected}.",
            *(
                [f"{n} texts go on from {openings} openings, so that the intervals leave out how openings differ."]
                if openings < n
                else []
            ),
            *([f"{n} texts are few: a share is known to about {1 / np.sqrt(n):.2f}."] if n < ENOUGH else []),
        ]


def interval_row(value: float, draws: np.ndarray) -> dict[str, float]:
    """`value low high` of a number and its draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}


def texture(texts: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """What texts are like, whatever they tell: rows of `measure value low high n unit`, means over texts.

    `length` in words. `distinct_k`: of the runs of k words in a text's first `ALIKE` words, the share that is not a repetition
    within them; shorter texts are left out, since the longer a text the more it repeats.
    """
    words = [text.lower().split() for text in texts]
    measured = {"length": (np.array([len(w) for w in words], float), "words")}
    for k in (1, 2, 3):
        runs = [[tuple(w[i : i + k]) for i in range(ALIKE - k + 1)] for w in words if len(w) >= ALIKE]
        measured[f"distinct_{k}"] = (np.array([len(set(r)) / len(r) for r in runs]), "share of runs")
    return [
        {"measure": name, **interval_row(float(of.mean()), bootstrap_mean(of, DRAWS, seed)), "n": len(of), "unit": unit}
        for name, (of, unit) in measured.items()
        if len(of)
    ]
