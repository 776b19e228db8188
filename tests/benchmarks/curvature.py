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


def against_eigenthings(short: bool) -> tuple[Against, Against]:
    """Top 10, and a density of 80 steps and 10 probes, of a layer-norm GPT-2 of about 100,000 parameters.

    Errors: the largest residual ||Hv - lambda v|| over the largest eigenvalue; of the trace against a long Hutchinson run.

    Raises:
        ImportError: hessian-eigenthings is not there.
    """
    from hessian_eigenthings import lanczos, spectral_density

    model, examples = _model(32 if short else 64, 2)
    objective = of_model(model, examples)
    h, theirs = hessian(objective), _theirs(objective, model, examples)
    with sdpa_kernel(SDPBackend.MATH):
        started = time.process_time()
        pairs = extreme_pairs(h, 10)
        middle = time.process_time()
        # Its defaults stop unconverged; this many steps make its residuals as small as ours are asked to be.
        other = lanczos(theirs, k=10, max_iter=20 if short else 90, which="LA", seed=0)
        ended = time.process_time()
        vectors = torch.as_tensor(np.asarray(other.eigenvectors)).reshape(10, -1).T.to(h.dtype).contiguous()
        values = torch.as_tensor(np.asarray(other.eigenvalues)).to(h.dtype)
        off = float(((h @ vectors) - vectors * values).norm(dim=0).max()) / pairs.scale
        top = Against(middle - started, ended - middle, float(pairs.residuals.max()) / pairs.scale, off)

        steps, probes = (8, 2) if short else (80, 10)
        started = time.process_time()
        found = density(h, steps=steps, probes=probes, deflate=pairs)
        middle = time.process_time()
        slq = spectral_density(theirs, num_runs=probes, lanczos_steps=steps, seed=0)
        ended = time.process_time()
    signs = torch.randint(0, 2, (objective.size, 32 if short else 400), dtype=torch.float64) * 2 - 1
    true = float((signs * (h @ signs)).sum() / signs.shape[1])
    guess = objective.size * float((slq.raw_eigenvalues * slq.raw_weights).sum(1).mean())
    return top, Against(
        middle - started, ended - middle, abs(found.trace.value - true) / abs(true), abs(guess - true) / abs(true)
    )
