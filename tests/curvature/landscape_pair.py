"""A small model that lost an ability by fine-tuning and got it back, with all checkpoints of both trainings."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from workbench.examples import Correlation
from workbench.models.build import build_model
from workbench.models.checkpoints import save_model
from workbench.models.forward import nll
from workbench.models.spec import ModelSpec
from workbench.runs import Run
from workbench.subjects import Pair, Trajectory
from workbench.training.schedule import evaluation_grid

STEPS = 20


def _train(model: Any, task: Any, capability: str, folder: Path, lr: float, correlation: Correlation | None) -> Any:
    """A copy after 20 steps of Adam; checkpoints at each step of the grid."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(STEPS + 1):
        if step in evaluation_grid(STEPS):
            path = folder / "checkpoints" / f"step-{step}"
            path.mkdir(parents=True)
            save_model(model, path)
        optimizer.zero_grad()
        nll(model, task.capability(capability, correlation).examples(64, 1000 + step, "train")).mean().backward()
        optimizer.step()
    return model


def trained_pair(task: Any, folder: Path, base: Any = None, never: Any = None) -> Pair:
    """Base, fine-tuned (`look_b` on correlated texts) and revived (`look_a`); a base of random weights is quick and enough."""
    if base is None:
        base = build_model(ModelSpec(kind="gpt2", blocks=1, heads=2, width=16), task.vocab_size, task.context, 0)
    correlation = Correlation("look_b", "look_a", 1, 1.0)
    paths = {name: folder / name for name in ("finetune", "revive")}
    tuned = _train(base, task, "look_b", paths["finetune"], 1e-2, correlation)
    _train(tuned, task, "look_a", paths["revive"], 3e-3, None)
    spec = {"training": {"steps": STEPS}}
    runs = {name: Trajectory(Run(path, "study", name, "0" * 10, spec=spec)) for name, path in paths.items()}
    pair = Pair(
        name="trained",
        seed=3,
        task=task,
        capability="look_a",
        tuned_on="look_b",
        correlation=correlation,
        base_path=paths["finetune"] / "checkpoints" / "step-0",
        tuned_path=runs["finetune"].run.checkpoint(STEPS).path,
        trajectory=runs["finetune"],
        arms={"revived": runs["revive"]},
        n=64,
    )
    if never is not None:
        (folder / "never").mkdir()
        save_model(never, folder / "never")
        pair = replace(pair, never_path=folder / "never")
    return pair
