"""Path patching: one component's change of output reaches one other component and nothing else [Wang+22; 2304.05969].

The receiver is given its clean input plus what the sender writes in another run minus what it writes in this one; what the
receiver then does differently runs on through everything after it. All else that reads the sender reads its clean output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.models.anatomy import blocks, head_shape
from workbench.models.patching import Donor, Grid, Read, everything, fitting, joined
from workbench.models.rerun import CleanRun, activations, written
from workbench.models.sites import EMBEDDING, Site, components


def senders_of(model: PreTrainedModel) -> list[Site]:
    """All that writes into the stream: the embedding, every head and every MLP, in the order of the computation."""
    return components(model)


def receivers_of(model: PreTrainedModel) -> list[Site]:
    """All that reads it: every head, every MLP and, as the stream after the last block, the logits."""
    return [*components(model)[1:], Site("stream", len(blocks(model)))]


def connected(sender: Site, receiver: Site) -> bool:
    """Whether the receiver reads what the sender writes: it comes later, and heads of one block do not read one another."""
    if sender == EMBEDDING or receiver.kind == "stream":
        return True
    return sender.block < receiver.block or (sender.block == receiver.block and (sender.kind, receiver.kind) == ("head", "mlp"))


@torch.no_grad()
def path_grid(
    model: PreTrainedModel,
    examples: Examples,
    donor: Donor,
    paths: Sequence[tuple[Site, Site]],
    read: Read = everything,
    batch_size: int = 128,
) -> Grid:
    """Patch direct paths, one at a time, and read the answer.

    Args:
        model: of a known architecture.
        examples: what it is shown.
        donor: the run that senders are taken from, of a model of the same width.
        paths: sender and receiver of each; see `senders_of` and `receivers_of`. A head receives by query, key and value at once.
        read: what is kept of the logits.
        batch_size: examples at a time, at most.

    Returns:
        Values on the CPU; `changed` says in which examples the receiver's output changed where the answer can see it.

    Raises:
        ValueError: the receiver of a path does not read its sender.
    """
    for sender, receiver in paths:
        if not connected(sender, receiver):
            raise ValueError(f"{receiver} does not read {sender}, which is computed at the same time or later")
    sites = list(dict.fromkeys(site for path in paths for site in path))
    batch_size = min(batch_size, fitting(model, examples, sites))

    def one(rows: Tensor) -> Grid:
        run = CleanRun(model, examples[rows].to(model.device), sites)
        other = activations(donor.model, donor.examples[rows].to(donor.model.device), [s for s, _ in paths], run.shown)

        def change(sender: Site) -> Tensor:  # of a head as wide as the stream, so one at a time
            return _change(run, donor.model, sender, other[sender].to(model.device))

        return _one_batch(run, change, paths, lambda x, r: read(x, rows[r.cpu()]))

    return joined([one(rows) for rows in torch.arange(len(examples)).split(batch_size)])


def _one_batch(run: CleanRun, changes: Callable[[Site], Tensor], paths: Sequence[tuple[Site, Site]], read: Read) -> Grid:
    n, device = len(run.batch), run.answers.device
    plain = read(run.logits, torch.arange(n, device=device)).cpu()
    values = plain.expand(len(paths), *plain.shape).clone()
    changed = torch.zeros(len(paths), n, dtype=torch.bool)
    numbers: dict[Site, list[int]] = {}
    for number, (sender, _) in enumerate(paths):
        numbers.setdefault(sender, []).append(number)
    for sender, mine in numbers.items():
        change = changes(sender)
        heads: dict[int, Tensor] = {}  # of each block, what all heads give when they read the change
        for number in mine:
            receiver = paths[number][1]
            if receiver.kind == "head" and receiver.block not in heads:
                heads[receiver.block] = run.attended(receiver.block, run.own[Site("stream", receiver.block)] + change)
            output = with_input(run, receiver, change, heads)
            differs = (output != run.own[receiver]).any(-1) & run.reaches(receiver)
            rows = differs.any(1).nonzero().flatten()
            changed[number, rows.cpu()] = True
            for part, logits in run.with_site(receiver, rows, output[rows], differs[rows]) if len(rows) else ():
                values[number, rows[part].cpu()] = read(logits, rows[part]).cpu()
    return Grid(values, plain, changed)


def _change(run: CleanRun, donor: PreTrainedModel, sender: Site, other: Float[Tensor, "n t _"]) -> Float[Tensor, "n t d"]:
    """What the sender writes in the other run less what it writes in this one."""
    if sender.kind == "head":
        return written(donor, sender, other) - written(run.model, sender, run.own[sender])
    return other - run.own[sender]


def with_input(
    run: CleanRun, receiver: Site, change: Float[Tensor, "n t d"], heads: dict[int, Float[Tensor, "n t w"]]
) -> Float[Tensor, "n t _"]:
    """What the receiver does when its input alone is changed."""
    if receiver.kind == "stream":
        return run.own[receiver] + change
    b = receiver.block
    if receiver.kind == "head":
        assert receiver.head is not None
        return heads[b].chunk(head_shape(run.model)[1], dim=-1)[receiver.head]
    middle = run.own[Site("stream", b)] + run.own[Site("attention", b)] + change
    return run.module(b, "mlp")(run.module(b, "mlp_norm")(middle))
