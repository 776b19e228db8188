"""Path patching on a compiled program, whose steps hand their results to one another in a row, and on a trained model."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from analyses.compiled_pair import compiled_pair
from analyses.conftest import LookupTask, OtherSelect, OtherTest
from analyses.planted import redirected

from workbench.analyses import path_patching
from workbench.analyses._prompts import draw_prompts
from workbench.analyses.path_patching import evidence, paths_of
from workbench.models.checkpoints import save_model
from workbench.models.patching import Cell, patch_grid
from workbench.models.sites import Site
from workbench.replicates import combine_results

CHAIN = (
    ("embedding", "mlp 0"),
    ("mlp 0", "head 1.0"),
    ("head 1.0", "mlp 1"),
    ("mlp 1", "head 2.0"),
    ("head 2.0", "logits"),
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compiled_pair(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def counter(compiled):
    return path_patching(compiled, n=50)


@pytest.fixture(scope="module")
def result(make_pair):
    return path_patching(make_pair(), n=50)


def effects(result, model="base"):
    rows = result.table[result.table["model"] == model]
    return rows.set_index(["sender", "receiver"])["value"]


def test_the_program_is_a_chain(counter):
    found = effects(counter)
    for path in CHAIN:
        assert found[path] == pytest.approx(1, abs=0.02), path
    beside = found.drop(list(CHAIN))
    assert len(beside) > 10
    assert np.nan_to_num(np.abs(beside)).max() < 0.02
    assert counter.metric("direct_base").value == pytest.approx(1, abs=0.02)


def test_the_tuned_program_counts_what_is_not_edited(counter):
    assert effects(counter, "tuned").isna().all()
    assert counter.metric("overlap").bound == "undefined"
    (line,) = counter.evidence
    assert (line.direction, line.metric) == ("uninformative", "told_apart_tuned")


def test_receivers_can_be_heads_alone(compiled):
    found = path_patching(compiled, n=20, receivers="heads")
    assert set(found.table["receiver"]) == {"head 0.0", "head 1.0", "head 2.0"}
    assert "direct_base" not in {m.metric for m in found.headline}
    assert effects(found)["mlp 1", "head 2.0"] == pytest.approx(1, abs=0.02)


def test_the_last_mlp_has_one_path_and_it_is_the_whole_patch(result, make_pair):
    """All that it changes goes straight to the logits: path and activation patching agree."""
    pair = make_pair()
    prompts = draw_prompts(pair, "pt", 50)
    grid = patch_grid(pair.base, prompts.examples, prompts.donor(pair.base), [Cell(Site("mlp", 0))], prompts.read)
    before, after = prompts.gap(pair.base)
    expected = float((grid.values - grid.plain).mean()) / float((after - before).mean())
    assert effects(result)["mlp 0", "logits"] == pytest.approx(expected, abs=1e-4)


def test_tables(result, make_pair):
    pair = make_pair()
    paths = paths_of(pair.base, "all")
    assert len(paths) == 4 + 2 * 2 + 1  # the embedding to two heads, the MLP, the logits; heads to the last two; the MLP to one
    assert set(result.table["model"]) == {"base", "tuned", "change"}
    assert result.table.groupby("model").size().eq(len(paths)).all()
    change = effects(result, "change")
    assert np.allclose(change.dropna(), (effects(result, "tuned") - effects(result))[change.dropna().index])
    where = result.tables["largest"].iloc[0]
    assert result.metric("largest_change").value == pytest.approx(abs(change[where["sender"], where["receiver"]]))
    changed = result.tables["changed"].query("model == 'base'").set_index(["sender", "receiver"])["value"]
    # The request is the same in both prompts, so that what stands there is given no other embedding.
    assert changed["embedding", "logits"] == 0
    assert math.isnan(effects(result)["embedding", "logits"])
    assert changed["mlp 0", "logits"] == 1


def test_equal_models_use_the_same_paths(make_pair):
    found = path_patching(make_pair(tuned="base"), n=40)
    assert found.metric("overlap").value == 1
    assert found.metric("largest_change").value == 0
    assert found.evidence[0].direction == "uninformative"


def test_the_path_of_the_largest_change_is_chosen_on_other_prompts(make_pair):
    pair = make_pair()
    pair.task.log.clear()
    path_patching(pair, n=20)
    assert {("look_a", "select"), ("look_a", "test")} <= set(pair.task.log)


@pytest.fixture(scope="module")
def elsewhere(make_pair):
    """With prompts of split `select` that ask for another ability, and on those prompts alone; six paths are compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["workbench.analyses.path_patching"], "TOP", 6)
        return tuple(path_patching(make_pair(capability="look_b", task=task()), n=50) for task in (OtherSelect, OtherTest))


def test_the_path_is_chosen_on_other_prompts_and_not_on_the_test(make_pair, models, tmp_path):
    """The tuned model takes one request for another: on the test prompts, which ask for neither, no path changes at all."""
    save_model(redirected(models["base"]), tmp_path)
    pair = make_pair(tuned_path=tmp_path, capability="last", task=OtherSelect(other="look_a"))
    found = path_patching(pair, n=50)
    assert effects(found, "change").abs().max() == 0
    chosen = tuple(found.tables["largest"].iloc[0][["sender", "receiver"]])
    assert chosen != tuple(found.table.iloc[0][["sender", "receiver"]])  # the first of equals
    assert found.metric("largest_change").value == 0


def test_paths_are_shared_across_two_draws_of_prompts_also_by_the_ceiling(elsewhere):
    """By hand: the six largest of either draw, held against those of the other."""
    top = {
        (model, draw): set(effects(result, model).abs().nlargest(6).index)
        for model in ("base", "tuned")
        for draw, result in zip(("test", "select"), elsewhere, strict=True)
    }

    def shared(a, b):
        both = [(top[a, "test"], top[b, "select"]), (top[a, "select"], top[b, "test"])]
        return float(np.mean([len(x & y) / len(x | y) for x, y in both]))

    found = elsewhere[0]
    assert shared("base", "base") < 1
    assert found.metric("overlap").value == pytest.approx(shared("base", "tuned"))
    assert found.metric("overlap_ceiling").value == pytest.approx((shared("base", "base") + shared("tuned", "tuned")) / 2)
    for name in ("overlap", "overlap_ceiling"):
        metric = found.metric(name)
        assert 0 <= metric.low <= metric.value <= metric.high <= 1


def test_floors_of_the_overlap(elsewhere, make_pair):
    """The base's own six paths for the ability of another family, found on two draws as well, and random sets of 6 of 9 paths."""
    last = {"capability": "last", "tuned_on": "last", "correlation": None}
    others = [path_patching(make_pair(task=task(), **last), n=50) for task in (LookupTask, OtherTest)]
    own, other = ([set(effects(r).abs().nlargest(6).index) for r in results] for results in (elsewhere, others))
    found = elsewhere[0]
    expected = np.mean([len(x & y) / len(x | y) for x, y in ((own[0], other[1]), (own[1], other[0]))])
    assert found.metric("overlap_other").value == pytest.approx(float(expected))
    expected = sum(k / (12 - k) * math.comb(6, k) * math.comb(3, 6 - k) for k in range(3, 7)) / math.comb(9, 6)
    assert found.metric("overlap_random").value == pytest.approx(expected)


def test_seeds_are_pooled_path_by_path(result, make_pair):
    other = path_patching(replace(make_pair(), seed=4), n=50)
    pooled = combine_results([result, other])
    assert len(pooled.table) == len(result.table)
    both = [effects(r)["mlp 0", "logits"] for r in (result, other)]
    assert effects(pooled)["mlp 0", "logits"] == pytest.approx(np.mean(both))
    assert evidence(pooled)[0].direction == evidence(result)[0].direction


def test_evidence(made_up):
    told = {"told_apart_base": (9, 8, 10), "told_apart_tuned": (5, 4, 6), "base_pt": 1.0, "tuned_pt": 0.2}
    found = {"overlap": 0.4, "overlap_ceiling": 0.9, "overlap_other": 0.7, "overlap_random": 0.1, "largest_change": 0.5}
    (line,) = evidence(made_up("path_patching", **told, **found))
    assert (line.direction, line.metric, line.value) == ("neutral", "overlap", 0.4)
    assert (
        "share 0.40 (Jaccard; one model on other prompts 0.90, the base's own for another ability 0.70, random paths 0.10)"
        in line.text
    )
    assert "was chosen on other prompts changed by 0.50 in size" in line.text
    (line,) = evidence(made_up("path_patching", **{**told, "told_apart_base": (0.5, 0.1, 0.9)}, **found))
    assert line.direction == "uninformative"
    assert "in the base (0.5)" in line.text
    (line,) = evidence(made_up("path_patching", **{**told, "tuned_pt": 0.95}, **found))
    assert line.direction == "uninformative"
    (line,) = evidence(made_up("path_patching", **told, **{**found, "overlap_ceiling": 0.15}))
    assert line.direction == "uninformative"
    assert "hardly better than random ones" in line.text
    without = {name: value for name, value in found.items() if name != "overlap_other"}
    (line,) = evidence(made_up("path_patching", **told, **without))
    assert "another ability" not in line.text
