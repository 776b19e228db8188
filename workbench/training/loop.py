"""The training loop. It knows a model, a protocol and a listener; what is measured or saved is the listener's business."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from transformers import PreTrainedModel

from workbench.errors import UserError
from workbench.examples import Examples
from workbench.models.forward import answer_logits, answer_tokens, logits_where
from workbench.optimizers.build import build_optimizer
from workbench.protocols import TrainingProtocol
from workbench.seeds import stream
from workbench.training.fused import fused_norms
from workbench.training.schedule import evaluation_grid
from workbench.training.settings import TrainSettings
from workbench.training.state import TrainingState, cpu_rng


class TrainingDiverged(UserError):
    """The loss or the gradient is not a finite number."""


class Interrupted(KeyboardInterrupt):
    """Asked to stop; a checkpoint of the current step was offered to the listener."""


@dataclass(frozen=True)
class Step:
    """One update as it is logged."""

    step: int
    """Updates done, this one included."""
    loss_nats: float
    lr: float
    gradient_norm: float
    """Before clipping."""
    seconds_left: float


@runtime_checkable
class Listener(Protocol):
    """Receives what happens in a run; `grid` is called at the steps of the evaluation grid, when `due`, and before an end."""

    def step(self, step: Step) -> None:
        """A logged update."""
        ...

    def due(self) -> bool:
        """Whether a point off the grid is wanted now, such as a checkpoint to resume from after a long while without one."""
        ...

    def grid(self, step: int, model: PreTrainedModel, state: Callable[[], TrainingState], last: bool) -> bool:
        """A point of the grid (`last`: nothing follows). True ends the training here, as done."""
        ...


@runtime_checkable
class Tracker(Protocol):
    """Looks into the optimizer's work after each update; injected, so that dynamics and curvature stay above training."""

    def after_update(self, step: int, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
        """Called after update number `step`, before gradients are cleared."""
        ...


@dataclass(frozen=True)
class Targets:
    """What the loss of a batch is on. Read off the whole batch where it was drawn, so that its parts, on whatever process, agree."""

    count: int
    answers: bool
    """The answers and nothing else: last block and head then run at these positions alone."""

    @classmethod
    def of(cls, examples: Examples) -> Targets:
        """Tokens of `loss_mask`; the answers themselves where they stand outside the sequence (an empty `loss_mask`)."""
        count, answers = int(examples.loss_mask[:, 1:].sum()), examples.answer.numel()  # nothing predicts the first token
        if not count:
            return cls(answers, True)
        return cls(count, count == answers and bool(examples.loss_mask.gather(1, answer_tokens(examples)).all()))


class Objective(torch.nn.Module):
    """The loss as a module, so that data-parallel wrappers see one forward pass."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, examples: Examples, answers: bool) -> Tensor:
        """Cross-entropy in nats, summed over the targets: the `answers`, or `loss_mask`; the head runs there alone."""
        if answers:
            logits, wanted = answer_logits(self.model, examples).flatten(0, 1), examples.answer.flatten()
        else:
            mask = examples.loss_mask[:, 1:]
            logits, wanted = logits_where(self.model, examples, mask), examples.tokens[:, 1:][mask]
        exact = torch.promote_types(logits.dtype, torch.float32)  # half precision is widened, double is kept
        return F.cross_entropy(logits.to(exact), wanted, reduction="sum")


def train(
    model: PreTrainedModel,
    protocol: TrainingProtocol,
    settings: TrainSettings,
    listener: Listener,
    *,
    device: torch.device,
    seed: int,
    resume: TrainingState | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    trackers: Sequence[Tracker] = (),
) -> PreTrainedModel:
    """Train `model` in place for `settings.steps` updates; killed and resumed equals uninterrupted, bit for bit on one CPU.

    A batch is dealt out example by example to `world` processes and `settings.accumulate` parts on each; the loss is the mean
    over all its targets, whoever holds them.

    Raises:
        UserError: the batch has fewer examples than that.
        TrainingDiverged: a loss is not finite; the listener then holds the last good point of the grid.
        Interrupted: `should_stop` said so.
    """
    accelerator = _accelerator(settings.precision, device)
    world, accumulate = accelerator.num_processes, settings.accumulate
    if protocol.batch_size < world * accumulate:
        parts = "" if accumulate == 1 else f" in {accumulate} parts each"
        raise UserError(
            f"a batch of {protocol.batch_size} examples cannot be shared by {world} process{'es' * (world > 1)}{parts}; "
            f"raise batch_size or {'start fewer' if accumulate == 1 else 'lower accumulate'}."
        )
    objective = accelerator.prepare(Objective(model.to(accelerator.device)))
    optimizer = accelerator.prepare(build_optimizer(settings.optimizer, model, settings.lr, stream(seed, "optimizer")))
    grid = set(evaluation_grid(settings.steps))
    with torch.random.fork_rng(devices=[]), fused_norms(accelerator.device):
        torch.manual_seed(stream(seed, "dropout"))
        if resume is not None:
            optimizer.load_state_dict(resume.optimizer)
            torch.set_rng_state(resume.rng)
        done = resume.step if resume else 0

        def state() -> TrainingState:
            return TrainingState(step=done, optimizer=optimizer.state_dict(), rng=cpu_rng())

        if resume is None and listener.grid(0, model.eval(), state, last=settings.steps == 0):
            return model.eval()
        log = _Log(settings, listener, done)
        model.train()
        while done < settings.steps:
            if should_stop():
                log.flush()
                listener.grid(done, model.eval(), state, last=True)
                raise Interrupted
            lr = settings.lr * settings.schedule.factor(done, settings.steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss, norm = _update(accelerator, objective, optimizer, protocol.batch(done), settings.clip, accumulate)
            done += 1
            for tracker in trackers:
                tracker.after_update(done, model, optimizer)
            optimizer.zero_grad()
            log.add(done, loss, norm, lr)
            on_grid = done in grid
            if on_grid or listener.due():
                log.flush() if on_grid else log.check()  # a checkpoint is never written after a loss that is not finite
                if listener.grid(done, model.eval(), state, last=done == settings.steps):
                    break
                model.train()
    return model.eval()


def _accelerator(precision: str, device: torch.device) -> Accelerator:
    """Accelerate keeps its settings process-wide and refuses others, but a worker trains one stage after another."""
    kept, cpu = AcceleratorState._shared_state, device.type == "cpu"  # pyright: ignore[reportPrivateUsage]
    if kept and (kept["_mixed_precision"], kept["device"].type == "cpu") != (precision, cpu):
        AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())  # pyright: ignore[reportPrivateUsage]
    return Accelerator(mixed_precision=precision, cpu=cpu)


def _update(
    accelerator: Accelerator,
    objective: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Examples,
    clip: float,
    accumulate: int = 1,
) -> tuple[Tensor, Tensor]:
    world, rank = accelerator.num_processes, accelerator.process_index
    targets = Targets.of(batch)
    losses: list[Tensor] = []
    for part in range(accumulate):
        # Every example is in one part of one rank: parts that see the same examples again would waste the others.
        mine = batch if world * accumulate == 1 else batch[slice(rank + world * part, None, world * accumulate)]
        with accelerator.no_sync(objective) if part < accumulate - 1 else nullcontext():
            with accelerator.autocast():
                total = objective(mine.to(accelerator.device), targets.answers)
            # Parts hold unequal numbers of targets, and gradients are summed over parts and averaged over ranks.
            loss = total / (targets.count / world)
            accelerator.backward(loss)
        losses.append(loss.detach())
    norm: Any = accelerator.clip_grad_norm_(objective.parameters(), clip)
    optimizer.step()
    # Of the ranks' losses, each world times its share of the sum, the mean is the loss of the whole batch.
    whole = torch.stack(losses).sum()
    mean: Any = accelerator.reduce(whole, reduction="mean") if world > 1 else whole
    return mean, norm


class _Log:
    """Keeps losses on the device between logged steps, so that a GPU is not synchronised at each one."""

    def __init__(self, settings: TrainSettings, listener: Listener, done: int) -> None:
        self.settings, self.listener = settings, listener
        self.started, self.first = time.monotonic(), done
        self.pending: list[tuple[int, Tensor, Tensor, float]] = []

    def add(self, step: int, loss: Tensor, norm: Tensor, lr: float) -> None:
        self.pending.append((step, loss, norm, lr))
        if step % self.settings.log_every == 0 or step == self.settings.steps:
            self.flush()

    def check(self) -> None:
        """Raise at the first loss or gradient since the last flush that is not finite."""
        for step, loss, norm, lr in self.pending:
            if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
                raise TrainingDiverged(
                    f"loss {loss.item():.3g} and gradient norm {norm.item():.3g} at step {step} are not finite "
                    f"(learning rate {lr:.2g}); lower lr or lengthen the warm-up."
                )

    def flush(self) -> None:
        self.check()
        pending, self.pending = self.pending, []
        if pending:
            step, _, norm, lr = pending[-1]
            mean = sum(loss.item() for _, loss, _, _ in pending) / len(pending)
            pace = (time.monotonic() - self.started) / max(1, step - self.first)
            self.listener.step(Step(step, mean, lr, norm.item(), pace * (self.settings.steps - step)))
