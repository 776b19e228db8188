"""Residual streams of whole texts, averaged over chosen positions while they are computed: nothing else is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from workbench.errors import UserError
from workbench.examples import Examples
from workbench.models.anatomy import anatomy, blocks, last_block_at
from workbench.models.forward import model_inputs
from workbench.models.sites import Site, edited

TOKENS = 4096
"""Tokens run at once, about; texts of one length go together."""


def last_positions(examples: Examples, count: int, end: int | None = None) -> Bool[Tensor, "n t"]:
    """The last `count` tokens of each text (all of a shorter one): targets of the loss, without the token that ends a text."""
    text = examples.loss_mask if end is None else examples.loss_mask & (examples.tokens != end)
    behind = text.flip(1).cumsum(1).flip(1)  # tokens of the text from here on
    return text & (behind <= count)


@torch.no_grad()
def pooled_streams(
    model: PreTrainedModel, examples: Examples, positions: Bool[Tensor, "n t"], tokens: int = TOKENS
) -> Float[Tensor, "points n d"]:
    """Mean residual stream over each text's marked positions: embedding output first, then after each block.

    Padding may stand on either side. A causal model is shown the real tokens alone, from the left and up to the last marked
    one, so that it needs no mask; of the last block attention's output and MLP run at the marked positions alone.

    Memory: `4 * points * n * width` bytes for the answer, and one batch of about `tokens` tokens.

    Args:
        model: of a known architecture.
        examples: whole texts.
        positions: what is averaged over, at least one real token per text.
        tokens: in a batch, about.

    Returns:
        float32, on the CPU.

    Raises:
        UserError: an unknown architecture, or a text without a marked position.
    """
    causal = anatomy(model).causal
    mask = examples.attention_mask if examples.attention_mask is not None else torch.ones_like(positions)
    marked = positions & mask
    if (counts := marked.sum(1)).min() < 1:
        raise UserError(f"text {int(counts.argmin())} of {len(counts)} has no token to average over; leave it out.")
    texts = examples
    if causal:
        order = (~mask).long().argsort(dim=1, stable=True)  # real tokens first, in their order
        marked = marked.gather(1, order)
        texts = replace(examples, tokens=examples.tokens.gather(1, order), attention_mask=None)
    at, weights = _listed(marked)
    shown = at.amax(1) + 1 if causal else torch.full_like(counts, marked.shape[1])
    points, width = len(blocks(model)) + 1, int(model.config.hidden_size)
    out = torch.empty(points, len(counts), width)
    by_length = shown.argsort(stable=True)
    start = 0
    while start < len(by_length):
        # In increasing length, so the last one of a batch is its longest.
        sizes = torch.arange(1, len(by_length) - start + 1) * shown[by_length[start:]]
        rows = by_length[start : start + max(1, int((sizes <= tokens).sum()))]
        start += len(rows)
        out[:, rows] = _means(model, texts[rows].to(model.device), at[rows], weights[rows], int(shown[rows].max()))
    return out


def _listed(marked: Bool[Tensor, "n t"]) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Marked positions as numbers, and weights that average; where a text has fewer, its last one again with weight 0."""
    counts = marked.sum(1, keepdim=True)
    first = (~marked).long().argsort(dim=1, stable=True)[:, : int(counts.max())]
    rank = torch.arange(first.shape[1])
    at = first.gather(1, torch.minimum(rank, counts - 1))
    return at, (rank < counts) / counts


def _means(
    model: PreTrainedModel, batch: Examples, at: Int[Tensor, "n k"], weights: Float[Tensor, "n k"], length: int
) -> Float[Tensor, "points n d"]:
    at, share = at.to(model.device), weights.to(model.device)
    rows = torch.arange(len(at), device=model.device)[:, None]
    points = len(blocks(model)) + 1
    found: dict[int, Tensor] = {}

    def keep(point: int) -> Callable[[Tensor], None]:
        return lambda x: found.__setitem__(point, torch.einsum("nkd,nk->nd", x[rows, at].float(), share))

    with last_block_at(model, at), edited(model, {Site("stream", point): keep(point) for point in range(points)}):
        model.base_model(**model_inputs(model, batch, length))
    return torch.stack([found[point] for point in range(points)]).cpu()
