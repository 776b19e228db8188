"""FRUGAL: its two ends are AdamW and signSGD, its memory is its density, and each projection is the one it says."""

import pytest
import torch

from workbench.errors import UserError
from workbench.optimizers.frugal import PROJECTIONS, Frugal
from workbench.optimizers.signs import SignSGD

SHAPES = [(8, 12), (12, 8), (6, 6), (5,), (4, 4)]


def normal(shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tensors():
    return [torch.nn.Parameter(normal(shape, i)) for i, shape in enumerate(SHAPES)]


def run(make, steps=7, watch=None, params=None):
    ps = tensors() if params is None else params
    optimizer = make(ps)
    if watch:
        optimizer.watch = watch
    for step in range(steps):
        for i, p in enumerate(ps):
            p.grad = normal(p.shape, 100 + 10 * step + i)
        optimizer.step()
    return [p.detach() for p in ps], optimizer


def same(one, other, atol):
    return all(torch.allclose(a, b, atol=atol, rtol=0) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("projection", [p for p in PROJECTIONS if p != "svd"])  # in a turned basis Adam is another rule
def test_density_one_is_adamw(projection):
    adamw, _ = run(lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1))
    whole, _ = run(lambda p: Frugal(p, lr=0.01, weight_decay=0.1, density=1.0, projection=projection))
    assert same(whole, adamw, 1e-12)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_density_zero_is_sign_sgd_with_decoupled_decay(projection):
    matrices = [0, 1, 2, 4]
    signs, _ = run(lambda p: SignSGD(p, lr=0.01, weight_decay=0.1))
    none, optimizer = run(lambda p: Frugal(p, lr=0.01, weight_decay=0.1, density=0.0, projection=projection, update_gap=3))
    assert all(torch.equal(none[i], signs[i]) for i in matrices)
    ps = optimizer.tensors()
    held = [t for i in matrices for t in optimizer.state[ps[i]].values() if isinstance(t, torch.Tensor)]
    assert sum(t.numel() for t in held) == 0


@pytest.mark.parametrize("projection", ["columns", "rows", "coordinates", "blocks"])
def test_memory_is_the_density_of_adamws(projection):
    params = [torch.nn.Parameter(normal((8, 8), i)) for i in range(4)]
    _, optimizer = run(lambda p: Frugal(p, density=0.25, projection=projection), params=params, steps=1)
    moments = sum(state[name].numel() for state in optimizer.state.values() for name in ("m", "v") if name in state)
    assert moments == 0.25 * 2 * 4 * 64


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
@pytest.mark.parametrize("projection", ["columns", "rows", "coordinates", "svd"])
def test_the_first_step_is_adams_on_the_active_part_and_the_sign_of_the_rest(projection, shape):
    facts = []
    params = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))]
    (found,), _ = run(
        lambda p: Frugal(p, lr=0.01, weight_decay=0.0, projection=projection, inactive_lr_scale=0.5),
        steps=1,
        watch=lambda _, fact: facts.append(fact),
        params=params,
    )
    g = params[0].grad
    adam = lambda x: x / (x.abs() + 1e-8)  # noqa: E731
    if projection == "svd":
        u, _, vh = torch.linalg.svd(g, full_matrices=False)
        (basis,) = (fact["basis"] for fact in facts)
        assert basis.shape == (8, 2)
        if shape[0] >= shape[1]:
            active, rest = adam(g @ vh[:2].T) @ vh[:2], g - g @ vh[:2].T @ vh[:2]
        else:
            active, rest = u[:, :2] @ adam(u[:, :2].T @ g), g - u[:, :2] @ u[:, :2].T @ g
        assert torch.allclose(found, -0.01 * active - 0.005 * rest.sign(), atol=1e-12)
        return
    (chosen,) = (fact["active"] for fact in facts)
    mask = torch.zeros(shape, dtype=torch.bool)
    if projection == "coordinates":
        mask.view(-1)[chosen] = True
    else:
        mask[(slice(None), chosen) if projection == "columns" else chosen] = True
    assert len(chosen.unique()) == len(chosen) == 0.25 * {"columns": shape[1], "rows": shape[0], "coordinates": 96}[projection]
    assert torch.allclose(found, -0.01 * torch.where(mask, adam(g), 0.5 * g.sign()), atol=1e-12)


def test_galore_is_of_low_rank_between_draws_and_frugal_is_not():
    start = torch.zeros(12, 10, dtype=torch.float64)
    for inactive, most in (("no", 2), ("sign_sgd", 10)):
        settings = {"density": 0.2, "projection": "svd", "inactive": inactive, "weight_decay": 0.0, "update_gap": 5}
        for steps, gaps in ((5, 1), (10, 2)):
            (found,), _ = run(lambda p, s=settings: Frugal(p, **s), steps, params=[torch.nn.Parameter(start.clone())])
            assert torch.linalg.matrix_rank(found, rtol=1e-9) == min(10, most * gaps)


def test_a_new_draw_comes_after_the_gap_and_begins_the_moments_again():
    for reset in (True, False):
        facts = []
        _, optimizer = run(
            lambda p, r=reset: Frugal(p, update_gap=3, reset_statistics=r),
            steps=7,
            watch=lambda p, fact, f=facts: f.append(fact["active"].tolist()),
            params=[torch.nn.Parameter(torch.zeros(4, 40, dtype=torch.float64))],
        )
        (state,) = optimizer.state.values()
        assert len(facts) == 3
        assert len({tuple(f) for f in facts}) == 3
        assert state["step"] == (1 if reset else 7)


def test_draws_follow_the_seed_and_differ_between_tensors():
    def drawn(seed):
        facts = []
        params = [torch.nn.Parameter(torch.zeros(2, 40, dtype=torch.float64)) for _ in range(2)]
        run(lambda p: Frugal(p, seed=seed), 1, lambda _, fact: facts.append(fact["active"].tolist()), params)
        return facts

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert drawn(0)[0] != drawn(0)[1]


@pytest.mark.parametrize(
    ("order", "turns"), [("ascending", [{0}, {1}, {2}, {3}, {0}]), ("descending", [{3}, {2}, {1}, {0}, {3}])]
)
def test_blocks_take_turns(order, turns):
    facts = []
    params = [torch.nn.Parameter(normal((4, 4), i)) for i in range(4)]
    watch = lambda _, fact: facts.append(set(fact["active"].tolist()))  # noqa: E731
    run(lambda p: Frugal(p, projection="blocks", block_order=order, update_gap=1), 5, watch, params)
    assert [set().union(*facts[4 * i : 4 * i + 4]) for i in range(5)] == turns


def test_the_rest_follows_its_gradient_or_nothing():
    for inactive, expected in (("sgd", -0.01 * normal((4, 4), 100)), ("no", torch.zeros(4, 4, dtype=torch.float64))):
        params = [torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))]
        (found,), _ = run(lambda p, i=inactive: Frugal(p, lr=0.01, density=0.0, inactive=i), 1, params=params)
        assert torch.allclose(found, expected, atol=1e-15)


def test_groups_that_are_not_projected_are_adamw():
    groups = lambda p: [{"params": p[:1], "projected": False}, {"params": p[1:]}]  # noqa: E731
    some, _ = run(lambda p: Frugal(groups(p), lr=0.01, weight_decay=0.1, density=0.0))
    adamw, _ = run(lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1))
    assert torch.allclose(some[0], adamw[0], atol=1e-12)
    assert not torch.allclose(some[1], adamw[1], atol=1e-3)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"density": 1.5}, r"density is 1\.5: it must be from 0 to 1\."),
        ({"update_gap": 0}, r"update_gap is 0: it must be at least 1\."),
        ({"projection": "colums"}, "projection is 'colums': it must be one of columns, rows"),
        ({"inactive": "sign"}, "inactive is 'sign': it must be one of sign_sgd, sgd, no"),
        ({"block_order": "mirror"}, "block_order is 'mirror'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(bad, sentence):
    with pytest.raises(UserError, match=sentence):
        Frugal(tensors(), **bad)
