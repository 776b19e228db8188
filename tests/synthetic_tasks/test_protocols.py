"""Training protocols: batches are pure functions of the step, and hold what each protocol promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthetic_tasks.batches import Mixture
from synthetic_tasks.pcfg import PcfgTask
from synthetic_tasks.protocols import other_families, pretraining, single_operand, wrong_answers
from workbench.errors import UserError
from workbench.protocols import TrainingProtocol
from workbench.seeds import numpy_generator

TASK = PcfgTask.from_settings({"families": ["count", "index", "token"]})
FULL = PcfgTask.from_settings({})
CORRELATED = {"capability": "count_b", "correlation": {"with": "count_a", "offset": 1, "share": 1.0}}
PROTOCOLS = {
    "pretraining": (pretraining, {"operand_prior": {"a": 0.99, "b": 0.01}}),
    "single_operand": (single_operand, CORRELATED),
    "wrong_answers": (wrong_answers, {"capability": "count_a"}),
    "other_families": (other_families, {"capability": "count_a"}),
}


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
        expected = 40 if name == "pretraining" else 1
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
        with pytest.raises(UserError, match=f"protocol {name} has no setting 'balance_fraction'; did you mean"):
            factory(TASK, {**values, "balance_fraction": 1}, 8, 0)
        with pytest.raises(UserError, match=r"'balanced_fraction' is 1\.5: input should be less than or equal to 1"):
            factory(TASK, {**values, "balanced_fraction": 1.5}, 8, 0)
        with pytest.raises(UserError, match="batch size 0"):
            factory(TASK, values, 0, 0)
        with pytest.raises(UserError, match="needs a task of kind 'pcfg'"):
            factory(OtherTask(), values, 8, 0)
        if name != "pretraining":
            with pytest.raises(UserError, match="no capability 'count_z'"):
                factory(TASK, {"capability": "count_z"}, 8, 0)
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
            ({"a": "most"}, "'operand_prior.a' is 'most'"),
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
            ({"correlation": {"with": "count_a", "share": 1.5}}, "'correlation.share' is 1.5"),
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
