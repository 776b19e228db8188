"""Optimizers, held against their published update rules written out."""

import pytest
import torch
from pydantic import ValidationError

from workbench.optimizers.build import build_optimizer
from workbench.optimizers.spec import OptimizerSpec


def parameters():
    torch.manual_seed(0)
    shapes = [(3, 4), (4,), (2, 3, 2), ()]
    return [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]


def gradient(step, index, shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(10 * step + index))


def run(optimizer, params, steps=5):
    for step in range(steps):
        for index, p in enumerate(params):
            p.grad = gradient(step, index, p.shape)
        optimizer.step()
    return [p.detach() for p in params]


def test_adamw_is_the_published_rule_with_decay_on_matrices_alone():
    spec, lr = OptimizerSpec(betas=(0.8, 0.9), weight_decay=0.1), 0.01
    params = parameters()
    found = run(build_optimizer(spec, params, lr), params)
    for index, start in enumerate(parameters()):
        x, m, v = start.detach().clone(), 0.0, 0.0
        for step in range(5):
            g = gradient(step, index, x.shape)
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
            if x.ndim >= 2:
                x = x - lr * 0.1 * x
            x = x - lr * (m / (1 - 0.8 ** (step + 1))) / ((v / (1 - 0.9 ** (step + 1))).sqrt() + 1e-8)
        assert torch.allclose(found[index], x, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_heavy_ball_with_decay_on_matrices_alone(momentum):
    params = parameters()
    found = run(build_optimizer(OptimizerSpec(kind="sgd", momentum=momentum, weight_decay=0.1), params, 0.05), params)
    for index, start in enumerate(parameters()):
        x, buffer = start.detach().clone(), 0.0
        for step in range(5):
            buffer = momentum * buffer + gradient(step, index, x.shape) + (0.1 * x if x.ndim >= 2 else 0)
            x = x - 0.05 * buffer
        assert torch.allclose(found[index], x, atol=1e-12)


def test_the_defaults_are_those_of_the_paper():
    assert OptimizerSpec() == OptimizerSpec(kind="adamw", betas=(0.9, 0.95), weight_decay=0.0)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_frozen_parameters_are_left_out_and_the_others_all_in(kind):
    params = parameters()
    params[0].requires_grad_(False)
    optimizer = build_optimizer(OptimizerSpec(kind=kind), iter(params), 0.1)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in params[1:]}
    assert all(group["lr"] == 0.1 for group in optimizer.param_groups)


@pytest.mark.parametrize("bad", [{"kind": "lion"}, {"momentum": 1.0}, {"weight_decay": -1}, {"betas": (0.9,)}, {"beta": 1}])
def test_optimizers_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValidationError):
        OptimizerSpec(**bad)


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, 1.5)])
def test_betas_outside_the_unit_interval_are_refused_before_training(betas):
    with pytest.raises(ValidationError):
        OptimizerSpec(betas=betas)
