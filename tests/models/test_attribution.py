"""First-order estimates: the limit of small patches, exact where nothing bends, and TransformerLens' own numbers."""

from dataclasses import replace

import pytest
import torch

from workbench.models.anatomy import blocks
from workbench.models.attribution import attribution_grid, slopes
from workbench.models.compiled import build
from workbench.models.fingerprint import check_unchanged
from workbench.models.lens import lens
from workbench.models.patching import Cell, Donor, patch_grid
from workbench.models.sites import EMBEDDING, Site, components, record
from workbench.protocols import compiled_weights, load_task


def elsewhere(examples):
    return replace(examples, tokens=examples.tokens.roll(1, 0))


def read(logits, rows):
    """At the last token of the answer."""
    return logits[:, -1, 3] - logits[:, -1, 4]


def cells_of(model, examples):
    last = len(blocks(model))
    sites = [
        *components(model),
        *(Site(kind, b) for b in range(last) for kind in ("middle", "attention", "neurons")),
        Site("stream", last),
    ]
    at = (examples.answer_position - torch.arange(len(examples)) % 3).clamp(min=0)
    return [Cell(site, places) for site in sites for places in (None, at, examples.answer_position)]


def test_it_is_the_limit_of_small_patches(make_model, kind, random_examples, left_padded):
    """A patch of a thousandth of the way does a thousandth of the estimate."""
    for examples in (random_examples(n=5), random_examples(n=5, padded=True, k=2), left_padded):
        model = make_model(kind, dtype=torch.float64)
        other, cells = elsewhere(examples), cells_of(model, examples)
        sites = list({cell.site for cell in cells})
        own, theirs = (record(model, e, sites) for e in (examples, other))
        step = 1e-3
        near = {site: own[site] + step * (theirs[site] - own[site]) for site in sites}
        grid = patch_grid(model, examples, near, cells, read)
        with check_unchanged(model):
            found = attribution_grid(model, examples, Donor(model, other), cells, read, batch_size=3)
        assert torch.allclose((grid.values - grid.plain) / step, found, rtol=0.05, atol=0.02 if kind == "gpt2" else 0.1)
        assert found.abs().max() > 1


def test_it_is_exact_where_nothing_bends(random_examples):
    """A compiled model has no norm: what the last MLP and its neurons write goes straight to the logits."""
    task = load_task({"kind": "rasp", "length": 6, "letters": 3})
    model = build(compiled_weights(task, "count_a"), 0.05)
    examples = task.capability("count_a").examples(6, 0)
    other, last = task.counterfactual("count_a", examples, 0), len(blocks(model)) - 1
    cells = [Cell(Site(kind, last), examples.answer_position) for kind in ("mlp", "neurons")] + [Cell(Site("mlp", last))]
    grid = patch_grid(model, examples, Donor(model, other), cells, read)
    found = attribution_grid(model, examples, Donor(model, other), cells, read)
    assert torch.allclose(grid.values - grid.plain, found, atol=1e-4)
    assert found.abs().max() > 0.01


def test_no_parameter_receives_a_gradient_and_none_needs_one(make_model, random_examples):
    model, examples = make_model(), random_examples()
    found = slopes(model, examples, [EMBEDDING, Site("mlp", 0)], lambda x: read(x, None))[1]
    assert all(p.grad is None for p in model.parameters())
    for p in model.parameters():
        p.requires_grad_(False)
    again = slopes(model, examples, [EMBEDDING, Site("mlp", 0)], lambda x: read(x, None))[1]
    for p in model.parameters():
        p.requires_grad_(True)
    assert all(torch.equal(found[site], again[site]) for site in found)


def test_transformer_lens_attribution_of_every_node(make_model, random_examples):
    from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

    model, examples = make_model(), random_examples(n=3)
    examples = replace(examples, answer_position=torch.full((3,), 8), answer=examples.tokens[:, 9:])
    other = elsewhere(examples)
    metric = lambda logits: (logits[:, 8, 3] - logits[:, 8, 4]).mean()  # noqa: E731
    theirs = attribution_patch(lens(model), other.tokens, examples.tokens, metric, EdgeAttributionConfig(granularity="node"))
    kinds = {"embed": "stream", "attn_head_out": "head", "mlp_out": "mlp"}
    nodes = [node for node in theirs.node_scores if node.kind in kinds and node.position < 9]
    cells = [Cell(Site(kinds[n.kind], n.layer or 0, n.head), torch.full((3,), n.position)) for n in nodes]
    found = attribution_grid(model, examples, Donor(model, other), cells, read).mean(1)
    expected = torch.tensor([float(theirs.node_scores[node]) for node in nodes])
    assert len(nodes) == 9 * (1 + 4 + 2)
    assert torch.allclose(found, expected, atol=1e-4)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("size", [1, 100])
def test_batches_change_nothing(make_model, random_examples, size):
    model, examples = make_model(), random_examples()
    cells, donor = cells_of(model, examples), Donor(model, elsewhere(examples))
    expected = attribution_grid(model, examples, donor, cells, read)
    assert torch.allclose(attribution_grid(model, examples, donor, cells, read, size), expected, atol=1e-5)
