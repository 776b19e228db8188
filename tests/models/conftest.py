"""Small models of both architectures whose every parameter is random, so that no bias or norm hides at its initial value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from models.graph import against
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.models.build import build_model
from workbench.models.compiled import build
from workbench.models.spec import ModelSpec
from workbench.protocols import compiled_weights, load_task

VOCAB, CONTEXT = 20, 12


def _stir(model: Any, scale: float = 0.3) -> Any:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


@pytest.fixture(scope="session")
def make_model() -> Any:
    """`(kind, seed=0, dtype=float32, **size) -> model` of vocabulary 20 and context 12."""

    def make(kind: str = "gpt2", seed: int = 0, dtype: torch.dtype = torch.float32, **size: int) -> Any:
        spec = ModelSpec(kind=kind, **{"blocks": 2, "heads": 2, "width": 16, "mlp_width": 24, **size})  # type: ignore[arg-type]
        return _stir(build_model(spec, VOCAB, CONTEXT, seed).to(dtype))

    return make


@pytest.fixture(scope="session")
def left_padded(random_examples: Any) -> Any:
    """Five examples of which all but the first begin with padding."""
    examples = random_examples(n=5)
    t = examples.tokens.shape[1]
    return replace(
        examples,
        attention_mask=torch.arange(t) >= torch.tensor([0, 1, 2, 3, 1])[:, None],
        answer_position=examples.answer_position.clamp(min=4),
    )


@pytest.fixture(scope="session")
def make_grouped() -> Any:
    """`(dtype=float32) -> model`: a Llama whose four heads share two key and value heads, with biases in attention."""

    def make(dtype: torch.dtype = torch.float32) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = LlamaConfig(
                vocab_size=VOCAB,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=CONTEXT,
                attention_bias=True,
                bos_token_id=None,
                eos_token_id=None,
            )
            return _stir(LlamaForCausalLM(config).eval().to(dtype))

    return make


@pytest.fixture(params=["gpt2", "llama"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["gpt2", "llama", "grouped", "compiled"])
def corrupted(request: pytest.FixtureRequest, make_model: Any, make_grouped: Any, random_examples: Any) -> Any:
    """`(model, examples with counterfactuals)` of every architecture, in float64."""
    if request.param == "compiled":
        task = load_task({"kind": "rasp", "length": 6, "letters": 3})
        model = build(compiled_weights(task, "count_a"), 0.05).double()
        return model, against(task.capability("count_a").examples(6, 0))
    double = torch.float64
    model = make_grouped(double) if request.param == "grouped" else make_model(request.param, dtype=double, blocks=3)
    return model, against(random_examples())
