"""Continuations of many prompts in batches with a cache, against one prompt after the other and no cache."""

from __future__ import annotations

import time

import torch

from workbench.models.build import build_model
from workbench.models.generation import generate
from workbench.models.spec import ModelSpec

VOCAB, CONTEXT, PROMPTS, NEW = 2048, 512, 32, 128
SIZE = ModelSpec(blocks=4, heads=4, width=128)


def against_one_by_one(prompts_timed: int = 4, new: int = NEW) -> tuple[float, float, float]:
    """`(ratio, our seconds, naive seconds)` of CPU time, greedy; the naive loop is timed on some prompts and scaled up.

    What both write must be equal. The naive loop runs the whole text for each token, its head at the last position alone.
    """
    model = build_model(SIZE, VOCAB, CONTEXT, 0)
    drawn = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 121, (PROMPTS,), generator=drawn).tolist()
    prompts = [torch.randint(0, VOCAB, (length,), generator=drawn) for length in lengths]
    chosen = torch.linspace(0, PROMPTS - 1, prompts_timed).long().tolist()
    with torch.no_grad():
        model(input_ids=prompts[0][None])  # warm
        start = time.process_time()
        expected = [one_by_one(model, prompts[i], new) for i in chosen]
        naive = (time.process_time() - start) / sum(lengths[i] + new / 2 for i in chosen) * (sum(lengths) + PROMPTS * new / 2)
    start = time.process_time()
    found = generate(model, prompts, new_tokens=new, eos_id=None, pad_id=0, temperature=0)
    ours = time.process_time() - start
    assert all(torch.equal(found[i], text) for i, text in zip(chosen, expected, strict=True))
    return naive / ours, ours, naive


def one_by_one(model: torch.nn.Module, prompt: torch.Tensor, new: int) -> torch.Tensor:
    """Greedy continuation of one prompt; the whole text runs again for each token."""
    text = prompt
    for _ in range(new):
        logits = model(input_ids=text[None], use_cache=False, logits_to_keep=1).logits[0, -1]
        text = torch.cat([text, logits.argmax()[None]])
    return text[len(prompt) :]
