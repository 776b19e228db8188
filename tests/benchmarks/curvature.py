"""Curvature: products in gradients, and top eigenpairs and densities against hessian-eigenthings (a dependency of benchmarks alone).

Seconds are CPU seconds of one process; both tools take turns on the same model, data and loss, in math attention.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.benchmarks.training import SMALL, task_of
from workbench.curvature.density import density
from workbench.curvature.lanczos import extreme_pairs
from workbench.curvature.objective import Objective, of_model
from workbench.curvature.operators import hessian
from workbench.models.build import build_model
from workbench.models.forward import nll
from workbench.models.spec import ModelSpec

EXAMPLES = 64


@dataclass(frozen=True)
class Against:
    """Our seconds and theirs, and how far off each is."""

    ours: float
    theirs: float
    our_error: float
    their_error: float


def _model(width: int, blocks: int, steps: int = 60) -> tuple[Any, Any]:
    """A GPT-2 after some training, so that its Hessian has outliers, and examples."""
    task = task_of(SMALL)
    model = build_model(ModelSpec(blocks=blocks, heads=2, width=width), task.vocab_size, task.context, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        optimizer.zero_grad()
        nll(model, task.capability("count_a").examples(64, step, "train")).mean().backward()
        optimizer.step()
    return model.eval(), task.capability("count_a").examples(EXAMPLES, 0)


def _seconds(f: Callable[[], Any], turns: int) -> float:
    started = time.process_time()
    for _ in range(turns):
        f()
    return (time.process_time() - started) / turns


def products_in_gradients(turns: int) -> tuple[float, float]:
    """`(sequential product, column of a full Hessian)` in gradients, at about 5,000 parameters."""
    model, examples = _model(16, 2, steps=5)
    objective = of_model(model, examples[:8], "text")
    h = hessian(objective)
    v = torch.randn(objective.size, 32, dtype=torch.float64)
    one = v[:, 0].contiguous()
    for f in (objective.gradient, lambda: h @ one, lambda: h @ v):
        f()
    single, column = [], []
    for _ in range(turns):
        gradient = _seconds(objective.gradient, 5)
        single.append(_seconds(lambda: h @ one, 5) / gradient)
        column.append(_seconds(lambda: h @ v, 2) / 32 / gradient)
    return float(np.median(single)), float(np.median(column))


def _theirs(objective: Objective, model: Any, examples: Any) -> Any:
    from hessian_eigenthings import HessianOperator

    copy = objective.module.model  # double precision, as ours

    def loss(net: Any, batch: Any) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return nll(net, batch).mean()

    for parameter in copy.parameters():
        parameter.requires_grad_(True)
    return HessianOperator(copy, [examples], loss)


def against_eigenthings(short: bool) -> tuple[Against, Against, Against]:
    """Top 10 eigenvalues, a density of 80 steps and 10 probes, and one with 3 probes of ours, of a layer-norm GPT-2 (109,632 parameters).

    Of its numbers of Lanczos steps the one with the smallest error is timed: without full reorthogonalisation copies of the
    first eigenvalue come in from some number on. Ours stops at a residual of 1e-4, and its product for every residual counts.
    Errors: the largest of an eigenvalue, over lambda_1, ARPACK being right; of the trace, against a long Hutchinson run.

    Raises:
        ImportError: hessian-eigenthings is not there.
    """
    from hessian_eigenthings import lanczos, spectral_density
    from scipy.sparse.linalg import eigsh

    model, examples = _model(32 if short else 64, 2)
    objective = of_model(model, examples)
    h, theirs = hessian(objective), _theirs(objective, model, examples)
    true = eigsh(h.linear_operator(), 10, which="LA", return_eigenvectors=False)[::-1]
    best = (np.inf, 0.0)
    with sdpa_kernel(SDPBackend.MATH):
        for steps in (20,) if short else (30, 40, 50, 60, 90):
            found, seconds = _timed(lambda steps=steps: lanczos(theirs, k=10, max_iter=steps, which="LA", seed=0))
            values = np.sort(np.asarray(found.eigenvalues, dtype=np.float64))[::-1]
            best = min(best, (float(np.abs(values - true).max() / true[0]), seconds))
        pairs, seconds = _timed(lambda: extreme_pairs(h, 10, block=1, tolerance=1e-4))
        top = Against(seconds, best[1], float(np.abs(pairs.values - true).max() / true[0]), best[0])

        steps, probes = (8, 2) if short else (80, 10)
        slq, their_seconds = _timed(lambda: spectral_density(theirs, num_runs=probes, lanczos_steps=steps, seed=0))
        ours = {
            n: _timed(lambda n=n: density(h, steps=steps, probes=n, deflate=pairs)) for n in (probes, max(2, 3 * probes // 10))
        }
    signs = torch.randint(0, 2, (objective.size, 32 if short else 400), dtype=torch.float64) * 2 - 1
    trace = float((signs * (h @ signs)).sum() / signs.shape[1])
    guess = objective.size * float((slq.raw_eigenvalues * slq.raw_weights).sum(1).mean())
    off = abs(guess / trace - 1)
    same, fewer = (Against(spent, their_seconds, abs(mine.trace.value / trace - 1), off) for mine, spent in ours.values())
    return top, same, fewer


def _timed(f: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    found = f()
    return found, time.process_time() - started
