"""Components of a model by name: what each writes, read on given texts and replaced by something else.

A component writes into the residual stream: the embedding, each block's attention (or one of its heads) and its MLP. Streams
themselves are sites too. Plain hooks do the work, so that every known architecture has the same sites and the model that
is trained is the one that is read.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.models.anatomy import anatomy, answers_alone, blocks, head_outputs, head_shape, neuron_outputs
from workbench.models.forward import model_inputs
from workbench.models.inside import seen

Kind = Literal["stream", "middle", "attention", "head", "mlp", "neurons"]


@dataclass(frozen=True, order=True)
class Site:
    """A place in a model where `[n, t, width]` activations can be read and replaced."""

    kind: Kind
    """`stream`: the residual stream that a block is given, with `block` = number of blocks after the last one; `middle`: the
    one between attention and MLP; `attention`, `mlp`: what they write; `head`: the output of one head before the output
    projection; `neurons`: hidden MLP neurons after the nonlinearity."""
    block: int
    head: int | None = None

    def __str__(self) -> str:
        """For instance `head 1.3` (block.head, from 0) or `stream 2`."""
        return f"{self.kind} {self.block}" + ("" if self.head is None else f".{self.head}")


EMBEDDING = Site("stream", 0)
"""The sum of token and position embeddings."""


def components(model: PreTrainedModel, *, heads: bool = True) -> list[Site]:
    """All that writes into the residual stream, in the order of the computation; attention by head or as a whole.

    A model with the same outputs at all of these has the same final stream: they sum to it (heads with their projections
    and its bias).
    """
    count = head_shape(model)[1]
    found = [EMBEDDING]
    for block in range(len(blocks(model))):
        attention = [Site("head", block, h) for h in range(count)] if heads else [Site("attention", block)]
        found += [*attention, Site("mlp", block)]
    return found


@torch.no_grad()
def record(
    model: PreTrainedModel, examples: Examples, sites: Sequence[Site], at: Int[Tensor, "n k"] | None = None
) -> dict[Site, Float[Tensor, "n _ _"]]:
    """Activations at these sites, at all positions that the model is shown (up to the last one that answers) or those at `at`.

    Memory: what is returned. Tensors stay on the model's device, so the caller batches.

    Raises:
        UserError: the architecture is unknown.
        IndexError: the model has no such block or head.
    """
    found: dict[Site, Tensor] = {}
    rows = torch.arange(len(examples), device=examples.tokens.device)[:, None]

    def keep(site: Site) -> Callable[[Tensor], None]:
        return lambda x: found.__setitem__(site, x if at is None else x[rows, at])

    with edited(model, {site: keep(site) for site in sites}):
        model.base_model(**model_inputs(model, examples, seen(examples)))
    return {site: found[site] for site in sites}


@dataclass(frozen=True)
class Replacement:
    """What is put in the place of a site's activations."""

    value: Float[Tensor, "n t _"]
    """May be shorter in `t` than the sequence; what is beyond stays as it is."""
    where: Bool[Tensor, "n _"] | None = None
    """Positions that are replaced; None: all."""


@contextmanager
def replaced(model: nn.Module, changes: Mapping[Site, Replacement]) -> Generator[None]:
    """Forward passes run with these activations in place of their own while the context is open.

    Downstream components see the change. `middle` is the stream that both the MLP and the skip path read, unlike the
    hook of this name in TransformerLens. Gradients flow into `value`. Enter it around `answer_logits`: both see whole sequences.

    Raises:
        IndexError: the model has no such block or head.
        ValueError: shapes that do not fit.
    """
    with edited(model, {site: _putting(site, change) for site, change in changes.items()}):
        yield


def _putting(site: Site, change: Replacement) -> Callable[[Tensor], Tensor]:
    def put(x: Tensor) -> Tensor:
        t = min(x.shape[1], change.value.shape[1])
        if change.value.shape[0] != x.shape[0] or change.value.shape[2] != x.shape[2]:
            raise ValueError(f"{site} holds {tuple(x.shape)}, the replacement {tuple(change.value.shape)}")
        new = change.value[:, :t]
        if change.where is not None:
            new = torch.where(change.where[:, :t, None], new, x[:, :t])
        return new if t == x.shape[1] else torch.cat([new, x[:, t:]], dim=1)

    return put


Tapped = Callable[[Tensor], Tensor | None]
"""Given a site's activations; what it returns takes their place, None leaves them."""


@contextmanager
def edited(model: nn.Module, edits: Mapping[Site, Tapped]) -> Generator[None]:
    """Forward passes call `edits[site]` on the activations of each site while the context is open.

    An edit of `middle` is given what an edit of the same block's stream left, where the stream comes first in `edits`.

    Raises:
        IndexError: the model has no such block or head.
    """
    with ExitStack() as stack:
        for site, edit in edits.items():
            stack.enter_context(_tap(model, site, edit))
        yield


@contextmanager
def _tap(model: nn.Module, site: Site, tapped: Tapped) -> Generator[None]:
    """Call `tapped` on the activations of a site in every forward pass."""
    whole = blocks(model)
    last = len(whole) if site.kind == "stream" else len(whole) - 1
    if not 0 <= site.block <= last:
        raise IndexError(f"the model has no {site}; blocks go from 0 to {last}")
    with ExitStack() as stack:
        if site.kind == "stream" and site.block < len(whole):
            stack.callback(whole[site.block].register_forward_pre_hook(_before(tapped)).remove)
        elif site.kind == "stream":
            stack.callback(whole[-1].register_forward_hook(_after(tapped)).remove)
        elif site.kind == "middle":
            _middle(model, site.block, tapped, stack)
        elif site.kind == "head":
            stack.callback(head_outputs(model)[site.block].register_forward_pre_hook(_one_head(model, site, tapped)).remove)
        elif site.kind == "neurons":
            hook = _before(_at_answers(tapped) if site.block == last else tapped)
            stack.callback(neuron_outputs(model)[site.block].register_forward_pre_hook(hook).remove)
        else:
            path = anatomy(model).attention_out if site.kind == "attention" else anatomy(model).mlp
            stack.callback(whole[site.block].get_submodule(path).register_forward_hook(_after(tapped)).remove)
        yield


def _at_answers(tapped: Tapped) -> Tapped:
    """The last block's neurons may run at the answer alone; `tapped` is given whole sequences all the same."""

    def whole(x: Tensor) -> Tensor | None:
        if (at := answers_alone()) is None:
            return tapped(x)
        new = tapped(x.new_zeros(len(x), int(at[1].max()) + 1, x.shape[-1]).index_put(at, x))
        return None if new is None else new[at]

    return whole


def _before(tapped: Tapped) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        new = tapped(inputs[0])
        return None if new is None else (new, *inputs[1:])

    return hook


def _after(tapped: Tapped) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
    return lambda _, __, output: tapped(output)


def _one_head(model: nn.Module, site: Site, tapped: Tapped) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
    heads = head_shape(model)[1]
    if site.head is None or not 0 <= site.head < heads:
        raise IndexError(f"the model has no {site}; heads go from 0 to {heads - 1}")
    index = site.head

    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        width = inputs[0].shape[-1] // heads
        part = slice(index * width, (index + 1) * width)
        new = tapped(inputs[0][..., part])
        if new is None:
            return None
        whole = torch.cat([inputs[0][..., : part.start], new, inputs[0][..., part.stop :]], dim=-1)
        return (whole, *inputs[1:])

    return hook


def _middle(model: nn.Module, block: int, tapped: Tapped, stack: ExitStack) -> None:
    """The stream between attention and MLP is no module's output: what attention writes is changed by the difference."""
    before: list[Tensor] = []

    def keep(x: Tensor) -> None:
        before[:] = [x]

    def after(output: Tensor) -> Tensor | None:
        new = tapped(before[0] + output)
        return None if new is None else new - before[0]

    stack.enter_context(_tap(model, Site("stream", block), keep))
    stack.enter_context(_tap(model, Site("attention", block), after))
