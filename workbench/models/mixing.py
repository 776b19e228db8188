"""Two models on the same prompts: heads and neurons of one write in the place of the other's, wholly or by a share.

What a head or neuron writes is its activation through its own model's output projection, with an equal share of that
projection's bias. So all heads of a block write what its attention writes, all neurons what its MLP writes, and all of
them with the embedding the other model's final residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.models.anatomy import answers_alone, head_outputs, head_shape, matrix, neuron_outputs, neuron_shape
from workbench.models.forward import answer_tokens, model_inputs
from workbench.models.sensitivity import inputs_of


@dataclass(frozen=True)
class Inner:
    """What the output projections of a model's blocks are given on some prompts, at all positions that it is shown."""

    model: PreTrainedModel
    heads: Sequence[Float[Tensor, "n t _"]]
    """Outputs of the heads, one after the other."""
    neurons: Sequence[Float[Tensor, "n t _"]]

    def of(self, rows: Int[Tensor, " r"]) -> Inner:
        """On some of the prompts."""
        return Inner(self.model, [x[rows] for x in self.heads], [x[rows] for x in self.neurons])


@torch.no_grad()
def inner(model: PreTrainedModel, examples: Examples) -> Inner:
    """Run a model on prompts and keep what its heads and neurons hold: `4 * n * t * (heads' width + neurons)` bytes a block."""
    heads, neurons = head_outputs(model), neuron_outputs(model)
    with inputs_of([*heads, *neurons]) as found:
        model.base_model(**model_inputs(model, examples, int(answer_tokens(examples).max())))
    return Inner(model, found[: len(heads)], found[len(heads) :])


@contextmanager
def mixed(
    receiver: PreTrainedModel,
    donor: Inner,
    heads: Float[Tensor, "blocks heads"],
    neurons: Float[Tensor, "blocks neurons"],
) -> Generator[None]:
    """Forward passes in which each head and neuron writes (1 - m) of its own and m of the donor's, downstream of such others.

    Gradients reach the shares m. At m = 0 throughout the receiver is as it was, bit for bit. Embedding, final norm and
    head stay the receiver's. The passes must be over the prompts that `donor` has seen.

    Args:
        receiver: runs.
        donor: activations of another model of the same shape, of a causal one perhaps at later positions as well.
        heads: the share m of each head.
        neurons: the share m of each hidden neuron.

    Raises:
        ValueError: shares of a shape that does not fit the model.
    """
    if tuple(heads.shape) != head_shape(receiver) or tuple(neurons.shape) != neuron_shape(receiver):
        raise ValueError(
            f"shares of shape {tuple(heads.shape)} and {tuple(neurons.shape)} do not fit a model of {head_shape(receiver)} "
            f"(blocks, heads) and {neuron_shape(receiver)} (blocks, neurons)"
        )
    sites = (
        (head_outputs(receiver), head_outputs(donor.model), donor.heads, heads),
        (neuron_outputs(receiver), neuron_outputs(donor.model), donor.neurons, neurons),
    )
    with ExitStack() as stack:
        for own, others, given, shares in sites:
            for block, module in enumerate(own):
                last = block == len(own) - 1
                share, projection = shares[block], others[block]
                stack.callback(module.register_forward_pre_hook(_keeping(share)).remove)
                stack.callback(module.register_forward_hook(_adding(projection, share, given[block], last)).remove)
        yield


def _wide(share: Float[Tensor, " units"], width: int) -> Float[Tensor, " width"]:
    return share.repeat_interleave(width // len(share))


def _keeping(share: Float[Tensor, " units"]) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda _, inputs: (inputs[0] * (1 - _wide(share, inputs[0].shape[-1])), *inputs[1:])


def _adding(
    projection: nn.Module, share: Float[Tensor, " units"], given: Float[Tensor, "n t _"], last: bool
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    """What the donor's units add to the output of the receiver's projection; of the last block at the answers alone, if so run."""

    def hook(module: nn.Module, _: tuple[Any, ...], output: Tensor) -> Tensor:
        at = answers_alone() if last else None
        held = given[:, : output.shape[1]] if at is None else given[at]
        added = held * _wide(share, held.shape[-1]) @ matrix(projection).T
        own, other = getattr(module, "bias", None), getattr(projection, "bias", None)
        if own is not None and other is not None:
            added = added + share.mean() * (other - own)
        # The neurons run at the answers alone, the attention's output has been put back to where it belongs.
        return output + added if output.shape == added.shape else output.index_put(at, added, accumulate=True)  # pyright: ignore[reportArgumentType]

    return hook
