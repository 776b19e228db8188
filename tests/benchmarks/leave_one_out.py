"""Leave-one-out of every neuron, against a mask and a pass for each."""

from __future__ import annotations

import time

import torch

from tests.benchmarks.training import SMALL, task_of
from workbench.models.build import build_model
from workbench.models.forward import accuracy, evaluate, nll
from workbench.models.leave_one_out import leave_one_out
from workbench.models.spec import ModelSpec
from workbench.models.units import units_of

EXAMPLES = 256


def against_naive(units_timed: int = 32) -> tuple[float, float, float]:
    """`(ratio, our seconds, naive seconds)` of CPU time for all neurons; the naive loop is timed on some and scaled up.

    The naive loop measures the loss alone, which is half of what we give; their losses must agree.
    """
    task = task_of(SMALL)
    model = build_model(ModelSpec(blocks=SMALL.blocks, heads=SMALL.heads, width=SMALL.width), task.vocab_size, task.context, 0)
    examples, units = task.capability("count_a").examples(EXAMPLES, 0), units_of(model)
    base = evaluate(model, examples, nll).double().mean()
    evaluate(model, examples, accuracy)
    chosen = torch.linspace(0, len(units) - 1, units_timed).long()
    start = time.process_time()
    changes: list[torch.Tensor] = []
    for number in chosen:
        with units.removed(model, number[None]):
            changes.append(evaluate(model, examples, nll).double().mean() - base)
    naive = (time.process_time() - start) / units_timed * len(units)
    leave_one_out(model, examples[:128])  # warm
    start = time.process_time()
    found = leave_one_out(model, examples)
    ours = time.process_time() - start
    assert (found.loss.flatten()[chosen] - torch.stack(changes)).abs().max() < 1e-6
    return naive / ours, ours, naive
