"""When a claim of the paper agrees with what was measured, and when that cannot be said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.apps.fake_store import N
from tests.paper.fake_grid import SPEC, changed, fake_grid, name
from workbench.paper.claims import CLAIMS, Claim, agreement, judge, outcome
from workbench.paper.contrasts import Contrast
from workbench.paper.grid import Contrasted, Grid, named
from workbench.runs import Store
from workbench.statistics import Interval
from workbench.studies.handle import Study
from workbench.studies.loading import load_study, parse_study

FINITE = st.floats(-5, 5)
KINDS = st.sampled_from(["yes", "partly", "no", "unclear", "not measured"])
OTHER = {"above": "below", "below": "above"}


@given(low=FINITE, width=st.floats(0, 3), threshold=FINITE, side=st.sampled_from(["above", "below"]))
def test_a_contrast_holds_when_its_whole_interval_is_on_the_predicted_side(low, width, threshold, side):
    interval = Contrasted(Interval(low + width / 2, low, low + width), 9, (low, low + width))
    found = outcome(interval, side, threshold)
    if low <= threshold <= low + width:
        assert found == "unclear"
    else:
        assert found == ("yes" if (low > threshold) == (side == "above") else "no")
    assert outcome(interval, OTHER[side], threshold) == {"yes": "no", "no": "yes"}.get(found, found)


@pytest.mark.parametrize("side", ["above", "below"])
def test_at_its_threshold_a_contrast_is_unclear(side):
    """Two cells that do not differ at all are no evidence that one is larger, and none that it is smaller."""
    for value, low, high in ((0.0, 0.0, 0.0), (0.1, 0.0, 0.2), (-0.1, -0.2, 0.0)):
        assert outcome(Contrasted(Interval(value, low, high), 9, (low, high)), side, 0.0) == "unclear"


@pytest.mark.parametrize("side", ["above", "below"])
def test_one_seed_decides_nothing(side):
    """Its interval knows nothing of the spread between seeds."""
    assert outcome(Contrasted(Interval(0.9, 0.8, 1.0), 500, (0.9,)), side, 0.5) == "unclear"


@pytest.mark.parametrize(
    ("outcomes", "whole"),
    [
        ([], "not measured"),
        (["not measured", "not measured"], "not measured"),
        (["yes", "yes"], "yes"),
        (["no", "no"], "no"),
        (["unclear"], "unclear"),
        (["yes", "no"], "partly"),
        (["yes", "unclear"], "partly"),
        (["yes", "not measured"], "partly"),
        (["no", "unclear"], "unclear"),
        (["no", "not measured"], "unclear"),
        (["unclear", "not measured"], "unclear"),
    ],
)
def test_a_claim_agrees_as_its_contrasts_do(outcomes, whole):
    assert agreement(outcomes) == whole
    assert agreement(outcomes[::-1]) == whole


@given(st.lists(st.sampled_from(["yes", "no", "unclear", "not measured"]), min_size=1))
def test_no_claim_agrees_even_partly_without_a_contrast_that_holds(outcomes):
    assert (agreement(outcomes) in ("yes", "partly")) == ("yes" in outcomes)


def contrast(side, threshold, cells=(("p5", 1e-3, 0.0),), metric="tuned_ft"):
    def of(grid):
        return grid.contrast("behaviour", named(metric), [name(*cell) for cell in cells])

    return Contrast("trained ability", side, threshold, of)


# tuned_ft of the cell is .90 with seed 0 and .92 with seed 1.
HOLDS, FAILS, UNCLEAR = contrast("above", 0.5), contrast("below", 0.5), contrast("above", 0.905)
MISSING = Contrast(
    "trained ability of cells that are not there", "above", 0.5, lambda grid: grid.contrast("behaviour", named("tuned_ft"), [])
)


@pytest.fixture
def judged(grid):
    def judge_one(*contrasts):
        claim = Claim("c", "It does.", contrasts, "Because our models are small.")
        result = judge(grid, [claim])
        return result.tables["claims"].iloc[0], result

    return judge_one


@pytest.mark.parametrize(
    ("contrasts", "agrees", "explained"),
    [
        ((HOLDS, HOLDS), "yes", False),
        ((HOLDS, FAILS), "partly", True),
        ((FAILS,), "no", True),
        ((UNCLEAR,), "unclear", True),
        ((MISSING,), "not measured", False),  # nothing that would need an explanation
        ((HOLDS, MISSING), "partly", True),
    ],
)
def test_a_claim_is_explained_only_where_a_measurement_does_not_agree(judged, contrasts, agrees, explained):
    row, _ = judged(*contrasts)
    assert row["agrees"] == agrees
    assert row["explanation"] == ("Because our models are small." if explained else "")
    assert row["says"] == "It does."


def test_a_row_says_what_was_predicted_and_what_was_measured(judged):
    _, result = judged(HOLDS, FAILS, MISSING)
    first, second, third = result.table.to_dict("records")
    assert (first["predicted"], second["predicted"]) == ("above 0.50", "below 0.50")
    assert first["value"] == pytest.approx(0.91)
    assert first["low"] < 0.91 < first["high"]
    assert (first["n"], first["seeds"], first["agrees"], first["why"]) == (N, 2, "yes", "")
    assert second["agrees"] == "no"
    assert math.isnan(third["value"])
    assert (third["n"], third["seeds"], third["agrees"]) == (0, 0, "not measured")
    assert "has no pairs of the kind that is compared" in third["why"]
    assert [m.value for m in result.headline[:2]] == pytest.approx([0.91, 0.91])
    assert result.headline[0].seeds == 2
    assert result.provenance["seeds"] == [0, 1]


def test_a_number_that_is_not_defined_was_not_measured(grid):
    def undefined(_):
        return Contrasted(Interval(math.nan, math.nan, math.nan), 10, (math.nan, 1.0))

    (row,) = judge(grid, [Claim("c", "It does.", (Contrast("a share of no loss", "above", 0.0, undefined),))]).table.to_dict(
        "records"
    )
    assert row["agrees"] == "not measured"
    assert "not defined" in row["why"]


def test_claims_have_names_sentences_and_contrasts_in_words():
    assert [claim.name for claim in CLAIMS] == ["q1", "q2", "q3", "q4", "pruning", "probing", "revival"]
    for claim in CLAIMS:
        assert claim.says.endswith(".")
        assert claim.contrasts
        assert all(c.side in OTHER and "_" not in c.says for c in claim.contrasts)


# Worked out by hand from `fake_grid.said`: means over rates, priors and seeds; .02 for seed 1 leaves .01 on average.
EXPECTED = {
    "q1": [0.95 - 0.06, 0.95 - (0.85 - 0.64 - 0.1 + 0.01), (0.85 - 0.1 + 0.01 - 0.3) / 0.7],
    "q2": [(0.9 - 0.2 * 0.65 - 0.1 * 2 / 3 + 0.01 - 0.3) / 0.7, 0.2 * 0.35],
    "q3": [(0.5 - 0.1) / 2, 0.1 / 2],  # the mean along a straight line changes by half of its end
    "q4": [(0.64 + 0.16) / 2 / 2, (0.1 + 0.3 + 0.3) / 3 / 2],
    "pruning": [0.6, 0.2, 0.95 - 0.7, 0.6, 0.1 + 0.5 * (0 + 0.5 + 0.8) / 3],
    "probing": [35 / 36, -0.4],  # one cell has lost its probe
    "revival": [math.sqrt(2) * 40 / 160, 10 / 40, 1 / 2],
}
AGREES = {
    "q1": ["yes", "yes", "yes"],
    "q2": ["no", "no"],
    "q3": ["yes", "yes"],
    "q4": ["yes", "yes"],
    "pruning": ["yes", "yes", "yes", "yes", "no"],
    "probing": ["yes", "yes"],
    "revival": ["unclear", "yes", "yes"],  # .25 under one seed, .5 under the other
}


@pytest.mark.parametrize("name", list(EXPECTED))
def test_every_contrast_is_the_number_that_it_says(whole, name):
    (claim,) = [claim for claim in CLAIMS if claim.name == name]
    result = judge(whole, [claim])
    assert list(result.table["value"]) == pytest.approx(EXPECTED[name], abs=1 / N)
    assert list(result.table["agrees"]) == AGREES[name]
    assert set(result.table["why"]) == {""}
    assert set(result.table["seeds"]) == {2}
    assert all(len(values.split(", ")) == 2 for values in result.table["by_seed"])


def test_cells_that_a_study_lacks_are_not_measured(grid):
    """The small grid has no medium prior and no small rate."""
    table = judge(grid).table.set_index("measured")
    (row,) = table[table["agrees"] == "not measured"].loc[["gain over random neurons there"]].to_dict("records")
    assert row["why"] == "the study 'small_grid' has no pairs of the kind that is compared; compare others."
    assert row["by_seed"] == ""


def test_a_seed_whose_base_lacks_the_ability_is_left_out(whole):
    """Reverse fine-tuning would have to take such a model beyond its base; one seed that is left decides nothing."""
    poor = changed(whole, "behaviour", "base_pt", 0.83, lambda pair, seed: "from=p5" in pair and seed == 1)
    (claim,) = [claim for claim in CLAIMS if claim.name == "revival"]
    result = judge(poor, [claim])
    compared = result.table.iloc[1]
    assert compared["value"] == pytest.approx(10 / 40)
    assert (compared["seeds"], compared["by_seed"], compared["agrees"]) == (1, "0.25", "unclear")
    assert "seed 1 is left out: the base of core,from=p5" in compared["why"]
    assert "in 0.83 of the texts, it would need 0.95" in compared["why"]
    assert list(result.table["seeds"]) == [2, 1, 2]  # only where the pairs with that base are compared
    poor = changed(whole, "behaviour", "base_pt", 0.83, lambda pair, seed: "from=p5" in pair)
    assert judge(poor, [claim]).table.iloc[1]["agrees"] == "not measured"


@pytest.mark.parametrize(
    ("scale", "preset", "low"),
    [("cpu", "grid_counting", 0.99), pytest.param("paper", "grid_counting_paper", 0.999, marks=pytest.mark.slow)],
)
def test_the_preset_has_the_cells_of_every_contrast(tmp_path, scale, preset, low):
    """A claim about cells that its study never runs could not be measured by anyone."""
    grid = Grid(Study(load_study(preset, seeds=[0]), Store(tmp_path)), scale)
    asked = []

    class Asked(Grid):
        def contrast(self, analysis, read, plus, minus=None, pool="mean"):
            asked.append((analysis, list(plus), minus))
            return Contrasted(Interval(1.0, 1.0, 1.0), 1, (1.0,))

    recorder = Asked(grid.study, scale)
    for claim in CLAIMS:
        for one in claim.contrasts:
            one.of(recorder)
    axes = grid.axes.set_index("pair")
    assert len(asked) > sum(len(claim.contrasts) for claim in CLAIMS)  # probes ask for their room first
    for analysis, plus, minus in asked:
        sides = [plus, *([minus] if minus is not None else [])]
        assert all(sides)
        for pair in (pair for side in sides for pair in side):
            assert axes["length"][pair] == "standard"
            assert axes["prior"][pair] in (low, 0.9, 0.5)
            assert analysis != "revival" or pair in grid.study.spec.revived
    assert {axes["prior"][pair] for _, plus, _ in asked for pair in plus} == {low, 0.9, 0.5}


def test_with_nothing_done_nothing_is_measured(tmp_path):
    body = {**SPEC, "finetune": {"short": SPEC["finetune"]["short"]}}
    grid = Grid(fake_grid(tmp_path, parse_study(body), done=lambda pair, analysis: False))
    result = judge(grid)
    assert set(result.table["agrees"]) == set(result.tables["claims"]["agrees"]) == {"not measured"}
    assert result.provenance["seeds"] == []
    assert np.isnan(result.table["value"]).all()
