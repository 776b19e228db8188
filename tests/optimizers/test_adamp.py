"""AdamP and SGDP where a weight's length does not matter; the authors' runs are in test_recorded.py."""

import pytest
import torch

from workbench.optimizers.adamp import SGDP, AdamP, project


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Rows:
    """Row-normalised regression: the loss is the same for any length of any row of `w`."""

    def __init__(self, d=64, n=512, seed=0):
        self.x, teacher = normal(n, d, seed=seed), normal(d, d, seed=seed + 1)
        self.y = self.x @ (teacher / teacher.norm(dim=1, keepdim=True)).T
        self.w = torch.nn.Parameter(normal(d, d, seed=seed + 2) / 8)
        self.draws = torch.Generator().manual_seed(seed)

    def backward(self, batch=32):
        rows = torch.randint(0, len(self.x), (batch,), generator=self.draws)
        self.w.grad = None
        error = self.x[rows] @ (self.w / self.w.norm(dim=1, keepdim=True)).T - self.y[rows]
        (self.w.shape[1] * error.square().mean()).backward()


RULES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgdp": lambda p: SGDP(p, lr=0.1, momentum=0.9, project_buffer=False),
    "adamp": lambda p: AdamP(p, lr=1e-2),
}


@pytest.mark.parametrize("rule", ["sgd", "sgdp"])
def test_lengths_grow_by_the_step_alone(rule):
    toy = Rows(d=16)
    optimizer = RULES[rule]([toy.w])
    for group in optimizer.param_groups:
        group["eps"] = 0.0  # the published eps in a length leaves its share of the step along w
    for _ in range(50):
        toy.backward()
        w, before = toy.w.detach().clone(), toy.w.detach().square().sum()
        cosine = (toy.w.grad * w).sum() / toy.w.grad.norm() / w.norm()
        assert abs(cosine) <= 1e-6
        optimizer.step()
        step = toy.w.detach() - w
        assert abs(toy.w.detach().square().sum() - before - step.square().sum()) < 1e-10


@pytest.mark.slow
def test_projection_keeps_the_effective_rate_of_rows_whose_length_is_free():
    factor = {}
    for name in ("momentum", "sgdp", "adamp"):
        toy = Rows()
        optimizer, start = RULES[name]([toy.w]), toy.w.detach().norm()
        for _ in range(2000):
            toy.backward()
            optimizer.step()
        factor[name] = float((start / toy.w.detach().norm()) ** 2)
    assert factor["momentum"] < 0.05
    assert factor["sgdp"] > 5 * factor["momentum"]
    assert factor["adamp"] > 0.8


def test_the_first_view_whose_gradient_is_at_right_angles_projects():
    w = normal(3, 4)
    along = w / w.norm(dim=1, keepdim=True)
    across = normal(3, 4, seed=1)
    across -= along * (along * across).sum(1, keepdim=True)
    step, view = project(w, across, normal(3, 4, seed=2), 0.1, 1e-8)
    assert view == "row"
    assert (step * w).sum(1).abs().max() < 1e-7  # eps in the length leaves a little
    sides = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)[:, None] * w / w.norm(dim=1, keepdim=True) ** 2
    step, view = project(w, sides, normal(3, 4, seed=2), 0.1, 1e-8)  # rows lie along w, and cancel in the layer
    assert view == "layer"
    assert abs((step * w).sum()) < 1e-7
    assert abs((step * w).sum(1)).max() > 1e-3
    direction = normal(3, 4, seed=2)
    assert project(w, w, direction, 0.1, 1e-8) == (direction, "")


def test_vectors_are_never_projected():
    w = torch.tensor([1.0, 0.0], dtype=torch.float64)
    direction = torch.tensor([1.0, 1.0], dtype=torch.float64)
    assert project(w, torch.tensor([0.0, 1.0], dtype=torch.float64), direction, 0.1, 1e-8) == (direction, "")


@pytest.mark.parametrize("fires", [True, False])
def test_decay_is_weaker_where_projected(fires):
    start = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    slope = torch.tensor([[0.0, 1.0]] if fires else [[1.0, 0.0]], dtype=torch.float64)
    ratio = 0.1 if fires else 1.0
    for make, lost, step in (
        (lambda p, decay: AdamP(p, lr=0.1, weight_decay=decay), 0.1 * 0.5 * ratio, 0.1),
        (lambda p, decay: SGDP(p, lr=0.1, momentum=0.9, weight_decay=decay), 0.1 * 0.5 * ratio / (1 - 0.9), 0.1),
    ):
        p, views = torch.nn.Parameter(start.clone()), []
        optimizer = make([p], 0.5)
        optimizer.watch = lambda _, facts, views=views: views.append(facts["view"])
        p.grad = slope.clone()
        optimizer.step()
        assert views == (["row"] if fires else [""])
        assert torch.allclose(p.detach(), start * (1 - lost) - step * slope, atol=1e-7)


def test_dampening_and_nesterov_are_those_of_sgd():
    """On vectors nothing is projected, and torch's SGD is the same but for its first buffer, which dampening spares."""
    p, q = (torch.nn.Parameter(normal(4)) for _ in range(2))
    ours, torchs = SGDP([p], lr=0.1, momentum=0.9, nesterov=True), torch.optim.SGD([q], lr=0.1, momentum=0.9, nesterov=True)
    damped, buffer = SGDP([r := torch.nn.Parameter(normal(4))], lr=0.1, momentum=0.9, dampening=0.5), 0.0
    x = r.detach().clone()
    for step in range(4):
        p.grad, q.grad, r.grad = (normal(4, seed=step) for _ in range(3))
        for optimizer in (ours, torchs, damped):
            optimizer.step()
        buffer = 0.9 * buffer + 0.5 * r.grad
        x = x - 0.1 * buffer
    assert torch.allclose(p, q, atol=1e-14)
    assert torch.allclose(r, x, atol=1e-14)
