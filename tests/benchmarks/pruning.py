"""A pruning curve that runs what lies before the first removed unit once, against whole passes at every point."""

from __future__ import annotations

import time

import torch

from tests.benchmarks.training import Size, task_of
from workbench.analyses.pruning import curve, k_grid, pruned
from workbench.models.build import build_model
from workbench.models.forward import accuracy, evaluate
from workbench.models.spec import ModelSpec
from workbench.models.units import units_of


def against_whole_passes(size: Size, examples: int, turns: int) -> float:
    """Seconds (CPU) of whole passes over ours for neurons of the last block, where reuse helps the most."""
    task = task_of(size)
    model = build_model(ModelSpec(blocks=size.blocks, heads=size.heads, width=size.width), task.vocab_size, task.context, 0)
    units, texts, grid = units_of(model), task.capability("count_a").examples(examples, 0), k_grid(40)
    order = torch.arange(len(units)).flip(0)
    ratios: list[float] = []
    for _ in range(turns + 1):
        begun = time.process_time()
        ours = curve(model, texts, order, grid, units)
        between = time.process_time()
        for k, found in zip(grid, ours, strict=True):
            with pruned(model, order, k, units):
                assert (evaluate(model, texts, accuracy).double().numpy() == found).all()
        ratios.append((time.process_time() - between) / (between - begun))
    return sorted(ratios[1:])[turns // 2]
