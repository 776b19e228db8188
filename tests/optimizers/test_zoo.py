"""Optimizers of another library by name, with a stand-in for it that takes the same calls."""

import sys
from types import ModuleType

import pytest
import torch

from workbench.errors import UserError
from workbench.optimizers.build import build_optimizer
from workbench.optimizers.spec import OptimizerSpec


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, **kwargs):
        if betas[0] > 1:
            raise ValueError(f"betas {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})


class Plain(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-4):
        super().__init__(params, {"lr": lr})


@pytest.fixture
def zoo(monkeypatch):
    module, known = ModuleType("pytorch_optimizer"), {"lion": Lion, "sgd": Plain, "diffgrad": Lion, "soap": Lion}
    module.get_supported_optimizers = lambda: sorted(known)
    module.load_optimizer = lambda name: known[name.lower()]
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", module)


def build(kind, **settings):
    return build_optimizer(OptimizerSpec(kind=kind, **settings), torch.nn.Linear(2, 2), 0.1)


def test_a_name_of_the_zoo_is_built_with_its_settings_and_our_groups(zoo):
    optimizer = build("zoo:Lion", settings={"betas": [0.5, 0.6]}, weight_decay=0.1)
    assert isinstance(optimizer, Lion)
    assert [(g["lr"], g["betas"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.1, (0.5, 0.6), 0.1),
        (0.1, (0.5, 0.6), 0.0),
    ]


def test_where_the_library_departs_from_the_paper_it_says_so(zoo):
    with pytest.warns(UserWarning, match=r"zoo:DiffGrad departs from its paper: .+ 5\.0e-4 after 100 steps; kind: diffgrad"):
        build("zoo:DiffGrad")


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        ("zoo:lyon", {}, "pytorch-optimizer has no optimizer 'lyon'; did you mean 'lion'"),
        ("zoo:lion", {"settings": {"beta": 1}}, "optimizer zoo:lion has no setting 'beta'; did you mean 'betas'"),
        ("zoo:soap", {}, r"optimizer zoo:soap does not work in a run, .+ stand in docs/optimizers\.md"),
        ("zoo:sgd", {"weight_decay": 0.1}, "optimizer zoo:sgd has no setting 'weight_decay'"),
        ("zoo:lion", {"settings": {"betas": [2, 0.9]}}, r"optimizer zoo:lion cannot be built: betas \(2, 0\.9\)"),
    ],
)
def test_what_the_library_does_not_have_is_refused(zoo, kind, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        build(kind, **settings)


def test_without_the_library_the_way_to_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(UserError, match=r"not installed; pip install 'revival\[zoo\]'"):
        build("zoo:Lion")
