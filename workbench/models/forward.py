"""Forward passes at the answer, and measures: one number per example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.models.anatomy import anatomy, is_known, last_block_at

Measured = Callable[[PreTrainedModel, Examples], Float[Tensor, " n"]]


def model_inputs(model: PreTrainedModel, examples: Examples, length: int) -> dict[str, Any]:
    """What a model's `base_model` is called with to see the first `length` tokens.

    A causal model is shown these tokens alone; a bidirectional one must see the whole sequence.
    """
    shown = length if not is_known(model) or anatomy(model).causal else examples.tokens.shape[1]
    out: dict[str, Any] = {"input_ids": examples.tokens[:, :shown], "use_cache": False}
    # Without a mask the causal kernel runs; a mask of ones would build a dense one.
    if examples.attention_mask is not None:
        out["attention_mask"] = mask = examples.attention_mask[:, :shown].long()
        if is_known(model):  # positions count real tokens, so that padding on the left moves nothing
            out["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return out


def hidden_states(model: PreTrainedModel, examples: Examples, length: int) -> Float[Tensor, "n t d"]:
    """Final hidden states (after the last norm) of the first `length` tokens."""
    return model.base_model(**model_inputs(model, examples, length)).last_hidden_state[:, :length]


def unembed(model: PreTrainedModel, hidden: Float[Tensor, "*rest d"]) -> Float[Tensor, "*rest vocab"]:
    """Logits of final hidden states."""
    head = model.get_output_embeddings()
    assert head is not None
    return head(hidden)


def logits_where(model: PreTrainedModel, examples: Examples, at: Any) -> Float[Tensor, "*rest vocab"]:
    """Logits at positions of the sequence: `at` is a mask `[n, t']` or a pair `(rows, positions)`.

    The head runs at these positions alone. A model of unknown architecture runs whole: it may scale or cap its logits.
    """
    length = at.shape[1] if isinstance(at, Tensor) else int(at[1].max()) + 1
    if is_known(model):
        return unembed(model, hidden_states(model, examples, length)[at])
    mask = None if examples.attention_mask is None else examples.attention_mask[:, :length].long()
    return model(input_ids=examples.tokens[:, :length], attention_mask=mask, use_cache=False).logits[at]


def answer_tokens(examples: Examples) -> Int[Tensor, "n k"]:
    """Positions of the answer's tokens; each is predicted from the position before it."""
    k = examples.answer.shape[1]
    return examples.answer_position[:, None] + 1 + torch.arange(k, device=examples.tokens.device)


def answer_logits(model: PreTrainedModel, examples: Examples) -> Float[Tensor, "n k vocab"]:
    """Logits that predict the answer's tokens, given the ones before; last block and head run at these positions alone."""
    positions = answer_tokens(examples) - 1
    rows = torch.arange(len(examples), device=examples.tokens.device)[:, None]
    with last_block_at(model, positions):
        return logits_where(model, examples, (rows, positions))


def accuracy(model: PreTrainedModel, examples: Examples) -> Float[Tensor, " n"]:
    """1.0 where the most likely token of the whole vocabulary is right at every token of the answer."""
    return examples.right(answer_logits(model, examples).argmax(-1)).all(-1).float()


def nll(model: PreTrainedModel, examples: Examples) -> Float[Tensor, " n"]:
    """Negative log-likelihood of the answer in nats, summed over its tokens."""
    logits = answer_logits(model, examples)
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), examples.answer, reduction="none").sum(-1)


@torch.no_grad()
def evaluate(
    model: PreTrainedModel, examples: Examples, measure: Measured = accuracy, batch_size: int = 128
) -> Float[Tensor, " n"]:
    """A measure on all examples, in batches, on the model's device; the values come back on the CPU."""
    rows = [slice(start, start + batch_size) for start in range(0, len(examples), batch_size)]
    return torch.cat([measure(model, examples[part].to(model.device)).float().cpu() for part in rows])
