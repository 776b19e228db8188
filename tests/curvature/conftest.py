"""The recorded spectrum of a trained model, and matrices with known eigenvalues."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from workbench.curvature.maps import SymmetricMap, from_dense

DATA = Path(__file__).parent / "data" / "gpt2_w16_seed7.npz"


def _diagonal(values: object, dtype: torch.dtype = torch.float64) -> SymmetricMap:
    entries = torch.as_tensor(np.asarray(values), dtype=dtype)
    return SymmetricMap(len(entries), lambda v: entries[:, None] * v, dtype)


@pytest.fixture(scope="session")
def diagonal() -> Callable[..., SymmetricMap]:
    """Eigenvalues -> a diagonal map; random vectors see no difference to any other matrix with these eigenvalues."""
    return _diagonal


@pytest.fixture(scope="session")
def rotated() -> Callable[..., tuple[SymmetricMap, np.ndarray]]:
    """Eigenvalues -> a dense map in a random basis, with the matrix."""

    def make(values: object, seed: int = 0) -> tuple[SymmetricMap, np.ndarray]:
        entries = np.asarray(values, dtype=np.float64)
        q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(entries), len(entries))))
        matrix = (q * entries) @ q.T
        matrix = (matrix + matrix.T) / 2
        return from_dense(torch.from_numpy(matrix)), matrix

    return make


@pytest.fixture(scope="session")
def recorded() -> np.ndarray:
    """All 5296 Hessian eigenvalues of the recorded model, ascending."""
    with np.load(DATA) as file:
        return file["hessian_eigenvalues"]


class Memory:
    """A keeper without a disk."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, torch.Tensor]] = {}

    def get(self, name: str) -> dict[str, torch.Tensor] | None:
        return self.kept.get(name)

    def put(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        self.kept.pop(name, None)
        if tensors:
            self.kept[name] = {key: tensor.clone() for key, tensor in tensors.items()}


@pytest.fixture
def memory() -> Memory:
    """A keeper that lives as long as the test."""
    return Memory()
