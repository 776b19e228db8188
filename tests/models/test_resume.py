"""Passes that begin in the middle give what whole passes give."""

import pytest
import torch

from workbench.models.anatomy import blocks
from workbench.models.fingerprint import check_unchanged
from workbench.models.forward import answer_logits, nll
from workbench.models.resume import block_inputs, resumed


@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("padded", [False, True])
def test_resumed_is_the_whole_pass_bit_for_bit(make_model, random_examples, kind, block, padded):
    model, examples = make_model(kind, blocks=3), random_examples(padded=padded)
    with torch.no_grad(), check_unchanged(model):
        with block_inputs(model) as inputs:
            whole = answer_logits(model, examples)
        assert len(inputs) == 3
        with resumed(model, block, inputs[block]):
            again = answer_logits(model, examples)
    assert torch.equal(again, whole)


def test_earlier_blocks_do_not_run_and_do_not_matter(make_model, random_examples):
    model, examples = make_model(blocks=3), random_examples()
    ran = []
    handles = [b.ln_1.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(blocks(model))]
    with torch.no_grad():
        with block_inputs(model) as inputs:
            answer_logits(model, examples)
        ran.clear()
        other = inputs[2].flip(-1)
        with resumed(model, 2, other):
            changed = answer_logits(model, examples)
        assert ran == [2]
        assert not torch.allclose(changed, answer_logits(model, examples), atol=1e-3)
    for handle in handles:
        handle.remove()


def test_gradients_flow_into_what_is_resumed_from(make_model, random_examples):
    model, examples = make_model(dtype=torch.float64), random_examples()
    with block_inputs(model) as inputs:
        nll(model, examples).sum().backward()
    hidden = inputs[1].detach().requires_grad_()
    model.zero_grad()
    with resumed(model, 1, hidden):
        nll(model, examples).sum().backward()
    assert hidden.grad.abs().max() > 0
    assert blocks(model)[0].mlp.c_fc.weight.grad is None
    model.zero_grad()


def test_an_exception_inside_leaves_the_model_as_it_was(make_model, random_examples):
    model, examples = make_model(blocks=3), random_examples()
    with torch.no_grad():
        before = answer_logits(model, examples)
        with pytest.raises(KeyError), resumed(model, 2, torch.zeros(6, 10, 16)):
            raise KeyError
        assert torch.equal(answer_logits(model, examples), before)
    assert not any("forward" in vars(block) for block in blocks(model))
