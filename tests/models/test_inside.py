"""Attention patterns against TransformerLens and hidden neurons against hooks of one's own, for every architecture."""

import copy

import pytest
import torch

from workbench.errors import UserError
from workbench.models.anatomy import matrix
from workbench.models.compiled import build
from workbench.models.fingerprint import check_unchanged
from workbench.models.inside import answering_neurons, attention_patterns, hidden_neurons, neuron_names, seen, with_names
from workbench.models.lens import lens
from workbench.models.units import units_of
from workbench.protocols import load_task


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_patterns_are_those_of_the_lens(make_model, random_examples, kind, padded):
    model, examples = make_model(kind), random_examples(padded=padded)
    t = seen(examples)
    assert t == 9  # the last read position included, the answer after it not
    found = attention_patterns(model, examples)
    assert found.shape == (2, 6, 2, t, t)
    extra = {"attention_mask": examples.attention_mask[:, :t].long()} if padded else {}
    _, cache = lens(model).run_with_cache(examples.tokens[:, :t], **extra)
    for block in range(2):
        for i in range(6):  # rows after the answer see padding, and mean nothing
            rows = int(examples.answer_position[i]) + 1
            theirs = cache[f"blocks.{block}.attn.hook_pattern"][i]
            assert torch.allclose(found[block, i, :, :rows], theirs[:, :rows], atol=1e-5)


@torch.no_grad()
def test_rows_sum_to_one_and_a_causal_model_sees_nothing_later(make_model, random_examples, kind):
    found = attention_patterns(make_model(kind), random_examples())
    assert torch.allclose(found.sum(-1), torch.ones(()), atol=1e-5)
    assert not found.triu(1).any()


@torch.no_grad()
def test_hidden_neurons_are_the_inputs_of_the_second_layer(make_model, random_examples, kind):
    model, examples, kept = make_model(kind), random_examples(), []
    found = hidden_neurons(model, examples, 1)
    assert found.shape == (6, seen(examples), 24)
    block = (model.transformer.h if kind == "gpt2" else model.model.layers)[1].mlp
    out = block.c_proj if kind == "gpt2" else block.down_proj
    hook = block.register_forward_hook(lambda _, __, output: kept.append(output))
    model(input_ids=examples.tokens[:, : seen(examples)])
    hook.remove()
    assert torch.allclose(out(found), kept[0], atol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
def test_neurons_of_all_blocks_where_the_answer_is_predicted(make_model, random_examples, kind, padded):
    model, examples = make_model(kind), random_examples(padded=padded)
    found, rows = answering_neurons(model, examples), torch.arange(len(examples))
    assert found.shape == (6, 2, 24)
    for block in range(2):
        assert torch.equal(found[:, block], hidden_neurons(model, examples, block)[rows, examples.answer_position])


def test_the_model_is_left_alone(make_model, random_examples, kind):
    model = make_model(kind)
    config = copy.deepcopy(model.config.to_dict())
    with check_unchanged(model):
        attention_patterns(model, random_examples())
        hidden_neurons(model, random_examples(), 0)
    assert model.config._attn_implementation == "sdpa"
    assert model.config.to_dict() == config


def test_a_block_that_is_not_there_is_refused(make_model, random_examples):
    with pytest.raises(UserError, match="no block 2; its blocks go from 0 to 1"):
        hidden_neurons(make_model(), random_examples(), 2)


def test_neurons_without_names_are_numbered(make_model, kind):
    names = neuron_names(make_model(kind), 0)
    assert len(names) == 24
    assert names[5] == "neuron 5"


class TestNames:
    """What units of a compiled model connect, against the weights of its program: every one of them joins two named things."""

    @pytest.fixture(scope="class")
    def counter(self):
        return build(load_task({"kind": "rasp", "length": 4, "letters": 3}).compiled("count_a"), noise=0)

    def of(self, model, kind, wanted):
        """The named rows of `units`' table whose own weight satisfies a condition on its value."""
        units = units_of(model, kind)
        values = torch.cat([matrix(m).detach().flatten() for m in units.modules(model)])
        return with_names(model, units.table(torch.nonzero(wanted(values)).flatten()))

    def test_input_weights_of_the_first_mlp_read_letters_and_output_weights_write_the_flag(self, counter):
        first = self.of(counter, "weights:mlp_in", lambda w: w != 0).query("block == 0")
        assert sorted(first["reads"]) == ["tokens:a", "tokens:b", "tokens:c"]
        assert sorted(first["writes"]) == ["tokens:a → is_a:1", "tokens:b → is_a:0", "tokens:c → is_a:0"]
        last = self.of(counter, "weights:mlp_out", lambda w: w != 0).query("block == 0")
        said = dict(zip(last["reads"], last["writes"], strict=True))
        assert said == {f"tokens:{c} → is_a:{int(c == 'a')}": f"is_a:{int(c == 'a')}" for c in "abc"}

    def test_keys_read_the_flag_and_values_read_bos(self, counter):
        second = self.of(counter, "weights:attention_in", lambda w: w != 0).query("block == 1")
        keys, queries, values = (
            set(second.loc[second["matrix"] == f"attention.{m}", "reads"]) for m in ("key", "query", "value")
        )
        assert (keys, queries, values) == (
            {"is_a:0", "is_a:1", "tokens:BOS"},
            {"indices:0", "indices:1"},
            {"tokens:BOS"},
        )
        assert all(name.startswith("head 0 channel ") for name in second["writes"])
        out = self.of(counter, "weights:attention_out", lambda w: w != 0).query("block == 1")
        assert list(out["writes"]) == ["width:1/(d+1)"]
        assert list(out["reads"]) == ["head 0 channel 0"]

    def test_rows_and_neurons(self, counter):
        rows = with_names(counter, units_of(counter, "rows:mlp_out").table(torch.arange(3)))
        assert list(rows["writes"]) == counter.config.residual_labels[:3]
        assert "reads" not in rows
        neurons = with_names(counter, units_of(counter).table(torch.tensor([0])))
        assert list(neurons["name"]) == ["tokens:a → is_a:1"]

    def test_other_models_and_heads_get_none(self, counter, make_model):
        for model, kind in ((make_model(), "weights"), (make_model("llama"), "neurons"), (counter, "heads")):
            table = units_of(model, kind).table(torch.arange(2))
            assert list(with_names(model, table)) == list(table)
