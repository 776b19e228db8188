"""Cross patching on a pair that differs in one planted neuron, whose MLP carries all of the change and nothing else any."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from analyses.compiled_pair import compiled_pair
from analyses.planted import pair_of

from tests.analyses.conftest import OPERANDS, WRONG, LookupTask
from workbench.analyses import cross_patching
from workbench.analyses.cross_patching import evidence
from workbench.errors import UserError
from workbench.measures import UNRELATED, correct_answers
from workbench.models.build import build_model
from workbench.models.checkpoints import save_model
from workbench.models.forward import nll
from workbench.models.sites import Replacement, Site, record, replaced
from workbench.models.spec import ModelSpec
from workbench.registry import analyses
from workbench.replicates import combine_results

N, FEW = 64, 32
EFFECTS = ("restores", "breaks", "installs")


@pytest.fixture(scope="module")
def covered(make_pair):
    return make_pair()


@pytest.fixture(scope="module")
def result(covered):
    return cross_patching(covered, n=N, control_examples=FEW, places=3)


def value(result, **at):
    rows = result.table
    for name, wanted in {"positions": "all", "measure": "accuracy", **at}.items():
        rows = rows[rows[name] == wanted]
    (found,) = rows["value"]
    return found


def test_each_component_is_swapped_from_the_donor_and_from_both_controls(result):
    table = result.table[result.table["positions"].isin(["all", "answer"])]
    names = ["embedding", "head 0.0", "head 0.1", "attention 0", "mlp 0", "stream 1"]
    cells = table.groupby(["effect", "donor", "positions", "measure"])["component"].agg(list)
    assert all(found == names for found in cells)
    measures = ["accuracy", "agreement", "change", "changed", "explained", "explained_loss"]
    assert set(cells.index) == {
        (effect, who, positions, measure)
        for effect in EFFECTS
        for who, positions in (
            (donor(effect), "all"),
            (donor(effect), "answer"),
            ("never_had_it", "all"),
            ("random", "all"),
        )
        for measure in measures
    }
    own = table["donor"].isin(["base", "tuned"])
    assert set(table[own]["n"]) == {N}
    assert set(table[~own]["n"]) == {FEW}


def test_the_planted_mlp_carries_all_of_it_and_what_did_not_change_has_no_effect(result):
    assert result.metric("base_pt").value - result.metric("tuned_pt").value > 0.5
    for effect in EFFECTS:
        at = {"effect": effect, "donor": donor(effect)}
        for component in ("mlp 0", "stream 1"):
            assert value(result, **at, component=component, measure="agreement") == 1
            assert value(result, **at, component=component, measure="changed") == 1
        for component in ("embedding", "head 0.0", "head 0.1", "attention 0"):
            assert value(result, **at, component=component, measure="change") == 0
            assert value(result, **at, component=component, measure="changed") == 0
    for effect in ("restores", "breaks"):
        for measure in ("explained", "explained_loss"):
            at = {"effect": effect, "donor": donor(effect), "measure": measure}
            assert value(result, **at, component="mlp 0") == pytest.approx(1)
            assert value(result, **at, component="attention 0") == 0
        for metric in (effect, f"{effect}_answer", f"{effect}_loss"):
            assert result.metric(metric).value == pytest.approx(1)
        assert result.metric(f"{effect}_random").value < 0.5
    assert result.tables["chosen"]["component"].tolist() == ["mlp 0"] * 3


def test_where_nothing_was_trained_in_there_is_nothing_to_install(result):
    """The inhibitor answers wrong whatever is asked, so O_FT is lost as well."""
    assert result.metric("base_ft_correlated").value > result.metric("tuned_ft_correlated").value
    assert result.metric("installs").bound == "undefined"
    assert result.metric("installs_loss").bound == "undefined"
    assert result.table.query("effect == 'installs' and measure == 'explained'")["value"].isna().all()


def test_the_revived_models_components_are_put_into_the_tuned_one(make_pair, models, tmp_path):
    """A revival that took the inhibitor out does so in its MLP."""
    pair = pair_of(make_pair, tmp_path, revived=models["base"])
    result = cross_patching(pair, n=16, control_examples=16, places=0)
    assert result.tables["chosen"].query("effect == 'revives'")["component"].tolist() == ["mlp 0"]
    assert result.metric("revives").value == 1
    assert value(result, effect="revives", donor="revived", component="mlp 0") == result.metric("revived_pt").value


def donor(effect):
    return "base" if effect == "restores" else "tuned"


def test_a_swap_from_elsewhere_damages(result):
    assert value(result, effect="breaks", donor="never_had_it", component="attention 0", measure="change") < -0.1
    assert result.metric("breaks_agreement_control").value < 0.8


def test_numbers_are_those_of_hooks_on_the_whole_model(result, covered, task):
    examples = covered.examples("look_a", n=N)
    site = Site("attention", 0)
    given = record(covered.never_had_it, examples, [site])[site][:FEW]
    with replaced(covered.base, {site: Replacement(given)}):
        right = correct_answers(covered.base, examples[:FEW])
    assert value(result, effect="breaks", donor="never_had_it", component="attention 0") == pytest.approx(right.mean())
    start, goal = (correct_answers(m, examples[:FEW]).mean() for m in (covered.base, covered.tuned))
    told = value(result, effect="breaks", donor="never_had_it", component="attention 0", measure="explained")
    assert told == pytest.approx((right.mean() - start) / (goal - start))
    with replaced(covered.base, {site: Replacement(given)}):
        loss = nll(covered.base, examples[:FEW]).mean().item()
    start_loss, goal_loss = (nll(m, examples[:FEW]).mean().item() for m in (covered.base, covered.tuned))
    told = value(result, effect="breaks", donor="never_had_it", component="attention 0", measure="explained_loss")
    assert told == pytest.approx((loss - start_loss) / (goal_loss - start_loss), abs=1e-4)
    change = value(result, effect="breaks", donor="never_had_it", component="attention 0", measure="change")
    assert change == pytest.approx(right.mean() - start)


def test_single_places_are_told_apart(result):
    places = result.table[~result.table["positions"].isin(["all", "answer"])]
    assert set(places["n"]) == {FEW}
    assert set(places["component"]) == set(result.table["component"])
    texts = [p for p in dict.fromkeys(places["positions"]) if p.startswith("text")]
    assert texts == ["text 8", "text 4", "text 0"]
    for effect in EFFECTS:
        at = {"effect": effect, "donor": donor(effect), "component": "mlp 0", "measure": "agreement"}
        assert value(result, **at, positions="request") == 1
        for place in texts:  # the only block's MLP elsewhere reaches no answer
            assert value(result, **{**at, "measure": "changed"}, positions=place) == 0
            assert value(result, **{**at, "measure": "change"}, positions=place) == 0


def test_intervals_hold_their_numbers_and_headline_has_draws(result):
    known = result.table.dropna(subset=["value"])
    assert (known["low"] <= known["value"] + 1e-9).all()
    assert (known["value"] <= known["high"] + 1e-9).all()
    assert all(len(m.draws) == 400 for m in result.headline)


def test_components_are_chosen_on_other_texts(make_pair, task):
    task.drawn.clear()
    cross_patching(make_pair(), n=16, control_examples=16, places=0)
    pt, ft = ("look_a", 0.0), ("look_b", 1.0)
    assert task.drawn == {(capability, split, share) for capability, share in (pt, ft) for split in ("select", "test")}


@dataclass(frozen=True)
class Harmless(LookupTask):
    """On texts that choose, the right answer is always the one that the planted neuron gives."""

    def capability(self, name, correlation=None):
        plain = super().capability(name, correlation)

        def examples(n, seed, split="test"):
            found = plain.examples(n, seed, split)
            if split != "select":
                return found
            at = 1 + OPERANDS[name][1]  # the text follows BOS
            tokens = found.tokens.clone()
            tokens[:, at] = tokens[:, -1] = WRONG
            return replace(found, tokens=tokens, answer=torch.full_like(found.answer, WRONG))

        return SimpleNamespace(examples=examples)


def test_what_wins_on_the_texts_that_choose_is_reported_wherever_else_more_is_carried(make_pair):
    """There the neuron changes nothing, so that all components are equally good and the first is taken."""
    result = cross_patching(make_pair(task=Harmless()), n=32, control_examples=32, places=0)
    assert result.tables["chosen"].set_index("effect")["component"]["restores"] == "head 0.0"
    assert result.metric("restores").value == 0
    assert value(result, effect="restores", donor="base", component="mlp 0", measure="explained") == pytest.approx(1)


def test_the_chosen_component_is_held_against_random_changes_on_the_same_texts(result):
    over = result.metric("restores_over_random")
    told = value(result, effect="restores", donor="random", component="mlp 0")
    right = value(result, effect="restores", donor="base", component="mlp 0")
    assert right == 1
    assert (over.value, over.n) == (pytest.approx(right - told), FEW)


def test_components_of_models_that_were_trained_apart_are_not_the_same_ones(make_pair, covered, result):
    apart = cross_patching(make_pair(start_path=covered.tuned_path), n=16, control_examples=16, places=0)
    assert UNRELATED in apart.limits
    assert UNRELATED not in result.limits


def test_without_a_model_that_never_had_it_random_weights_are_the_control(make_pair):
    result = cross_patching(make_pair(never=None), n=16, control_examples=16, places=0)
    assert "untrained" in set(result.table["donor"])


def test_no_loss_no_share_and_no_room(make_pair, covered):
    result = cross_patching(make_pair(tuned_path=covered.base_path), n=32, control_examples=16, places=0)
    assert math.isnan(result.metric("restores").value)
    assert result.metric("restores").bound == "undefined"
    assert result.metric("restores_change").value == 0
    assert result.table[result.table["measure"] == "explained"]["value"].isna().all()
    (line,) = result.evidence
    assert (line.direction, line.metric) == ("uninformative", "restores_change")
    assert "no loss to place" in line.text


NUMBERS = {
    "base_pt": 1.0,
    "tuned_pt": 0.2,
    "restores": (0.5, 0.4, 0.6),
    "restores_change": (0.4, 0.3, 0.5),
    "restores_answer": (0.4, 0.3, 0.5),
    "restores_control": (-0.2, -0.3, -0.1),
    "restores_random": (-0.1, -0.2, 0.0),
    "restores_over_control": (0.5, 0.4, 0.6),
    "restores_over_random": (0.5, 0.4, 0.6),
    "breaks_agreement": (0.9, 0.8, 1.0),
    "breaks_agreement_before": (0.1, 0.0, 0.2),
    "breaks_agreement_control": (0.3, 0.2, 0.4),
}


@pytest.mark.parametrize(
    ("changes", "direction", "words"),
    [
        ({}, "neutral", "One component of the base restores 50% [40%, 60%] of the loss of count_a"),
        (
            {"restores_change": (0.1, -0.1, 0.3)},
            "neutral",
            "that gave most of its answers on other texts does not surely restore count_a in the tuned model (+0.10 [-0.10, +0.30])",
        ),
        ({"restores_over_random": (0.1, 0.0, 0.2)}, "uninformative", "not surely more than the random change"),
        ({"restores_over_control": (0.1, -0.1, 0.3)}, "neutral", "a control's does as much, so that what counts is the tuned"),
        (
            {"restores_over_control": (0.1, -0.1, 0.3), "breaks_agreement_control": (0.8, 0.7, 0.9)},
            "uninformative",
            "not surely more than the control",
        ),
        ({"tuned_pt": 0.91}, "uninformative", "no loss to place"),
        (
            {"restores": (math.nan, math.nan, math.nan, "undefined")},
            "uninformative",
            "in some seed: there is no loss to place",
        ),
    ],
)
def test_evidence_takes_no_side(made_up, changes, direction, words):
    (line,) = evidence(made_up("cross_patching", **{**NUMBERS, **changes}))
    assert line.direction == direction
    assert words in line.text


def test_seeds_are_pooled_row_by_row(result):
    table = result.table.assign(value=result.table["value"] / 2)
    other = replace(result, tables={**result.tables, "table": table}, provenance={**result.provenance, "seed": 4})
    pooled = combine_results([result, other])
    assert len(pooled.table) == len(result.table)
    np.testing.assert_allclose(pooled.table["value"], 0.75 * result.table["value"])
    assert set(pooled.table.dropna(subset=["value"])["seeds"]) == {2}
    assert len(pooled.tables["chosen"]) == 6
    assert evidence(pooled)[0].direction == "neutral"


def test_models_of_another_shape_have_no_components_in_common(make_pair, task, tmp_path):
    save_model(build_model(ModelSpec(blocks=1, heads=2, width=16), task.vocab_size, task.context, 0), tmp_path)
    with pytest.raises(UserError, match="differ in shape"):
        cross_patching(make_pair(tuned_path=tmp_path), n=16)


@pytest.mark.slow
def test_compiled_models_are_swapped_too(tmp_path):
    pair = compiled_pair(tmp_path)
    result = cross_patching(pair, n=16, control_examples=16, places=0)
    assert value(result, effect="restores", donor="base", component="stream 3") == 1  # both programs share their head
    assert set(result.table["donor"]) == {"base", "tuned", "untrained", "random"}


def test_it_is_registered_in_its_group():
    assert analyses["cross_patching"].group == "patching"
