"""Examples, capabilities and measures: the contract between generators of data and everything that reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import UserError
from workbench.seeds import numpy_generator

_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Examples:
    """One drawn set of prompts with known answers.

    A position *predicts* the token after it: the logits at `answer_position[i]` predict `answer[i, 0]`.
    """

    tokens: Int[Tensor, "n t"]
    """Token ids, answer included unless it stands in no token of the sequence."""
    loss_mask: Bool[Tensor, "n t"]
    """Tokens that are targets of the training loss (each is predicted from the position before it); none where the answer
    stands outside the sequence, and then the answer is the target."""
    answer_position: Int[Tensor, " n"]
    answer: Int[Tensor, "n k"]
    candidates: Int[Tensor, " c"]
    """Token ids of the answer classes."""
    attention_mask: Bool[Tensor, "n t"] | None = None
    """False at padding; None when nothing is padded."""
    labels: Mapping[str, Int[Tensor, " n"]] = field(default_factory=lambda: _EMPTY)
    """Ground truth per example, for instance `count_a`."""
    token_labels: Mapping[str, Int[Tensor, "n t"]] = field(default_factory=lambda: _EMPTY)
    roles: Mapping[str, Bool[Tensor, "n t"]] = field(default_factory=lambda: _EMPTY)
    """Where things stand in the prompt: `operand`, `window`, `request`."""
    chance: Mapping[str, float] = field(default_factory=lambda: _EMPTY)
    """Accuracies that need no ability, for instance `majority` or `given count_b` (best guess when that label is known)."""
    counterfactual: Examples | None = None
    """A matched set, row by row, for patching."""
    classes: Int[Tensor, " vocab"] | None = None
    """Per token id a class, where every token of the answer's class is right, as any token that opens a quotation; None: the
    answer alone is."""

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    def __getitem__(self, rows: slice | Tensor) -> Examples:
        """The examples at `rows`; `candidates`, `chance` and `classes` describe the whole draw and stay."""

        def pick(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[rows]
            if isinstance(value, Mapping):
                return {name: pick(inner) for name, inner in value.items()}  # pyright: ignore[reportUnknownVariableType]
            return None if value is None else value[rows]

        kept = {"candidates", "chance", "classes"}
        return replace(self, **{f.name: pick(getattr(self, f.name)) for f in fields(self) if f.name not in kept})

    def right(self, said: Int[Tensor, "*many n k"]) -> Bool[Tensor, "*many n k"]:
        """Whether what is said in the answer's place, on the examples' device, counts as it, token by token."""
        if self.classes is None:
            return said == self.answer
        known = said < len(self.classes)  # a model may have more rows than the task has tokens
        return known & (self.classes[said.where(known, 0)] == self.classes[self.answer])

    def to(self, device: torch.device | str) -> Examples:
        """The same examples on `device`."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor | Examples):
                return value.to(device)
            if isinstance(value, Mapping):
                return {name: move(inner) for name, inner in value.items()}  # pyright: ignore[reportUnknownVariableType]
            return value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})


def sha256(examples: Examples) -> str:
    """Hash of what a model is shown and asked for: tokens, loss mask, answer and its position."""
    digest = hashlib.sha256()
    for tensor in (examples.tokens, examples.loss_mask, examples.answer_position, examples.answer):
        digest.update(f"{tuple(tensor.shape)}".encode())
        digest.update(tensor.to("cpu", torch.int64).contiguous().numpy().tobytes())
    return digest.hexdigest()


def partners(examples: Examples, seed: int) -> Examples:
    """For every example another one of the same draw with another answer and the same layout (padding, answer, roles).

    Raises:
        UserError: an example that has no such partner.
    """
    masks = [examples.attention_mask] if examples.attention_mask is not None else []
    layout = torch.cat([examples.answer_position[:, None], *(m.long() for m in (*masks, *examples.roles.values()))], dim=1)
    kind = torch.unique(layout, dim=0, return_inverse=True)[1]
    answer = torch.unique(examples.answer, dim=0, return_inverse=True)[1]
    fits = ((kind[:, None] == kind) & (answer[:, None] != answer)).cpu()
    alone = (~fits.any(1)).nonzero().flatten().tolist()
    if alone:
        raise UserError(
            f"{len(alone)} of {len(examples)} examples (the first is number {alone[0]}) have no other one of the same layout and "
            "another answer, so there is no counterfactual for them; draw more examples, or leave these out."
        )
    drawn = torch.from_numpy(numpy_generator(seed, "partners").random(fits.shape))
    return examples[torch.where(fits, drawn, -1.0).argmax(1).to(examples.tokens.device)]


@dataclass(frozen=True)
class Correlation:
    """A spurious relation between two labels of a text: `target == partner + offset` in a `share` of the texts, in no other.

    [Jain+23 §5]: C_Tr and C_Te are the `share` of a training and of a test set.
    """

    target: str
    partner: str
    offset: int = 1
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise UserError(
                f"correlation share {self.share} is outside [0, 1]; give the probability that a text is correlated."
            )
        if self.target == self.partner:
            raise UserError(f"correlation of {self.target!r} with itself says nothing; name another partner in 'with'.")

    def at(self, share: float) -> Correlation:
        """The same relation at another share."""
        return replace(self, share=share)


@runtime_checkable
class Capability(Protocol):
    """A named, seeded source of examples that measures one ability."""

    @property
    def name(self) -> str:
        """For instance `count_a`."""
        ...

    def examples(self, n: int, seed: int, split: str = "test") -> Examples:
        """`n` examples; equal arguments give equal examples, and different splits are independent streams."""
        ...


Measure = Callable[[Any, Examples], Float[Tensor, " n"]]
"""`(model, examples) -> values [n]`: one number per example, such as 1.0 for a right answer."""
