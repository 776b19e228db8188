"""Counterfactual texts: another answer, read independently, by an edit as small as it can be."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthetic_tasks.counterfactuals import one_substitution, other_counts
from synthetic_tasks.pcfg import PcfgTask
from synthetic_tasks.rasp.questions import QUESTIONS
from synthetic_tasks.rasp.task import RaspTask
from workbench.errors import UserError
from workbench.examples import Correlation

TASK = PcfgTask.from_settings({"identifiers": 3})
N = 60


def text_of(task, examples, row):
    return "".join(task.vocabulary.decode(examples.tokens[row][examples.roles["text"][row]].tolist()))


def naive(capability, text):
    """The answer as a token, read off the string."""
    if capability == "token":
        return text[-13]
    family, piece = capability.rsplit("_", 1)
    starts = [i for i in range(len(text)) if text[i:].startswith(piece)]
    if "count" in family:
        return str(sum(i >= len(text) - 12 for i in starts))
    return str(len(text) - 1 - starts[-3]) if len(starts) >= 3 else "ABSENT"


@pytest.mark.parametrize("capability", TASK.capabilities)
class TestEveryCapabilityOfTheGrammarTask:
    @pytest.fixture
    def both(self, capability):
        examples = TASK.capability(capability).examples(N, seed=1)
        return examples, TASK.counterfactual(capability, examples, 5)

    def test_answers_are_true_and_others(self, capability, both):
        examples, other = both
        names = TASK.vocabulary.decode(other.answer[:, 0].tolist())
        assert names == [naive(capability, text_of(TASK, other, i)) for i in range(N)]
        assert (other.answer != examples.answer).all()
        assert np.isin(other.answer, other.candidates).all()

    def test_everything_else_is_that_of_such_texts(self, capability, both):
        examples, other = both
        assert set(other.labels) == set(TASK.capabilities)
        for name, labels in other.labels.items():
            expected = [naive(name, text_of(TASK, other, i)) for i in range(N)]
            found = ["abc"[v] if name == "token" else "ABSENT" if v < 0 else str(v) for v in labels.tolist()]
            assert found == expected
        inside = examples.roles["window"] if "count" in capability else examples.roles["text"]
        if "pair" in capability:  # a text that no letter helps is exchanged for another one
            inside = examples.roles["text"]
        answer = torch.arange(TASK.context) == examples.answer_position[:, None] + 1
        assert not (other.tokens != examples.tokens)[~(inside | answer)].any()
        assert torch.equal(other.loss_mask, examples.loss_mask)
        assert torch.equal(other.answer_position, examples.answer_position)
        assert all(torch.equal(other.roles[name], mask) for name, mask in examples.roles.items())

    def test_the_edit_is_as_small_as_can_be(self, capability, both):
        examples, other = both
        edits = (other.tokens != examples.tokens)[:, TASK.layout.TEXT : TASK.layout.request].sum(1)
        if "pair" in capability:
            assert (edits == 1).float().mean() > 0.5
        elif "count" in capability:
            assert torch.equal(edits, (other.answer - examples.answer)[:, 0].abs())
            assert edits.max() > 1
        else:
            assert (edits == 1).all()

    def test_it_is_seeded(self, capability, both):
        examples, other = both
        assert torch.equal(TASK.counterfactual(capability, examples, 5).tokens, other.tokens)
        assert not torch.equal(TASK.counterfactual(capability, examples, 6).tokens, other.tokens)


@pytest.mark.parametrize(("capability", "held"), [("count_a", "count_b"), ("count_c", "count_a"), ("index_b", "index_a")])
def test_the_other_operand_stays_where_it_is(capability, held):
    examples = TASK.capability(capability).examples(N, seed=2)
    assert torch.equal(TASK.counterfactual(capability, examples, 0).labels[held], examples.labels[held])


def test_new_counts_lie_where_those_of_the_texts_do():
    examples = TASK.capability("count_a", Correlation("count_b", "count_a").at(0.0)).examples(400, seed=3)
    other = TASK.counterfactual("count_a", examples, 0)
    given_, new = examples.labels["count_a"], other.labels["count_a"]
    assert (new.min(), new.max()) == (given_.min(), given_.max())
    assert (new > given_).float().mean() == pytest.approx(0.5, abs=0.15)
    assert "correlated" not in other.labels


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("abcd", min_size=6, max_size=6), min_size=1, max_size=8),
    st.integers(2, 6),
    st.integers(0, 3),
    st.integers(0, 99),
)
def test_counts_of_any_text_change_by_minimal_edits(strings, window, operand, seed):
    texts = np.array([["abcd".index(x) for x in s] for s in strings], dtype=np.uint8)
    edited = other_counts(texts, window, operand, 4, np.random.default_rng(seed))
    was, now = ((t[:, -window:] == operand).sum(1) for t in (texts, edited))
    assert (was != now).all()
    assert ((texts != edited).sum(1) == np.abs(was - now)).all()
    assert (texts[:, :-window] == edited[:, :-window]).all()


def test_one_letter_has_one_count():
    with pytest.raises(UserError, match="texts of one symbol have one count"):
        other_counts(np.zeros((2, 4), dtype=np.uint8), 4, 0, 1, np.random.default_rng(0))


def test_a_text_that_no_letter_helps_is_exchanged():
    """Three a's are wanted: one letter cannot make them out of none."""
    texts = np.array([[1, 1, 1, 1], [0, 0, 0, 1]], dtype=np.uint8)
    label = lambda t: ((t == 0).sum(1) >= 3).astype(np.int64)  # noqa: E731
    edited = one_substitution(texts, 2, label, np.random.default_rng(0))
    assert edited[0].tolist() == [0, 0, 0, 1]
    assert label(edited).tolist() == [1, 0]
    assert (edited[1] != texts[1]).sum() == 1
    with pytest.raises(UserError, match="all 1 texts have one answer"):
        one_substitution(texts[:1], 2, label, np.random.default_rng(0))


def test_edits_keep_what_is_to_be_held_where_they_can():
    texts = np.random.default_rng(0).integers(3, size=(50, 8), dtype=np.uint8)
    sums = lambda t: (t[:, :4] == 0).sum(1)  # noqa: E731
    held = lambda t: (t[:, :4] == 1).sum(1)  # noqa: E731
    edited = one_substitution(texts, 3, sums, np.random.default_rng(1), [held])
    assert (sums(edited) != sums(texts)).all()
    possible = (texts[:, :4] != 1).any(1)
    assert (held(edited) == held(texts))[possible].all()


@pytest.mark.parametrize("program", QUESTIONS)
def test_programs_are_given_other_inputs_with_other_answers(program):
    task = RaspTask.from_settings({"program": program, **({"length": 12, "letters": 5} if program == "counter" else {})})
    for capability in task.capabilities[:3]:
        examples = task.capability(capability).examples(N, seed=1)
        other = task.counterfactual(capability, examples, 0)
        operand, texts = task.locate(capability), (other.tokens[:, 1:] - 1).numpy().astype(np.uint8)
        assert (other.answer != examples.answer).all()
        assert other.answer[:, 0].tolist() == task.answer_ids[task.question.label(texts, operand)].tolist()
        assert torch.equal(other.roles["operand"][:, 1:], torch.tensor(task.question.decides(texts, operand)))
        assert (other.tokens[:, 0] == 0).all()
        if not task.question.repeats:
            assert all(len(set(row)) == len(row) for row in texts.tolist())
        edits = (other.tokens != examples.tokens).sum(1)
        if program == "counter":
            assert torch.equal(edits, (other.labels[capability] - examples.labels[capability]).abs())
        elif program != "sort":  # the first of two equal letters cannot be moved by one edit
            assert (edits == 1).all()
