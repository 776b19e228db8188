"""Training batches of a RASP task as a pure function of (seed, step), generated many steps at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from synthetic_tasks.batches import CHUNK_EXAMPLES
from synthetic_tasks.rasp.task import RaspTask
from workbench.examples import Correlation, Examples
from workbench.seeds import numpy_generator


@dataclass(frozen=True, eq=False)
class RaspBatches:
    """One capability's texts with the answers of one, or with random wrong ones; a `workbench.protocols.TrainingProtocol`.

    What a step gives does not depend on the order in which steps are asked for. Batches are views of a chunk: do not change
    them in place. They carry no labels or roles.
    """

    task: RaspTask
    batch_size: int
    seed: int
    stream: str
    """Names the random stream, so that protocols of one seed do not share texts."""
    operand: int
    """Whose read position is trained."""
    answers: int | None
    """Operand whose answers are given; None: any answer but the true one."""
    correlation: Correlation | None = None
    _last: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict[int, tuple[Tensor, Tensor]], repr=False)

    @property
    def asks(self) -> frozenset[str]:
        """The one capability whose position is trained."""
        return frozenset([self.task.capabilities[self.operand]])

    def batch(self, step: int) -> Examples:
        """The training batch of one step, counted from 0."""
        if step < 0:
            raise ValueError(f"step {step} is negative")
        index, place = divmod(step, max(1, CHUNK_EXAMPLES // self.batch_size))
        tokens, answer = self._chunk(index)
        rows = slice(place * self.batch_size, (place + 1) * self.batch_size)
        return Examples(
            tokens=tokens[rows],
            loss_mask=torch.zeros_like(tokens[rows], dtype=torch.bool),
            answer_position=self.task.answer_position(self.batch_size, self.operand),
            answer=answer[rows],
            candidates=torch.from_numpy(self.task.answer_ids),
        )

    def _chunk(self, index: int) -> tuple[Tensor, Tensor]:
        if index not in self._last:
            rng = numpy_generator(self.seed, "rasp", "batches", self.stream, index)
            steps = max(1, CHUNK_EXAMPLES // self.batch_size)
            texts, _ = self.task.texts(steps * self.batch_size, self.correlation, rng)
            ids = self.task.answer_ids
            label = self.task.question.label(texts, self.operand if self.answers is None else self.answers)
            if self.answers is None:
                wrong = rng.integers(len(ids) - 1, size=len(label))
                label = wrong + (wrong >= label)
            self._last.clear()
            self._last[index] = self.task.sequences(texts), torch.from_numpy(np.asarray(ids[label]))[:, None]
        return self._last[index]
