"""Small models of both architectures whose every parameter is random, so that no bias or norm hides at its initial value."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from workbench.models.build import build_model
from workbench.models.spec import ModelSpec

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


@pytest.fixture(params=["gpt2", "llama"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param
