"""Stories as a task: where an answer stands, what is asked of which stories, and what a model goes on from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tinystories.features import RULES, quotations
from tinystories.task import StoriesTask
from workbench.errors import UserError
from workbench.examples import Capability, Correlation
from workbench.protocols import Task, WritingTask, load_task

SETTINGS = {"kind": "stories", "tokenizer": 600, "context": 128, "prompt": 24}


@pytest.fixture(scope="module")
def task() -> StoriesTask:
    made = load_task(SETTINGS)
    assert isinstance(made, StoriesTask)
    return made


def test_it_is_a_task_that_writes(task):
    assert isinstance(task, Task)
    assert isinstance(task, WritingTask)
    assert task.vocab_size == task.tokenizer.vocab_size == 600
    assert task.context == 128
    assert not task.determined
    assert task.capabilities == ("dialogue", "no_dialogue", "asked_dialogue", "asked_no_dialogue", "ending")
    assert isinstance(task.capability("dialogue"), Capability)


def test_the_resolved_settings_make_the_task_again(task):
    resolved = json.loads(json.dumps(task.resolved))
    again = load_task(resolved)
    assert again.resolved == task.resolved
    assert resolved["sha256"] == task.corpus.sha256
    with pytest.raises(UserError, match=r"changed: its sha256 is \w+, it was 0000"):
        load_task({**resolved, "sha256": "0" * 64})


class TestExamples:
    @pytest.fixture(params=["dialogue", "no_dialogue", "ending"])
    def name(self, request):
        return request.param

    def test_a_prompt_is_the_tokens_before_its_answer(self, task, name):
        found = task.capability(name).examples(12, seed=3)
        assert found.tokens.shape == (12, 25)
        assert torch.equal(found.tokens[:, -1:], found.answer)
        assert found.answer_position.tolist() == [23] * 12
        assert found.loss_mask.sum(1).tolist() == [1] * 12
        assert found.loss_mask[:, -1].all()
        stories = task.corpus.split("test")
        for row, story in zip(found.tokens, found.labels["story"].tolist(), strict=True):
            whole = [task.tokenizer.bos_id, *task.tokenizer.encode(stories[story]["text"]), task.tokenizer.eos_id]
            window = row.tolist()
            assert any(whole[i : i + 25] == window for i in range(len(whole)))

    def test_they_are_a_function_of_seed_and_split(self, task, name):
        one, same, other = (task.capability(name).examples(12, seed, "test") for seed in (3, 3, 4))
        assert torch.equal(one.tokens, same.tokens)
        assert not torch.equal(one.tokens, other.tokens)
        few = task.capability(name).examples(5, 3)
        assert torch.equal(few.tokens, one.tokens[:5])

    def test_only_test_stories_are_tested(self, task, name):
        """Every other split draws on the stories of training."""
        texts = set(task.corpus.texts("test"))
        for split, side in (("test", "test"), ("score", "train")):
            stories = task.corpus.split(side)
            numbers = task.capability(name).examples(12, 0, split).labels["story"].tolist()
            assert all((stories[i]["text"] in texts) == (side == "test") for i in numbers)

    def test_a_story_is_used_once_while_there_are_others(self, task, name):
        numbers = task.capability(name).examples(10, 0).labels["story"].tolist()
        assert len(set(numbers)) == 10

    def test_too_many_are_refused_with_their_number(self, task, name):
        with pytest.raises(
            UserError, match=rf"(100000|50000) examples of '{name}' were asked for, and the test stories .* have \d+ places"
        ):
            task.capability(name).examples(100_000, 0)
        with pytest.raises(UserError, match="ask for at least 1"):
            task.capability(name).examples(0, 0)


def test_every_other_answer_of_dialogue_opens_a_quotation(task):
    found = task.capability("dialogue").examples(60, 1, "score")  # more than one place of some stories
    stories = task.corpus.split("train")
    opens = found.labels["dialogue"].tolist()
    assert opens == [1, 0] * 30
    for row, story, opened in zip(found.tokens, found.labels["story"].tolist(), opens, strict=True):
        text = stories[story]["text"]
        assert ('"' in task.describe(row[-1:].tolist())) == opened
        before = task.describe(row[1:-1].tolist()).strip()[-20:]
        assert any(text[:start].rstrip().endswith(before) for start, _ in quotations(text)) or not opened
        assert opened or before.endswith(",")


def test_who_always_or_never_speaks_is_right_on_half(task):
    found = task.capability("dialogue").examples(40, 0)
    mark, word = (next(i for i in range(task.vocab_size) if has == bool(task.openers[i])) for has in (True, False))
    for said in (mark, word):
        assert found.right(torch.full((40, 1), said)).float().mean() == 0.5
    assert found.right(found.answer).all()
    assert not found.right(torch.full((40, 1), task.vocab_size + 3)).any()  # a row of a padded embedding
    assert found.chance == {"majority": 0.5}


def test_no_dialogue_is_any_place_of_a_story_without_one_and_ending_its_end(task):
    stories = task.corpus.split("train")
    numbers = task.capability("no_dialogue").examples(40, 1, "score").labels["story"].tolist()
    assert not any(RULES["Dialogue"].of(stories[i]["text"]) for i in numbers)
    assert set(task.capability("ending").examples(40, 1).answer.flatten().tolist()) == {task.end}


def test_a_counterfactual_is_the_other_way_about(task):
    found = task.capability("dialogue").examples(20, 1)
    other = task.counterfactual("dialogue", found, 1)
    assert other.tokens.shape == found.tokens.shape
    assert torch.equal(other.answer_position, found.answer_position)
    assert torch.equal(other.labels["dialogue"], 1 - found.labels["dialogue"])
    for row, opens in zip(other.tokens, other.labels["dialogue"].tolist(), strict=True):
        assert ('"' in task.describe(row[-1:].tolist())) == opens
    score = task.capability("dialogue").examples(20, 1, "score")
    for examples, test in ((found, 1), (score, 0)):  # of the same side
        assert set(task.counterfactual("dialogue", examples, 1).labels["test"].tolist()) == {test}


class TestWriting:
    def test_openings_are_of_test_stories_and_have_not_spoken(self, task):
        found = task.openings("dialogue", 20, 0, tokens=12, more=30)
        texts = list(task.corpus.texts("test"))
        assert len(found.prompts) == 20
        for prompt, written in zip(found.prompts, found.written, strict=True):
            assert prompt[0] == task.tokenizer.bos_id
            assert len(prompt) == 13
            begun = task.describe(prompt[1:].tolist())
            assert '"' not in begun
            assert written.startswith(begun)
            assert any(text.startswith(written) for text in texts)

    def test_of_few_stories_openings_return_and_real_texts_do_not(self, task):
        found = task.openings("dialogue", 200, 0, 12, 30)
        assert len(found.prompts) == 200
        assert len(found.written) == len(set(found.written)) <= len(task.corpus.split("test"))
        again = len(found.written)
        assert torch.equal(torch.from_numpy(found.prompts[0]), torch.from_numpy(found.prompts[again]))

    def test_texts_are_judged_by_the_rule(self, task):
        assert task.shows("dialogue", ['He said, "Yes."', "He said yes.", 'A "']).tolist() == [1, 0, 0]
        assert task.shows("no_dialogue", ['He said, "Yes."', "He said yes.", 'A "']).tolist() == [0, 1, 1]
        score = task.judged("no_dialogue", ['He said, "Yes."', "He said yes.", 'A "'], 0)[0]
        assert score.rate == pytest.approx(2 / 3)
        assert score.low < score.rate < score.high
        assert "double quotes" in task.judged_by("dialogue")
        with pytest.raises(UserError, match="nothing tells which texts show 'ending'"):
            task.judged_by("ending")

    def test_whole_stories_are_predicted_from_the_first_token_to_the_end(self, task):
        found = task.whole("no_dialogue", 6, 0)
        stories = {tuple(task.tokenizer.encode(t)) for t in task.corpus.texts("test") if not RULES["Dialogue"].of(t)}
        for tokens, loss, attended in zip(found.tokens, found.loss_mask, found.attention_mask, strict=True):
            assert tokens[0] == task.tokenizer.bos_id
            assert torch.equal(loss, attended & (torch.arange(len(tokens)) > 0))
            told = tuple(tokens[1:][loss[1:]].tolist())
            assert any(told in (s[: len(told)], (*s, task.end)) for s in stories)
        assert len(task.whole("no_dialogue", 10_000, 0)) == len(task.having("test", "no_dialogue"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"context": 20, "prompt": 20}, "prompt 20 does not fit into context 20"),
        ({"contxt": 20}, "no setting 'contxt'; did you mean 'context'"),
        ({"prompt": 1}, "prompt is 1: it must be at least 4"),
        ({"corpus": "no/such/folder"}, "there is no file or folder 'no/such/folder'"),
    ],
)
def test_bad_settings_are_one_sentence(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        load_task({**SETTINGS, **settings})


def test_what_stories_do_not_have(task):
    with pytest.raises(UserError, match="no capability 'dialog'; did you mean 'dialogue'"):
        task.capability("dialog")
    with pytest.raises(UserError, match="no correlation"):
        task.capability("dialogue", Correlation("dialogue", "ending"))


def test_labels_are_read_off_the_text_once(task, monkeypatch):
    task.having("train", "dialogue")
    monkeypatch.setattr("tinystories.task.RULES", {})
    kept = np.sort(np.concatenate([task.having("train", "dialogue"), task.having("train", "no_dialogue")]))
    assert np.array_equal(kept, np.arange(len(task.corpus.split("train"))))


def test_every_place_with_a_whole_prompt_before_it_is_used(task):
    """Counted story by story: BOS stands before the first token, and a place needs as many tokens before it as a prompt has."""
    lengths = [len(task.tokenizer.encode(t)) + 1 for t in task.corpus.texts("test") if not RULES["Dialogue"].of(t)]
    places = sum(max(0, length - task.settings.prompt) for length in lengths)
    assert len(task.capability("no_dialogue").examples(places, 0)) == places
    with pytest.raises(UserError, match=f"have {places} places"):
        task.capability("no_dialogue").examples(places + 1, 0)
