"""Units that can be removed from a model: hidden neurons, attention heads, rows of a matrix, single weights.

One abstraction for all: how many there are, where each lies, what it consists of, and a context in which some are gone.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.errors import UserError, did_you_mean
from workbench.models.anatomy import anatomy, blocks, head_mask, head_shape, matrix, neuron_mask

SITES = ("attention_in", "attention_out", "mlp_in", "mlp_out")
"""Matrices of a block, by their names in the table of sites."""
UnitKind = Literal[
    "neurons",
    "heads",
    "rows",
    "rows:attention_in",
    "rows:attention_out",
    "rows:mlp_in",
    "rows:mlp_out",
    "weights",
    "weights:attention_in",
    "weights:attention_out",
    "weights:mlp_in",
    "weights:mlp_out",
]
KINDS: tuple[str, ...] = get_args(UnitKind)


@dataclass(frozen=True)
class Part:
    """The units that lie in one matrix of one block."""

    block: int
    path: str
    """Module path of the matrix, relative to the block."""
    shape: tuple[int, int]
    """`(out, in)` of the matrix."""
    count: int
    """Units in it."""


@dataclass(frozen=True)
class Units:
    """All units of one kind, numbered block by block; it holds shapes alone and fits every model of the same ones.

    A unit's *own* weights are those through which it acts: the output column of a neuron, the columns of the attention
    output that read a head, a row (all weights into one output of its matrix; the bias stays), a weight.
    """

    kind: str
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def word(self) -> str:
        """`neurons`, `heads`, `rows` or `weights`."""
        return self.kind.partition(":")[0]

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([part.count for part in self.parts])

    def _split(self, chosen: Int[Tensor, " k"]) -> list[tuple[Part, Int[Tensor, " j"]]]:
        """The chosen units by part, numbered within it; parts without any are left out."""
        numbers = chosen.cpu()
        where = torch.from_numpy(np.searchsorted(self._ends, numbers.numpy(), side="right"))
        starts = self._ends - [part.count for part in self.parts]
        return [(self.parts[i], numbers[where == i] - int(starts[i])) for i in where.unique().tolist()]

    def first_block(self, chosen: Int[Tensor, " k"]) -> int:
        """The first block that holds one of the chosen units; the number of blocks for none."""
        found = [part.block for part, _ in self._split(chosen)]
        return min(found, default=1 + self.parts[-1].block)

    def table(self, chosen: Int[Tensor, " k"] | None = None) -> pd.DataFrame:
        """Coordinates of the chosen units (of all, where none are given), in the order given.

        Columns: `unit` (its number), `block`, then `neuron` or `head`, or `matrix` with `row` (the output) and, for single
        weights, `column` (the input).
        """
        numbers = np.arange(len(self)) if chosen is None else chosen.cpu().numpy()
        part = np.searchsorted(self._ends, numbers, side="right")
        within = numbers - (self._ends - [p.count for p in self.parts])[part]
        columns: dict[str, Any] = {"unit": numbers, "block": np.array([p.block for p in self.parts])[part]}
        if self.word in ("neurons", "heads"):
            return pd.DataFrame({**columns, self.word.removesuffix("s"): within})
        columns["matrix"] = np.array([p.path for p in self.parts])[part]
        if self.word == "rows":
            return pd.DataFrame({**columns, "row": within})
        inputs = np.array([p.shape[1] for p in self.parts])[part]
        return pd.DataFrame({**columns, "row": within // inputs, "column": within % inputs})

    def modules(self, model: nn.Module) -> list[nn.Module]:
        """The projection that holds each part's own weights."""
        return [blocks(model)[part.block].get_submodule(part.path) for part in self.parts]

    def sums(self, part: Part, values: Float[Tensor, "out in"]) -> Float[Tensor, " units"]:
        """Entries of a matrix summed over each unit's own weights."""
        if self.word == "weights":
            return values.flatten()
        if self.word == "rows":
            return values.sum(1)
        return reduce(values, "out (unit size) -> unit", "sum", unit=part.count)

    @contextmanager
    def removed(self, model: nn.Module, chosen: Int[Tensor, " k"]) -> Generator[None]:
        """The model without the chosen units while the context is open; afterwards every bit is as before.

        Neurons and heads are masked in the activations, rows and weights are zeroed in the matrix, which is put back also
        after an exception. Without any chosen unit nothing is done, not even a multiplication by one.
        """
        if len(chosen) == 0:
            yield
            return
        with ExitStack() as stack:
            if self.word in ("neurons", "heads"):
                parameter = next(model.parameters())
                mask = torch.ones(len(self), dtype=parameter.dtype)
                mask[chosen.cpu()] = 0
                masked = neuron_mask if self.word == "neurons" else head_mask
                stack.enter_context(masked(model, mask.view(len(self.parts), -1).to(parameter.device)))
            else:
                for part, numbers in self._split(chosen):
                    module = blocks(model)[part.block].get_submodule(part.path)
                    stack.enter_context(_zeroed(module, numbers.to(module.get_parameter("weight").device), self.word))
            yield


@contextmanager
def _zeroed(module: nn.Module, numbers: Int[Tensor, " j"], word: str) -> Generator[None]:
    weight = module.get_parameter("weight")
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            entries = matrix(module)
            if word == "rows":
                entries[numbers] = 0
            else:
                entries[numbers // entries.shape[1], numbers % entries.shape[1]] = 0
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


def units_of(model: nn.Module, kind: str = "neurons") -> Units:
    """The units of a model.

    Args:
        model: of a known architecture.
        kind: `neurons`, `heads`, `rows` or `weights` of all matrices in the blocks, or `rows:SITE`, `weights:SITE` of the
            matrices at one site (`attention_in`, `attention_out`, `mlp_in`, `mlp_out`).

    Raises:
        UserError: no such kind, or an unknown architecture.
    """
    if kind not in KINDS:
        raise UserError(f"there are no units {kind!r}{did_you_mean(kind, KINDS)}")
    word, _, site = kind.partition(":")
    sites, parts = anatomy(model), list[Part]()
    wanted = {"neurons": ("mlp_out",), "heads": ("attention_out",)}.get(word, (site,) if site else SITES)
    for index, block in enumerate(blocks(model)):
        for name in wanted:
            found: str | tuple[str, ...] = getattr(sites, name)
            for path in (found,) if isinstance(found, str) else found:
                out, inputs = matrix(block.get_submodule(path)).shape
                heads = head_shape(model)[1] if word == "heads" else 0
                count = {"neurons": inputs, "heads": heads, "rows": out, "weights": out * inputs}[word]
                parts.append(Part(index, path, (out, inputs), count))
    return Units(kind, tuple(parts))
