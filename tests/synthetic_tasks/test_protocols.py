"""Training protocols: batches are pure functions of the step, and hold what each protocol promises."""

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from synthetic_tasks.batches import Mixture
from synthetic_tasks.pcfg import PcfgTask
from synthetic_tasks.protocols import (
    mixed,
    other_families,
    other_operands,
    pretraining,
    single_operand,
    unrelated,
    wrong_answers,
)
from workbench.errors import UserError
from workbench.protocols import TrainingProtocol, installed, load_protocol
from workbench.seeds import numpy_generator

TASK = PcfgTask.from_settings({"families": ["count", "index", "token"]})
FULL = PcfgTask.from_settings({})
CORRELATED = {"capability": "count_b", "correlation": {"with": "count_a", "offset": 1, "share": 1.0}}
PROTOCOLS = {
    "pretraining": (pretraining, {"operand_prior": {"a": 0.99, "b": 0.01}}),
    "single_operand": (single_operand, CORRELATED),
    "wrong_answers": (wrong_answers, {"capability": "count_a"}),
    "other_families": (other_families, {"capability": "count_a"}),
    "mixed": (mixed, {**CORRELATED, "pretraining_share": 0.5}),
    "other_operands": (other_operands, {"capability": "count_a"}),
    "unrelated": (unrelated, {"capability": "count_a"}),
}
WHOLE = ("pretraining", "unrelated")
"""Protocols with loss on every token."""


def column(examples, position):
    return [TASK.vocabulary.names[i] for i in examples.tokens[:, position].tolist()]


def texts(examples):
    return ["".join("abc"[i] for i in row) for row in (examples.tokens[:, 5:37] - TASK.vocabulary.first_terminal).tolist()]


def answers(examples):
    return (examples.answer[:, 0] - TASK.vocabulary.zero).tolist()


def one_batch(name, n=4000, task=TASK, **changes):
    factory, values = PROTOCOLS[name]
    return factory(task, {**values, **changes}, n, 0).batch(0)


class OtherTask:
    """A task that is not made of the families of a grammar."""

    vocab_size, context, capabilities, resolved = 2, 2, ("other",), {}

    def family(self, capability):
        return capability

    def capability(self, name, correlation=None):
        raise NotImplementedError

    def describe(self, tokens):
        return str(tokens)


@pytest.mark.parametrize("name", PROTOCOLS)
class TestEveryProtocol:
    def test_contract(self, name):
        factory, values = PROTOCOLS[name]
        protocol = factory(TASK, values, 8, 0)
        assert isinstance(protocol, TrainingProtocol)
        batch = protocol.batch(0)
        assert protocol.batch_size == len(batch) == 8
        assert batch.tokens.shape == (8, 41)
        assert batch.tokens.dtype == torch.int64
        assert (batch.tokens[torch.arange(8), batch.answer_position + 1] == batch.answer[:, 0]).all()
        assert torch.isin(batch.answer, batch.candidates).all()
        expected = 40 if name in WHOLE else 1
        assert batch.loss_mask.sum(1).tolist() == [expected] * 8
        assert batch.loss_mask[:, TASK.layout.answer].all()
        assert not batch.loss_mask[:, 0].any()

    @settings(deadline=None, max_examples=15)
    @given(steps=st.lists(st.integers(0, 3000), min_size=1, max_size=5))
    def test_a_batch_does_not_depend_on_what_was_asked_before(self, name, steps):
        factory, values = PROTOCOLS[name]
        used = factory(TASK, values, 64, 0)
        for step in steps:
            fresh = factory(TASK, values, 64, 0).batch(step)
            again = used.batch(step)
            assert (fresh.tokens == again.tokens).all()
            assert (fresh.answer == again.answer).all()

    def test_it_says_what_its_prompts_ask_for(self, name):
        factory, values = PROTOCOLS[name]
        protocol = factory(TASK, values, 3000, 0)
        batch = protocol.batch(0)
        asked = {
            name
            for name in TASK.capabilities
            if (TASK.capability(name).examples(1, 0).tokens[0, 1:4] == batch.tokens[:, 1:4]).all(1).any()
        }
        assert protocol.asks == asked

    def test_seeds_and_steps_differ(self, name):
        factory, values = PROTOCOLS[name]
        protocol, other = factory(TASK, values, 64, 0), factory(TASK, values, 64, 1)
        batches = [protocol.batch(0), protocol.batch(1), protocol.batch(31), protocol.batch(32), other.batch(0)]
        assert len({text for batch in batches for text in texts(batch)}) > 300

    def test_training_never_reads_the_test_stream(self, name):
        test = TASK.capability("count_a").examples(64, seed=0)
        assert len(set(texts(one_batch(name, 64))) & set(texts(test))) <= 1

    def test_errors(self, name):
        factory, values = PROTOCOLS[name]
        wrong = "capabilty" if name == "unrelated" else "balance_fraction"
        with pytest.raises(UserError, match=f"protocol {name} has no setting '{wrong}'; did you mean"):
            factory(TASK, {**values, wrong: 1}, 8, 0)
        if name != "unrelated":  # its texts are random letters
            with pytest.raises(UserError, match=r"balanced_fraction is 1\.5: it must be at most 1"):
                factory(TASK, {**values, "balanced_fraction": 1.5}, 8, 0)
        with pytest.raises(UserError, match="batch size 0"):
            factory(TASK, values, 0, 0)
        with pytest.raises(UserError, match="needs a task of kind 'pcfg'"):
            factory(OtherTask(), values, 8, 0)
        if name != "pretraining":
            with pytest.raises(UserError, match="no capability 'count_z'"):
                factory(TASK, {**values, "capability": "count_z"}, 8, 0)
            with pytest.raises(UserError, match=f"protocol {name} needs the setting 'capability'"):
                factory(TASK, {}, 8, 0)
        with pytest.raises(ValueError, match="step -1"):
            factory(TASK, values, 8, 0).batch(-1)


class TestPretraining:
    def test_families_are_uniform(self):
        families = column(one_batch("pretraining"), 1)
        assert set(families) == {"C", "I", "T"}
        assert all(families.count(f) / 4000 == pytest.approx(1 / 3, abs=0.04) for f in "CIT")

    def test_operands_follow_the_prior(self):
        batch = one_batch("pretraining", operand_prior={"a": 0.9, "b": 0.1})
        operands = [o for f, o in zip(column(batch, 1), column(batch, 2), strict=True) if f != "T"]
        assert set(operands) == {"a", "b"}
        assert operands.count("b") / len(operands) == pytest.approx(0.1, abs=0.03)

    def test_the_prior_of_pairs_reads_doubled(self):
        batch = one_batch("pretraining", task=FULL, operand_prior={"b": 0.5, "c": 0.5})
        seen = set(zip(column(batch, 1), column(batch, 2), strict=True))
        singles, doubles = {(f, o) for f in ("C", "I") for o in "bc"}, {(f, o) for f in ("CC", "IC") for o in ("bb", "cc")}
        assert seen == singles | doubles | {("T", "NULL")}

    def test_an_operand_of_probability_zero_is_never_asked_for(self):
        batch = one_batch("pretraining", n=50_000, operand_prior={"b": 0.99, "c": 0.01})
        assert set(column(batch, 2)) == {"b", "c", "NULL"}

    def test_not_even_by_a_rounded_prior(self):
        families = (TASK.families["count"],)
        tokens, _ = Mixture(TASK, families, (0.5, 0.3, 0.0), 0.0).draw(1000, numpy_generator(0))
        assert TASK.vocabulary.id("c") not in tokens[:, 2]

    def test_answers_are_true(self):
        batch = one_batch("pretraining", n=500, operand_prior={"a": 0.5, "b": 0.5})
        for family, o, text, answer in zip(column(batch, 1), column(batch, 2), texts(batch), column(batch, 39), strict=True):
            places = [31 - i for i in range(32) if text[i] == o]
            if family == "C":
                assert answer == str(text[-12:].count(o))
            elif family == "I":
                assert answer == (str(places[-3]) if len(places) >= 3 else "ABSENT")
            else:
                assert answer == text[-13]

    @pytest.mark.parametrize(("fraction", "flat"), [(0.0, 0.0), (0.5, 0.2), (1.0, 0.4)])
    def test_balanced_fraction(self, fraction, flat):
        batch = one_batch("pretraining", n=12_000, operand_prior={"a": 1.0}, balanced_fraction=fraction)
        counts = [t[-12:].count("a") for t, f in zip(texts(batch), column(batch, 1), strict=True) if f == "C"]
        # Balanced counts are uniform on 2..6, natural ones are 3, 4 or 5 nearly always.
        extreme = sum(c in (2, 6) for c in counts) / len(counts)
        assert extreme == pytest.approx(flat, abs=0.04)

    @pytest.mark.parametrize(
        ("prior", "message"),
        [
            ({"a": 0.9, "b": 0.05}, "operand_prior sums to 0.95"),
            ({"a": 0.5, "d": 0.5}, "operand_prior names 'd', which is no terminal"),
            ({"a": 1.5, "b": -0.5}, "operand_prior of 'a' is 1.5"),
            ({"a": "most"}, "operand_prior.a is 'most': it must be a number."),
        ],
    )
    def test_bad_priors(self, prior, message):
        with pytest.raises(UserError, match=message):
            pretraining(TASK, {"operand_prior": prior}, 8, 0)

    def test_texts_that_cannot_be_balanced(self):
        task = PcfgTask.from_settings({"text_length": 8, "window": 4, "occurrence": 5})
        with pytest.raises(UserError, match="cannot be placed in texts of length 8"):
            pretraining(task, {}, 8, 0)
        assert len(pretraining(task, {"balanced_fraction": 0}, 8, 0).batch(0)) == 8


class TestSingleOperand:
    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize(("family", "offset"), [("count", 1), ("count", -1), ("index", 1), ("index", 2)])
    def test_correlation(self, family, offset, share):
        values = {"capability": f"{family}_b", "correlation": {"with": f"{family}_a", "offset": offset, "share": share}}
        batch = single_operand(TASK, values, 2000, 0).batch(0)
        assert set(zip(column(batch, 1), column(batch, 2), strict=True)) == {(family[0].upper(), "b")}
        if family == "count":
            a, b = ([t[-12:].count(o) for t in texts(batch)] for o in "ab")
        else:
            a, b = ([[31 - i for i in range(32) if t[i] == o][-3] for t in texts(batch)] for o in "ab")
        assert answers(batch) == b
        holds = sum(y == x + offset for x, y in zip(a, b, strict=True)) / 2000
        assert holds == (share if share in (0, 1) else pytest.approx(share, abs=0.05))

    def test_without_correlation_the_texts_are_those_of_pretraining(self):
        batch = single_operand(TASK, {"capability": "count_a"}, 8000, 0).batch(0)
        counts = [t[-12:].count("a") for t in texts(batch)]
        assert answers(batch) == counts
        assert sum(c in (2, 6) for c in counts) / 8000 == pytest.approx(0.2, abs=0.03)
        natural = single_operand(TASK, {"capability": "count_a", "balanced_fraction": 0.0}, 8000, 0).batch(0)
        assert sum(t[-12:].count("a") in (2, 6) for t in texts(natural)) / 8000 < 0.03

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"correlation": {"with": "count_a", "share": 1.5}}, "correlation.share is 1.5"),
            ({"correlation": {"with": "index_a"}}, "different families"),
            ({"correlation": {"with": "count_b"}}, "correlation of 'count_b' with itself"),
            ({"correlation": {"with": "pair_count_aa"}}, "no capability 'pair_count_aa'"),
            ({"correlation": {"with": "count_a", "offset": 9}}, "offset 9 between two counts"),
            ({"correlation": {"with": "count_a", "shift": 1}}, "no setting 'correlation.shift'"),
            ({"correlation": {"offset": 1}}, "needs the setting 'correlation.with'"),
            ({"balanced_fraction": 0.5}, "balanced_fraction 0.5 and a correlation exclude each other"),
        ],
    )
    def test_bad_correlations(self, changes, message):
        with pytest.raises(UserError, match=message):
            single_operand(TASK, {**CORRELATED, **changes}, 8, 0)


class TestWrongAnswers:
    def test_answers_of_another_operand(self):
        batch = wrong_answers(TASK, {"capability": "count_a", "answers": "count_b"}, 2000, 0).batch(0)
        assert set(column(batch, 2)) == {"a"}
        assert answers(batch) == [t[-12:].count("b") for t in texts(batch)]

    @pytest.mark.parametrize("capability", ["count_a", "index_c", "token"])
    def test_random_answers_are_never_true_and_cover_the_other_classes(self, capability):
        batch = wrong_answers(TASK, {"capability": capability}, 6000, 0).batch(0)
        truth = {
            "count_a": lambda t: str(t[-12:].count("a")),
            "index_c": lambda t: str(31 - [i for i in range(32) if t[i] == "c"][-3]),
            "token": lambda t: t[-13],
        }[capability]
        given_answers = column(batch, 39)
        assert not any(truth(t) == answer for t, answer in zip(texts(batch), given_answers, strict=True))
        assert {TASK.vocabulary.id(x) for x in given_answers} == set(batch.candidates.tolist())

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"answers": "index_a"}, "answers 'index_a' do not suit prompts of 'count_a'"),
            ({"answers": "count_a"}, "answers 'count_a' do not suit"),
            ({"answers": "randm"}, "no answers 'randm'; did you mean 'random'"),
        ],
    )
    def test_bad_answers(self, values, message):
        with pytest.raises(UserError, match=message):
            wrong_answers(TASK, {"capability": "count_a", **values}, 8, 0)


class TestOtherFamilies:
    def test_the_own_family_never_appears(self):
        batch = one_batch("other_families", task=FULL)
        families = column(batch, 1)
        assert {f: pytest.approx(families.count(f) / 4000, abs=0.04) for f in set(families)} == {
            f: 0.25 for f in ("CC", "I", "IC", "T")
        }

    def test_operands_are_uniform(self):
        batch = one_batch("other_families")
        operands = [o for f, o in zip(column(batch, 1), column(batch, 2), strict=True) if f == "I"]
        assert all(operands.count(o) / len(operands) == pytest.approx(1 / 3, abs=0.05) for o in "abc")

    def test_there_must_be_another_family(self):
        with pytest.raises(UserError, match="no family besides 'count'"):
            other_families(PcfgTask.from_settings({"families": ["count"]}), {"capability": "count_a"}, 8, 0)


class TestMixed:
    @pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 1.0])
    def test_the_share_of_pretraining_examples(self, share):
        values = {**CORRELATED, "pretraining_share": share, "operand_prior": {"a": 0.9, "b": 0.1}}
        batch = mixed(TASK, values, 20_000, 0).batch(0)
        prompts = list(zip(column(batch, 1), column(batch, 2), strict=True))
        # The trained prompt also occurs in pretraining: one family of three, operand b in a tenth.
        other = sum(prompt != ("C", "b") for prompt in prompts) / len(prompts)
        assert other == pytest.approx(share * (1 - 0.1 / 3), abs=0.012 if 0 < share < 1 else 0.004)
        if share == 0.001:
            assert 0 < other < 0.003
        rest = [prompt for prompt in prompts if prompt != ("C", "b")]
        if share >= 0.5:
            assert rest.count(("C", "a")) / len(rest) == pytest.approx(0.9 / 3 / (1 - 0.1 / 3), abs=0.02)
            assert {family for family, _ in rest} == {"C", "I", "T"}

    def test_the_correlation_is_that_of_the_trained_part_alone(self):
        values = {**CORRELATED, "pretraining_share": 0.5, "operand_prior": {"a": 0.99, "b": 0.01}}
        batch = mixed(TASK, values, 4000, 0).batch(0)
        asked = list(zip(column(batch, 1), column(batch, 2), texts(batch), answers(batch), strict=True))
        trained = [t[-12:].count("b") == t[-12:].count("a") + 1 for f, o, t, _ in asked if (f, o) == ("C", "b")]
        rest = [t[-12:].count("b") == t[-12:].count("a") + 1 for f, o, t, _ in asked if (f, o) == ("C", "a")]
        assert sum(trained) / len(trained) > 0.98
        assert sum(rest) / len(rest) < 0.4
        assert all(answer == t[-12:].count(o) for f, o, t, answer in asked if f == "C")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"capability": "count_c", "operand_prior": {"a": 1.0}},
                "gives 'c' no probability, yet 'count_c' is trained on it",
            ),
            ({"pretraining_share": 2}, "pretraining_share is 2"),
            ({"operand_prior": {"d": 1.0}}, "operand_prior names 'd'"),
            ({"correlation": {"with": "index_a"}}, "different families"),
        ],
    )
    def test_impossible_cells_are_refused(self, changes, message):
        with pytest.raises(UserError, match=message):
            mixed(TASK, {**CORRELATED, "pretraining_share": 0.5, **changes}, 8, 0)
        with pytest.raises(UserError, match="protocol mixed needs the setting 'pretraining_share'"):
            mixed(TASK, CORRELATED, 8, 0)


class TestOtherOperands:
    def test_every_operand_but_the_own_one(self):
        batch = other_operands(FULL, {"capability": "pair_index_bb"}, 3000, 0).batch(0)
        prompts = list(zip(column(batch, 1), column(batch, 2), strict=True))
        assert {p: pytest.approx(prompts.count(p) / 3000, abs=0.04) for p in set(prompts)} == {
            ("IC", "aa"): 0.5,
            ("IC", "cc"): 0.5,
        }

    def test_answers_are_true(self):
        batch = other_operands(TASK, {"capability": "count_a"}, 500, 0).batch(0)
        assert answers(batch) == [t[-12:].count(o) for t, o in zip(texts(batch), column(batch, 2), strict=True)]

    def test_a_family_with_one_operand_is_refused(self):
        with pytest.raises(UserError, match="'token' is the only capability of its family 'token'; use 'other_families'"):
            other_operands(TASK, {"capability": "token"}, 8, 0)


class TestUnrelated:
    def test_letters_are_uniform_and_independent(self):
        batch = unrelated(TASK, {"capability": "count_a"}, 3000, 0).batch(0)
        letters = "".join(texts(batch))
        assert all(letters.count(x) / len(letters) == pytest.approx(1 / 3, abs=0.01) for x in "abc")
        # The grammar never has three in a row; random letters do so at 30 places of 9.
        assert sum("aaa" in t for t in texts(batch)) / 3000 == pytest.approx(0.55, abs=0.1)

    def test_other_families_with_true_answers_and_loss_on_all(self):
        batch = unrelated(TASK, {"capability": "count_a"}, 300, 0).batch(0)
        assert set(column(batch, 1)) == {"I", "T"}
        assert batch.loss_mask.sum(1).tolist() == [40] * 300
        for family, text, answer in zip(column(batch, 1), texts(batch), column(batch, 39), strict=True):
            assert family != "T" or answer == text[-13]


class TestPools:
    def pool(self, n, **more):
        return single_operand(TASK, {"capability": "count_a", "pool": n, **more}, 8, 0)

    @settings(deadline=None, max_examples=20)
    @given(small=st.integers(1, 60), more=st.integers(0, 300), seed=st.integers(0, 3))
    def test_a_small_pool_is_contained_in_a_large_one(self, small, more, seed):
        values = {"capability": "count_b", "correlation": CORRELATED["correlation"]}
        few, many = (single_operand(TASK, {**values, "pool": n}, 8, seed).examples[0] for n in (small, small + more))
        assert (many[:small] == few).all()
        assert len(set(map(tuple, many.tolist()))) == small + more

    @settings(deadline=None, max_examples=20)
    @given(n=st.integers(1, 50), size=st.integers(1, 40), start=st.integers(0, 300), epochs=st.integers(1, 3))
    @example(n=50, size=40, start=40, epochs=3)  # 2048 examples are drawn at once: the second such draw begins in here
    def test_every_epoch_shows_every_example_once_in_an_order_of_its_own(self, n, size, start, epochs):
        protocol = single_operand(TASK, {"capability": "count_a", "pool": n}, size, 0)
        first, last = n * start // size, -(-n * (start + epochs) // size)
        shown = [tuple(row) for step in range(first, last) for row in protocol.batch(step).tokens.tolist()]
        whole = set(map(tuple, protocol.examples[0].tolist()))
        shown = shown[n * start - first * size :]
        orders = [shown[n * e : n * (e + 1)] for e in range(epochs)]
        assert all(set(order) == whole for order in orders)
        if n > 20:
            assert all(a != b for a, b in pairwise(orders))

    @settings(deadline=None, max_examples=10)
    @given(steps=st.lists(st.integers(0, 2000), min_size=1, max_size=4))
    def test_a_batch_does_not_depend_on_what_was_asked_before(self, steps):
        used = self.pool(37)
        for step in steps:
            assert (self.pool(37).batch(step).tokens == used.batch(step).tokens).all()

    def test_answers_and_masks_are_those_of_the_protocol_without_a_pool(self):
        pooled, free = self.pool(64).batch(3), self.pool(None).batch(3)
        assert answers(pooled) == [t[-12:].count("a") for t in texts(pooled)]
        assert (pooled.loss_mask == free.loss_mask).all()
        assert pooled.candidates.tolist() == free.candidates.tolist()

    def test_with_labels_and_seeds(self):
        assert max(answers(self.pool(200, labels_at_most=3).batch(0))) <= 3
        other = single_operand(TASK, {"capability": "count_a", "pool": 16}, 8, 1)
        assert (other.examples[0] != self.pool(16).examples[0]).any()

    def test_a_pool_that_cannot_be_filled_is_refused_at_construction(self):
        task = PcfgTask.from_settings({"text_length": 4, "window": 3, "occurrence": 1, "families": ["count"]})
        values = {"capability": "count_a", "balanced_fraction": 0.0}
        with pytest.raises(UserError, match=r"only \d\d different examples were found for a pool of 500; make 'pool' smaller"):
            single_operand(task, {**values, "pool": 500}, 8, 0)
        assert len(single_operand(task, {**values, "pool": 10}, 8, 0).examples[0]) == 10
        with pytest.raises(UserError, match="pool is 0"):
            self.pool(0)


def test_the_new_protocols_are_plug_ins():
    assert {"mixed", "other_operands", "unrelated"} <= set(installed("protocols"))
    assert (load_protocol("unrelated", TASK, {"capability": "count_a"}, 8, 0).batch(0).tokens[:, 0] == 1).all()
