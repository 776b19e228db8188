"""Every kind: saved to disk and loaded elsewhere it goes on bit for bit; refusals of nonsense; nobody touches a gradient."""

import json

import pytest
import torch
from torch import nn

from workbench.errors import UserError
from workbench.optimizers.adamp import AdamP
from workbench.optimizers.build import build_optimizer
from workbench.optimizers.langevin import SGLD
from workbench.optimizers.spec import KINDS, OptimizerSpec
from workbench.training.state import TrainingState, cpu_rng, load_state, save_state

FRUGAL = [{"kind": "frugal", "projection": p, "update_gap": 3} for p in ("columns", "rows", "coordinates", "blocks", "svd")]
SPECS = [
    *({"kind": kind} for kind in KINDS),
    *FRUGAL,
    {"kind": "frugal", "update_gap": 2, "reset_statistics": False, "projection": "blocks"},
    {"kind": "diffgrad", "version": "v1"},
    {"kind": "adabelief", "rectify": False, "amsgrad": True},
    {"kind": "sign_sgd", "momentum": 0.9},
    {"kind": "sgld", "inverse_temperature": 10.0},
]


def model(dtype=torch.float32):
    """An embedding, hidden matrices both ways, vectors."""
    net = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 12), nn.LayerNorm(12), nn.Linear(12, 8), nn.Linear(8, 8)).to(dtype)
    for i, p in enumerate(net.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    return net


def steps(optimizer, net, which):
    for step in which:
        for i, p in enumerate(net.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + i)).to(p.dtype)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("said", SPECS, ids=lambda said: "-".join(map(str, said.values())))
def test_saved_and_loaded_it_goes_on_bit_for_bit(tmp_path, said, dtype):
    spec = OptimizerSpec(**said)
    whole, half, rest = (model(dtype) for _ in range(3))
    uninterrupted, first = (build_optimizer(spec, net, 0.01, seed=3) for net in (whole, half))
    steps(uninterrupted, whole, range(8))
    steps(first, half, range(4))
    save_state(TrainingState(4, first.state_dict(), cpu_rng()), tmp_path)
    rest.load_state_dict(half.state_dict())
    second = build_optimizer(spec, rest, 0.01, seed=3)
    second.load_state_dict(load_state(tmp_path).optimizer)
    assert same(second.state_dict(), first.state_dict())
    steps(second, rest, range(4, 8))
    assert all(torch.equal(p, q) for p, q in zip(rest.parameters(), whole.parameters(), strict=True))
    assert same(second.state_dict(), uninterrupted.state_dict())


def same(one, other):
    """Bit-equal, dtypes included; JSON makes lists of tuples, and no memory of a tensor is the same as an empty one."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return all(same(one.get(key, {}), other.get(key, {})) for key in {**one, **other})
    return json.dumps(one) == json.dumps(other)


@pytest.mark.parametrize("said", SPECS, ids=lambda said: "-".join(map(str, said.values())))
def test_gradients_stay_and_tensors_without_one_too(said):
    net = model()
    optimizer = build_optimizer(OptimizerSpec(**said), net, 0.01)
    *others, last = net.parameters()
    kept = []
    for i, p in enumerate(others):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        kept.append(p.grad.clone())
    before = last.detach().clone()
    optimizer.step()
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(others, kept, strict=True))
    assert torch.equal(last, before)


@pytest.mark.parametrize("kind", [kind for kind, own in KINDS.items() if "weight_decay" in own])
def test_decay_is_on_matrices_alone(kind):
    decayed, plain = model(torch.float64), model(torch.float64)
    for net, decay in ((decayed, 0.5), (plain, 0.0)):
        steps(build_optimizer(OptimizerSpec(kind=kind, weight_decay=decay), net, 0.01), net, [0])
    for p, q in zip(decayed.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q) == (p.ndim < 2)


def test_a_closure_gives_the_loss_and_sees_gradients_enabled():
    p = torch.nn.Parameter(torch.ones(2))

    def closure():
        p.grad = None
        loss = p.square().sum()
        loss.backward()
        return loss.item()

    assert AdamP([p]).step(closure) == 2.0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: AdamP(p, lr=-1.0), r"lr is -1\.0: it must be at least 0\."),
        (lambda p: AdamP(p, betas=(0.9, 1.0)), r"betas is \(0\.9, 1\.0\): it must be two numbers from 0 to below 1\."),
        (lambda p: AdamP(p, weight_decay=-0.1), r"weight_decay is -0\.1: it must be at least 0\."),
        (lambda p: SGLD(p, lr=0.1, inverse_temperature=0.0), r"inverse_temperature is 0\.0: it must be more than 0\."),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make([torch.nn.Parameter(torch.zeros(1))])
