"""Where neurons, heads, residual streams and norms live in each architecture: the one table of sites, and masks on units."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
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
    attention_in: tuple[str, ...]
    """Queries, keys and values: one fused matrix, or three."""
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
        attention_in=("attn.c_attn",),
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
        attention_in=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
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
        attention_in=("attention.query", "attention.key", "attention.value"),
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


def final_norm(model: nn.Module) -> nn.Module | None:
    """The norm before the head; None for an architecture that has none."""
    path = anatomy(model).final_norm
    return model.get_submodule(path) if path else None


def matrix(module: nn.Module) -> Float[Tensor, "out in"]:
    """A view of a projection's weight, one row per output: GPT-2's Conv1D stores `[in, out]`, `nn.Linear` `[out, in]`."""
    weight = module.get_parameter("weight")
    return weight if isinstance(module, nn.Linear) else weight.T


def neuron_outputs(model: nn.Module) -> list[nn.Module]:
    """Per block, the projection whose input is the block's hidden MLP neurons."""
    return [block.get_submodule(anatomy(model).mlp_out) for block in blocks(model)]


def head_outputs(model: nn.Module) -> list[nn.Module]:
    """Per block, the projection whose input is the concatenated outputs of the block's attention heads."""
    return [block.get_submodule(anatomy(model).attention_out) for block in blocks(model)]


def neuron_shape(model: nn.Module) -> tuple[int, int]:
    """`(blocks, hidden neurons per block)`."""
    modules = neuron_outputs(model)
    return len(modules), int(matrix(modules[0]).shape[1])


def head_shape(model: nn.Module) -> tuple[int, int]:
    """`(blocks, heads per block)`; query heads, where several share their keys and values."""
    config: Any = model.config
    return len(blocks(model)), int(config.num_attention_heads)


@contextmanager
def scaled_inputs(modules: Sequence[nn.Module], factors: Sequence[Tensor] | Tensor) -> Generator[None]:
    """Multiply the input of each module by its factor, which broadcasts against it, while the context is open."""
    with ExitStack() as stack:
        for module, factor in zip(modules, factors, strict=True):

            def apply(_: nn.Module, inputs: tuple[Any, ...], factor: Tensor = factor) -> tuple[Any, ...]:
                return (inputs[0] * factor, *inputs[1:])

            stack.callback(module.register_forward_pre_hook(apply).remove)
        yield


@contextmanager
def neuron_mask(model: nn.Module, mask: Float[Tensor, "blocks neurons"]) -> Generator[None]:
    """Multiply every hidden MLP neuron by `mask[block, neuron]` while the context is open.

    A zero removes the neuron exactly as zeroing its input row, its bias and its output column would. The mask may
    require gradients: its gradient is the first-order effect of the unit.
    """
    expected = neuron_shape(model)
    if tuple(mask.shape) != expected:
        raise ValueError(f"mask of shape {tuple(mask.shape)} does not fit a model of {expected} (blocks, neurons)")
    with scaled_inputs(neuron_outputs(model), mask):
        yield


@contextmanager
def head_mask(model: nn.Module, mask: Float[Tensor, "blocks heads"]) -> Generator[None]:
    """Multiply the output of every attention head by `mask[block, head]` while the context is open.

    A zero removes what the head writes; the output bias of its attention stays.
    """
    expected = head_shape(model)
    if tuple(mask.shape) != expected:
        raise ValueError(f"mask of shape {tuple(mask.shape)} does not fit a model of {expected} (blocks, heads)")
    modules = head_outputs(model)
    with scaled_inputs(modules, mask.repeat_interleave(matrix(modules[0]).shape[1] // expected[1], dim=1)):
        yield


_ANSWERS: ContextVar[tuple[Tensor, Tensor] | None] = ContextVar("answers", default=None)


def answers_alone() -> tuple[Int[Tensor, "n 1"], Int[Tensor, "n k"]] | None:
    """Rows and positions at which the last block's neurons run while `last_block_at` is open; None: everywhere."""
    return _ANSWERS.get()


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
        stack.callback(_ANSWERS.reset, _ANSWERS.set((rows, positions)))
        for name in (sites.attention_out, sites.mlp):
            module = block.get_submodule(name)
            # Last among the pre-hooks and first among the hooks: whoever else changes what goes in or out sees whole sequences.
            stack.callback(module.register_forward_pre_hook(pick).remove)
            stack.callback(module.register_forward_hook(put_back, prepend=True).remove)
        yield
