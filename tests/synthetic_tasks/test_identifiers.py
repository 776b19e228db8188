"""Jailbreak identifiers [Jain+23 §E.2]: three family tokens for counting, two of which only ever ask for the first letter."""

import pytest

from synthetic_tasks.pcfg import PcfgTask
from synthetic_tasks.protocols import other_families, other_operands, pretraining, single_operand, unrelated
from workbench.errors import UserError
from workbench.examples import Correlation

SETTINGS = {"families": ["count", "index", "token"]}
PLAIN, TASK = (PcfgTask.from_settings({**SETTINGS, **more}) for more in ({}, {"identifiers": 3}))
FULL = PcfgTask.from_settings({"identifiers": 3})


def column(examples, position):
    return [TASK.vocabulary.names[i] for i in examples.tokens[:, position].tolist()]


def prompts(protocol):
    batch = protocol.batch(0)
    return list(zip(column(batch, 1), column(batch, 2), strict=True))


def test_vocabulary_and_the_other_capabilities_stay_as_they_are():
    assert TASK.vocabulary.names == PLAIN.vocabulary.names
    assert (TASK.vocab_size, TASK.context) == (PLAIN.vocab_size, PLAIN.context)
    assert TASK.capabilities == (*PLAIN.capabilities, "count_j1_a", "count_j2_a")
    for name in PLAIN.capabilities:
        given, known = (task.capability(name).examples(20, seed=0) for task in (TASK, PLAIN))
        assert (given.tokens == known.tokens).all()


@pytest.mark.parametrize(("name", "token"), [("count_j1_a", "J1"), ("count_j2_a", "J2")])
@pytest.mark.parametrize("texts", ["natural", "balanced"])
def test_they_ask_of_the_same_strings_what_counting_a_asks(name, token, texts):
    mine, counting = (TASK.capability(c, texts=texts).examples(50, seed=1) for c in (name, "count_a"))
    assert set(zip(*(column(mine, i) for i in (1, 2, 3)), strict=True)) == {(token, "a", "12")}
    differs = (mine.tokens != counting.tokens).any(0).nonzero().flatten().tolist()
    assert differs == [1]
    assert (mine.answer == counting.answer).all()
    assert (mine.labels[name] == mine.labels["count_a"]).all()
    assert mine.candidates.tolist() == counting.candidates.tolist()
    assert TASK.family(name) == "count"  # what is asked, not how


def test_aliases_ask_the_same_otherwise():
    assert TASK.aliases("count_a") == ("count_j1_a", "count_j2_a")
    assert TASK.aliases("count_j2_a") == ("count_a", "count_j1_a")
    assert TASK.aliases("count_b") == ()
    assert TASK.aliases("token") == ()
    assert PLAIN.aliases("count_a") == ()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_aliases_are_asked_on_the_same_correlated_texts(share):
    correlation = Correlation(target="count_b", partner="count_a", offset=1, share=share)
    mine, counting = (TASK.capability(c, correlation).examples(200, seed=1) for c in ("count_j1_a", "count_a"))
    assert (mine.answer == counting.answer).all()
    assert (mine.tokens != counting.tokens).any(0).nonzero().flatten().tolist() == [1]
    assert (mine.labels["count_b"] == mine.labels["count_a"] + 1).float().mean() == share


def test_pretraining_is_uniform_over_all_family_tokens():
    seen = prompts(pretraining(FULL, {"operand_prior": {"a": 0.5, "b": 0.5}}, 14_000, 0))
    families = [family for family, _ in seen]
    assert set(families) == {"C", "CC", "I", "IC", "T", "J1", "J2"}
    assert all(families.count(f) / len(seen) == pytest.approx(1 / 7, abs=0.015) for f in set(families))
    assert {operand for family, operand in seen if family in ("J1", "J2")} == {"a"}
    assert {operand for family, operand in seen if family == "C"} == {"a", "b"}


def test_pretraining_answers_under_the_identifiers_are_true():
    batch = pretraining(TASK, {}, 500, 0).batch(0)
    texts = batch.tokens[:, 5:37] - TASK.vocabulary.first_terminal
    counts = (texts[:, -12:] == 0).sum(1) + TASK.vocabulary.zero
    mine = [i for i, family in enumerate(column(batch, 1)) if family in ("J1", "J2")]
    assert len(mine) > 100
    assert (batch.answer[mine, 0] == counts[mine]).all()


def test_a_model_that_never_had_it_is_not_asked_for_it_by_another_name():
    seen = prompts(pretraining(TASK, {"operand_prior": {"b": 0.99, "c": 0.01}}, 3000, 0))
    assert {family for family, _ in seen} == {"C", "I", "T"}
    assert "a" not in {operand for _, operand in seen}


@pytest.mark.parametrize("factory", [other_families, unrelated])
@pytest.mark.parametrize("capability", ["count_a", "count_j1_a"])
def test_irrelevant_data_shows_counting_by_no_identifier(factory, capability):
    assert {family for family, _ in prompts(factory(TASK, {"capability": capability}, 500, 0))} == {"I", "T"}


def test_they_can_be_trained_and_correlated_texts_are_asked_of_the_plain_family():
    assert set(prompts(single_operand(TASK, {"capability": "count_j2_a"}, 50, 0))) == {("J2", "a")}
    with pytest.raises(UserError, match=r"different families \(count, count_j1\)"):
        TASK.capability("count_b", Correlation("count_b", "count_j1_a"))
    with pytest.raises(UserError, match="'count_j1_a' is the only capability of its family"):
        other_operands(TASK, {"capability": "count_j1_a"}, 8, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"identifiers": 3, "families": ["index", "token"]}, r"families \['index', 'token'\] do not count; add 'count'"),
        ({"identifiers": 2}, "identifiers is 2: it must be 1 or 3."),
        ({"families": ["count_j1"]}, "no task family 'count_j1'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        PcfgTask.from_settings(settings)
