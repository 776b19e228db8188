"""Long computations that survive a kill: what is done so far goes to a keeper, and the next run with the same name goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from workbench.files import atomic_bytes


@runtime_checkable
class Keeper(Protocol):
    """Named sets of tensors. Names should begin with what the computation depends on (a hash of its settings)."""

    def get(self, name: str) -> dict[str, Tensor] | None:
        """What was put last, or None."""
        ...

    def put(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Replace what is kept under a name, in one step; no tensors: forget it."""
        ...


@dataclass(frozen=True)
class FolderKeeper:
    """One safetensors file for each name; a reader sees the old or the new, and a damaged file counts as absent."""

    folder: Path
    prefix: str = ""
    """Put before each name, so that computations with other settings can share the folder."""

    def get(self, name: str) -> dict[str, Tensor] | None:
        """See `Keeper`."""
        try:
            return load(self._path(name).read_bytes())
        except (OSError, SafetensorError):
            return None

    def put(self, name: str, tensors: dict[str, Tensor]) -> None:
        """See `Keeper`.

        Raises:
            DiskFull: no room; what was kept before still is.
        """
        path = self._path(name)
        if not tensors:
            path.unlink(missing_ok=True)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_bytes(path, save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}))

    def _path(self, name: str) -> Path:
        return self.folder / f"{self.prefix}{name}.safetensors"


class Progress(TypedDict):
    """What a computation with growing rows needs to go on."""

    rows: Tensor
    """All rows so far, along the last dimension but one."""
    state: dict[str, Tensor]
    """Everything else, as of the last row."""


@dataclass
class Pieces:
    """Rows that grow, kept in pieces, so that each saving writes the new rows only; a generation begins anew."""

    keeper: Keeper | None
    name: str
    _next: int = 0
    _rows: int = 0

    def save(self, generation: int, rows: Tensor, state: Mapping[str, Tensor]) -> None:
        """Keep what is new of `rows` `[..., r, n]`, and the state; a new generation must start with `restart`."""
        if self.keeper is None:
            return
        body = {"rows": rows[..., self._rows :, :], "generation": torch.tensor(generation)}
        self.keeper.put(f"{self.name}-{self._next}", {**body, **{f"state.{key}": value for key, value in state.items()}})
        self._next += 1
        self._rows = rows.shape[-2]

    def restart(self) -> None:
        """What is saved next is the first piece of a new generation; older pieces are told by their generation."""
        self._next = self._rows = 0

    def load(self, generation: int | None = None) -> Progress | None:
        """All pieces of the generation (the last one if None), up to the first that is missing or damaged."""
        parts: list[Tensor] = []
        state: dict[str, Tensor] = {}
        self.restart()
        while self.keeper is not None and (piece := self.keeper.get(f"{self.name}-{self._next}")) is not None:
            found = int(piece["generation"])
            generation = found if generation is None else generation
            if found != generation:
                break
            parts.append(piece["rows"])
            state = {key.removeprefix("state."): value for key, value in piece.items() if key.startswith("state.")}
            self._next += 1
        if not parts:
            return None
        rows = torch.cat(parts, dim=-2)
        self._rows = rows.shape[-2]
        return {"rows": rows, "state": state}

    def forget(self) -> None:
        """Free the room: the computation is done."""
        if self.keeper is not None:
            self.restart()
            while self.keeper.get(f"{self.name}-{self._next}") is not None:
                self.keeper.put(f"{self.name}-{self._next}", {})
                self._next += 1
