"""Where neurons, heads, residual streams and norms live in each architecture: the one table of sites, and masks on neurons."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.errors import UserError


@dataclass(frozen=True)
class Anatomy:
    """Module paths of one architecture; all but the first three are relative to a block. None: it has no such norm."""

    blocks: str
    final_norm: str | None
    embeddings: tuple[str, ...]
    attention_norm: str | None
    attention_out: str
    """Its input is the concatenated outputs of the heads."""
    mlp_norm: str | None
    mlp: str
    mlp_in: tuple[str, ...]
    mlp_out: str
    """Its input is the hidden neurons, after the nonlinearity."""
    causal: bool = True
    """False where a position sees those after it: such a model must always be shown the whole sequence."""
    bridged: bool = True
    """Whether TransformerLens has a bridge for it."""


_TABLE = {
    "GPT2LMHeadModel": Anatomy(
        blocks="transformer.h",
        final_norm="transformer.ln_f",
        embeddings=("transformer.wte", "transformer.wpe"),
        attention_norm="ln_1",
        attention_out="attn.c_proj",
        mlp_norm="ln_2",
        mlp="mlp",
        mlp_in=("mlp.c_fc",),
        mlp_out="mlp.c_proj",
    ),
    "LlamaForCausalLM": Anatomy(
        blocks="model.layers",
        final_norm="model.norm",
        embeddings=("model.embed_tokens",),
        attention_norm="input_layernorm",
        attention_out="self_attn.o_proj",
        mlp_norm="post_attention_layernorm",
        mlp="mlp",
        mlp_in=("mlp.gate_proj", "mlp.up_proj"),
        mlp_out="mlp.down_proj",
    ),
    "CompiledForCausalLM": Anatomy(
        blocks="model.blocks",
        final_norm=None,
        embeddings=("model.token_embedding", "model.position_embedding"),
        attention_norm=None,
        attention_out="attention.output",
        mlp_norm=None,
        mlp="mlp",
        mlp_in=("mlp.input",),
        mlp_out="mlp.output",
        causal=False,
        bridged=False,
    ),
}


def is_known(model: nn.Module) -> bool:
    """Whether the table has the model's architecture."""
    return type(model).__name__ in _TABLE


def anatomy(model: nn.Module) -> Anatomy:
    """The sites of a model's architecture.

    Raises:
        UserError: the architecture is not in the table.
    """
    name = type(model).__name__
    if name not in _TABLE:
        raise UserError(f"the sites of {name} are not known; known architectures: {', '.join(_TABLE)}.")
    return _TABLE[name]


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks in order."""
    return list(model.get_submodule(anatomy(model).blocks).children())


def neuron_outputs(model: nn.Module) -> list[nn.Module]:
    """Per block, the projection whose input is the block's hidden MLP neurons."""
    return [block.get_submodule(anatomy(model).mlp_out) for block in blocks(model)]


def neuron_shape(model: nn.Module) -> tuple[int, int]:
    """`(blocks, hidden neurons per block)`."""
    weights = [module.get_parameter("weight") for module in neuron_outputs(model)]
    # GPT-2's Conv1D stores [in, out], nn.Linear [out, in].
    axis = 1 if isinstance(neuron_outputs(model)[0], nn.Linear) else 0
    return len(weights), int(weights[0].shape[axis])


@contextmanager
def neuron_mask(model: nn.Module, mask: Float[Tensor, "blocks neurons"]) -> Generator[None]:
    """Multiply every hidden MLP neuron by `mask[block, neuron]` while the context is open.

    A zero removes the neuron exactly as zeroing its input row, its bias and its output column would. The mask may
    require gradients: its gradient is the first-order effect of the unit.
    """
    expected = neuron_shape(model)
    if tuple(mask.shape) != expected:
        raise ValueError(f"mask of shape {tuple(mask.shape)} does not fit a model of {expected} (blocks, neurons)")
    with ExitStack() as stack:
        for module, row in zip(neuron_outputs(model), mask, strict=True):

            def apply(_: nn.Module, inputs: tuple[Any, ...], row: Tensor = row) -> tuple[Any, ...]:
                return (inputs[0] * row, *inputs[1:])

            stack.callback(module.register_forward_pre_hook(apply).remove)
        yield


@contextmanager
def last_block_at(model: nn.Module, positions: Int[Tensor, "n k"]) -> Generator[None]:
    """Run the last block's MLP and attention output at `positions` alone while the context is open.

    Final hidden states are right at these positions and meaningless elsewhere, which is all that a loss or a measure
    at the answer needs: of a two-block model it saves two fifths of the work. A model of unknown architecture runs whole.
    """
    if not is_known(model):
        yield
        return
    rows = torch.arange(len(positions), device=positions.device)[:, None]
    shape: list[torch.Size] = []

    def pick(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        shape.append(inputs[0].shape)
        return (inputs[0][rows, positions], *inputs[1:])

    def put_back(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        n, t, _width = shape.pop()
        return output.new_zeros(n, t, output.shape[-1]).index_put((rows, positions), output)

    block, sites = blocks(model)[-1], anatomy(model)
    with ExitStack() as stack:
        for name in (sites.attention_out, sites.mlp):
            module = block.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(pick).remove)
            stack.callback(module.register_forward_hook(put_back).remove)
        yield
