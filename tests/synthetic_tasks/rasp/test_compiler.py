"""The compiler: placement in blocks, a named basis, and attention and neurons that are the known constructions."""

import numpy as np
import pytest
import torch

from synthetic_tasks.rasp import programs
from synthetic_tasks.rasp.compiler import ANSWER_LOGIT, ONE, WIDTH_SCALE, compile_program, slot
from synthetic_tasks.rasp.interpreter import interpret
from synthetic_tasks.rasp.nodes import INDICES, TOKENS, Aggregate, Map, Mean, NumericalMap, Select, SequenceMap, Width
from synthetic_tasks.rasp.vocabulary import Vocabulary
from workbench.errors import UserError
from workbench.models.compiled import build

TEXT = "bacada"


@pytest.fixture(scope="module")
def counter(compiled):
    return compiled(programs.counter("a"), 6, 4)


@torch.no_grad()
def run(weights, text, **options):
    ids = torch.tensor([[0, *(weights.token_names.index(letter) for letter in text)]])
    return build(weights, 0.0)(ids, **options)


@torch.no_grad()
def residuals(weights, text):
    """The stream after the embedding and after each block, as `{label: coordinates [point, position]}`."""
    model, seen = build(weights, 0.0), []
    model.model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    for block in model.model.blocks:
        block.register_forward_hook(lambda _, __, output: seen.append(output[0]))
    model(torch.tensor([[0, *(weights.token_names.index(letter) for letter in text)]]))
    return dict(zip(weights.residual_labels, torch.stack(seen).permute(2, 0, 1).numpy(), strict=True))


class TestPlacement:
    def test_the_papers_programs_have_three_blocks(self, compiled):
        assert compiled(programs.counter("a"), 6, 4).blocks == 3
        assert compiled(programs.kth_largest(2), 4, 6).blocks == 3
        assert compiled(programs.histogram(), 6, 4).blocks == 1

    def test_operators_stand_in_the_first_sublayer_that_finds_their_inputs(self):
        flag = Map("flag", TOKENS, str.upper)
        width = Width("width", Select(TOKENS, TOKENS, lambda k, q: k == q))
        assert [slot(TOKENS), slot(flag), slot(width)] == [-1, 1, 1]  # a width is ready after the MLP
        assert slot(Map("next", flag, str.lower)) == 3
        assert slot(Aggregate("pick", Select(flag, INDICES, lambda k, q: True), TOKENS)) == 2
        assert slot(Aggregate("first", Select(INDICES, INDICES, lambda k, q: k == q), TOKENS)) == 0

    def test_sizes_are_those_of_the_model(self, counter):
        model = build(counter, 0.0)
        assert sum(p.numel() for p in model.parameters()) == counter.parameters()
        assert len(counter.residual_labels) == counter.width == model.config.hidden_size
        assert {len(names) for names in counter.neuron_labels} == {counter.hidden}

    def test_heads_of_one_block_lie_side_by_side(self, compiled, answers):
        first, last = (
            Aggregate(name, Select(INDICES, INDICES, function), TOKENS)
            for name, function in (("first", lambda k, q: k == 0), ("next", lambda k, q: k == q + 1))
        )
        both = SequenceMap("both", first, last, lambda a, b: max(a, b))
        weights = compiled(both, 6, 4)
        assert weights.heads == 2
        assert answers(weights, np.array([[1, 0, 2, 0, 3, 0]])).tolist()[0][:5] == ["b", "c", "b", "d", "b"]


class TestBasis:
    def test_directions_are_named_after_operators_and_values(self, counter):
        labels = counter.residual_labels
        assert labels[:3] == ("tokens:BOS", "tokens:a", "tokens:b")
        assert {"indices:5", "is_a:0", "is_a:1", "width:1/(d+1)", "width:6", "count:0"} <= set(labels)
        assert len(set(labels)) == len(labels)
        assert counter.answers == {f"count:{i}": str(i) for i in range(7)}

    def test_values_of_the_residual_stream_are_those_of_the_interpreter(self, counter):
        streams = residuals(counter, TEXT)
        expected = {"tokens": list(TEXT), "indices": list(range(6)), "is_a": [int(c == "a") for c in TEXT]}
        for operator, values in expected.items():
            for name in (label for label in streams if label.startswith(f"{operator}:")):
                wanted = [0.0, *(ONE * (name == f"{operator}:{value}") for value in values)]
                after = streams[name][1 if operator == "is_a" else 0]
                assert np.allclose(after, wanted, atol=1e-4) or name == "tokens:BOS"
        for i, count in enumerate(interpret(programs.counter("a"), TEXT)):
            assert streams[f"count:{count}"][3, i + 1] == pytest.approx(ONE, abs=0.01)

    def test_bos_has_no_value(self, counter):
        streams = residuals(counter, TEXT)
        for name, values in streams.items():
            if not name.startswith("tokens:BOS") and "1/(d+1)" not in name:
                assert np.abs(values[:, 0]).max() < 1e-3, name

    def test_neurons_say_what_they_do(self, counter):
        assert counter.neuron_labels[0][:4] == tuple(f"tokens:{c} → is_a:{int(c == 'a')}" for c in "abcd")
        assert counter.neuron_labels[1][:3] == ("not BOS → width:0", "width ≥ 1, from 1", "width ≥ 1, up to 1")
        assert set(counter.neuron_labels[2]) == {""}

    def test_two_operators_of_one_label_are_refused(self):
        one, two = (Map("same", TOKENS, str.upper) for _ in range(2))
        with pytest.raises(ValueError, match="are named twice"):
            compile_program(SequenceMap("both", one, two, lambda a, b: a), Vocabulary(("a", "b"), ("A", "B")), 2)

    def test_an_answer_without_a_token_is_refused(self):
        with pytest.raises(UserError, match="token '0' is not in the vocabulary"):
            compile_program(programs.histogram(), Vocabulary(("a", "b")), 2)


class TestWidth:
    @pytest.mark.parametrize("text", ["bbbbbb", "abbbbb", "bacada", "aaaaaa"])
    def test_the_head_attends_bos_and_each_selected_column_alike(self, counter, text):
        """From the second token on, 1 / (d + 1) on each a and on BOS [Jain+23 Fig 40]."""
        d = text.count("a")
        expected = [1 / (d + 1), *((c == "a") / (d + 1) for c in text)]
        found = run(counter, text, output_attentions=True).attentions[1][0, 0, 2]
        assert found.numpy() == pytest.approx(expected, abs=0.1 / 8)  # the leak allowed for 6 letters

    def test_the_share_of_bos_is_written_and_mapped_to_a_one_hot_width(self, counter):
        streams = residuals(counter, TEXT)
        assert streams["width:1/(d+1)"][2, 2] == pytest.approx(WIDTH_SCALE / 4, rel=4e-3)
        found = [streams[f"width:{d}"][2, 2] for d in range(7)]
        assert found == pytest.approx([0, 0, 0, ONE, 0, 0, 0], abs=1e-3)

    def test_a_neuron_is_silent_below_its_width_and_not_much_larger_than_the_width(self, compiled):
        weights = compiled(programs.counter("a"), 46, 10)
        model, seen = build(weights, 0.0), []
        model.model.blocks[1].mlp.output.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        text = torch.tensor([[0, *([1] * 13), *([2] * 33)]])
        with torch.no_grad():
            model(text)
        at_read = dict(zip(weights.neuron_labels[1], seen[0][0, 2].tolist(), strict=True))
        for name, value in at_read.items():
            if name.startswith("width"):
                threshold = int(name.split()[2].rstrip(","))
                assert value == 0 if threshold > 13 else 0 < value < 14.6


class TestLogits:
    def test_the_answer_stands_at_ten_and_the_others_at_zero(self, counter):
        logits = run(counter, TEXT).logits[0, 2]
        expected = [ANSWER_LOGIT * (name == "3") for name in counter.token_names]
        assert logits.numpy() == pytest.approx(expected, abs=0.05)

    def test_a_number_is_the_logit_of_the_last_token(self):
        weights = compile_program(programs.fraction("b"), Vocabulary(("a", "b"), ("number",)), 6)
        assert weights.answers == {"fraction_b": "number"}
        logits = run(weights, "abbaab").logits[0, 1:, weights.token_names.index("number")]
        assert logits.numpy() == pytest.approx([0, 1 / 2, 2 / 3, 2 / 4, 2 / 5, 3 / 6], abs=1e-4)

    def test_a_mean_over_nothing_is_zero(self):
        flag = NumericalMap("flag", TOKENS, lambda token: 3.0)
        before = Mean("before", Select(INDICES, INDICES, lambda key, query: key < query), flag)
        weights = compile_program(before, Vocabulary(("a",), ("number",)), 3)
        assert run(weights, "aaa").logits[0, 1:, -1].numpy() == pytest.approx([0, 3, 3], abs=0.01)
