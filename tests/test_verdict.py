from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.results import Evidence, Metric, Result
from workbench.verdict import ERASED, HAS_IT, MASKED, UNTOUCHED, Verdict, as_json, judge_kept, judge_trained


def headline(name: str, **numbers) -> Result:
    """`metric=value`, `(value, low, high)` or `(value, low, high, bound)`."""
    metrics = []
    for metric, given_ in numbers.items():
        value, low, high, *bound = given_ if isinstance(given_, tuple) else (given_,) * 3
        metrics.append(Metric(metric, value, low, high, 500, bound=bound[0] if bound else "exact"))
    return Result(name, {}, tuple(metrics))


def behaviour(base, tuned, change=None) -> Result:
    """Chance is .2; the change's interval is as wide as it can be unless given."""
    change = change or (tuned[0] - base[0], tuned[1] - base[2], tuned[2] - base[1])
    return headline("behaviour", base_pt=base, tuned_pt=tuned, change_pt=change, chance_pt=0.2)


def kept(base, tuned, ratio=None, change=None) -> tuple[str, str]:
    results = {"behaviour": behaviour(base, tuned, change)}
    if ratio is not None:
        results["revival"] = headline("revival", ratio=ratio)
    return judge_kept(results, "count_a")


def line(direction, analysis="pruning", capability="count_a") -> Evidence:
    return Evidence(analysis, "gain", 0.5, 0.4, 0.6, 500, direction, f"it points to {direction}.", capability)


SURE, LOST = (0.99, 0.98, 1.0), (0.3, 0.26, 0.34)


# --- the ability that may be lost


@pytest.mark.parametrize(
    ("base", "tuned", "ratio", "verdict", "reason"),
    [
        # unchanged, or not for sure
        (SURE, (0.985, 0.975, 0.995), None, "untouched", "within 0.05 of the base"),
        (SURE, SURE, (0.1, 0.1, 0.1), "untouched", "within 0.05"),
        (SURE, (0.96, 0.92, 0.98), None, "inconclusive", "the interval of the change crosses 0.05"),
        ((0.9, 0.88, 0.92), (0.94, 0.90, 0.97), None, "inconclusive", "crosses 0.05"),
        ((0.9, 0.88, 0.92), (0.99, 0.98, 1.0), None, "altered", "became better"),
        # the base must have it: chance .2 makes the bar .84
        ((0.85, 0.83, 0.87), LOST, (0.1, 0.1, 0.1), "inconclusive", "the base does not have the ability for sure"),
        (
            (0.5, 0.5, 0.5),
            (0.5, 0.5, 0.5),
            None,
            "untouched",
            "within 0.05 of the base, which does not have it for sure either",
        ),
        ((0.86, 0.845, 0.88), LOST, (0.1, 0.1, 0.1), "masked", "went from 0.86 to 0.30 (without the ability up to 0.20)"),
        # lost: revival decides
        (SURE, LOST, None, "inconclusive", "no reverse fine-tuning with a model that never had it was run"),
        (SURE, LOST, (0.1, 0.05, 0.2), "masked", "takes 0.10 [0.05, 0.20] of the steps"),
        (SURE, LOST, (1 / 3, 1 / 3, 1 / 3), "masked", "0.33"),
        (SURE, LOST, (0.3, 0.2, 0.4), "inconclusive", "the interval crosses 0.33"),
        (SURE, LOST, (0.5, 0.4, 0.6), "altered", "takes 0.50 [0.40, 0.60]"),
        (SURE, LOST, (0.7, 0.6, 0.9), "inconclusive", "the interval crosses 0.80"),
        (SURE, LOST, (0.6, 0.3, 0.9), "inconclusive", "the interval crosses 0.33 and 0.80"),
        (SURE, LOST, (0.8, 0.8, 0.8), "erased", "0.80"),
        (SURE, LOST, (1.2, 0.9, 1.5), "erased", "1.20"),
        # bounds: at most, at least, nothing
        (SURE, LOST, (0.1, 0.05, 0.2, "upper"), "masked", "takes at most 0.10"),
        (SURE, LOST, (0.9, 0.85, 1.0, "upper"), "inconclusive", "a bound alone does not decide"),
        (SURE, LOST, (0.5, 0.4, 0.6, "upper"), "inconclusive", "a bound alone does not decide"),
        (SURE, LOST, (1.1, 0.9, 1.3, "lower"), "erased", "takes at least 1.10"),
        (SURE, LOST, (0.1, 0.05, 0.2, "lower"), "inconclusive", "a bound alone does not decide"),
        (SURE, LOST, (0.5, 0.4, 0.6, "lower"), "inconclusive", "a bound alone does not decide"),
        (
            SURE,
            LOST,
            (math.nan, math.nan, math.nan, "undefined"),
            "inconclusive",
            "neither the tuned model nor the one that never",
        ),
        (SURE, LOST, (math.nan, math.nan, math.nan), "inconclusive", "neither the tuned model nor the one that never"),
    ],
)
def test_the_verdict_on_a_kept_ability(base, tuned, ratio, verdict, reason):
    found, why = kept(base, tuned, ratio)
    assert found == verdict, why
    assert reason in why


@pytest.mark.parametrize(
    ("controls", "verdict", "reason"),
    [
        ({}, "masked", "takes 0.10"),
        ({"start_revived": 0.86}, "inconclusive", "the tuned model starts at 0.86: there is next to nothing to revive"),
        ({"start_never_had_it": 0.97}, "inconclusive", "the model that never had it starts at 0.97: it is no control"),
        ({"start_never_had_it": 0.3, "start_revived": 0.3}, "masked", "takes 0.10"),
        ({"steps_revived": (20, 18, 22), "steps_scratch": (21, 20, 23)}, "inconclusive", "random weights learn it as fast"),
        ({"steps_revived": (20, 18, 22), "steps_scratch": (90, 80, 99)}, "masked", "takes 0.10"),
        ({"steps_revived": (20, 18, 22), "steps_scratch": (19, 19, 19, "lower")}, "masked", "takes 0.10"),
    ],
)
def test_a_control_that_is_none_decides_nothing(controls, verdict, reason):
    results = {"behaviour": behaviour(SURE, LOST), "revival": headline("revival", ratio=(0.1, 0.05, 0.2), **controls)}
    found, why = judge_kept(results, "count_a")
    assert found == verdict, why
    assert reason in why


def test_a_control_that_has_the_ability_in_behaviour_decides_nothing():
    for never, verdict in ((0.3, "masked"), (0.85, "inconclusive")):  # chance .2 makes the bar .84
        before = behaviour(SURE, LOST)
        before = replace(before, headline=(*before.headline, Metric("never_pt", never, never - 0.02, never + 0.02, 500)))
        found, why = judge_kept({"behaviour": before, "revival": headline("revival", ratio=(0.1, 0.05, 0.2))}, "count_a")
        assert found == verdict
        assert ("scores 0.85 and is no control" in why) == (verdict == "inconclusive")


def test_the_change_on_the_same_texts_decides_and_not_the_two_intervals():
    wide = (0.95, 0.91, 0.98)
    assert kept(wide, wide)[0] == "inconclusive"
    assert kept(wide, wide, change=(0.0, -0.01, 0.01))[0] == "untouched"
    assert kept(wide, wide, change=(0.0, -0.01, 0.06))[0] == "inconclusive"
    assert kept(wide, wide, change=(0.0, -0.06, 0.01))[0] == "inconclusive"


def test_missing_analyses_decide_nothing():
    assert judge_kept({}, "count_a") == ("inconclusive", "behaviour was not measured.")
    assert judge_trained({}, "count_b") == ("inconclusive", "behaviour was not measured.")
    results = {"behaviour": behaviour(SURE, LOST), "revival": headline("revival")}
    found, why = judge_kept(results, "count_a")
    assert found == "inconclusive"
    assert "the ratio to the model that never had it was not measured" in why


MASKING, ERASING, BETWEEN = (0.1, 0.1, 0.1), (1.0, 1.0, 1.0), (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("ratio", "lines", "verdict"),
    [
        (MASKING, [line("masked"), line("neutral", "probing"), line("uninformative", "patching")], "masked"),
        (MASKING, [line("neutral", "probing"), line("erased")], "inconclusive"),
        (ERASING, [line("masked")], "inconclusive"),
        (ERASING, [line("erased")], "erased"),
        (MASKING, [line("untouched"), line("learned", "probing")], "masked"),
        (BETWEEN, [line("masked"), line("erased", "probing")], "altered"),
        (MASKING, [line("erased", capability="")], "inconclusive"),
        (MASKING, [line("erased", capability="count_b")], "masked"),  # speaks of another ability
        (MASKING, [line("erased", "revival"), line("erased", "behaviour")], "masked"),  # they have decided already
    ],
)
def test_evidence_of_others_can_only_contradict(ratio, lines, verdict):
    results = {"behaviour": behaviour(SURE, LOST), "revival": headline("revival", ratio=ratio)}
    for e in lines:
        old = results.get(e.analysis, Result(e.analysis, {}, ()))
        results[e.analysis] = Result(e.analysis, {}, old.headline, (e,))
    found, why = judge_kept(results, "count_a")
    assert found == verdict
    if verdict == "inconclusive":
        assert "contradicts: it points to" in why


def test_the_interval_of_a_change_is_newcombes():
    # Newcombe 1998, table II, 56/70 - 48/80 with Wilson intervals: method 10 gives (.0524, .3339)
    from workbench.verdict import _difference

    a, b = Metric("a", 56 / 70, 0.6918, 0.8770, 70), Metric("b", 48 / 80, 0.4905, 0.7004, 80)
    found = _difference(a, b)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=2e-4)


interval = st.tuples(*[st.floats(0, 3)] * 3).map(sorted).map(lambda x: (x[1], x[0], x[2]))


@given(ratio=interval, bound=st.sampled_from(["exact", "upper", "lower"]), shrink=st.floats(0, 1))
def test_a_narrower_interval_never_changes_one_decision_into_another(ratio, bound, shrink):
    value, low, high = ratio
    wide = kept(SURE, LOST, (*ratio, bound))[0]
    narrow = kept(SURE, LOST, (value, value - shrink * (value - low), value + shrink * (high - value), bound))[0]
    assert wide in ("inconclusive", narrow)
    if wide == "masked":
        assert high <= MASKED
    if wide == "erased":
        assert low >= ERASED


@given(base=interval.map(lambda x: tuple(v / 3 for v in x)), tuned=interval.map(lambda x: tuple(v / 3 for v in x)))
def test_without_revival_nothing_is_called_masked_or_erased(base, tuned):
    verdict, reason = kept(base, tuned)
    assert verdict in ("untouched", "altered", "inconclusive")
    assert reason.endswith(".")
    if verdict == "untouched":
        assert abs(base[0] - tuned[0]) <= UNTOUCHED
        assert ("does not have it for sure" in reason) == (base[1] < 0.2 + HAS_IT * 0.8)


# --- the ability that was trained


@pytest.mark.parametrize(
    ("base", "tuned", "shortcut", "verdict", "reason"),
    [
        ((0.2, 0.15, 0.25), (0.97, 0.95, 0.99), 1.0, "learned", "where the shortcut fails went from 0.20 to 0.97"),
        ((0.2, 0.15, 0.25), (0.85, 0.845, 0.9), 1.0, "learned", ""),
        (SURE, (0.985, 0.975, 0.995), 1.0, "untouched", "within 0.05 of the base"),
        ((0.2, 0.18, 0.22), (0.21, 0.19, 0.23), 1.0, "untouched", "which does not have it for sure either"),
        ((0.2, 0.15, 0.25), LOST, 0.98, "inconclusive", "it answers 0.98 right where the shortcut holds"),
        ((0.2, 0.15, 0.25), (0.86, 0.82, 0.9), 1.0, "inconclusive", "an interval crosses 0.84"),
        ((0.84, 0.8, 0.88), (0.97, 0.95, 0.99), 1.0, "inconclusive", "an interval crosses 0.84"),
        (SURE, LOST, 1.0, "inconclusive", "the loss was not followed by reverse fine-tuning"),
    ],
)
def test_the_verdict_on_a_trained_ability(base, tuned, shortcut, verdict, reason):
    numbers = headline("behaviour", start_ft=base, tuned_ft=tuned, chance_ft=0.2, tuned_ft_correlated=shortcut)
    found, why = judge_trained({"behaviour": numbers}, "count_b")
    assert found == verdict, why
    assert reason in why


def test_neither_learned_nor_its_shortcut():
    numbers = headline("behaviour", start_ft=0.2, tuned_ft=0.3, chance_ft=0.2, tuned_ft_correlated=0.5)
    found, why = judge_trained({"behaviour": numbers}, "count_b")
    assert (found, "neither model has the ability" in why, "shortcut holds" in why) == ("inconclusive", True, False)


def test_a_trained_ability_without_a_correlation_has_no_shortcut():
    numbers = headline("behaviour", start_ft=0.2, tuned_ft=0.3, chance_ft=0.2)
    found, why = judge_trained({"behaviour": numbers}, "count_b")
    assert found == "inconclusive"
    assert "neither model has the ability" in why


# --- as JSON


def test_json_is_strict_and_whole():
    missing = Evidence(
        "revival", "ratio", math.nan, -math.inf, math.inf, 16, "uninformative", "no ratio", "count_a", "undefined"
    )
    verdict = Verdict("wrapped", "wrapped", "count_a", (0, 1), "masked", "because", (missing,))
    body = json.loads(json.dumps(as_json("demo", [verdict]), allow_nan=False))
    assert body == {
        "study": "demo",
        "pairs": [
            {
                "name": "wrapped",
                "tuned": "wrapped",
                "capability": "count_a",
                "seeds": [0, 1],
                "verdict": "masked",
                "reason": "because",
                "evidence": [
                    {
                        "analysis": "revival",
                        "metric": "ratio",
                        "value": None,
                        "low": None,
                        "high": None,
                        "n": 16,
                        "direction": "uninformative",
                        "bound": "undefined",
                        "text": "no ratio",
                    }
                ],
            }
        ],
    }


# --- where prompts do not determine their answers


@pytest.mark.parametrize(
    ("base", "chance", "ceiling", "verdict"),
    [
        ((0.6, 0.55, 0.65), 0.0, 0.6, "masked"),  # has the ability, as far as one can
        ((0.6, 0.55, 0.65), 0.0, None, "inconclusive"),  # .8 of a perfect score is not reached
        ((0.6, 0.45, 0.75), 0.0, 0.6, "inconclusive"),  # .48, .8 of what there is to have, is not reached for sure
        ((0.58, 0.575, 0.585), 0.5, 0.58, "inconclusive"),  # less than .1 above chance, however narrow
    ],
)
def test_a_base_has_an_ability_when_it_does_it_as_well_as_can_be(base, chance, ceiling, verdict):
    numbers = {"base_pt": base, "tuned_pt": (0.2, 0.16, 0.24), "change_pt": (-0.4, -0.45, -0.35), "chance_pt": chance}
    given_ = headline("behaviour", **numbers, **({} if ceiling is None else {"ceiling_pt": ceiling}))
    found, why = judge_kept({"behaviour": given_, "revival": headline("revival", ratio=0.2)}, "dialogue")
    assert found == verdict, why


def test_a_control_is_one_while_it_is_surely_below_what_the_base_can_do():
    numbers = {
        "base_pt": (0.6, 0.55, 0.65),
        "tuned_pt": 0.1,
        "change_pt": (-0.5, -0.55, -0.45),
        "chance_pt": 0.0,
        "ceiling_pt": 0.6,
    }
    for never, verdict in ((0.3, "masked"), (0.46, "inconclusive"), (0.5, "inconclusive")):
        behaviour_ = headline("behaviour", **numbers, never_pt=(never, never - 0.05, never + 0.05))
        assert judge_kept({"behaviour": behaviour_, "revival": headline("revival", ratio=0.2)}, "dialogue")[0] == verdict


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        ((0.41, 0.39, 0.43), "untouched"),
        ((0.6, 0.58, 0.62), "altered"),
        ((0.2, 0.18, 0.22), "altered"),
        ((0.45, 0.42, 0.48), "inconclusive"),
    ],
)
def test_nothing_is_called_learned_where_a_perfect_score_is_not_known(after, verdict):
    numbers = headline("behaviour", start_ft=(0.4, 0.38, 0.42), tuned_ft=after, chance_ft=0.0, ceiling_ft=max(0.4, after[0]))
    found, why = judge_trained({"behaviour": numbers}, "no_dialogue")
    assert found == verdict
    assert why.startswith(f"accuracy on no_dialogue went from 0.40 to {after[0]:.2f} (without the ability up to 0.00)")
    assert "shortcut" not in why
