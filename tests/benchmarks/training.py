"""A training step of ours against a plain one: the same model, data, optimizer and clip, in one process, in turns.

Seconds are CPU seconds of this process, which neighbours on a busy machine disturb least; there is one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from synthetic_tasks.pcfg import PcfgTask
from synthetic_tasks.protocols import pretraining, single_operand
from tests.benchmarks.plain import PlainModel
from workbench.examples import Examples
from workbench.models.build import build_model
from workbench.models.spec import ModelSpec
from workbench.protocols import TrainingProtocol
from workbench.training.loop import train
from workbench.training.settings import TrainSettings


@dataclass(frozen=True)
class Size:
    """A model and its batches."""

    name: str
    blocks: int
    heads: int
    width: int
    text_length: int
    window: int
    batch_size: int
    steps: int
    """Steps in one turn."""


SMALL = Size("2 blocks, width 64", 2, 4, 64, text_length=32, window=12, batch_size=64, steps=8)
LARGE = Size("6 blocks, width 192", 6, 6, 192, text_length=250, window=40, batch_size=8, steps=1)
QUIET = TrainSettings(steps=1, lr=1e-3, log_every=10**9)


def task_of(size: Size) -> PcfgTask:
    """The procedural task of a size."""
    families = ["count", "index", "token"]
    return PcfgTask.from_settings({"text_length": size.text_length, "window": size.window, "families": families})


class Nobody:
    """A listener that keeps nothing."""

    def step(self, step: Any) -> None: ...

    def due(self) -> bool:
        return False

    def grid(self, step: int, model: Any, state: Any, last: bool) -> bool:
        return False


class _Turns:
    """Stops the clock of our loop after every turn: the loop asks for a batch when it begins a step."""

    def __init__(self, protocol: TrainingProtocol, steps: int, other: Callable[[int], None]) -> None:
        self.protocol, self.steps, self.other = protocol, steps, other
        self.batch_size = protocol.batch_size
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.batches: list[float] = []
        self.started = 0.0

    asks = frozenset[str]()

    def batch(self, step: int) -> Examples:
        if step % self.steps == 0:
            now = time.process_time()
            if step:
                self.ours.append((now - self.started) / self.steps)
            self.other(step)
            self.started = time.process_time()
            self.theirs.append((self.started - now) / self.steps)
        begun = time.process_time()
        batch = self.protocol.batch(step)
        self.batches.append(time.process_time() - begun)
        return batch


@dataclass(frozen=True)
class Speed:
    """Medians over turns."""

    ratio: float
    """Their seconds over ours: 1 is parity, above is faster."""
    ours_ms: float
    plain_ms: float
    batch_share: float
    """Part of our step that is spent on making the batch."""
    tokens: int


def compare(size: Size, answer_only: bool, turns: int) -> Speed:
    """Train both in turns of a few steps; each turn's ratio is of two neighbours in time."""
    task = task_of(size)
    if answer_only:
        protocol, yardstick = (single_operand(task, {"capability": "count_a"}, size.batch_size, 0) for _ in range(2))
    else:
        protocol, yardstick = (pretraining(task, {}, size.batch_size, 0) for _ in range(2))
    plain = PlainModel(task.vocab_size, task.context, size.blocks, size.heads, size.width)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def plain_turn(first: int) -> None:
        for step in range(first, first + size.steps):
            examples = yardstick.batch(step)
            hidden = plain(examples.tokens[:, :-1])
            if answer_only:
                rows = torch.arange(len(examples))
                logits, wanted = plain.head(hidden[rows, examples.answer_position]), examples.answer[:, 0]
            else:
                logits, wanted = plain.head(hidden).flatten(0, 1), examples.tokens[:, 1:].flatten()
            loss = F.cross_entropy(logits, wanted)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimizer.step()

    spec = ModelSpec(blocks=size.blocks, heads=size.heads, width=size.width)
    model = build_model(spec, task.vocab_size, task.context, 0)
    assert sum(p.numel() for p in plain.parameters()) == spec.parameters(task.vocab_size, task.context)
    return in_turns(model, protocol, plain_turn, size.steps, turns)


def in_turns(
    model: PreTrainedModel,
    protocol: TrainingProtocol,
    plain_turn: Callable[[int], None],
    steps: int,
    turns: int,
    accumulate: int = 1,
) -> Speed:
    """Our loop and another one in turns of `steps` updates; `plain_turn` does those of the other one from a given step on."""
    timed = _Turns(protocol, steps, plain_turn)
    given = {"steps": (turns + 1) * steps + 1, "batch_size": protocol.batch_size, "accumulate": accumulate}
    train(model, timed, QUIET.model_copy(update=given), Nobody(), device=torch.device("cpu"), seed=0)
    ours, theirs = timed.ours[1:], timed.theirs[1 : len(timed.ours)]  # the first turn of each is warm-up
    return Speed(
        ratio=statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
        ours_ms=1e3 * statistics.median(ours),
        plain_ms=1e3 * statistics.median(theirs),
        # The mean, since a chunk of batches is made at once and most steps only take a view.
        batch_share=sum(timed.batches[steps : len(timed.ours) * steps]) / (sum(ours) * steps),
        tokens=protocol.batch(0).tokens.numel(),
    )
