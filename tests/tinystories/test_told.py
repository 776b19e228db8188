"""Instructions as tokens: what they ask for, how they are drawn anew, and how a text that begins with one is cut."""

from __future__ import annotations

import pytest

from tinystories.features import FROM_TEXT, RULES
from tinystories.instructions import parse
from tinystories.task import StoriesTask
from workbench.errors import UserError
from workbench.protocols import load_protocol, load_task


@pytest.fixture(scope="module")
def task() -> StoriesTask:
    made = load_task({"kind": "stories", "tokenizer": 600, "context": 512})
    assert isinstance(made, StoriesTask)
    return made


def test_what_a_plain_story_is_asked_is_what_it_has(task):
    told, stories = task.told("test", 0), task.corpus.split("test")
    for story in range(len(stories)):
        text = stories[story]["text"]
        asked = parse(told.text(story)).instruction
        assert set(asked.features) == {name for name in FROM_TEXT if RULES[name].of(text)}
        assert asked.sentence is None or asked.sentence in text


def test_tokens_are_those_of_the_text(task):
    told = task.told("test", 0)
    assert task.describe(told.tokens(3).tolist()) == told.text(3)


def test_a_task_says_which_lines_instructions_have(task):
    features = load_task({**task.resolved, "lines": ["features"]})
    assert task.resolved.get("lines") is None  # all lines are the default, and in no key
    assert features.resolved["lines"] == ("features",)
    for story in range(20):
        asked = parse(features.told("train", 0).text(story)).instruction
        assert (asked.words, asked.sentence) == ((), None)
        assert asked.features == parse(task.told("train", 0).text(story)).instruction.features
    batch = load_protocol("instruct", features, {}, 1, 0).batch(0)
    assert "Words:" not in features.describe(batch.tokens[0].tolist())
    for wrong, said in ((["words"], "without a line of features"), (["features", "moral"], "moral")):
        with pytest.raises(UserError, match=said):
            load_task({"kind": "stories", "lines": wrong})


def test_lines_are_drawn_anew_per_epoch_and_seed(task):
    told, other = task.told("test", 0), task.told("test", 1)
    assert told.text(3) == task.told("test", 0).text(3)
    orders = {tuple(parse(told.text(3, epoch)).order) for epoch in range(12)}
    assert len(orders) > 1
    assert len({told.text(3, epoch) for epoch in range(12)} | {other.text(3)}) > 6


def test_an_edit_sees_one_generator_per_story_and_epoch(task):
    seen = []

    def edit(instruction, rng):
        seen.append(rng.random())
        return instruction

    for story, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        task.told("test", 0).text(story, epoch, edit)
    assert seen[0] == seen[3]
    assert len(set(seen)) == 3


def test_what_is_too_long_goes_without_its_sentence(task):
    short = StoriesTask(task.settings.model_copy(update={"context": 64}), task.corpus)
    lengths = [len(task.told("test", 0).tokens(story)) for story in range(20)]
    assert max(lengths) > 32
    cut = [parse(short.describe(short.told("test", 0).tokens(story).tolist())).instruction for story in range(20)]
    assert [asked.sentence is None for asked in cut] == [length > 32 for length in lengths]


class TestBegin:
    def test_a_plain_text_is_bos_and_its_tokens(self, task):
        assert task.begin("Once upon").tolist() == [task.tokenizer.bos_id, *task.tokenizer.encode("Once upon")]
        assert task.begin("").tolist() == [task.tokenizer.bos_id]

    def test_behind_an_instruction_the_story_is_cut_as_in_training(self, task):
        told = task.told("test", 0)
        story = task.corpus.split("test")[3]["text"][:40]
        expected = [task.tokenizer.bos_id, *told.tokens(3).tolist(), *task.tokenizer.encode(story)]
        assert task.begin(told.text(3) + story).tolist() == expected

    def test_an_instruction_without_an_end_is_one_sentence(self, task):
        with pytest.raises(UserError, match="begins with an instruction line and has no 'Story: '"):
            task.begin("Features: Dialogue\nOnce upon")
