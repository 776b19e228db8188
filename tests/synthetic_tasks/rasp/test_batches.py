"""Training on a RASP task: batches are a function of the step, true or wrong as promised."""

import pytest
import torch

from synthetic_tasks.protocols import other_families, pretraining, single_operand, wrong_answers
from synthetic_tasks.rasp.task import RaspTask
from workbench.errors import UserError
from workbench.protocols import TrainingProtocol

TASK = RaspTask.from_settings({"length": 16, "letters": 5})
CORRELATED = {"capability": "count_b", "correlation": {"with": "count_a", "offset": 1, "share": 1.0}}
PROTOCOLS = {
    "single_operand": (single_operand, CORRELATED),
    "wrong_answers": (wrong_answers, {"capability": "count_a"}),
}


def counts(batch, letter):
    return (batch.tokens == TASK.vocabulary.id(letter)).sum(1)


def answers(batch):
    return batch.answer[:, 0] - TASK.vocabulary.id("0")


@pytest.mark.parametrize("name", PROTOCOLS)
class TestBatches:
    def test_contract(self, name):
        factory, values = PROTOCOLS[name]
        protocol = factory(TASK, values, 8, 0)
        batch = protocol.batch(0)
        assert isinstance(protocol, TrainingProtocol)
        assert protocol.batch_size == len(batch) == 8
        assert batch.tokens.shape == (8, 17)
        assert batch.answer_position.tolist() == [2] * 8
        assert not batch.loss_mask.any()
        assert torch.isin(batch.answer, batch.candidates).all()

    def test_a_batch_does_not_depend_on_what_was_asked_before(self, name):
        factory, values = PROTOCOLS[name]
        used = factory(TASK, values, 64, 0)
        for step in (5, 0, 31, 32, 3):
            fresh, again = factory(TASK, values, 64, 0).batch(step), used.batch(step)
            assert (fresh.tokens == again.tokens).all()
            assert (fresh.answer == again.answer).all()

    def test_seeds_steps_and_splits_differ(self, name):
        factory, values = PROTOCOLS[name]
        protocol = factory(TASK, values, 64, 0)
        rows = [protocol.batch(0), protocol.batch(1), protocol.batch(32), factory(TASK, values, 64, 1).batch(0)]
        rows.append(TASK.capability("count_a").examples(64, 0))
        assert len({tuple(row) for batch in rows for row in batch.tokens.tolist()}) == 320

    def test_errors(self, name):
        factory, values = PROTOCOLS[name]
        with pytest.raises(UserError, match="batch size 0"):
            factory(TASK, values, 0, 0)
        with pytest.raises(UserError, match=r"balanced_fraction 0\.5 does not suit a task of kind 'rasp'"):
            factory(TASK, {"capability": "count_a", "balanced_fraction": 0.5}, 8, 0)
        with pytest.raises(UserError, match="no capability 'count_z'"):
            factory(TASK, {"capability": "count_z"}, 8, 0)
        with pytest.raises(ValueError, match="step -1"):
            factory(TASK, values, 8, 0).batch(-1)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_single_operand_answers_truly_on_correlated_texts(share):
    settings = {**CORRELATED, "correlation": {"with": "count_a", "offset": 1, "share": share}}
    batch = single_operand(TASK, settings, 2000, 0).batch(0)
    assert (answers(batch) == counts(batch, "b")).all()
    holds = float((counts(batch, "b") == counts(batch, "a") + 1).double().mean())
    assert holds == (share if share in (0, 1) else pytest.approx(share, abs=0.05))


def test_single_operand_without_a_correlation_is_plain():
    batch = single_operand(TASK, {"capability": "count_c"}, 2000, 0).batch(3)
    assert (answers(batch) == counts(batch, "c")).all()
    assert counts(batch, "c").double().mean() == pytest.approx(16 / 5, abs=0.15)


def test_wrong_answers_are_never_right_and_those_of_another_are_its_own():
    batch = wrong_answers(TASK, {"capability": "count_a"}, 2000, 0).batch(0)
    assert not (answers(batch) == counts(batch, "a")).any()
    assert set(answers(batch).tolist()) == set(range(17))
    batch = wrong_answers(TASK, {"capability": "count_a", "answers": "count_b"}, 500, 0).batch(0)
    assert (answers(batch) == counts(batch, "b")).all()
    with pytest.raises(UserError, match="answers 'count_a' to 'count_a' are right"):
        wrong_answers(TASK, {"capability": "count_a", "answers": "count_a"}, 8, 0)


def test_an_impossible_correlation_is_refused():
    with pytest.raises(UserError, match=r"count_b = count_a \+20 cannot be written"):
        single_operand(TASK, {**CORRELATED, "correlation": {"with": "count_a", "offset": 20}}, 8, 0)


@pytest.mark.parametrize(("factory", "values"), [(pretraining, {}), (other_families, {"capability": "count_a"})])
def test_protocols_of_families_do_not_apply(factory, values):
    with pytest.raises(UserError, match="needs a task of kind 'pcfg', not 'RaspTask'"):
        factory(TASK, values, 8, 0)
