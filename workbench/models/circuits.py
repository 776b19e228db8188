"""Running a circuit: only some edges carry the prompt, all others what they carry on the counterfactual one [2304.14997; 2403.17806]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.models.anatomy import blocks
from workbench.models.attribution import Scalar
from workbench.models.edges import Edge
from workbench.models.patching import fitting
from workbench.models.paths import receivers_of, senders_of, with_input
from workbench.models.rerun import CleanRun, Logits, activations, written
from workbench.models.sites import EMBEDDING, Site


@torch.no_grad()
def run_circuits(
    model: PreTrainedModel,
    examples: Examples,
    edges: Sequence[Edge],
    circuits: Bool[Tensor, "circuits edges"],
    read: Scalar,
    batch_size: int = 128,
) -> Float[Tensor, "circuits n"]:
    """What is read when every component is given the circuit's own activations by edges of it, and the counterfactual's by others.

    All edges give the model's run on the prompt, none its run on the counterfactual.

    Args:
        model: of a known architecture.
        examples: with `counterfactual` of the same layout.
        edges: all of them; those that are left out are in no circuit.
        circuits: which edges each keeps.
        read: what is kept of the logits, one number an example.
        batch_size: examples at a time, at most.

    Returns:
        In units of `read`, on the CPU.
    """
    against = examples.counterfactual
    if against is None:
        raise ValueError("what is outside a circuit runs on counterfactual prompts; the examples have none")
    sites = list(dict.fromkeys([*senders_of(model), *receivers_of(model)]))
    batch_size = max(1, min(batch_size, fitting(model, examples, sites) // 2))  # a circuit's changes are as large again
    kept = [_by_reader(model, edges, circuit) for circuit in circuits.tolist()]
    parts: list[Tensor] = []
    for start in range(0, len(examples), batch_size):
        rows = torch.arange(start, min(start + batch_size, len(examples)))
        other = CleanRun(model, against[rows].to(model.device), sites)
        clean = activations(model, examples[rows].to(model.device), [EMBEDDING], other.shown)
        moved = clean[EMBEDDING] - other.own[EMBEDDING]
        parts.append(torch.stack([read(_one_circuit(other, moved, circuit), rows).cpu() for circuit in kept]))
    return torch.cat(parts, dim=1)


def _by_reader(model: PreTrainedModel, edges: Sequence[Edge], circuit: Sequence[bool]) -> Mapping[Site, list[Site]]:
    """Writers of every reader; without readers from which no edge of the circuit leads on to the logits."""
    found: dict[Site, list[Site]] = {}
    for (writer, reader), inside in zip(edges, circuit, strict=True):
        if inside:
            found.setdefault(reader, []).append(writer)
    heard = {Site("stream", len(blocks(model)))}
    for reader in reversed(receivers_of(model)):
        heard.update(found.get(reader, ()) if reader in heard else ())
    return {reader: writers for reader, writers in found.items() if reader in heard}


def _one_circuit(other: CleanRun, moved: Float[Tensor, "n t d"], kept: Mapping[Site, list[Site]]) -> Logits:
    """Logits at the answer, from the counterfactual's run and what the prompt's embedding changes along the circuit."""
    changes = {EMBEDDING: moved}  # of what has something of the prompt to write; all else writes what it did
    final = Site("stream", other.last + 1)
    attended: dict[tuple[int | Site, ...], Tensor] = {}
    for reader in receivers_of(other.model):
        writers = tuple(writer for writer in kept.get(reader, ()) if writer in changes)
        if not writers:
            continue
        change = sum((changes[writer] for writer in writers[1:]), changes[writers[0]])
        heads: dict[int, Tensor] = {}
        if reader.kind == "head":  # heads of a block that read the same share one attention
            if (reader.block, *writers) not in attended:
                attended[reader.block, *writers] = other.attended(
                    reader.block, other.own[Site("stream", reader.block)] + change
                )
            heads = {reader.block: attended[reader.block, *writers]}
        output = with_input(other, reader, change, heads)
        changes[reader] = output - other.own[reader]
        if reader.kind == "head":
            changes[reader] = written(other.model, reader, changes[reader])
    answer = (torch.arange(len(other.answers), device=other.answers.device)[:, None], other.answers)
    return other.at_answer((other.own[final] + changes[final] if final in changes else other.own[final])[answer])
