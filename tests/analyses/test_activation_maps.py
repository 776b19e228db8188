from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from analyses.compiled_pair import compiled_pair

from workbench.analyses import activation_maps
from workbench.errors import UserError
from workbench.models.inside import hidden_neurons
from workbench.replicates import combine_results

pytestmark = pytest.mark.slow

INHIBITOR = 7


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return compiled_pair(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def result(compiled):
    return activation_maps(compiled, n=60, block=1)


def rows(result, model):
    return result.table[result.table["model"] == model]


def test_the_planted_neuron_carries_the_whole_change(make_pair):
    result = activation_maps(make_pair(), n=100)
    top = rows(result, "change").iloc[0]
    assert (top["block"], top["neuron"], top["name"]) == (0, INHIBITOR, f"neuron {INHIBITOR}")
    assert result.metric("concentration").value == pytest.approx(1, abs=1e-6)
    assert rows(result, "tuned").iloc[0]["value"] == pytest.approx(3, abs=0.01)  # its bias is 3, and gelu(3) is about 3
    (line,) = result.evidence
    assert (line.direction, line.metric) == ("neutral", "concentration")
    assert "5 neurons carry 100%" in line.text


def test_the_listed_neurons_are_those_that_changed_most(compiled, result):
    examples = compiled.examples("count_a", n=60)
    at = torch.arange(60)
    base, tuned = (hidden_neurons(m, examples, 1)[at, 2].double().numpy() for m in (compiled.base, compiled.tuned))
    moved = np.abs(tuned - base).mean(0)
    change = rows(result, "change")
    assert (change["block"] == 1).all()
    assert change["value"].tolist() == pytest.approx(np.sort(moved)[::-1][:12].tolist())
    first = change.iloc[0]
    assert first["name"] == compiled.base.config.neuron_labels[1][first["neuron"]]
    assert first["name"].startswith("width ≥ ")
    assert first["low"] < first["value"] < first["high"]
    assert rows(result, "base").iloc[0]["value"] == pytest.approx(base[:, first["neuron"]].mean())


def test_headline_counts_all_blocks(compiled, result):
    examples, at = compiled.examples("count_a", n=60), torch.arange(60)
    change = size = 0.0
    for block in range(3):
        base, tuned = (hidden_neurons(m, examples, block)[at, 2].double() for m in (compiled.base, compiled.tuned))
        change, size = change + float((tuned - base).abs().sum()), size + float(base.abs().sum())
    assert result.metric("relative_change").value == pytest.approx(change / size)
    few = rows(result, "change")["value"].iloc[:5].sum() * 60 / change
    assert result.metric("concentration").value == pytest.approx(few)


def test_maps_hold_every_position(compiled, result):
    maps, examples = result.tables["maps"], compiled.examples("count_a", n=60)[:1]
    one = maps[maps["model"] == "tuned"]
    assert len(one) == 9 * compiled.base.config.intermediate_size
    matrix = np.zeros((9, compiled.base.config.intermediate_size))
    matrix[one["position"], one["neuron"]] = one["activation"]
    assert np.allclose(matrix, hidden_neurons(compiled.tuned, examples, 1)[0], atol=1e-6)
    assert set(one[one["read"]]["position"]) == {2}
    assert set(one["block"]) == {1}


def test_two_equal_models_do_not_differ(tmp_path):
    result = activation_maps(compiled_pair(tmp_path, tuned="count_a"), n=20)
    assert result.metric("relative_change").value == 0
    assert result.metric("concentration").bound == "undefined"
    assert result.evidence[0].text == "No hidden activation at the read position changed."


def test_a_block_that_is_not_there_is_refused(compiled):
    with pytest.raises(UserError, match="no block 3; its blocks go from 0 to 2"):
        activation_maps(compiled, n=20, block=3)


def test_seeds_are_pooled(compiled, result):
    other = activation_maps(replace(compiled, seed=1), n=60, block=1)
    pooled = combine_results([result, other])
    assert pooled.metric("relative_change").seeds == 2
    assert set(pooled.tables["maps"]["seed"]) == {0, 1}
    assert "name" in pooled.table
