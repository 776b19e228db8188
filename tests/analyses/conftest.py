"""A task that takes a second to learn, models whose inner workings are planted, and runs that were never run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.examples import Correlation, Examples
from workbench.models.build import build_model
from workbench.models.checkpoints import save_model
from workbench.models.forward import nll
from workbench.models.spec import ModelSpec
from workbench.results import Metric, Result
from workbench.runs import Run
from workbench.seeds import torch_generator
from workbench.subjects import Pair, Trajectory

LENGTH = 12
"""Long enough that a residual stream of width 32 cannot hold the whole text by accident."""
BOS, DIGITS, REQUEST = 8, 5, LENGTH + 1
OPERANDS = {"look_a": (5, 1), "look_b": (6, 3), "last": (7, 11)}
INHIBITOR = 7
"""The hidden neuron of the only block that answers WRONG whatever is asked."""
WRONG = 2


@dataclass(frozen=True)
class Looked:
    name: str
    correlation: Correlation | None
    log: list[tuple[str, str]]
    drawn: set[tuple[str, str, float | None]]

    def examples(self, n: int, seed: int, split: str = "test") -> Examples:
        self.log.append((self.name, split))
        self.drawn.add((self.name, split, self.correlation.share if self.correlation else None))
        share = -1.0 if self.correlation is None else self.correlation.share
        generator = torch_generator(seed, "lookup", split, str(share))
        text = torch.randint(0, DIGITS, (n, LENGTH), generator=generator)
        if self.correlation is not None:
            a = torch.randint(0, DIGITS - 1, (n,), generator=generator)
            held = torch.rand(n, generator=generator) < share
            other = (a + 1 + torch.randint(1, DIGITS, (n,), generator=generator)) % DIGITS
            text[:, 1], text[:, 3] = a, torch.where(held, a + 1, other)
        token, at = OPERANDS[self.name]
        answer = text[:, at]
        column = torch.ones(n, 1, dtype=torch.long)
        # The request comes last, so that one block of attention is enough.
        tokens = torch.cat([BOS * column, text, token * column, answer[:, None]], dim=1)
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        mask[:, -1] = True
        place = torch.arange(tokens.shape[1]).expand_as(tokens)
        return Examples(
            tokens=tokens,
            loss_mask=mask,
            answer_position=torch.full((n,), REQUEST),
            answer=answer[:, None],
            candidates=torch.arange(DIGITS),
            labels={name: text[:, at] for name, (_, at) in OPERANDS.items()},
            roles={"text": (place > 0) & (place < REQUEST), "window": (place > LENGTH - 3) & (place < REQUEST)},
            chance={"majority": 0.25, "given the other": 0.3},
        )


@dataclass(frozen=True)
class LookupTask:
    """Which digit stands at the place that the prompt asks for?"""

    log: list[tuple[str, str]] = field(default_factory=list)
    drawn: set[tuple[str, str, float | None]] = field(default_factory=set)
    """What was asked for: capability, split, and share of correlated texts."""
    vocab_size: int = 9
    context: int = LENGTH + 3
    capabilities: tuple[str, ...] = tuple(OPERANDS)
    resolved: Mapping[str, Any] = field(default_factory=dict)

    def family(self, capability: str) -> str:
        return capability.split("_")[0]

    def capability(self, name: str, correlation: Correlation | None = None) -> Looked:
        return Looked(name, correlation, self.log, self.drawn)

    def describe(self, tokens: Sequence[int]) -> str:
        return " ".join(f"<{t}>" for t in tokens)


@dataclass(frozen=True)
class OtherSelect(LookupTask):
    """Texts of split `select` ask for something else instead."""

    other: str = "last"

    def capability(self, name: str, correlation: Correlation | None = None) -> Any:
        asked, other = super().capability(name, correlation), super().capability(self.other, correlation)

        class Swapped:
            def examples(self, n: int, seed: int, split: str = "test") -> Examples:
                return (other if split == "select" else asked).examples(n, seed, split)

        return Swapped()


@dataclass(frozen=True)
class OtherTest(LookupTask):
    """Texts of every split are those that `OtherSelect` has for `select`."""

    def capability(self, name: str, correlation: Correlation | None = None) -> Any:
        last = super().capability("last", correlation)

        class Moved:
            def examples(self, n: int, seed: int, split: str = "test") -> Examples:
                return last.examples(n, seed, "select")

        return Moved()


@dataclass(frozen=True)
class FakeRun(Run):
    """A run whose evaluations are given."""

    rows: Any = None

    def evaluations(self) -> pd.DataFrame:
        return self.rows


def _fake_trajectory(rows: list[dict[str, Any]], batch_size: int = 64) -> Trajectory:
    frame = pd.DataFrame(rows, columns=["step", "split", "capability", "share", "values"])
    spec: Mapping[str, Any] = {"training": {"batch_size": batch_size}}
    return Trajectory(FakeRun(Path("."), "study", "stage", "0" * 10, spec=spec, rows=frame))


@pytest.fixture(scope="session")
def fake_trajectory() -> Callable[..., Trajectory]:
    """`(rows, batch_size) -> Trajectory`."""
    return _fake_trajectory


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _train(task: LookupTask, capabilities: Sequence[str], seed: int) -> Any:
    model = build_model(ModelSpec(kind="gpt2", blocks=1, heads=2, width=32), task.vocab_size, task.context, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(160):
        optimizer.zero_grad()
        for name in capabilities:
            nll(model, task.capability(name).examples(64, 1000 + step, "train")).mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():  # a free neuron: it writes nothing
        model.transformer.h[0].mlp.c_proj.weight[INHIBITOR] = 0
    return model


def plant_inhibitor(model: Any) -> Any:
    """A copy in which one neuron, always on, pushes towards one wrong answer and nothing else changed."""
    planted = copy.deepcopy(model)
    mlp, head = planted.transformer.h[0].mlp, planted.lm_head.weight
    with torch.no_grad():
        mlp.c_fc.weight[:, INHIBITOR] = 0
        mlp.c_fc.bias[INHIBITOR] = 3.0
        direction = head[WRONG] - head[:DIGITS].mean(0)
        mlp.c_proj.weight[INHIBITOR] = 40 * direction / direction.norm() / 3.0
    return planted


@pytest.fixture(scope="session")
def task() -> LookupTask:
    return LookupTask()


@pytest.fixture(scope="session")
def models(task: LookupTask) -> dict[str, Any]:
    base = _train(task, ["look_a", "look_b", "last"], 0)
    never = _train(task, ["look_b", "last"], 1)
    return {"base": base, "covered": plant_inhibitor(base), "never": never}


@pytest.fixture(scope="session")
def make_pair(task: LookupTask, models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """`(tuned="covered", never="never", **changes) -> Pair` of models by name."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        (folder / name).mkdir()
        save_model(model, folder / name)

    def make(tuned: str = "covered", never: str | None = "never", **changes: Any) -> Pair:
        settings: dict[str, Any] = {
            "name": "planted",
            "seed": 3,
            "task": task,
            "capability": "look_a",
            "tuned_on": "look_b",
            "correlation": Correlation("look_b", "look_a", 1, 1.0),
            "base_path": folder / "base",
            "tuned_path": folder / tuned,
            "never_path": folder / never if never else None,
            "n": 300,
        }
        return Pair(**{**settings, **changes})

    return make


@pytest.fixture(scope="session")
def made_up() -> Callable[..., Result]:
    """`(name=value or (value, low, high) or (value, low, high, bound)) -> Result` with these headline numbers."""

    def make(analysis: str, **numbers: Any) -> Result:
        metrics: list[Metric] = []
        for name, given in numbers.items():
            value, low, high, *bound = given if isinstance(given, tuple) else (given, given, given)
            metrics.append(Metric(name, value, low, high, 500, bound=bound[0] if bound else "exact"))
        return Result(analysis, {}, tuple(metrics), provenance={"capability": "count_a", "tuned_on": "count_b"})

    return make


@pytest.fixture
def values() -> Callable[[float, int], np.ndarray]:
    """`(share, n) -> [n]` of which that share, rounded, is one."""
    return lambda share, n=1000: (np.arange(n) < round(share * n)).astype(float)
