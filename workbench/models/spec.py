"""What a model to train looks like; reading it imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

_OF_CHECKPOINT = ("path", "revision", "sha256")


class ModelSpec(BaseModel):
    """Size and kind of a model to train. `gpt2` is a pre-LayerNorm GPT with learned positions, tanh-GELU and no dropout.

    The size of a `compiled` model is that of the weights which the task writes down, and nothing else is said here; that of
    a `checkpoint` stands in its folder (`workbench.models.given`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["gpt2", "llama", "compiled", "checkpoint"] = "gpt2"
    blocks: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    width: int = Field(default=64, ge=1)
    mlp_width: int | None = Field(default=None, ge=1, description="hidden neurons per block; 4 x width when absent")
    path: str | None = Field(
        default=None, min_length=1, description="of a checkpoint: a folder written by save_pretrained, or owner/name of the hub"
    )
    revision: str | None = Field(
        default=None, min_length=1, description="of a checkpoint of the hub: branch, tag or commit; the newest when absent"
    )
    sha256: str | None = Field(
        default=None, description="of a checkpoint's configuration and weights, as a study was planned with; others are refused"
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelSpec:
        if self.kind == "checkpoint" and self.path is None:
            raise ValueError("a checkpoint has a path: a folder written by save_pretrained, or owner/name of the hub; add path")
        if self.kind != "checkpoint" and (beside := self._said(_OF_CHECKPOINT)):
            raise ValueError(f"{', '.join(beside)} is of a checkpoint, not of kind {self.kind!r}; write kind: checkpoint")
        if self.kind in ("compiled", "checkpoint"):
            sizes = [name for name in type(self).model_fields if name != "kind" and name not in _OF_CHECKPOINT]
            if given := self._said(sizes):
                where = "the task" if self.kind == "compiled" else "its folder"
                raise ValueError(f"a {self.kind} model takes its size from {where}; remove {', '.join(given)}")
            return self
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} is not a multiple of heads {self.heads}; choose a width such as {self.heads * 16}"
            )
        if self.kind == "llama" and self.width // self.heads % 2:
            raise ValueError(
                f"width {self.width} over heads {self.heads} gives heads of {self.width // self.heads}, and rotary positions "
                f"need an even number; choose a width such as {self.heads * 16}"
            )
        return self

    @model_serializer(mode="wrap")
    def _what_is_said(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Keys of a checkpoint for a checkpoint alone, so that the keys of all other stages stay what they were."""
        body = handler(self)
        if self.kind == "checkpoint":
            return {name: body[name] for name in ("kind", *_OF_CHECKPOINT) if body.get(name) is not None}
        return {name: value for name, value in body.items() if name not in _OF_CHECKPOINT}

    def _said(self, names: Iterable[str]) -> list[str]:
        """Those of these fields that differ from their defaults."""
        fields = type(self).model_fields
        return [name for name in names if getattr(self, name) != fields[name].default]

    def parameters(self, vocab_size: int, context: int) -> int:
        """Number of parameters, embeddings and untied head included; not known here for a compiled model or a checkpoint."""
        d, hidden, tables = self.width, self.hidden, 2 * vocab_size * self.width
        if self.kind == "llama":
            return tables + d + self.blocks * (4 * d * d + 3 * d * hidden + 2 * d)
        per_block = (4 * d * d + 4 * d) + (2 * d * hidden + hidden + d) + 4 * d
        return tables + context * d + 2 * d + self.blocks * per_block

    @property
    def hidden(self) -> int:
        """Hidden MLP neurons per block."""
        return self.mlp_width or 4 * self.width
