"""The lens: a bridge that agrees with the plain model and leaves it bit-equal."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from workbench.errors import UserError
from workbench.models.fingerprint import weights_sha256
from workbench.models.forward import answer_logits, unembed
from workbench.models.lens import lens, residual_streams


def final_norm(model):
    return model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm


@torch.no_grad()
def test_the_bridge_gives_the_models_logits_unprocessed(make_model, random_examples, kind):
    model, tokens = make_model(kind), random_examples().tokens
    bridge = lens(model)
    assert torch.allclose(bridge(tokens), model(input_ids=tokens).logits, atol=1e-4)
    assert torch.allclose(bridge.W_U.T, model.lm_head.weight)  # a centred or folded unembedding would differ
    assert not bridge.original_model.training


@torch.no_grad()
def test_the_original_stays_bit_equal(make_model, random_examples, kind):
    model, examples = make_model(kind), random_examples()
    keys, config, hashed = list(model.state_dict()), copy.deepcopy(model.config.to_dict()), weights_sha256(model)
    attention, logits = model.config._attn_implementation, model(input_ids=examples.tokens).logits
    bridge = lens(model)
    bridge.run_with_hooks(examples.tokens, fwd_hooks=[("blocks.0.hook_resid_pre", lambda value, hook: value * 0)])
    residual_streams(model, examples)
    assert list(model.state_dict()) == keys
    assert weights_sha256(model) == hashed
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == attention
    assert torch.equal(model(input_ids=examples.tokens).logits, logits)
    assert not {p.data_ptr() for p in bridge.original_model.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_dropout_is_off_in_the_lens_of_a_model_in_training(make_model):
    model = make_model().train()
    assert not lens(model).original_model.training
    assert model.training


@torch.no_grad()
def test_residual_streams_are_the_hidden_states_of_hugging_face(make_model, random_examples, kind):
    model, examples = make_model(kind, blocks=3), random_examples()
    streams = residual_streams(model, examples)
    assert streams.shape == (4, 6, 16)
    hidden = model(input_ids=examples.tokens, output_hidden_states=True).hidden_states
    rows = torch.arange(6)
    for point in range(3):  # the fourth of Hugging Face is after the final norm
        assert torch.allclose(streams[point], hidden[point][rows, examples.answer_position], atol=1e-4)
    assert torch.allclose(final_norm(model)(streams[3]), hidden[3][rows, examples.answer_position], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_the_norm_and_head_of_the_last_point_give_the_answers_logits(make_model, random_examples, kind, padded):
    model, examples = make_model(kind), random_examples(k=2, padded=padded)
    last = residual_streams(model, examples)[-1]
    assert torch.allclose(unembed(model, final_norm(model)(last)), answer_logits(model, examples)[:, 0], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_a_row_of_a_batch_is_a_batch_of_one(make_model, random_examples, kind, padded):
    model, examples = make_model(kind), random_examples(padded=padded)
    together = residual_streams(model, examples)
    assert torch.allclose(residual_streams(model, examples, batch_size=2), together, atol=1e-5)
    for i in range(0, 6, 2):
        alone = replace(examples[i : i + 1], attention_mask=None)
        assert torch.allclose(residual_streams(model, alone)[:, 0], together[:, i], atol=1e-5)


@torch.no_grad()
def test_what_a_mask_hides_is_hidden_from_the_streams(make_model, random_examples, kind):
    model, examples = make_model(kind), random_examples(n=1)
    hole = torch.ones(1, 10, dtype=torch.bool)
    hole[0, 2] = False
    masked = replace(examples, attention_mask=hole)
    streams = residual_streams(model, masked)
    assert torch.allclose(unembed(model, final_norm(model)(streams[-1])), answer_logits(model, masked)[:, 0], atol=1e-4)
    assert not torch.allclose(streams[1], residual_streams(model, examples)[1], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_positions_are_rows_of_the_hidden_states(make_model, random_examples, kind, padded):
    model, examples = make_model(kind), random_examples(padded=padded)
    last = int(examples.answer_position.max())
    whole = residual_streams(model, examples, positions="all")
    assert whole.shape == (3, 6, last + 1, 16)
    alone = replace(examples, attention_mask=None)
    hidden = model(input_ids=alone.tokens, output_hidden_states=True).hidden_states
    rows = torch.arange(6)[:, None]
    own = torch.stack([examples.answer_position - 1, examples.answer_position], dim=1)
    for point in range(2):  # after the last block Hugging Face gives the normed stream
        assert torch.allclose(whole[point][rows, own], hidden[point][rows, own], atol=1e-4)
    assert torch.allclose(residual_streams(model, examples, positions=own), whole[:, rows, own], atol=1e-5)
    assert torch.allclose(residual_streams(model, examples)[:, :, None], whole[:, rows, own[:, 1:]], atol=1e-5)
    some = torch.tensor([3, 0])
    assert torch.allclose(residual_streams(model, examples, positions=some), whole[:, :, some], atol=1e-5)


def test_positions_after_the_answer_can_be_asked_for(make_model, random_examples):
    model, examples = make_model(), random_examples()
    assert residual_streams(model, examples, positions=torch.tensor([9])).shape == (3, 6, 1, 16)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (torch.tensor([2, 10]), r"positions \[2, 10\] do not lie in sequences of 10 tokens; give some from 0 to 9"),
        (torch.tensor([-1]), "do not lie in sequences"),
    ],
)
def test_positions_outside_the_sequence_are_refused(make_model, random_examples, positions, message):
    with pytest.raises(UserError, match=message):
        residual_streams(make_model(), random_examples(), positions=positions)


def test_memory_is_bounded(make_model, random_examples, monkeypatch):
    model, examples = make_model(), random_examples()
    expected = residual_streams(model, examples, positions="all")
    assert expected.untyped_storage().nbytes() == 4 * expected.numel()  # as the docstring says, and no more
    shown: list[int] = []
    points, _, length, width = expected.shape
    attention = (points - 1) * model.config.num_attention_heads * length**2
    monkeypatch.setattr("workbench.models.lens.BATCH_BYTES", 4 * (points * length * width + attention) * 2)

    def counted(given):
        bridge = lens(given)
        bridge.original_model.register_forward_pre_hook(lambda *_: shown.append(1))
        return bridge

    monkeypatch.setattr("workbench.models.lens.lens", counted)
    assert torch.allclose(residual_streams(model, examples, positions="all"), expected, atol=1e-5)
    assert len(shown) == 3  # two examples at once
    monkeypatch.setattr("workbench.models.lens.MAX_BYTES", 4 * expected.numel() - 1)
    with pytest.raises(UserError, match=r"residual streams of 6 examples at 9 positions take .* ask for fewer"):
        residual_streams(model, examples, positions="all")


def test_streams_hold_no_graph_and_no_model(make_model, random_examples):
    streams = residual_streams(make_model(), random_examples())
    assert not streams.requires_grad
    assert streams.untyped_storage().nbytes() == 3 * 6 * 16 * 4


def test_an_unknown_architecture_is_refused_in_our_words():
    config = GPTNeoXConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    with pytest.raises(UserError, match="the sites of GPTNeoXForCausalLM are not known"):
        lens(GPTNeoXForCausalLM(config))
