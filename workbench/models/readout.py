"""Residual streams read out by the model's own last step: whole ones (logit lens), and what each component adds to a logit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.models.anatomy import blocks, final_norm, head_outputs, head_shape, matrix
from workbench.models.forward import unembed
from workbench.models.sites import Site, components, record


def read_out(model: PreTrainedModel, stream: Float[Tensor, "*rest d"]) -> Float[Tensor, "*rest vocab"]:
    """Logits of a residual stream: the final norm, where there is one, then the head [nostalgebraist 2020].

    After the last block these are the model's logits.

    Raises:
        UserError: the architecture is unknown.
    """
    norm = final_norm(model)
    return unembed(model, stream if norm is None else norm(stream))


@dataclass(frozen=True)
class Part:
    """One term of a logit."""

    kind: Literal["embedding", "head", "attention bias", "mlp", "final norm bias", "unembedding bias"]
    """`head`: one attention head through its part of the output projection, which has the `attention bias`; `mlp`: all that
    the MLP writes, its bias included."""
    block: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        """For instance `head 1.3` (block.head, from 0), `mlp 0` or `embedding`."""
        place = "" if self.block is None else f" {self.block}"
        return self.kind + place + ("" if self.head is None else f".{self.head}")


@dataclass(frozen=True)
class Attribution:
    """A difference of logits as a sum over the parts of a model."""

    parts: tuple[Part, ...]
    values: Float[Tensor, "n parts"]
    difference: Float[Tensor, " n"]
    """The model's own: what the parts sum to."""


@torch.no_grad()
def attribute(
    model: PreTrainedModel,
    examples: Examples,
    plus: Int[Tensor, "n p"],
    minus: Int[Tensor, "n m"],
    batch_size: int = 64,
) -> Attribution:
    """Direct logit attribution: mean logit of the tokens `plus` minus that of `minus`, at the answer, as a sum over parts.

    The final norm divides by a scale that depends on all parts together; it is held at its actual value on each example,
    and with it the logits are linear in what was added to the residual stream. A LayerNorm's centring is linear and applied
    to every part. What a part does through later ones is counted as theirs.

    Args:
        model: of a known architecture.
        examples: prompts.
        plus: token ids, each example's own.
        minus: token ids that are held against them.
        batch_size: examples run at once; activations are kept at the answer's position alone.

    Returns:
        Values in logits, in float64 on the CPU.

    Raises:
        UserError: the architecture is unknown.
        RuntimeError: the parts do not sum to the difference, to rounding.
    """
    found: list[tuple[Tensor, Tensor]] = []
    parts = _parts(model)
    for start in range(0, len(examples), batch_size):
        rows = slice(start, start + batch_size)
        here = [tokens[rows].to(model.device) for tokens in (plus, minus)]
        found.append(_batch(model, examples[rows].to(model.device), here[0], here[1]))
    values, difference = (torch.cat(column).cpu() for column in zip(*found, strict=True))
    error = (values.sum(1) - difference).abs()
    # Every part is rounded once, so that errors grow with the parts and not with what is left of them. Some norms work in
    # single precision whatever the model's.
    rounding = max(torch.finfo(kind).eps for kind in (model.dtype, torch.float32))
    allowed = 1e3 * rounding * (1 + values.abs().sum(1))
    if bool((error > allowed).any()):
        raise RuntimeError(f"the parts of {type(model).__name__} miss its logit difference by {float(error.max()):.1e}")
    return Attribution(parts, values, difference)


def _parts(model: PreTrainedModel) -> tuple[Part, ...]:
    """All terms that the model has, in the order of the computation."""
    found: list[Part] = [Part("embedding")]
    for block, output in enumerate(head_outputs(model)):
        found += [Part("head", block, head) for head in range(head_shape(model)[1])]
        found += [Part("attention bias", block)] if _bias(output) is not None else []
        found.append(Part("mlp", block))
    ends: tuple[tuple[nn.Module | None, Part], ...] = (
        (final_norm(model), Part("final norm bias")),
        (model.get_output_embeddings(), Part("unembedding bias")),
    )
    return (*found, *(part for module, part in ends if _bias(module) is not None))


def _bias(module: nn.Module | None) -> Tensor | None:
    """A module's bias in float64; None where it has none."""
    bias: Tensor | None = getattr(module, "bias", None)
    return None if bias is None else bias.double()


def _batch(
    model: PreTrainedModel, batch: Examples, plus: Int[Tensor, "n p"], minus: Int[Tensor, "n m"]
) -> tuple[Float[Tensor, "n parts"], Float[Tensor, " n"]]:
    """The terms in the order of `_parts`, and the difference of the model's own logits."""
    end = Site("stream", len(blocks(model)))
    states = record(model, batch, [*components(model), end], batch.answer_position[:, None])
    stream = states.pop(end)[:, 0]

    def difference(table: Tensor) -> Tensor:
        """The mean row of the tokens `plus` minus that of `minus`."""
        return table[plus].double().mean(1) - table[minus].double().mean(1)

    head: Any = model.get_output_embeddings()
    direction = difference(head.weight)
    seen = _before_norm(final_norm(model), stream, direction)
    columns: list[Tensor] = []
    for site, state in states.items():
        x = state[:, 0].double()
        if site.head is None:
            columns.append((x * seen).sum(1))
            continue
        output, width = head_outputs(model)[site.block], x.shape[1]
        columns.append((x * (seen @ matrix(output)[:, site.head * width :][:, :width].double())).sum(1))
        if site.head == head_shape(model)[1] - 1 and (bias := _bias(output)) is not None:
            columns.append(seen @ bias)
    if (shift := _bias(final_norm(model))) is not None:
        columns.append(direction @ shift)
    if (bias := _bias(head)) is not None:
        columns.append(difference(bias))
    logits = read_out(model, stream)
    own = logits.gather(1, plus).double().mean(1) - logits.gather(1, minus).double().mean(1)
    return torch.stack(columns, dim=1), own


def _before_norm(norm: nn.Module | None, stream: Float[Tensor, "n d"], direction: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The direction before the final norm that belongs to one after it, with the norm's scale on this stream.

    The scale is read off the norm's own output, which is `scale * gain * stream (centred) + bias`.
    """
    if norm is None:
        return direction
    gain, x, y = norm.get_parameter("weight").double(), stream.double(), norm(stream).double()
    shift, centred = _bias(norm), isinstance(norm, nn.LayerNorm)
    gained = gain * (x - x.mean(-1, keepdim=True) if centred else x)
    scale = ((y if shift is None else y - shift) * gained).sum(-1, keepdim=True) / gained.square().sum(-1, keepdim=True)
    before = scale * gain * direction
    return before - before.mean(-1, keepdim=True) if centred else before
