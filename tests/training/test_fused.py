"""Fused norms are the stock ones up to rounding, and are there on a GPU and while training alone."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from workbench.training.fused import fused_norms, rms_norm

STOCK = LlamaRMSNorm.forward


def test_values_and_gradients_are_those_of_the_stock_norm():
    torch.manual_seed(0)
    norm = LlamaRMSNorm(24, eps=1e-5)
    norm.weight.data = torch.randn(24)
    x, upstream = torch.randn(3, 7, 24) * 5, torch.randn(3, 7, 24)
    found = []
    for forward in (STOCK, rms_norm):
        inputs = x.clone().requires_grad_()
        norm.weight.grad = None
        out = forward(norm, inputs)
        out.backward(upstream)
        found.append((out.detach(), inputs.grad, norm.weight.grad.clone()))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_only_a_gpu_has_them_and_only_within():
    with fused_norms(torch.device("cpu")):
        assert LlamaRMSNorm.forward is STOCK
    with fused_norms(torch.device("cuda")):  # nothing is put there
        assert LlamaRMSNorm.forward is rms_norm
    assert LlamaRMSNorm.forward is STOCK
    with pytest.raises(ZeroDivisionError), fused_norms(torch.device("cuda")):
        _ = 1 / 0
    assert LlamaRMSNorm.forward is STOCK
