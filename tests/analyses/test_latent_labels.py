"""What latents are about, on prompts whose latents are written down."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.analyses._latent_labels import Samples, _entropy, _told, describe_latents

PROMPTS, LENGTH = 200, 6
RNG = np.random.default_rng(0)
PLACE = np.tile([0, 1, 1, 1, 1, 2], PROMPTS)
PROMPT = np.repeat(np.arange(PROMPTS), LENGTH)
TOKEN = RNG.integers(3, 6, PROMPTS * LENGTH)
COUNT, ASKED = RNG.integers(0, 5, PROMPTS), RNG.integers(0, 3, PROMPTS)
SAMPLES = Samples(
    PLACE, PROMPT, {"token here": TOKEN}, {"token": RNG.integers(0, 2, PROMPTS), "count": COUNT, "asked for": ASKED}
)


def described(*codes: np.ndarray):
    return describe_latents(np.stack(codes, axis=1).astype(float), SAMPLES, seed=0)


def test_place_token_and_label_are_named_with_the_value_that_switches_them_on():
    token, count, asked = described(
        (PLACE == 1) & (TOKEN == 4), (PLACE == 2) & (COUNT[PROMPT] == 3), (PLACE == 0) & (ASKED[PROMPT] == 1)
    )
    assert (token.place, token.at_place, token.label, token.label_value) == (1, 1.0, "token here", 4)
    assert (count.place, count.label, count.label_value) == (2, "count", 3)
    assert (asked.place, asked.label, asked.label_value) == (0, "asked for", 1)
    for found in (token, count, asked):
        assert found.told == pytest.approx(1, abs=0.03)  # less what shuffled labels tell
        assert found.null < 0.05


def test_a_latent_of_a_place_alone_or_of_noise_has_no_label():
    place, noise, never = described(PLACE == 2, RNG.random(len(PLACE)) < 0.2, np.zeros(len(PLACE)))
    assert (place.place, place.label, place.told) == (2, "", 0.0)
    assert noise.label == ""
    assert noise.told <= noise.null
    assert (never.label, never.at_place) == ("", 0.0)


def test_strength_counts_as_well_as_on_and_off():
    """On at every answer, strongly where the count is high."""
    (found,) = described((PLACE == 2) * (1.0 + (COUNT[PROMPT] >= 3)))
    assert found.label == "count"
    assert found.told > 0.5


def test_noise_is_hardly_ever_named():
    names = [d.label for d in described(*(np.random.default_rng(s).random(len(PLACE)) < 0.1 for s in range(40)))]
    assert sum(map(bool, names)) <= 6  # 1 of 21 by chance


def test_what_is_told_is_conditional_mutual_information():
    x, y, z = (np.random.default_rng(s).integers(0, 3, 500) for s in range(3))
    y = (y + x) % 3

    def information(a, b):
        joint = np.histogram2d(a, b, bins=(3, 3), range=[[-0.5, 2.5]] * 2)[0] / len(a)
        outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
        return (joint[joint > 0] * np.log(joint[joint > 0] / outer[joint > 0])).sum()

    expected = sum((z == k).mean() * information(x[z == k], y[z == k]) for k in range(3))
    entropy = _entropy(z, x) - _entropy(z)
    assert _told(z, x, y, entropy) == pytest.approx(expected / entropy, rel=1e-9)
