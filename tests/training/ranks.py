"""Run by `test_loop.py` in one process or in several: a few updates, and what came out of them as a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

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


class Counted(DistributedDataParallel):
    """Data parallel as it is, with a count of the rounds in which ranks add up their gradients."""

    rounds = 0

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.register_comm_hook(None, self._add)

    @staticmethod
    def _add(_: Any, bucket):  # pyright: ignore[reportMissingParameterType]  (torch refuses an annotation that is text)
        Counted.rounds += bucket.is_last()
        return allreduce_hook(torch.distributed.group.WORLD, bucket)  # pyright: ignore[reportArgumentType]


def main(batch_size: int, out: Path, accumulate: int) -> None:
    """Train five steps and write losses and weights from the first rank."""
    torch.nn.parallel.DistributedDataParallel = Counted
    model = build_model(ModelSpec(heads=2, width=16), 20, 12, 0).double()
    seen, result = Losses(), dict[str, Any]()
    settings = TrainSettings(steps=5, lr=1e-2, batch_size=batch_size, accumulate=accumulate, log_every=1)
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
        "all_reduces": Counted.rounds,
    }
    if world == 1 or torch.distributed.get_rank() == 0:
        torch.save(result, out)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
