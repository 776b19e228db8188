"""Weights are a function of the seed alone."""

import pytest
import torch

from workbench.models.build import build_model, random_twin
from workbench.models.fingerprint import weights_sha256
from workbench.models.spec import ModelSpec

SPEC = {"blocks": 1, "heads": 2, "width": 8}


def test_weights_depend_on_the_seed_and_on_nothing_else(kind):
    spec = ModelSpec(kind=kind, **SPEC)
    first = build_model(spec, 11, 6, 3)
    torch.manual_seed(99)
    torch.randn(5)
    assert weights_sha256(build_model(spec, 11, 6, 3)) == weights_sha256(first)
    assert weights_sha256(build_model(spec, 11, 6, 4)) != weights_sha256(first)


def test_the_global_random_state_is_left_as_it_was(kind):
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    random_twin(build_model(ModelSpec(kind=kind, **SPEC), 11, 6, 3), 0)
    assert torch.equal(torch.randn(3), expected)


def test_models_come_in_evaluation_mode_untied_without_dropout_and_with_fused_attention(kind):
    model = build_model(ModelSpec(kind=kind, **SPEC), 11, 6, 0)
    assert not any(module.training for module in model.modules())
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight
    assert not torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    assert not any(module.p for module in model.modules() if isinstance(module, torch.nn.Dropout))
    assert model.config._attn_implementation == "sdpa"
    assert (model.config.bos_token_id, model.config.eos_token_id) == (None, None)


def test_a_gpt2_uses_the_tanh_gelu():
    model = build_model(ModelSpec(**SPEC), 11, 6, 0)
    x = torch.linspace(-4, 4, 33)
    assert torch.allclose(model.transformer.h[0].mlp.act(x), torch.nn.functional.gelu(x, approximate="tanh"), atol=1e-6)


def test_a_context_is_as_long_as_asked_for():
    model = build_model(ModelSpec(**SPEC), 11, 6, 0)
    assert model(input_ids=torch.zeros(1, 6, dtype=torch.long)).logits.shape == (1, 6, 11)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.zeros(1, 7, dtype=torch.long))


def test_a_random_twin_has_the_shape_and_dtype_but_other_weights_by_seed(kind):
    model = build_model(ModelSpec(kind=kind, **SPEC), 11, 6, 0).double()
    twin, same, other = random_twin(model, 0), random_twin(model, 0), random_twin(model, 1)
    shapes = {name: (p.shape, p.dtype) for name, p in model.named_parameters()}
    assert {name: (p.shape, p.dtype) for name, p in twin.named_parameters()} == shapes
    assert weights_sha256(twin) == weights_sha256(same)
    assert len({weights_sha256(m) for m in (model, twin, other)}) == 3
    assert twin.config.to_dict() == model.config.to_dict()
    assert twin.config is not model.config
    assert not twin.training
    assert twin.config._attn_implementation == model.config._attn_implementation
