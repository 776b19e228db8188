"""Small classification problems whose whole Hessian can be had: data with k classes, a net for them, and training to low loss.

`blobs`: Gaussian clusters around orthogonal centres. `digits`: 8 x 8 images of handwritten digits (scikit-learn's copy of the UCI
set). `counting`: the project's own task, how often a letter occurs in the last part of a grammar's text, answered by a small GPT-2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.curvature.objective import Objective, Part
from workbench.errors import UserError
from workbench.examples import Examples
from workbench.models.build import build_model
from workbench.models.forward import answer_logits
from workbench.models.spec import ModelSpec
from workbench.protocols import load_task
from workbench.seeds import numpy_generator, stream, torch_generator

Source = Literal["blobs", "digits", "counting"]
SOURCES: tuple[Source, ...] = ("blobs", "digits", "counting")
MOST_CLASSES = {"blobs": 20, "digits": 10, "counting": 5}
DIMENSIONS, DISTANCE = 20, 4.0
"""Of the blobs: dimensions, and distance of each centre from the origin in standard deviations of a cluster."""
COUNTING = {"kind": "pcfg", "text_length": 16, "window": 12, "families": ["count"], "occurrence": 1}
ASKED = "count_a"
COUNTING_ROWS = 128
"""Of counting at most: a product with the Hessian of a transformer costs tens of times one of a small net of ReLUs."""
DRAWN = 10_000
"""Texts drawn, of which those with the wanted answers are kept; larger counts are rare."""
MOMENTUM, SGD_RATE, ADAM_RATE = 0.9, 0.02, 3e-3


@dataclass(frozen=True)
class Problem:
    """Rows with classes, and how to make a net for them."""

    source: Source
    inputs: Any
    """Values `[n, d]`, or `Examples` of the counting task."""
    targets: Int[Tensor, " n"]
    """0 to k - 1, evenly spread as far as there are rows."""
    classes: int
    net: Callable[[int, int], nn.Module]
    """A net of `(width, seed)` in double precision."""

    def __len__(self) -> int:
        return len(self.targets)

    def objective(self, module: nn.Module, rows: Any = slice(None)) -> Objective:
        """The mean cross-entropy of (some of) the rows."""
        return Objective(module, [Part(self.inputs[rows], self.targets[rows])], dtype=torch.float64)


def problem(source: Source, classes: int, rows: int, seed: int, split: str = "train", *, control: bool = False) -> Problem:
    """A problem.

    Args:
        source: what the rows are.
        classes: the k clusters, the digits 0 to k - 1, or the k successive counts of which there are most texts.
        rows: how many at most; `counting` never takes more than `COUNTING_ROWS`.
        seed: of everything that is drawn.
        split: rows of different splits are different, their classes are the same.
        control: no clusters: all blobs lie on one place, or the labels are shuffled over the rows.

    Raises:
        UserError: more classes than there are.
    """
    if not 2 <= classes <= MOST_CLASSES[source]:
        raise UserError(f"{source} with {classes} classes cannot be drawn; give 2 to {MOST_CLASSES[source]}.")
    if source == "blobs":
        inputs, targets = _blobs(classes, rows, seed, split, control)
    elif source == "digits":
        inputs, targets = _digits(classes, rows, seed, split)
    else:
        return _counting(classes, rows, seed, split, control)
    if control and source == "digits":
        targets = _shuffled(targets, seed)
    d = inputs.shape[1]
    return Problem(source, inputs, targets, classes, lambda width, start: _mlp(d, width, classes, start))


def _blobs(k: int, rows: int, seed: int, split: str, control: bool) -> tuple[Tensor, Tensor]:
    centres = np.linalg.qr(numpy_generator(seed, "centres", k).standard_normal((DIMENSIONS, k)))[0].T * DISTANCE
    targets = np.arange(rows) % k
    points = numpy_generator(seed, "points", k, split).standard_normal((rows, DIMENSIONS))
    if not control:
        points += centres[targets]
    return torch.from_numpy(points / np.sqrt(np.square(points).mean())), torch.from_numpy(targets)


def _digits(k: int, rows: int, seed: int, split: str) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = numpy_generator(seed, "digits").permutation(np.flatnonzero(labels < k))
    order = order[:rows] if split == "train" else order[::-1][:rows]
    values = (images - images.mean()) / images.std()
    return torch.from_numpy(values[order]), torch.from_numpy(labels[order].astype(np.int64))


def _shuffled(targets: Tensor, seed: int) -> Tensor:
    return targets[torch.randperm(len(targets), generator=torch_generator(seed, "shuffled labels"))]


def _counting(k: int, rows: int, seed: int, split: str, control: bool) -> Problem:
    task = load_task(COUNTING)
    examples = task.capability(ASKED).examples(DRAWN, seed, split)
    counts = examples.labels[ASKED].numpy()
    found = np.bincount(counts, minlength=len(examples.candidates))
    first = max(range(len(found) - k + 1), key=lambda c: int(found[c : c + k].min()))
    each = min(min(rows, COUNTING_ROWS) // k, int(found[first : first + k].min()))
    kept = np.concatenate([np.flatnonzero(counts == c)[:each] for c in range(first, first + k)])
    targets = torch.from_numpy(counts[kept].astype(np.int64) - first)
    answers = examples.candidates[first : first + k]

    def net(width: int, start: int) -> nn.Module:
        spec = ModelSpec(blocks=1, heads=2, width=width, mlp_width=2 * width)
        return _Answers(build_model(spec, task.vocab_size, task.context, start), answers).double()

    shown = examples[torch.from_numpy(kept)]
    return Problem("counting", shown, _shuffled(targets, seed) if control else targets, k, net)


class _Answers(nn.Module):
    """A language model as a classifier: the logits of some answers, at the place of the answer."""

    def __init__(self, model: Any, answers: Int[Tensor, " k"]) -> None:
        super().__init__()
        self.model, self.answers = model, answers

    def forward(self, examples: Examples) -> Float[Tensor, "m k"]:
        return answer_logits(self.model, examples)[:, 0][:, self.answers]


def _mlp(d: int, width: int, k: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "weights"))
        layers = (nn.Linear(d, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, k))
        return nn.Sequential(*layers).double()


@dataclass(frozen=True)
class Trained:
    """Where a training ended."""

    steps: int
    loss: float
    accuracy: float


def train_to(module: nn.Module, given: Problem, loss: float, most: int) -> Trained:
    """Full-batch training, in place, until the mean loss (nats) is at most `loss`: SGD with momentum, or Adam for `counting`."""
    if given.source == "counting":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(module.parameters(), lr=ADAM_RATE)
    else:
        optimizer = torch.optim.SGD(module.parameters(), lr=SGD_RATE, momentum=MOMENTUM)
    step = 0
    while True:
        outputs = module(given.inputs)
        value = F.cross_entropy(outputs, given.targets)
        if value.item() <= loss or step == most:
            return Trained(step, value.item(), float((outputs.argmax(-1) == given.targets).double().mean()))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        step += 1


def batches(rows: int, size: int, seed: int) -> Iterator[Int[Tensor, " b"]]:
    """Rows of one batch after the other, without end: each pass over the data is a new order; the rest of a pass is left out."""
    epoch = 0
    while True:
        order = torch.randperm(rows, generator=torch_generator(seed, "epoch", epoch))
        yield from (order[at : at + size] for at in range(0, rows - size + 1, size))
        epoch += 1


def class_gradients(given: Problem, module: nn.Module) -> Float[np.ndarray, "n k"]:
    """The gradient of each class's mean loss: where that class's rows pull."""
    rows = [(given.targets == c).nonzero().flatten() for c in range(given.classes)]
    return np.stack([given.objective(module, some).gradient().numpy() for some in rows], axis=1)


def class_logits(given: Problem, module: nn.Module) -> Float[np.ndarray, "n k"]:
    """Of each class the gradient of its logit (less the mean of all logits), averaged over its own rows [Papyan 2020 §4]."""
    objective = given.objective(module)
    with objective.differentiable():
        outputs = objective.outputs(objective.parts[0])
        centred = outputs - outputs.mean(-1, keepdim=True)
        means = [centred[given.targets == c, c].mean() for c in range(given.classes)]
        columns = [objective.flat(objective.slopes(mean, retain_graph=True)) for mean in means]
    return torch.stack(columns, dim=1).numpy()
