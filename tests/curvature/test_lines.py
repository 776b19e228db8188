"""Each row's slope and curvature along a direction: of a quadratic in closed form, of a transformer against the gradient and H."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from workbench.curvature.lines import along, resampled_means
from workbench.curvature.objective import Objective, Part, of_model
from workbench.curvature.operators import hessian
from workbench.models.build import build_model
from workbench.models.spec import ModelSpec


def test_of_a_linear_regression_they_are_known():
    generator = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(7, 3, generator=generator, dtype=torch.float64),
        torch.randn(7, 1, generator=generator, dtype=torch.float64),
    )
    layer = nn.Linear(3, 1, bias=False)
    objective = Objective(layer, [Part(x[:4], y[:4]), Part(x[4:], y[4:])], "squared_error")
    v = torch.randn(3, generator=generator, dtype=torch.float64)
    found = along(objective, v)
    moved = x @ v
    off = (x @ layer.weight.double().T - y)[:, 0].detach()
    np.testing.assert_allclose(found.slope, (2 * off * moved).numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.curvature, (2 * moved.square()).numpy(), rtol=1e-12)


def test_of_a_transformer_their_means_are_the_gradient_and_the_hessian(lookup):
    model = build_model(ModelSpec(kind="gpt2", blocks=2, heads=2, width=16), 9, 15, 0)
    for on in ("answers", "text"):
        objective = of_model(model, lookup(24), on, tokens=150)
        v = torch.randn(objective.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        found = along(objective, v)
        assert len(found.slope) == objective.rows
        np.testing.assert_allclose(found.slope.mean(), float(objective.gradient() @ v), rtol=1e-10)
        np.testing.assert_allclose(found.curvature.mean(), float(v @ (hessian(objective) @ v)), rtol=1e-9)


def test_the_rows_of_an_example_are_drawn_together():
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a * x

    owners = torch.tensor([0, 0, 0, 1])
    objective = Objective(Alone(), [Part(torch.ones(4, 1), torch.zeros(4, 1), owners)], "squared_error")
    drawn = resampled_means(objective, np.array([1.0, 1.0, 1.0, 5.0]), 300, 0)
    # Two examples: both once (mean 2), the first twice (1), the second twice (5).
    assert set(np.round(drawn, 12)) == {1.0, 2.0, 5.0}
