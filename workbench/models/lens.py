"""The lens: TransformerLens' bridge on a deep copy, made nowhere else.

A bridge rewires the module that it is given, so the model itself is never handed over. Its logits agree with the
plain model's to about 1e-6 in float32; training, fingerprints and curvature use the plain model. An architecture that
TransformerLens has no bridge for is read with plain hooks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from workbench.errors import UserError
from workbench.examples import Examples
from workbench.models.anatomy import anatomy, blocks
from workbench.models.forward import hidden_states

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MAX_BYTES = 4 * 2**30
"""Largest answer that `residual_streams` gives."""
BATCH_BYTES = 256 * 2**20
"""What one batch of a forward pass may keep of its streams and attention; batches shrink to fit."""


def lens(model: PreTrainedModel) -> TransformerBridge:
    """A bridge on a copy of `model`, weights unprocessed (nothing folded or centred), in evaluation mode.

    Raises:
        UserError: the architecture is unknown, or TransformerLens has no bridge for it.
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    if not anatomy(model).bridged:
        raise UserError(f"TransformerLens has no bridge for {type(model).__name__}; read its modules with hooks instead.")
    return build_bridge_from_module(copy.deepcopy(model).eval(), type(model).__name__, hf_config=model.config)


@torch.no_grad()
def residual_streams(
    model: PreTrainedModel,
    examples: Examples,
    batch_size: int = 512,
    positions: Literal["answer", "all"] | Int[Tensor, " k"] | Int[Tensor, "n k"] = "answer",
) -> Float[Tensor, "points n *at d"]:
    """The residual stream at chosen positions: embedding output first, then after each block.

    Memory: the answer takes `4 * (blocks + 1) * n * k * width` bytes, k positions an example (1 for `answer`), float32 on
    the CPU. Beside it stand a copy of the model, and of one batch the streams at every position up to the last one asked
    for and the attention of every head, at most `BATCH_BYTES`: `batch_size` shrinks where more would not fit.

    Args:
        model: of a known architecture.
        examples: what it reads.
        batch_size: examples run at once, at most.
        positions: `answer` is the one that predicts the answer; `all` those up to the last such one, since what follows
            holds the answer; or 0-based positions, the same ones for all examples `[k]` or each example's own `[n, k]`.

    Returns:
        `[points, n, d]` for `answer`, else `[points, n, k, d]`.

    Raises:
        UserError: an unknown architecture, a position outside the sequence, or more than `MAX_BYTES`.
    """
    at = _positions(examples, positions)
    points, width = len(blocks(model)) + 1, int(model.config.hidden_size)
    size = 4 * points * at.numel() * width
    if size > MAX_BYTES:
        raise UserError(
            f"residual streams of {len(examples):,} examples at {at.shape[1]} positions take {size / 2**30:.1f} GiB, more "
            f"than {MAX_BYTES / 2**30:g}; ask for fewer examples or positions."
        )
    bridged, length = anatomy(model).bridged, int(at.max()) + 1
    floats = points * length * width + bridged * (points - 1) * int(model.config.num_attention_heads) * length**2
    batch_size = max(1, min(batch_size, BATCH_BYTES // (4 * floats)))
    read = _bridge_reader(model) if bridged else _hook_reader(model)
    parts: list[Tensor] = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size].to(model.device)
        here = at[start : start + batch_size].to(model.device)
        rows = torch.arange(len(batch), device=batch.tokens.device)[:, None]
        streams = read(batch, int(here.max()) + 1)
        parts.append(torch.stack([stream[rows, here] for stream in streams], dim=1).float().cpu())
    found = rearrange(torch.cat(parts), "n points k d -> points n k d")
    return found[:, :, 0] if isinstance(positions, str) and positions == "answer" else found


_Reader = Callable[[Examples, int], list[Tensor]]
"""`(batch, length) -> streams [n, t, d]` at every residual point."""


def _bridge_reader(model: PreTrainedModel) -> _Reader:
    """Reads through TransformerLens, on a copy of the model."""
    bridge = lens(model)
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(bridge.cfg.n_layers))]

    def read(batch: Examples, length: int) -> list[Tensor]:
        mask = None if batch.attention_mask is None else batch.attention_mask[:, :length].long()
        extra: dict[str, Any] = {} if mask is None else {"attention_mask": mask}
        found: Any = bridge.run_with_cache(
            batch.tokens[:, :length], return_cache_object=False, names_filter=names, return_type=None, **extra
        )
        cache: dict[str, Tensor] = found[1]
        return [cache[name] for name in names]

    return read


def _hook_reader(model: PreTrainedModel) -> _Reader:
    """Reads by plain hooks, where the one output of a block is the residual stream."""
    whole = blocks(model)

    def read(batch: Examples, length: int) -> list[Tensor]:
        seen: list[Any] = []
        with ExitStack() as stack:
            stack.callback(whole[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])).remove)
            for block in whole:
                stack.callback(block.register_forward_hook(lambda _, __, output: seen.append(output)).remove)
            hidden_states(model, batch, length)
        return seen

    return read


def _positions(examples: Examples, wanted: str | Tensor) -> Int[Tensor, "n k"]:
    """The positions of every example."""
    n, t = examples.tokens.shape
    if isinstance(wanted, Tensor):
        at = wanted.cpu().expand(n, -1) if wanted.dim() == 1 else wanted.cpu()
        if at.numel() == 0 or int(at.min()) < 0 or int(at.max()) >= t:
            raise UserError(f"positions {wanted.tolist()} do not lie in sequences of {t} tokens; give some from 0 to {t - 1}.")
        return at
    if wanted == "answer":
        return examples.answer_position.cpu()[:, None]
    if wanted == "all":
        return torch.arange(int(examples.answer_position.max()) + 1).expand(n, -1)
    raise UserError(f"there are no positions {wanted!r}; say 'answer', 'all', or give their numbers.")
