"""What models write of their own accord: against what one sees by going on from the same openings by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tinystories.judging import measure, score
from tinystories.task import StoriesTask
from workbench.analyses._texts import Desk, Share, TextSettings, texture
from workbench.analyses.writing import WritingSettings, _change, _deaf, _disagreement, writing
from workbench.errors import UserError
from workbench.figures import alt, figure, has_builder
from workbench.models.build import build_model
from workbench.models.checkpoints import save_model
from workbench.models.generation import generate, surprisal
from workbench.models.spec import ModelSpec
from workbench.protocols import load_task
from workbench.studies.handle import pool
from workbench.subjects import Pair, Question

SPEC = ModelSpec(blocks=1, heads=2, width=16)
SMALL = {"n": 24, "opening": 8, "new_tokens": 20, "loss_texts": 16}


@pytest.fixture(scope="module")
def task() -> StoriesTask:
    made = load_task({"kind": "stories", "tokenizer": 600, "context": 96, "prompt": 24})
    assert isinstance(made, StoriesTask)
    return made


@pytest.fixture(scope="module")
def pair(task, tmp_path_factory) -> Pair:
    """A base that likes quotation marks, a tuned model that shuns them, and one that never had them."""
    folder = tmp_path_factory.mktemp("models")
    quote = [i for i in range(task.vocab_size) if '"' in task.tokenizer.token_text(i)]
    for name, push in (("base", 6.0), ("tuned", -30.0), ("never", -30.0)):
        model = build_model(SPEC, task.vocab_size, task.context, seed=0)
        with torch.no_grad():
            head = model.get_output_embeddings().weight
            model.transformer.ln_f.weight[0], model.transformer.ln_f.bias[0] = 0.0, 1.0  # a constant at every position
            head[:, 0] = 0.0
            head[quote, 0] = push
        (folder / name).mkdir()
        save_model(model, folder / name)
    return Pair(
        name="filtered",
        seed=0,
        task=task,
        capability="dialogue",
        tuned_on="no_dialogue",
        correlation=None,
        n=16,
        base_path=folder / "base",
        tuned_path=folder / "tuned",
        never_path=folder / "never",
    )


@pytest.fixture(scope="module")
def result(pair):
    return writing(pair, **SMALL)


def test_shares_are_those_of_texts_that_go_on_from_the_same_openings(pair, result):
    task = pair.task
    openings = task.openings("dialogue", 24, 0, 8, 20)
    prompts = [torch.from_numpy(p) for p in openings.prompts]
    for name, model in (("base", pair.base), ("tuned", pair.tuned), ("never_had_it", pair.never_had_it)):
        more = generate(model, prompts, new_tokens=20, eos_id=task.end, pad_id=task.padding, seed=0)
        texts = [task.describe([*p[1:].tolist(), *m.tolist()]) for p, m in zip(prompts, more, strict=True)]
        assert result.metric(f"writes_{name}").value == pytest.approx(task.shows("dialogue", texts).mean())
        kept = result.tables["samples"].query("model == @name")
        assert kept["written"].tolist() == texts[: len(kept)]
        assert kept["shows"].tolist() == task.shows("dialogue", texts)[: len(kept)].tolist()
    assert result.metric("writes_base").value > 0.5 > result.metric("writes_tuned").value == 0
    real = result.metric("writes_real")
    assert real.value == pytest.approx(task.shows("dialogue", openings.written).mean())
    assert real.n == len(openings.written)
    change = result.metric("change")
    assert change.value == pytest.approx(-result.metric("writes_base").value)
    assert change.high < 0


@pytest.mark.parametrize("kind", ["dialogue", "no_dialogue"])
def test_the_loss_is_the_cross_entropy_over_all_tokens_of_whole_test_stories(pair, result, kind):
    examples = pair.task.whole(kind, 16, 0)
    total, tokens = 0.0, 0
    for i in range(len(examples)):  # one story at a time, without padding
        length = int(examples.attention_mask[i].sum())
        ids = examples.tokens[i : i + 1, :length]
        with torch.no_grad():
            logits = pair.base(input_ids=ids).logits
        total += float(F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum"))
        tokens += length - 1
    found = result.metric(f"loss_base_{kind}")
    assert found.value == pytest.approx(total / tokens, abs=1e-4)
    assert found.low < found.value < found.high
    assert found.n == len(examples)
    row = result.tables["loss"].query("model == 'base' and kind == @kind").iloc[0]
    assert row["value"] == found.value


def test_equal_models_write_the_same(pair):
    same = writing(replace(pair, tuned_path=pair.base_path), **SMALL)
    change = same.metric("change")
    assert change.value == 0
    assert change.low < 0 < change.high
    texts = same.tables["samples"]
    assert texts.query("model == 'base'")["written"].tolist() == texts.query("model == 'tuned'")["written"].tolist()


def test_the_line_takes_no_side_and_says_where_there_is_no_room(pair, result):
    (line,) = result.evidence
    assert line.direction == "neutral"
    assert line.text.startswith("Of its own accord the tuned model writes dialogue in 0.00 [0.00, 0.1")
    assert f"(the base {result.metric('writes_base').value:.2f}, real texts" in line.text
    mute = writing(replace(pair, base_path=pair.tuned_path), **SMALL)
    assert mute.evidence[0].direction == "uninformative"
    (pooled,) = pool([result]).evidence
    assert (pooled.direction, pooled.value) == (line.direction, line.value)


def test_few_texts_are_said_to_be_few(result):
    assert any(limit.startswith("24 texts are few: a share is known to about 0.20") for limit in result.limits)
    assert WritingSettings().n == 200


def test_what_cannot_write_is_refused_before_anything_is_trained(pair):
    procedural = Question("x", 0, load_task({"kind": "pcfg", "text_length": 12, "window": 6}), "count_a", "count_b", None)
    with pytest.raises(UserError, match="has no texts to go on with; use a task of kind 'stories'"):
        writing.check({}, procedural, 2)
    with pytest.raises(UserError, match="opening 16 and new_tokens 100 exceed the context of 96"):
        writing.check({"new_tokens": 100}, pair, 2)


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_figure_shows_every_model_with_its_interval(pair, result, seeds):
    given = pool([result, writing(replace(pair, seed=1), **SMALL)][:seeds])
    fig = figure(given)
    assert has_builder("writing")
    by_name = {t.name: t for t in fig.data if t.showlegend}
    assert list(by_name) == ["never had it", "real texts", "base", "fine-tuned"]
    assert by_name["base"].y[0] == given.metric("writes_base").value
    assert fig.layout.yaxis.title.text == "share of texts"
    assert fig.layout.yaxis2.title.text == "loss (nats per token)"
    assert alt(given).startswith("Share of texts that show dialogue: never had it 0.00")
    losses = [t for t in fig.data if t.xaxis == "x2"]
    assert np.ravel([t.y for t in losses]).tolist() == pytest.approx(
        [given.metric(f"loss_{m}_{k}").value for m in ("never_had_it", "base", "tuned") for k in ("dialogue", "no_dialogue")]
    )


def test_openings_that_return_are_said_to_return(pair, result):
    assert not any("go on from" in limit for limit in result.limits)
    repeated = writing(pair, **{**SMALL, "n": 60})
    distinct = len(pair.task.openings("dialogue", 60, 0, 8, 20).written)
    assert any(limit.startswith(f"60 texts go on from {distinct} openings") for limit in repeated.limits)


def test_every_judge_counts_every_models_texts(pair, result):
    judges = result.tables["judges"]
    assert set(judges["model"]) == {"real", "base", "tuned", "never_had_it"}
    rule = judges[judges["judge"] == "rule"].set_index("model")["value"]
    assert rule.to_dict() == pytest.approx(result.table.set_index("model")["value"].to_dict())
    grams = judges[judges["judge"] == "n-gram regression"]
    assert len(grams) == 4
    assert grams["trust"].str.contains("AUROC").all()


def task_story(task, examples):
    return [task.describe(t[m][:10].tolist()) for t, m in zip(examples.tokens, examples.loss_mask, strict=True)]


class TestWhenAsked:
    @pytest.fixture(scope="class")
    def asked(self, task, pair):
        wide = StoriesTask(task.settings.model_copy(update={"context": 160}), task.corpus)
        models = {name: build_model(SPEC, wide.vocab_size, 160, seed=i) for i, name in enumerate(("base", "tuned"))}
        for name, model in models.items():
            (pair.base_path.parent / f"wide-{name}").mkdir(exist_ok=True)
            save_model(model, pair.base_path.parent / f"wide-{name}")
        where = pair.base_path.parent
        made = replace(pair, task=wide, capability="asked_dialogue", tuned_on="asked_no_dialogue", never_path=None)
        return replace(made, base_path=where / "wide-base", tuned_path=where / "wide-tuned")

    def test_the_instruction_is_no_part_of_the_text(self, asked):
        found = writing(asked, **{**SMALL, "opening": 0})
        for text in found.tables["samples"]["written"]:
            assert "Story:" not in text
            assert "Features:" not in text

    def test_what_it_costs_to_be_asked_is_paired_by_story(self, asked):
        found = writing(asked, **{**SMALL, "opening": 0})
        plain, adversarial = (asked.task.whole(k, 16, 0) for k in ("asked_no_dialogue", "adversarial_dialogue"))
        costs = []
        for examples in (plain, adversarial):
            nats = surprisal(asked.base, examples.tokens, examples.attention_mask)
            mask = examples.loss_mask[:, 1:]
            costs.append([float(row[m].mean()) for row, m in zip(nats, mask, strict=True)])
        assert found.metric("heeds_base").value == pytest.approx(np.mean(np.subtract(costs[1], costs[0])), abs=1e-5)
        first = [task_story(asked.task, examples) for examples in (plain, adversarial)]
        assert first[0] == first[1]
        assert _deaf(np.array([0.1, 0.12, 0.09])) == []
        assert _deaf(np.array([0.1, -0.12, 0.02]))[0].startswith(
            "Asked for what does not come, the base is no more surprised (+0.0000"
        )

    def test_there_is_a_loss_where_it_is_asked_for_and_does_not_come(self, asked):
        found = writing(asked, **{**SMALL, "opening": 0})
        kinds = {m.metric.removeprefix("loss_base_") for m in found.headline if m.metric.startswith("loss_base_")}
        assert kinds == {"asked_dialogue", "asked_no_dialogue", "adversarial_dialogue"}


def test_texture_is_the_mean_over_texts_of_their_length_and_of_runs_that_are_not_repeated(result):
    fresh, dull = " ".join(f"w{i}" for i in range(60)), "A b " * 30
    rows = {row["measure"]: row for row in texture([fresh, dull, "too short"], 0)}
    assert rows["length"]["value"] == pytest.approx((60 + 60 + 2) / 3)
    assert rows["distinct_1"]["value"] == pytest.approx((50 / 50 + 2 / 50) / 2)
    assert rows["distinct_2"]["value"] == pytest.approx((49 / 49 + 2 / 49) / 2)
    assert rows["distinct_3"]["n"] == 2
    assert [row["measure"] for row in texture(["one two"], 0)] == ["length"]
    assert set(result.tables["texture"]["model"]) == {"real", "base", "tuned", "never_had_it"}
    assert (result.tables["texture"]["low"] <= result.tables["texture"]["value"]).all()


def test_a_judge_that_does_not_cover_the_rule_is_named():
    def row(model, judge, value, low, high):
        return {
            "model": model,
            "judge": judge,
            "value": value,
            "corrected": value,
            "corrected_low": low,
            "corrected_high": high,
        }

    agrees = [row("base", "rule", 0.5, 0.5, 0.5), row("base", "n-grams", 0.6, 0.4, 0.7)]
    assert _disagreement(agrees) == []
    differs = [*agrees, row("tuned", "rule", 0.1, 0.1, 0.1), row("tuned", "n-grams", 0.9, 0.8, 1.0)]
    (said,) = _disagreement(differs)
    assert said.startswith("The other judge (n-grams) does not agree even corrected (tuned 0.10, by it 0.90)")


class TestAJudgeThatErrs:
    """Shares are those that it would count if it did not err: of 100 texts it calls 40 positive, with sensitivity .9 and specificity .8."""

    @pytest.fixture
    def share(self):
        truth = np.repeat([True, False], 1000)
        says = np.concatenate([np.arange(1000) < 900, np.arange(1000) >= 800]).astype(float)
        quality = measure(says, truth)
        shows = (np.arange(100) < 40).astype(float)

        class Said:
            feature, name, exact = "Twist", "n-grams", False

            def __init__(self):
                self.quality = quality

            def probability(self, texts):
                return shows

        return Share(shows, [score(Said(), ["x"] * 100, 0)], 0)

    def test_the_headline_is_the_corrected_share(self, share):
        true = (0.4 + 0.8 - 1) / (0.9 + 0.8 - 1)
        assert share.values.mean() == pytest.approx(true)
        assert share.row["value"] == pytest.approx(true)
        assert share.row["low"] < true < share.row["high"]
        metric = share.metric("writes_base")
        assert (metric.value, metric.unit) == (share.row["value"], "share of texts")
        assert np.mean(metric.draws) == pytest.approx(true, abs=0.02)
        assert _change(share, replace(share, shows=np.zeros(100)), 0).value == pytest.approx(0.4 / 0.7)


def test_the_interval_of_a_loss_resamples_texts_with_their_tokens(pair, monkeypatch):
    desk = Desk(pair.task, "dialogue", TextSettings(**SMALL), 0)
    tokens = np.arange(1.0, 17.0)
    monkeypatch.setattr(Desk, "costs", lambda self, model, kind: (2 * tokens, tokens))  # two nats each, whatever the length
    value, draws = desk.loss(pair.base, "dialogue")
    assert value == 2
    assert draws == pytest.approx(2)


def test_a_result_without_rows_draws_that_nothing_was_measured(result):
    bare = replace(result, tables={name: table.iloc[:0] for name, table in result.tables.items()})
    fig = figure(bare)
    assert not fig.data
    assert "nothing was measured" in str(fig.layout.title.subtitle.text or fig.layout.title.text)
