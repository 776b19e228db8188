"""Sites of both architectures, held against surgery on the weights and against whole forward passes."""

import copy

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from workbench.errors import UserError
from workbench.models.anatomy import (
    anatomy,
    blocks,
    head_mask,
    head_shape,
    is_known,
    last_block_at,
    matrix,
    neuron_mask,
    neuron_outputs,
    neuron_shape,
)

TOKENS = torch.randint(0, 20, (5, 9), generator=torch.Generator().manual_seed(0))


def logits(model, tokens=TOKENS):
    return model(input_ids=tokens, use_cache=False).logits


def remove_neuron(model, block, neuron):
    """A copy with the neuron's input row, bias and output column zeroed by hand."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        if type(model).__name__ == "GPT2LMHeadModel":
            mlp = copied.transformer.h[block].mlp
            mlp.c_fc.weight[:, neuron] = 0
            mlp.c_fc.bias[neuron] = 0
            mlp.c_proj.weight[neuron] = 0
        else:
            mlp = copied.model.layers[block].mlp
            mlp.gate_proj.weight[neuron] = 0
            mlp.up_proj.weight[neuron] = 0
            mlp.down_proj.weight[:, neuron] = 0
    return copied


def hooks(model):
    return [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


def unknown():
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    ).eval()


def test_every_site_of_the_table_is_there(make_model, kind):
    model = make_model(kind, blocks=3)
    sites = anatomy(model)
    assert len(blocks(model)) == 3
    for path in (sites.blocks, sites.final_norm, *sites.embeddings):
        model.get_submodule(path)
    for block in blocks(model):
        for path in (sites.attention_norm, *sites.attention_in, sites.attention_out):
            block.get_submodule(path)
        for path in (sites.mlp_norm, sites.mlp, *sites.mlp_in, sites.mlp_out):
            block.get_submodule(path)


def test_the_inputs_of_the_named_sites_have_the_stated_meaning(make_model, kind):
    model = make_model(kind)
    seen = {}
    block, sites = blocks(model)[1], anatomy(model)
    for name in (sites.attention_out, sites.mlp_out):
        block.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    logits(model)
    assert seen[sites.attention_out].shape == (5, 9, 16)  # 2 heads of 8
    assert seen[sites.mlp_out].shape == (5, 9, 24)


def test_neuron_shape_is_not_fooled_by_the_layout_of_conv1d(make_model, kind):
    assert neuron_shape(make_model(kind, blocks=3, mlp_width=7)) == (3, 7)
    assert len(neuron_outputs(make_model(kind, blocks=3))) == 3


def test_matrix_has_a_row_per_output_and_is_a_view(make_model, kind):
    module = neuron_outputs(make_model(kind))[0]
    assert matrix(module).shape == (16, 24)
    given = torch.randn(3, 24)
    expected = given @ matrix(module).T + (0 if module.bias is None else module.bias)
    assert torch.allclose(module(given), expected, atol=1e-5)
    assert matrix(module).data_ptr() == module.weight.data_ptr()


@pytest.mark.parametrize(("block", "head"), [(0, 0), (1, 3)])
def test_a_masked_head_is_one_whose_output_columns_are_zero(make_model, make_grouped, kind, block, head):
    for model in (make_model(kind, heads=4, dtype=torch.float64), make_grouped(torch.float64)):
        assert head_shape(model) == (2, 4)
        mask = torch.ones(2, 4, dtype=torch.float64)
        mask[block, head] = 0
        twin = copy.deepcopy(model)
        with torch.no_grad():
            out = blocks(twin)[block].get_submodule(anatomy(twin).attention_out)
            matrix(out)[:, 4 * head : 4 * head + 4] = 0
        plain = logits(model)
        with head_mask(model, mask):
            masked = logits(model)
        assert torch.allclose(masked, logits(twin), atol=1e-12)
        assert (masked - plain).abs().max() > 1e-3
        assert torch.equal(logits(model), plain)


def test_an_unknown_architecture_is_refused_by_name():
    assert not is_known(unknown())
    with pytest.raises(UserError, match="the sites of GPTNeoXForCausalLM are not known; known architectures: GPT2LMHeadModel"):
        anatomy(unknown())


@pytest.mark.parametrize(("block", "neuron"), [(0, 0), (1, 23), (1, 5)])
def test_a_masked_neuron_is_a_neuron_zeroed_in_the_weights(make_model, kind, block, neuron):
    model = make_model(kind, dtype=torch.float64)
    mask = torch.ones(2, 24, dtype=torch.float64)
    mask[block, neuron] = 0
    plain = logits(model)
    with neuron_mask(model, mask):
        masked = logits(model)
    assert torch.allclose(masked, logits(remove_neuron(model, block, neuron)), atol=1e-12)
    assert (masked - plain).abs().max() > 1e-3
    assert torch.equal(logits(model), plain)


def test_the_gradient_of_the_mask_is_weight_times_gradient_of_the_output_row(make_model, kind):
    """dL/dm_i = sum_k W2_ki dL/dW2_ki, for y = W2 (m * h)."""
    model = make_model(kind, dtype=torch.float64)
    mask = torch.ones(2, 24, dtype=torch.float64, requires_grad=True)
    with neuron_mask(model, mask):
        torch.nn.functional.cross_entropy(logits(model).flatten(0, 1), TOKENS.flatten()).backward()
    for row, module in zip(mask.grad, neuron_outputs(model), strict=True):
        product = module.weight * module.weight.grad
        expected = product.sum(0) if isinstance(module, torch.nn.Linear) else product.sum(1)
        assert torch.allclose(row, expected, rtol=1e-9, atol=1e-14)
        assert row.abs().max() > 1e-6


def test_a_head_mask_of_the_wrong_shape_is_refused(make_model):
    with (
        pytest.raises(ValueError, match=r"does not fit a model of \(2, 2\) \(blocks, heads\)"),
        head_mask(make_model(), torch.ones(2, 4)),
    ):
        pass


@pytest.mark.parametrize("shape", [(2, 23), (1, 24), (24, 2)])
def test_a_mask_of_the_wrong_shape_is_refused_and_leaves_no_hook(make_model, shape):
    model = make_model()
    with pytest.raises(ValueError, match=r"does not fit a model of \(2, 24\)"), neuron_mask(model, torch.ones(shape)):
        pass
    assert not hooks(model)


@pytest.mark.parametrize(
    "context",
    [
        lambda m: neuron_mask(m, torch.ones(2, 24)),
        lambda m: head_mask(m, torch.ones(2, 2)),
        lambda m: last_block_at(m, TOKENS[:, :1] % 9),
    ],
)
def test_hooks_are_gone_after_the_block_and_after_an_exception_inside(make_model, kind, context):
    model = make_model(kind)
    with context(model):
        assert hooks(model)
    assert not hooks(model)
    with pytest.raises(KeyError), context(model):
        raise KeyError
    assert not hooks(model)


@pytest.mark.parametrize("positions", [[[8], [0], [3], [3], [7]], [[2, 3], [0, 1], [7, 8], [8, 2], [4, 5]]])
def test_the_last_block_at_positions_is_the_whole_forward_there_in_values_and_gradients(make_model, kind, positions):
    model, twin = make_model(kind, dtype=torch.float64), make_model(kind, dtype=torch.float64)
    at = torch.tensor(positions)
    rows = torch.arange(5)[:, None]
    weights = torch.randn(5, at.shape[1], 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = logits(twin)[rows, at]
    with last_block_at(model, at):
        partly = logits(model)[rows, at]
    assert torch.allclose(partly, whole, atol=1e-12)
    (whole * weights).sum().backward()
    (partly * weights).sum().backward()
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize(("site", "width"), [("attention_out", 16), ("mlp_in", 16), ("mlp_out", 24)])
def test_the_last_block_sees_the_positions_alone(make_model, kind, site, width):
    model, shapes = make_model(kind), []
    for block in blocks(model):
        name = getattr(anatomy(model), site)
        module = block.get_submodule(name if isinstance(name, str) else name[0])
        module.register_forward_hook(lambda _, inputs, output: shapes.append(tuple(inputs[0].shape)))
    with last_block_at(model, torch.tensor([[1]] * 5)):
        logits(model)
    assert shapes == [(5, 9, width), (5, 1, width)]


def test_several_passes_in_one_context_are_independent(make_model, kind):
    model = make_model(kind)
    at = torch.tensor([[1], [8], [0], [4], [6]])
    rows = torch.arange(5)[:, None]
    with last_block_at(model, at):
        logits(model, TOKENS.flip(0))
        second = logits(model)[rows, at]
    assert torch.allclose(second, logits(model)[rows, at], atol=1e-6)


def test_an_unknown_architecture_runs_whole():
    model = unknown()
    with last_block_at(model, torch.zeros(5, 1, dtype=torch.long)):
        assert not hooks(model)
