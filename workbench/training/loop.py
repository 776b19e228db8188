"""The training loop. It knows a model, a protocol and a listener; what is measured or saved is the listener's business."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
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


class Objective(torch.nn.Module):
    """The loss as a module, so that data-parallel wrappers see one forward pass."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """`(summed cross-entropy in nats, number of targets)` over `loss_mask`; the head runs at targets alone.

        Answers that stand outside the sequence (an empty `loss_mask`) are the targets themselves.
        """
        mask = examples.loss_mask[:, 1:]  # nothing predicts the first token
        targets = mask.sum()
        outside = not bool(targets)
        if outside:
            targets = targets + examples.answer.numel()
        k = examples.answer.shape[1]
        if outside or (int(targets) == len(examples) * k and bool(examples.loss_mask.gather(1, answer_tokens(examples)).all())):
            logits, wanted = answer_logits(self.model, examples).flatten(0, 1), examples.answer.flatten()
        else:
            logits, wanted = logits_where(self.model, examples, mask), examples.tokens[:, 1:][mask]
        exact = torch.promote_types(logits.dtype, torch.float32)  # half precision is widened, double is kept
        return F.cross_entropy(logits.to(exact), wanted, reduction="sum"), targets


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

    The rank's share of a batch is every `world`-th example; the loss is the mean over all targets of all ranks.

    Raises:
        TrainingDiverged: a loss is not finite; the listener then holds the last good point of the grid.
        Interrupted: `should_stop` said so.
    """
    accelerator = _accelerator(settings.precision, device)
    if protocol.batch_size < accelerator.num_processes:
        raise UserError(
            f"a batch of {protocol.batch_size} examples cannot be shared by {accelerator.num_processes} processes; "
            "raise batch_size or start fewer."
        )
    objective = accelerator.prepare(Objective(model.to(accelerator.device)))
    optimizer = accelerator.prepare(build_optimizer(settings.optimizer, model.parameters(), settings.lr))
    grid = set(evaluation_grid(settings.steps))
    with torch.random.fork_rng(devices=[]):
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
            loss, norm = _update(accelerator, objective, optimizer, protocol.batch(done), settings.clip)
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
) -> tuple[Tensor, Tensor]:
    world = accelerator.num_processes
    if world > 1:
        batch = batch[slice(accelerator.process_index, None, world)]
    with accelerator.autocast():
        total, targets = objective(batch.to(accelerator.device))
    if world > 1:
        # Ranks may hold unequal numbers of targets; gradients are averaged over ranks, so the mean is made by hand.
        targets = accelerator.reduce(targets, reduction="sum") / world
    loss = total / targets
    accelerator.backward(loss)
    norm: Any = accelerator.clip_grad_norm_(objective.parameters(), clip)
    optimizer.step()
    # Of the ranks' losses, each world times its share of the sum, the mean is the loss of the whole batch.
    mean: Any = accelerator.reduce(loss.detach(), reduction="mean") if world > 1 else loss.detach()
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
