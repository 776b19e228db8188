"""Models of the lookup task with a second block, so that something can be read inside, and pairs of such models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from workbench.models.build import build_model
from workbench.models.checkpoints import save_model
from workbench.models.spec import ModelSpec
from workbench.subjects import Pair

NEURON, WRONG = 7, 2
REQUEST_A, REQUEST_B = 5, 6
"""The tokens that ask for look_a and look_b."""


def deepened(model: Any, vocab: int = 9) -> Any:
    """The same model with a second block that writes nothing; tokens beyond its vocabulary have random embeddings."""
    deep = build_model(ModelSpec(kind="gpt2", blocks=2, heads=2, width=32), vocab, 15, 0)
    state = model.state_dict()
    with torch.no_grad():
        for name, parameter in deep.named_parameters():
            if name in state:
                parameter[: len(state[name])] = state[name]
        for projection in (deep.transformer.h[1].attn.c_proj, deep.transformer.h[1].mlp.c_proj):
            projection.weight.zero_()
            projection.bias.zero_()
    return deep


def covered(deep: Any) -> Any:
    """A copy whose second block says one wrong answer whatever is asked: one neuron, always on."""
    out = copy.deepcopy(deep)
    mlp, head = out.transformer.h[1].mlp, out.lm_head.weight
    with torch.no_grad():
        mlp.c_fc.weight[:, NEURON] = 0
        mlp.c_fc.bias[NEURON] = 3.0
        direction = head[WRONG] - head[:5].mean(0)
        mlp.c_proj.weight[NEURON] = 40 * direction / direction.norm() / 3.0
    return out


def redirected(model: Any) -> Any:
    """A copy that takes the request of look_a for that of look_b and differs in nothing else."""
    out = copy.deepcopy(model)
    with torch.no_grad():
        out.transformer.wte.weight[REQUEST_A] = out.transformer.wte.weight[REQUEST_B]
    return out


def pair_of(make_pair: Callable[..., Pair], folder: Path, **changes: Any) -> Pair:
    """A pair of these models: `base`, `tuned`, `never` (or None), and `revived` if given; others are fields of a pair."""
    roles = {role: changes.pop(role) for role in ("base", "tuned", "never", "revived") if role in changes}
    paths: dict[str, Path | None] = {}
    for role, model in roles.items():
        paths[role] = None if model is None else folder / role
        if model is not None:
            (folder / role).mkdir()
            save_model(model, folder / role)
    revived = paths.pop("revived", None)
    pair = make_pair(**{f"{role}_path": path for role, path in paths.items()}, **changes)
    if revived is not None:
        vars(pair)["revived"] = pair._load(revived)  # the arm that would have made it was never run
    return pair
