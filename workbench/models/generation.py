"""Continuations of many prompts at once with a key-value cache, and how surprised models are by given texts, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from workbench.errors import UserError
from workbench.examples import Examples
from workbench.models.anatomy import anatomy, is_known
from workbench.models.divergence import BATCH, FLOATS, divergence_from
from workbench.models.forward import logits_where
from workbench.seeds import stream

CACHE_BYTES = 512_000_000
"""Keys and values that are held at once."""
MOST_ROWS = 256


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Int[Tensor, " _"]],
    *,
    new_tokens: int,
    eos_id: int | None,
    pad_id: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> list[Int[Tensor, " _"]]:
    """Continue prompts of different lengths; what comes back are the new tokens alone, up to `eos_id` and without it.

    A sample depends on `seed`, the prompt's place in `prompts` and its tokens, not on the batch it runs in: every prompt has
    its own generator. That holds up to rounding, since the last bits of logits depend on the shape of the batch: where the
    two best tokens lie within about 1e-6, for one token in a million, the other one may be taken. CPU and GPU draw differently.

    Args:
        model: a causal model; its weights and its training flags are as before when this returns.
        prompts: token ids, each at least one.
        new_tokens: at most so many per prompt.
        eos_id: the token that ends a text; None writes all `new_tokens`.
        pad_id: fills up on the left, masked out; any id of the vocabulary does.
        temperature: 0 takes the most likely token.
        top_k: sample from that many most likely tokens (more where they tie); None from all.
        seed: of the samples.
        batch_size: prompts at a time; those of about one length go together. As many as keep the cache small when None.
        on_step: called with (steps done, steps in all) over all batches; a batch that ends early jumps ahead.

    Returns:
        For each prompt, in the given order, its new tokens on the CPU.

    Raises:
        UserError: a setting or a prompt that the model cannot take.
    """
    size = _batch(model, max(map(len, prompts), default=0) + new_tokens) if batch_size is None else batch_size
    _check(model, prompts, new_tokens, pad_id, temperature, top_k, size)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    written: dict[int, Tensor] = {}
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    with _evaluating(model):
        for number, part in enumerate(parts):
            draw = _Draw([_generator(model.device, seed, i) for i in part], temperature, top_k)

            def tick(step: int, before: int = number * new_tokens) -> None:
                if on_step is not None:
                    on_step(before + step, len(parts) * new_tokens)

            found = _continue(model, [prompts[i] for i in part], draw, new_tokens, eos_id, pad_id, tick)
            written.update(zip(part, found, strict=True))
    return [written[i] for i in range(len(prompts))]


@dataclass
class _Draw:
    """How the next token is chosen, for the rows that still run."""

    generators: list[torch.Generator]
    temperature: float
    top_k: int | None

    def __call__(self, logits: Float[Tensor, "n vocab"]) -> Int[Tensor, " n"]:
        """Sample each row by the Gumbel trick, with noise of its own for every token.

        Inverting the cumulative distribution would need one number per row, and lets rounding decide vocabulary times as often.
        """
        if self.temperature > 0:
            if self.top_k is not None and self.top_k < logits.shape[1]:
                least = logits.topk(self.top_k, dim=-1).values[:, -1:]
                logits = logits.masked_fill(logits < least, -math.inf)
            noise = torch.empty_like(logits)
            for row, generator in zip(noise, self.generators, strict=True):
                row.exponential_(generator=generator)
            logits = logits - self.temperature * noise.log_()
        return logits.argmax(-1)

    def keep(self, rows: Bool[Tensor, " n"]) -> None:
        self.generators = [g for g, kept in zip(self.generators, rows.tolist(), strict=True) if kept]


def _continue(
    model: PreTrainedModel,
    prompts: list[Tensor],
    draw: _Draw,
    new_tokens: int,
    eos_id: int | None,
    pad_id: int,
    tick: Callable[[int], None],
) -> list[Tensor]:
    """One batch. transformers' own `generate` has one random stream per batch, so it could not serve."""
    width, device = max(map(len, prompts)), model.device
    fed = torch.full((len(prompts), width), pad_id)
    mask = torch.ones(len(prompts), width + new_tokens, dtype=torch.long)  # what is still to be written counts
    for row, prompt in enumerate(prompts):
        fed[row, width - len(prompt) :] = prompt.cpu()
        mask[row, : width - len(prompt)] = 0
    fed, mask = fed.to(device), mask.to(device)
    positions = mask.cumsum(1) - 1  # of real tokens, so that padding moves nothing; -1 in the padding itself
    written = torch.zeros(len(prompts), new_tokens, dtype=torch.long, device=device)
    lengths = torch.full((len(prompts),), new_tokens, device=device)
    running, cache, start, run = torch.arange(len(prompts), device=device), None, 0, _callable(model)
    for step in range(new_tokens):
        end = width + step
        out = run(
            input_ids=fed,
            attention_mask=mask[:, :end],
            position_ids=positions[:, start:end].clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache, start = out.past_key_values, end
        chosen = draw(out.logits[:, -1].float())
        written[running, step] = chosen
        if eos_id is not None and bool((chosen == eos_id).any()):
            going = chosen != eos_id
            lengths[running[~going]] = step
            if not bool(going.any()):
                break
            running, chosen, mask, positions = running[going], chosen[going], mask[going], positions[going]
            cache.batch_select_indices(going)
            draw.keep(going)
        fed = chosen[:, None]
        tick(step + 1)
    tick(new_tokens)
    return [row[:length].clone() for row, length in zip(written.cpu(), lengths.tolist(), strict=True)]


@torch.no_grad()
def surprisal(
    model: PreTrainedModel, tokens: Int[Tensor, "n t"], attention_mask: Bool[Tensor, "n t"] | None = None
) -> Float[Tensor, "n t-1"]:
    """-log p of each token but the first, in nats, given those before it; zero where it or the one before it is padding.

    Args:
        model: a causal model.
        tokens: ids.
        attention_mask: False at padding, on either side; None when nothing is padded.

    Returns:
        At column j what token j + 1 cost, on the CPU.
    """
    examples, counted = _texts(tokens, attention_mask)
    out = torch.zeros(counted.shape)
    size = max(1, min(BATCH, FLOATS // (int(model.config.vocab_size) * tokens.shape[1])))
    with _evaluating(model):
        for start in range(0, len(examples), size):
            batch, at = examples[start : start + size].to(model.device), counted[start : start + size]
            logits = logits_where(model, batch, at.to(model.device)).float()
            nats = torch.nn.functional.cross_entropy(logits, batch.tokens[:, 1:][at.to(model.device)], reduction="none")
            out[start : start + size][at] = nats.cpu()
    return out


def token_kl(
    p_model: PreTrainedModel,
    q_model: PreTrainedModel,
    tokens: Int[Tensor, "n t"],
    attention_mask: Bool[Tensor, "n t"] | None = None,
) -> Float[Tensor, "n t-1"]:
    """KL(p || q) in nats of the next token's distribution; at column j what is expected after tokens 0 to j.

    Zero where token j or j + 1 is padding, as in `surprisal`. See `workbench.models.divergence.divergence_from`.
    """
    examples, counted = _texts(tokens, attention_mask)
    with _evaluating(p_model), _evaluating(q_model):
        found = divergence_from(q_model, {"p": p_model}, examples)["p"]
    return torch.nn.functional.pad(found, (0, counted.shape[1] - found.shape[1])) * counted


def _texts(tokens: Int[Tensor, "n t"], mask: Bool[Tensor, "n t"] | None) -> tuple[Examples, Bool[Tensor, "n t-1"]]:
    """Plain texts as examples whose answer is their last real token, and the positions that predict a real token."""
    n, t = tokens.shape
    if n < 1 or t < 2:
        raise UserError(f"there are {n} texts of {t} tokens; give at least one text of two tokens or more.")
    real = torch.ones(n, t, dtype=torch.bool) if mask is None else mask.bool().cpu()
    last = torch.where(real, torch.arange(t), 0).amax(1)
    answer_position = (last - 1).clamp(min=0)
    tokens = tokens.cpu()
    examples = Examples(
        tokens=tokens,
        loss_mask=torch.zeros(n, t, dtype=torch.bool),
        answer_position=answer_position,
        answer=tokens.gather(1, answer_position[:, None] + 1),
        candidates=torch.arange(0),
        attention_mask=None if mask is None else real,
    )
    return examples, real[:, :-1] & real[:, 1:]


def _batch(model: PreTrainedModel, length: int) -> int:
    """Rows whose keys and values stay within `CACHE_BYTES`; a step takes about as long for few rows as for many."""
    layers, width = (int(getattr(model.config, name, None) or 1) for name in ("num_hidden_layers", "hidden_size"))
    return max(1, min(MOST_ROWS, CACHE_BYTES // max(1, 2 * 4 * layers * width * length)))


def _generator(device: torch.device, seed: int, prompt: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(stream(seed, "generation", prompt))


def _callable(model: PreTrainedModel) -> Callable[..., Any]:
    return model


@contextmanager
def _evaluating(model: PreTrainedModel) -> Generator[None]:
    """Evaluation mode inside; afterwards every module has the flag it had, also where they differ."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def _check(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    new_tokens: int,
    pad_id: int,
    temperature: float,
    top_k: int | None,
    batch_size: int,
) -> None:
    for name, value in (("new_tokens", new_tokens), ("batch_size", batch_size), ("top_k", 1 if top_k is None else top_k)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1.")
    if not 0 <= temperature < math.inf:
        raise UserError(f"the temperature is {temperature:g}; use 0 for the most likely token, or a positive number.")
    if is_known(model) and not anatomy(model).causal:
        raise UserError(f"{type(model).__name__} looks at the whole text at once and continues none; use a causal model.")
    vocab, context = int(model.config.vocab_size), getattr(model.config, "max_position_embeddings", None)
    if not 0 <= pad_id < vocab:
        raise UserError(
            f"the padding id {pad_id} is outside the model's vocabulary of {vocab}; use an id from 0 to {vocab - 1}."
        )
    for number, prompt in enumerate(prompts):
        if len(prompt) < 1:
            raise UserError(f"prompt {number} is empty; give at least one token, such as the one that begins a text.")
        least, most = int(prompt.min()), int(prompt.max())
        if least < 0 or most >= vocab:
            raise UserError(
                f"prompt {number} has the token id {least if least < 0 else most}, outside the model's vocabulary of {vocab}; "
                "use the tokenizer that the model was trained with."
            )
        if context is not None and len(prompt) + new_tokens > context:
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens, and {new_tokens} new ones go beyond the model's context of {context}; "
                f"write at most {max(0, context - len(prompt))} or shorten the prompt."
            )
