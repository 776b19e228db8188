"""State of an unfinished training: optimizer, step and random state, as safetensors and JSON; nothing is pickled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from workbench.errors import UserError

TENSORS, REST = "training_state.safetensors", "training_state.json"


@dataclass(frozen=True)
class TrainingState:
    """What the next step needs besides the weights; batches and learning rates are functions of the step."""

    step: int
    """Updates done."""
    optimizer: dict[str, Any]
    """`torch.optim.Optimizer.state_dict()`."""
    rng: Tensor
    """State of torch's CPU generator (dropout)."""


def save_state(state: TrainingState, folder: Path) -> None:
    """Write the state beside the weights of a checkpoint folder."""
    tensors = {"rng": state.rng}
    scalars: dict[str, dict[str, Any]] = {}
    for index, slots in state.optimizer["state"].items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                scalars.setdefault(str(index), {})[name] = value
    save_file(tensors, folder / TENSORS)
    body = {"step": state.step, "scalars": scalars, "param_groups": state.optimizer["param_groups"]}
    (folder / REST).write_text(json.dumps(body))


def load_state(folder: Path) -> TrainingState:
    """Read what `save_state` wrote.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        tensors = load_file(folder / TENSORS)
        body = cast(dict[str, Any], json.loads((folder / REST).read_text()))
        rng = tensors.pop("rng")
        slots: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in body["scalars"].items()}
        for key, tensor in tensors.items():
            index, name = key.split(".", 1)
            slots.setdefault(int(index), {})[name] = tensor
        optimizer = {"state": slots, "param_groups": body["param_groups"]}
        return TrainingState(step=int(body["step"]), optimizer=optimizer, rng=rng)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} holds no readable training state ({error}); remove it to resume from the one before."
        ) from error


def cpu_rng() -> Tensor:
    """Torch's CPU random state."""
    return torch.get_rng_state()
