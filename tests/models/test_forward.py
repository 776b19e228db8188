"""Measures at the answer, held against loops over plain Hugging Face forward passes."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from workbench.models.forward import (
    accuracy,
    answer_logits,
    answer_tokens,
    evaluate,
    hidden_states,
    logits_where,
    nll,
    unembed,
)
from workbench.models.lens import residual_streams

K = pytest.mark.parametrize("k", [1, 2, 3])


def naive(model, examples):
    """Per example, one prompt at a time: is every answer token the argmax, and the summed -log p."""
    right, cost = [], []
    for i in range(len(examples)):
        all_right, total = True, 0.0
        for j in range(examples.answer.shape[1]):
            prefix = examples.tokens[i, : int(examples.answer_position[i]) + j + 1]
            logits = model(input_ids=prefix[None]).logits[0, -1].tolist()
            target = int(examples.answer[i, j])
            all_right &= max(range(len(logits)), key=logits.__getitem__) == target
            total += math.log(sum(math.exp(x) for x in logits)) - logits[target]
        right.append(float(all_right))
        cost.append(total)
    return torch.tensor(right), torch.tensor(cost)


def answered(model, examples, share=0.5):
    """The examples, with the model's own greedy answers in about half of the rows, so that some are right."""
    tokens, answer = examples.tokens.clone(), examples.answer.clone()
    for i in range(round(share * len(examples))):
        for j in range(answer.shape[1]):
            place = int(examples.answer_position[i]) + 1 + j
            answer[i, j] = tokens[i, place] = model(input_ids=tokens[i : i + 1, :place]).logits[0, -1].argmax()
    return replace(examples, tokens=tokens, answer=answer)


@K
@torch.no_grad()
def test_accuracy_and_nll_are_those_of_a_loop(make_model, random_examples, kind, k):
    model = make_model(kind)
    examples = answered(model, random_examples(n=8, t=10, k=k))
    right, cost = naive(model, examples)
    assert 0 < right.mean() < 1
    assert torch.equal(accuracy(model, examples), right)
    assert torch.allclose(nll(model, examples), cost, atol=1e-4)


def test_an_answer_is_right_only_when_all_its_tokens_are(make_model, random_examples):
    model = make_model()
    examples = answered(model, random_examples(k=2), share=1.0)
    assert evaluate(model, examples).mean() == 1
    for j in range(2):
        wrong = examples.answer.clone()
        wrong[:, j] = (wrong[:, j] + 1) % 20
        assert evaluate(model, replace(examples, answer=wrong)).sum() == 0


def test_the_answer_stands_after_the_position_that_predicts_it(random_examples):
    examples = random_examples(k=3)
    for i, places in enumerate(answer_tokens(examples).tolist()):
        assert places == [int(examples.answer_position[i]) + j for j in (1, 2, 3)]
        assert examples.tokens[i, places].tolist() == examples.answer[i].tolist()


@K
@torch.no_grad()
def test_answer_logits_are_the_whole_models_logits_there(make_model, random_examples, kind, k):
    model, examples = make_model(kind), random_examples(k=k)
    whole = model(input_ids=examples.tokens).logits
    rows = torch.arange(len(examples))[:, None]
    assert torch.allclose(answer_logits(model, examples), whole[rows, answer_tokens(examples) - 1], atol=1e-5)


@torch.no_grad()
def test_the_answer_itself_and_what_follows_it_cannot_be_seen(make_model, random_examples, kind):
    model, examples = make_model(kind), random_examples()
    after = torch.arange(10) > examples.answer_position[:, None]
    changed = replace(examples, tokens=torch.where(after, (examples.tokens + 1) % 20, examples.tokens))
    assert torch.allclose(answer_logits(model, examples), answer_logits(model, changed), atol=1e-6)


@K
@torch.no_grad()
def test_a_padded_row_is_the_row_alone(make_model, random_examples, kind, k):
    model, examples = make_model(kind), random_examples(k=k, padded=True)
    together = answer_logits(model, examples)
    for i in range(len(examples)):
        alone = replace(examples[i : i + 1], attention_mask=None)
        assert torch.allclose(together[i], answer_logits(model, alone)[0], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("read", [lambda m, e: answer_logits(m, e)[:, 0], lambda m, e: residual_streams(m, e)[-1]])
def test_padding_on_the_left_moves_nothing(make_model, random_examples, kind, read):
    model, examples = make_model(kind), random_examples(t=8)
    pad = torch.full((len(examples), 3), 7)
    padded = replace(
        examples,
        tokens=torch.cat([pad, examples.tokens], 1),
        loss_mask=torch.cat([pad == 0, examples.loss_mask], 1),
        answer_position=examples.answer_position + 3,
        attention_mask=torch.cat([pad == 0, examples.tokens >= 0], 1),
    )
    assert torch.allclose(read(model, padded), read(model, examples), atol=1e-4)


@torch.no_grad()
def test_a_mask_hides_what_it_masks(make_model, random_examples, kind):
    model, examples = make_model(kind), random_examples(n=1)
    hole = torch.ones(1, 10, dtype=torch.bool)
    hole[0, 2] = False
    masked = replace(examples, attention_mask=hole)
    tokens = examples.tokens.clone()
    tokens[0, 2] = (tokens[0, 2] + 1) % 20
    assert torch.allclose(answer_logits(model, masked), answer_logits(model, replace(masked, tokens=tokens)), atol=1e-6)
    assert not torch.allclose(answer_logits(model, examples), answer_logits(model, replace(examples, tokens=tokens)), atol=1e-4)


@torch.no_grad()
def test_hidden_states_are_those_after_the_last_norm(make_model, random_examples, kind):
    model, examples = make_model(kind), random_examples()
    hidden = hidden_states(model, examples, 7)
    assert torch.allclose(hidden, model(input_ids=examples.tokens[:, :7], output_hidden_states=True).hidden_states[-1])
    assert torch.allclose(unembed(model, hidden), model(input_ids=examples.tokens[:, :7]).logits, atol=1e-6)


@torch.no_grad()
def test_logits_at_a_mask_are_in_the_order_of_the_masked_tokens(make_model, random_examples, kind):
    model, examples = make_model(kind), random_examples(everywhere=True)
    mask = examples.loss_mask[:, 1:]
    assert torch.allclose(logits_where(model, examples, mask), model(input_ids=examples.tokens).logits[:, :-1][mask], atol=1e-5)


@torch.no_grad()
def test_a_model_that_caps_its_logits_is_not_read_around_the_cap(random_examples):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8, "vocab_size": 20}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = Gemma2ForCausalLM(
        Gemma2Config(**sizes, **heads, final_logit_softcapping=0.01, pad_token_id=0, bos_token_id=None, eos_token_id=None)
    ).eval()
    examples = random_examples(k=2)
    assert torch.allclose(nll(model, examples), naive(model, examples)[1], atol=1e-4)
    mask = examples.loss_mask[:, 1:]
    assert logits_where(model, examples, mask).abs().max() <= 0.01


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6, 100])
def test_the_batch_size_does_not_matter(make_model, random_examples, kind, batch_size):
    model, examples = make_model(kind), random_examples(n=6, padded=True)
    expected = evaluate(model, examples, nll, batch_size=4)
    found = evaluate(model, examples, nll, batch_size=batch_size)
    assert torch.allclose(found, expected, atol=1e-5)
    assert found.shape == (6,)
    assert not found.requires_grad


def test_gradients_reach_every_parameter_when_they_are_asked_for(make_model, random_examples, kind):
    model = make_model(kind)
    nll(model, random_examples()).mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
