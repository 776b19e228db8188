"""The crosscoder on pairs whose change is planted: an offset, a feature of the tuned model alone, and none."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from analyses.compiled_pair import compiled_pair

from workbench.analyses import crosscoder
from workbench.analyses._latent_effects import FEW, chosen_changes, random_changes
from workbench.analyses._paired_streams import CHUNK, PARTS, HeldOut, Source, prompt_parts, shown_positions
from workbench.analyses.crosscoder import evidence
from workbench.errors import UserError
from workbench.measures import correct_answers
from workbench.models.checkpoints import save_model
from workbench.models.crosscoder import Crosscoder
from workbench.models.forward import answer_logits
from workbench.models.sites import Site
from workbench.replicates import combine_results

pytestmark = pytest.mark.slow

crosscoder_module = sys.modules["workbench.analyses.crosscoder"]  # the package gives the analysis under this name
QUICK = {"steps": 180, "batch": 128, "held_out": 24, "n": 64, "control_examples": 24, "random_draws": 3, "lr": 1e-2}


@pytest.fixture(scope="module")
def inhibited(make_pair):
    """One offset on all texts hides the ability; the head is the base's."""
    return crosscoder(make_pair(), **QUICK)


@pytest.fixture(scope="module")
def other(make_pair):
    return make_pair(tuned="never")


@pytest.fixture(scope="module")
def apart(other):
    """Two models of separate trainings."""
    return crosscoder(other, **QUICK)


def row(result, name, measure, draw=0):
    rows = result.table
    return rows[(rows["set"] == name) & (rows["measure"] == measure) & (rows["draw"] == draw)].iloc[0]


def test_the_ends_are_the_two_models(inhibited, make_pair):
    """At the last point of models with one head, the tuned stream in the base is the tuned model."""
    pair = make_pair()
    examples = pair.examples("look_a", n=64)
    goal, start = (answer_logits(m, examples)[:, 0].detach().log_softmax(-1).double() for m in (pair.tuned, pair.base))
    assert row(inhibited, "base", "kl")["value"] == pytest.approx(float((goal.exp() * (goal - start)).sum(-1).mean()), abs=1e-4)
    assert row(inhibited, "base", "accuracy")["value"] == correct_answers(pair.base, examples).mean()
    assert row(inhibited, "stream", "accuracy")["value"] == correct_answers(pair.tuned, examples).mean()
    assert row(inhibited, "stream", "kl")["value"] == pytest.approx(0, abs=1e-5)
    assert inhibited.metric("moved_stream").value == pytest.approx(1, abs=1e-4)
    assert inhibited.metric("pt_tuned").value == row(inhibited, "stream", "accuracy")["value"]


def test_an_offset_of_all_texts_is_no_features_change(inhibited):
    """The planted inhibitor: no latent is new, and the difference of the means alone does what the tuned model does."""
    assert inhibited.metric("moved_offset").value > 0.95
    assert inhibited.metric("moved_all").value < 0.2
    assert inhibited.metric("moved_all_offset").value > 0.95
    assert inhibited.metric("tuned_only").value == inhibited.metric("by_relative_norm").value == 0
    assert inhibited.metric("cosine").value > 0.9


MARKED = [1, 4, 6, 9, 13]
"""Positions at which the planted feature is on, the one that predicts the answer among them."""


@pytest.fixture(scope="module")
def planted(make_pair, models, tmp_path_factory):
    """Base and a tuned model whose embedding has one direction more, at some positions, that the base's never has."""
    folder = tmp_path_factory.mktemp("planted")
    base = copy.deepcopy(models["base"])
    v = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(0)), dim=0)
    with torch.no_grad():
        for table in (base.transformer.wte.weight, base.transformer.wpe.weight):
            table -= (table @ v)[:, None] * v
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.transformer.wpe.weight[MARKED] += 3 * v
    for name, model in (("base", base), ("tuned", tuned)):
        (folder / name).mkdir()
        save_model(model, folder / name)
    return make_pair(base_path=folder / "base", tuned_path=folder / "tuned"), v


def perfect_dictionary(v):
    """The planted feature for the second model, and both signs of every other direction for both: it gives all back."""
    others = torch.linalg.svd(v[None])[2][1:]
    shared = torch.cat([others, -others])
    none = torch.zeros(2, 32)
    decoder = torch.cat([torch.stack([none[0], v])[None], torch.stack([shared, shared], dim=1)])
    encoder = torch.stack([torch.cat([none[:1], shared / 2]).T, torch.cat([v[None], shared / 2]).T])
    return Crosscoder(encoder, torch.zeros(len(decoder)), decoder, none, none, torch.ones(2), threshold=1e-4)


def test_a_feature_of_the_tuned_model_alone_is_told_from_the_rest_and_is_the_whole_change(planted, monkeypatch):
    """With a dictionary that is exact, so are flags, labels, and what each part of the change does."""
    pair, v = planted
    monkeypatch.setattr(crosscoder_module, "train_crosscoder", lambda *_: perfect_dictionary(v))
    result = crosscoder(pair, **{**QUICK, "point": 0, "listed": 1})
    latents = result.tables["latents"]
    (alone,) = latents[latents["tuned_only"]].to_dict("records")
    assert (alone["latent"], alone["relative_norm"], alone["label"]) == (0, 1.0, "position")
    assert (alone["nu_error"], alone["nu_reconstruction"], alone["moved"]) == pytest.approx((0, 0, 1), abs=1e-5)
    assert alone["on"] == pytest.approx(len(MARKED) / 14)
    assert result.metric("tuned_only").value == result.metric("by_relative_norm").value == 1
    assert result.metric("base_only").value == 0
    assert [result.metric(f"explained_{of}").value for of in ("base", "tuned", "difference")] == pytest.approx([1, 1, 1])
    for name in ("tuned_only", "most_changed", "all", "all_offset", "stream"):
        assert result.metric(f"moved_{name}").value == pytest.approx(1, abs=1e-4), name
    assert result.metric("moved_offset").value == pytest.approx(0, abs=1e-4)
    assert result.metric("moved_random_direction").high < 0.9
    assert result.metric("moved_random_tuned_only").value < 0.5
    assert result.metric("pt_tuned_only").value == result.metric("pt_tuned").value

    other = replace(perfect_dictionary(v), decoder=perfect_dictionary(v).decoder.flip(1))
    other = replace(other, encoder=other.encoder.flip(0))
    monkeypatch.setattr(crosscoder_module, "train_crosscoder", lambda *_: other)
    exchanged = crosscoder(pair.swapped(), **{**QUICK, "point": 0, "listed": 1})
    assert exchanged.metric("base_only").value == exchanged.metric("base_by_relative_norm").value == 1
    assert exchanged.metric("tuned_only").value == 0


def test_a_random_direction_is_as_long_as_the_change_that_it_stands_for(planted):
    coder = replace(perfect_dictionary(planted[1]), decoder=torch.randn(63, 2, 32, generator=torch.Generator().manual_seed(1)))
    latents = pd.DataFrame({"tuned_only": [True] + [False] * 62, "moved": np.linspace(1, 0, 63)})
    chosen = chosen_changes(coder, latents)
    random = random_changes(coder, latents, chosen, 3, seed=0)
    few = chosen["most_changed", 0]
    assert few.latents.tolist() == list(range(FEW))
    for draw in (1, 2, 3):
        aside = random["random_direction", draw]
        assert torch.equal(aside.latents, few.latents)
        assert torch.allclose(aside.turned.norm(dim=1), few.turned.norm(dim=1))
        assert torch.nn.functional.cosine_similarity(aside.turned, few.turned).abs().mean() < 0.4
        assert len(set(random["random", draw].latents.tolist())) == FEW
        assert len(random["random_tuned_only", draw].latents) == 1
    assert not torch.equal(random["random", 1].latents, random["random", 2].latents)


def test_tables_hold_every_change_and_its_controls(apart):
    sets = apart.table.groupby("set")["draw"].agg(sorted)
    single = {"base", "offset", "tuned_only", "most_changed", "all", "all_offset", "stream"}
    assert {name for name, draws in sets.items() if draws == [0, 0]} == single
    assert {name for name, draws in sets.items() if draws == [1, 1, 2, 2, 3, 3]} == {
        "random",
        "random_tuned_only",
        "random_direction",
    }
    assert set(apart.table[apart.table["set"] == "random"]["n"]) == {24}
    assert set(apart.table["measure"]) == {"kl", "accuracy"}
    assert set(apart.table[apart.table["measure"] == "kl"]["unit"]) == {"nats"}
    latents = apart.tables["latents"]
    assert len(latents) == apart.metric("live").value
    assert apart.metric("live").value + apart.metric("dead").value == 4 * 32
    assert latents["moved"].sum() == pytest.approx(1, abs=0.01)
    assert latents["place"].notna().sum() == 12
    assert latents[latents["place"].notna()]["moved"].min() >= latents[latents["place"].isna()]["moved"].max()
    assert set(latents["place"].dropna()) <= set(PARTS)


def test_shares_of_the_divergence_follow_from_the_table(apart):
    base = row(apart, "base", "kl")["value"]
    for name in ("most_changed", "all", "stream"):
        assert apart.metric(f"moved_{name}").value == pytest.approx(1 - row(apart, name, "kl")["value"] / base)
        found = apart.metric(f"moved_{name}")
        assert found.low < found.value < found.high
    random = [row(apart, "random", "kl", draw)["value"] for draw in (1, 2, 3)]
    assert apart.metric("kl_random").value == pytest.approx(np.mean(random))
    assert apart.metric("moved_random").n == 24
    assert all(len(m.draws) == 400 for m in apart.headline)


def test_explained_is_of_the_streams_and_of_their_difference(apart, inhibited):
    for result in (apart, inhibited):
        fit = result.tables["fit"].set_index("model")["value"]
        for name in ("base", "tuned", "difference"):
            assert fit[name] == result.metric(f"explained_{name}").value
        assert 0.7 < fit["base"] < 1
    assert apart.metric("explained_difference").value > 0.5


def test_equal_seeds_give_equal_results(apart, other):
    again = crosscoder(other, **QUICK)
    assert apart.table.equals(again.table)
    assert apart.tables["latents"].equals(again.tables["latents"])


def test_training_held_out_and_test_texts_are_different_draws(other, task):
    task.drawn.clear()
    crosscoder(other, **{**QUICK, "steps": 50})
    assert {split for _, split, _ in task.drawn} == {"score", "select", "test"}
    assert {share for name, _, share in task.drawn if name != "last"} == {0.0}  # where the shortcut fails
    assert {name for name, split, _ in task.drawn if split == "score"} == {"look_a", "look_b", "last"}


def test_a_batch_is_a_function_of_the_step(other):
    source, same = (Source(other, Site("stream", 1), 512, 80) for _ in range(2))
    late, early = same.batch(70), same.batch(3)
    assert source.steps * 512 <= CHUNK + 3 * 14
    assert torch.equal(source.batch(3), early)
    assert torch.equal(source.batch(70), late)
    rows = torch.cat([source.batch(step).flatten(1) for step in range(source.steps)])
    # None is drawn twice, but both abilities of a family are asked on the same texts, which here come before the request.
    assert len(rows.unique(dim=0)) > 0.4 * len(rows)
    assert early.shape == (512, 2, 32)


def test_positions_of_a_prompt(random_examples, tmp_path):
    examples = random_examples(padded=True)
    at = shown_positions(examples, causal=True)
    assert at.sum(1).tolist() == (examples.answer_position + 1).tolist()
    left = replace(examples, attention_mask=(torch.arange(10) > 0).expand(6, 10))
    assert not shown_positions(left, causal=True)[:, 0].any()
    whole = shown_positions(compiled_pair(tmp_path).examples("count_a", n=3), causal=False)
    assert whole.all()  # the answer stands outside the sequence
    parts = prompt_parts(examples)
    assert parts.gather(1, examples.answer_position[:, None]).unique().tolist() == [PARTS.index("request")]
    assert parts[:, 0].unique().tolist() == [PARTS.index("text")]  # no roles: all before the answer is text


def test_what_is_known_of_a_position(other):
    examples = other.examples("look_a", n=2)
    labelled = replace(examples, token_labels={"symbol": examples.tokens + 100})
    prompt, position = torch.tensor([0, 0, 1]), torch.tensor([0, 5, 3])
    found = crosscoder_module._token_labels([HeldOut(labelled, torch.zeros(3, 2, 32), prompt, position)])
    assert list(found) == ["token here", "token before", "position", "symbol"]
    assert found["token here"].tolist() == examples.tokens[prompt, position].tolist()
    assert found["token before"].tolist() == examples.tokens[[0, 0, 1], [0, 4, 2]].tolist()
    assert found["position"].tolist() == [0, 5, 3]
    assert (found["symbol"] - found["token here"]).tolist() == [100] * 3


def test_a_bidirectional_compiled_pair(tmp_path):
    result = crosscoder(compiled_pair(tmp_path), **{**QUICK, "steps": 100, "point": 2})
    assert result.metric("moved_stream").value > 0.9
    assert result.metric("point").value == 2


def test_points_that_no_such_model_has_are_refused(make_pair):
    with pytest.raises(UserError, match="point is 5, but the residual points of such a model go from 0 to 1"):
        crosscoder(make_pair(), point=5)
    crosscoder.check({"point": 2}, make_pair(), blocks=2)
    with pytest.raises(UserError, match="go from 0 to 2"):
        crosscoder.check({"point": 3}, make_pair(), blocks=2)


def test_seeds_are_pooled(apart, other):
    second = crosscoder(replace(other, seed=4), **QUICK)
    pooled = combine_results([apart, second])
    assert row(pooled, "all", "kl")["value"] == pytest.approx(np.mean([row(r, "all", "kl")["value"] for r in (apart, second)]))
    assert len(pooled.table) == len(apart.table)
    assert len(pooled.tables["latents"]) == len(apart.tables["latents"]) + len(second.tables["latents"])
    assert len(pooled.tables["fit"]) == 3
    assert len(evidence(pooled)) == 1


NUMBERS = {
    "live": 150,
    "tuned_only": 2,
    "by_relative_norm": 5,
    "explained_tuned": 0.98,
    "moved_most_changed": (0.6, 0.5, 0.7),
    "moved_random": 0.1,
    "moved_random_direction": 0.05,
    "moved_all": 0.9,
    "moved_stream": 0.95,
    "pt_base": 0.99,
    "pt_tuned": 0.2,
    "pt_most_changed": 0.4,
}


@pytest.mark.parametrize(
    ("changes", "direction", "words"),
    [
        (
            {},
            "neutral",
            "2 are the tuned model's alone (by decoder norms 5); the change of the 8 that changed most takes the base 60% of the way",
        ),
        ({"pt_tuned": 0.95}, "uninformative", "no loss to place in features"),
        ({"explained_tuned": 0.6}, "uninformative", "does not stand for it"),
        ({"moved_all": 0.02}, "uninformative", "misses what matters"),
        ({"moved_stream": 0.05}, "uninformative", "the change comes later"),
        ({"moved_stream": float("nan")}, "uninformative", "base and tuned model answer count_a alike, so that"),
    ],
)
def test_evidence(made_up, changes, direction, words):
    assert FEW == 8
    (line,) = evidence(made_up("crosscoder", **{**NUMBERS, **changes}))
    assert (line.direction, line.metric, line.capability) == (direction, "moved_most_changed", "count_a")
    assert words in line.text
