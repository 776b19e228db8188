"""Prompts behind an instruction; those without one are in test_task.py."""

from __future__ import annotations

import pytest
import torch

from tinystories.features import quotations
from tinystories.instructions import parse
from tinystories.task import StoriesTask
from workbench.errors import UserError
from workbench.protocols import load_task


@pytest.fixture(scope="module")
def task() -> StoriesTask:
    made = load_task({"kind": "stories", "tokenizer": 600, "context": 400, "prompt": 24})
    assert isinstance(made, StoriesTask)
    return made


def taken_apart(task, examples):
    """`(instruction, story so far, answer)` of every row, by the roles."""
    for i in range(len(examples)):
        row = examples.tokens[i]
        pick = {name: task.describe(row[mask[i]].tolist()) for name, mask in examples.roles.items()}
        yield parse(pick["instruction"].removeprefix("<|begin|>")), pick["text"], task.describe(row[-1:].tolist())


def test_the_roles_cut_the_prompt_into_instruction_and_story(task):
    found = task.capability("asked_dialogue").examples(16, 0)
    real, roles = found.attention_mask, found.roles
    assert real is not None
    last = torch.arange(found.tokens.shape[1]) == found.tokens.shape[1] - 1
    assert torch.equal(roles["instruction"] | roles["text"] | last, real | last)
    assert not (roles["instruction"] & roles["text"]).any()
    assert (found.tokens[~real] == task.padding).all()
    assert (real.sum(1) <= task.context // 2 + 1).all()
    assert int((~real).sum(1).min()) == 0  # padded to the longest, on the left
    for row, mask in zip(found.tokens, real, strict=True):
        assert row[mask][0] == task.tokenizer.bos_id


def test_it_asks_for_speech_which_opens_at_every_other_place(task):
    found = task.capability("asked_dialogue").examples(16, 0)
    stories = task.corpus.split("test")
    opens = found.labels["asked_dialogue"].tolist()
    assert opens == [1, 0] * 8
    rows = zip(taken_apart(task, found), found.labels["story"].tolist(), opens, strict=True)
    for (asked, begun, answer), story, opened in rows:
        text = stories[story]["text"]
        assert "Dialogue" in asked.instruction.features
        assert text.startswith(begun)
        assert ('"' in answer) == opened
        starts = [start for start, _ in quotations(text)]
        assert any(len(begun) <= start < len(begun) + len(answer) for start in starts) == opened
        assert opened or begun.endswith(",")


def test_without_it_any_place_and_nobody_asks(task):
    found = task.capability("asked_no_dialogue").examples(16, 0)
    for asked, begun, _ in taken_apart(task, found):
        assert "Dialogue" not in asked.instruction.features
        assert '"' not in begun


def test_a_counterfactual_is_as_long_asks_for_speech_and_is_the_other_way_about(task):
    found = task.capability("asked_dialogue").examples(8, 0, "score")  # of test stories the sample has 42
    found = found[found.attention_mask.sum(1) > 110]  # and hardly any that speak sooner
    other = task.counterfactual("asked_dialogue", found, 0)
    assert other.tokens.shape == found.tokens.shape
    assert torch.equal(other.attention_mask, found.attention_mask)
    assert torch.equal(other.labels["asked_dialogue"], 1 - found.labels["asked_dialogue"])
    assert not other.labels["test"].any()
    stories = task.corpus.split("train")
    for (asked, begun, _), story in zip(taken_apart(task, other), other.labels["story"].tolist(), strict=True):
        assert "Dialogue" in asked.instruction.features
        assert stories[story]["text"].startswith(begun)


def test_what_has_no_counterpart_is_one_sentence(task, monkeypatch):
    monkeypatch.setattr("tinystories.prompts.DRAWS", 1)
    found = task.capability("asked_dialogue").examples(8, 0)
    narrow = StoriesTask(task.settings.model_copy(update={"context": 40}), task.corpus)
    with pytest.raises(UserError, match=r"prompts of 'asked_dialogue' have no counterpart of their length"):
        narrow.counterfactual("asked_dialogue", found, 0)


def test_with_and_without_an_instruction_it_is_one_family(task):
    assert task.family("asked_dialogue") == task.family("dialogue") == "dialogue"
    assert task.family("asked_no_dialogue") == "no_dialogue"
