"""Positions of a prompt as places with names: the parts that roles name, the tokens between them, and a thinned-out text."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.errors import UserError
from workbench.examples import Examples
from workbench.protocols import Task

REQUEST = "request"


@dataclass(frozen=True)
class Place:
    """One position of a prompt."""

    name: str
    """The token that always stands there, the role, or for a text the distance from its end (0 = its last token)."""
    role: str
    """`operand`, `text`, `window` (the part of a text that is asked about), `request`, or `prompt` for all others."""


def find_places(task: Task, examples: Examples, most: int, length: int | None = None) -> tuple[list[Place], Int[Tensor, "n k"]]:
    """Places up to the position that predicts the answer, from left to right, and where each example has them.

    With `length` they go that far: a model that attends in both directions also reads what comes after.

    Of a text at most `most` evenly spaced positions are taken, the last one always. Examples without roles have a text up to
    the answer's position. Where examples differ in their layout, only what roles name has a place.

    Raises:
        UserError: a role that covers more positions in one example than in another.
    """
    length = int(examples.answer_position.max()) + 1 if length is None else length
    masks = {role: mask[:, :length].cpu() for role, mask in examples.roles.items()}
    request = torch.arange(length) == examples.answer_position.cpu()[:, None]
    text = masks.get("text", torch.arange(length) < examples.answer_position.cpu()[:, None])
    window = masks.get("window", torch.zeros_like(text))
    named = {"operand": masks.get("operand", torch.zeros_like(text)), "text": text, REQUEST: request}
    columns: list[tuple[Place, Tensor]] = []
    for role, mask in named.items():
        at = _rows(role, mask)
        count = at.shape[1]
        kept = _thinned(count, most) if role == "text" else range(count)
        for i in kept:
            here = at[:, i]
            inside = bool(window.gather(1, here[:, None]).all())
            name = str(count - 1 - i) if role == "text" else role if count == 1 else f"{role} {i}"
            columns.append((Place(name, "window" if inside else role), here))
    if all(bool((mask == mask[:1]).all()) for mask in named.values()):
        free = ~torch.stack([mask[0] for mask in named.values()]).any(0)
        tokens = examples.tokens.cpu()
        for i in free.nonzero().flatten().tolist():
            same = bool((tokens[:, i] == tokens[0, i]).all())
            name = task.describe([int(tokens[0, i])]) if same else f"token {i}"
            columns.append((Place(name, "prompt"), torch.full((len(examples),), i)))
    columns.sort(key=lambda column: int(column[1][0]))
    return [place for place, _ in columns], torch.stack([at for _, at in columns], dim=1)


def even(examples: Examples) -> Examples:
    """With only the roles that have places of a common name: as many positions in one example as in another.

    A text is without the position that predicts the answer, which has a name of its own.
    """
    request = torch.arange(examples.tokens.shape[1]) == examples.answer_position.cpu()[:, None]
    masks = {name: mask.cpu() & ~request if name == "text" else mask for name, mask in examples.roles.items()}
    return replace(examples, roles={name: mask for name, mask in masks.items() if len(mask.sum(1).unique()) == 1})


def _rows(role: str, mask: Bool[Tensor, "n t"]) -> Int[Tensor, "n k"]:
    """The positions of a role in every example."""
    counts = mask.sum(1)
    if int(counts.min()) != int(counts.max()):
        raise UserError(
            f"role {role!r} covers from {int(counts.min())} to {int(counts.max())} positions of an example, so they cannot be "
            "laid one upon the other; use examples of one layout."
        )
    return mask.nonzero()[:, 1].view(len(mask), -1)


def _thinned(count: int, most: int) -> range:
    """At most `most` of `count` indices, evenly spaced, in order, the last one among them."""
    stride = max(1, -(-count // most))
    return range((count - 1) % stride, count, stride)
