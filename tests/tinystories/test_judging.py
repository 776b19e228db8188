"""Rates of a feature over texts: planted judges of known errors, and on real stories (where given) the regression against the rule."""

import gzip
import json
import math
import os
import re
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tinystories.judge_quality import corrected
from tinystories.judging import Quality, RuleJudge, load_judge, measure, score, train_judge
from workbench.errors import UserError
from workbench.statistics import wilson


@pytest.fixture
def _rules(monkeypatch):
    """Rules of known behaviour in place of the real ones."""
    stub = types.ModuleType("tinystories.features")
    stub.RULES = {
        "Dialogue": types.SimpleNamespace(of=lambda text: '"' in text, exact=True),
        "MoralValue": types.SimpleNamespace(of=lambda text: "moral" in text, exact=False),
    }
    monkeypatch.setitem(sys.modules, "tinystories.features", stub)


@dataclass(frozen=True)
class Planted:
    """Reads its answers off the texts: `y`, `n`, or `?` for none."""

    quality: Quality | None = None
    exact: bool = False
    feature: str = "Twist"
    name: str = "planted"

    def probability(self, texts):
        return np.array([{"y": 0.5, "n": 0.49, "?": math.nan}[text] for text in texts])


@pytest.mark.usefixtures("_rules")
def test_a_rule_is_exact_and_its_rate_needs_no_correction():
    judge = RuleJudge("Dialogue")
    found = score(judge, ['"Hi"', "no", 'a "b" c'] * 100)
    assert (found.n, found.positives, found.unparsed, found.judge) == (300, 200, 0, "rule")
    assert (found.low, found.high) == pytest.approx([float(x) for x in wilson(200, 300)])
    assert (found.corrected_rate, found.corrected_low, found.corrected_high) == (found.rate, found.low, found.high)
    assert found.limits == ()


@pytest.mark.usefixtures("_rules")
def test_marker_words_are_no_definition():
    found = score(RuleJudge("MoralValue"), ["the moral"] * 200)
    assert found.rate == 1
    assert math.isnan(found.corrected_rate)
    assert (found.corrected_low, found.corrected_high) == (0, 1)
    assert found.limits == ("How often the judge (marker words) errs was not measured, so its rate is not corrected.",)


@pytest.mark.usefixtures("_rules")
def test_a_feature_without_a_rule_is_refused_at_once():
    with pytest.raises(UserError, match="there is no rule for 'Dialog'; did you mean 'Dialogue'"):
        RuleJudge("Dialog")


def test_a_probability_of_a_half_counts_and_no_answer_is_left_out_and_not_a_no():
    found = score(Planted(), ["y"] * 30 + ["n"] * 60 + ["?"] * 10)
    assert (found.n, found.positives, found.unparsed) == (90, 30, 10)
    assert found.rate == pytest.approx(1 / 3)
    assert (found.low, found.high) == pytest.approx([float(x) for x in wilson(30, 90)])
    assert any("no answer on 10 of 100" in limit for limit in found.limits)
    assert any(limit.startswith("Only 90 texts") for limit in found.limits)
    nothing = score(Planted(), ["?"] * 3)
    assert math.isnan(nothing.rate)
    assert (nothing.n, nothing.low, nothing.high) == (0, 0, 1)


def test_from_two_hundred_texts_on_their_number_is_no_limit():
    assert not any("Only" in limit for limit in score(Planted(), ["y"] * 200).limits)
    assert any("Only 199" in limit for limit in score(Planted(), ["y"] * 199).limits)


def test_a_measured_judge_has_its_rate_corrected_for_its_errors():
    truth = np.arange(1000) < 500
    quality = measure(np.where(np.arange(1000) % 10 < 2, ~truth, truth), truth)  # wrong on a fifth of both kinds
    found = score(Planted(quality), ["y"] * 100 + ["n"] * 200, seed=4)
    assert found.rate == pytest.approx(1 / 3)
    assert found.corrected_rate == pytest.approx((1 / 3 - 0.2) / 0.6)
    expected = corrected(100, 300, quality, 4)
    assert (found.corrected_low, found.corrected_high) == (expected.low, expected.high)
    assert found.quality is quality
    assert found.limits[0].startswith("The judge (planted) has a balanced accuracy of 80.0% on 1000 held-out texts")


def test_a_judge_that_guesses_says_so():
    truth = np.arange(100) < 50
    found = score(Planted(measure(np.where(np.arange(100) % 2, 0.9, 0.1), truth)), ["y"] * 200)
    assert math.isnan(found.corrected_rate)
    assert "The judge does no better than chance: its rate says nothing about the true one." in found.limits


def test_no_texts_are_refused():
    with pytest.raises(UserError, match="there are no texts in which to look for Twist"):
        score(Planted(), [])


@pytest.mark.skipif("REVIVAL_DATA" not in os.environ, reason="needs the real stories in $REVIVAL_DATA")
def test_on_real_stories_the_regression_agrees_with_the_rule_for_dialogue(tmp_path, record_property):
    path = Path(os.environ["REVIVAL_DATA"]) / "tinystories" / "stories.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        stories = [json.loads(line) for line in file][::4]
    texts, sources = [s["text"] for s in stories], [s["source"] for s in stories]
    pair = re.compile(r'["“][^"“”]*["”]')
    truth = [any(re.search(r"[^\W_]", said) for said in pair.findall(text)) for text in texts]
    judge = train_judge(texts, truth, sources, "Dialogue", 0)
    record_property("auroc", judge.quality.auroc.value)
    assert judge.quality.auroc.low > 0.97
    assert judge.quality.auroc_within.low > 0.95
    assert judge.quality.balanced_accuracy.low > 0.93
    judge.save(tmp_path / "judge")
    seen = score(load_judge(tmp_path / "judge"), texts[:400])
    assert seen.corrected_low <= np.mean(truth[:400]) <= seen.corrected_high
