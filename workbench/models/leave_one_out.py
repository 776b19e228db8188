"""Leave-one-out, exactly and for all units in one call: what loss and accuracy become without each neuron or head.

What comes before a unit is computed once. In the last block a neuron i changes the residual stream at the answer by
-h_i W2_i and nothing else. In the block before it, it does so at every token; there keys and values follow in closed form
from a rank-one change of what the norm is given, so that no projection runs again. Everything else resumes at the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.models.anatomy import (
    anatomy,
    blocks,
    final_norm,
    head_outputs,
    head_shape,
    matrix,
    neuron_outputs,
    scaled_inputs,
)
from workbench.models.forward import answer_logits, answer_tokens, unembed
from workbench.models.resume import block_inputs, resumed
from workbench.models.sensitivity import inputs_of
from workbench.models.units import units_of

AT_ONCE = 1_000_000
"""Floats of hidden states that are ablated together: larger ones fall out of the caches."""


@dataclass(frozen=True)
class LeftOut:
    """Effects of removing each unit alone, on the mean over the examples."""

    loss: Float[Tensor, "blocks units"]
    """Change of the mean negative log-likelihood (nats); negative: the loss is lower without the unit."""
    accuracy: Float[Tensor, "blocks units"]
    """Change of the accuracy; positive: more answers are right without the unit."""
    base_loss: float
    base_accuracy: float


Outcome = Float[Tensor, "units two"]
"""Summed loss and number of right answers over the examples of a batch."""


@torch.no_grad()
def leave_one_out(model: PreTrainedModel, examples: Examples, kind: str = "neurons", batch_size: int = 128) -> LeftOut:
    """Remove every unit alone and measure.

    Args:
        model: of a known architecture.
        examples: with answers.
        kind: `neurons` or `heads`.
        batch_size: examples at a time.

    Raises:
        UserError: an unknown architecture.
        ValueError: another kind of unit.
    """
    if kind not in ("neurons", "heads"):
        raise ValueError(f"units left out one at a time are neurons or heads, not {kind}")
    units = units_of(model, kind)
    shape = (len(units.parts), len(units) // len(units.parts))
    plain, without = torch.zeros(2, dtype=torch.float64), torch.zeros(*shape, 2, dtype=torch.float64)
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size].to(model.device)
        trace = _trace(model, batch)
        plain += _outcome(trace.logits[None], batch).squeeze(0).cpu()
        for index in range(shape[0]):
            effects = _neurons(trace, index) if kind == "neurons" else _heads(trace, index)
            without[index] += torch.cat(list(effects)).cpu()
    change = (without - plain) / len(examples)
    base = plain / len(examples)
    return LeftOut(change[..., 0], change[..., 1], float(base[0]), float(base[1]))


@dataclass(frozen=True)
class _Trace:
    """One pass of the whole model over a batch."""

    model: PreTrainedModel
    batch: Examples
    logits: Float[Tensor, "n k vocab"]
    inputs: list[Float[Tensor, "n t d"]]
    """Of each block."""
    hidden: list[Float[Tensor, "n _ m"]]
    """Activations of the neurons; of the last block at the answer alone `[n, k, m]`."""
    final: Float[Tensor, "n k d"]
    """The residual stream after the last block, at the answer."""


def _trace(model: PreTrainedModel, batch: Examples) -> _Trace:
    # What the final norm is given, or, where there is none, the head.
    last = final_norm(model) or model.get_output_embeddings()
    assert last is not None
    with block_inputs(model) as inputs, inputs_of([*neuron_outputs(model), last]) as found:
        logits = answer_logits(model, batch)
    at = answer_tokens(batch) - 1
    rows = torch.arange(len(batch), device=at.device)[:, None]
    final = found[-1] if final_norm(model) is None else found[-1][rows, at]  # the head runs at the answer alone
    return _Trace(model, batch, logits, inputs, found[:-1], final)


def _outcome(logits: Float[Tensor, "units n k vocab"], batch: Examples) -> Outcome:
    answer = batch.answer.expand(*logits.shape[:-1])
    loss = logits.logsumexp(-1) - logits.gather(-1, answer[..., None]).squeeze(-1)
    right = batch.right(logits.argmax(-1)).all(-1)
    return torch.stack([loss.double().sum((1, 2)), right.double().sum(1)], dim=1)


def _at_the_end(trace: _Trace, final: Float[Tensor, "units n k d"]) -> Outcome:
    norm = final_norm(trace.model)
    return _outcome(unembed(trace.model, norm(final) if norm else final), trace.batch)


def _from(trace: _Trace, block: int, hidden: Float[Tensor, "rows t d"]) -> Outcome:
    """All examples once per unit, from a block on."""
    n = len(trace.batch)
    rows = torch.arange(n, device=hidden.device).repeat(len(hidden) // n)
    with resumed(trace.model, block, hidden):
        logits = answer_logits(trace.model, trace.batch[rows])
    return _outcome(rearrange(logits, "(units n) k vocab -> units n k vocab", n=n), trace.batch)


def _chunks(units: int, floats: int) -> Iterator[slice]:
    size = max(1, AT_ONCE // floats)
    return (slice(start, start + size) for start in range(0, units, size))


def _neurons(trace: _Trace, index: int) -> Iterator[Outcome]:
    """Outcomes without each neuron of a block, some units at a time."""
    model, last = trace.model, len(trace.inputs) - 1
    writes = matrix(neuron_outputs(model)[index]).T  # [m, d]
    h = trace.hidden[index]
    if index == last:
        for part in _chunks(len(writes), trace.final.numel()):
            change = rearrange(h[..., part], "n k u -> u n k 1") * rearrange(writes[part], "u d -> u 1 1 d")
            yield _at_the_end(trace, trace.final - change)
        return
    x = trace.inputs[index + 1]
    if index + 1 == last and _is_fused(model) and trace.batch.answer.shape[1] == 1:
        attention = _LastAttention(trace)
        floats = len(x) * (x.shape[1] * (2 + head_shape(model)[1]) + 6 * x.shape[2])
        for part in _chunks(len(writes), floats):
            yield _at_the_end(trace, attention(h[..., part], writes[part]))
        return
    for part in _chunks(len(writes), x.numel()):
        change = rearrange(h[..., part], "n t u -> u n t 1") * rearrange(writes[part], "u d -> u 1 1 d")
        yield _from(trace, index + 1, (x - change).flatten(0, 1))


def _heads(trace: _Trace, index: int) -> Iterator[Outcome]:
    """Outcomes without each head of a block."""
    module, x = head_outputs(trace.model)[index], trace.inputs[index]
    heads, width = head_shape(trace.model)[1], matrix(module).shape[1]
    masks = (1 - torch.eye(heads, dtype=x.dtype, device=x.device)).repeat_interleave(width // heads, dim=1)
    for part in _chunks(heads, 4 * x.numel()):
        chosen = masks[part]
        factor = chosen.repeat_interleave(len(x), dim=0)[:, None]
        with scaled_inputs([module], [factor]):
            yield _from(trace, index, x.repeat(len(chosen), 1, 1))


def _is_fused(model: PreTrainedModel) -> bool:
    """Whether keys and values are linear in a LayerNorm's output: one fused matrix, and no rotation by position."""
    sites = anatomy(model)
    if len(sites.attention_in) > 1 or sites.attention_norm is None:
        return False
    return isinstance(blocks(model)[-1].get_submodule(sites.attention_norm), nn.LayerNorm)


class _LastAttention:
    """The last block at the answer, when its input is `x[n, t] - h[n, t] w` with another `h` and `w` for every unit.

    LayerNorm of that is `s (xc - h wc) * gain + bias`, where `c` means centred and `s = (var + eps)^-1/2` with
    `var = (|xc|^2 - 2 h xc.wc + h^2 |wc|^2) / d`. Keys and values are linear in it, so that attention needs `K xc` once for
    all units, `K wc` once for each, and the numbers `s` and `h` per token.
    """

    def __init__(self, trace: _Trace) -> None:
        model, sites = trace.model, anatomy(trace.model)
        self.block: Any = blocks(model)[-1]
        assert sites.attention_norm is not None  # `_is_fused` says so
        assert sites.mlp_norm is not None
        self.norm: Any = self.block.get_submodule(sites.attention_norm)
        self.out: Callable[[Tensor], Tensor] = self.block.get_submodule(sites.attention_out)
        self.mlp: Callable[[Tensor], Tensor] = self.block.get_submodule(sites.mlp)
        self.mlp_norm: Callable[[Tensor], Tensor] = self.block.get_submodule(sites.mlp_norm)
        self.scaling: float = self.block.get_submodule(sites.attention_in[0].rpartition(".")[0]).scaling
        self.heads = head_shape(model)[1]
        fused = self.block.get_submodule(sites.attention_in[0])
        self.query, self.key, self.value = matrix(fused).chunk(3)
        self.query_bias, _, self.value_bias = fused.bias.chunk(3)
        self.x, self.at = trace.inputs[-1], trace.batch.answer_position
        self.rows = torch.arange(len(self.x), device=self.x.device)
        self.centred = self.x - self.x.mean(-1, keepdim=True)
        self.square = self.centred.square().mean(-1)
        self.keys = self._split(self.centred * self.norm.weight @ self.key.T, "n t (h d) -> n h d t")
        self.values = self._split(self.centred * self.norm.weight @ self.value.T, "n t (h d) -> n h t d")
        self.hidden_from_answer = self._unseen(trace.batch)

    def _split(self, joined: Tensor, pattern: str) -> Tensor:
        return rearrange(joined, pattern, h=self.heads).contiguous()

    def _unseen(self, batch: Examples) -> Bool[Tensor, "n 1 1 t"]:
        t = self.x.shape[1]
        unseen = torch.arange(t, device=self.x.device) > self.at[:, None]
        if batch.attention_mask is not None:
            unseen |= ~batch.attention_mask[:, :t]
        return unseen[:, None, None]

    def __call__(self, h: Float[Tensor, "n t u"], writes: Float[Tensor, "u d"]) -> Float[Tensor, "u n 1 d"]:
        """The residual stream after the block, at the answer, for every unit."""
        h_at = h[self.rows, self.at]  # [n, u]
        h = rearrange(h, "n t u -> n u t")
        wc = writes - writes.mean(-1, keepdim=True)
        cross = torch.einsum("ntd,ud->nut", self.centred, wc) / wc.shape[-1]
        variance = self.square[:, None] - 2 * h * cross + h.square() * wc.square().mean(-1)[:, None]
        s = (variance + self.norm.eps).rsqrt()
        x = self.x[self.rows, self.at] - rearrange(h_at, "n u -> u n 1") * writes[:, None]
        query = (self.norm(x) @ self.query.T + self.query_bias) * self.scaling
        query = self._split(query, "u n (h d) -> n h u d")
        key_change = self._split(wc * self.norm.weight @ self.key.T, "u (h d) -> h u d")
        value_change = self._split(wc * self.norm.weight @ self.value.T, "u (h d) -> h u d")
        # What is the same at every token (the norm's bias, the key's) does not move a softmax.
        product = query @ self.keys - h[:, None] * (query * key_change).sum(-1, keepdim=True)
        weight = (product * s[:, None]).masked_fill_(self.hidden_from_answer, -torch.inf).softmax(-1) * s[:, None]
        z = weight @ self.values - (weight * h[:, None]).sum(-1, keepdim=True) * value_change
        constant = self.norm.bias @ self.value.T + self.value_bias
        middle = x + self.out(rearrange(z, "n h u d -> u n (h d)") + constant)
        return (middle + self.mlp(self.mlp_norm(middle)))[:, :, None]
