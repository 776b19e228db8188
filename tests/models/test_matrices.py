"""Parts of a model: each weight once, under the name that TransformerLens gives it."""

import copy

import pytest
import torch
from einops import rearrange

from workbench.errors import UserError
from workbench.models.compiled import build
from workbench.models.forward import answer_logits
from workbench.models.lens import lens
from workbench.models.matrices import BEFORE, MATRICES, change, check_alike, parts
from workbench.protocols import compiled_weights, load_task


@pytest.fixture(params=["gpt2", "llama", "grouped", "compiled"])
def model(request, make_model, make_grouped):
    if request.param == "compiled":
        return build(compiled_weights(load_task({"kind": "rasp", "length": 6, "letters": 3}), "count_a"), 0.05)
    return make_grouped() if request.param == "grouped" else make_model(request.param)


def one(model, kind, block):
    (part,) = [p for p in parts(model) if (p.kind, p.block) == (kind, block)]
    return part.of(model).detach()


def test_parts_are_all_weights_once(model):
    found = parts(model)
    assert sum(part.of(model).numel() for part in found) == sum(p.numel() for p in model.parameters())
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for part in found:
            part.of(copied).add_(1.0)
    for before, after in zip(model.parameters(), copied.parameters(), strict=True):
        assert torch.equal(after, before + 1.0)


def test_every_block_has_its_matrices_and_nothing_is_without_a_name(model):
    kinds = {(part.kind, part.block) for part in parts(model)}
    for block in range(model.config.num_hidden_layers):
        for kind in ("query", "key", "value", "attention_out", "mlp_in", "mlp_out"):
            assert (kind, block) in kinds
    assert {("embedding", BEFORE), ("unembedding", model.config.num_hidden_layers)} <= kinds
    assert "other" not in {kind for kind, _ in kinds}


def test_matrices_come_first_and_in_the_order_of_the_computation(make_model):
    order = [(part.block, part.kind) for part in parts(make_model("llama")) if part.is_matrix]
    inside = ["query", "key", "value", "attention_out", "mlp_gate", "mlp_in", "mlp_out"]
    assert order == [(-1, "embedding"), *((b, kind) for b in range(2) for kind in inside), (2, "unembedding")]
    assert [part.is_matrix for part in parts(make_model("llama"))] == [True] * len(order) + [False] * 5


@pytest.mark.parametrize("which", ["gpt2", "llama", "grouped"])
def test_they_are_the_matrices_of_transformer_lens(which, make_model, make_grouped):
    """Its own are `[heads, in, head]` and `[in, out]`."""
    model = make_grouped() if which == "grouped" else make_model(which)
    bridge = lens(model)
    for b in range(2):
        attention, mlp = bridge.blocks[b].attn, bridge.blocks[b].mlp
        for kind, theirs in (("query", attention.W_Q), ("key", attention.W_K), ("value", attention.W_V)):
            assert torch.equal(one(model, kind, b), rearrange(theirs, "h i o -> (h o) i")), kind
        assert torch.equal(one(model, "attention_out", b), rearrange(attention.W_O, "h i o -> o (h i)"))
        assert torch.equal(one(model, "mlp_out", b), mlp.W_out.T)
        gate = "mlp_in" if which == "gpt2" else "mlp_gate"
        assert torch.equal(one(model, gate, b), (mlp.W_in if which == "gpt2" else mlp.W_gate).T)
    assert torch.equal(one(model, "embedding", BEFORE), bridge.W_E.T)


def test_writing_into_the_queries_changes_only_them(make_model, random_examples):
    model = make_model("gpt2")
    changed = copy.deepcopy(model)
    query, key = ((next(p for p in parts(model) if p.kind == kind and p.block == 0)) for kind in ("query", "key"))
    with torch.no_grad():
        query.of(changed).mul_(2.0)
        assert torch.equal(
            changed.transformer.h[0].attn.c_attn.weight[:, :16], 2 * model.transformer.h[0].attn.c_attn.weight[:, :16]
        )
        assert torch.equal(key.of(changed), key.of(model))
        assert not torch.allclose(answer_logits(changed, random_examples()), answer_logits(model, random_examples()))
    assert torch.equal(change(query, model, changed), query.of(model).double())
    assert not change(key, model, changed).any()


def test_models_of_other_shapes_are_refused(make_model):
    check_alike((make_model("gpt2"), make_model("gpt2", seed=1)), "a pair")
    with pytest.raises(UserError, match="the models of pair 'x' differ in shape"):
        check_alike((make_model("gpt2"), make_model("gpt2", width=32)), "pair 'x'")


def test_the_kinds_are_those_of_the_table(model):
    assert {part.kind for part in parts(model)} <= {*MATRICES, "norm", "bias"}
