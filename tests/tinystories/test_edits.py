"""Edits of Features: a swap swaps, what is added stands anywhere, and nothing else moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from tinystories.edits import has, mix_and_match, randomise, refusal, without
from tinystories.features import INSTRUCT_FEATURES, RULES, labels
from tinystories.instructions import Instruction
from workbench.errors import UserError
from workbench.seeds import numpy_generator

FEATURE = st.sampled_from(INSTRUCT_FEATURES)
INSTRUCTIONS = st.builds(
    Instruction,
    st.lists(FEATURE, unique=True).map(tuple),
    st.sampled_from([(), ("oak",)]),
    st.sampled_from([None, "A day out."]),
    st.sampled_from([None, "It rained."]),
)
SWAPS = st.dictionaries(FEATURE, FEATURE, min_size=1).map(lambda d: {a: b for a, b in d.items() if a != b}).filter(bool)


def only_features_differ(a: Instruction, b: Instruction) -> bool:
    return replace(a, features=()) == replace(b, features=())


# Has and without


@given(INSTRUCTIONS, FEATURE)
def test_without_takes_one_out_and_leaves_the_others_in_order(instruction: Instruction, feature: str) -> None:
    left = without(instruction, feature)
    assert not has(left, feature)
    assert left.features == tuple(x for x in instruction.features if x != feature)
    assert only_features_differ(left, instruction)
    assert without(left, feature) == left
    assert has(instruction, feature) == (left != instruction)


# Mix and match


def test_one_swap_swaps() -> None:
    before = Instruction(("Conflict", "Foreshadowing", "Twist"), ("oak",))
    assert mix_and_match(before, {"Foreshadowing": "Dialogue"}) == Instruction(("Conflict", "Dialogue", "Twist"), ("oak",))


@given(INSTRUCTIONS, SWAPS)
def test_every_name_is_replaced_once_and_in_its_place(instruction: Instruction, swaps: Mapping[str, str]) -> None:
    after = mix_and_match(instruction, swaps)
    expected: list[str] = []
    for name in instruction.features:
        new = swaps.get(name, name)
        if new not in expected:
            expected.append(new)
    assert list(after.features) == expected
    assert only_features_differ(after, instruction)


@given(INSTRUCTIONS, FEATURE, FEATURE)
def test_one_swap_leaves_none_of_the_old_and_a_second_time_changes_nothing(
    instruction: Instruction, old: str, new: str
) -> None:
    if old == new:
        return
    after = mix_and_match(instruction, {old: new})
    assert not has(after, old)
    assert has(after, new) == (has(instruction, old) or has(instruction, new))
    assert len(after.features) == len(instruction.features) - (has(instruction, old) and has(instruction, new))
    assert mix_and_match(after, {old: new}) == after


@given(INSTRUCTIONS, FEATURE, FEATURE)
def test_an_exchange_undoes_itself(instruction: Instruction, a: str, b: str) -> None:
    if a != b:
        assert mix_and_match(mix_and_match(instruction, {a: b, b: a}), {a: b, b: a}) == instruction


def test_a_chain_does_not_run_on_and_what_stands_twice_stands_first() -> None:
    chain = {"Twist": "Conflict", "Conflict": "Dialogue"}
    assert mix_and_match(Instruction(("Twist", "Conflict")), chain).features == ("Conflict", "Dialogue")
    assert mix_and_match(Instruction(("Dialogue", "BadEnding", "Twist")), {"Twist": "Dialogue"}).features == (
        "Dialogue",
        "BadEnding",
    )
    assert mix_and_match(Instruction(("Twist", "BadEnding", "Dialogue")), {"Twist": "Dialogue"}).features == (
        "Dialogue",
        "BadEnding",
    )


@pytest.mark.parametrize(
    ("swaps", "complaint"),
    [
        ({}, "no pair to swap; name one"),
        ({"Twist": "Twist"}, "swaps Twist for itself"),
        ({"Dialogue": "Conflict", "Twist": "Twist"}, "swaps Twist for itself"),
        ({"Twists": "Dialogue"}, "no feature 'Twists'; did you mean 'Twist'"),
        ({"Twist": "Dialog"}, "no feature 'Dialog'; did you mean 'Dialogue'"),
    ],
)
def test_a_mapping_that_would_do_nothing_is_refused(swaps: Mapping[str, str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        mix_and_match(Instruction(("Conflict",)), swaps)


# Randomise


@given(INSTRUCTIONS, FEATURE, st.integers(0, 1000))
def test_the_feature_is_there_once_and_the_others_keep_their_order(instruction: Instruction, feature: str, seed: int) -> None:
    after = randomise(instruction, feature, np.random.default_rng(seed))
    assert after.features.count(feature) == 1
    assert without(after, feature) == without(instruction, feature)
    assert randomise(after, feature, np.random.default_rng(seed)) == after
    if has(instruction, feature):
        assert after == instruction


@pytest.mark.parametrize("others", [(), ("Dialogue",), ("Dialogue", "BadEnding", "Conflict")])
def test_every_place_is_equally_likely(others: tuple[str, ...]) -> None:
    rng = numpy_generator(0, "test")
    n = 400 * (len(others) + 1)
    places = Counter(randomise(Instruction(others), "Twist", rng).features.index("Twist") for _ in range(n))
    assert set(places) == set(range(len(others) + 1))
    assert len(places) == 1 or chisquare(list(places.values())).pvalue > 1e-4


def test_it_is_added_with_the_probability_asked_for() -> None:
    rng = numpy_generator(0, "test")
    added = sum(has(randomise(Instruction(("Dialogue",)), "Twist", rng, 0.3), "Twist") for _ in range(2000))
    assert binomtest(added, 2000, 0.3).pvalue > 1e-4
    assert randomise(Instruction(), "Twist", rng, 0.0) == Instruction()


@given(INSTRUCTIONS, INSTRUCTIONS, st.sampled_from([0.0, 0.5, 1.0]))
def test_what_is_drawn_next_does_not_depend_on_the_instruction(a: Instruction, b: Instruction, p: float) -> None:
    after: list[float] = []
    for instruction in (a, b):
        rng = numpy_generator(0, "test")
        randomise(instruction, "Twist", rng, p)
        after.append(rng.random())
    assert after[0] == after[1]


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_probability_outside_0_to_1_is_refused(p: float) -> None:
    with pytest.raises(UserError, match="give a number from 0 to 1"):
        randomise(Instruction(), "Twist", np.random.default_rng(0), p)


def test_names_are_checked_in_every_edit() -> None:
    for edit in (has, without, lambda x, name: randomise(x, name, np.random.default_rng(0)), lambda _, name: refusal(name)):
        with pytest.raises(UserError, match="did you mean 'Twist'"):
            edit(Instruction(), "twist")


# Refusal


def test_a_refusal_reads_like_a_sentence() -> None:
    assert refusal("Dialogue") == "We are not allowed to write a story with dialogue in it, sorry."
    assert refusal("BadEnding") == "We are not allowed to write a story with a bad ending in it, sorry."


@pytest.mark.parametrize("feature", [*INSTRUCT_FEATURES, *RULES])
def test_a_refusal_has_no_feature_of_its_own_that_is_decided_by_the_characters(feature: str) -> None:
    assert not any(labels(refusal(feature))[name] for name in ("Dialogue", "Question", "Speech"))
