"""Muon on hidden matrices and AdamW on the rest are torch's own, run as one."""

import torch

from workbench.models.build import build_model
from workbench.models.spec import ModelSpec
from workbench.optimizers.build import build_optimizer
from workbench.optimizers.spec import OptimizerSpec


def gradients(model, step):
    for i, p in enumerate(model.parameters()):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + i))


def test_hidden_matrices_follow_muon_and_embeddings_head_and_vectors_adamw():
    spec = OptimizerSpec(kind="muon", weight_decay=0.1)
    one, two = (build_model(ModelSpec(heads=2, width=16), 20, 12, 0) for _ in range(2))
    optimizer = build_optimizer(spec, one, 1e-2)
    names = {name: p for name, p in two.named_parameters()}
    hidden = [n for n, p in names.items() if p.ndim == 2 and ".h." in n]
    tables = [n for n, p in names.items() if p.ndim == 2 and ".h." not in n]
    assert len(hidden) == 8
    assert len(tables) == 3
    muon = torch.optim.Muon([names[n] for n in hidden], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    decayed = {"params": [names[n] for n in tables], "weight_decay": 0.1}
    plain = {"params": [p for p in names.values() if p.ndim < 2], "weight_decay": 0.0}
    adamw = torch.optim.AdamW([decayed, plain], lr=1e-2, betas=(0.9, 0.95), fused=True)
    for step in range(3):
        for group in (*optimizer.param_groups, *muon.param_groups, *adamw.param_groups):
            group["lr"] = 1e-2 / (step + 1)
        gradients(one, step)
        gradients(two, step)
        optimizer.step()
        muon.step()
        adamw.step()
        optimizer.zero_grad()
    assert all(p.grad is None for p in one.parameters())
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_a_model_without_hidden_matrices_is_left_to_adamw():
    model = torch.nn.Sequential(torch.nn.Embedding(3, 4), torch.nn.LayerNorm(4))
    optimizer = build_optimizer(OptimizerSpec(kind="muon"), model, 1e-2)
    gradients(model, 0)
    optimizer.step()
    assert len(optimizer.parts) == 1
