"""Masks over components, learned by gradient descent: which few of a donor's heads and neurons give a model the wanted answers.

Desideratum-based component masking [2307.03637; 2402.14811]: a component writes (1 - m) of the receiver's own and m of the
donor's on the same prompt. m starts at 1, where all components are the donor's, and minimises the loss of the wanted
answers plus a penalty on the sum of m; after every step it is cut off at 0 and 1, so that most of it ends there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.models.anatomy import head_shape, neuron_shape
from workbench.models.forward import accuracy, nll
from workbench.models.mixing import inner, mixed
from workbench.models.sensitivity import slopes_at_once
from workbench.seeds import torch_generator

KEEP_BYTES = 256 * 2**20
"""What the donor holds is kept up to this size: of all training prompts, else of one step; and of one batch to be answered."""
BATCH = 128


@dataclass(frozen=True)
class Mask:
    """Shares of the donor in [0, 1]."""

    heads: Float[Tensor, "blocks heads"]
    neurons: Float[Tensor, "blocks units"]
    """Of each hidden neuron, or `units` = 1: of the MLP as a whole."""

    @property
    def rounded(self) -> Mask:
        """1 where the share is above a half."""
        return Mask((self.heads > 0.5).float(), (self.neurons > 0.5).float())

    @property
    def counts(self) -> tuple[int, int]:
        """Heads, and neurons or MLPs, whose share is above a half."""
        return int((self.heads > 0.5).sum()), int((self.neurons > 0.5).sum())

    def fitted(self, model: PreTrainedModel) -> tuple[Float[Tensor, "blocks heads"], Float[Tensor, "blocks neurons"]]:
        """The shares as `mixed` takes them."""
        neurons = self.neurons.expand(-1, neuron_shape(model)[1])
        return self.heads.to(model.device, model.dtype), neurons.to(model.device, model.dtype)


def constant_mask(model: PreTrainedModel, value: float, whole_mlps: bool) -> Mask:
    """The same share of every component."""
    blocks, neurons = neuron_shape(model)
    return Mask(torch.full(head_shape(model), value), torch.full((blocks, 1 if whole_mlps else neurons), value))


def random_mask(like: Mask, seed: int, *labels: str | int) -> Mask:
    """As many whole heads, and as many neurons or MLPs, chosen at random."""
    generator = torch_generator(seed, "random components", *labels)
    parts: list[Tensor] = []
    for shares, count in zip((like.heads, like.neurons), like.counts, strict=True):
        chosen = torch.zeros(shares.numel())
        chosen[torch.randperm(shares.numel(), generator=generator)[:count]] = 1
        parts.append(chosen.view_as(shares))
    return Mask(*parts)


def learn_mask(
    receiver: PreTrainedModel,
    donor: PreTrainedModel,
    examples: Examples,
    penalty: float,
    *,
    whole_mlps: bool,
    steps: int,
    rate: float,
    batch_size: int,
    seed: int,
) -> Mask:
    """Descend on mean negative log-likelihood of the answers (nats) + `penalty` * sum of m, by Adam.

    Args:
        receiver: runs; its weights are not changed.
        donor: of the same configuration.
        examples: prompts with the wanted answers.
        penalty: nats for each component.
        whole_mlps: one share for each MLP instead of each of its neurons.
        steps: of Adam.
        rate: of Adam; a share can move by about this much in a step.
        batch_size: prompts a step.
        seed: of the batches.
    """
    start = constant_mask(receiver, 1.0, whole_mlps)
    shares = [part.to(receiver.device, receiver.dtype).requires_grad_() for part in (start.heads, start.neurons)]
    optimizer = torch.optim.Adam(shares, lr=rate)
    held = inner(donor, examples.to(donor.device)) if len(examples) <= _kept(donor, examples) else None
    at_once = slopes_at_once(receiver, examples, batch_size)  # larger steps run in parts, whose slopes add up
    for rows in _steps(len(examples), steps, batch_size, seed):
        optimizer.zero_grad()
        for i, some in enumerate(rows.split(at_once)):
            batch = examples[some]
            given = inner(donor, batch.to(donor.device)) if held is None else held.of(some)
            with torch.enable_grad(), mixed(receiver, given, *Mask(*shares).fitted(receiver)):
                loss = nll(receiver, batch.to(receiver.device)).mean() * (len(some) / len(rows))
                if i == 0:
                    loss = loss + penalty * sum(part.sum() for part in shares)
            loss.backward(inputs=shares)
        optimizer.step()
        with torch.no_grad():
            for part in shares:
                part.clamp_(0, 1)
    return Mask(*(part.detach().float().cpu() for part in shares))


def _steps(n: int, steps: int, size: int, seed: int) -> Sequence[Int[Tensor, " rows"]]:
    """Random prompts for every step; every prompt is seen before any comes again."""
    generator = torch_generator(seed, "mask batches")
    order = torch.cat([torch.randperm(n, generator=generator) for _ in range(-(-steps * size // n))])
    return order[: steps * size].split(size)


def _kept(donor: PreTrainedModel, examples: Examples) -> int:
    """Of how many prompts what the donor holds fits into `KEEP_BYTES`."""
    blocks, neurons = neuron_shape(donor)
    return KEEP_BYTES // (4 * examples.tokens.shape[1] * blocks * (neurons + donor.config.hidden_size))


@torch.no_grad()
def answered(
    receiver: PreTrainedModel, donor: PreTrainedModel, examples: Examples, masks: Sequence[Mask]
) -> Bool[Tensor, "masks n"]:
    """Whether the receiver gives the wanted answers, with each mask; of the first n examples."""
    found: list[Tensor] = []
    size = min(BATCH, max(1, _kept(donor, examples)))
    for start in range(0, len(examples), size):
        batch = examples[start : start + size].to(receiver.device)
        given = inner(donor, batch.to(donor.device))
        rows: list[Tensor] = []
        for mask in masks:
            with mixed(receiver, given, *mask.fitted(receiver)):
                rows.append(accuracy(receiver, batch).bool().cpu())
        found.append(torch.stack(rows))
    return torch.cat(found, dim=1)
