"""Circuits of a compiled program, which is a chain, and of trained models; sets against brute force."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from analyses.compiled_pair import compiled_pair
from analyses.planted import deepened, pair_of
from analyses.test_path_patching import CHAIN

from workbench.analyses import circuits
from workbench.analyses._circuits import (
    Ranked,
    edges_between,
    jaccard,
    node_scores,
    nodes_of,
    overlap,
    random_connected,
    random_jaccard,
    random_sets,
    top,
)
from workbench.analyses._prompts import draw_prompts
from workbench.analyses.circuits import OTHER, TOP, evidence
from workbench.analyses.path_patching import paths_of
from workbench.errors import UserError
from workbench.measures import DRAWS
from workbench.models.circuits import run_circuits
from workbench.models.edges import edge_scores
from workbench.models.patching import Cell, patch_grid
from workbench.models.sites import Site
from workbench.replicates import combine_results


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Of a program and itself."""
    return circuits(compiled_pair(tmp_path_factory.mktemp("chain"), tuned="count_a"), n=30)


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """Of a program and one that counts what the prompts do not differ in."""
    return circuits(compiled_pair(tmp_path_factory.mktemp("apart")), n=30)


@pytest.fixture(scope="module")
def result(make_pair):
    return circuits(make_pair(), n=40)


def values(result, table, *index, **equal):
    rows = result.tables[table]
    for column, wanted in equal.items():
        rows = rows[rows[column] == wanted]
    return rows.set_index(list(index))["value"]


@pytest.mark.parametrize("size", [0.0, 2.0])
def test_a_size_is_a_share(make_pair, size):
    with pytest.raises(UserError, match="sizes"):
        circuits(make_pair(), sizes=(size,))


def test_the_program_is_a_chain_and_its_chain_is_the_program(chain):
    assert set(map(tuple, chain.tables["circuit"][["sender", "receiver"]].to_numpy())) == set(CHAIN)
    assert chain.tables["circuit"]["change"].eq("stayed").all()
    kept = values(chain, "faithfulness", "circuit", "k", kind="edges", model="base")
    assert kept["own", 6] == pytest.approx(1, abs=1e-3)
    assert kept["own", 3] == pytest.approx(0, abs=1e-3)  # a broken chain carries nothing
    assert abs(kept["random", 6]) < 0.1
    nodes = values(chain, "scores", "sender", kind="nodes", model="base")
    assert nodes["head 0.0"] == nodes["mlp 2"] == 0
    assert (nodes[["mlp 0", "head 1.0", "mlp 1", "head 2.0"]] > 0.1).all()


def test_a_model_that_does_not_tell_the_prompts_apart_has_no_circuit(apart):
    assert values(apart, "table", "size", one="base", other="tuned").isna().all()
    assert values(apart, "table", "size", one="base", other="base").notna().all()
    assert values(apart, "faithfulness", "size", model="tuned").isna().all()
    assert apart.metric("edges").bound == "undefined"
    assert apart.tables["circuit"]["change"].eq("went").all()
    (line,) = apart.evidence
    assert (line.direction, line.metric) == ("uninformative", "told_apart_tuned")


def test_equal_models_share_what_one_does_on_other_prompts(make_pair):
    found = circuits(make_pair(tuned="base"), n=40)
    for kind in TOP:
        assert found.metric(kind).value == found.metric(f"{kind}_ceiling").value
        changed = found.metric(f"{kind}_changed")
        assert changed.value == changed.low == changed.high == 0
    assert found.metric("faithful_edges_tuned") == replace(found.metric("faithful_edges_base"), metric="faithful_edges_tuned")
    assert found.evidence[0].direction == "uninformative"


def test_all_edges_and_all_nodes_are_the_whole_model(make_pair):
    found = circuits(make_pair(), n=40, sizes=(1.0,))
    whole = values(found, "faithfulness", "kind", "model", "circuit", size=1.0)
    assert len(whole) == 2 * (2 + 3) + 2  # random edges are of two kinds
    assert np.allclose(whole, 1, atol=1e-4)


def test_of_two_heads_the_one_that_works_is_found(make_pair, models, tmp_path):
    """One head of a trained model writes nothing: the other and the MLP are all of the circuit."""
    alone = copy.deepcopy(models["base"])
    pair = make_pair()
    prompts = draw_prompts(pair, "pt", 40)
    heads = [Site("head", 0, h) for h in (0, 1)]
    grid = patch_grid(alone, prompts.examples, prompts.donor(alone), [Cell(head) for head in heads], prompts.read)
    idle = int((grid.values - grid.plain).mean(1).abs().argmin())
    with torch.no_grad():
        alone.transformer.h[0].attn.c_proj.weight[16 * idle : 16 * (idle + 1)] = 0
    found = circuits(pair_of(make_pair, tmp_path, tuned=alone, never=None), n=40)
    scores = values(found, "scores", "sender", kind="nodes", model="tuned")
    assert scores[f"head 0.{idle}"] == 0
    assert scores[f"head 0.{1 - idle}"] > 1
    kept = values(found, "faithfulness", "k", kind="nodes", model="tuned", circuit="own")
    assert kept[2] == pytest.approx(1, abs=1e-4)
    assert kept[1] < 0.9


@pytest.mark.slow
def test_each_model_is_run_by_its_own_and_by_the_base_s_edges_as_chosen_on_other_prompts(make_pair, models, tmp_path):
    """Against scoring, ranking and running by hand."""
    base, tuned = (deepened(models["base"]) for _ in range(2))
    with torch.no_grad():  # a second block of many small effects, whose order varies with the prompts
        for seed, model in enumerate((base, tuned)):
            for projection in (model.transformer.h[1].attn.c_proj, model.transformer.h[1].mlp.c_proj):
                projection.weight.normal_(0, 2.0, generator=torch.Generator().manual_seed(seed))
    pair = pair_of(make_pair, tmp_path, base=base, tuned=tuned, never=None)
    found = circuits(pair, n=16)
    edges = paths_of(pair.base, "all")
    select, test = (draw_prompts(pair, "pt", 16, split) for split in ("select", "test"))
    before, after = test.gap(pair.tuned)
    told = values(found, "faithfulness", "circuit", "k", kind="edges", model="tuned")
    for circuit, model in (("own", pair.tuned), ("base", pair.base)):
        order, again = (
            edge_scores(model, p.examples, edges, p.read, 5).mean(0).abs().argsort(descending=True) for p in (select, test)
        )
        counts = told[circuit].index
        assert any(set(order[:k].tolist()) != set(again[:k].tolist()) for k in counts)  # else the split could not matter
        kept = torch.stack([torch.zeros(len(edges)).index_fill(0, order[:k], 1).bool() for k in counts])
        run = run_circuits(pair.tuned, test.examples, edges, kept, test.read).numpy()
        assert np.allclose(told[circuit], (after - run).mean(1) / (after - before).mean(), atol=1e-4)
    assert not np.allclose(told["own"], told["base"], atol=1e-3)


def test_scores_are_means_on_the_test_prompts(result, make_pair):
    pair = make_pair()
    prompts, edges = draw_prompts(pair, "pt", 40), paths_of(pair.base, "all")
    expected = edge_scores(pair.tuned, prompts.examples, edges, prompts.read, steps=5).mean(0)
    assert np.allclose(values(result, "scores", "sender", kind="edges", model="tuned"), expected, atol=1e-4)
    chosen = draw_prompts(pair, "pt", 40, "select")
    strongest = edge_scores(pair.base, chosen.examples, edges, chosen.read, steps=5).mean(0).abs().argsort(descending=True)
    listed = result.tables["circuit"]
    mine = listed[listed["change"].isin(["stayed", "went"])]
    k = round(TOP["edges"] * len(edges))
    names = [("embedding" if u == Site("stream", 0) else str(u), "logits" if v.kind == "stream" else str(v)) for u, v in edges]
    assert set(map(tuple, mine[["sender", "receiver"]].to_numpy())) == {names[i] for i in strongest[:k].tolist()}


def test_tables(result):
    table = result.table
    assert {("base", "tuned"), ("base", "base"), ("tuned", "tuned"), ("base", OTHER), ("random", "random")} == set(
        zip(table["one"], table["other"], strict=True)
    )
    keys = ["kind", "one", "other", "size"]
    assert not table.duplicated(keys).any()
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    assert not result.tables["faithfulness"].duplicated(["kind", "model", "circuit", "size"]).any()
    top_edges = table[(table["kind"] == "edges") & (table["size"] == TOP["edges"])].set_index(["one", "other"])["value"]
    assert result.metric("edges").value == top_edges["base", "tuned"]
    assert result.metric("edges_ceiling").value == (top_edges["base", "base"] + top_edges["tuned", "tuned"]) / 2
    assert result.metric("edges_changed").value == result.metric("edges_ceiling").value - top_edges["base", "tuned"]
    kept = values(result, "faithfulness", "circuit", kind="nodes", size=TOP["nodes"], model="tuned")
    assert result.metric("faithful_nodes_tuned").value == kept["own"]
    assert result.metric("faithful_nodes_tuned_base").value == kept["base"]


def test_circuits_are_chosen_on_other_prompts_than_they_run_on(make_pair):
    pair = make_pair()
    pair.task.log.clear()
    circuits(pair, n=20, capability="ft")
    assert {("look_b", "select"), ("look_b", "test"), ("last", "select"), ("last", "test")} <= set(pair.task.log)


def test_seeds_are_pooled_row_by_row(result, make_pair):
    other = circuits(replace(make_pair(), seed=4), n=40)
    pooled = combine_results([result, other])
    for name in ("table", "faithfulness", "scores"):
        assert len(pooled.tables[name]) == len(result.tables[name])
    assert set(pooled.tables["circuit"]["seed"]) == {3, 4}
    both = [r.metric("edges").value for r in (result, other)]
    assert pooled.metric("edges").value == pytest.approx(np.mean(both))
    assert evidence(pooled)[0].direction == evidence(result)[0].direction


def test_one_ranking_shares_everything_with_itself():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(30, 12)) + np.arange(12)
    places = Ranked.of(scores, scores, 0)
    for k in (1, 4, 12):
        assert (jaccard(places.select, places.select, k) == 1).all()
        assert overlap(places, places, k)[0] == 1
    assert set(np.flatnonzero(top(scores, 3))) == set(np.argsort(-np.abs(scores.mean(0)))[:3])
    assert places.select.shape == (DRAWS + 1, 12)
    still = np.where(np.arange(12) < 2, scores, 0)
    assert top(still, 5).sum() == 2  # what has no effect is in no circuit
    assert math.isnan(overlap(*[Ranked.of(np.zeros((4, 3)), np.zeros((4, 3)), 0)] * 2, 1)[0])


def test_overlap_is_taken_across_the_two_draws():
    """One model ranks alike on both draws, the other the other way round on the second."""

    def ranked(first, second):
        return Ranked(np.tile(first, (3, 1)), np.tile(second, (3, 1)))

    steady, fickle = ranked([0, 1, 2, 3], [0, 1, 2, 3]), ranked([0, 1, 2, 3], [3, 2, 1, 0])
    assert overlap(steady, steady, 2)[0] == 1
    assert overlap(fickle, fickle, 2)[0] == 0
    value, draws = overlap(steady, fickle, 2)
    assert value == 0.5
    assert np.allclose(draws, 0.5)


def test_random_sets_share_what_counting_says():
    for units, k in ((6, 2), (7, 4), (5, 5)):
        sets = [set(chosen) for chosen in itertools.combinations(range(units), k)]
        expected = np.mean([len(a & b) / len(a | b) for a in sets for b in sets])
        value, draws = random_jaccard(units, k, 0)
        assert value == pytest.approx(expected)
        assert draws.mean() == pytest.approx(expected, abs=0.05)


def routed(edges, inside):
    """Which edges of a set lie on a route from the embedding to the logits within it: by walking from both ends."""
    ends = [edge for edge, kept in zip(edges, inside, strict=True) if kept]

    def walk(start, step):
        seen, rest = {start}, [start]
        while rest:
            here = rest.pop()
            for edge in ends:
                there, come = edge[step], edge[1 - step]
                if there == here and come not in seen:
                    seen.add(come)
                    rest.append(come)
        return seen

    first, last = edges[0][0], next(v for _, v in edges if v.kind == "stream")
    reached, reaching = walk(first, 0), walk(last, 1)
    return [u in reached and v in reaching for u, v in ends]


@pytest.mark.parametrize("blocks", [1, 2])
def test_edges_of_random_connected_sets_are_all_on_routes(models, blocks):
    edges = paths_of(models["base"] if blocks == 1 else deepened(models["base"]), "all")
    for k in range(1, len(edges) + 1):
        sets = random_connected(edges, k, 10, 0)
        assert (sets.sum(1) == k).all()
        assert all(all(routed(edges, inside)) for inside in sets)
    half = random_connected(edges, len(edges) // 2, 10, 0)
    assert len(np.unique(half, axis=0)) > 3
    assert (half == random_connected(edges, len(edges) // 2, 10, 0)).all()
    assert (half != random_connected(edges, len(edges) // 2, 10, 1)).any()
    loose = random_sets(len(edges), len(edges) // 2, 10, 0)
    assert not all(all(routed(edges, inside)) for inside in loose)


def test_connected_random_edges_are_the_headline_s_control(result, make_pair):
    pair = make_pair()
    edges, test = paths_of(pair.base, "all"), draw_prompts(pair, "pt", 40)
    told = values(result, "faithfulness", "circuit", "k", kind="edges", model="tuned")
    k = round(TOP["edges"] * len(edges))
    assert result.metric("faithful_edges_tuned_random").value == told["random, connected", k]
    sets = torch.from_numpy(random_connected(edges, k, 10, pair.seed))
    before, after = test.gap(pair.tuned)
    run = run_circuits(pair.tuned, test.examples, edges, sets, test.read).numpy()
    assert told["random, connected", k] == pytest.approx((after - run.mean(0)).mean() / (after - before).mean(), abs=1e-4)
    assert "random" in values(result, "faithfulness", "circuit", kind="nodes").index


def test_a_node_scores_its_edges_and_keeps_those_to_others_of_the_circuit(make_pair):
    edges = paths_of(make_pair().base, "all")
    nodes = nodes_of(edges)
    assert nodes == [Site("head", 0, 0), Site("head", 0, 1), Site("mlp", 0)]
    scores = np.arange(2 * len(edges), dtype=float).reshape(2, -1)
    for i, node in enumerate(nodes):
        leaving = [j for j, (u, _) in enumerate(edges) if u == node]
        assert np.allclose(node_scores(scores, edges)[:, i], scores[:, leaving].sum(1))
    kept = {edge for edge, inside in zip(edges, edges_between(np.array([True, False, False]), edges), strict=True) if inside}
    ends = Site("stream", 0), Site("stream", 1)
    assert kept == {(ends[0], nodes[0]), (nodes[0], ends[1]), ends}


def test_evidence(made_up):
    told = {"told_apart_base": (9, 8, 10), "told_apart_tuned": (5, 4, 6), "base_pt": 1.0, "tuned_pt": 0.2}
    found = {"edges": 0.4, "edges_ceiling": 0.9, "edges_random": 0.1, "edges_other": 0.3, "nodes": 0.7}
    found |= {
        "faithful_edges_tuned_random": 0.3,
        "faithful_edges_tuned": 0.8,
        "faithful_edges_tuned_base": 0.6,
        "faithful_edges_revived_base": 0.5,
    }
    (line,) = evidence(made_up("circuits", **told, **found))
    assert (line.direction, line.metric, line.value) == ("neutral", "edges", 0.4)
    assert "share 0.40 (Jaccard; one model on other prompts 0.90, the base's own for another ability 0.30" in line.text
    assert "its own edges keep 0.80, the base's 0.60 and random routes of as many edges 0.30" in line.text
    assert "In the revived model the base's keep 0.50." in line.text
    (line,) = evidence(made_up("circuits", **told, **{**found, "edges_ceiling": 0.15}))
    assert line.direction == "uninformative"
    (line,) = evidence(made_up("circuits", **{**told, "tuned_pt": 0.95}, **found))
    assert line.direction == "uninformative"
    undefined = {**found, "edges": (math.nan, math.nan, math.nan, "undefined")}
    (line,) = evidence(made_up("circuits", **{**told, "told_apart_tuned": (0.5, 0.1, 0.9)}, **undefined))
    assert (line.direction, line.metric) == ("uninformative", "told_apart_tuned")
