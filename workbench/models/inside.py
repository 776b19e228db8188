"""What happens inside a model on given texts: attention patterns and hidden neurons, for every known architecture."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from workbench.errors import UserError
from workbench.examples import Examples
from workbench.models.anatomy import anatomy, neuron_outputs
from workbench.models.forward import model_inputs


@torch.no_grad()
def attention_patterns(model: PreTrainedModel, examples: Examples) -> Float[Tensor, "blocks n heads query key"]:
    """How much each position attends to each other one; rows sum to 1.

    A causal model is shown the sequence up to the last position that answers, any other the whole of it. Fused kernels do
    not say what they attended, so a copy runs with plain attention.

    Raises:
        UserError: the architecture is unknown.
    """
    anatomy(model)
    plain = copy.deepcopy(model).eval()
    if plain.config._attn_implementation != "eager" and anatomy(model).bridged:  # pyright: ignore[reportPrivateUsage]
        plain.set_attn_implementation("eager")
    found = plain.base_model(**model_inputs(model, examples, seen(examples)), output_attentions=True).attentions
    return torch.stack([pattern.float().cpu() for pattern in found])


@torch.no_grad()
def hidden_neurons(model: PreTrainedModel, examples: Examples, block: int) -> Float[Tensor, "n t neurons"]:
    """Activations of a block's hidden MLP neurons, after the nonlinearity, at every position that the model is shown.

    Raises:
        UserError: the architecture is unknown, or the model has no such block.
    """
    outputs = neuron_outputs(model)
    if not 0 <= block < len(outputs):
        raise UserError(f"the model has no block {block}; its blocks go from 0 to {len(outputs) - 1}.")
    kept: list[Tensor] = []
    hook = outputs[block].register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].float().cpu()))
    try:
        model.base_model(**model_inputs(model, examples, seen(examples)))
    finally:
        hook.remove()
    return kept[0]


@torch.no_grad()
def answering_neurons(model: PreTrainedModel, examples: Examples) -> Float[Tensor, "n blocks neurons"]:
    """As `hidden_neurons`, of every block in one pass, at the position that predicts the answer.

    Raises:
        UserError: the architecture is unknown.
    """
    at = (torch.arange(len(examples), device=examples.tokens.device), examples.answer_position)
    kept: list[Tensor] = []
    with ExitStack() as stack:
        for module in neuron_outputs(model):
            hook = module.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0][at].float().cpu()))
            stack.callback(hook.remove)
        model.base_model(**model_inputs(model, examples, seen(examples)))
    return torch.stack(kept, dim=1)


def seen(examples: Examples) -> int:
    """Tokens up to the last position that answers; what follows is the answer, which a map must not show."""
    return int(examples.answer_position.max()) + 1


def neuron_names(model: PreTrainedModel, block: int) -> list[str]:
    """What each hidden neuron of a block is called: a compiled model says what it does, any other numbers them."""
    labels = getattr(model.config, "neuron_labels", None)
    width = neuron_outputs(model)[block].get_parameter("weight").numel() // model.config.hidden_size
    named = list(labels[block]) if labels else [""] * width
    return [name or f"neuron {i}" for i, name in enumerate(named)]


def with_names(model: PreTrainedModel, table: pd.DataFrame) -> pd.DataFrame:
    """A table of units (see `Units.table`) of a compiled model with what they were compiled to do; any other as it is.

    Neurons get a `name`. Rows of matrices get the direction, head channel or neuron that they write (`writes`), single weights
    also the one that they read (`reads`). Channels of heads have numbers alone; noise and training may have changed the rest.
    """
    residual = getattr(model.config, "residual_labels", None)
    if not residual or "head" in table:
        return table
    blocks = {block: neuron_names(model, block) for block in table["block"].unique().tolist()}
    if "neuron" in table:
        return table.assign(name=[blocks[block][i] for block, i in zip(table["block"], table["neuron"], strict=True)])
    config, sites = model.config, anatomy(model)
    channels = [f"head {head} channel {i}" for head in range(config.num_attention_heads) for i in range(config.head_dim)]

    def ends(block: int, path: str) -> tuple[list[str], list[str]]:
        inner = blocks[block] if path in (*sites.mlp_in, sites.mlp_out) else channels
        return (inner, residual) if path in (sites.attention_out, sites.mlp_out) else (residual, inner)

    both = [ends(block, path) for block, path in zip(table["block"], table["matrix"], strict=True)]
    named = table.assign(writes=[writes[i] for (_, writes), i in zip(both, table["row"], strict=True)])
    if "column" in table:
        named.insert(len(named.columns) - 1, "reads", [reads[i] for (reads, _), i in zip(both, table["column"], strict=True)])
    return named
