"""Spectra of the diagonal blocks of the Hessian: embedding, attention and MLP of every block, head; and how much they differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from workbench.curvature.density import Density, density
from workbench.curvature.heterogeneity import RANK, Spectrum, coarser, heterogeneity
from workbench.curvature.lanczos import Pairs, extreme_pairs
from workbench.curvature.objective import of_model
from workbench.curvature.operators import hessian
from workbench.examples import Examples
from workbench.models.anatomy import anatomy, blocks


@dataclass(frozen=True)
class BlockSpectrum:
    """One block of parameters: its sharpest directions exactly, the rest by quadrature."""

    block: str
    pairs: Pairs
    density: Density

    def spectrum(self, probes: slice = slice(None)) -> Spectrum:
        """Its density, of some of the probes."""
        d = self.density
        nodes, masses = Density(d.nodes[probes], d.weights[probes], d.deflated, d.size).masses()
        return Spectrum(nodes, masses, d.size)

    def half(self) -> Spectrum:
        """The same from half the steps, which says how far the quadrature has settled."""
        d = self.density
        found = [coarser(n, w, max(1, d.nodes.shape[1] // 2)) for n, w in zip(d.nodes, d.weights, strict=True)]
        nodes = np.concatenate([*(n for n, _ in found), d.deflated])
        masses = np.concatenate([*(w / len(found) for _, w in found), np.full(len(d.deflated), 1 / d.size)])
        return Spectrum(nodes, masses, d.size)

    @property
    def floor(self) -> float:
        """JS0 between the estimates of one half of the probes and of the other: what is there without any difference."""
        half = len(self.density.nodes) // 2
        return float(heterogeneity([self.spectrum(slice(half)), self.spectrum(slice(half, 2 * half))])[0, 1])


def block_names(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """Parameters of every block in the order of the computation; each norm is with what reads it.

    Raises:
        UserError: the architecture is unknown.
    """
    sites = anatomy(model)
    attention = (sites.attention_norm, *sites.attention_in, sites.attention_out)
    found: dict[str, list[str]] = {"embedding": []}
    for index in range(len(blocks(model))):
        found |= {f"attention {index}": [], f"MLP {index}": []}
    found["head"] = []
    for name, _ in model.named_parameters():
        if name.rpartition(".")[0] in sites.embeddings:
            found["embedding"].append(name)
            continue
        number, _, within = name.removeprefix(f"{sites.blocks}.").partition(".")
        if not name.startswith(f"{sites.blocks}."):
            found["head"].append(name)
        else:
            found[f"{'attention' if within.rpartition('.')[0] in attention else 'MLP'} {number}"].append(name)
    return {block: tuple(names) for block, names in found.items() if names}


def block_spectra(
    model: PreTrainedModel, examples: Examples, *, steps: int, probes: int, tolerance: float, dtype: torch.dtype, seed: int
) -> list[BlockSpectrum]:
    """The spectrum of each block's own Hessian, all other weights held."""
    found: list[BlockSpectrum] = []
    for block, names in block_names(model).items():
        of = hessian(of_model(model, examples, parameters=names, dtype=dtype))
        pairs = extreme_pairs(of, RANK, tolerance=tolerance, seed=seed)
        found.append(BlockSpectrum(block, pairs, density(of, steps=steps, probes=probes, deflate=pairs, seed=seed)))
    return found


def block_table(model: str, spectra: list[BlockSpectrum], at: dict[str, Any], n: int) -> pd.DataFrame:
    """Size, sharpness, trace (t-interval over probes) and mean curvature of each block, and the residual of its sharpness."""
    rows: list[dict[str, Any]] = []
    unit = "nats per squared weight"
    for order, block in enumerate(spectra):
        trace, size = block.density.trace, block.density.size
        numbers = {
            "sharpness": (float(block.pairs.values[0]),) * 3,
            "residual": (float(block.pairs.residuals[0]),) * 3,
            "trace": (trace.value, trace.low, trace.high),
            "mean curvature": (trace.value / size, trace.low / size, trace.high / size),
        }
        for measure, (value, low, high) in numbers.items():
            where = {"model": model, **at, "block": block.block, "order": order, "size": size, "measure": measure}
            rows.append({**where, "value": value, "low": low, "high": high, "n": n, "unit": unit})
    return pd.DataFrame(rows)


def heterogeneity_table(model: str, spectra: list[BlockSpectrum], at: dict[str, Any], n: int) -> pd.DataFrame:
    """JS0 of all pairs of blocks (`js0`), from half the steps (`half`), and the `floor` of each block's estimate."""
    matrix = heterogeneity([block.spectrum() for block in spectra])
    half = heterogeneity([block.half() for block in spectra])
    rows: list[dict[str, Any]] = []
    for i, a in enumerate(spectra):
        for j, b in enumerate(spectra):
            where = {"model": model, **at, "a": a.block, "b": b.block, "order_a": i, "order_b": j}
            numbers = {"js0": float(matrix[i, j]), "half": float(half[i, j]), **({"floor": a.floor} if i == j else {})}
            for measure, value in numbers.items():
                rows.append({**where, "measure": measure, "value": value, "low": value, "high": value, "n": n, "unit": "nats"})
    return pd.DataFrame(rows)


def mean_distances(table: pd.DataFrame) -> dict[str, float]:
    """Means over pairs of different blocks of `js0` and `half`, and the mean `floor`."""
    value, measure = np.asarray(table["value"], dtype=float), np.asarray(table["measure"])
    apart = np.asarray(table["a"] != table["b"])
    found = {name: value[(measure == name) & apart] for name in ("js0", "half")} | {"floor": value[measure == "floor"]}
    return {name: float(np.mean(values)) if len(values) else float("nan") for name, values in found.items()}
