"""Divergence by position against torch's own, one example at a time."""

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from workbench.models import divergence
from workbench.models.compiled import build
from workbench.models.divergence import divergence_from, predicted
from workbench.models.fingerprint import check_unchanged
from workbench.protocols import compiled_weights, load_task


def by_hand(reference, model, examples):
    """KL(model || reference) at every position that counts, zero elsewhere."""
    last = examples.answer_position + examples.answer.shape[1] - 1
    out = torch.zeros(len(examples), int(last.max()) + 1, dtype=torch.float64)
    for i in range(len(examples)):
        kept = slice(None) if examples.attention_mask is None else examples.attention_mask[i].bool()
        tokens = examples.tokens[i][kept][None]
        pad = examples.tokens.shape[1] - tokens.shape[1]
        left = examples.attention_mask is not None and not bool(examples.attention_mask[i, 0])
        for t in range(int(last[i]) + 1 - (pad if left else 0)):
            after, before = (Categorical(logits=m(input_ids=tokens).logits[0, t].double()) for m in (model, reference))
            out[i, t + (pad if left else 0)] = kl_divergence(after, before)
    return out


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("k", [1, 2])
@torch.no_grad()
def test_it_is_the_divergence_of_the_next_token_at_every_position(make_model, random_examples, kind, k):
    base, other = make_model(kind), make_model(kind, seed=1)
    examples = random_examples(k=k)
    with check_unchanged(base, other):
        found = divergence_from(base, {"other": other}, examples)["other"]
    assert torch.allclose(found.double(), by_hand(base, other, examples), atol=1e-5)
    assert predicted(examples).sum(1).tolist() == (examples.answer_position + k).tolist()


@torch.no_grad()
def test_padding_counts_nothing(make_model, random_examples, left_padded):
    base, other = make_model(), make_model(seed=1)
    for examples in (random_examples(padded=True), left_padded):
        found = divergence_from(base, {"other": other}, examples)["other"]
        assert torch.allclose(found.double(), by_hand(base, other, examples), atol=1e-5)
    assert not found[~left_padded.attention_mask[:, : found.shape[1]]].any()


def test_a_model_does_not_diverge_from_itself_and_the_order_of_two_matters(make_model, random_examples):
    base, other, examples = make_model(), make_model(seed=1), random_examples()
    found = divergence_from(base, {"same": base, "other": other}, examples)
    assert not found["same"].any()
    back = divergence_from(other, {"base": base}, examples)["base"]
    assert not torch.allclose(found["other"], back, atol=1e-3)


def test_batches_of_ragged_examples_are_one(make_model, random_examples, monkeypatch):
    base, other, examples = make_model(), make_model(seed=1), random_examples(n=9)
    whole = divergence_from(base, {"other": other}, examples)["other"]
    monkeypatch.setattr(divergence, "FLOATS", 2 * 20 * examples.tokens.shape[1])  # two examples at a time
    assert torch.allclose(divergence_from(base, {"other": other}, examples)["other"], whole, atol=1e-6)


def test_a_bidirectional_model_is_shown_the_whole_sequence():
    task = load_task({"kind": "rasp", "length": 6, "letters": 3})
    a, b = (build(compiled_weights(task, name), 0.0) for name in ("count_a", "count_b"))
    examples = task.capability("count_a").examples(8, 0)
    with torch.no_grad():
        found = divergence_from(a, {"b": b}, examples)["b"]
        logits = [m(input_ids=examples.tokens).logits.double().log_softmax(-1)[:, : found.shape[1]] for m in (a, b)]
    expected = (logits[1].exp() * (logits[1] - logits[0])).sum(-1)
    assert torch.allclose(found.double(), expected, atol=1e-4, rtol=1e-4)
