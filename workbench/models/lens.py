"""The lens: TransformerLens' bridge on a deep copy, made nowhere else.

A bridge rewires the module that it is given, so the model itself is never handed over. Its logits agree with the
plain model's to about 1e-6 in float32; training, fingerprints and curvature use the plain model. An architecture that
TransformerLens has no bridge for is read with plain hooks.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from workbench.errors import UserError
from workbench.examples import Examples
from workbench.models.anatomy import anatomy, blocks
from workbench.models.forward import hidden_states

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


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
def residual_streams(model: PreTrainedModel, examples: Examples, batch_size: int = 512) -> Float[Tensor, "points n d"]:
    """The residual stream at the position that predicts the answer: embedding output first, then after each block.

    Only these points at this one position are kept: `(blocks + 1) * n * width` floats.
    """
    if not anatomy(model).bridged:
        return _hooked_streams(model, examples, batch_size)
    bridge = lens(model)
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(bridge.cfg.n_layers))]
    parts: list[Tensor] = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size].to(model.device)
        length = int(batch.answer_position.max()) + 1
        mask = None if batch.attention_mask is None else batch.attention_mask[:, :length].long()
        extra: dict[str, Any] = {} if mask is None else {"attention_mask": mask}
        found: Any = bridge.run_with_cache(
            batch.tokens[:, :length], return_cache_object=False, names_filter=names, return_type=None, **extra
        )
        cache: dict[str, Tensor] = found[1]
        rows = torch.arange(len(batch), device=batch.tokens.device)
        parts.append(torch.stack([cache[name][rows, batch.answer_position] for name in names], dim=1).float().cpu())
    return rearrange(torch.cat(parts), "n points d -> points n d")


def _hooked_streams(model: PreTrainedModel, examples: Examples, batch_size: int) -> Float[Tensor, "points n d"]:
    """The same by plain hooks on the blocks, for blocks whose one output is the residual stream."""
    seen: list[Any] = []
    whole = blocks(model)
    hooks = [whole[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))]
    hooks += [block.register_forward_hook(lambda _, __, output: seen.append(output)) for block in whole]
    parts: list[Tensor] = []
    try:
        for start in range(0, len(examples), batch_size):
            batch = examples[start : start + batch_size].to(model.device)
            seen.clear()
            hidden_states(model, batch, int(batch.answer_position.max()) + 1)
            rows = torch.arange(len(batch), device=batch.tokens.device)
            parts.append(torch.stack([stream[rows, batch.answer_position] for stream in seen], dim=1).float().cpu())
    finally:
        for hook in hooks:
            hook.remove()
    return rearrange(torch.cat(parts), "n points d -> points n d")
