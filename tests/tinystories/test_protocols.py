"""Training on stories: which ones each protocol shows, and that a batch is a function of seed and step."""

from __future__ import annotations

import pytest
import torch

from tinystories.features import RULES
from tinystories.task import StoriesTask
from workbench.errors import UserError
from workbench.protocols import TrainingProtocol, load_protocol, load_task

KINDS = {
    "all": ("stories", {}),
    "never_had_it": ("stories", {"without": "dialogue"}),
    "filter": ("filter", {"capability": "no_dialogue"}),
    "specialise": ("specialise", {"capability": "dialogue"}),
}


@pytest.fixture(scope="module")
def task() -> StoriesTask:
    made = load_task({"kind": "stories", "tokenizer": 600, "context": 64, "prompt": 24})
    assert isinstance(made, StoriesTask)
    return made


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def load(task, kind, batch_size=6, seed=0, **more) -> TrainingProtocol:
    name, settings = KINDS[kind]
    return load_protocol(name, task, {**settings, **more}, batch_size, seed)


def whole_stories(task, batches):
    """Stories that stand in a window from BOS to EOS, as text."""
    bos, eos = task.tokenizer.bos_id, task.tokenizer.eos_id
    for row in torch.cat([b.tokens for b in batches]).tolist():
        starts = [i for i, token in enumerate(row) if token == bos]
        for start in starts:
            if eos in row[start:]:
                yield task.tokenizer.decode(row[start + 1 : row.index(eos, start)])


def test_a_batch_is_windows_with_a_loss_on_all_but_the_first_token(task, kind):
    found = load(task, kind).batch(2)
    assert found.tokens.shape == (6, 64)
    assert found.loss_mask[:, 1:].all()
    assert not found.loss_mask[:, 0].any()
    assert isinstance(load(task, kind), TrainingProtocol)


def test_it_is_a_function_of_seed_and_step(task, kind):
    one, same, other = load(task, kind), load(task, kind), load(task, kind, seed=1)
    assert torch.equal(one.batch(9).tokens, same.batch(9).tokens)
    one.batch(0)
    assert torch.equal(one.batch(9).tokens, same.batch(9).tokens)
    assert not torch.equal(one.batch(9).tokens, same.batch(8).tokens)
    assert not torch.equal(one.batch(9).tokens, other.batch(9).tokens)


@pytest.mark.parametrize(("kind", "share"), [("never_had_it", 0.0), ("filter", 0.0), ("specialise", 1.0)])
def test_it_shows_the_stories_of_its_kind_alone(task, kind, share):
    """Windows are wide enough here that many stories stand whole in one."""
    wide = StoriesTask(task.settings.model_copy(update={"context": 1500}), task.corpus)
    protocol = load(wide, kind, batch_size=2)
    told = list(whole_stories(wide, [protocol.batch(step) for step in range(8)]))
    assert len(told) > 20
    assert {float(RULES["Dialogue"].of(text)) for text in told} == {share}
    training = set(task.corpus.texts("train"))
    assert set(told) <= training


def test_all_stories_are_of_both_kinds(task):
    wide = StoriesTask(task.settings.model_copy(update={"context": 1500}), task.corpus)
    told = list(whole_stories(wide, [load(wide, "all", batch_size=2).batch(step) for step in range(8)]))
    assert {RULES["Dialogue"].of(text) for text in told} == {True, False}


def test_what_is_asked(task):
    every = set(task.capabilities)
    assert load(task, "all").asks == every
    assert load(task, "never_had_it").asks == load(task, "filter").asks == every - {"dialogue"}
    assert load(task, "specialise").asks == every - {"no_dialogue"}


def test_fine_tuning_draws_another_order_than_pretraining(task):
    assert not torch.equal(load(task, "filter").batch(0).tokens, load(task, "all").batch(0).tokens)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("filter", {"capability": "ending"}, "protocol filter: no stories are set apart by 'ending'"),
        ("specialise", {"capability": "dialog"}, "did you mean 'dialogue'"),
        ("stories", {"without": "quotes"}, "no stories are set apart by 'quotes'"),
        ("stories", {"withot": "dialogue"}, "no setting 'withot'; did you mean 'without'"),
        ("filter", {}, "needs the setting 'capability'"),
    ],
)
def test_bad_settings_are_one_sentence(task, name, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        load_protocol(name, task, settings, 4, 0)


def test_other_tasks_have_no_stories(task):
    other = load_task({"kind": "pcfg", "text_length": 12, "window": 6})
    with pytest.raises(UserError, match="protocol 'filter' needs a task of kind 'stories'"):
        load_protocol("filter", other, {"capability": "dialogue"}, 4, 0)
    with pytest.raises(UserError, match="batch size 0"):
        load_protocol("stories", task, {}, 0, 0)
