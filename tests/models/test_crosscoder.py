"""Crosscoders on activations whose features are known: planted, shrunk, split, and held against least squares one at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.models import crosscoder
from workbench.models.crosscoder import Crosscoder, Recipe, latent_scaling, train_crosscoder

WIDTH, FEATURES, RATE = 16, 24, 0.15


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(n: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, WIDTH, generator=generator(seed)), dim=1)


SHARED, PLANTED = unit(FEATURES, 0), unit(1, 1)[0]


def streams(seed: int, n: int = 256, in_base: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Streams of two models with the same sparse features; the second has one more, which the first has at strength `in_base`."""
    g = generator(100 + seed)
    codes = 2 * torch.rand(n, FEATURES, generator=g) * (torch.rand(n, FEATURES, generator=g) < 0.12)
    extra = (1 + torch.rand(n, generator=g)) * (torch.rand(n, generator=g) < RATE)
    base = codes @ SHARED
    return torch.stack([base + in_base * extra[:, None] * PLANTED, base + extra[:, None] * PLANTED], dim=1), extra


RECIPE = Recipe(latents=32, k=4, steps=600, lr=1e-2)


@pytest.fixture(scope="module")
def planted() -> Crosscoder:
    return train_crosscoder(lambda step: streams(step)[0], RECIPE, seed=0)


def by_hand(decoder: torch.Tensor, encoder: torch.Tensor, threshold: float = 0.0) -> Crosscoder:
    """Decoder `[j, 2, d]`, encoder `[2, d, j]`, no bias, activations as they come."""
    none = torch.zeros(2, decoder.shape[2])
    return Crosscoder(encoder, torch.zeros(len(decoder)), decoder, none, none, torch.ones(2), threshold)


def test_a_dictionary_of_both_signs_of_every_direction_gives_all_back():
    both = torch.cat([torch.eye(2 * WIDTH), -torch.eye(2 * WIDTH)])
    coder = by_hand(both.view(-1, 2, WIDTH), both.T.reshape(2, WIDTH, -1))
    x = torch.randn(50, 2, WIDTH, generator=generator(3))
    assert torch.equal(coder.reconstruct(x), x)
    scaled = replace(coder, centre=torch.randn(2, WIDTH, generator=generator(4)), scale=torch.tensor([2.0, 0.5]))
    assert torch.allclose(scaled.reconstruct(x), x, atol=1e-5)
    codes = scaled.codes(x)
    whole = torch.einsum("nj,jmd->nmd", codes, scaled.directions) + scaled.offset
    assert torch.allclose(whole, scaled.reconstruct(x), atol=1e-5)


def test_the_planted_feature_is_found_as_the_one_that_the_second_model_has_alone(planted):
    x, extra = streams(-1, 4000)
    codes, scaling = planted.codes(x), latent_scaling(planted, [x])
    alone = ((planted.relative_norm > 0.9) & (scaling.error < 0.2) & (scaling.reconstruction < 0.5)).nonzero().flatten()
    assert len(alone) == 1
    found = int(alone)
    assert torch.dot(planted.decoder[found, 1], PLANTED) / planted.norms[found, 1] > 0.99
    assert np.corrcoef(codes[:, found], extra)[0, 1] > 0.98
    others = torch.arange(RECIPE.latents) != found
    live = others & (codes > 0).any(0)
    assert planted.relative_norm[live].max() < 0.7
    assert planted.cosine[live].median() > 0.9


def test_exchanged_models_exchange_who_has_it():
    coder = train_crosscoder(lambda step: streams(step)[0].flip(1), RECIPE, seed=0)
    scaling = latent_scaling(coder, [streams(-1, 4000)[0].flip(1)], model=0)
    alone = (coder.relative_norm < 0.1) & (scaling.error < 0.2) & (scaling.reconstruction < 0.5)
    assert int(alone.sum()) == 1


def test_codes_are_sparse_and_explain_the_streams(planted):
    x, _ = streams(-1, 4000)
    left = (x - planted.reconstruct(x)).pow(2).sum((0, 2)) / (x - x.mean(0)).pow(2).sum((0, 2))
    assert left.max() < 0.08
    assert (planted.codes(x) > 0).sum(1).float().mean() == pytest.approx(RECIPE.k, rel=0.15)
    # An example's codes do not depend on those beside it.
    assert torch.allclose(planted.codes(x[:1]), planted.codes(x)[:1], atol=1e-6)


def train_with_penalty(penalty: float, **given: float) -> Crosscoder:
    """The crosscoder of Lindsey+24: an L1 penalty on codes times decoder norms, here without BatchTopK."""
    coder = train_crosscoder(lambda step: streams(step, **given)[0], replace(RECIPE, steps=4, lr=0.0), seed=0)  # as it begins
    learned = [t.clone().requires_grad_(True) for t in (coder.encoder, coder.encoder_bias, coder.decoder, coder.bias)]
    optimizer = torch.optim.Adam(learned, lr=1e-2)
    for step in range(600):
        x = coder.normalised(streams(step, **given)[0])
        encoder, encoder_bias, decoder, bias = learned
        codes = torch.relu(x.flatten(1) @ encoder.flatten(0, 1) + encoder_bias)
        error = x - (codes @ decoder.flatten(1)).view_as(x) - bias
        loss = error.pow(2).sum((1, 2)).mean() + penalty * (codes * decoder.norm(dim=-1).sum(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Crosscoder(*(t.detach() for t in learned), coder.centre, coder.scale)


def test_a_shared_feature_that_a_penalty_makes_the_seconds_alone_is_not_flagged():
    """Its strength in the first model is .4: the L1 crosscoder's norms say that it has none of it, the ratios that it has."""
    x, extra = streams(-1, 4000, in_base=0.4)
    found = {}
    for name, coder in (
        ("l1", train_with_penalty(3.0, in_base=0.4)),
        ("top k", train_crosscoder(lambda step: streams(step, in_base=0.4)[0], RECIPE, seed=0)),
    ):
        latent = int(torch.tensor([np.corrcoef(c, extra)[0, 1] if c.any() else 0 for c in coder.codes(x).T]).argmax())
        found[name] = float(coder.relative_norm[latent]), float(latent_scaling(coder, [x]).error[latent])
    assert found["l1"][0] > 0.95
    assert found["top k"][0] == pytest.approx(1 / 1.4, abs=0.05)
    for _, error in found.values():
        assert error == pytest.approx(0.4, abs=0.06)


def test_complete_shrinkage_is_seen_through():
    """A penalty that drove the base's decoder to nearly nothing: the norm says new, the base's error says it is there."""
    x, _ = streams(-1, 2000, in_base=1.0)
    v = PLANTED
    coder = by_hand(torch.stack([0.03 * v, v])[None], torch.stack([v, v])[:, :, None] / 2, threshold=0.8)
    scaling = latent_scaling(coder, [x])
    assert coder.relative_norm[0] > 0.95
    assert scaling.error[0] == pytest.approx(1, abs=0.01)


def test_latent_decoupling_is_seen_through():
    """One feature split into a latent for each model: the norm says new, the base's reconstruction says it is there."""
    x, _ = streams(-1, 2000, in_base=1.0)
    v, none = PLANTED, torch.zeros(WIDTH)
    encoder = torch.stack([v, v])[:, :, None].expand(-1, -1, 2) / 2
    coder = by_hand(torch.stack([torch.stack([none, v]), torch.stack([v, none])]), encoder.contiguous(), threshold=0.8)
    scaling = latent_scaling(coder, [x])
    assert coder.relative_norm.tolist() == [1.0, 0.0]
    assert scaling.reconstruction[0] == pytest.approx(1, abs=1e-6)
    assert latent_scaling(coder, [x], model=0).reconstruction[1] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("model", [0, 1])
def test_latent_scaling_is_least_squares_of_each_latent_by_itself(planted, model):
    x, _ = streams(-2, 500)
    codes = planted.codes(x).double().numpy()
    a = planted.normalised(x).double().numpy()
    decoder, bias = planted.decoder.double().numpy(), planted.bias.double().numpy()
    back = np.einsum("nj,jmd->nmd", codes, decoder)
    found = latent_scaling(planted, [x[:200], x[200:]], model)
    for j in np.flatnonzero((codes > 0).any(0))[:8]:
        direction = np.outer(codes[:, j], decoder[j, model]).ravel()

        def scale(target, direction=direction):
            return np.linalg.lstsq(direction[:, None], target.ravel(), rcond=None)[0][0]

        error = [scale(a[:, m] - bias[m] - back[:, m] + np.outer(codes[:, j], decoder[j, m])) for m in (0, 1)]
        given = [scale(back[:, m]) for m in (0, 1)]
        assert found.error[j] == pytest.approx(error[1 - model] / error[model], rel=1e-3, abs=1e-4)
        assert found.reconstruction[j] == pytest.approx(given[1 - model] / given[model], rel=1e-3, abs=1e-4)
    silent = ~(codes > 0).any(0)
    assert np.isnan(found.error.numpy()[silent]).all()


def test_equal_seeds_give_equal_dictionaries_also_where_gradients_are_off():
    short = replace(RECIPE, steps=30)
    one = train_crosscoder(lambda step: streams(step)[0], short, seed=5)
    with torch.no_grad():
        same = train_crosscoder(lambda step: streams(step)[0], short, seed=5)
    other = train_crosscoder(lambda step: streams(step)[0], short, seed=6)
    assert torch.equal(one.decoder, same.decoder)
    assert one.threshold == same.threshold > 0
    assert not torch.equal(one.decoder, other.decoder)
    assert not one.decoder.requires_grad


def test_batch_top_k_keeps_k_on_average_and_lets_examples_differ():
    ranks = torch.rand(40, 32, generator=generator(0)) * torch.linspace(0.2, 2, 40)[:, None]
    kept, least = crosscoder._batch_top_k(ranks, 3)
    assert int(kept.sum()) == 3 * 40
    assert least == ranks[kept].min() > ranks[~kept].max()
    assert kept.sum(1).min() < 3 < kept.sum(1).max()
    few, least = crosscoder._batch_top_k(torch.zeros(4, 5), 2)
    assert (int(few.sum()), least) == (0, 0.0)  # nothing that is off is kept


def test_k_falls_to_its_value_and_the_rate_rises_and_falls():
    recipe = Recipe(latents=64, k=8, steps=1000, lr=1.0, start=2, anneal=0.2)
    assert [recipe.k_at(step) for step in (0, 100, 200, 999)] == [16, 12, 8, 8]
    assert recipe.lr_at(0) == pytest.approx(0.05)
    assert recipe.lr_at(500) == 1
    assert recipe.lr_at(999) == pytest.approx(1 / 300)
    assert Recipe(latents=10, k=8, steps=10, lr=1.0).k_at(0) == 10


def test_only_dead_latents_learn_from_the_auxiliary_loss(planted):
    x = planted.normalised(streams(7)[0])
    decoder = planted.decoder.clone().requires_grad_(True)
    coder = replace(planted, decoder=decoder)
    codes, _ = coder.weighed(x)
    dead = torch.arange(RECIPE.latents) >= 28
    crosscoder._auxiliary(coder, codes.detach().abs() + 0.1, dead, x).backward()
    touched = decoder.grad.flatten(1).abs().sum(1) > 0
    assert torch.equal(touched, dead)


def test_the_auxiliary_loss_acts_once_latents_died(monkeypatch):
    def trained(weight: float, steps: int) -> torch.Tensor:
        monkeypatch.setattr(crosscoder, "AUXILIARY", weight)
        recipe = replace(RECIPE, latents=64, steps=steps, dead_after=10, start=1)
        return train_crosscoder(lambda step: streams(step, 32)[0], recipe, seed=0).decoder

    assert torch.equal(trained(0.0, 10), trained(0.25, 10))
    assert not torch.equal(trained(0.0, 60), trained(0.25, 60))
