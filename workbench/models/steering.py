"""The residual stream changed where the answer is predicted, many times over: what stands before it runs once.

In a causal model no earlier position sees such a change, so the keys and values of what stands before are kept and
each change runs one position an example. Any other model runs whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.models.anatomy import anatomy, blocks
from workbench.models.forward import model_inputs, unembed
from workbench.models.sites import Site, Tapped, edited, record

BATCH = 256
"""Most examples run at once."""
BATCH_BYTES = 2**28
"""What one batch may keep: of a causal model the keys and values of what stands before the answer."""

Edit = Mapping[int, Callable[[Float[Tensor, "n k d"]], Float[Tensor, "n k d"]]]
"""What becomes of the stream, by residual point (0: the embedding, l: after block l), at the k positions that predict the
answer's k tokens."""


def points(model: PreTrainedModel) -> int:
    """How many residual points there are: the embedding, and one after each block."""
    return len(blocks(model)) + 1


def _batch_size(model: PreTrainedModel, examples: Examples) -> int:
    """As many examples as fit, by the size of a keys-and-values cache; streams at every point take half of that."""
    each = 4 * 2 * points(model) * int(model.config.hidden_size) * examples.tokens.shape[1]
    return max(1, min(BATCH, BATCH_BYTES // each))


@torch.no_grad()
def streams_at(model: PreTrainedModel, examples: Examples, positions: Int[Tensor, "n k"]) -> Float[Tensor, "points n k d"]:
    """The residual stream at every residual point and at each example's own positions, up to the one that predicts the answer.

    Memory: what is returned (on the CPU, in the model's precision), and one batch at all positions.
    """
    sites = [Site("stream", point) for point in range(points(model))]
    size = max(1, _batch_size(model, examples) // 2)  # whole passes make more beside the streams than a cache holds
    found = torch.empty(len(sites), *positions.shape, int(model.config.hidden_size), dtype=model.dtype)
    for start in range(0, len(examples), size):
        batch = examples[start : start + size].to(model.device)
        rows = torch.arange(len(batch), device=model.device)[:, None]
        at = positions[start : start + size].to(model.device)
        recorded = record(model, batch, sites)
        for index, site in enumerate(sites):
            found[index, start : start + size] = recorded[site][rows, at].cpu()
    return found


def answer_streams(model: PreTrainedModel, examples: Examples) -> Float[Tensor, "points n d"]:
    """The residual stream at the position that predicts the answer, at every residual point; float64 on the CPU."""
    return streams_at(model, examples, examples.answer_position[:, None])[:, :, 0].double()


@torch.no_grad()
def steered(model: PreTrainedModel, examples: Examples, edits: Sequence[Edit]) -> Float[Tensor, "edits n"]:
    """1.0 where the answer is right with each of the edits, which do not add up; an empty edit is the model itself.

    Memory: of a causal model the keys and values of one batch, and what the pass over one position makes of them.

    Raises:
        UserError: the architecture is unknown.
        IndexError: the model has no such residual point.
    """
    found = torch.zeros(len(edits), len(examples))
    at = examples.answer_position.cpu()
    for position in at.unique().tolist():
        for rows in (at == position).nonzero()[:, 0].split(_batch_size(model, examples)):
            batch = examples[rows].to(model.device)
            run = runner(model, batch, int(position))
            for index, edit in enumerate(edits):
                found[index, rows] = batch.right(run(edit).argmax(-1)).all(-1).float().cpu()
    return found


def runner(model: PreTrainedModel, batch: Examples, position: int) -> Callable[[Edit], Float[Tensor, "n k vocab"]]:
    """Logits of the answer, given an edit, of examples that all predict it at `position`."""
    k = batch.answer.shape[1]
    inputs = model_inputs(model, batch, position + k)
    before = position if anatomy(model).causal else 0
    past: Any = None
    if before:
        shown = {name: value[:, :before] if isinstance(value, Tensor) else value for name, value in inputs.items()}
        past = model.base_model(**{**shown, "use_cache": True}).past_key_values
        # The mask is of all positions, the rest of those that are still to run.
        inputs |= {name: inputs[name][:, before:] for name in ("input_ids", "position_ids") if name in inputs}
    here = slice(position - before, position - before + k)

    def tap(change: Callable[[Tensor], Tensor]) -> Tapped:
        return lambda x: torch.cat([x[:, : here.start], change(x[:, here]), x[:, here.stop :]], dim=1)

    def run(edit: Edit) -> Tensor:
        kept = {} if past is None else {"past_key_values": _fork(past), "use_cache": True}
        with edited(model, {Site("stream", point): tap(change) for point, change in edit.items()}):
            hidden = model.base_model(**{**inputs, **kept}).last_hidden_state
        return unembed(model, hidden[:, here])

    return run


def _fork(past: Any) -> Any:
    """A cache of the same tensors: what a pass adds to it makes new ones and leaves the original as it is."""
    fork = copy.copy(past)
    fork.layers = [copy.copy(layer) for layer in past.layers]
    return fork


@contextmanager
def ablated(model: PreTrainedModel, unit: Float[Tensor, " d"]) -> Generator[None]:
    """Nothing can be read from this direction while the context is open: x <- x - u uᵀ x everywhere [2406.11717].

    At every position of the embedding and of the streams after each attention and each MLP. It equals removing the direction
    from every matrix and bias that writes into the stream.
    """

    def project(x: Tensor) -> Tensor:
        u = unit.to(x)
        return x - (x @ u)[..., None] * u

    streams = [Site("stream", point) for point in range(points(model))]
    middles = [Site("middle", block) for block in range(len(blocks(model)))]
    with edited(model, dict.fromkeys([*streams, *middles], project)):
        yield
