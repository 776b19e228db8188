"""Training on packed stories: our loop on a llama against a plain one of the same weights, and what its batches cost.

The plain loop is nanoGPT's: logits at every position, the mean cross-entropy, and with parts of a batch one way back for each.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from tests.benchmarks.plain import PlainLlama
from tests.benchmarks.training import Speed, in_turns
from workbench.models.build import build_model
from workbench.models.spec import ModelSpec
from workbench.protocols import Task, load_protocol, load_task

SIZE = ModelSpec(kind="llama", blocks=4, heads=6, width=192, mlp_width=512)
"""Small enough for a turn a second on one core; a larger model only makes the share of the loader smaller."""
BATCH, CONTEXT = 8, 256


@contextmanager
def sample(context: int) -> Generator[Task]:
    """The bundled stories, in a cache of their own."""
    before = os.environ.get("HF_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HOME"] = folder
        try:
            yield load_task({"kind": "stories", "tokenizer": 1024, "context": context})
        finally:
            os.environ.pop("HF_HOME") if before is None else os.environ.update(HF_HOME=before)


def against_plain(turns: int, accumulate: int) -> Speed:
    """Updates of a batch in so many parts, in turns with a plain loop that does the same."""
    with sample(CONTEXT) as task:
        protocol, yardstick = (load_protocol("stories", task, {}, BATCH, 0) for _ in range(2))
        model = build_model(SIZE, task.vocab_size, CONTEXT, 0)
        plain = PlainLlama(task.vocab_size, CONTEXT, SIZE.blocks, SIZE.heads, SIZE.width, SIZE.hidden)
        plain.take(model.state_dict())
        optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        with torch.no_grad():  # the same function, or the comparison says nothing
            tokens = protocol.batch(0).tokens[:, :-1]
            assert torch.allclose(plain.head(plain(tokens)), model(input_ids=tokens).logits, atol=1e-4)

        def plain_turn(step: int) -> None:
            optimizer.zero_grad()
            for tokens in yardstick.batch(step).tokens.chunk(accumulate):
                logits = plain.head(plain(tokens[:, :-1]))
                (F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) / accumulate).backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimizer.step()

        return in_turns(model, protocol, plain_turn, 1, turns, accumulate)


def paper_batch_seconds(passes: int) -> float:
    """CPU seconds of one batch of the paper's size, 256 windows of 512 tokens, the median."""
    with sample(512) as task:
        protocol = load_protocol("stories", task, {}, 256, 0)
        protocol.batch(0)
        seconds: list[float] = []
        for step in range(1, passes + 1):
            begun = time.process_time()
            protocol.batch(step)
            seconds.append(time.process_time() - begun)
    return sorted(seconds)[len(seconds) // 2]
