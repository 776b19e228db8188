"""Texts of some labels only: retrain on labels up to m, test on those above."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthetic_tasks.labels import ABSENT
from synthetic_tasks.pcfg import PcfgTask
from synthetic_tasks.protocols import mixed, other_families, single_operand
from synthetic_tasks.restrictions import ALL, Labels, at_most_and_above, draw_restricted, parse
from workbench.errors import UserError
from workbench.examples import Capability, Correlation

TASK = PcfgTask.from_settings({"families": ["count", "index", "token"]})
PLUS_ONE = Correlation("count_b", "count_a", 1)


def answers(batch):
    return (batch.answer[:, 0] - TASK.vocabulary.zero).numpy()


class TestLabels:
    @pytest.mark.parametrize(
        ("name", "plain", "labels"),
        [
            ("count_a", "count_a", ALL),
            ("count_a>4", "count_a", Labels(low=5)),
            ("index_b<=10", "index_b", Labels(high=10)),
        ],
    )
    def test_names(self, name, plain, labels):
        assert parse(name) == (plain, labels)
        assert f"{plain}{labels}" == name
        assert bool(labels) == (name != plain)

    @given(st.integers(0, 9), st.integers(0, 9))
    def test_the_two_sides_of_a_bound_share_nothing_and_miss_nothing_but_the_absent(self, bound, label):
        low, high = at_most_and_above(bound, None), at_most_and_above(None, bound)
        found = [bool(side.hold(np.array([label]))[0]) for side in (low, high)]
        assert sorted(found) == [False, True]
        assert not any(side.hold(np.array([ABSENT]))[0] for side in (low, high))

    def test_an_empty_interval_is_refused(self):
        with pytest.raises(UserError, match="labels_above 4 and labels_at_most 4 leave no label"):
            at_most_and_above(4, 4)
        assert at_most_and_above(5, 4).hold(np.array([4, 5, 6])).tolist() == [False, True, False]

    @settings(max_examples=20, deadline=None)
    @given(st.integers(1, 300), st.integers(0, 3))
    def test_drawing_keeps_the_distribution_given_the_label(self, n, seed):
        rng = np.random.default_rng(seed)

        def draw(m):
            return rng.integers(10, size=(m, 2), dtype=np.uint8), rng.random(m) < 0.5

        texts, flags = draw_restricted(n, Labels(low=7), draw, lambda x: x[:, 0].astype(np.int64))
        assert texts.shape == (n, 2)
        assert flags is not None
        assert flags.shape == (n,)
        assert set(texts[:, 0]) <= {7, 8, 9}


class TestCapabilities:
    @pytest.mark.parametrize("correlation", [None, PLUS_ONE.at(0.0), PLUS_ONE])
    @pytest.mark.parametrize(("name", "allowed"), [("count_a>3", {4, 5, 6, 7}), ("count_a<=3", {0, 1, 2, 3})])
    def test_test_sets_hold_such_labels_alone(self, name, allowed, correlation):
        capability = TASK.capability(name, correlation)
        assert isinstance(capability, Capability)
        assert (capability.name, TASK.family(name)) == (name, "count")
        examples = capability.examples(300, seed=0)
        assert set(examples.labels["count_a"].tolist()) <= allowed
        assert (examples.labels["count_a"] == examples.answer[:, 0] - TASK.vocabulary.zero).all()
        if correlation is not None:
            holds = examples.labels["count_b"] == examples.labels["count_a"] + 1
            assert (holds == examples.labels["correlated"].bool()).all()
            assert holds.all() if correlation.share else not holds.any()

    def test_the_labels_inside_are_as_frequent_as_before(self):
        whole = TASK.capability("count_a", PLUS_ONE.at(0.0)).examples(6000, seed=1).labels["count_a"]
        kept = TASK.capability("count_a>3", PLUS_ONE.at(0.0)).examples(6000, seed=1).labels["count_a"]
        for label in (4, 5):
            expected = float((whole == label).double().mean() / (whole > 3).double().mean())
            assert float((kept == label).double().mean()) == pytest.approx(expected, abs=0.03)

    def test_absent_occurrences_are_left_out(self):
        examples = TASK.capability("index_a<=12").examples(400, seed=0)
        found = examples.labels["index_a"]
        assert int(found.min()) >= 0
        assert int(found.max()) <= 12

    def test_chance_is_that_of_the_restricted_texts(self):
        source = TASK.capability("count_a>4", PLUS_ONE.at(0.0))
        assert source.examples(5, 0).chance["majority"] == 1.0  # only 5 is left of 2..5
        assert set(source.examples(5, 0).chance) == {"majority", "given count_b", "given count_c"}

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("count_a>12", "count_a>12 splits no labels, since those of 'count_a' go from 0 to 12; use a bound from 0 to 11"),
            ("count_a<=12", "splits no labels"),
            ("index_a>40", "those of 'index_a' go from 0 to 31"),
            ("count_a>9", r"count_a>9 holds in 0\.0% of these texts, whose labels are from"),
            ("token>0", "the labels of 'token' have no order"),
            ("count_z>3", "no capability 'count_z'"),
            ("count_a>2<=4", "no capability 'count_a>2'"),
        ],
    )
    def test_impossible_restrictions_are_refused(self, name, message):
        with pytest.raises(UserError, match=message):
            TASK.capability(name)


class TestTraining:
    @settings(max_examples=8, deadline=None)
    @given(bound=st.integers(2, 5), step=st.integers(0, 200), seed=st.integers(0, 5))
    def test_trained_below_and_tested_above(self, bound, step, seed):
        protocol = single_operand(TASK, {"capability": f"count_a>{bound}", "labels_at_most": bound}, 32, seed)
        assert answers(protocol.batch(step)).max() <= bound
        assert int(TASK.capability(f"count_a>{bound}").examples(32, seed).labels["count_a"].min()) > bound

    def test_without_settings_the_capabilitys_own_labels_are_trained(self):
        batch = single_operand(TASK, {"capability": "count_a>3"}, 64, 0).batch(0)
        assert answers(batch).min() == 4
        above = single_operand(TASK, {"capability": "count_a", "labels_above": 3}, 64, 0).batch(0)
        assert (batch.tokens == above.tokens).all()

    def test_with_a_correlation(self):
        values = {"capability": "count_b", "correlation": {"with": "count_a"}, "labels_above": 4}
        batch = single_operand(TASK, values, 200, 0).batch(0)
        assert set(answers(batch)) == {5, 6}

    def test_other_protocols_take_such_names(self):
        assert len(other_families(TASK, {"capability": "count_a>3"}, 8, 0).batch(0)) == 8
        values = {"capability": "count_a>3", "pretraining_share": 0.0}
        assert answers(mixed(TASK, values, 200, 0).batch(0)).min() == 4

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"labels_at_most": 12}, "splits no labels"),
            ({"labels_above": 2, "labels_at_most": 1}, "leave no label"),
            ({"labels_above": 10}, r"holds in 0\.0% of these texts"),
            ({"labels_above": 6, "correlation": {"with": "count_b"}}, "use a bound well inside that range"),
        ],
    )
    def test_refused_at_construction(self, values, message):
        with pytest.raises(UserError, match=message):
            single_operand(TASK, {"capability": "count_a", **values}, 8, 0)
