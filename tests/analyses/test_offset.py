"""Offset: numbers with closed forms, and a pair whose difference is one constant by construction."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from analyses.compiled_pair import compiled_pair
from analyses.conftest import INHIBITOR

from workbench.analyses import offset
from workbench.analyses._shifts import CONSTANT, NORM, separation, shift
from workbench.analyses.offset import cosines, evidence, input_gradients
from workbench.errors import UserError
from workbench.measures import UNRELATED
from workbench.models.build import build_model
from workbench.models.checkpoints import save_model
from workbench.models.fingerprint import check_unchanged
from workbench.models.spec import ModelSpec
from workbench.models.steering import answer_streams
from workbench.replicates import combine_results

N = 80


# --- clouds of activations


def test_a_constant_is_all_of_the_change_and_as_long_as_it_is():
    x = np.random.default_rng(0).standard_normal((40, 6))
    found = shift(x, x + np.array([3.0, 0, 0, 0, 4.0, 0]), 0)
    assert found[CONSTANT].value == pytest.approx(1)
    assert (found[CONSTANT].low, found[CONSTANT].high) == (pytest.approx(1), pytest.approx(1))
    assert found[NORM].value == pytest.approx(5 / np.linalg.norm(x, axis=1).mean())
    same = shift(x, x.copy(), 0)
    assert same[NORM].value == 0
    assert same[CONSTANT].bound == "undefined"


def test_the_squared_mean_is_that_of_pairs_of_different_texts():
    rng = np.random.default_rng(1)
    x, d = rng.standard_normal((12, 5)), rng.standard_normal((12, 5)) + 0.4
    pairs = [d[i] @ d[j] for i in range(12) for j in range(12) if i != j]
    assert shift(x, x + d, 0)[CONSTANT].value == pytest.approx(np.mean(pairs) / (d**2).sum(1).mean())


def test_noise_alone_has_no_constant_for_few_texts_either_and_draws_agree():
    """The plain square of the mean would say 1 / n = 0.1."""
    rng = np.random.default_rng(2)
    values, draws = [], []
    for _ in range(300):
        x = rng.standard_normal((10, 16))
        found = shift(x, x + rng.standard_normal((10, 16)), 0)[CONSTANT]
        values.append(found.value)
        draws.append(np.mean(found.draws))
    assert abs(np.mean(values)) < 0.01
    assert abs(np.mean(draws)) < 0.015
    assert min(values) < 0


def test_a_constant_in_noise_is_its_share_of_the_variance():
    x = np.random.default_rng(3).standard_normal((4000, 8))
    d = np.random.default_rng(4).standard_normal((4000, 8))
    d[:, 0] += 2
    found = shift(x, x + d, 0)[CONSTANT]
    assert found.value == pytest.approx(4 / (4 + 8), abs=0.02)
    assert found.low < 1 / 3 < found.high


def by_hand(own, other):
    """One activation at a time, with means of the texts that are left."""
    out = []
    for i in range(len(own)):
        rest = np.arange(len(own)) != i
        both = []
        for mine, z, theirs in ((own, own[i], other), (other, other[i], own)):
            a, b = np.linalg.norm(z - mine[rest].mean(0)), np.linalg.norm(z - theirs[rest].mean(0))
            both.append((b - a) / max(a, b))
        out.append(np.mean(both))
    return np.array(out)


def test_separation_leaves_each_text_out_of_both_means():
    rng = np.random.default_rng(5)
    own, other = rng.standard_normal((20, 4)), rng.standard_normal((20, 4)) + 1
    assert np.allclose(separation(own, other), by_hand(own, other))
    assert np.allclose(separation(own + 7, other + 7), separation(own, other))
    alike = [separation(*rng.standard_normal((2, 20, 4))).mean() for _ in range(200)]
    assert abs(np.mean(alike)) < 0.01
    points = np.tile([[1.0, 0]], (20, 1))
    assert (separation(points, -points) == 1).all()
    assert not separation(points, points + 1e-8).any()


# --- weights and gradients


@pytest.fixture
def random_model():
    def make(kind="gpt2", seed=0):
        model = build_model(ModelSpec(kind=kind, blocks=2, heads=2, width=16), 20, 12, seed)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
        return model

    return make


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_input_gradients_are_those_of_one_text_at_a_time(random_model, random_examples, kind):
    model, examples = random_model(kind), random_examples(padded=False)
    expected = []
    for i in range(len(examples)):
        tokens, at = examples.tokens[i : i + 1], int(examples.answer_position[i])
        embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
        logits = model(inputs_embeds=embedded).logits[0, at]
        (logits[examples.answer[i, 0]] - logits.mean()).backward()
        expected.append(embedded.grad.norm())
    model.zero_grad()
    with check_unchanged(model):
        found = input_gradients(model, examples)
    assert torch.allclose(found, torch.stack(expected), rtol=1e-3)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_cosines_of_keys_and_values(random_model, kind):
    base = random_model(kind)
    changed = copy.deepcopy(base)
    with torch.no_grad():
        if kind == "gpt2":  # one column of what is read, one row of what is written
            changed.transformer.h[0].mlp.c_fc.weight[:, 3] *= -1
            changed.transformer.h[1].mlp.c_proj.weight[5] = 0
        else:  # a key is the gate's and the other input's vector together
            changed.model.layers[0].mlp.gate_proj.weight[3] *= -1
            changed.model.layers[0].mlp.up_proj.weight[3] *= -1
            changed.model.layers[1].mlp.down_proj.weight[:, 5] = 0
    hidden = base.config.n_inner if kind == "gpt2" else base.config.intermediate_size
    found = {(r["block"], r["vector"], r["measure"]): r for r in cosines("tuned", base, changed)}
    assert found[0, "key", "mean"]["value"] == pytest.approx(1 - 2 / hidden)
    assert found[0, "key", "mean"]["n"] == hidden
    assert found[0, "value", "mean"]["value"] == pytest.approx(1)
    assert found[1, "key", "mean"]["value"] == pytest.approx(1)
    assert found[1, "value", "mean"]["n"] == hidden - 1  # a zero vector has no direction
    low = {
        (r["vector"], r["block"]): r["value"] for r in cosines("tuned", base, random_model(kind, 1)) if r["measure"] != "mean"
    }
    mean = {
        (r["vector"], r["block"]): r["value"] for r in cosines("tuned", base, random_model(kind, 1)) if r["measure"] == "mean"
    }
    assert all(low[key] < mean[key] < 1 for key in mean)


# --- a pair


@pytest.fixture(scope="module")
def covered(make_pair):
    return make_pair()


@pytest.fixture(scope="module")
def result(covered):
    return offset(covered, n=N, gradient_examples=40)


def rows(table, **at):
    for name, value in at.items():
        table = table[table[name] == value]
    return table


def test_a_neuron_that_is_always_on_is_a_constant_at_every_place(result, covered):
    tuned = rows(result.table, model="tuned")
    assert rows(tuned, measure=CONSTANT, point=1)["value"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert rows(tuned, measure=CONSTANT, point=0)["value"].isna().all()
    assert not rows(tuned, measure=NORM, point=0)["value"].any()
    mlp = covered.tuned.transformer.h[0].mlp
    written = (mlp.act(mlp.c_fc.bias[INHIBITOR]) * mlp.c_proj.weight[INHIBITOR]).norm().detach()
    size = answer_streams(covered.base, covered.examples("look_a", n=N))[1].norm(dim=-1).mean()
    (at_answer,) = rows(tuned, measure=NORM, point=1, role="request")["value"]
    assert at_answer == pytest.approx(float(written / size), rel=1e-4)
    assert result.metric("relative_norm_tuned").value == at_answer
    assert result.metric("constant_share_tuned").value == pytest.approx(1, abs=1e-5)
    assert result.metric("constant_share_never_had_it").value < 0.9


def test_a_constant_separates_nothing(result):
    """Both classes move alike, so that no distance changes."""
    base, tuned = (rows(result.table, measure="separation", model=m)["value"].to_numpy() for m in ("base", "tuned"))
    assert tuned == pytest.approx(base, abs=1e-4)
    assert np.abs(base).max() > 0.3
    assert len(base) == 2 * rows(result.table, model="tuned", measure=NORM, point=0).shape[0]


def test_only_the_planted_neuron_moved_and_it_has_no_direction_in_both_models(result):
    mlp = rows(result.tables["mlp"], model="tuned", measure="mean")
    assert mlp["value"].to_numpy() == pytest.approx(1)
    assert set(mlp["n"]) == {4 * 32 - 1}
    assert rows(result.tables["mlp"], model="never_had_it", measure="mean")["value"].max() < 0.9
    assert result.metric("key_cosine").value == pytest.approx(1)


def test_sensitivity_by_model_and_prompt(result, covered):
    table = result.tables["lipschitz"]
    assert set(zip(table["model"], table["capability"], strict=True)) == {
        (m, c) for m in ("base", "tuned", "never_had_it") for c in ("look_a", "look_b")
    }
    expected = float(input_gradients(covered.tuned, covered.examples("look_b", n=N)[:40]).mean())
    assert rows(table, model="tuned", capability="look_b")["value"].iloc[0] == pytest.approx(expected, rel=1e-5)
    ratio = result.metric("lipschitz_ratio_ft")
    base = rows(table, model="base", capability="look_b")["value"].iloc[0]
    assert ratio.value == pytest.approx(expected / base, rel=1e-5)
    assert (ratio.pool, table["n"].unique().tolist()) == ("geometric", [40])


def test_the_line_takes_no_side(result):
    (line,) = result.evidence
    assert (line.analysis, line.direction, line.capability) == ("offset", "neutral", "look_a")
    assert "100% of the mean squared change" in line.text
    assert "1.000 and 1.000" in line.text


def test_two_equal_models_leave_nothing_to_describe(make_pair):
    found = offset(make_pair(tuned="base", never=None), n=16, gradient_examples=16)
    (line,) = found.evidence
    assert line.direction == "uninformative"
    assert "no change to describe" in line.text
    assert found.metric("lipschitz_ratio_pt").value == 1


def test_without_a_loss_and_from_another_start_the_line_says_so(make_pair, covered, result):
    assert (result.metric("base_pt").value, UNRELATED in result.limits) > (0.9, False)
    learned = offset(make_pair(tuned="never", capability="last", tuned_on="look_b"), n=40, gradient_examples=16)
    assert learned.metric("constant_share_tuned").value > 0
    (line,) = learned.evidence
    assert (line.direction, "no loss can be placed" in line.text) == ("uninformative", True)
    (line,) = offset(replace(covered, start_path=covered.never_path), n=16, gradient_examples=16).evidence
    assert UNRELATED in line.text


def test_the_revived_model_and_seeds(covered, result):
    pair = replace(covered)
    vars(pair)["revived"] = pair.base
    found = offset(pair, n=N, gradient_examples=40)
    assert not rows(found.table, model="revived", measure=NORM)["value"].any()
    pooled = combine_results([result, replace(result, provenance={**result.provenance, "seed": 4})])
    for name in ("table", "lipschitz", "mlp"):
        assert len(pooled.tables[name]) == len(result.tables[name])
    assert evidence(pooled)[0].direction == "neutral"


def test_a_compiled_pair_one_ability_alone_and_places_by_name(tmp_path):
    pair = compiled_pair(tmp_path)
    found = offset(pair, n=40, gradient_examples=16)
    assert set(found.table["point"]) == {0, 1, 2, 3}
    assert rows(found.table, role="request")["order"].nunique() == 1
    alone = offset(replace(pair, tuned_on="count_a"), n=40, gradient_examples=16)
    assert "separation" not in set(alone.table["measure"])
    assert set(alone.tables["lipschitz"]["capability"]) == {"count_a"}


def test_streams_of_different_size_are_refused(make_pair, tmp_path):
    save_model(build_model(ModelSpec(blocks=1, heads=2, width=16), 9, 15, 0), tmp_path)
    with pytest.raises(UserError, match=r"base of pair 'planted' has .* \(2, 32\), its model 'tuned' one of \(2, 16\)"):
        offset(make_pair(tuned_path=tmp_path), n=32)
