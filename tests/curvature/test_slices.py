"""Slices in closed form: quadratic losses, norms of filters, NumPy's SVD, and what rescaling must not change."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from workbench.curvature.objective import Objective, Part, of_model
from workbench.curvature.operators import hessian
from workbench.curvature.slices import (
    along,
    answers,
    filters,
    losses,
    over,
    principal,
    put_vector,
    random_direction,
    spanned,
    vector_of,
    walk_shares,
)
from workbench.errors import UserError
from workbench.models.build import build_model
from workbench.models.forward import accuracy, evaluate, nll
from workbench.models.spec import ModelSpec

ALPHAS = np.linspace(-1, 1, 9)


@pytest.fixture(scope="module")
def regression():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(20, k, generator=generator, dtype=torch.float64) for k in (5, 3))
    torch.manual_seed(0)
    return Objective(nn.Linear(5, 3).double(), [Part(x[:12], y[:12]), Part(x[12:], y[12:])], "squared_error")


@pytest.fixture(scope="module")
def gpt2():
    return build_model(ModelSpec(kind="gpt2", blocks=1, heads=2, width=8), 20, 12, 0)


def unit_columns(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_quadratic_loss_on_a_line_and_on_a_plane_is_its_taylor_polynomial(regression):
    centre, slope, curvature = regression.vector(), regression.gradient(), hessian(regression).dense()
    before = regression.loss()
    ways = unit_columns(2, regression.size)
    plane, used = spanned(centre, ways, unit=0.7)
    assert used == (0, 1)
    xs, ys = (-1.0, 0.0, 2.0), (0.0, 0.5)
    with losses(regression) as at:
        line = along(at, centre, ways[0], ALPHAS)
        surface = over(at, plane, xs, ys)
    for alpha, loss in zip(ALPHAS, line, strict=True):
        d = alpha * ways[0]
        assert loss == pytest.approx(float(before + slope @ d + d @ curvature @ d / 2), rel=1e-12)
    for y, row in zip(ys, surface, strict=True):
        for x, loss in zip(xs, row, strict=True):
            d = 0.7 * (x * plane.axes[0] + y * plane.axes[1])
            assert loss == pytest.approx(float(before + slope @ d + d @ curvature @ d / 2), rel=1e-12)
    assert surface[0][1] == before
    assert regression.vector().equal(centre)


def test_parameters_are_put_back_after_an_error(regression):
    centre = regression.vector()
    with pytest.raises(ZeroDivisionError), losses(regression) as at:
        at(centre + 1) / 0
    assert regression.vector().equal(centre)


@pytest.mark.parametrize("vectors", ["zero", "whole"])
def test_every_filter_of_a_direction_is_as_long_as_that_of_the_weights(gpt2, vectors):
    """GPT-2's projections hold outputs in columns, its head and embeddings in rows."""
    model = copy.deepcopy(gpt2)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[:, 3] = 0  # a dead output
        model.transformer.h[0].mlp.c_fc.bias.fill_(2.0)
    made = filters(model)
    weights = vector_of(model)
    direction = random_direction(weights, made, 5, vectors=vectors)
    twin = copy.deepcopy(model).double()
    put_vector(twin, direction)
    for name, p in model.named_parameters():
        d, w = dict(twin.named_parameters())[name].detach(), p.detach().double()
        if p.ndim < 2:
            expected = torch.zeros(()).double() if vectors == "zero" else w.norm()
            torch.testing.assert_close(d.norm(), expected)
            continue
        inputs = 0 if ".c_" in name else 1
        torch.testing.assert_close(d.norm(dim=inputs), w.norm(dim=inputs))
    assert (twin.transformer.h[0].mlp.c_fc.weight[:, 3] == 0).all()
    assert made.count == sum(1 if p.ndim < 2 else p.shape[1 if ".c_" in n else 0] for n, p in model.named_parameters())


def test_filters_of_some_parameters_follow_the_objective(gpt2, random_examples):
    objective = of_model(gpt2, random_examples(), parameters=["transformer.h.0.mlp"])
    made = filters(objective.module, objective.parameters)
    assert len(made.of) == objective.size
    direction = random_direction(objective.vector(), made, 0, "a")
    torch.testing.assert_close(made.norms(direction)[: 4 * 8], made.norms(objective.vector())[: 4 * 8])
    assert float(direction[objective.where("model.transformer.h.0.mlp.c_fc.bias")].norm()) == 0
    again, other = (random_direction(objective.vector(), made, 0, label) for label in ("a", "b"))
    assert again.equal(direction)
    assert abs(float(torch.cosine_similarity(direction, other, dim=0))) < 0.2


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_scaling_one_layer_of_relus_up_and_the_next_one_down_leaves_a_slice_as_it_is(factor):
    """While a slice along the raw direction changes; scaling single units is not taken out [Li+18 §4]."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).double()
    x, y = unit_columns(30, 6, seed=2), torch.arange(30) % 3

    def rescaled(by):
        model = copy.deepcopy(plain)
        with torch.no_grad():
            model[0].weight.mul_(by[:, None])
            model[0].bias.mul_(by)
            model[2].weight.div_(by)
        return model

    def sliced(model, raw=False):
        objective = Objective(model, [Part(x, y)])
        centre = objective.vector()
        direction = random_direction(centre, filters(model), 1)
        if raw:
            direction = unit_columns(len(centre), seed=4)
        with losses(objective) as at:
            return np.array(along(at, centre, direction, ALPHAS))

    layer = rescaled(torch.full((10,), factor, dtype=torch.float64))
    np.testing.assert_allclose(sliced(layer), sliced(plain), rtol=1e-12)
    assert np.abs(sliced(layer, raw=True) - sliced(plain, raw=True)).max() > 0.1
    units = rescaled(torch.linspace(1, factor, 10, dtype=torch.float64))
    np.testing.assert_allclose(sliced(units)[4], sliced(plain)[4], rtol=1e-12)
    assert np.abs(sliced(units) - sliced(plain)).max() > 1e-3


def test_a_plane_through_three_points_holds_them_and_measures_in_its_unit():
    origin, a, b = unit_columns(3, 50)
    plane, _ = spanned(origin, [a - origin, 2 * (a - origin), b - origin], unit=float((a - origin).norm()))
    at_a, at_b, off = plane.place(a), plane.place(b), plane.place(b + unit_columns(50, seed=9))
    assert (at_a.x, at_a.y) == (pytest.approx(1), pytest.approx(0, abs=1e-14))
    assert at_b.y > 0
    for place, point in ((at_a, a), (at_b, b)):
        torch.testing.assert_close(plane.point(place.x, place.y), point)
        assert place.distance < 1e-14
        assert place.outside < 1e-28
    torch.testing.assert_close(plane.axes @ plane.axes.T, torch.eye(2, dtype=torch.float64))
    far = b + unit_columns(50, seed=9)
    nearest = plane.point(off.x, off.y)
    assert off.distance * plane.unit == pytest.approx(float((far - nearest).norm()))
    assert off.outside == pytest.approx(float((far - nearest).norm() / (far - origin).norm()) ** 2)
    assert plane.place(origin).outside == 0


def test_no_plane_without_two_independent_directions():
    origin, a, b = unit_columns(3, 50)
    with pytest.raises(UserError, match="two independent directions, and there are 1"):
        spanned(origin, [a, 3 * a, 0 * a])
    plane, used = spanned(origin, [0 * a, a, a * (1 + 1e-9), b])
    assert used == (1, 3)
    assert float(plane.axes[0] @ a) == pytest.approx(float(a.norm()))


@pytest.mark.parametrize("columns", [7, 1 << 20])
def test_principal_components_of_a_path_are_numpys(columns, monkeypatch):
    monkeypatch.setattr("workbench.curvature.slices.COLUMNS", columns)
    points = unit_columns(6, 40).cumsum(0) * torch.linspace(1, 3, 40)
    plane, shares = principal(list(points), unit=2.0)
    differences = (points - points[-1]).numpy()
    u, s, vt = np.linalg.svd(differences, full_matrices=False)
    np.testing.assert_allclose(shares, s**2 / (s**2).sum(), atol=1e-12)
    for k in range(2):
        assert abs(float(plane.axes[k] @ torch.from_numpy(vt[k]))) == pytest.approx(1, abs=1e-10)
    places = [plane.place(p) for p in points]
    np.testing.assert_allclose(np.abs([p.x for p in places]), np.abs(u[:, 0] * s[0]) / 2, atol=1e-10)
    assert places[0].x > 0
    assert max((p.y for p in places), key=abs) > 0
    assert (places[-1].x, places[-1].y, places[-1].distance) == (0, 0, 0)
    left = 4 * sum(p.distance**2 for p in places) / (differences**2).sum()
    assert left == pytest.approx(1 - shares[:2].sum())


def test_a_path_on_a_line_has_no_plane():
    start, way = unit_columns(2, 30)
    with pytest.raises(UserError, match="the 4 points of the path lie on one line"):
        principal([start + t * way for t in (0.0, 0.5, 0.9, 1.0)])
    with pytest.raises(UserError, match="the 2 points"):
        principal([start, way])


def test_a_random_walk_of_these_steps_in_many_dimensions():
    lengths = np.array([3.0, 1.0, 2.0, 2.0, 0.5])
    steps = unit_columns(5, 400_000, seed=3)
    walk = torch.cat(
        [torch.zeros(1, 400_000, dtype=torch.float64), steps / steps.norm(dim=1)[:, None] * torch.tensor(lengths)[:, None]]
    )
    _, shares = principal(list(walk.cumsum(0)))
    np.testing.assert_allclose(walk_shares(lengths), shares, atol=0.005)
    assert walk_shares(lengths).sum() == pytest.approx(1)


def test_the_shares_of_a_long_walk_fall_as_one_over_the_odd_squares():
    """Uncentred at one end, the components are those of a string that is held at one end: 8/pi^2 / (2k - 1)^2."""
    shares = walk_shares(np.ones(400))
    np.testing.assert_allclose(shares[:4], 8 / np.pi**2 / np.array([1, 9, 25, 49]), rtol=0.01)


def test_the_centre_is_the_model_itself_and_the_model_stays_as_it_is(gpt2, random_examples):
    sets = {"one": random_examples(n=9), "two": random_examples(n=5, seed=1, k=2)}
    before = vector_of(gpt2)
    at = answers(gpt2, sets)
    moved = at(before + random_direction(before, filters(gpt2), 0))
    found = at(before)
    for name, examples in sets.items():
        np.testing.assert_array_equal(found[name].loss, evaluate(gpt2, examples, nll).numpy().astype(np.float64))
        np.testing.assert_array_equal(found[name].right, evaluate(gpt2, examples, accuracy).numpy())
        assert np.abs(moved[name].loss - found[name].loss).max() > 1e-2
    assert vector_of(gpt2).equal(before)
    objective = of_model(gpt2, sets["one"], dtype=torch.float64)
    with losses(objective) as loss:
        assert loss(objective.vector()) == pytest.approx(found["one"].loss.mean(), rel=1e-6)
