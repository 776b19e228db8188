"""Fingerprints see every bit of the weights; the guard sees what an analysis may not do."""

import hashlib

import pytest
import torch

from workbench.models.fingerprint import check_unchanged, fixed_batch, fixed_logits, weights_sha256


def naive_sha256(model):
    text = b""
    for name in sorted(dict(model.named_parameters())):
        tensor = model.get_parameter(name).detach()
        text += f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes()
    return hashlib.sha256(text).hexdigest()


def test_the_hash_is_sha256_over_names_types_shapes_and_bytes(make_model, kind):
    assert weights_sha256(make_model(kind)) == naive_sha256(make_model(kind))


def test_one_flipped_bit_changes_the_hash(make_model, kind):
    model = make_model(kind)
    before = weights_sha256(model)
    parameter = list(model.parameters())[3]
    with torch.no_grad():
        parameter.view(torch.int32).flatten()[0] ^= 1
    assert weights_sha256(model) != before


def test_a_transposed_view_hashes_like_its_copy():
    linear, copied = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)
    linear.weight = torch.nn.Parameter(torch.arange(9.0).reshape(3, 3).T)
    copied.weight = torch.nn.Parameter(linear.weight.detach().clone().contiguous())
    assert weights_sha256(linear) == weights_sha256(copied)


def test_the_fixed_batch_depends_on_vocabulary_and_context_alone():
    first = fixed_batch(20, 12)
    torch.manual_seed(1)
    assert torch.equal(fixed_batch(20, 12), first)
    assert first.shape == (2, 12)
    assert fixed_batch(20, 500).shape == (2, 16)
    assert first.max() < 20
    assert len(first.unique()) > 5
    assert not torch.equal(fixed_batch(21, 12), first)


def test_fixed_logits_leave_the_mode_and_the_gradients_alone(make_model, kind):
    model = make_model(kind).train()
    logits = fixed_logits(model)
    assert model.training
    assert not logits.requires_grad
    assert torch.equal(logits, model.eval()(input_ids=fixed_batch(20, 12)).logits)


def _hook(model):
    model.lm_head.register_forward_hook(lambda *_: None)


def _pre_hook(model):
    model.lm_head.register_forward_pre_hook(lambda *_: None)


def _weights(model):
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1


@pytest.mark.parametrize("change", [_hook, _pre_hook, _weights, torch.nn.Module.train])
def test_the_guard_catches_changed_weights_hooks_and_mode_of_any_of_its_models(make_model, change):
    models = [make_model(), make_model("llama")]
    for model in models:
        with pytest.raises(RuntimeError, match=f"changed the weights, hooks or mode of a {type(model).__name__}"):  # noqa: SIM117
            with check_unchanged(*models):
                change(model)
        model.eval()


def test_the_guard_lets_reading_pass_and_does_not_hide_an_error(make_model):
    model = make_model()
    with check_unchanged(model):
        fixed_logits(model)
    with pytest.raises(KeyError), check_unchanged(model):  # noqa: PT012
        _weights(model)
        raise KeyError
