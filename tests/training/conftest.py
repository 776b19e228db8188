"""Protocols of random tokens, small models with dropout, and a listener that remembers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from workbench.examples import Examples
from workbench.models.build import build_model
from workbench.models.spec import ModelSpec


@dataclass
class Random:
    """A protocol of random tokens; `asked` lists the steps whose batches were drawn."""

    draw: Callable[..., Examples]
    batch_size: int = 6
    everywhere: bool = False
    k: int = 1
    asked: list[int] = field(default_factory=list)

    @property
    def asks(self) -> frozenset[str]:
        return frozenset()

    def batch(self, step: int) -> Examples:
        self.asked.append(step)
        return self.draw(n=self.batch_size, seed=step, everywhere=self.everywhere, k=self.k)


@dataclass
class Remember:
    """Keeps every logged step and a copy of the weights at every point; `stop_at` ends the training there."""

    stop_at: int | None = None
    steps: list[Any] = field(default_factory=list)
    points: list[tuple[int, bool]] = field(default_factory=list)
    weights: dict[int, Any] = field(default_factory=dict)
    due_after: int | None = None
    state: Callable[[], Any] | None = None
    modes: list[bool] = field(default_factory=list)
    order: list[tuple[str, int]] = field(default_factory=list)

    def step(self, step: Any) -> None:
        self.steps.append(step)
        self.order.append(("step", step.step))

    def due(self) -> bool:
        return bool(self.order) and self.order[-1] == ("step", self.due_after)

    def grid(self, step: int, model: Any, state: Callable[[], Any], last: bool) -> bool:
        self.points.append((step, last))
        self.weights[step] = copy.deepcopy(model.state_dict())
        self.modes.append(model.training)
        self.state = state
        self.order.append(("grid", step))
        return step == self.stop_at


@pytest.fixture
def protocol(random_examples) -> Callable[..., Random]:
    """`(batch_size=6, everywhere=False, k=1) -> protocol`."""
    return lambda **given: Random(random_examples, **given)


@pytest.fixture
def listener() -> Callable[..., Remember]:
    """`(stop_at=None) -> listener`."""
    return Remember


@pytest.fixture
def small() -> Callable[..., Any]:
    """`(dropout=0.0, seed=0) -> model` of vocabulary 20 and context 12."""

    def make(dropout: float = 0.0, seed: int = 0) -> Any:
        model = build_model(ModelSpec(heads=2, width=16), 20, 12, seed)
        if not dropout:
            return model
        rates = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
        wet = GPT2LMHeadModel(GPT2Config(**{**model.config.to_dict(), **rates}))
        wet.load_state_dict(model.state_dict())
        return wet

    return make
