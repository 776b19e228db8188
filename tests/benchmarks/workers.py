"""Two workers of one thread each against one worker of two threads: the rate of training steps by the wall clock."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from synthetic_tasks.protocols import pretraining
from tests.benchmarks.training import QUIET, SMALL, Nobody, task_of
from workbench.models.build import build_model
from workbench.models.spec import ModelSpec
from workbench.training.loop import train


def work(threads: int, steps: int) -> float:
    """Seconds that `steps` steps of the small model take, after a warm-up."""
    torch.set_num_threads(threads)
    task = task_of(SMALL)
    protocol = pretraining(task, {}, SMALL.batch_size, 0)
    model = build_model(ModelSpec(blocks=SMALL.blocks, heads=SMALL.heads, width=SMALL.width), task.vocab_size, task.context, 0)
    for count in (8, steps):
        begun = time.perf_counter()
        settings = QUIET.model_copy(update={"steps": count, "batch_size": SMALL.batch_size})
        train(model, protocol, settings, Nobody(), device=torch.device("cpu"), seed=0)
    return time.perf_counter() - begun


def two_against_one(steps: int, turns: int) -> float:
    """How many times the steps of one worker with two threads two workers with one thread do in the same time."""
    ratios: list[float] = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for _ in range(turns):
            single = pool.submit(work, 2, steps).result()
            both = [pool.submit(work, 1, steps) for _ in range(2)]
            ratios.append(2 * single / max(worker.result() for worker in both))
    return sorted(ratios)[len(ratios) // 2]
