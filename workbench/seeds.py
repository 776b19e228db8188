"""Random streams by name: every draw is a function of (seed, labels), never of a global state."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def stream(seed: int, *labels: str | int) -> int:
    """A 63-bit seed for the stream named by `labels`; equal inputs give equal seeds on every machine."""
    text = "\x1f".join([str(seed), *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_generator(seed: int, *labels: str | int) -> np.random.Generator:
    """A NumPy generator for one named stream."""
    return np.random.Generator(np.random.PCG64(stream(seed, *labels)))


def torch_generator(seed: int, *labels: str | int) -> torch.Generator:
    """A CPU torch generator for one named stream."""
    import torch

    return torch.Generator().manual_seed(stream(seed, *labels))
