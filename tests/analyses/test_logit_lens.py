"""The logit lens on a model whose second block covers the answer, and on one that never had it."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from analyses.compiled_pair import compiled_pair
from analyses.planted import covered, deepened, pair_of, redirected

from workbench.analyses import logit_lens
from workbench.analyses import logit_lens as module_of
from workbench.analyses._places import find_places
from workbench.analyses.logit_lens import Target, evidence, read_answers
from workbench.figures.tables import select
from workbench.models.forward import answer_logits, nll
from workbench.replicates import combine_results

QUICK = {"n": 100, "select_examples": 50, "text_positions": 4}


@pytest.fixture(scope="module")
def deep(models):
    return {name: deepened(models[name]) for name in ("base", "never")}


@pytest.fixture(scope="module")
def masked(make_pair, deep, tmp_path_factory):
    roles = {"base": deep["base"], "tuned": covered(deep["base"]), "never": deep["never"]}
    return pair_of(make_pair, tmp_path_factory.mktemp("masked"), **roles)


@pytest.fixture(scope="module")
def result(masked):
    return logit_lens(masked, **QUICK)


def cell(result, table="table", **at):
    rows = select(result.tables[table], **at)
    assert len(rows) == 1
    return rows.iloc[0]


AT_ANSWER = {"prompt": "look_a", "target": "look_a", "place": "request", "measure": "accuracy"}


def test_every_model_prompt_target_point_and_place(result):
    counts = result.table.groupby(["model", "prompt", "target", "measure"]).size()
    assert set(result.table["model"]) == {"base", "tuned", "untrained", "never_had_it"}
    assert len(counts) == 4 * 2 * 2 * 2
    assert (counts == 3 * 6).all()  # points x places: the first token, four of the text, the request
    assert set(result.tables["change"]["model"]) == {"tuned"}
    units = result.table.groupby("measure")["unit"].unique()
    assert (list(units["accuracy"]), list(units["log-probability"])) == (["accuracy"], ["nats"])


def test_the_last_point_is_the_models_own_answer(result, masked):
    for prompt in ("look_a", "look_b"):
        examples = masked.examples(prompt, n=100)
        for name, model in (("base", masked.base), ("tuned", masked.tuned), ("never_had_it", masked.never_had_it)):
            at = {"model": name, "prompt": prompt, "target": prompt, "place": "request", "point": 2}
            with torch.no_grad():
                said = answer_logits(model, examples)[:, 0, examples.candidates].argmax(-1)
                expected = -nll(model, examples).mean().item()
            right = (examples.candidates[said] == examples.answer[:, 0]).float().mean().item()
            assert cell(result, measure="accuracy", **at)["value"] == pytest.approx(right)
            assert cell(result, measure="log-probability", **at)["value"] == pytest.approx(expected, abs=1e-4)


def test_every_place_and_point_one_example_at_a_time(masked):
    """Against the hidden states that transformers hands out, through norm and head by hand; most tokens are no candidates."""
    examples = masked.examples("look_a", n=12)
    _, at = find_places(masked.task, examples, 4)
    beyond = 0
    for original in (masked.tuned, masked.untrained):
        found = read_answers(original, examples, at, {"x": Target(examples.answer[:, 0], torch.arange(3))})["x"]
        model = copy.deepcopy(original)
        for i in range(12):
            answer = examples.answer[i, 0]
            with torch.no_grad():
                states = model(input_ids=examples.tokens[i : i + 1], output_hidden_states=True).hidden_states
                for b in (0, 1):
                    logits = model.lm_head(model.transformer.ln_f(states[b][0, at[i]])).log_softmax(-1)
                    assert np.allclose(found.nats[b, :, i], logits[:, answer], atol=1e-4)
                    assert found.right[b, :, i].tolist() == (logits[:, :3].argmax(-1) == answer).tolist()
                    beyond += int(((logits.argmax(-1) > 2) & (logits[:, :3].argmax(-1) == answer)).sum())
    assert beyond > 5


def test_the_other_abilitys_answer_is_looked_for_on_the_same_prompt(result, masked):
    """The second block of the tuned model says 2: right for look_b where its digit is 2."""
    twos = float((masked.examples("look_b", n=100).answer == 2).float().mean())
    row = cell(result, model="tuned", prompt="look_a", target="look_b", place="request", measure="accuracy", point=2)
    assert row["value"] == pytest.approx(twos, abs=0.03)
    inside = cell(result, model="tuned", prompt="look_b", target="look_b", place="request", measure="accuracy", point=1)
    assert inside["value"] > 0.97


def test_a_model_that_takes_one_request_for_the_other_says_the_others_answer(make_pair, deep, tmp_path):
    pair = pair_of(make_pair, tmp_path, base=deep["base"], tuned=redirected(deep["base"]), never=deep["never"])
    found = logit_lens(pair, **QUICK)
    at = {"model": "tuned", "prompt": "look_a", "place": "request", "measure": "accuracy", "point": 2}
    assert cell(found, target="look_b", **at)["value"] > 0.97
    same = pair.examples("look_a", n=QUICK["n"])
    both = float((same.labels["look_a"] == same.labels["look_b"]).float().mean())
    assert cell(found, target="look_a", **at)["value"] == pytest.approx(both, abs=0.03)
    (line,) = found.evidence
    assert line.direction == "neutral"
    assert "another basis" in line.text


def test_abilities_of_different_texts_are_each_read_for_their_own_answer(make_pair):
    found = logit_lens(make_pair(tuned_on="last"), **QUICK)
    assert set(found.table[["prompt", "target"]].itertuples(index=False, name=None)) == {("look_a", "look_a"), ("last", "last")}


def test_change_is_tuned_minus_base(result):
    at = {**AT_ANSWER, "point": 2}
    base, tuned = (cell(result, model=model, **at)["value"] for model in ("base", "tuned"))
    change = cell(result, "change", model="tuned", **at)
    assert change["value"] == pytest.approx(tuned - base)
    assert change["low"] < change["value"] < change["high"]
    before = select(result.tables["change"], model="tuned")
    assert (before.loc[before["point"] < 2, "value"] == 0).all()  # the cover is in the last block


def test_an_answer_that_only_the_output_lost_is_masked(result):
    found = {m.metric: m.value for m in result.headline}
    assert found["tuned_inside"] == found["base_inside"] > 0.97
    assert found["tuned_final"] < 0.4
    assert found["change_final"] == pytest.approx(found["tuned_final"] - found["base_final"])
    control = max(found["never_inside"], found["untrained_inside"], found["chance"])
    assert found["room"] == pytest.approx(found["base_inside"] - control)
    assert found["share_kept"] == 1
    (line,) = result.evidence
    assert (line.direction, line.capability, line.metric) == ("masked", "look_a", "share_kept")
    assert "100% of the room is kept inside" in line.text
    assert "after block 1, chosen on other texts" in result.limits[-1]


def test_the_point_is_chosen_on_texts_of_its_own_without_the_tuned_model(masked, task, monkeypatch):
    asked = []

    def watched(model, examples, at, targets):
        asked.append((model, len(examples)))
        return read_answers(model, examples, at, targets)

    import sys

    monkeypatch.setattr(sys.modules[module_of.__module__], "read_answers", watched)
    task.drawn.clear()
    logit_lens(masked, n=32, select_examples=16)
    assert task.drawn == {("look_a", "test", 0.0), ("look_b", "test", 0.0), ("look_a", "select", 0.0)}
    choosing = [model for model, n in asked if n == 16]
    assert len(choosing) == 3
    assert masked.base in choosing
    assert masked.tuned not in choosing


def test_where_the_base_says_nothing_inside_there_is_no_room(make_pair):
    """With one block, all that comes before it is the embedding."""
    found = logit_lens(make_pair(), **QUICK)
    assert np.isnan(found.metric("share_kept").value)
    (line,) = found.evidence
    assert (line.direction, line.metric) == ("uninformative", "room")


def test_without_a_loss_or_a_control_there_is_nothing_to_say(make_pair, deep, masked, tmp_path):
    equal = pair_of(make_pair, tmp_path, base=deep["base"], tuned=deep["base"], never=deep["never"])
    assert logit_lens(equal, **QUICK).evidence[0].direction == "uninformative"
    found = logit_lens(replace(masked, never_path=None), **QUICK)
    assert "never_inside" not in {m.metric for m in found.headline}
    assert found.evidence[0].direction == "uninformative"
    assert "without a model that never had it" in found.evidence[0].text


def test_a_revived_model_stands_beside(make_pair, deep, tmp_path):
    roles = {"base": deep["base"], "tuned": covered(deep["base"]), "never": deep["never"], "revived": deep["base"]}
    found = logit_lens(pair_of(make_pair, tmp_path, **roles), **QUICK)
    assert found.metric("revived_final").value == found.metric("base_final").value
    assert set(found.tables["change"]["model"]) == {"tuned", "revived"}
    assert not select(found.tables["change"], model="revived")["value"].any()


def test_a_compiled_model_without_norms_that_sees_everything(tmp_path):
    pair = compiled_pair(tmp_path)
    found = logit_lens(pair, n=60, select_examples=30)
    at = {"prompt": "count_a", "place": "request", "measure": "accuracy", "point": 3}
    assert cell(found, model="base", target="count_a", **at)["value"] == 1
    assert cell(found, model="tuned", target="count_b", **at)["value"] == 1
    assert cell(found, model="tuned", target="count_a", **at)["value"] < 0.5


def test_small_batches_give_the_same(masked, monkeypatch):
    import sys

    examples = masked.examples("look_a", n=20)
    at = torch.arange(examples.tokens.shape[1] - 1).expand(20, -1)
    target = {"x": Target(examples.answer[:, 0], examples.candidates)}
    whole = read_answers(masked.base, examples, at, target)["x"]
    monkeypatch.setattr(sys.modules[module_of.__module__], "FLOATS", 3 * at.shape[1] * 9)
    parts = read_answers(masked.base, examples, at, target)["x"]
    assert np.allclose(whole.nats, parts.nats, atol=1e-5)
    assert parts.right.shape == (3, 14, 20)


NUMBERS = {
    "base_inside": 0.9,
    "tuned_inside": 0.85,
    "never_inside": 0.3,
    "base_final": 1.0,
    "tuned_final": 0.2,
    "change_final": (-0.8, -0.85, -0.75),
    "room": (0.6, 0.55, 0.65),
    "share_kept": (0.92, 0.86, 0.98),
}


@pytest.mark.parametrize(
    ("changes", "direction", "metric"),
    [
        ({}, "masked", "share_kept"),
        ({"share_kept": (0.92, 0.7, 1.1)}, "neutral", "share_kept"),
        ({"share_kept": (0.0, -0.1, 0.1)}, "neutral", "share_kept"),  # never erased: it may be there in another basis
        ({"share_kept": (float("nan"),) * 3}, "uninformative", "room"),
        ({"room": (0.05, 0.0, 0.09)}, "uninformative", "room"),
        ({"change_final": (-0.05, -0.1, 0.0)}, "uninformative", "change_final"),
    ],
)
def test_what_the_numbers_mean(made_up, changes, direction, metric):
    (line,) = evidence(made_up("logit_lens", **{**NUMBERS, **changes}))
    assert (line.direction, line.metric) == (direction, metric)


def test_seeds_pool_and_evidence_follows(result):
    pooled = combine_results([result, replace(result, provenance={**result.provenance, "seed": 4})])
    assert evidence(pooled)[0].direction == "masked"
    assert len(pooled.table) == len(result.table)
    assert cell(pooled, model="base", point=2, **AT_ANSWER)["n"] == 200
