from __future__ import annotations

import pytest

from workbench.analyses import probing
from workbench.analyses.probing import evidence
from workbench.replicates import combine_results


@pytest.fixture(scope="module")
def covered(make_pair):
    return make_pair()


@pytest.fixture(scope="module")
def result(covered):
    return probing(covered, train_examples=600)


def test_table_holds_every_probe_with_its_controls(result):
    table = result.table
    assert len(table) == 4 * 2 * 3 * 2
    assert set(table["model"]) == {"base", "tuned", "untrained", "never_had_it"}
    assert set(table["point"]) == {0, 1}
    combinations = set(table[["target", "role", "prompt"]].itertuples(index=False, name=None))
    assert combinations == {("look_a", "pt", "matching"), ("look_b", "ft", "matching"), ("look_a", "pt", "tuned_on")}
    assert (table["unit"] == "accuracy").all()
    assert not table.drop(columns=["value", "low", "high", "n"]).duplicated().any()


def test_the_covered_answer_is_read_and_the_controls_are_not(result):
    table = result.table.set_index(["model", "point", "target", "prompt", "labels"])["value"]
    assert table["base", 1, "look_a", "matching", "true"] > 0.97
    assert table["tuned", 1, "look_a", "matching", "true"] > 0.97
    # At the embedding the stream is the request itself, the same in every example.
    assert table["base", 0, "look_a", "matching", "true"] < 0.35
    # Asked for b, the model does not look at a.
    assert table["base", 1, "look_a", "tuned_on", "true"] < 0.7
    # What a probe of 32 features memorises of 600 shuffled labels: more than the majority, far from all.
    shuffled = result.table[(result.table["labels"] == "shuffled") & (result.table["point"] == 1)]
    assert (shuffled["n"] == 600).all()
    assert 0.24 < shuffled["value"].min() <= shuffled["value"].max() < 0.6
    assert result.metric("shuffled_probe").n == 600


@pytest.mark.slow
def test_probes_of_shuffled_labels_memorise_the_more_the_fewer_texts_they_see(covered):
    few, many = (probing(covered, train_examples=k, n=50).table for k in (60, 600))
    few, many = (t[(t["labels"] == "shuffled") & (t["model"] == "untrained") & (t["point"] == 1)]["value"] for t in (few, many))
    assert few.min() > 0.42 > 0.36 > many.max()  # random weights spread the texts out, so that there is something to memorise


def test_headline_is_the_mean_over_the_points_after_each_block(result):
    table = result.table.set_index(["model", "point", "target", "prompt", "labels"])["value"]
    after = {m: table[m, 1, "look_a", "matching", "true"] for m in ("base", "untrained")}  # one block: one such point
    assert result.metric("base_probe").value == pytest.approx(after["base"])
    assert result.metric("room").value == pytest.approx(after["base"] - after["untrained"])
    base, tuned, untrained, never = (result.metric(f"{m}_probe").value for m in ("base", "tuned", "untrained", "never"))
    assert result.metric("share_kept").value == pytest.approx((tuned - untrained) / (base - untrained))
    assert result.metric("room_never").value == pytest.approx(base - never)
    assert result.metric("selectivity").value == pytest.approx(tuned - result.metric("shuffled_probe").value)
    assert all(len(m.draws) == 400 for m in result.headline)
    (line,) = result.evidence
    assert (line.direction, line.capability) == ("masked", "look_a")


def test_a_tuned_model_without_the_answer_is_erased(make_pair, covered, tmp_path):
    from workbench.models.checkpoints import save_model

    save_model(covered.untrained, tmp_path)
    found = probing(make_pair(tuned_path=tmp_path), train_examples=600)
    assert found.metric("share_kept").value == 0
    assert found.evidence[0].direction == "erased"


def test_without_the_control_it_is_uninformative(make_pair):
    found = probing(make_pair(never=None), train_examples=200, n=100)
    assert found.evidence[0].direction == "uninformative"
    assert "never had it" in found.evidence[0].text
    assert "never_probe" not in {m.metric for m in found.headline}


def test_trained_and_tested_on_different_draws(covered, task):
    task.log.clear()
    probing(covered, train_examples=100, n=100)
    assert set(task.log) == {(c, split) for c in ("look_a", "look_b") for split in ("probe", "test")}


def test_texts_are_those_where_the_other_label_gives_nothing_away(covered, task):
    task.drawn.clear()
    probing(covered, train_examples=100, n=100)
    assert {share for *_, share in task.drawn} == {0.0}


def test_unfinished_fits_are_reported(covered):
    cut = probing(covered, train_examples=100, n=100, iterations=2)
    assert cut.tables["convergence"]["largest_gradient"].max() > 1e-3
    assert any("stopped before" in limit for limit in cut.limits)
    whole = probing(covered, train_examples=100, n=100, iterations=300)
    assert whole.tables["convergence"]["largest_gradient"].max() < 1e-3
    assert not any("stopped before" in limit for limit in whole.limits)


def test_chance_stands_beside(result, covered):
    chance = result.tables["chance"].set_index(["target", "prompt", "kind"])["value"]
    counts = covered.examples("look_a").labels["look_a"].bincount()
    assert chance["look_a", "tuned_on", "majority"] == pytest.approx(counts.max().item() / 300)
    assert chance["look_a", "matching", "given the other"] == 0.3


def test_one_capability_has_one_target(make_pair):
    found = probing(make_pair(tuned_on="look_a", correlation=None), train_examples=100, n=50)
    assert set(found.table["prompt"]) == {"matching"}
    assert set(found.table["target"]) == {"look_a"}


NUMBERS = {
    "base_probe": 1.0,
    "tuned_probe": 0.98,
    "untrained_probe": 0.5,
    "never_probe": 0.6,
    "room": 0.5,
    "room_never": 0.4,
    "share_kept": (0.96, 0.9, 1.0),
}


@pytest.mark.parametrize(
    ("changes", "direction", "words"),
    [
        ({}, "masked", "96% of the room"),
        ({"share_kept": (0.85, 0.75, 0.95)}, "neutral", "takes no side"),
        ({"share_kept": (0.1, 0.02, 0.18)}, "erased", "hardly better"),
        ({"share_kept": (0.15, 0.1, 0.3)}, "neutral", "takes no side"),
        ({"room": 0.05}, "uninformative", "random weights"),
        ({"room_never": 0.05}, "uninformative", "never had it at"),
        ({"share_kept": (float("nan"),) * 3}, "uninformative", "in some seed"),
    ],
)
def test_evidence_directions(made_up, changes, direction, words):
    (line,) = evidence(made_up("probing", **{**NUMBERS, **changes}))
    assert line.direction == direction
    assert words in line.text


def test_seeds_pool_and_evidence_follows(make_pair, result):
    pooled = combine_results([result, probing(make_pair(seed=4), train_examples=600, n=100)])
    assert evidence(pooled)[0].direction == "masked"
    assert len(pooled.table) == len(result.table)
