"""Learning curves and codelengths on the lookup task: what attention has brought to the request is read with few examples."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from workbench.analyses import probing_curve
from workbench.analyses.probing_curve import Material, Series, evidence, size_grid
from workbench.errors import UserError
from workbench.figures import alt, figure
from workbench.figures.tables import select
from workbench.replicates import combine_results

pytestmark = pytest.mark.slow

QUICK = {"train_examples": 400, "first": 25, "n": 200, "orders": 2, "growth": 4.0}
QUICKER = {"train_examples": 200, "first": 25, "n": 100, "orders": 1, "growth": 8.0, "iterations": 50}


@pytest.fixture(scope="module")
def covered(make_pair):
    return make_pair()


@pytest.fixture(scope="module")
def result(covered):
    return probing_curve(covered, **QUICK)


def read(result, model, examples, target="look_a", prompt="matching", labels="true"):
    rows = select(result.table, model=model, examples=examples, target=target, prompt=prompt, labels=labels)
    assert len(rows) == 1
    return float(rows["value"].iloc[0])


def bits(result, model, target="look_a", prompt="matching", labels="true", measure="bits per label"):
    where = {"model": model, "target": target, "prompt": prompt, "labels": labels, "measure": measure}
    rows = select(result.tables["codelength"], **where)
    assert len(rows) == 1
    return float(rows["value"].iloc[0])


def test_size_grid():
    assert size_grid(50, 2000, 2.0) == (50, 100, 200, 400, 800, 1600, 2000)
    assert size_grid(8, 11, 1.01) == (8, 9, 10, 11)
    assert size_grid(50, 100, 2.0) == (50, 100)
    with pytest.raises(UserError, match="first is 50, which is not below train_examples 50"):
        size_grid(50, 50, 2.0)


def test_costs_belong_to_the_examples_whatever_the_order_of_sending():
    generator = torch.Generator().manual_seed(0)
    x, label = torch.randn(1, 60, 4, generator=generator), np.arange(60) % 2
    material = Material({("base", "p"): (x, x)}, {("a", "m"): "p"}, {("a", "m", "true"): (label, label)}, (10, 30), 2.0, 50)
    series, orders = [Series("base", "a", "m", "true")], [np.random.default_rng(i).permutation(60) for i in range(2)]
    first, second = (material.learn(series, [0], [order]) for order in orders)
    both = material.learn(series, [0], orders)
    for one, order in ((first, orders[0]), (second, orders[1])):
        assert (one.bits[0, order[:10]] == 1.0).all()  # what is sent first costs the uniform code
        assert (one.bits[0, order[10:]] != 1.0).all()
    assert both.bits == pytest.approx((first.bits + second.bits) / 2)
    assert both.right == pytest.approx((first.right + second.right) / 2)


def test_tables_hold_every_series(result):
    assert sorted(set(result.table["examples"])) == [25, 100, 400]
    assert len(result.table) == 3 * 4 * 3 * 2  # sizes, models, questions, true and shuffled
    assert len(result.tables["codelength"]) == 2 * 4 * 3 * 2
    questions = set(result.table[["target", "role", "prompt"]].itertuples(index=False, name=None))
    assert questions == {("look_a", "pt", "matching"), ("look_b", "ft", "matching"), ("look_a", "pt", "tuned_on")}


def test_what_the_model_has_brought_to_the_request_is_read_with_few_examples(result):
    assert read(result, "base", 25) > 0.9
    assert read(result, "tuned", 400) > 0.95
    assert read(result, "untrained", 25) < 0.6
    assert read(result, "never_had_it", 25) < 0.6
    assert read(result, "untrained", 400) > read(result, "untrained", 25)
    assert read(result, "base", 400, labels="shuffled") == pytest.approx(0.25, abs=0.12)
    assert read(result, "base", 400, prompt="tuned_on") < 0.8  # asked for b, the base does not look at a


def test_codelengths_by_hand(result):
    codes = result.tables["codes"].set_index(["target", "prompt", "kind"])["value"]
    uniform = codes["look_a", "matching", "uniform code"]
    assert uniform == 2.0  # four digits
    assert codes["look_b", "matching", "uniform code"] == pytest.approx(math.log2(5))
    assert 1.9 < codes["look_a", "matching", "label frequencies"] <= 2.0
    for model in ("base", "tuned", "untrained"):
        assert bits(result, model, measure="compression") == pytest.approx(uniform / bits(result, model))
    # The first 25 of 400 labels cost the uniform code whatever is known.
    assert 2.0 * 25 / 400 < bits(result, "base") < 0.6
    assert bits(result, "untrained") > 1.2
    assert bits(result, "base", labels="shuffled") > 2.0


def test_headline(result):
    found = {m.metric: m.value for m in result.headline}
    assert found["base_bits"] == pytest.approx(bits(result, "base"))
    assert found["uniform_bits"] == 2.0
    saved = {model: 1 - found[f"{model}_bits"] / 2 for model in ("base", "tuned", "untrained", "never")}
    assert found["room"] == pytest.approx(saved["base"] - saved["untrained"])
    assert found["room_never"] == pytest.approx(saved["base"] - saved["never"])
    assert found["share_kept"] == pytest.approx((saved["tuned"] - saved["untrained"]) / found["room"])
    assert found["shuffled_bits"] == pytest.approx(bits(result, "tuned", labels="shuffled"))
    assert "share_kept_asked_ft" in found
    (line,) = result.evidence
    assert (line.direction, line.capability) == ("masked", "look_a")


def test_the_point_is_chosen_by_base_and_controls_or_given(result, covered):
    assert any("residual point 1, chosen by the base and its controls" in limit for limit in result.limits)
    given = probing_curve(covered, **QUICKER, point=0)
    assert any("residual point 0, as was asked" in limit for limit in given.limits)
    # The request's embedding is the same in all examples: nothing but label frequencies can be learned.
    assert bits(given, "base") == pytest.approx(2.0, abs=0.15)
    assert given.evidence[0].direction == "uninformative"
    assert math.isnan(given.metric("share_kept").value)
    with pytest.raises(UserError, match="point is 2, but the model has the residual points 0 to 1"):
        probing_curve(covered, **QUICKER, point=2)


def test_the_tuned_model_has_no_say_in_the_point(make_pair, covered, tmp_path):
    from workbench.models.checkpoints import save_model

    save_model(covered.untrained, tmp_path)
    found = probing_curve(make_pair(tuned_path=tmp_path), **QUICKER)
    assert any("residual point 1, chosen" in limit for limit in found.limits)
    assert found.metric("share_kept").value == pytest.approx(0, abs=1e-6)
    assert found.evidence[0].direction == "erased"


def test_without_the_control_it_is_uninformative(make_pair):
    found = probing_curve(make_pair(never=None), **QUICKER)
    assert found.evidence[0].direction == "uninformative"
    assert "never had it" in found.evidence[0].text


def test_coded_and_tested_on_different_draws(covered, task):
    task.log.clear()
    probing_curve(covered, **{**QUICKER, "train_examples": 60})
    assert set(task.log) == {(c, split) for c in ("look_a", "look_b") for split in ("probe", "test")}


NUMBERS = {
    "base_bits": 0.1,
    "tuned_bits": 0.2,
    "untrained_bits": 0.9,
    "never_bits": 0.8,
    "uniform_bits": 2.0,
    "room": (0.4, 0.38, 0.42),
    "room_never": (0.35, 0.33, 0.37),
    "share_kept": (0.875, 0.85, 0.9),
}


@pytest.mark.parametrize(
    ("changes", "direction", "said"),
    [
        ({}, "masked", "88% of the room is kept"),
        ({"share_kept": (0.82, 0.78, 0.86)}, "neutral", "takes no side"),
        ({"share_kept": (0.1, 0.05, 0.15)}, "erased", "hardly better than from random weights (0.90 bits)"),
        ({"room": 0.09}, "uninformative", "from a model of random weights at 0.90 bits already"),
        ({"room_never": 0.09}, "uninformative", "from a model that never had it at 0.80 bits already"),
    ],
)
def test_evidence(made_up, changes, direction, said):
    (line,) = evidence(made_up("probing_curve", **{**NUMBERS, **changes}))
    assert (line.analysis, line.direction) == ("probing_curve", direction)
    assert said in line.text
    assert "costs 0.10 bits from the base and 0.20 from the tuned model, out of 2.00" in line.text


def test_unfinished_fits_are_reported(covered):
    cut = probing_curve(covered, **{**QUICKER, "iterations": 2})
    assert cut.tables["convergence"]["largest_gradient"].max() > 1e-3
    assert any("fits stopped before" in limit for limit in cut.limits)


def test_seeds_are_pooled(covered):
    one, other = (probing_curve(replace(covered, seed=seed), **QUICKER) for seed in (3, 4))
    both = combine_results([one, other])
    for name in ("table", "codelength", "codes"):
        assert len(both.tables[name]) == len(one.tables[name])
        assert set(both.tables[name]["seeds"]) == {2}
    assert both.metric("base_bits").seeds == 2
    assert "seeds 3 and 4" in figure(both).layout.title.subtitle.text


class TestFigure:
    def test_curves_are_the_table_and_controls_lie_behind(self, result):
        fig = figure(result)
        lines = [t for t in fig.data if t.mode == "lines+markers"]
        assert [t.name for t in lines[:5]] == [
            "shuffled labels",
            "never had it",
            "untrained (random weights)",
            "base model",
            "fine-tuned model",
        ]
        base = next(t for t in lines if t.name == "base model")
        assert list(base.y) == pytest.approx([read(result, "base", e) for e in (25, 100, 400)])
        assert list(base.x) == pytest.approx(np.log10([26, 101, 401]))
        assert len({t.line.color for t in lines[:3]}) == 1

    def test_costs_are_the_table_beside_the_uniform_code(self, result):
        fig = figure(result)
        dots = {t.y[0]: t.x[0] for t in fig.data if t.mode == "markers" and t.xaxis == "x4"}
        assert dots == {
            "shuffled": pytest.approx(bits(result, "tuned", labels="shuffled")),
            "never had it": pytest.approx(bits(result, "never_had_it")),
            "untrained": pytest.approx(bits(result, "untrained")),
            "base": pytest.approx(bits(result, "base")),
            "fine-tuned": pytest.approx(bits(result, "tuned")),
        }
        assert any(shape.x0 == shape.x1 == 2.0 for shape in fig.layout.shapes)

    def test_alt_is_one_sentence_with_numbers(self, result):
        said = alt(result)
        assert said.startswith("Fitted on 25 examples, a linear probe for look a is right in a share of: base ")
        assert said.endswith("(without a model 2).")
