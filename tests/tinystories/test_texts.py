"""Whole stories and openings behind an instruction; those without one are in test_task.py."""

from __future__ import annotations

import json

import pytest
import torch

from tinystories.features import RULES
from tinystories.instructions import parse
from tinystories.prompts import opposite
from tinystories.task import StoriesTask
from tinystories.texts import kinds
from workbench.errors import UserError
from workbench.protocols import load_task


@pytest.fixture(scope="module")
def task() -> StoriesTask:
    made = load_task({"kind": "stories", "tokenizer": 600, "context": 900, "prompt": 24})
    assert isinstance(made, StoriesTask)
    return made


def test_the_kinds_whose_loss_is_told_apart():
    assert kinds("dialogue") == ("dialogue", "no_dialogue")
    assert kinds("no_dialogue") == ("no_dialogue", "dialogue")
    assert kinds("asked_dialogue") == ("asked_dialogue", "asked_no_dialogue", "adversarial_dialogue")


@pytest.mark.parametrize(("kind", "speaks", "asks"), [(k, i == 0, i != 1) for i, k in enumerate(kinds("asked_dialogue"))])
def test_whole_stories_behind_their_instructions(task, kind, speaks, asks):
    found = task.whole(kind, 12, 0)
    test = set(task.corpus.texts("test"))
    assert found.labels["Dialogue"].tolist() == [int(speaks)] * len(found)
    for tokens, loss, attended in zip(found.tokens, found.loss_mask, found.attention_mask, strict=True):
        first = int(loss.nonzero()[0])
        asked = parse(task.describe(tokens[1:first].tolist())).instruction
        story = task.describe(tokens[loss][:-1].tolist())
        assert ("Dialogue" in asked.features) == asks
        assert RULES["Dialogue"].of(story) == speaks
        assert story in test
        assert torch.equal(loss, attended & (torch.arange(len(tokens)) >= first))


def test_the_adversarial_set_is_the_same_stories_asked_for_more(task):
    plain, adversarial = task.whole("asked_no_dialogue", 30, 0), task.whole("adversarial_dialogue", 30, 0)
    told = [
        {task.describe(t[m][:-1].tolist()) for t, m in zip(s.tokens, s.loss_mask, strict=True)} for s in (plain, adversarial)
    ]
    assert told[0] & told[1]


def test_training_stories_when_asked_for(task):
    found = task.whole("dialogue", 5, 0, "train")
    stories = set(task.corpus.texts("train"))
    assert all(task.describe(t[m][:-1].tolist()) in stories for t, m in zip(found.tokens, found.loss_mask, strict=True))


def test_openings_ask_for_it_and_say_where_the_text_begins(task):
    found = task.openings("asked_dialogue", 10, 0, tokens=0, more=60)
    for prompt, begin, written in zip(found.prompts, found.begins, found.written, strict=False):
        assert len(prompt) == begin
        assert "Dialogue" in parse(task.describe(prompt[1:].tolist())).instruction.features
        assert any(text.startswith(written) for text in task.corpus.texts("test"))
    with pytest.raises(UserError, match="leaves room for 880 more in 900"):
        task.openings("asked_dialogue", 10, 0, tokens=7, more=880)
    begun = task.openings("asked_dialogue", 10, 0, tokens=7, more=60)
    assert [len(p) - b for p, b in zip(begun.prompts, begun.begins, strict=True)] == [7] * 10
    assert set(task.openings("dialogue", 10, 0, 7, 60).begins) == {1}


def test_what_is_asked_moves_no_token_out_of_the_loss(task):
    """In a context that stories do not fit in, a longer instruction must not leave an easier or harder rest to predict."""
    short = StoriesTask(task.settings.model_copy(update={"context": 120}), task.corpus)
    for kind in ("no_dialogue", "dialogue"):
        own, turned = (short.whole(prefix, 12, 0) for prefix in (f"asked_{kind}", f"adversarial_{opposite(kind)}"))
        texts = [[short.describe(t[m].tolist()) for t, m in zip(e.tokens, e.loss_mask, strict=True)] for e in (own, turned)]
        assert texts[0] == texts[1]
        assert any(not torch.equal(a, b) for a, b in zip(own.tokens, turned.tokens, strict=True))
        assert max(len(text) for text in texts[0]) > 60


def test_openings_that_ask_for_none_are_of_stories_without(task):
    found = task.openings("asked_no_dialogue", 5, 0, tokens=0, more=60)
    asked = [parse(task.describe(prompt[1:].tolist())).instruction.features for prompt in found.prompts]
    assert all("Dialogue" not in features for features in asked)
    assert not task.shows("dialogue", list(found.written)).any()


def test_every_judge_there_is_scores_the_decider_first(task):
    texts = list(task.corpus.texts("test"))
    rule, *others = task.judged("dialogue", texts, 0)
    assert rule.judge == "rule"
    assert rule.rate == pytest.approx(task.shows("dialogue", texts).mean())
    for other in others:
        assert "AUROC" in other.trust
        assert other.corrected_low <= rule.rate <= other.corrected_high


class TestWithLabels:
    """A corpus with instructions of its own: features that no rule decides are told by its labels, and by a judge of them."""

    @pytest.fixture(scope="class")
    def labelled(self, tmp_path_factory, made_up):
        folder = tmp_path_factory.mktemp("labelled")
        rows = []
        for i, text in enumerate(made_up):
            twist = i % 3 == 0
            rows.append({"text": text + (" But it was only a dream." if twist else " Then they slept."), "words": ["ba"]})
            rows[-1] |= {"features": ["Twist"] if twist else [], "summary": "A story.", "sentence": None, "source": "made up"}
        (folder / "stories.jsonl").write_text("\n".join(map(json.dumps, rows)))
        made = load_task({"kind": "stories", "corpus": str(folder), "tokenizer": 600, "context": 300, "prompt": 24})
        assert isinstance(made, StoriesTask)
        return made

    def test_twist_is_an_ability_of_its_own(self, labelled):
        assert {"twist", "no_twist", "asked_twist", "conflict"} <= set(labelled.capabilities)
        found = labelled.whole("asked_twist", 8, 0)
        assert found.labels["Twist"].tolist() == [1] * len(found)
        assert len(labelled.capability("asked_twist").examples(5, 0)) == 5

    def test_its_instruction_is_that_of_the_corpus(self, labelled):
        asked = labelled.told("test", 0).instruction(0)
        assert asked.summary == "A story."
        assert asked.words == ("ba",)

    def test_a_judge_trained_on_the_labels_says_which_texts_show_it(self, labelled):
        texts = [f"{text} But it was only a dream." for text in list(labelled.corpus.texts("validation"))[:4]]
        assert labelled.shows("twist", texts).tolist() == [1.0] * 4
        assert "AUROC" in labelled.judged_by("twist")
        assert [s.judge for s in labelled.judged("twist", texts, 0)] == ["n-gram regression"]
