"""The evidence card: its lines, what is missing among them, and a paragraph that says what speaks for and against."""

from dataclasses import replace

import pytest

from workbench.card import LINES, lines, quote
from workbench.results import Evidence
from workbench.verdict import Verdict


def line(analysis, direction, metric="number", value=0.5):
    return Evidence(analysis, metric, value, value - 0.1, value + 0.1, 500, direction, f"{analysis} says so.", "count_a")


@pytest.fixture
def verdict():
    evidence = (
        line("logit_lens", "neutral"),
        line("revival", "masked", "ratio", 0.2),
        line("behaviour", "neutral", "change_pt"),
        line("behaviour", "neutral", "collateral"),
        line("direction", "masked"),
        line("probing", "uninformative", "room_never"),
    )
    return Verdict("wrapped", "wrapped", "count_a", (0, 1), "masked", "it went and came back.", evidence)


def test_lines_stand_in_a_fixed_order_with_those_that_were_not_run(verdict):
    found = lines(verdict)
    assert [one.analysis for one in found] == ["behaviour", "behaviour", *list(LINES)[1:], "logit_lens"]
    missing = [one.analysis for one in found if one.evidence is None]
    assert missing == ["pruning", "cross_patching", "weights", "connectivity"]
    ratio = next(one for one in found if one.analysis == "revival")
    assert (ratio.title, ratio.number, ratio.points) == (
        "revival ratio",
        "steps against never had it 0.20 [0.10, 0.30]",
        "points to masked",
    )
    assert (ratio.texts, {one.texts for one in found if one.evidence is None}) == ("500", {""})
    assert {(one.number, one.points) for one in found if one.evidence is None} == {("", "not run")}
    assert found[-1].title == "logit lens"


def test_the_trained_ability_has_only_the_lines_that_are_there():
    trained = Verdict("wrapped", "wrapped", "count_b", (0,), "learned", "it did.", (line("behaviour", "learned"),), kept=False)
    assert [one.analysis for one in lines(trained)] == ["behaviour"]
    assert quote(trained) == "In wrapped (seed 0), counting b is learned: it did."


def test_the_paragraph_names_who_agrees_and_who_does_not(verdict):
    assert quote(verdict) == (
        "In wrapped (seeds 0 and 1), counting a is masked: it went and came back. "
        "Direction also points to masked. "
        "Logit lens takes no side. "
        "Probe gap had no room to show anything."
    )
    against = Verdict("w", "w", "count_a", (), "masked", "r.", (line("probing", "erased"),))
    assert quote(against) == "In w (no seed yet), counting a is masked: r. Probe gap points to erased."


def test_evidence_on_both_sides_of_an_undecided_verdict_is_told():
    evidence = (line("pruning", "masked"), line("direction", "masked"), line("probing", "erased"), line("revival", "neutral"))
    said = quote(Verdict("w", "w", "count_a", (0,), "altered", "r.", evidence))
    assert said == (
        "In w (seed 0), counting a is altered: r. Pruning and direction point to masked. Probe gap points to erased."
    )


def test_what_rests_on_weights_alone_has_no_texts():
    norm = replace(line("weights", "neutral", "relative_norm"), n=0)
    (found,) = [one for one in lines(Verdict("w", "w", "count_a", (), "masked", "r.", (norm,))) if one.evidence]
    assert found.texts == ""
