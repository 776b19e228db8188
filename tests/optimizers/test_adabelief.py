"""AdaBelief: closed forms of its second moment, decay, and both rules; the authors' runs are in test_recorded.py."""

import math

import pytest
import torch

from workbench.optimizers.adabelief import AdaBelief


def after(gs, p=1.0, **settings):
    x = torch.nn.Parameter(torch.tensor([p], dtype=torch.float64))
    optimizer = AdaBelief([x], lr=0.1, **settings)
    for g in gs:
        x.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
    return x.item(), optimizer.state[x]


@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("t", [1, 7, 40])
def test_a_constant_gradient_has_moments_in_closed_form(t, rectify):
    b1, b2, g, eps = 0.9, 0.99, 1.7, 1e-3
    _, state = after([g] * t, betas=(b1, b2), eps=eps, rectify=rectify)
    s = (1 - b2) * sum(b2 ** (t - i) * b1 ** (2 * i) for i in range(1, t + 1)) * g**2 + eps * (1 - b2**t) / (1 - b2)
    assert state["m"].item() == pytest.approx((1 - b1**t) * g, abs=1e-12)
    assert state["s"].item() == pytest.approx(s, abs=1e-12)


def test_the_rectified_rule_waits_as_plain_momentum_or_stands_still():
    gs = [1.0, -2.0, 0.5, 3.0, 1.0]  # rho_t reaches 5 at the sixth update when b2 = .999
    m, x = 0.0, 1.0
    for t, g in enumerate(gs, start=1):
        m = 0.9 * m + 0.1 * g
        x -= 0.1 * m / (1 - 0.9**t)
    assert after(gs)[0] == pytest.approx(x, abs=1e-12)
    assert after(gs, degenerated_to_sgd=False)[0] == 1.0
    assert after([*gs, 1.0], degenerated_to_sgd=False)[0] != 1.0


def test_amsgrad_divides_by_the_largest_second_moment_so_far():
    gs = [5.0, -5.0, 0.1, 0.1]
    settings = {"betas": (0.5, 0.5), "rectify": False, "eps": 1e-8}
    states = [after(gs[:n], amsgrad=True, **settings)[1] for n in (1, 2, 3, 4)]
    assert [state["largest"].item() for state in states] == [max(s["s"].item() for s in states[: n + 1]) for n in range(4)]
    step = after(gs[:3], amsgrad=True, **settings)[0] - after(gs, amsgrad=True, **settings)[0]
    denominator = math.sqrt(states[3]["largest"].item() / (1 - 0.5**4)) + 1e-8
    assert step == pytest.approx(0.1 / (1 - 0.5**4) * states[3]["m"].item() / denominator, abs=1e-12)


def test_decay_is_decoupled_or_fixed_or_in_the_gradient():
    still = after([0.0] * 3, weight_decay=0.5)[0], after([0.0] * 3, weight_decay=0.5, fixed_decay=True)[0]
    assert still == pytest.approx(((1 - 0.1 * 0.5) ** 3, 0.5**3))
    assert after([1.0], weight_decay=0.5, weight_decouple=False)[1]["m"].item() == pytest.approx(0.1 * 1.5)
