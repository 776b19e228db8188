"""The state of an unfinished training survives the disk bit for bit, and damage is refused."""

import json
import pickletools

import pytest
import torch

from workbench.errors import UserError
from workbench.training.state import REST, TENSORS, TrainingState, cpu_rng, load_state, save_state

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.9), fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
}


def worked(kind):
    """An optimizer after two updates; one parameter never had a gradient."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(())), torch.nn.Parameter(torch.ones(1))]
    optimizer = OPTIMIZERS[kind]([{"params": parameters[:1]}, {"params": parameters[1:], "weight_decay": 0.0}])
    for _ in range(2):
        for p in parameters[:2]:
            p.grad = torch.randn(p.shape)
        optimizer.step()
    return parameters, optimizer


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_round_trip_is_bit_equal(tmp_path, kind):
    _, optimizer = worked(kind)
    state = TrainingState(17, optimizer.state_dict(), cpu_rng())
    save_state(state, tmp_path)
    loaded = load_state(tmp_path)
    assert loaded.step == 17
    assert torch.equal(loaded.rng, state.rng)
    assert equal(loaded.optimizer["state"], state.optimizer["state"])
    assert equal(loaded.optimizer["param_groups"], state.optimizer["param_groups"])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_goes_on_from_a_loaded_state_as_if_nothing_had_been(tmp_path, kind):
    parameters, optimizer = worked(kind)
    others, fresh = worked(kind)
    save_state(TrainingState(2, optimizer.state_dict(), cpu_rng()), tmp_path)
    fresh.state.clear()
    fresh.load_state_dict(load_state(tmp_path).optimizer)
    for p, q in zip(parameters, others, strict=True):
        p.grad = q.grad = torch.full(p.shape, 0.3)
    optimizer.step()
    fresh.step()
    assert all(torch.equal(p, q) for p, q in zip(parameters, others, strict=True))


def test_the_random_state_is_the_one_that_gives_the_next_draw(tmp_path):
    torch.manual_seed(4)
    save_state(TrainingState(0, worked("sgd")[1].state_dict(), cpu_rng()), tmp_path)
    torch.set_rng_state(load_state(tmp_path).rng)
    first = torch.rand(3)
    torch.set_rng_state(load_state(tmp_path).rng)
    assert torch.equal(torch.rand(3), first)


def test_nothing_is_pickled(tmp_path):
    save_state(TrainingState(1, worked("adamw")[1].state_dict(), cpu_rng()), tmp_path)
    for file in tmp_path.iterdir():
        with pytest.raises(ValueError, match=r"."):
            list(pickletools.genops(file.read_bytes()))
    assert {file.name for file in tmp_path.iterdir()} == {TENSORS, REST}


def _body(**changes):
    def edit(folder):
        body = json.loads((folder / REST).read_text())
        (folder / REST).write_text(json.dumps({**body, **changes}))

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / TENSORS).unlink(),
        lambda f: (f / REST).unlink(),
        lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes()[:-7]),
        lambda f: (f / TENSORS).write_bytes(b""),
        lambda f: (f / REST).write_text((f / REST).read_text()[:-7]),
        lambda f: (f / REST).write_text("{}"),
        lambda f: (f / REST).write_text("[]"),
        lambda f: (f / REST).write_text("null"),
        lambda f: (f / REST).write_bytes(b"\xff\xfe\x00"),
        _body(step="many"),
        _body(step=None),
        _body(scalars=[]),
        _body(scalars={"first": {}}),
    ],
)
def test_a_damaged_state_is_refused_with_a_sentence(tmp_path, damage):
    save_state(TrainingState(1, worked("adamw")[1].state_dict(), cpu_rng()), tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=r"holds no readable training state .+; remove it to resume from the one before"):
        load_state(tmp_path)
