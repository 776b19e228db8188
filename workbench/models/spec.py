"""What a model to train looks like; reading it imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ModelSpec(BaseModel):
    """Size and kind of a model to train. `gpt2` is a pre-LayerNorm GPT with learned positions, tanh-GELU and no dropout.

    The size of a `compiled` model is that of the weights which the task writes down, and nothing else is said here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["gpt2", "llama", "compiled"] = "gpt2"
    blocks: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    width: int = Field(default=64, ge=1)
    mlp_width: int | None = Field(default=None, ge=1, description="hidden neurons per block; 4 x width when absent")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelSpec:
        if self.kind == "compiled":
            fields = type(self).model_fields
            given = [name for name in fields if name != "kind" and getattr(self, name) != fields[name].default]
            if given:
                raise ValueError(f"a compiled model takes its size from the task; remove {', '.join(given)}")
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

    def parameters(self, vocab_size: int, context: int) -> int:
        """Number of parameters, embeddings and untied head included; not known here for a compiled model."""
        d, hidden, tables = self.width, self.hidden, 2 * vocab_size * self.width
        if self.kind == "llama":
            return tables + d + self.blocks * (4 * d * d + 3 * d * hidden + 2 * d)
        per_block = (4 * d * d + 4 * d) + (2 * d * hidden + hidden + d) + 4 * d
        return tables + context * d + 2 * d + self.blocks * per_block

    @property
    def hidden(self) -> int:
        """Hidden MLP neurons per block."""
        return self.mlp_width or 4 * self.width
