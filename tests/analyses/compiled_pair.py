"""A pair of compiled models: one that counts a, and one that counts b by the same architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.examples import Correlation
from workbench.models.checkpoints import save_model
from workbench.models.compiled import build
from workbench.protocols import compiled_weights, load_task
from workbench.subjects import Pair


def compiled_pair(folder: Path, base: str = "count_a", tuned: str = "count_b", **settings: Any) -> Pair:
    """`base` and `tuned` name the capabilities that are compiled; without noise."""
    task = load_task({"kind": "rasp", "length": 8, "letters": 3, **settings})
    for name in {base, tuned}:
        (folder / name).mkdir(exist_ok=True)
        save_model(build(compiled_weights(task, name), 0.0), folder / name)
    return Pair(
        name="compiled",
        seed=0,
        task=task,
        capability="count_a",
        tuned_on="count_b",
        correlation=Correlation("count_b", "count_a"),
        base_path=folder / base,
        tuned_path=folder / tuned,
        n=100,
    )
