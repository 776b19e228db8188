"""What an optimizer is called and set to; reading it imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSpec(BaseModel):
    """AdamW as in [Jain+23 §C.2] (betas of nanoGPT), or SGD with momentum as in [Jain+23 §C.1]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, description="on matrices only, never on biases or norms")
