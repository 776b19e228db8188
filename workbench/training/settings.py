"""Settings of one training stage."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workbench.optimizers.spec import OptimizerSpec
from workbench.training.schedule import Schedule


class TrainSettings(BaseModel):
    """Everything that the loop needs besides a model and a protocol."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(ge=0)
    lr: float = Field(gt=0, description="peak learning rate")
    batch_size: int = Field(default=64, ge=1)
    accumulate: int = Field(
        default=1, ge=1, description="parts of a batch that are run one after the other, for memory; the update stays the same"
    )
    schedule: Schedule = Schedule()
    optimizer: OptimizerSpec = OptimizerSpec()
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    precision: Literal["no", "bf16"] = "no"
    log_every: int = Field(default=10, ge=1, description="steps between logged losses")

    @model_validator(mode="after")
    def _every_part_has_an_example(self) -> TrainSettings:
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate {self.accumulate} splits a batch of {self.batch_size} examples into more parts than it has; "
                "raise batch_size or lower accumulate"
            )
        return self
