"""Steering: keeping what stands before the answer changes no logit, and an ablation is what it is on the weights."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from workbench.models.anatomy import anatomy, blocks, matrix
from workbench.models.compiled import build
from workbench.models.fingerprint import check_unchanged
from workbench.models.forward import accuracy, answer_logits, answer_tokens, evaluate
from workbench.models.lens import residual_streams
from workbench.models.sites import Site, edited
from workbench.models.steering import ablated, answer_streams, points, runner, steered, streams_at
from workbench.protocols import compiled_weights, load_task


@pytest.fixture(params=["gpt2", "llama", "grouped", "compiled", "padded"])
def subject(request, make_model, make_grouped, random_examples, left_padded):
    """`(model, examples)` of every architecture; answers of two tokens, of one in the compiled model."""
    if request.param == "compiled":
        task = load_task({"kind": "rasp", "length": 6, "letters": 3})
        return build(compiled_weights(task, "count_a"), 0.05), task.capability("count_a").examples(6, 0)
    if request.param == "padded":
        return make_model(), left_padded
    model = make_grouped() if request.param == "grouped" else make_model(request.param)
    return model, random_examples(k=2)


def pushes(model, seed=0):
    """A large step at every point, one after the other, and one edit of two points at once."""
    width, generator = int(model.config.hidden_size), torch.Generator().manual_seed(seed)
    steps = torch.randn(points(model), width, generator=generator)
    one = [{point: lambda x, v=v: 0.5 * x + v} for point, v in enumerate(steps)]
    return [{}, *one, {0: lambda x: x + steps[0], points(model) - 1: lambda x: 2 * x}]


def whole_pass(model, examples, edit):
    """The same by hooks that see every position of the sequence."""
    at = answer_tokens(examples) - 1
    rows = torch.arange(len(examples))[:, None]

    def tap(change):
        return lambda x: x.index_put((rows, at), change(x[rows, at]))

    with edited(model, {Site("stream", point): tap(change) for point, change in edit.items()}):
        return answer_logits(model, examples)


def test_a_change_at_the_answer_is_that_of_a_whole_pass(subject):
    model, examples = subject
    with torch.no_grad(), check_unchanged(model):
        for position in examples.answer_position.unique().tolist():
            batch = examples[examples.answer_position == position]
            run = runner(model, batch, position)
            answers = [run(edit) for edit in pushes(model)]
            for edit, found in zip(pushes(model), answers, strict=True):
                assert torch.allclose(found, whole_pass(model, batch, edit), atol=2e-4)
            assert torch.equal(run({}), answers[0])  # what one edit added to the cache, the next one does not see
            assert not any(torch.allclose(found, answers[0], atol=1e-2) for found in answers[1:])


def test_right_answers_come_back_in_the_order_of_the_examples(subject):
    model, examples = subject
    edits = pushes(model)
    with torch.no_grad():
        said = [whole_pass(model, examples, edit).argmax(-1) for edit in edits]
    examples = replace(examples, answer=torch.where(torch.arange(len(examples))[:, None] % 2 == 0, said[1], said[0]))
    expected = torch.stack([(s == examples.answer).all(-1).float() for s in said])
    assert torch.equal(steered(model, examples, edits), expected)
    assert expected[0, 1::2].all()
    assert expected[1, ::2].all()
    assert torch.equal(steered(model, examples, [{}])[0], evaluate(model, examples, accuracy))
    assert steered(model, examples, []).shape == (0, len(examples))


def test_streams_are_those_of_the_lens(subject):
    model, examples = subject
    found = answer_streams(model, examples)
    assert torch.allclose(found.float(), residual_streams(model, examples), atol=1e-4)
    at = torch.stack([examples.answer_position, (examples.answer_position - 1).clamp(min=0)], 1)
    theirs = residual_streams(model, examples, positions=at)
    assert torch.allclose(streams_at(model, examples, at), theirs, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_an_ablation_is_the_direction_taken_out_of_every_matrix_that_writes(make_model, random_examples, kind):
    """W' = W - u uᵀ W of embeddings, attention outputs and MLP outputs, biases likewise [2406.11717]."""
    model, examples = make_model(kind), random_examples()
    u = torch.nn.functional.normalize(torch.randn(16, generator=torch.Generator().manual_seed(1)), dim=0)
    twin, sites = copy.deepcopy(model), anatomy(model)
    with torch.no_grad():
        for path in sites.embeddings:
            table = twin.get_submodule(path).weight
            table -= (table @ u)[:, None] * u
        for block in blocks(twin):
            for path in (sites.attention_out, sites.mlp_out):
                module = block.get_submodule(path)
                weight = matrix(module)
                weight -= u[:, None] * (u @ weight)
                if module.bias is not None:
                    module.bias -= (module.bias @ u) * u
        plain = answer_logits(model, examples)
        with ablated(model, u):
            found = answer_logits(model, examples)
        assert torch.allclose(found, answer_logits(twin, examples), atol=1e-4)
        assert not torch.allclose(found, plain, atol=1e-2)
        assert torch.equal(answer_logits(model, examples), plain)


def test_a_direction_without_length_ablates_nothing(make_model, random_examples):
    model, examples = make_model(), random_examples()
    with torch.no_grad(), ablated(model, torch.zeros(16)):
        found = answer_logits(model, examples)
    assert torch.allclose(found, answer_logits(model, examples).detach(), atol=1e-5)


def test_a_point_that_is_not_there_is_refused(make_model, random_examples):
    with pytest.raises(IndexError, match="stream 3"):
        steered(make_model(), random_examples(), [{3: lambda x: x}])
