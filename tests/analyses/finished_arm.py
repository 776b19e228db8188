"""A reverse fine-tuning that was not run by a study: evaluations and the last checkpoint are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from workbench.runs import Run
from workbench.subjects import Trajectory


@dataclass(frozen=True)
class EndedAt(Run):
    """A run whose only checkpoint is a folder of another."""

    folder: Path = Path(".")
    rows: Any = None

    def checkpoint(self, *_: Any) -> Any:
        return SimpleNamespace(path=self.folder)

    def evaluations(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=["step", "split", "capability", "share", "values"])


def finished_arm(folder: Path, rows: Sequence[Mapping[str, Any]] = (), batch_size: int = 64) -> Trajectory:
    """`rows`: step, split, capability, share, values."""
    spec = {"training": {"batch_size": batch_size}}
    return Trajectory(EndedAt(Path("."), "study", "stage", "0" * 10, spec=spec, folder=folder, rows=list(rows)))
