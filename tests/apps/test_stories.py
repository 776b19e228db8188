"""The page *Stories* on a study of real stories that takes seconds, and what it shows checked against plain computations."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from studies.tiny import TALES, run_once

from workbench.errors import UserError
from workbench.models.generation import generate, surprisal, token_kl
from workbench.statistics import wilson

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import streamlit as st
    from streamlit.testing.v1 import AppTest

    from apps.dashboard import writing
    from apps.dashboard.writing import Request

pytestmark = pytest.mark.filterwarnings("ignore")
APP = Path(__file__).parents[2] / "apps" / "dashboard" / "app.py"
MODELS = ["base", "tuned", "revived", "never_had_it"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return run_once(tmp_path_factory, TALES)


@pytest.fixture(scope="module")
def pair(study):
    return study.pair("filtered", 0)


@pytest.fixture
def open_page(study, monkeypatch):
    def open_it():
        monkeypatch.setenv("WORKBENCH_HOME", str(study.store.root))
        st.cache_data.clear()
        st.cache_resource.clear()
        at = AppTest.from_file(str(APP), default_timeout=120)
        return at.run().switch_page("app_pages/stories.py").run()

    return open_it


def texts(at):
    """The HTML of each column, without its tags and decoration."""
    shown = [h.proto.body for h in at.get("html") if "pre-wrap" in h.proto.body]
    return [
        re.sub(r"<[^>]+>", "", re.sub(r'<span (?:aria-hidden="true" )?style="opacity[^>]*>[^<]*</span>', "", h)) for h in shown
    ]


def press(at, label):
    return next(b for b in at.button if b.label.startswith(label)).click().run()


def test_numbers_are_those_of_the_models(pair):
    request = Request('Tom said, "Hi', 12, 0.0, 0)
    found = writing.continuations(pair, request)
    assert list(found) == MODELS
    prompt = torch.from_numpy(pair.task.begin(request.text))
    for name, model in writing.models(pair).items():
        (more,) = generate(model, [prompt], new_tokens=12, eos_id=pair.task.end, pad_id=pair.task.padding, temperature=0)
        ids = [*prompt.tolist(), *more.tolist()]
        one = found[name]
        assert [i for p in one.pieces for i in p.ids][: len(ids)] == ids
        assert one.story == pair.task.describe(ids) == "".join(p.text for p in one.pieces)
        assert one.written == len(more)
        assert [p.prompt for p in one.pieces].count(True) == len(prompt)
        nats, kl = surprisal(model, torch.tensor([ids]))[0], token_kl(model, pair.base, torch.tensor([ids]))[0]
        assert sum(p.surprisal for p in one.pieces[1:]) == pytest.approx(float(nats.sum()), rel=1e-4)
        assert sum(p.kl for p in one.pieces[1:]) == pytest.approx(float(kl.sum()), rel=1e-4, abs=1e-6)
        assert one.nats == pytest.approx(float(nats[len(prompt) - 1 :].mean()), rel=1e-4)
    assert sum(p.kl for p in found["base"].pieces[1:]) == pytest.approx(0, abs=1e-5)
    assert sum(p.kl for p in found["tuned"].pieces[1:]) > 0.01


def test_a_text_that_ends_shows_its_end(pair, monkeypatch):
    first = int(
        generate(pair.base, [torch.from_numpy(pair.task.begin("Tom"))], new_tokens=1, eos_id=None, pad_id=2, temperature=0)[0]
    )
    monkeypatch.setattr(type(pair.task), "end", property(lambda self: first))
    one = writing.continuations(pair, Request("Tom", 5, 0.0, 0))["base"]
    assert (one.ended, one.written) == (True, 0)
    assert one.pieces[-1].ids == (first,)


def test_an_instruction_is_shown_and_not_judged(pair):
    request = Request('Features: Dialogue\nSentence: He said, "No."\nStory: Tom ran', 8, 0.0, 0)
    one = writing.continuations(pair, request)["base"]
    assert "".join(p.text for p in one.pieces).startswith(request.text)
    assert one.story.startswith("Tom ran")
    assert one.marks["Dialogue"] == bool(pair.task.marks([one.story])["Dialogue"][0])


def test_shares_are_those_of_texts_with_different_random_numbers(pair):
    request = Request("Tom and Sue", 24, 1.0, 3)
    found = writing.shares(pair, request, 40)
    rule = {one.model: one for one in found if one.judge == "rule"}
    assert list(rule) == MODELS
    prompt = torch.from_numpy(pair.task.begin(request.text))
    for name, model in writing.models(pair).items():
        more = generate(model, [prompt] * 40, new_tokens=24, eos_id=pair.task.end, pad_id=pair.task.padding, seed=3)
        written = [pair.task.describe([*prompt.tolist(), *m.tolist()]) for m in more]
        assert len(set(written)) > 30
        shows = pair.task.shows("dialogue", written).sum()
        low, high = (float(end) for end in wilson(shows, 40))
        assert (rule[name].n, rule[name].rate, rule[name].low, rule[name].high) == (40, shows / 40, low, high)
    assert all(one.corrected is None for one in rule.values())


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (Request("word " * 200, 10, 1.0, 0), "10 more go beyond the context of 96; shorten the prompt."),
        (Request("Tom", 95, 1.0, 0), "write at most 9"),
        (Request("Features: Dialogue\nTom ran", 10, 1.0, 0), "has no 'Story: ' after it"),
        (Request("Tom", 10, -1.0, 0), "the temperature is -1"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(pair, request_, sentence):
    with pytest.raises(UserError) as error:
        writing.continuations(pair, request_)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_without_chance_there_is_no_share(pair):
    with pytest.raises(UserError, match="at temperature 0 all 7 continuations are the same"):
        writing.shares(pair, Request("Tom", 5, 0.0, 0), 7)


def test_openings_are_of_test_stories_and_end_with_a_whole_word(pair):
    found = writing.openings(pair)
    stories = pair.task.corpus.split("test")["text"][:]
    assert len(set(found)) == len(found) > 10
    for text in found:
        (rest,) = {story[len(text) :][:1] for story in stories if story.startswith(text)}
        assert not (text[-1].isalnum() and rest.isalnum())
        assert not pair.task.shows("dialogue", [text])[0]


def test_the_page_continues_a_test_story_at_once(open_page):
    at = open_page()
    assert not at.exception
    assert not at.error
    prompt = at.text_area(key="prompt").value
    assert len(texts(at)) == 4
    import html

    assert all(html.unescape(text).startswith(prompt) for text in texts(at))
    said = " ".join(m.value for m in at.markdown)
    assert all(f"**{name}**" in said for name in ("base", "fine\\-tuned", "revived", "never had it"))
    assert "| Dialogue | " in said
    assert "a pair of double quotes, straight or curly" in said.replace("\\", "")
    assert "Training curves: pretraining of base, loss from" in " ".join(c.value for c in at.caption).replace("\\", "")
    assert len(at.get("plotly_chart")) == 1


def test_another_opening_is_another_prompt_and_a_choice_of_colour_writes_nothing_anew(open_page, monkeypatch):
    at = open_page()
    before, shown = at.text_area(key="prompt").value, texts(at)
    press(at, "Another opening")
    assert at.text_area(key="prompt").value != before
    assert texts(at) != shown
    shown = texts(at)
    monkeypatch.setattr(writing, "continuations", lambda *_: pytest.fail("written anew"))
    at.radio(key="colour").set_value("kl").run()
    assert not at.error
    assert texts(at) == shown
    assert "KL(model || base)" in " ".join(h.proto.body for h in at.get("html"))
    at.radio(key="colour").set_value("none").run()
    assert "background-color" not in " ".join(h.proto.body for h in at.get("html"))


def test_a_prompt_of_ones_own_is_escaped(open_page):
    at = open_page()
    at.text_area(key="prompt").set_value("<script>alert('hi')</script> Tom")
    press(at, "Continue")
    assert not at.error
    body = " ".join(h.proto.body for h in at.get("html"))
    assert "<script" not in body
    assert texts(at)[0].startswith("&lt;script&gt;alert(&#x27;hi&#x27;)&lt;/script&gt; Tom")


def test_a_bad_prompt_is_a_sentence_and_the_curves_stay(open_page):
    at = open_page()
    at.text_area(key="prompt").set_value("Words: ball\nTom ran")
    press(at, "Continue")
    assert not at.exception
    (error,) = at.error
    assert "Story: " in error.value.replace("\\", "")
    assert len(at.get("plotly_chart")) == 1
    at.text_area(key="prompt").set_value("Tom ran")
    press(at, "Continue")
    assert not at.error


@pytest.mark.slow
def test_scores_are_made_when_asked_for_and_go_when_the_prompt_does(open_page, monkeypatch):
    from apps.dashboard.writing import Share

    asked = []

    def few(pair, request, n):
        asked.append((request, n))
        return [Share(name, "rule", n, 0.25, 0.2, 0.3, None, "") for name in MODELS]

    at = open_page()
    monkeypatch.setattr(writing, "shares", few)
    assert "share [95 %]" not in at.dataframe[0].value
    at.text_area(key="prompt").set_value('"Hi," said Tom')
    press(at, "Continue")
    press(at, "Score 100")
    assert asked[0][1] == 100
    table = at.dataframe[0].value
    assert table["share [95 %]"].tolist() == ["0.25 [0.20, 0.30]"] * 4
    assert table["n"].tolist() == [100] * 4
    assert [w.value for w in at.warning] == ["The prompt itself shows dialogue, so its continuations do too."]
    at.radio(key="colour").set_value("kl").run()
    assert at.dataframe[0].value["n"].tolist() == [100] * 4
    assert len(asked) == 1
    press(at, "Another opening")
    assert "share [95 %]" not in at.dataframe[0].value


def test_models_that_are_not_made_yet_are_a_sentence(study, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(study.store.root, tmp_path / "runs")
    for run in (tmp_path / "runs" / "tales").glob("finetune-*"):
        shutil.rmtree(run)
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "runs"))
    st.cache_data.clear()
    st.cache_resource.clear()
    at = AppTest.from_file(str(APP), default_timeout=120).run().switch_page("app_pages/stories.py").run()
    assert not at.exception
    assert "is not done; run the study first" in at.error[0].value.replace("\\", "")
