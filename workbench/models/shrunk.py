"""Models whose blocks have sizes of their own: what is left of a GPT-2 or Llama when units were cut out.

The classes are known to `AutoConfig` and `AutoModelForCausalLM` once `workbench.models.checkpoints` is imported, so that a
saved folder opens as any other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D


def _config(name: str, parent: type[Any], model_type: str, *sizes: str) -> type[Any]:
    """A configuration with a list of sizes, one per block, beside all that its parent has.

    By `type`, since transformers makes a dataclass of it that takes any keyword, which run-time type checkers do not follow.
    """
    lists = {f"block_{size}": list[int] | None for size in sizes}
    return type(
        name,
        (parent,),
        {"__module__": __name__, "__annotations__": lists, "model_type": model_type, **dict.fromkeys(lists)},
    )


ShrunkGPT2Config = _config("ShrunkGPT2Config", GPT2Config, "shrunk_gpt2", "neurons", "heads")
ShrunkLlamaConfig = _config("ShrunkLlamaConfig", LlamaConfig, "shrunk_llama", "neurons", "heads", "key_value_heads")


class ShrunkGPT2LMHeadModel(GPT2LMHeadModel):
    """GPT-2 with `block_neurons[b]` hidden neurons and `block_heads[b]` heads in block b."""

    config_class = ShrunkGPT2Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width, layers = config.hidden_size, cast(Iterable[Any], self.transformer.h)
        for block, neurons, heads in zip(layers, config.block_neurons, config.block_heads, strict=True):
            attention, inner = block.attn, heads * block.attn.head_dim
            attention.c_attn, attention.c_proj = Conv1D(3 * inner, width), Conv1D(width, inner)
            attention.num_heads, attention.split_size = heads, inner
            block.mlp = GPT2MLP(neurons, config)
        self.post_init()


class ShrunkLlamaForCausalLM(LlamaForCausalLM):
    """Llama with sizes of its own in each block; every key and value head serves as many query heads as the next."""

    config_class = ShrunkLlamaConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width, layers = config.hidden_size, cast(Iterable[Any], self.model.layers)
        sizes = (config.block_neurons, config.block_heads, config.block_key_value_heads)
        for block, neurons, heads, shared in zip(layers, *sizes, strict=True):
            attention, head, bias = block.self_attn, block.self_attn.head_dim, config.attention_bias
            attention.q_proj, attention.o_proj = nn.Linear(width, heads * head, bias), nn.Linear(heads * head, width, bias)
            attention.k_proj, attention.v_proj = (nn.Linear(width, shared * head, bias) for _ in range(2))
            attention.num_key_value_groups = heads // shared
            mlp, bias = block.mlp, config.mlp_bias
            mlp.gate_proj, mlp.up_proj = (nn.Linear(width, neurons, bias) for _ in range(2))
            mlp.down_proj, mlp.intermediate_size = nn.Linear(neurons, width, bias), neurons
        self.post_init()


SHRUNK: dict[str, tuple[type[Any], type[Any]]] = {
    "GPT2LMHeadModel": (ShrunkGPT2Config, ShrunkGPT2LMHeadModel),
    "LlamaForCausalLM": (ShrunkLlamaConfig, ShrunkLlamaForCausalLM),
}
"""Config and model class of what an architecture shrinks to."""


def register() -> None:
    """Make the classes known to the auto classes; doing it twice changes nothing."""
    for config, model in SHRUNK.values():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)
