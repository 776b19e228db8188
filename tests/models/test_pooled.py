"""Means over the last tokens of texts against a loop that runs one text at a time, without padding."""

from __future__ import annotations

import pytest
import torch

from workbench.errors import UserError
from workbench.examples import Examples
from workbench.models.build import build_model
from workbench.models.pooled import last_positions, pooled_streams
from workbench.models.spec import ModelSpec

PAD, END, LENGTHS = 11, 10, (9, 3, 14, 1, 6, 14)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    return build_model(ModelSpec(kind=request.param, blocks=2, heads=2, width=16), 12, 16, seed=0)


def texts(side: str) -> Examples:
    """Ragged texts of random tokens, each behind a first token that is no part of it; all but the longest have an end."""
    generator = torch.Generator().manual_seed(0)
    rows, masks, losses = [], [], []
    for length in LENGTHS:
        own = [0, *torch.randint(1, 10, (length,), generator=generator).tolist()] + ([END] if length < 14 else [])
        gap = 16 - len(own)
        around = (lambda x, fill, gap=gap: [fill] * gap + x) if side == "left" else (lambda x, fill, gap=gap: x + [fill] * gap)
        rows.append(around(own, PAD))
        masks.append(around([True] * len(own), False))
        losses.append(around([False] + [True] * (len(own) - 1), False))
    tokens = torch.tensor(rows)
    return Examples(
        tokens=tokens,
        loss_mask=torch.tensor(losses),
        answer_position=torch.full((len(rows),), 14),
        answer=tokens[:, -1:],
        candidates=torch.arange(12),
        attention_mask=torch.tensor(masks),
    )


def one_by_one(model, examples: Examples, count: int) -> torch.Tensor:
    """Hidden states as transformers gives them, of the text alone; the last one from a hook, before the final norm."""
    found = []
    for i, length in enumerate(LENGTHS):
        ids = examples.tokens[i][examples.attention_mask[i]][None]
        kept = []
        blocks = model.transformer.h if hasattr(model, "transformer") else model.model.layers
        hook = blocks[-1].register_forward_hook(lambda _, __, out, kept=kept: kept.append(out))
        with torch.no_grad():
            states = [*model(input_ids=ids, output_hidden_states=True).hidden_states[:-1], kept[0]]
        hook.remove()
        ends = list(range(1, length + 1))[-count:]
        found.append(torch.stack([torch.stack([s[0, e] for e in ends]).mean(0) for s in states]))
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tokens", [1, 40, 10_000])
def test_means_are_those_of_each_text_alone(model, side, tokens):
    examples = texts(side)
    found = pooled_streams(model, examples, last_positions(examples, 4, END), tokens)
    assert found.shape == (3, len(LENGTHS), 16)
    torch.testing.assert_close(found, one_by_one(model, examples, 4), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_are_the_last_ones_of_the_text(side):
    examples = texts(side)
    chosen = last_positions(examples, 4, END)
    assert chosen.sum(1).tolist() == [min(4, length) for length in LENGTHS]
    for i, length in enumerate(LENGTHS):
        text = examples.tokens[i][examples.attention_mask[i]][1 : 1 + length]
        assert examples.tokens[i][chosen[i]].tolist() == text[-4:].tolist()
    with_end = last_positions(examples, 1)
    assert examples.tokens[with_end].tolist()[:2] == [END, END]


def test_texts_without_a_mask_are_whole(model):
    examples = texts("right")
    full = torch.tensor([length == 14 for length in LENGTHS])  # neither padding nor end
    whole = Examples(**{**examples[full].__dict__, "attention_mask": None})
    where = torch.zeros_like(whole.loss_mask)
    where[:, 5:9] = True
    masked = Examples(**{**whole.__dict__, "attention_mask": torch.ones_like(whole.loss_mask)})
    torch.testing.assert_close(pooled_streams(model, whole, where), pooled_streams(model, masked, where))


def test_a_text_without_a_token_is_refused(model):
    examples = texts("right")
    nowhere = last_positions(examples, 4)
    nowhere[3] = False
    with pytest.raises(UserError, match="text 3 of 6 has no token to average over"):
        pooled_streams(model, examples, nowhere)
