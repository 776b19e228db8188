"""Residual streams of two models at the same positions of the same prompts, as a function of the step, and on held-out prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import UserError
from workbench.examples import Examples
from workbench.measures import draw, shares
from workbench.models.anatomy import anatomy, blocks
from workbench.models.sites import Site, record
from workbench.seeds import torch_generator
from workbench.subjects import Pair

CHUNK = 2**14
"""Positions whose activations are held at once while training."""
BATCH = 32
PARTS = ("prompt", "operand", "text", "window", "request")
"""Parts of a prompt, each before those that it contains; `prompt` is what no role names."""


@dataclass(frozen=True)
class HeldOut:
    """Streams of both models at all positions of prompts that the training did not see."""

    examples: Examples
    streams: Float[Tensor, "s 2 d"]
    prompt: Int[Tensor, " s"]
    position: Int[Tensor, " s"]


class Source:
    """Activations of a pair at one site, as a function of the step."""

    def __init__(self, pair: Pair, site: Site, batch: int, steps: int) -> None:
        widths = [int(model.config.hidden_size) for model in (pair.base, pair.tuned)]
        if widths[0] != widths[1] or len(blocks(pair.base)) != len(blocks(pair.tuned)):
            raise UserError(f"the models of pair {pair.name!r} differ in width or depth; a crosscoder wants two of one shape.")
        self.pair, self.site, self.width, self.size = pair, site, widths[0], batch
        self.asked = list(dict.fromkeys((pair.capability, pair.tuned_on, *pair.others)))
        self.causal = anatomy(pair.base).causal
        length = sum(int(self._shown(self._texts(capability, 1, "score")).sum()) for capability in self.asked)
        self.texts = math.ceil(max(CHUNK, batch) / length)
        """Texts per ability of one chunk."""
        self.steps = self.texts * length // batch
        """Steps that one chunk lasts."""
        chunks = math.ceil(steps / self.steps)
        self.pool = [self._texts(capability, chunks * self.texts, "score") for capability in self.asked]
        self.held: tuple[int, Tensor] | None = None

    def batch(self, step: int) -> Float[Tensor, "n 2 d"]:
        """Activations of a step: a part of those of a chunk of texts, in random order. Every text belongs to one chunk."""
        index, within = divmod(step, self.steps)
        if self.held is None or self.held[0] != index:
            part = slice(index * self.texts, (index + 1) * self.texts)
            whole = torch.cat([self._read(examples[part]).streams for examples in self.pool])
            order = torch.randperm(len(whole), generator=torch_generator(self.pair.seed, "crosscoder chunk", index))
            self.held = index, whole[order]
        rows = torch.arange(within * self.size, (within + 1) * self.size)
        return self.held[1][rows % len(self.held[1])]  # prompts of several lengths: some chunks are short

    def held_out(self, capability: str, n: int) -> HeldOut:
        """Prompts of the split `select`, with what the task knows of their tokens."""
        return self._read(self.pair.labelled(self._texts(capability, n, "select")))

    def both(self, examples: Examples) -> Float[Tensor, "n t 2 d"]:
        """Streams of base and tuned model at all positions that they are shown."""
        found = [
            record(model, examples.to(model.device), [self.site])[self.site].float().cpu()
            for model in (self.pair.base, self.pair.tuned)
        ]
        return torch.stack(found, dim=2)

    def _shown(self, examples: Examples) -> Bool[Tensor, "n t"]:
        return shown_positions(examples, self.causal)

    def _texts(self, capability: str, n: int, split: str) -> Examples:
        return draw(self.pair, capability, shares(self.pair, capability)[0], n, split)

    def _read(self, examples: Examples) -> HeldOut:
        parts = [self.both(examples[start : start + BATCH]) for start in range(0, len(examples), BATCH)]
        at = self._shown(examples)
        streams = torch.cat([part[at[i * BATCH : (i + 1) * BATCH, : part.shape[1]]] for i, part in enumerate(parts)])
        prompt, position = at.nonzero().T
        return HeldOut(examples, streams, prompt, position)


def shown_positions(examples: Examples, causal: bool) -> Bool[Tensor, "n t"]:
    """Positions of the prompt, without padding: up to the one that predicts the answer, or all but the answer's."""
    places = torch.arange(examples.tokens.shape[1])
    at = places <= examples.answer_position.cpu()[:, None] if causal else ~examples.loss_mask.cpu()
    return at if examples.attention_mask is None else at & examples.attention_mask.cpu()


def prompt_parts(examples: Examples) -> Int[Tensor, "n t"]:
    """Index in `PARTS` of every position; without roles a prompt is text up to the answer's position."""
    n, t = examples.tokens.shape
    part = torch.zeros(n, t, dtype=torch.long)
    text = torch.arange(t) < examples.answer_position.cpu()[:, None]
    for index, name in enumerate(PARTS[1:], start=1):
        mask = examples.roles[name].cpu() if name in examples.roles else text if name == "text" and not examples.roles else None
        part = part if mask is None else torch.where(mask, index, part)
    return part.scatter(1, examples.answer_position.cpu()[:, None], PARTS.index("request"))
