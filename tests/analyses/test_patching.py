"""Patching: on a compiled program whose every step is known, and on a trained model against replacements by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from analyses.compiled_pair import compiled_pair
from analyses.conftest import OtherSelect, OtherTest

from workbench.analyses import patching
from workbench.analyses._prompts import FLOOR, Effects, draw_prompts
from workbench.analyses.patching import EVERYWHERE, evidence
from workbench.errors import UserError
from workbench.models.build import build_model
from workbench.models.checkpoints import save_model
from workbench.models.forward import answer_logits
from workbench.models.sites import Replacement, Site, record, replaced
from workbench.models.spec import ModelSpec
from workbench.replicates import combine_results


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Base: flags (MLP of block 0), a width (block 1), the answer fetched (attention of block 2), all of a; tuned: of b."""
    return compiled_pair(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def counter(compiled):
    return patching(compiled, n=60)


@pytest.fixture(scope="module")
def lookup(make_pair):
    return make_pair()


@pytest.fixture(scope="module")
def result(lookup):
    return patching(lookup, n=60)


def effect(result, component, place, model="base", method="patched"):
    rows = result.table
    for name, value in {"component": component, "place": place, "model": model, "method": method}.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows.iloc[0]


class TestTheCompiledCounter:
    """What edits of the a's change must run through these and nothing else."""

    CHAIN = (
        ("stream 0", EVERYWHERE),
        ("mlp 0", EVERYWHERE),
        ("stream 1", EVERYWHERE),
        ("attention 1", "request"),
        ("head 1.0", "request"),
        ("mlp 1", "request"),
        ("stream 2", "request"),
        ("attention 2", "request"),
        ("head 2.0", "request"),
    )

    @pytest.mark.parametrize(("component", "place"), CHAIN)
    def test_the_chain_of_the_program_carries_all(self, counter, component, place):
        found = effect(counter, component, place)
        assert found["value"] == pytest.approx(1, abs=0.02)
        assert found["low"] <= found["value"] <= found["high"]

    def test_nothing_else_carries_anything(self, counter):
        rows = counter.table.query("model == 'base' and method == 'patched'")
        beside = rows[~rows["component"].isin([c for c, _ in self.CHAIN])]
        assert set(beside["component"]) == {"attention 0", "head 0.0", "mlp 2"}
        assert np.nan_to_num(beside["value"]).max() < 0.02
        late = rows[rows["component"].isin(["head 2.0", "mlp 1"]) & ~rows["place"].isin(["request", EVERYWHERE])]
        assert np.abs(np.nan_to_num(late["value"])).max() < 0.02

    def test_places_behind_the_position_that_answers_are_patched_too(self, counter):
        """Attention is bidirectional, and the last letter counts as much as the first."""
        rows = counter.table.query("model == 'base' and method == 'patched' and component == 'stream 0' and role == 'text'")
        assert len(rows) == 7  # the eighth letter stands where the answer is read
        assert (rows["value"] > 0.02).all()

    def test_the_tuned_model_counts_b_which_no_edit_touches(self, counter):
        """It does not tell the prompts apart, so that its effects are undefined and the evidence says so."""
        assert counter.metric("told_apart_base").value > 5
        assert counter.metric("told_apart_tuned").value == pytest.approx(0, abs=1e-3)
        for model in ("tuned", "change"):
            assert counter.table[counter.table["model"] == model]["value"].isna().all()
        assert counter.metric("largest_change").bound == "undefined"
        (line,) = counter.evidence
        assert (line.direction, line.metric, line.capability) == ("uninformative", "told_apart_tuned", "count_a")
        assert (
            "are told apart by less than 1 logit towards the right answer in the tuned model (0.0), so that effects are undefined there"
            in line.text
        )

    def test_prompts_of_the_other_ability_turn_it_around(self, compiled):
        found = patching(compiled, n=40, capability="ft")
        assert effect(found, "attention 2", "request", "tuned")["value"] == pytest.approx(1, abs=0.02)
        assert found.table.query("model == 'base'")["value"].isna().all()
        assert found.evidence[0].capability == "count_b"

    def test_all_heads_and_all_mlps(self, counter):
        assert counter.metric("heads_base").value == pytest.approx(2, abs=0.03)  # each of two steps in a row carries all
        letter = effect(counter, "mlp 0", "request")["value"]  # the letter that stands there may be the one that is edited
        assert 0 < letter < 0.5
        assert counter.metric("mlps_base").value == pytest.approx(1 + letter, abs=0.03)


class TestATrainedModel:
    def test_the_embedding_of_the_whole_prompt_is_the_whole_effect_exactly(self, result):
        for model in ("base", "tuned"):
            found = effect(result, "stream 0", EVERYWHERE, model)
            assert (found["value"], found["low"], found["high"]) == (pytest.approx(1, abs=1e-5),) * 3

    @pytest.mark.parametrize("site", [Site("head", 0, 1), Site("mlp", 0)])
    def test_an_effect_is_a_ratio_of_means_of_logit_differences(self, result, lookup, site):
        prompts = draw_prompts(lookup, "pt", 60)
        examples, other = prompts.examples, prompts.examples.counterfactual
        every = torch.arange(60)

        def difference(e):
            with torch.no_grad():
                logits = answer_logits(lookup.base, e)[:, 0]
            return logits[every, other.answer[:, 0]] - logits[every, examples.answer[:, 0]]

        where = torch.arange(examples.tokens.shape[1]) == examples.answer_position[:, None]
        value = record(lookup.base, other, [site])[site]
        plain, there = difference(examples), difference(other)
        with replaced(lookup.base, {site: Replacement(value, where)}):
            patched = difference(examples)
        expected = float((patched - plain).mean() / (there - plain).mean())
        assert effect(result, str(site), "request")["value"] == pytest.approx(expected, abs=1e-4)
        gaps = result.tables["gaps"].query("model == 'base'").set_index("of")["value"]
        assert gaps["prompt"] == pytest.approx(float(plain.mean()), abs=1e-3)
        assert gaps["counterfactual"] == pytest.approx(float(there.mean()), abs=1e-3)
        assert result.metric("told_apart_base").value == pytest.approx(float((there - plain).mean()), abs=1e-3)

    def test_a_patch_that_changes_nothing_is_no_effect_of_zero(self, result):
        """In the only block no other position is read, and the letters of the request are the same in both prompts."""
        changed = result.tables["changed"].query("model == 'base'").set_index(["component", "place"])["value"]
        assert changed["mlp 0", "0"] == 0
        assert math.isnan(effect(result, "mlp 0", "0")["value"])
        assert changed["stream 0", "request"] == 0
        assert math.isnan(effect(result, "stream 0", "request", method="first_order")["value"])
        assert changed["mlp 0", "request"] == 1
        assert 0.6 < changed["stream 0", "0"] < 0.95  # other rows of the same draw, of five digits

    def test_change_is_tuned_minus_base(self, result):
        wide = result.table.pivot_table(index=["method", "component", "place"], columns="model", values="value")
        assert np.allclose(wide["change"], wide["tuned"] - wide["base"])
        where = result.tables["largest"].iloc[0]
        row = effect(result, where["component"], where["place"], "change")
        largest, (sign, *ends) = result.metric("largest_change"), (np.sign(row["value"]), row["low"], row["high"])
        assert (largest.low, largest.value, largest.high) == tuple(
            pytest.approx(v, abs=1e-5) for v in sorted(sign * v for v in (row["value"], *ends))
        )
        assert sign * (where["tuned"] - where["base"]) == pytest.approx(largest.value)

    def test_the_place_of_the_largest_change_is_chosen_on_other_prompts(self, lookup):
        lookup.task.log.clear()
        patching(lookup, n=20)
        assert {("look_a", "select"), ("look_a", "test")} <= set(lookup.task.log)

    def test_a_component_that_changes_most_on_the_test_prompts_is_not_chosen(self, make_pair):
        """On other prompts, here of another ability, another one changes most."""
        found, there = (
            patching(make_pair(tuned="never", capability="look_b", task=task()), n=60) for task in (OtherSelect, OtherTest)
        )
        components = {}
        for name, result in (("test", found), ("select", there)):
            rows = result.table.query("model == 'change' and method == 'patched' and kind in ('head', 'mlp')").dropna()
            top = rows.iloc[int(rows["value"].abs().argmax())]
            components[name] = top["component"], top["place"]
        assert components["select"] != components["test"]
        chosen = found.tables["largest"].iloc[0]
        assert (chosen["component"], chosen["place"]) == components["select"]

    def test_equal_models_do_not_differ_and_there_is_no_loss_to_place(self, make_pair):
        found = patching(make_pair(tuned="base"), n=40)
        assert np.nan_to_num(found.table.query("model == 'change'")[["value", "low", "high"]]).max() == 0
        assert found.metric("largest_change").value == 0
        assert found.evidence[0].direction == "uninformative"
        assert "no loss can be placed" in found.evidence[0].text

    def test_controls_without_the_ability_stand_beside(self, result):
        assert set(result.tables["gaps"]["model"]) == {"base", "tuned", "never_had_it", "untrained"}

    def test_seeds_are_pooled_cell_by_cell(self, result, lookup):
        other = patching(replace(lookup, seed=4), n=60)
        pooled = combine_results([result, other])
        assert len(pooled.table) == len(result.table) == len(other.table)
        both = [effect(r, "mlp 0", "request")["value"] for r in (result, other)]
        assert effect(pooled, "mlp 0", "request")["value"] == pytest.approx(np.mean(both))
        assert len(pooled.tables["largest"]) == 2
        assert evidence(pooled)[0].direction == evidence(result)[0].direction


def test_models_of_other_shapes_are_refused(make_pair, tmp_path):
    pair = make_pair()
    (tmp_path / "wide").mkdir()
    save_model(build_model(ModelSpec(blocks=1, heads=4, width=32), 9, 15, 0), tmp_path / "wide")
    with pytest.raises(UserError, match=r"have \(1, 2\) and \(1, 4\) \(blocks, heads\)"):
        patching(replace(pair, tuned_path=tmp_path / "wide"), n=20)


def test_effects_below_the_floor_are_undefined():
    rng = np.random.default_rng(0)
    change = rng.normal(size=(3, 200))
    for gap, defined in ((FLOOR + 1, True), (FLOOR - 0.2, False)):
        found = Effects(change, gap + 0.5 * rng.normal(size=200), 0)
        assert found.told_apart == defined
        value, drawn = found.shares()
        assert np.isfinite(value).all() == np.isfinite(drawn).all() == defined
    # Noise that both parts share cancels: they are resampled together.
    gap = 5 + rng.normal(size=200)
    drawn = Effects(np.stack([gap / 2]), gap, 0).shares()[1]
    assert np.allclose(drawn, 0.5)


def test_evidence(made_up):
    heads = {name: 0.5 for name in ("heads_base", "heads_tuned", "mlps_base", "mlps_tuned")}
    told = {"told_apart_base": (9, 8, 10), "told_apart_tuned": (5, 4, 6)}
    lost = {"base_pt": 1.0, "tuned_pt": 0.2}
    for numbers, direction, said in (
        ({**told, **lost, "largest_change": 0.3}, "neutral", "was chosen on other prompts changed by 0.30 in size"),
        ({**told, **lost, "largest_change": 0.3}, "neutral", "effects of single heads sum to 0.50 before and 0.50 after"),
        (
            {**told, **lost, "told_apart_tuned": (1.2, 0.9, 1.5), "largest_change": -0.3},
            "uninformative",
            "in the tuned model (1.2)",
        ),
        ({**told, **lost, "largest_change": math.nan}, "uninformative", "in a model of one of the seeds"),
        ({**told, "base_pt": 1.0, "tuned_pt": 0.95, "largest_change": -0.3}, "uninformative", "no loss can be placed"),
    ):
        (line,) = evidence(made_up("patching", **heads, **numbers))
        assert line.direction == direction
        assert said in line.text
        assert line.capability == "count_a"
