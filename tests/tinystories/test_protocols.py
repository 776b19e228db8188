"""Training on stories: which ones each protocol shows, and that a batch is a function of seed and step."""

from __future__ import annotations

import json

import pytest
import torch

from tinystories.edits import refusal
from tinystories.features import FROM_TEXT, RULES
from tinystories.instructions import parse
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
    every = {"dialogue", "no_dialogue", "ending"}
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


ASKED = {
    "instruct": ("instruct", {}),
    "instruct without": ("instruct", {"without": "dialogue"}),
    "filter": ("filter", {"capability": "asked_no_dialogue"}),
    "mix and match": ("mix_and_match", {"capability": "asked_no_dialogue", "rename": {"MoralValue": "Dialogue"}}),
    "randomise": ("randomise", {"capability": "asked_no_dialogue"}),
    "refuse": ("refuse", {"capability": "asked_no_dialogue"}),
    "specialise": ("specialise", {"capability": "asked_dialogue"}),
}


class TestBehindInstructions:
    """Rows are taken apart by their masks: what has a loss is the story, what stands before it the instruction."""

    @pytest.fixture(scope="class")
    def wide(self, task):
        return StoriesTask(task.settings.model_copy(update={"context": 1500}), task.corpus)

    def load(self, task, name, seed=0, batch_size=8, **more):
        protocol, settings = ASKED[name]
        return load_protocol(protocol, task, {**settings, **more}, batch_size, seed)

    def rows(self, task, protocol, steps):
        """`(instruction, story)` of every row."""
        code = task.tokenizer
        for step in steps:
            batch = protocol.batch(step)
            for tokens, loss in zip(batch.tokens, batch.loss_mask, strict=True):
                first = int(loss.nonzero()[0])
                story = tokens[loss].tolist()
                assert tokens[0] == code.bos_id
                assert story[-1] == code.eos_id
                assert (tokens[first + len(story) :] == code.pad_id).all()
                assert loss[first : first + len(story)].all()
                yield parse(code.decode(tokens[1:first].tolist())).instruction, code.decode(story[:-1])

    @pytest.fixture(params=ASKED)
    def name(self, request):
        return request.param

    def test_it_is_a_function_of_seed_and_step(self, wide, name):
        one, same, other = self.load(wide, name), self.load(wide, name), self.load(wide, name, seed=1)
        assert torch.equal(one.batch(3).tokens, same.batch(3).tokens)
        assert not torch.equal(one.batch(3).tokens, same.batch(2).tokens)
        assert one.batch(3).tokens.shape != other.batch(3).tokens.shape or not torch.equal(
            one.batch(3).tokens, other.batch(3).tokens
        )

    @pytest.mark.parametrize(
        ("name", "has"),
        [("instruct without", False), ("filter", False), ("mix and match", False), ("randomise", False), ("specialise", True)],
    )
    def test_the_stories_are_of_one_kind(self, wide, name, has):
        told = [story for _, story in self.rows(wide, self.load(wide, name), range(6))]
        assert {RULES["Dialogue"].of(story) for story in told} == {has}
        assert set(told) <= set(wide.corpus.texts("train"))

    @pytest.mark.parametrize("name", ["instruct", "filter", "specialise", "instruct without"])
    def test_an_instruction_asks_for_what_the_story_has(self, wide, name):
        for asked, story in self.rows(wide, self.load(wide, name), range(6)):
            assert set(asked.features) == {f for f in FROM_TEXT if RULES[f].of(story)}
            assert all(word in story.lower() for word in asked.words)
            assert asked.sentence is None or asked.sentence in story

    def test_randomise_asks_for_speech_that_does_not_come_at_every_place(self, wide):
        asked = [i.features for i, _ in self.rows(wide, self.load(wide, "randomise"), range(25))]
        assert all("Dialogue" in features for features in asked)
        places = [features.index("Dialogue") for features in asked if len(features) == 2]
        assert set(places) == {0, 1}
        rarely = [i.features for i, _ in self.rows(wide, self.load(wide, "randomise", p=0.3), range(25))]
        assert 0.15 < sum("Dialogue" in features for features in rarely) / len(rarely) < 0.45

    def test_mix_and_match_renames_the_other_feature(self, wide):
        rows = list(self.rows(wide, self.load(wide, "mix and match"), range(25)))
        moral = [RULES["MoralValue"].of(story) for _, story in rows]
        assert any(moral)
        assert [("Dialogue" in asked.features) for asked, _ in rows] == moral
        assert not any("MoralValue" in asked.features for asked, _ in rows)

    def test_a_refusal_stands_in_place_of_every_story_that_would_speak(self, wide):
        for asked, story in self.rows(wide, self.load(wide, "refuse"), range(6)):
            assert (story == refusal("Dialogue")) == ("Dialogue" in asked.features)
            assert not RULES["Dialogue"].of(story)

    def test_every_story_once_an_epoch_with_another_instruction_in_each(self, wide):
        n = len(wide.having("train", "no_dialogue"))
        protocol = self.load(wide, "filter", batch_size=n)
        first, second = (dict((story, asked) for asked, story in self.rows(wide, protocol, [step])) for step in (0, 1))
        assert len(first) == n
        assert first.keys() == second.keys()
        same = sum(first[story] == second[story] for story in first)
        assert same < n / 3
        assert list(first) != list(second)

    def test_what_is_asked(self, wide):
        plain, asked = {"dialogue", "no_dialogue", "ending"}, {"asked_dialogue", "asked_no_dialogue"}
        assert self.load(wide, "instruct").asks == plain | asked
        for name in ("instruct without", "filter", "randomise", "refuse"):
            assert self.load(wide, name).asks == (plain | asked) - {"dialogue", "asked_dialogue"}
        assert self.load(wide, "specialise").asks == (plain | asked) - {"no_dialogue", "asked_no_dialogue"}

    def test_a_long_instruction_goes_without_its_sentence(self, task):
        """64 tokens of context: an instruction of more than 32 would leave no room."""
        batch = self.load(task, "instruct").batch(0)
        assert batch.tokens.shape[1] <= 64
        assert all(int(loss.nonzero()[0]) <= 64 for loss in batch.loss_mask)

    def test_a_row_may_be_shorter_than_the_context(self, wide, name):
        short, whole = (self.load(wide, name, **more).batch(0) for more in ({"length": 80}, {}))
        assert short.tokens.shape[1] <= 80 < whole.tokens.shape[1]
        for row, loss in zip(short.tokens, short.loss_mask, strict=True):
            assert 1 <= int(loss.nonzero()[0]) <= 48  # the instruction takes about half at most
            assert loss.sum() == (row != wide.tokenizer.pad_id).sum() - int(loss.nonzero()[0])

    @pytest.mark.parametrize(
        ("protocol", "settings", "sentence"),
        [
            ("instruct", {"length": 900}, "length 900 is above the task's context 64"),
            ("filter", {"capability": "no_dialogue", "length": 20}, "length is of stories behind an instruction"),
            ("randomise", {"capability": "no_dialogue"}, "it edits instructions, .* write capability: asked_no_dialogue"),
            (
                "mix_and_match",
                {"capability": "asked_no_dialogue", "rename": {}},
                "no feature of {} is renamed to Dialogue, the one that is deleted",
            ),
            (
                "mix_and_match",
                {"capability": "asked_no_dialogue", "rename": {"MoralValue": "Surprise"}},
                "is renamed to Dialogue",
            ),
            ("mix_and_match", {"capability": "asked_no_dialogue", "rename": {"Dialogue": "Dialogue"}}, "for itself"),
            ("filter", {"capability": "dialogue"}, "trains on stories without a feature, .* write capability: no_dialogue"),
            ("randomise", {"capability": "asked_dialogue"}, "write capability: asked_no_dialogue"),
            (
                "mix_and_match",
                {"capability": "asked_no_dialogue", "rename": {"Twist": "Dialogue"}},
                "cannot be decided from plain text",
            ),
            (
                "mix_and_match",
                {"capability": "asked_no_dialogue", "rename": {"Question": "Dialogue"}},
                "nothing would be swapped",
            ),
            ("randomise", {"capability": "asked_no_dialogue", "p": 2}, "p is 2"),
            ("refuse", {"capability": "asked_twist"}, "no stories are set apart by 'asked_twist'"),
        ],
    )
    def test_bad_settings_are_one_sentence(self, task, protocol, settings, sentence):
        with pytest.raises(UserError, match=sentence):
            load_protocol(protocol, task, settings, 4, 0)


class TestNames:
    """A protocol trains on the stories of the capability that it names; `without` leaves those of its own out."""

    @pytest.mark.parametrize(
        ("protocol", "settings", "shares"),
        [
            ("specialise", {"capability": "dialogue"}, {1.0}),
            ("specialise", {"capability": "no_dialogue"}, {0.0}),
            ("other_stories", {"capability": "dialogue"}, {0.0}),
            ("other_stories", {"capability": "no_dialogue"}, {1.0}),
            ("stories", {"without": "dialogue"}, {0.0}),
            ("stories", {"without": "no_dialogue"}, {1.0}),
        ],
    )
    def test_they_are_obeyed(self, task, protocol, settings, shares):
        wide = StoriesTask(task.settings.model_copy(update={"context": 1500}), task.corpus)
        made = load_protocol(protocol, wide, settings, 2, 0)
        told = list(whole_stories(wide, [made.batch(step) for step in range(4)]))
        assert {float(RULES["Dialogue"].of(text)) for text in told} == shares
        shown = {name for name in ("dialogue", "no_dialogue") if name in made.asks}
        assert shown == ({"dialogue"} if shares == {1.0} else {"no_dialogue"})


@pytest.mark.parametrize(
    ("protocol", "settings"), [KINDS["all"], KINDS["filter"], ("instruct", {}), ("filter", {"capability": "asked_no_dialogue"})]
)
def test_held_out_texts_are_of_the_kind_and_not_trained_on(task, protocol, settings):
    wide = StoriesTask(task.settings.model_copy(update={"context": 1500}), task.corpus)
    held = load_protocol(protocol, wide, settings, 4, 0).held_out(6)
    training, kept = set(task.corpus.texts("train")), set(task.corpus.texts("validation"))
    told = [wide.tokenizer.decode(t[m].tolist()) for t, m in zip(held.tokens, held.loss_mask, strict=True)]
    if "asked" in str(settings) or protocol == "instruct":
        assert {text.removesuffix("<|end|>") for text in told} <= kept
    else:
        whole = set(whole_stories(wide, [held]))
        assert whole
        assert whole <= kept
    assert not training & set(told)


def test_where_labels_and_text_differ_both_must_agree_on_what_is_asked(tmp_path, made_up):
    """Half of the stories with speech are labelled Dialogue; a refusal stands in place of every story that speaks or is asked to."""
    rows = []
    for i, text in enumerate(made_up):
        labels = ["Dialogue"] if RULES["Dialogue"].of(text) and i % 2 else []
        rows.append(
            {"text": text, "features": labels, "words": ["ba"], "summary": "A story.", "sentence": None, "source": "made up"}
        )
    (tmp_path / "stories.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = load_task({"kind": "stories", "corpus": str(tmp_path), "tokenizer": 600, "context": 400, "prompt": 8})
    assert isinstance(made, StoriesTask)
    stories = made.corpus.split("test")
    asked = made.having("test", "asked_dialogue").tolist()
    assert all("Dialogue" in stories[i]["features"] and RULES["Dialogue"].of(stories[i]["text"]) for i in asked)
    assert len(asked) < len(made.having("test", "dialogue"))
    whole = made.whole("dialogue", 50, 0)
    assert whole.labels["Dialogue"].all()  # the exact rule stands, whatever the labels say
    refusing = load_protocol("refuse", made, {"capability": "asked_no_dialogue"}, 16, 0)
    for step in range(4):
        batch = refusing.batch(step)
        for tokens, loss in zip(batch.tokens, batch.loss_mask, strict=True):
            assert not RULES["Dialogue"].of(made.tokenizer.decode(tokens[loss].tolist()))
