"""Activation patching: what the answer becomes with single activations of another run [Vig+20; Meng+22; 2309.16042].

The other run may be the same model on other tokens, or another model on the same ones. Every patch gives what
`sites.replaced` and a whole pass give, to rounding; `rerun.CleanRun` says what is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.models.rerun import CleanRun, activations
from workbench.models.sites import Site

BATCH_BYTES = 256 * 2**20
"""What one batch may keep of its two runs; batches shrink to fit."""


@dataclass(frozen=True, eq=False)
class Cell:
    """What one patch replaces."""

    site: Site
    positions: Int[Tensor, " n"] | None = None
    """One position of every example; None: the whole prompt, which of a causal model ends where the answer is predicted."""


@dataclass(frozen=True)
class Donor:
    """The run that activations are taken from: a model on prompts of the same layout."""

    model: PreTrainedModel
    examples: Examples


Read = Callable[[Float[Tensor, "r k vocab"], Int[Tensor, " r"]], Float[Tensor, "r ..."]]
"""Logits that predict the answer's tokens, and the numbers of their examples, to what is kept of them."""


@dataclass(frozen=True)
class Grid:
    """What the answer becomes under every patch."""

    values: Float[Tensor, "cells n ..."]
    plain: Float[Tensor, "n ..."]
    """Without a patch."""
    changed: Bool[Tensor, "cells n"]
    """Where a patch put in something else, at a place that the answer can see; elsewhere the value is the plain one, exactly."""

    @property
    def rows_changed(self) -> Int[Tensor, " cells"]:
        """In how many examples each patch changed anything at all; 0 says that it had no effect, not that it was small."""
        return self.changed.sum(1)


def everything(logits: Float[Tensor, "r k vocab"], rows: Int[Tensor, " r"]) -> Float[Tensor, "r k vocab"]:
    """Keep the logits as they are."""
    return logits


@torch.no_grad()
def patch_grid(
    model: PreTrainedModel,
    examples: Examples,
    donor: Donor | Mapping[Site, Float[Tensor, "n t _"]],
    cells: Sequence[Cell],
    read: Read = everything,
    batch_size: int = 128,
) -> Grid:
    """Put activations of another run into this one, one cell at a time, and read the answer.

    Args:
        model: of a known architecture.
        examples: what it is shown.
        donor: the other run, or its recorded activations of every site that the cells name.
        cells: what each patch replaces.
        read: what is kept of the logits; `everything` takes `4 * cells * n * vocab` bytes.
        batch_size: examples at a time, at most.

    Returns:
        Values on the CPU, in the order of the cells.

    Raises:
        UserError: the architecture is unknown.
        IndexError: the model has no such block or head.
        ValueError: activations of another shape than the model's own.
    """
    sites = list(dict.fromkeys(cell.site for cell in cells))
    batch_size = min(batch_size, fitting(model, examples, sites))

    def one(rows: Tensor) -> Grid:
        run = CleanRun(model, examples[rows].to(model.device), sites)
        if isinstance(donor, Donor):
            given = activations(donor.model, donor.examples[rows].to(donor.model.device), sites, run.shown)
        else:
            given = {site: donor[site][rows] for site in sites}
        return _one_batch(run, given, [_at(cell, rows) for cell in cells], lambda x, r: read(x, rows[r.cpu()]))

    return joined([one(rows) for rows in torch.arange(len(examples)).split(batch_size)])


def joined(parts: Sequence[Grid]) -> Grid:
    """Grids of batches as one."""
    values, plain, changed = zip(*((part.values, part.plain, part.changed) for part in parts), strict=True)
    return Grid(torch.cat(values, dim=1), torch.cat(plain), torch.cat(changed, dim=1))


def _at(cell: Cell, rows: Tensor) -> Cell:
    return cell if cell.positions is None else Cell(cell.site, cell.positions[rows.to(cell.positions.device)])


def fitting(model: PreTrainedModel, examples: Examples, sites: Sequence[Site]) -> int:
    """Examples whose two runs fit: streams, keys and values of every block, and the sites of both."""
    width = {"head": 1 / model.config.num_attention_heads, "neurons": 4.0}
    kept = 5 * model.config.num_hidden_layers + 2 * sum(width.get(site.kind, 1.0) for site in sites)
    return max(1, int(BATCH_BYTES / (4 * kept * examples.tokens.shape[1] * model.config.hidden_size)))


def _one_batch(run: CleanRun, given: Mapping[Site, Tensor], cells: Sequence[Cell], read: Read) -> Grid:
    n, device = len(run.batch), run.answers.device
    plain = read(run.logits, torch.arange(n, device=device)).cpu()
    values = plain.expand(len(cells), *plain.shape).clone()
    changed = torch.zeros(len(cells), n, dtype=torch.bool)
    differs: dict[Site, Tensor] = {}
    for site in dict.fromkeys(cell.site for cell in cells):
        own, other = run.own[site], given[site].to(device)
        t = min(own.shape[1], other.shape[1])
        if own[:, :t].shape != other[:, :t].shape:
            raise ValueError(f"{site} holds {tuple(own.shape)}, the activations to put in {tuple(other.shape)}")
        differs[site] = torch.zeros(own.shape[:2], dtype=torch.bool, device=device)
        differs[site][:, :t] = (own[:, :t] != other[:, :t]).any(-1) & run.reaches(site)[:, :t]

    def put(cell: Tensor, rows: Tensor, logits: Tensor) -> None:
        values[cell.cpu(), rows.cpu()] = read(logits, rows).cpu()

    # Single positions land in the stream between blocks; those that land before the same block run together.
    single: dict[tuple[int, int], list[tuple[Tensor, ...]]] = {}
    for number, cell in enumerate(cells):
        if cell.positions is None:
            rows = differs[cell.site].any(1).nonzero().flatten()
            changed[number, rows.cpu()] = True
            if len(rows):
                value = given[cell.site].to(device)[rows]
                for part, logits in run.with_site(cell.site, rows, value, differs[cell.site][rows]):
                    put(torch.full_like(part, number), rows[part], logits)
            continue
        at = cell.positions.to(device)
        inside = at < run.shown
        rows = (differs[cell.site].gather(1, at.clamp(max=run.shown - 1)[:, None])[:, 0] & inside).nonzero().flatten()
        changed[number, rows.cpu()] = True
        if not len(rows):
            continue
        at = at[rows]
        index = (rows[:, None], at[:, None])
        block, landed = run.landed(cell.site, given[cell.site].to(device)[index], lambda x, index=index: x[index])
        # Far blocks run from the changed position on, so only patches at about the same place go together.
        together = 0 if block >= run.last else int(at.min())
        single.setdefault((block, together), []).append((torch.full_like(rows, number), rows, at, landed[:, 0]))
    for (block, _), runs in single.items():
        number, rows, at, landed = (torch.cat(part) for part in zip(*runs, strict=True))
        for part, logits in run.with_position(block, rows, at, landed):
            put(number[part], rows[part], logits)
    return Grid(values, plain, changed)
