"""The task: settings, examples with answers that stand in no token, chance levels, and weights of every capability."""

import pytest
import torch

from synthetic_tasks.rasp.task import RaspTask
from workbench.errors import UserError
from workbench.examples import Capability, Correlation
from workbench.models.compiled import build
from workbench.models.forward import accuracy, evaluate
from workbench.protocols import CompilingTask, Task, compiled_weights, load_task

COUNTER = RaspTask.from_settings({})
LARGEST = RaspTask.from_settings({"program": "kth_largest"})
SMALL = {name: RaspTask.from_settings({"program": name}) for name in ("reverse", "histogram", "sort")}
PLUS_ONE = Correlation("count_b", "count_a", 1)


class TestContract:
    def test_it_is_a_task_that_compiles(self):
        assert isinstance(load_task({"kind": "rasp"}), RaspTask)
        assert isinstance(COUNTER, Task)
        assert isinstance(COUNTER, CompilingTask)
        assert isinstance(COUNTER.capability("count_a"), Capability)
        assert not isinstance(load_task({"kind": "pcfg"}), CompilingTask)

    def test_capabilities(self):
        assert COUNTER.capabilities == tuple(f"count_{letter}" for letter in "abcdefghij")
        assert LARGEST.capabilities == tuple(f"largest_{k}" for k in range(1, 11))
        assert SMALL["sort"].capabilities[:2] == ("sort_0", "sort_1")
        assert COUNTER.family("count_c") == "count"

    def test_inputs_and_answers_share_a_vocabulary(self):
        assert (COUNTER.vocab_size, COUNTER.context) == (1 + 10 + 47, 47)
        assert (LARGEST.vocab_size, LARGEST.context) == (27, 11)

    def test_describe(self):
        examples = COUNTER.capability("count_a").examples(1, seed=0)
        line = COUNTER.describe(examples.tokens[0].tolist())
        assert line.startswith("BOS ")
        assert len(line) == 4 + 46
        assert COUNTER.describe(examples.answer[0].tolist()) == str(line.count("a"))


class TestExamples:
    def test_the_answer_is_read_at_index_1_and_stands_in_no_token(self):
        for task, capability in ((COUNTER, "count_b"), (LARGEST, "largest_7")):
            examples = task.capability(capability).examples(40, seed=0)
            assert examples.answer_position.tolist() == [2] * 40
            assert not examples.loss_mask.any()
            assert torch.isin(examples.answer, examples.candidates).all()
        assert SMALL["sort"].capability("sort_3").examples(2, seed=0).answer_position.tolist() == [4, 4]

    def test_answers_and_labels(self):
        examples = COUNTER.capability("count_b").examples(50, seed=1)
        texts = [COUNTER.describe(row.tolist())[4:] for row in examples.tokens]
        assert [COUNTER.describe(row.tolist()) for row in examples.answer] == [str(text.count("b")) for text in texts]
        for capability in COUNTER.capabilities:
            assert examples.labels[capability].tolist() == [text.count(capability[-1]) for text in texts]
        largest = LARGEST.capability("largest_5").examples(50, seed=1)
        for row, answer in zip(largest.tokens, largest.answer, strict=True):
            assert LARGEST.describe(answer.tolist()) == sorted(LARGEST.describe(row.tolist())[4:])[4]

    def test_roles(self):
        examples = COUNTER.capability("count_b").examples(20, seed=2)
        assert (examples.roles["operand"] == (examples.tokens == COUNTER.vocabulary.id("b"))).all()
        assert examples.roles["request"].sum(1).tolist() == [1] * 20
        assert examples.roles["request"][:, 2].all()
        assert examples.roles["text"].sum(1).tolist() == [46] * 20
        assert not examples.roles["text"][:, 0].any()

    def test_the_same_texts_serve_all_capabilities_and_streams_differ(self):
        a, b = (COUNTER.capability(c, PLUS_ONE.at(0)).examples(30, seed=3) for c in ("count_a", "count_b"))
        assert (a.tokens == b.tokens).all()
        for other in (COUNTER.capability("count_a").examples(30, 4), COUNTER.capability("count_a").examples(30, 3, "probe")):
            assert (other.tokens != COUNTER.capability("count_a").examples(30, seed=3).tokens).any()

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_correlation(self, share):
        examples = COUNTER.capability("count_b", PLUS_ONE.at(share)).examples(500, seed=5)
        holds = examples.labels["count_b"] == examples.labels["count_a"] + 1
        assert (holds == examples.labels["correlated"].bool()).all()
        assert float(holds.float().mean()) == (share if share in (0, 1) else pytest.approx(share, abs=0.08))

    def test_chance(self):
        always, never = (COUNTER.capability("count_b", PLUS_ONE.at(share)).examples(1, 0).chance for share in (1.0, 0.0))
        assert set(always) == {"majority", *(f"given count_{x}" for x in "acdefghij")}
        assert always["given count_a"] == 1
        assert 0.15 < never["majority"] < never["given count_a"] < 0.3
        assert always["majority"] == pytest.approx(0.19, abs=0.03)


class TestWeights:
    @pytest.mark.parametrize("task", [COUNTER, LARGEST], ids=["counter", "largest"])
    def test_they_have_their_capability_and_no_other(self, task):
        first, second = task.capabilities[4:7:2]
        model = build(task.compiled(first), 0.0)
        assert evaluate(model, task.capability(first).examples(200, 0)).mean() == 1
        assert evaluate(model, task.capability(second).examples(200, 0)).mean() < 0.3

    @pytest.mark.parametrize("name", SMALL)
    def test_programs_that_answer_everywhere_have_them_all(self, name):
        task = SMALL[name]
        model = build(task.compiled(task.capabilities[0]), 0.0)
        for capability in task.capabilities:  # the last one's answer is read at the end of the sequence
            assert evaluate(model, task.capability(capability).examples(50, 0), accuracy).mean() == 1

    @pytest.mark.parametrize("task", [COUNTER, LARGEST, *SMALL.values()])
    def test_all_capabilities_have_weights_of_one_shape(self, task):
        shapes = [{k: v.shape for k, v in compiled_weights(task, c).weights.items()} for c in task.capabilities[:3]]
        assert shapes[0] == shapes[1] == shapes[2]
        assert compiled_weights(task).weights.keys() == shapes[0].keys()


class TestErrors:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"progam": "sort"}, "task rasp has no setting 'progam'; did you mean 'program'"),
            ({"program": "counte"}, "task rasp has no program 'counte'; did you mean 'counter'"),
            ({"length": 1}, "length is 1: it must be at least 2."),
            ({"letters": 27}, "letters is 27: it must be at most 26."),
            ({"program": "kth_largest", "letters": 8}, "8 do not fill texts of length 10; raise 'letters' to 10"),
        ],
    )
    def test_settings(self, settings, message):
        with pytest.raises(UserError, match=message):
            RaspTask.from_settings(settings)

    def test_capabilities(self):
        for call in (COUNTER.family, COUNTER.capability, COUNTER.compiled):
            with pytest.raises(UserError, match="no capability 'count_z'; did you mean"):
                call("count_z")
        with pytest.raises(UserError, match="no capability 'largest_5'"):
            COUNTER.capability("count_a", Correlation("count_b", "largest_5"))
        with pytest.raises(UserError, match="0 examples of 'count_a'"):
            COUNTER.capability("count_a").examples(0, seed=0)
        with pytest.raises(UserError, match="token id 58 is not in the vocabulary"):
            COUNTER.describe([58])

    def test_a_task_that_compiles_nothing(self):
        with pytest.raises(UserError, match="a PcfgTask compiles no models"):
            compiled_weights(load_task({"kind": "pcfg"}), "count_a")
