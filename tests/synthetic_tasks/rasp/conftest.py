"""Compiled programs run as models: what they answer on texts of letter indices."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from synthetic_tasks.rasp.compiler import compile_program
from synthetic_tasks.rasp.vocabulary import Vocabulary
from workbench.models.compiled import build


def letters(count: int) -> tuple[str, ...]:
    return tuple(string.ascii_lowercase[:count])


@pytest.fixture(scope="session")
def compiled() -> Callable[..., Any]:
    """`(program, length, letters) -> Compiled` whose vocabulary holds the numbers 0..length too."""

    def make(program: Any, length: int, count: int) -> Any:
        return compile_program(program, Vocabulary(letters(count), tuple(map(str, range(length + 1)))), length)

    return make


@pytest.fixture(scope="session")
def answers() -> Callable[..., np.ndarray]:
    """`(compiled, texts [n, length], noise=0, seed=0) -> names [n, length]` of the most likely token at every position."""

    @torch.no_grad()
    def run(weights: Any, texts: np.ndarray, noise: float = 0.0, seed: int = 0) -> np.ndarray:
        model = build(weights, noise, seed)
        ids = torch.from_numpy(np.concatenate([np.zeros((len(texts), 1), np.int64), texts + 1], axis=1))
        best = torch.cat([model(part).logits[:, 1:].argmax(-1) for part in ids.split(512)])
        return np.array(weights.token_names)[best.numpy()]

    return run
