"""One component's activations of another model put into a model on the same prompts, exactly: cross-model activation patching.

A component is what it writes into the residual stream, so that a head comes with its own model's output weights. What a
swap cannot reach is computed once for all: see `rerun.CleanRun`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.models.anatomy import head_outputs, head_shape
from workbench.models.forward import answer_logits
from workbench.models.patching import fitting
from workbench.models.rerun import CleanRun, activations, written
from workbench.models.sites import EMBEDDING, Site
from workbench.seeds import torch_generator

BATCH = 128


def swap_sites(model: PreTrainedModel) -> list[Site]:
    """Embedding, and of each block its heads, its attention, its MLP and the residual stream after it."""
    depth, heads = head_shape(model)
    found = [EMBEDDING]
    for block in range(depth):
        found += [Site("head", block, h) for h in range(heads)]
        found += [Site("attention", block), Site("mlp", block), Site("stream", block + 1)]
    return found


class Swap:
    """Two models that have read the same batch of prompts.

    With `noise` no activation of the donor is put in: the receiver's own is moved as far as to the donor's, at every
    position, in a random direction of the residual stream.
    """

    @torch.no_grad()
    def __init__(
        self,
        receiver: PreTrainedModel,
        donor: PreTrainedModel,
        batch: Examples,
        sites: Sequence[Site],
        noise: torch.Generator | None = None,
    ) -> None:
        self.mine = CleanRun(receiver, batch, sites)
        self.donor, self.theirs = donor, activations(donor, batch.to(donor.device), sites, self.mine.shown)
        self.noise = noise

    @torch.no_grad()
    def logits(
        self, site: Site, where: Bool[Tensor, "n t"] | None = None
    ) -> tuple[Float[Tensor, "n k vocab"], Bool[Tensor, " n"]]:
        """The receiver's answers with the donor's activations at a site.

        Args:
            site: one of the sites that were read.
            where: positions at which they are swapped; None: all.

        Returns:
            Logits that predict the answer, and in which prompts the swap put in anything else at a place that the answer
            can see. Elsewhere the logits are the receiver's own, bit for bit.
        """
        run = self.mine
        reached = self._reached(site)
        site, value = self._whole(site)
        differs = (value != run.own[site]).any(-1) & reached
        if where is not None:
            differs &= where[:, : run.shown]
        changed = differs.any(1)
        rows = changed.nonzero().flatten()
        found = run.logits.clone()
        if not len(rows):
            return found, changed
        if where is not None and bool((where.sum(1) == 1).all()):  # of one position far less must run anew
            runs = self._at_one(site, value, rows, where.int().argmax(1)[rows])
        else:
            runs = run.with_site(site, rows, value[rows], differs[rows])
        for part, logits in runs:
            found[rows[part]] = logits
        return found, changed

    def _at_one(
        self, site: Site, value: Float[Tensor, "n t d"], rows: Int[Tensor, " r"], at: Int[Tensor, " r"]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Answers of some prompts with a site's new activations at one position of each; as `CleanRun.with_position`."""
        index = (rows[:, None], at[:, None])
        block, landed = self.mine.landed(site, value[index], lambda x: x[index])
        return self.mine.with_position(block, rows, at, landed[:, 0])

    def _reached(self, site: Site) -> Bool[Tensor, "n t"]:
        """Positions from which a site has a way to a token of the answer, the answer's own among them."""
        run = self.mine
        place = torch.arange(run.shown, device=run.answers.device)
        if site.block == run.last + (site.kind == "stream"):  # nothing attends any more
            return (place == run.answers[..., None]).any(1)
        shown = place <= (run.answers.amax(1, keepdim=True) if run.causal else run.shown)
        mask = run.batch.attention_mask
        return shown.expand(len(run.answers), -1) if mask is None else shown & mask[:, : run.shown].bool()

    def _whole(self, site: Site) -> tuple[Site, Float[Tensor, "n t d"]]:
        """A site whose activations are part of the stream, and what they are after the swap."""
        mine, theirs = self.mine, self.theirs
        if site.kind != "head":
            own, value = mine.own[site], theirs[site].to(mine.answers.device)
            return site, value if self.noise is None else own + self._turned(value - own)
        attention = Site("attention", site.block)
        change = _written(self.donor, site, theirs[site]).to(mine.answers.device) - _written(mine.model, site, mine.own[site])
        return attention, mine.own[attention] + (change if self.noise is None else self._turned(change))

    def _turned(self, change: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        """Random vectors of the same length."""
        random = torch.randn(change.shape, generator=self.noise).to(change)
        return random * (change.norm(dim=-1, keepdim=True) / random.norm(dim=-1, keepdim=True))


def _written(model: PreTrainedModel, head: Site, value: Float[Tensor, "n t w"]) -> Float[Tensor, "n t d"]:
    """What a head writes, with an equal share of the output's bias."""
    bias, own = getattr(head_outputs(model)[head.block], "bias", None), written(model, head, value)
    return own if bias is None else own + bias / head_shape(model)[1]


@dataclass(frozen=True)
class Answered:
    """What a model answers, one row per example."""

    given: Int[Tensor, "n k"]
    """The most likely token at every place of the answer, given the true ones before."""
    loss: Float[Tensor, " n"]
    """Negative log-likelihood of the true answer, in nats."""
    changed: Bool[Tensor, " n"]
    """Whether a swap changed anything that the answer can see."""


def swapped_answers(
    receiver: PreTrainedModel,
    donor: PreTrainedModel,
    examples: Examples,
    sites: Sequence[Site],
    positions: Mapping[str, Bool[Tensor, "n t"] | None],
    random: int | None = None,
) -> dict[tuple[str, Site], Answered]:
    """The receiver's answers with the donor's activations at each site and each set of positions, one at a time.

    Args:
        receiver: answers.
        donor: of the same configuration; it reads the same prompts.
        examples: with answers.
        sites: some of `swap_sites`.
        positions: by name, masks over positions; None: all.
        random: the seed of random changes as large as the donor's, which are then put in instead.

    Returns:
        By name of the positions and site.
    """
    found: dict[tuple[str, Site], list[Answered]] = {(name, site): [] for name in positions for site in sites}
    size = min(BATCH, fitting(receiver, examples, sites))
    for start in range(0, len(examples), size):
        part = slice(start, start + size)
        batch = examples[part].to(receiver.device)
        noise = None if random is None else torch_generator(random, "random changes", start)
        swap = Swap(receiver, donor, batch, sites, noise)
        for name, mask in positions.items():
            where = None if mask is None else mask[part].to(receiver.device)
            for site in sites:
                found[name, site].append(_read(batch, *swap.logits(site, where)))
    return {key: _joined(parts) for key, parts in found.items()}


@torch.no_grad()
def answers(model: PreTrainedModel, examples: Examples) -> Answered:
    """What a model answers by itself."""
    batches = [examples[start : start + BATCH].to(model.device) for start in range(0, len(examples), BATCH)]
    none = torch.zeros(BATCH, dtype=torch.bool, device=model.device)
    return _joined([_read(batch, answer_logits(model, batch), none[: len(batch)]) for batch in batches])


def _read(batch: Examples, logits: Float[Tensor, "n k vocab"], changed: Bool[Tensor, " n"]) -> Answered:
    loss = cross_entropy(logits.transpose(1, 2), batch.answer, reduction="none").sum(-1)
    return Answered(logits.argmax(-1).cpu(), loss.cpu(), changed.cpu())


def _joined(parts: Sequence[Answered]) -> Answered:
    return Answered(*(torch.cat([getattr(part, name) for part in parts]) for name in ("given", "loss", "changed")))
