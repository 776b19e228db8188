"""Activation patching of every site at every place, against one replacement and one whole pass for each."""

from __future__ import annotations

import time

import torch

from tests.benchmarks.training import SMALL, task_of
from workbench.models.build import build_model
from workbench.models.forward import answer_logits
from workbench.models.patching import Cell, Donor, patch_grid
from workbench.models.sites import Replacement, Site, record, replaced
from workbench.models.spec import ModelSpec

EXAMPLES = 128


def against_one_at_a_time(cells_timed: int = 16, other_model: bool = False) -> tuple[float, float, float]:
    """`(ratio, our seconds, naive seconds)` of CPU time for all cells; the naive loop is timed on some and scaled up.

    Activations come from counterfactual prompts, or from another model on the same ones, where no activation is shared.
    """
    task = task_of(SMALL)
    sizes = ModelSpec(blocks=SMALL.blocks, heads=SMALL.heads, width=SMALL.width)
    model, other = (build_model(sizes, task.vocab_size, task.context, seed) for seed in (0, 1))
    examples = task.capability("count_a").examples(EXAMPLES, 0)
    donor = Donor(other, examples) if other_model else Donor(model, task.counterfactual("count_a", examples, 0))
    whole = [Site(kind, b) for b in range(SMALL.blocks) for kind in ("stream", "attention", "mlp")]
    sites = [*whole, *(Site("head", b, h) for b in range(SMALL.blocks) for h in range(SMALL.heads))]
    places = range(task.layout.request + 1)
    cells = [Cell(site, torch.full((EXAMPLES,), place)) for site in sites for place in places] + [Cell(site) for site in sites]
    values = record(donor.model, donor.examples, sites)
    chosen = torch.linspace(0, len(cells) - 1, cells_timed).long().tolist()
    found: list[torch.Tensor] = []
    with torch.no_grad():
        answer_logits(model, examples)  # warm
        start = time.process_time()
        for number in chosen:
            cell, where = cells[number], None
            if cell.positions is not None:
                where = torch.zeros(examples.tokens.shape, dtype=torch.bool)
                where[torch.arange(EXAMPLES), cell.positions] = True
            with replaced(model, {cell.site: Replacement(values[cell.site], where)}):
                found.append(answer_logits(model, examples))
    naive = (time.process_time() - start) / cells_timed * len(cells)
    patch_grid(model, examples, donor, cells[:1])  # warm
    start = time.process_time()
    grid = patch_grid(model, examples, donor, cells)
    ours = time.process_time() - start
    assert (grid.values[chosen] - torch.stack(found)).abs().max() < 1e-5
    return naive / ours, ours, naive
