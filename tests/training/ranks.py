"""Run by `test_loop.py` in one process or in several: a few updates, and what came out of them as a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from workbench.errors import UserError
from workbench.examples import Examples
from workbench.models.build import build_model
from workbench.models.spec import ModelSpec
from workbench.training.loop import train
from workbench.training.settings import TrainSettings


class Uneven:
    """Batches in which even rows have twice the targets of odd ones, so that two ranks hold unequal numbers."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    asks = frozenset[str]()

    def batch(self, step: int) -> Examples:
        n = self.batch_size
        tokens = torch.randint(0, 20, (n, 9), generator=torch.Generator().manual_seed(step))
        place = torch.arange(9)
        mask = torch.where((torch.arange(n) % 2 == 0)[:, None], place > 0, place > 4)
        return Examples(tokens, mask, torch.full((n,), 7), tokens[:, 8:], torch.arange(20))


class Losses:
    """Keeps losses and gradient norms."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []

    def step(self, step: Any) -> None:
        self.losses.append(step.loss_nats)
        self.norms.append(step.gradient_norm)

    def due(self) -> bool:
        return False

    def grid(self, step: int, model: Any, state: Any, last: bool) -> bool:
        return False


def main(batch_size: int, out: Path) -> None:
    """Train five steps and write losses and weights from the first rank."""
    model = build_model(ModelSpec(heads=2, width=16), 20, 12, 0).double()
    seen, result = Losses(), dict[str, Any]()
    settings = TrainSettings(steps=5, lr=1e-2, batch_size=batch_size, log_every=1)
    try:
        train(model, Uneven(batch_size), settings, seen, device=torch.device("cpu"), seed=0)
    except UserError as error:
        result["error"] = str(error)
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    result |= {
        "losses": torch.tensor(seen.losses),
        "norms": torch.tensor(seen.norms),
        "weights": model.state_dict(),
        "world": world,
    }
    if world == 1 or torch.distributed.get_rank() == 0:
        torch.save(result, out)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), Path(sys.argv[2]))
