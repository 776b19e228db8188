"""Divergence where the change is planted in one token of the prompt, other identifiers, and answers of two tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from analyses.compiled_pair import compiled_pair
from analyses.conftest import LENGTH, REQUEST, LookupTask
from analyses.planted import REQUEST_A, covered, deepened, pair_of, redirected

from workbench.analyses import divergence
from workbench.analyses.divergence import evidence
from workbench.figures.tables import select
from workbench.models.divergence import divergence_from
from workbench.models.forward import answer_logits
from workbench.replicates import combine_results

QUICK = {"n": 60, "text_positions": 4}
ALIAS, ALIAS_TOKEN = "look_a_too", 9


@pytest.fixture(scope="module")
def shallow(make_pair, models, tmp_path_factory):
    """The tuned model differs where the request is read, and nowhere else."""
    base = deepened(models["base"])
    roles = {"base": base, "tuned": redirected(base), "never": deepened(models["never"]), "revived": base}
    return pair_of(make_pair, tmp_path_factory.mktemp("shallow"), **roles)


@pytest.fixture(scope="module")
def result(shallow):
    return divergence(shallow, **QUICK)


def row(result, table="table", **at):
    rows = select(result.tables[table], **at)
    assert len(rows) == 1
    return rows.iloc[0]


def test_every_model_ability_and_place(result):
    assert set(result.table["model"]) == {"tuned", "revived", "never_had_it"}
    roles = result.table.groupby("capability")["role"].unique().map(list).to_dict()
    assert roles == {"look_a": ["pt"], "look_b": ["ft"], "last": ["other"]}
    assert (result.table.groupby(["model", "capability"])["order"].nunique() == 6).all()
    assert set(result.table["unit"]) == {"nats"}
    assert np.isnan(row(result, model="tuned", capability="last", place="request")["share"])


def test_a_change_of_the_request_shows_at_the_answer_alone(result):
    tuned = select(result.table, model="tuned", capability="look_a")
    assert (tuned.loc[tuned["place"] != "request", "value"] < 1e-6).all()
    assert row(result, model="tuned", capability="look_a", place="request")["value"] > 1
    assert result.metric("tuned_concentration_pt").value == pytest.approx(1, abs=1e-5)
    assert result.metric("even").value == pytest.approx(1 / (REQUEST + 1))
    assert result.metric("tuned_answer_ft").value == pytest.approx(0, abs=1e-6)  # look_b is asked as before
    assert result.metric("tuned_answer_other").value == pytest.approx(0, abs=1e-6)
    assert 0 < result.metric("never_concentration_pt").value < 1


def test_the_same_model_does_not_diverge(result):
    assert not select(result.table, model="revived")["value"].any()
    assert np.isnan(result.metric("revived_concentration_pt").value)
    assert result.metric("revived_concentration_pt").bound == "undefined"


def test_table_and_shares_are_means_over_texts_at_all_positions(result, shallow):
    examples = shallow.examples("look_a", n=60)
    nats = divergence_from(shallow.base, {"never": shallow.never_had_it}, examples)["never"].double()
    assert nats.shape == (60, REQUEST + 1)
    at = {"model": "never_had_it", "capability": "look_a"}
    for place, position in (("<8>", 0), ("0", LENGTH), ("3", LENGTH - 3), ("request", REQUEST)):
        found = row(result, place=place, **at)
        assert found["value"] == pytest.approx(nats[:, position].mean().item(), abs=1e-6)
        assert found["low"] <= found["value"] <= found["high"]
    share = nats[:, REQUEST].sum() / nats.sum()  # not of the places that are listed alone
    assert row(result, "concentration", **at)["value"] == pytest.approx(share.item(), abs=1e-6)
    assert result.metric("never_answer_pt").value == pytest.approx(nats[:, REQUEST].mean().item(), abs=1e-6)


def test_evidence_takes_no_side_and_names_the_control(result):
    (line,) = result.evidence
    assert (line.direction, line.metric, line.capability) == ("neutral", "tuned_concentration_pt", "look_a")
    assert "100% of the whole prompt's divergence (evenly spread: 7%" in line.text
    assert "a model that never had it" in line.text


def test_what_a_task_does_not_have_is_said(result):
    assert any("under one identifier alone" in limit for limit in result.limits)
    assert any("Answers have one token" in limit for limit in result.limits)
    assert "prefilled" not in result.tables
    assert select(result.tables["identifiers"], capability="look_a")["model"].tolist() == [
        "base",
        "tuned",
        "revived",
        "never_had_it",
    ]


def test_no_loss_is_uninformative(make_pair):
    (line,) = divergence(make_pair(tuned="base"), **QUICK).evidence
    assert (line.direction, line.value) == ("uninformative", 0)


def test_a_compiled_pair_that_is_asked_by_no_word(tmp_path):
    """Both counters see the same prompts; the texts' operands stand anywhere, and so are no places."""
    found = divergence(compiled_pair(tmp_path), n=30)
    assert found.table["place"].unique().tolist() == [
        "BOS",
        "0",
        "request",
    ]  # the position that answers is a letter of the text
    assert found.metric("tuned_answer_pt").value > 1


@dataclass(frozen=True)
class Renamed:
    """look_a, asked for by another token."""

    plain: Any

    def examples(self, n: int, seed: int, split: str = "test") -> Any:
        found = self.plain.examples(n, seed, split)
        tokens = found.tokens.clone()
        tokens[:, REQUEST] = ALIAS_TOKEN
        return replace(found, tokens=tokens)


@dataclass(frozen=True)
class AliasTask(LookupTask):
    vocab_size: int = 10

    def aliases(self, capability: str) -> tuple[str, ...]:
        return (ALIAS,) if capability == "look_a" else ()

    def capability(self, name: str, correlation: Any = None) -> Any:
        return Renamed(super().capability("look_a", correlation)) if name == ALIAS else super().capability(name, correlation)


@pytest.fixture(scope="module")
def locked(make_pair, models, tmp_path_factory):
    """The tuned model lost look_a under one identifier and has it under the other."""
    base, never = (deepened(models[name], 10) for name in ("base", "never"))
    with torch.no_grad():
        base.transformer.wte.weight[ALIAS_TOKEN] = base.transformer.wte.weight[REQUEST_A]
    return pair_of(
        make_pair, tmp_path_factory.mktemp("locked"), base=base, tuned=redirected(base), never=never, task=AliasTask()
    )


def test_another_identifier_brings_out_what_is_covered_under_the_first(locked):
    found = divergence(locked, **QUICK)
    value = {m.metric: m.value for m in found.headline}
    assert value["tuned_pt"] < 0.4
    assert value["tuned_alias"] == value["base_alias"] > 0.97
    assert value["room_alias"] == pytest.approx(value["base_alias"] - max(value["never_alias"], 0.3))
    assert value["alias_kept"] == 1
    under = select(found.tables["identifiers"], model="tuned").set_index("capability")["value"]
    assert under[ALIAS] == value["tuned_alias"]
    assert set(select(found.tables["identifiers"], capability=ALIAS)["role"]) == {"alias"}
    place, asked = found.evidence
    assert place.direction == "neutral"
    assert (asked.direction, asked.metric) == ("masked", "alias_kept")
    assert not any("one identifier alone" in limit for limit in found.limits)


def test_a_loss_under_every_identifier_takes_no_side(locked, make_pair, tmp_path):
    pair = pair_of(make_pair, tmp_path, tuned=covered(locked.base))
    lost = divergence(replace(locked, tuned_path=pair.tuned_path), **QUICK)
    assert lost.metric("tuned_alias").value < 0.4
    assert [line.direction for line in lost.evidence] == ["neutral", "neutral"]


def test_without_a_model_that_never_had_it_another_identifier_shows_nothing(locked):
    found = divergence(replace(locked, never_path=None), **QUICK)
    assert [line.direction for line in found.evidence] == ["neutral", "uninformative"]


@dataclass(frozen=True)
class Two:
    """look_a whose answer is the request's token and then the digit: the first of the two tokens was never trained."""

    plain: Any

    def examples(self, n: int, seed: int, split: str = "test") -> Any:
        found = self.plain.examples(n, seed, split)
        at = found.answer_position - 1
        return replace(found, answer_position=at, answer=found.tokens[:, REQUEST : REQUEST + 2])


@dataclass(frozen=True)
class TwoTokens(LookupTask):
    def capability(self, name: str, correlation: Any = None) -> Any:
        return Two(super().capability(name, correlation))


def test_the_beginning_of_an_answer_is_given(make_pair):
    pair = make_pair(task=TwoTokens())
    found = divergence(pair, **QUICK)
    examples = pair.examples("look_a", n=60)
    for name, model in (("base", pair.base), ("tuned", pair.tuned)):
        with torch.no_grad():
            right = answer_logits(model, examples).argmax(-1) == examples.answer
        given = [row(found, "prefilled", model=name, given=j)["value"] for j in (0, 1)]
        assert given == pytest.approx([right.all(1).float().mean().item(), right[:, 1].float().mean().item()])
        assert found.metric(f"{name}_prefilled").value == given[1]
    assert found.metric("base_prefilled").value > 0.97
    assert found.metric("base_pt").value < 0.5
    assert found.metric("tuned_prefilled").value < 0.4
    places = select(found.table, model="tuned", capability="look_a").sort_values("order")["place"].tolist()
    assert places[-2:] == ["request", "answer token 2"]
    assert not any("Answers have one token" in limit for limit in found.limits)


NUMBERS = {
    "change_pt": (-0.8, -0.85, -0.75),
    "tuned_pt": 0.2,
    "tuned_answer_pt": 3.0,
    "tuned_concentration_pt": (0.6, 0.5, 0.7),
    "never_concentration_pt": 0.3,
    "even": 0.03,
    "base_alias": 1.0,
    "tuned_alias": 0.95,
    "never_alias": 0.3,
    "room_alias": (0.7, 0.6, 0.8),
    "alias_kept": (0.93, 0.85, 1.0),
}


@pytest.mark.parametrize(
    ("changes", "directions"),
    [
        ({}, ["neutral", "masked"]),
        ({"alias_kept": (0.93, 0.7, 1.1)}, ["neutral", "neutral"]),
        ({"alias_kept": (0.0, -0.1, 0.1)}, ["neutral", "neutral"]),
        ({"alias_kept": (float("nan"),) * 3}, ["neutral", "uninformative"]),
        ({"room_alias": (0.05, 0.0, 0.09)}, ["neutral", "uninformative"]),
        ({"change_pt": (-0.05, -0.1, 0.0)}, ["uninformative"]),
        ({"tuned_concentration_pt": (float("nan"),) * 3}, ["uninformative"]),
    ],
)
def test_what_the_numbers_mean(made_up, changes, directions):
    assert [line.direction for line in evidence(made_up("divergence", **{**NUMBERS, **changes}))] == directions


def test_seeds_pool_and_evidence_follows(result):
    pooled = combine_results([result, replace(result, provenance={**result.provenance, "seed": 4})])
    assert [line.direction for line in evidence(pooled)] == ["neutral"]
    assert len(pooled.table) == len(result.table)
