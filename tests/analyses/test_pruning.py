from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from analyses.compiled_pair import compiled_pair

from workbench.analyses import pruning
from workbench.analyses.pruning import choose_k, control_draws, curve, evidence, headline_of, k_grid, pruned, recovered
from workbench.errors import UserError
from workbench.examples import Examples
from workbench.figures.pruning import named
from workbench.models.anatomy import neuron_mask, neuron_shape
from workbench.models.build import build_model
from workbench.models.checkpoints import load_model
from workbench.models.forward import answer_logits, nll
from workbench.models.scores import rank, unit_scores
from workbench.models.spec import ModelSpec
from workbench.models.units import units_of
from workbench.replicates import combine_results

INHIBITOR, WRONG = 7, 2


@pytest.fixture(scope="module")
def covered(make_pair):
    return make_pair()


@pytest.fixture(scope="module")
def result(covered):
    return pruning(covered)


@pytest.fixture(scope="module")
def exact(covered):
    """The covered model and its examples in float64."""
    return copy.deepcopy(covered.tuned).double(), covered.examples("look_a", n=64)


@torch.no_grad()
def logits(model, examples):
    return answer_logits(model, examples)


def test_mask_gradient_is_the_output_weights_times_their_gradient(exact):
    model, examples = exact
    twin = copy.deepcopy(model)
    nll(twin, examples).mean().backward()
    weight = twin.transformer.h[0].mlp.c_proj.weight  # [neurons, width]
    expected = (weight * weight.grad).sum(1).detach()
    scores = unit_scores(model, examples, batch_size=24)  # a last batch that is shorter
    assert scores[0].numpy() == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-14)
    assert all(p.grad is None for p in model.parameters())


def test_a_positive_score_means_that_removing_lowers_the_loss(exact):
    model, examples = exact
    scores = unit_scores(model, examples)
    assert scores[0, INHIBITOR] > 0

    def loss(unit, value):
        mask = torch.ones(neuron_shape(model), dtype=torch.float64)
        mask[0, unit] = value
        with torch.no_grad(), neuron_mask(model, mask):
            return nll(model, examples).mean().item()

    for unit in (INHIBITOR, 0, 50):
        slope = (loss(unit, 1 + 1e-5) - loss(unit, 1 - 1e-5)) / 2e-5
        assert slope == pytest.approx(scores[0, unit].item(), rel=1e-5, abs=1e-9)
    assert loss(INHIBITOR, 0.0) < loss(INHIBITOR, 1.0)


def test_rank_is_signed_and_stable():
    scores = torch.tensor([[0.5, -9.0, 0.5], [0.0, 2.0, 0.5]])
    assert rank(scores).tolist() == [4, 0, 2, 5, 3, 1]


def test_removing_a_unit_equals_zeroing_its_weights(exact):
    model, examples = exact
    twin = copy.deepcopy(model)
    mlp = twin.transformer.h[0].mlp
    with torch.no_grad():
        mlp.c_fc.weight[:, INHIBITOR] = 0
        mlp.c_fc.bias[INHIBITOR] = 0
        mlp.c_proj.weight[INHIBITOR] = 0
    order = torch.tensor([INHIBITOR, *(u for u in range(128) if u != INHIBITOR)])
    with pruned(model, order, 1):
        removed = logits(model, examples)
    assert torch.allclose(removed, logits(twin, examples), atol=1e-12)
    assert not torch.allclose(removed, logits(model, examples), atol=1e-2)


def test_removing_none_changes_no_bit_and_removing_all_leaves_the_bias(exact, covered):
    plain, order = logits(covered.tuned, exact[1]), torch.randperm(128, generator=torch.Generator().manual_seed(0))
    with pruned(covered.tuned, order, 0):
        assert torch.equal(logits(covered.tuned, exact[1]), plain)
    model, examples = exact
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.bias.add_(0.1)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.transformer.h[0].mlp.c_proj.weight.zero_()
    with pruned(model, order, 128):
        assert torch.allclose(logits(model, examples), logits(twin, examples), atol=1e-12)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.bias.sub_(0.1)


def test_grid_and_choice():
    assert k_grid(40) == (0, 1, 2, 3, 5, 7, 10, 14, 20, 28, 40)
    assert k_grid(1) == (0, 1)
    assert k_grid(4) == (0, 1, 2, 3, 4)
    assert choose_k((0, 1, 2, 3), (0.2, 0.5, 0.9, 0.9)) == 2
    assert choose_k((0, 1, 2), (0.5, 0.5, 0.1)) == 0


def test_the_planted_inhibitor_is_found_and_removing_it_restores_the_ability(result):
    first = result.tables["units"].iloc[0]
    assert (first["rank"], first["block"], first["neuron"]) == (1, 0, INHIBITOR)
    assert first["score"] > 10 * result.tables["units"].iloc[1]["score"]
    assert result.metric("units").value == 1
    assert result.metric("unpruned_pt").value < 0.4
    assert result.metric("pruned_pt").value == result.metric("base_pt").value > 0.97
    assert result.metric("pruned_ft_correlated").value > 0.97
    assert result.metric("random_pt").value == pytest.approx(result.metric("unpruned_pt").value, abs=0.1)
    gain, recovered = result.metric("gain"), result.metric("recovered")
    assert gain.value == pytest.approx(result.metric("pruned_pt").value - result.metric("random_pt").value)
    assert recovered.value == 1
    (line,) = result.evidence
    assert (line.direction, line.capability) == ("masked", "look_a")
    assert all(len(m.draws) == 400 for m in result.headline)


def test_whole_curve_with_its_control(result):
    table = result.table
    ranked = table[table["ranking"] == "signed_taylor"]
    shown = {(r.capability, r.role, r.share if r.share == r.share else None) for r in ranked.itertuples()}
    assert shown == {("look_a", "pt", 0.0), ("look_b", "ft", 1.0), ("look_b", "ft", 0.0), ("last", "other", None)}
    assert ranked.groupby(["capability", "share"], dropna=False)["k"].apply(tuple).map(lambda k: k == k_grid(40)).all()
    random = table[table["ranking"] == "random"]
    assert set(random["draw"]) == set(range(1, 11))
    assert set(random["k"]) == {1, 5, 20}
    assert set(random["capability"]) == {"look_a"}
    assert random.groupby("k")["draw"].nunique().eq(10).all()


def test_random_orders_differ_and_are_reproducible(covered, result):
    again = pruning(covered)
    assert again.headline == result.headline
    at_20 = result.table.query("ranking == 'random' and k == 20")["value"]
    assert at_20.nunique() > 1


def test_classes_before_and_after(result):
    classes = result.tables["classes"]
    before = classes[classes["when"] == "before"].set_index("answer")["value"]
    assert before[f"<{WRONG}>"] > 0.95
    assert classes.groupby("when")["value"].sum().to_list() == pytest.approx([1, 1, 1])
    assert result.metric("largest_class").value == pytest.approx(classes[classes["when"] == "after"]["value"].max())
    assert result.metric("largest_class").value < 0.4


def test_examples_for_score_choice_and_test_are_different_draws(make_pair, task):
    task.log.clear()
    pruning(make_pair(), n=32, control_examples=16, score_examples=16, max_units=2)
    assert {split for name, split in task.log if name == "look_a"} == {"score", "select", "test"}
    assert {split for name, split in task.log if name != "look_a"} == {"test"}


def test_the_loss_is_taken_where_the_shortcut_fails(make_pair, task):
    task.drawn.clear()
    pruning(make_pair(), n=32, control_examples=16, score_examples=16, max_units=2)
    assert {share for name, _, share in task.drawn if name == "look_a"} == {0.0}
    assert {share for name, _, share in task.drawn if name == "look_b"} == {0.0, 1.0}


def test_what_was_trained_is_protected_where_it_was_trained(make_pair, task):
    task.drawn.clear()
    pruning(make_pair(), score="set_difference", n=32, control_examples=16, score_examples=16, max_units=1)
    asked = {(name, share) for name, split, share in task.drawn if split == "score"}
    assert asked == {("look_a", 0.0), ("look_b", 1.0), ("last", None)}


def test_a_difference_is_that_to_the_model_that_fine_tuning_started_from(make_pair, models, covered):
    """Held against another base, the inhibitor is still the only unit that fine-tuning changed."""
    pair = make_pair(base_path=covered.never_path, start_path=covered.base_path)
    units = pruning(pair, score="difference", n=32, max_units=1, score_examples=16).tables["units"]
    start, tuned = (models[name].transformer.h[0].mlp for name in ("base", "covered"))
    moved = [(after - before).abs() for before, after in zip(start.parameters(), tuned.parameters(), strict=True)]
    assert units.iloc[0]["neuron"] == INHIBITOR
    assert units.iloc[0]["score"] == pytest.approx(sum(m.sum().item() for m in moved), rel=1e-5)
    assert (units["score"].iloc[1:] == 0).all()


def test_a_model_that_never_had_it_gets_nothing_back(make_pair):
    result = pruning(make_pair(tuned="never"), n=200, score_examples=256)
    (line,) = result.evidence
    assert line.direction == "neutral"
    assert "does not show that the ability is gone" in line.text
    assert result.metric("recovered").value < 0.5


def test_nothing_lost_is_uninformative(make_pair):
    result = pruning(make_pair(tuned="base"), n=100, max_units=3, score_examples=64)
    assert result.evidence[0].direction == "uninformative"
    assert result.metric("recovered").bound == "undefined"
    assert result.metric("units").value == 0
    assert result.metric("gain").value == 0
    assert any("removing no neuron at all was best" in limit for limit in result.limits)


def test_a_random_ranking_does_not_find_it(make_pair):
    result = pruning(make_pair(), score="random", n=100, max_units=5, score_examples=64)
    assert result.metric("pruned_pt").value < 0.5
    assert result.evidence[0].direction == "neutral"


def test_plain_texts(make_pair):
    result = pruning(make_pair(correlation=None), n=64, max_units=2, score_examples=64)
    assert result.table["share"].isna().all()
    assert result.evidence[0].direction == "masked"


def test_curve_is_the_naive_one(covered):
    examples, order = covered.examples("look_a", n=64), torch.arange(128).flip(0)
    twin = copy.deepcopy(covered.tuned)
    (found,) = curve(covered.tuned, examples, order, [60])
    with torch.no_grad():
        twin.transformer.h[0].mlp.c_proj.weight[128 - 60 :] = 0
    expected = (logits(twin, examples)[:, 0].argmax(-1) == examples.answer[:, 0]).double().numpy()
    assert found.tolist() == expected.tolist()


def test_control_interval_covers_the_spread_over_orders():
    orders = np.zeros((10, 200))
    orders[:5] = 1.0  # every order is certain, but they disagree
    draws = control_draws(orders, 0)
    assert np.mean(draws) == pytest.approx(0.5, abs=0.03)
    assert np.std(draws) == pytest.approx(np.sqrt(0.25 / 10), rel=0.15)


def test_headline_intervals_of_control_and_gain_hold_that_spread(covered):
    ones, zeros = np.ones(200), np.zeros(200)
    correct = {(c, s, k): ones * k for c, s in (("look_a", 0.0), ("look_b", 1.0)) for k in (0, 1)}
    orders = np.stack([ones] * 5 + [zeros] * 5)
    found = {m.metric: m for m in headline_of(covered, correct, orders, ones, 1, 0.0)}
    assert found["random_pt"].low < 0.3 < 0.7 < found["random_pt"].high
    assert found["gain"].low < 0.3 < 0.7 < found["gain"].high
    assert found["recovered"].value == 1


def test_recovery_is_counted_from_what_needs_no_ability():
    """Below chance nothing is recovered: a constant answer is right for the most frequent label."""
    right = lambda share: (np.arange(400) < round(400 * share)).astype(float)  # noqa: E731
    none = recovered("x", right(0.4), right(0.1), right(1.0), 0.4, 0)
    assert none.value == 0
    assert none.low < 0 < none.high
    assert recovered("x", right(0.7), right(0.1), right(1.0), 0.4, 0).value == pytest.approx(0.5)
    assert recovered("x", right(0.7), right(0.5), right(1.0), 0.4, 0).value == pytest.approx(0.4)
    assert recovered("x", right(0.4), right(0.1), right(0.45), 0.4, 0).bound == "undefined"


NUMBERS = {
    "base_pt": 1.0,
    "unpruned_pt": 0.2,
    "pruned_pt": 0.6,
    "random_pt": 0.2,
    "gain": (0.4, 0.3, 0.5),
    "recovered": (0.5, 0.4, 0.6),
    "units": 20.0,
    "largest_class": 0.3,
    "largest_class_truth": 0.25,
    "unpruned_ft_correlated": 1.0,
    "pruned_ft_correlated": 1.0,
}


@pytest.mark.parametrize(
    ("changes", "direction", "words"),
    [
        ({}, "masked", "50% of the loss above chance comes back"),
        ({"gain": (0.4, -0.1, 0.5)}, "neutral", "no clear recovery"),
        ({"recovered": (0.3, 0.2, 0.4)}, "neutral", "no clear recovery"),
        ({"unpruned_pt": 0.95}, "uninformative", "nothing to bring back"),
        ({"recovered": (float("nan"),) * 3}, "uninformative", "in some seed"),
    ],
)
def test_evidence_directions(made_up, changes, direction, words):
    (line,) = evidence(made_up("pruning", **{**NUMBERS, **changes}))
    assert line.direction == direction
    assert words in line.text


def test_seeds_pool_and_evidence_follows(make_pair, result):
    other = pruning(make_pair(seed=4), n=100, max_units=3, score_examples=128)
    pooled = combine_results([result, other])
    assert evidence(pooled)[0].direction == "masked"
    assert dataclasses.replace(result, tables={}, limits=()).headline == result.headline


@pytest.mark.parametrize("score", ["leave_one_out", "leave_one_out_accuracy", "difference"])
def test_other_scores_find_the_planted_inhibitor_too(make_pair, score):
    result = pruning(make_pair(), score=score, n=100, max_units=3, score_examples=64)
    first = result.tables["units"].iloc[0]
    assert (first["block"], first["neuron"]) == (0, INHIBITOR)
    assert result.evidence[0].direction == "masked"
    assert set(result.table["ranking"]) == {score, "random"}


@pytest.mark.parametrize("score", ["input_taylor", "abs_taylor", "snip", "set_difference"])
def test_scores_that_cannot_find_it_do_not(make_pair, score):
    """It has no input weights; a size without a sign cannot tell harm from use; it moves the other abilities as well."""
    result = pruning(make_pair(), score=score, n=64, max_units=3, score_examples=64)
    assert INHIBITOR not in set(result.tables["units"].head(3)["neuron"])
    assert result.evidence[0].direction == "neutral"


def test_other_units(make_pair):
    heads = pruning(make_pair(), units="heads", n=32, max_units=40, score_examples=32)
    assert list(heads.tables["units"].columns) == ["rank", "block", "head", "score", "unit"]
    assert set(heads.table["k"]) == {0, 1, 2}
    assert heads.metric("units").unit == "heads"
    assert "Only attention heads can be removed (heads)" in heads.limits[0]
    rows = pruning(make_pair(), units="rows:attention_out", n=32, max_units=2, score_examples=32)
    assert list(rows.tables["units"].columns) == ["rank", "block", "matrix", "row", "score", "unit"]
    assert set(rows.tables["units"]["matrix"]) == {"attn.c_proj"}
    weights = pruning(make_pair(), units="weights:mlp_out", score="magnitude", n=32, max_units=2, score_examples=32)
    assert {"row", "column"} <= set(weights.tables["units"].columns)
    assert weights.tables["units"]["score"].is_monotonic_increasing  # the smallest first


def test_a_score_that_does_not_fit_the_units_is_refused(make_pair):
    with pytest.raises(UserError, match="score 'leave_one_out' is not defined for weights:mlp_in"):
        pruning(make_pair(), units="weights:mlp_in", score="leave_one_out", n=32)
    with pytest.raises(UserError, match=r"^pruning: score 'input_taylor' is not defined for heads; .*\.$"):
        pruning.settings({"units": "heads", "score": "input_taylor"})


def test_the_curve_skips_blocks_before_the_first_removed_unit_and_changes_no_answer():
    model = build_model(ModelSpec(blocks=3, heads=2, width=16, mlp_width=8), 20, 12, 0)
    tokens = torch.randint(0, 20, (40, 10), generator=torch.Generator().manual_seed(0))
    examples = Examples(
        tokens=tokens,
        loss_mask=torch.zeros(40, 10, dtype=torch.bool),
        answer_position=torch.full((40,), 7),
        answer=tokens[:, 8:9],
        candidates=torch.arange(20),
    )
    units = units_of(model, "neurons")
    order, grid, ran = torch.arange(24).flip(0), (0, 1, 8, 9, 24), []  # the last block first
    handles = [b.ln_1.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(model.transformer.h)]
    found = curve(model, examples, order, grid, units, batch_size=16)
    for handle in handles:
        handle.remove()
    # In each of three batches a whole pass; 1 and 8 units lie in the last block, 9 in the last two, 24 in all.
    assert [ran.count(block) for block in range(3)] == [3 * 2, 3 * 3, 3 * 5]
    for k, right in zip(grid, found, strict=True):
        with units.removed(model, order[:k]), torch.no_grad():
            naive = answer_logits(model, examples)[:, 0].argmax(-1) == examples.answer[:, 0]
        assert right.tolist() == naive.double().tolist()


def test_single_weights_of_a_compiled_model_say_what_they_connect(tmp_path):
    """The columns are in the table and on the figure's hover; tables of other models have none (`test_other_units`)."""
    found = pruning(compiled_pair(tmp_path), units="weights:mlp_out", n=32, max_units=3, score_examples=32)
    listed = found.tables["units"]
    assert list(listed.columns) == ["rank", "block", "matrix", "row", "column", "reads", "writes", "score", "unit"]
    first = listed.iloc[0]
    labels = found_labels(tmp_path)
    assert (first["reads"], first["writes"]) == (labels[1][first["block"]][first["column"]], labels[0][first["row"]])
    said = named(listed, 2)
    assert said.count("<br>") == 2
    assert f"block {first['block'] + 1} mlp.output: {first['reads']} → {first['writes']}" in said
    assert named(listed.drop(columns=["reads", "writes"]), 2) == ""
    assert "and 92 more" in named(listed, 100)


def found_labels(folder):
    config = load_model(folder / "count_a").config
    neurons = [[name or f"neuron {i}" for i, name in enumerate(names)] for names in config.neuron_labels]
    return config.residual_labels, neurons
