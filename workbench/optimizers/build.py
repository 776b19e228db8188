"""An optimizer from its specification."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from workbench.optimizers.adabelief import AdaBelief
from workbench.optimizers.adagrad_norm import AdaGrad, AdaGradNorm
from workbench.optimizers.adamp import SGDP, AdamP
from workbench.optimizers.diffgrad import DiffGrad
from workbench.optimizers.frugal import Frugal
from workbench.optimizers.langevin import SGLD, SphericalLangevin
from workbench.optimizers.muon import MuonAdamW
from workbench.optimizers.rule import Rule
from workbench.optimizers.signs import SignSGD
from workbench.optimizers.spec import OptimizerSpec
from workbench.optimizers.zoo import build_zoo

RULES: Mapping[str, type[Rule]] = {
    "diffgrad": DiffGrad,
    "adabelief": AdaBelief,
    "adamp": AdamP,
    "sgdp": SGDP,
    "frugal": Frugal,
    "sign_sgd": SignSGD,
    "adagrad": AdaGrad,
    "adagrad_norm": AdaGradNorm,
    "sgld": SGLD,
    "spherical_langevin": SphericalLangevin,
}
_DRAWING = ("frugal", "sgld", "spherical_langevin")
_BY_PLACE = {"frugal": "projected", "muon": "hidden"}
"""What the kinds that treat hidden matrices apart call them in a group."""


def build_optimizer(
    spec: OptimizerSpec, trained: nn.Module | Iterable[nn.Parameter], lr: float, seed: int = 0
) -> torch.optim.Optimizer:
    """An optimizer with two groups: matrices (decayed) and vectors (not decayed); three where hidden matrices are apart.

    Of parameters without a model every matrix counts as hidden. `seed` is for kinds that draw.

    Raises:
        UserError: a kind `zoo:NAME` that cannot be had.
    """
    whole = isinstance(trained, nn.Module)
    parameters = [p for p in (trained.parameters() if whole else trained) if p.requires_grad]
    matrices, vectors = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": spec.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if spec.kind == "adamw":
        # The fused kernel takes a tenth of a millisecond where the loop over tensors takes one.
        return torch.optim.AdamW(groups, lr=lr, betas=spec.betas, fused=True)
    if spec.kind == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=spec.momentum)
    if spec.kind.startswith("zoo:"):
        return build_zoo(spec.kind.removeprefix("zoo:"), groups, lr, spec.settings or {}, spec.weight_decay)
    if mark := _BY_PLACE.get(spec.kind):
        outer = _outer(trained) if whole else set[int]()
        hidden = [p for p in matrices if p.ndim == 2 and id(p) not in outer]
        inside = {id(p) for p in hidden}
        groups[0]["params"] = [p for p in matrices if id(p) not in inside]
        groups = [{"params": hidden, "weight_decay": spec.weight_decay, mark: True}, *({**g, mark: False} for g in groups)]
    if spec.kind == "muon":
        return MuonAdamW(groups, lr=lr, **spec.own)
    drawn = {"seed": seed} if spec.kind in _DRAWING else {}
    return RULES[spec.kind](groups, lr=lr, **spec.own, **drawn)


def _outer(model: nn.Module) -> set[int]:
    """Embeddings and the output head."""
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return {id(p) for module in (*tables, *([head] if head is not None else [])) for p in module.parameters()}
