"""Circuits against what their ends must be, activation patches of whole nodes, and single path patches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models.graph import edges_of, read

from workbench.models.anatomy import blocks, head_outputs, matrix
from workbench.models.circuits import run_circuits
from workbench.models.fingerprint import check_unchanged
from workbench.models.forward import answer_logits
from workbench.models.patching import Donor
from workbench.models.paths import path_grid, receivers_of, senders_of
from workbench.models.sites import EMBEDDING, Replacement, Site, record, replaced


def both_ends(model, examples):
    rows = torch.arange(len(examples))
    with torch.no_grad():
        return [read(answer_logits(model, e), rows) for e in (examples, examples.counterfactual)]


def induced(model, nodes):
    """All edges between these nodes, the embedding and the logits."""
    inside = {EMBEDDING, Site("stream", len(blocks(model))), *nodes}
    return torch.tensor([u in inside and v in inside for u, v in edges_of(model)])


def test_all_edges_are_the_model_and_none_is_its_run_on_the_counterfactual(corrupted):
    model, examples = corrupted
    edges = edges_of(model)
    with check_unchanged(model):
        circuits = torch.stack([torch.ones(len(edges)), torch.zeros(len(edges))]).bool()
        whole, nothing = run_circuits(model, examples, edges, circuits, read, batch_size=4)
    prompt, counterfactual = both_ends(model, examples)
    assert torch.allclose(whole, prompt, atol=1e-5)
    assert torch.equal(nothing, counterfactual) or torch.allclose(nothing, counterfactual, atol=1e-9)
    assert (prompt - counterfactual).abs().max() > 0.1


def test_edges_between_some_nodes_are_a_patch_of_all_others(corrupted):
    model, examples = corrupted
    nodes = senders_of(model)[1:]
    sets = [nodes[::2], nodes[1:3], [], nodes[: len(nodes) // 2]]
    found = run_circuits(model, examples, edges_of(model), torch.stack([induced(model, s) for s in sets]), read)
    rows = torch.arange(len(examples))
    given = record(model, examples.counterfactual, nodes)
    for kept, values in zip(sets, found, strict=True):
        outside = {node: Replacement(given[node]) for node in nodes if node not in kept}
        with replaced(model, outside), torch.no_grad():
            expected = read(answer_logits(model, examples), rows)
        assert torch.allclose(values, expected, atol=1e-5), kept


def test_one_edge_to_the_logits_is_a_path_patch_of_the_counterfactual_run(corrupted):
    """A circuit of one edge that begins at the embedding is the path patch of the other run by this one; else it is nothing."""
    model, examples = corrupted
    edges = edges_of(model)
    swapped = replace(examples.counterfactual, counterfactual=examples)
    direct = (EMBEDDING, Site("stream", len(blocks(model))))
    first = (EMBEDDING, Site("mlp", 0))
    onward = (Site("mlp", 0), direct[1])
    circuits = torch.tensor([[edge == direct for edge in edges], [edge == onward for edge in edges]])
    found = run_circuits(model, examples, edges, circuits, read)
    patched = path_grid(model, swapped, Donor(model, examples), [direct], read)
    assert torch.allclose(found[0], patched.values[0], atol=1e-5)
    assert torch.allclose(found[1], patched.plain, atol=1e-9)  # nothing of the prompt comes in
    chain = torch.tensor([[edge in (first, onward) for edge in edges]])
    assert (run_circuits(model, examples, edges, chain, read)[0] - patched.plain).abs().max() > 1e-3


@torch.no_grad()
def naive(model, examples, kept):
    """Reader by reader: a whole pass over the counterfactual prompts with the stream before the reader replaced."""
    other = examples.counterfactual
    sites = [*senders_of(model), *receivers_of(model)]
    own = record(model, other, sites)
    changes = {EMBEDDING: record(model, examples, [EMBEDDING])[EMBEDDING] - own[EMBEDDING]}
    for reader in receivers_of(model):
        change = sum(changes[u] for u in senders_of(model) if (u, reader) in kept and u in changes)
        if reader.kind == "stream":
            with replaced(model, {reader: Replacement(own[reader] + change)}):
                return read(answer_logits(model, other), torch.arange(len(other)))
        before = Site("stream" if reader.kind == "head" else "middle", reader.block)
        with replaced(model, {before: Replacement(record(model, other, [before])[before] + change)}):
            changes[reader] = record(model, other, [reader])[reader] - own[reader]
        if reader.kind == "head":
            width = changes[reader].shape[-1]
            weight = matrix(head_outputs(model)[reader.block])[:, reader.head * width : (reader.head + 1) * width]
            changes[reader] = changes[reader] @ weight.T
    return None


def test_any_circuit_is_what_the_naive_twin_computes(corrupted):
    model, examples = corrupted
    edges = edges_of(model)
    chance = torch.tensor([0.25, 0.5, 0.5, 0.75, 0.9])[:, None]
    circuits = torch.rand(5, len(edges), generator=torch.Generator().manual_seed(1)) < chance
    found = run_circuits(model, examples, edges, circuits, read)
    for circuit, values in zip(circuits, found, strict=True):
        kept = {edge for edge, inside in zip(edges, circuit, strict=True) if inside}
        assert torch.allclose(values, naive(model, examples, kept), atol=1e-5)
    assert found.std(0).max() > 0.05


def test_without_counterfactuals_there_is_nothing_to_run_outside(make_model, random_examples):
    with pytest.raises(ValueError, match="counterfactual"):
        run_circuits(make_model(), random_examples(), [], torch.zeros(1, 0, dtype=torch.bool), read)
