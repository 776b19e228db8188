"""Edge attribution: TransformerLens' scores, finite differences one edge at a time, and sums that must hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models.graph import against, edges_of, read

from workbench.models import paths
from workbench.models.anatomy import blocks
from workbench.models.attribution import attribution_grid
from workbench.models.compiled import build
from workbench.models.edges import edge_scores
from workbench.models.fingerprint import check_unchanged
from workbench.models.forward import answer_logits
from workbench.models.lens import lens
from workbench.models.patching import Cell, Donor
from workbench.models.paths import path_grid, receivers_of, senders_of
from workbench.models.sites import EMBEDDING, Site
from workbench.protocols import compiled_weights, load_task


def test_scores_are_slopes_of_path_patches(corrupted, monkeypatch):
    """Central differences of path patches by a small part of the change, one edge at a time."""
    model, examples = corrupted
    scores = edge_scores(model, examples, edges_of(model), read, batch_size=4)
    assert scores.shape == (len(examples), len(edges_of(model)))
    step = 1e-2 if "Llama" in type(model).__name__ else 1e-5  # the norm of Llama computes in float32
    whole, edges = paths._change, edges_of(model)[::2]

    def shifted(part):
        monkeypatch.setattr(paths, "_change", lambda *of: part * whole(*of))
        return path_grid(model, examples, Donor(model, examples.counterfactual), edges, read).values.double()

    expected = (shifted(step / 2) - shifted(-step / 2)) / step
    for edge, score, slope in zip(edges, scores.T[::2], expected, strict=True):
        assert torch.allclose(score, slope, rtol=5e-3, atol=2e-3 * float(scores.abs().max())), edge
    assert (expected.abs() > 0.01 * expected.abs().max()).double().mean() > 0.3


def test_where_everything_is_linear_the_estimate_is_the_path_patch(random_examples):
    """A compiled model has no norm: what goes straight to the logits, or through an MLP of open neurons, is exact."""
    task = load_task({"kind": "rasp", "length": 6, "letters": 3})
    model = build(compiled_weights(task, "count_a"), 0.05).double()
    last = len(blocks(model)) - 1
    mlp = blocks(model)[last].mlp
    with torch.no_grad():  # all neurons far from their kink
        mlp.input.bias += 1e3
        mlp.output.bias -= mlp.output.weight @ torch.full_like(mlp.input.bias, 1e3)
    examples = against(task.capability("count_a").examples(6, 0))
    linear = lambda logits, rows: logits[:, 0, 3] - logits[:, 0, 1]  # noqa: E731
    edges = [(u, v) for u, v in edges_of(model) if v in (Site("mlp", last), Site("stream", last + 1))]
    grid = path_grid(model, examples, Donor(model, examples.counterfactual), edges, linear)
    exact = (grid.values - grid.plain).T
    assert (exact.abs().mean(0) > 1e-6).sum() > len(edges) / 2
    for steps in (1, 3):
        assert torch.allclose(edge_scores(model, examples, edges, linear, steps), exact, atol=1e-9)


def test_edges_that_leave_a_node_add_up_to_its_own_estimate(corrupted):
    model, examples = corrupted
    scores = edge_scores(model, examples, edges_of(model), read)
    edges, nodes = edges_of(model), senders_of(model)
    direct = attribution_grid(model, examples, Donor(model, examples.counterfactual), [Cell(node) for node in nodes], read)
    for node, estimate in zip(nodes, direct, strict=True):
        mine = scores[:, [i for i, (u, _) in enumerate(edges) if u == node]].sum(1)
        assert torch.allclose(mine.float(), estimate.float(), rtol=1e-4, atol=1e-5), node


@pytest.mark.parametrize("corrupted", ["gpt2", "compiled"], indirect=True)  # ways without sharp turns
@pytest.mark.slow
def test_with_many_steps_the_embedding_carries_all_of_the_difference(corrupted):
    """Integrated gradients are complete: what a finite number of steps leaves out falls with one over it."""
    model, examples = corrupted
    examples = examples[torch.arange(3)]
    rows = torch.arange(len(examples))
    with torch.no_grad():
        before, after = (read(answer_logits(model, e), rows) for e in (examples, examples.counterfactual))
    edges = [(EMBEDDING, v) for v in receivers_of(model)]
    one, some, more = (edge_scores(model, examples, edges, read, steps).sum(1) for steps in (1, 15, 30))
    scale = float((after - before).abs().max())
    assert (2 * more - some - (after - before)).abs().max() < 0.1 * scale
    assert (one - (after - before)).abs().max() > 0.2 * scale


def test_transformer_lens_scores_the_same_edges_alike(make_model, random_examples):
    from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch

    model = make_model("gpt2", blocks=2, heads=2)
    drawn = random_examples(n=4)
    examples = against(replace(drawn, answer_position=torch.full((4,), 8)))
    tokens, other = (e.tokens[:, :9] for e in (examples, examples.counterfactual))
    # Theirs go from corrupt to clean with the slope at the corrupt prompt: ours with the roles exchanged.
    theirs = attribution_patch(
        lens(model), other, tokens, lambda logits: read(logits[:, -1:], None)[0], EdgeAttributionConfig(granularity="edge")
    )
    totals: dict[tuple[Site, Site], float] = {}
    for (u, v), score in theirs.edge_scores.items():
        edge = (site_of(u), site_of(v))
        totals[edge] = totals.get(edge, 0.0) + score
    ours = dict(zip(edges_of(model), edge_scores(model, examples, edges_of(model), read).mean(0).tolist(), strict=True))
    assert set(totals) == set(ours)
    for edge, score in ours.items():
        assert score == pytest.approx(totals[edge], rel=2e-3, abs=2e-5), edge


def site_of(node):
    kinds = {
        "attn_head_out": "head",
        "q_input": "head",
        "k_input": "head",
        "v_input": "head",
        "mlp_out": "mlp",
        "mlp_in": "mlp",
    }
    if node.kind == "embed":
        return EMBEDDING
    if node.kind == "logits":
        return Site("stream", node.layer + 1)
    return Site(kinds[node.kind], node.layer, node.head)


def test_nothing_changes_nothing_and_models_are_left_as_they_were(make_model, random_examples):
    model, examples = make_model(), random_examples()
    model.requires_grad_(False)
    try:
        with check_unchanged(model):
            same = edge_scores(model, replace(examples, counterfactual=examples), edges_of(model), read)
            assert not same.any()
            assert edge_scores(model, against(examples), edges_of(model), read).any()
            assert torch.isfinite(answer_logits(model, examples)).all()
    finally:
        model.requires_grad_(True)
    assert len(receivers_of(model)) == 7
    with pytest.raises(ValueError, match="counterfactual"):
        edge_scores(model, examples, edges_of(model), read)
