"""Masks over components: a planted difference is found exactly, and a mask is what `mixed` does with it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from workbench.models import component_masks
from workbench.models.anatomy import head_outputs, head_shape, matrix, neuron_outputs, neuron_shape
from workbench.models.component_masks import Mask, answered, constant_mask, learn_mask, random_mask
from workbench.models.fingerprint import check_unchanged
from workbench.models.forward import accuracy, answer_logits, nll
from workbench.models.mixing import inner, mixed
from workbench.models.swaps import answers

HEAD, NEURONS = (0, 1), ((0, 5), (1, 2))
TRAINING = {"whole_mlps": False, "steps": 40, "rate": 0.1, "batch_size": 16, "seed": 0}


@pytest.fixture(params=["gpt2", "llama"])
def planted(request, make_model, random_examples):
    """`(receiver, donor, examples)`: what one head and two neurons write differs; the wanted answers are the donor's."""
    receiver = make_model(request.param)
    donor, generator = copy.deepcopy(receiver), torch.Generator().manual_seed(1)
    width = matrix(head_outputs(donor)[0]).shape[1] // head_shape(donor)[1]
    with torch.no_grad():
        block, head = HEAD
        part = matrix(head_outputs(donor)[block])[:, head * width : (head + 1) * width]
        part.add_(4 * torch.randn(part.shape, generator=generator))
        for block, neuron in NEURONS:
            column = matrix(neuron_outputs(donor)[block])[:, neuron]
            column.add_(12 * torch.randn(column.shape, generator=generator))
    examples = random_examples(n=96, t=11)
    return receiver, donor, replace(examples, answer=answers(donor, examples).given)


def taken(mask):
    return [tuple(at) for at in (mask.heads > 0.5).nonzero().tolist()], [
        tuple(at) for at in (mask.neurons > 0.5).nonzero().tolist()
    ]


def test_a_planted_difference_is_found_exactly(planted):
    receiver, donor, examples = planted
    with check_unchanged(receiver, donor):
        mask = learn_mask(receiver, donor, examples, 1e-3, **TRAINING)
    assert taken(mask) == ([HEAD], list(NEURONS))
    assert answered(receiver, donor, examples, [mask.rounded]).all()
    assert not answered(receiver, donor, examples, [constant_mask(receiver, 0.0, False)]).all()


def test_whole_mlps_are_found_as_wholes(planted):
    receiver, donor, examples = planted
    mask = learn_mask(receiver, donor, examples, 1e-3, **{**TRAINING, "whole_mlps": True})
    assert mask.neurons.shape == (2, 1)
    assert taken(mask) == ([HEAD], [(0, 0), (1, 0)])


def test_a_high_price_buys_nothing_and_no_price_keeps_all(planted):
    receiver, donor, examples = planted
    nothing = learn_mask(receiver, donor, examples, 100.0, **TRAINING)
    assert nothing.counts == (0, 0)
    assert torch.equal(nothing.heads, torch.zeros(head_shape(receiver)))
    same = learn_mask(receiver, receiver, examples, 1e-9, **{**TRAINING, "rate": 1e-6, "steps": 2})
    assert same.counts == (4, 48)


def test_one_step_is_adams_first(planted):
    """Adam's first step is the rate times the sign of the slope of loss + penalty, cut off at 1."""
    receiver, donor, examples = planted
    start = [part.requires_grad_() for part in constant_mask(receiver, 1.0, False).fitted(receiver)]
    with mixed(receiver, inner(donor, examples), *start):
        loss = nll(receiver, examples).mean()
    slopes = [slope + 1e-4 for slope in torch.autograd.grad(loss, start)]
    found = learn_mask(receiver, donor, examples, 1e-4, **{**TRAINING, "steps": 1, "batch_size": 96})
    assert any((slope < 0).any() for slope in slopes)  # something is worth more than its price
    for part, slope in zip((found.heads, found.neurons), slopes, strict=True):
        assert torch.allclose(part, (1 - 0.1 * slope.sign()).clamp(0, 1), atol=1e-4)


@pytest.mark.slow
def test_activations_kept_or_made_anew_give_the_same_mask(planted, monkeypatch):
    receiver, donor, examples = planted
    kept = learn_mask(receiver, donor, examples, 0.01, **TRAINING)
    monkeypatch.setattr(component_masks, "KEEP_BYTES", 0)
    anew = learn_mask(receiver, donor, examples, 0.01, **TRAINING)
    assert torch.allclose(kept.heads, anew.heads, atol=1e-4)
    assert torch.allclose(kept.neurons, anew.neurons, atol=1e-4)


def test_a_step_in_parts_is_the_same_step(planted, monkeypatch):
    receiver, donor, examples = planted
    whole = learn_mask(receiver, donor, examples, 0.01, **{**TRAINING, "steps": 5})
    monkeypatch.setattr(component_masks, "slopes_at_once", lambda *_: 5)  # steps of 16 prompts run as 5, 5, 5 and 1
    parts = learn_mask(receiver, donor, examples, 0.01, **{**TRAINING, "steps": 5})
    assert not torch.equal(whole.heads, torch.ones_like(whole.heads))
    assert torch.allclose(whole.heads, parts.heads, atol=1e-3)
    assert torch.allclose(whole.neurons, parts.neurons, atol=1e-3)


def test_every_prompt_is_seen_before_any_comes_again():
    seen = component_masks._steps(96, 7, 32, 0)
    assert [len(rows) for rows in seen] == [32] * 7
    for epoch in (seen[:3], seen[3:6]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(96))
    assert not torch.equal(torch.cat(seen[:3]), torch.cat(seen[3:6]))


def test_what_is_held_on_some_prompts(planted):
    _, donor, examples = planted
    rows = torch.tensor([3, 90, 17])
    given, own = inner(donor, examples).of(rows), inner(donor, examples[rows])
    for kept, made in zip((*given.heads, *given.neurons), (*own.heads, *own.neurons), strict=True):
        assert torch.allclose(kept[:, : made.shape[1]], made, atol=1e-5)  # all prompts together are shown further


def test_answers_with_none_are_the_receivers_and_over_batches_the_same(planted, monkeypatch):
    receiver, donor, examples = planted
    masks = [constant_mask(receiver, share, False) for share in (0.0, 1.0)]
    whole = answered(receiver, donor, examples, masks)
    assert torch.equal(whole[0], accuracy(receiver, examples).bool())
    with torch.no_grad(), mixed(receiver, inner(donor, examples), *masks[1].fitted(receiver)):
        logits = answer_logits(receiver, examples)
    assert torch.equal(whole[1], (logits.argmax(-1) == examples.answer).all(-1))
    monkeypatch.setattr(component_masks, "BATCH", 25)
    assert torch.equal(answered(receiver, donor, examples, masks), whole)


def test_random_masks_have_as_many_of_each_kind():
    like = Mask(torch.tensor([[0.9, 0.1], [0.6, 0.5]]), torch.linspace(0, 1, 20).view(2, 10))
    assert like.counts == (2, 10)
    drawn = [random_mask(like, 0, "restores", i) for i in range(20)]
    assert all(mask.counts == like.counts for mask in drawn)
    assert all(torch.equal(mask.rounded.neurons, mask.neurons) for mask in drawn)
    assert len({tuple(mask.neurons.flatten().tolist()) for mask in drawn}) > 15
    assert torch.stack([mask.heads for mask in drawn]).sum(0).min() > 0
    assert torch.equal(random_mask(like, 0, "restores", 3).neurons, drawn[3].neurons)


def test_a_whole_mlp_counts_for_all_its_neurons(make_model):
    model = make_model()
    heads, neurons = Mask(torch.zeros(head_shape(model)), torch.tensor([[1.0], [0.25]])).fitted(model)
    assert neurons.shape == neuron_shape(model)
    assert neurons[0].unique().tolist() == [1.0]
    assert neurons[1].unique().tolist() == [0.25]
    assert heads.sum() == 0
