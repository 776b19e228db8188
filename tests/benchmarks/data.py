"""How fast finished training batches come out of a protocol, on one core."""

from __future__ import annotations

import time

from synthetic_tasks.protocols import pretraining
from tests.benchmarks.training import SMALL, task_of


def tokens_per_second(steps: int = 320, passes: int = 5) -> float:
    """Finished tokens per CPU second of pretraining batches, the best of some passes over fresh steps."""
    protocol = pretraining(task_of(SMALL), {"operand_prior": {"a": 0.99, "b": 0.01}}, SMALL.batch_size, 0)
    protocol.batch(0)
    best = 0.0
    for part in range(1, passes + 1):
        start = time.process_time()
        tokens = sum(protocol.batch(step).tokens.numel() for step in range(part * steps, (part + 1) * steps))
        best = max(best, tokens / (time.process_time() - start))
    return best
