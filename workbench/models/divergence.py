"""How far the predictions of models lie from those of a reference, position by position, on the same texts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.models.forward import answer_tokens, logits_where

BATCH = 64
FLOATS = 2**23
"""Logits of one model that are held at once; there are about four tensors of that size."""


def predicted(examples: Examples) -> Bool[Tensor, "n t"]:
    """Positions whose predictions count: those of the prompt and of the answer but its last token, without padding."""
    last = (answer_tokens(examples) - 1)[:, -1:]
    at = torch.arange(int(last.max()) + 1, device=last.device) <= last
    return at if examples.attention_mask is None else at & examples.attention_mask[:, : at.shape[1]]


@torch.no_grad()
def divergence_from(
    reference: PreTrainedModel, models: Mapping[str, PreTrainedModel], examples: Examples
) -> dict[str, Float[Tensor, "n t"]]:
    """KL(model || reference) in nats of the next token, at the positions of `predicted`; zero elsewhere.

    The texts are given, answers too (teacher forcing): each position is predicted from the right tokens before it.
    """
    size = max(1, min(BATCH, FLOATS // (int(reference.config.vocab_size) * examples.tokens.shape[1])))
    length = int((answer_tokens(examples) - 1).max()) + 1
    kept: dict[str, list[Tensor]] = {name: [] for name in models}
    for start in range(0, len(examples), size):
        batch = examples[start : start + size].to(reference.device)
        at = predicted(batch)
        before = logits_where(reference, batch, at).float().log_softmax(-1)
        for name, model in models.items():
            after = logits_where(model, batch, at).float().log_softmax(-1)
            found = (after.exp() * (after - before)).sum(-1).clamp(min=0)  # never negative but for rounding
            kept[name].append(before.new_zeros(len(batch), length).masked_scatter(_wide(at, length), found).cpu())
    return {name: torch.cat(parts) for name, parts in kept.items()}


def _wide(mask: Bool[Tensor, "n t"], length: int) -> Bool[Tensor, "n longer"]:
    return torch.nn.functional.pad(mask, (0, length - mask.shape[1]))
