"""Optimizers that are not ours, from the library pytorch-optimizer (extra `zoo`): never a reference, and it says where it departs.

The notes were measured against the authors' code: 100 steps of a small network at rate 1e-2, version 4.1.0.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from workbench.errors import UserError, did_you_mean

NOTES: Mapping[str, str] = {
    "diffgrad": "it adds 1e-15 inside the square root, a floor of 3.2e-8 on sqrt v: weights differ by 5.0e-4 after 100 steps; "
    "kind: diffgrad is the published rule",
    "adamp": "it adds eps before the bias correction, 31 times the effective eps at the first step: weights differ by 1.7e-3 after "
    "100 steps; kind: adamp is the published rule",
    "sgdp": "without nesterov it leaves the momentum buffer as it is, where the authors' code projects it: weights differ by 5.2e-3 "
    "after 100 steps; kind: sgdp is the published code, and with project_buffer: false the paper",
    "adabelief": "its rectify is off by default, the authors' is on; else it is equal",
}
"""Where the library departs from the published optimizer, by its lower-case name."""
_TRIED = """
a2grad accsgd adabelief adabound adadelta adafactor adagc adai adalite adam adamax adamc adamg adamod adamp adams
adamw adamwsn adan adanorm adapnm adasmooth adatam ademamix adopt aida amos ano apollo apollodqn avagrad bcos came
diffgrad dualadam exadam fadam fira flashadamw focus fromage ftrl galore grams grokfastadamw kate lamb laprop lars
lion mars msvag nadam nero novograd padam pid pnm qhadam qhm racs radam ranger rmsprop sara schedulefreeadamw
schedulefreeradam schedulefreesgd scion scionlight sgd sgdp sgdsai sgdw shampoo signsgd simplifiedademamix sm3 srmm
stableadamw swats tam tiger vsgd yogi
"""
RESUMES = frozenset(_TRIED.split())
"""Optimizers of version 4.1.0 that a run trains with and that, saved and loaded, go on bit for bit: 85 of 128, each tried.

The others need a closure, another kind of group, more arguments or a second derivative, or keep what is neither tensor nor number.
"""


def build_zoo(
    name: str, groups: list[dict[str, Any]], lr: float, settings: Mapping[str, Any], weight_decay: float
) -> torch.optim.Optimizer:
    """The library's optimizer of a name (any case), with a warning where `NOTES` has one.

    Raises:
        UserError: the library is missing, or has no such optimizer, or it does not work in a run, or takes no such setting.
    """
    try:
        from pytorch_optimizer import get_supported_optimizers, load_optimizer  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"optimizer zoo:{name} is of the library pytorch-optimizer, which is not installed; pip install 'revival[zoo]'"
        ) from None
    known: list[str] = get_supported_optimizers()
    if name.lower() not in known:
        raise UserError(f"pytorch-optimizer has no optimizer {name!r}{did_you_mean(name.lower(), known)}.")
    if name.lower() not in RESUMES:
        raise UserError(
            f"optimizer zoo:{name} does not work in a run, which calls step() alone and goes on bit for bit after a kill; "
            "the names that do stand in docs/optimizers.md."
        )
    rule: Any = load_optimizer(name)
    takes = [key for key in inspect.signature(rule).parameters if key not in ("params", "lr", "kwargs")]
    for key in (*settings, *(["weight_decay"] if weight_decay else [])):
        if key not in takes:
            raise UserError(f"optimizer zoo:{name} has no setting {key!r}{did_you_mean(key, takes)}.")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    try:
        made = rule(groups, lr=lr, **given)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UserError(f"optimizer zoo:{name} cannot be built: {error}; see its page in pytorch-optimizer.") from error
    if note := NOTES.get(name.lower()):
        warnings.warn(f"zoo:{name} departs from its paper: {note}.", stacklevel=2)
    return made
