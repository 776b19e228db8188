"""Edge attribution: what corrupting one component's contribution to another's input does, to first order [2310.10348; 2403.17806].

An edge u -> v runs through the residual stream from what u writes to what v reads: v's query, key and value together where
it is a head. Slopes at all outputs come from one backward pass; those at the input of each reader from pulling them back
through that reader alone, a head through its own part of the attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.models.anatomy import anatomy, blocks, head_outputs, head_shape, matrix
from workbench.models.attribution import Scalar
from workbench.models.forward import answer_logits
from workbench.models.patching import fitting
from workbench.models.paths import connected, receivers_of, senders_of
from workbench.models.rerun import activations, shown
from workbench.models.sensitivity import inputs_of
from workbench.models.sites import EMBEDDING, Site, edited

Edge = tuple[Site, Site]
"""Writer and reader, as in `paths`; the logits are the stream after the last block."""
Changes = Mapping[Site, Float[Tensor, "n t _"]]


def edge_scores(
    model: PreTrainedModel, examples: Examples, edges: Sequence[Edge], read: Scalar, steps: int = 1, batch_size: int = 64
) -> Float[Tensor, "n edges"]:
    """`(u' - u) . d read / d input of v`, where u' is what u writes on the counterfactual prompt; summed over positions.

    The change of `read` by a path patch of the edge, if the model were linear. Scores of u's edges add up to the estimate
    for u as a whole, since the stream is a sum. The slope is the mean over `steps` embeddings that go evenly from the
    prompt's towards the counterfactual's, the first included [integrated gradients, 2403.17806]: one step is plain edge
    attribution patching, and with many the embedding's edges add up to all of the difference between the two prompts.

    Args:
        model: of a known architecture; no parameter receives a gradient.
        examples: with `counterfactual` of the same layout.
        edges: which to score; see `paths.connected`.
        read: what is derived, one number an example.
        steps: at which the slope is taken.
        batch_size: examples at a time, at most.

    Returns:
        In the order of `edges`, in units of `read`, on the CPU.
    """
    other = examples.counterfactual
    if other is None:
        raise ValueError("edges are scored against counterfactual prompts; the examples have none")
    sites = [*senders_of(model), *(Site("attention", b) for b in range(len(blocks(model))))]
    batch_size = max(1, min(batch_size, fitting(model, examples, sites) // 4))  # graph, slopes and what is pulled back
    parts: list[Tensor] = []
    for start in range(0, len(examples), batch_size):
        rows = torch.arange(start, min(start + batch_size, len(examples)))
        batch, against = (given[rows].to(model.device) for given in (examples, other))
        changes = _changes(model, batch, against)
        total = torch.zeros(len(rows), len(edges), dtype=model.dtype)
        for step in range(steps):
            slopes = _slopes(model, batch, changes[EMBEDDING] * (step / steps), lambda x, rows=rows: read(x, rows))
            total += _products(model, changes, slopes, edges).cpu()
        parts.append(total / steps)
    return torch.cat(parts)


@torch.no_grad()
def _changes(model: PreTrainedModel, batch: Examples, against: Examples) -> Changes:
    """What embedding and MLPs write, and what heads hand to their output projection (`attention`): counterfactual less clean."""
    sites = [EMBEDDING, *(Site("mlp", b) for b in range(len(blocks(model))))]
    runs: list[dict[Site, Tensor]] = []
    for examples in (batch, against):
        with inputs_of(head_outputs(model)) as heads:
            found = activations(model, examples, sites, shown(batch))
        runs.append(found | {Site("attention", b): z for b, z in enumerate(heads)})
    return {site: runs[1][site] - own for site, own in runs[0].items()}


def _slopes(
    model: PreTrainedModel, batch: Examples, moved: Float[Tensor, "n t d"], read: Callable[[Tensor], Tensor]
) -> Changes:
    """D read / d input of every reader, in the basis of the stream, with the embedding moved by so much."""
    depth, heads = head_shape(model)
    sites, modules = anatomy(model), blocks(model)
    streams: dict[Site, Tensor] = {}

    def keep(site: Site, x: Tensor) -> Tensor:
        # The embedding is where the graph begins, so that it does not matter whether weights take gradients.
        streams[site] = (x.detach() + moved).requires_grad_() if site == EMBEDDING else x.view_as(x)
        return streams[site]

    kept = [Site("stream", b) for b in range(depth + 1)] + [Site("mlp", b) for b in range(depth)]
    readers: list[nn.Module] = [module.get_submodule(sites.mlp_norm or sites.mlp) for module in modules]
    with torch.enable_grad(), inputs_of([*head_outputs(model), *readers]) as inputs:
        with edited(model, {site: lambda x, site=site: keep(site, x) for site in kept}):
            total = read(answer_logits(model, batch)).sum()
        attended, middles = inputs[:depth], inputs[depth:]
        written = [streams[Site("mlp", b)] for b in range(depth)]
        final = Site("stream", depth)
        given = torch.autograd.grad(total, [*attended, *written, streams[final]], retain_graph=True)
        found = {final: given[-1]}
        for b in range(depth):
            (found[Site("mlp", b)],) = torch.autograd.grad(written[b], middles[b], given[depth + b], retain_graph=True)
            stream = streams[Site("stream", b)]
            for h, part in enumerate(given[b].chunk(heads, dim=-1)):
                alone = torch.zeros_like(given[b])
                alone.chunk(heads, dim=-1)[h].copy_(part)
                (found[Site("head", b, h)],) = torch.autograd.grad(attended[b], stream, alone, retain_graph=True)
    return found


@torch.no_grad()
def _products(model: PreTrainedModel, changes: Changes, slopes: Changes, edges: Sequence[Edge]) -> Float[Tensor, "n edges"]:
    found: dict[Edge, Tensor] = {}
    for v in receivers_of(model):
        for site, change in changes.items():
            if not connected(Site("head", site.block) if site.kind == "attention" else site, v):
                continue
            if site.kind == "attention":
                each = change * (slopes[v] @ matrix(head_outputs(model)[site.block]))
                by_head = rearrange(each, "n t (h w) -> n h (t w)", h=head_shape(model)[1]).sum(-1)
                found |= {(Site("head", site.block, h), v): by_head[:, h] for h in range(by_head.shape[1])}
            else:
                found[site, v] = (change * slopes[v]).sum((1, 2))
    return torch.stack([found[edge] for edge in edges], dim=1)
