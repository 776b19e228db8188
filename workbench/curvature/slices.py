"""Slices of a loss: random directions whose length fits each filter, planes through models, and the plane of a path of training.

A point is a flat vector of parameters in the order of `named_parameters()`: that of an `Objective`, or a whole model's.
Filter normalisation takes the size of the weights out of a slice: where a layer is scaled up and the next one down, which changes
no output of a ReLU network, the slice stays what it was [Li+18 1712.09913 §4].
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workbench.curvature.objective import Objective
from workbench.errors import UserError
from workbench.examples import Examples
from workbench.models.weight_paths import Outcomes, outcomes
from workbench.seeds import torch_generator

T = TypeVar("T")
Vectors = Literal["zero", "whole"]
"""What becomes of biases and norms: they stay as they are (the paper's choice), or each is one filter."""
INDEPENDENT = 1e-6
"""Share of its length by which a vector must leave the span of others to add a direction to it."""
COLUMNS = 1 << 20
"""Parameters at once in double precision, where several models are held against each other."""


@dataclass(frozen=True)
class Filters:
    """Which filter each parameter belongs to: the weights of one output, or the vector of one token."""

    of: Int[Tensor, " n"]
    """Number of the filter; a bias or norm is one by itself."""
    count: int
    one_dimensional: Bool[Tensor, " n"]
    """Whether it is of a bias or norm."""

    def norms(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " filters"]:
        """Euclidean norm of each filter."""
        return vector.new_zeros(self.count).index_add_(0, self.of, vector.square()).sqrt()

    def normalised(
        self, direction: Float[Tensor, " n"], weights: Float[Tensor, " n"], vectors: Vectors = "zero"
    ) -> Float[Tensor, " n"]:
        """A direction of which every filter is as long as that of the weights [Li+18 §4]; filters without length stay zero."""
        sizes = self.norms(direction)
        scale = torch.where(sizes > 0, self.norms(weights) / torch.where(sizes > 0, sizes, 1), 0)
        out = direction * scale[self.of]
        return out.masked_fill(self.one_dimensional, 0) if vectors == "zero" else out


def filters(module: nn.Module, names: Collection[str] | None = None) -> Filters:
    """The filters of a module's parameters, or of those with these names, in its own order.

    `nn.Linear` and convolutions hold an output's weights in a row, GPT-2's `Conv1D` in a column; of an embedding each row is one.
    """
    of: list[Tensor] = []
    flags: list[Tensor] = []
    count = 0
    for name, p in module.named_parameters():
        if names is not None and name not in names:
            continue
        axis = 1 if isinstance(module.get_submodule(name.rpartition(".")[0]), Conv1D) else 0
        shape = [1] * p.ndim
        if p.ndim > 1:
            shape[axis] = p.shape[axis]
        places = torch.arange(int(np.prod(shape)), device=p.device).reshape(shape).expand(p.shape)
        of.append(places.reshape(-1) + count)
        flags.append(torch.full((p.numel(),), p.ndim < 2, device=p.device))
        count += int(np.prod(shape))
    return Filters(torch.cat(of), count, torch.cat(flags))


def random_direction(
    weights: Float[Tensor, " n"], of: Filters, seed: int, *labels: str | int, vectors: Vectors = "zero"
) -> Float[Tensor, " n"]:
    """A filter-normalised Gaussian direction; equal seeds and labels give the same draw for all models of a shape."""
    drawn = torch.randn(len(weights), generator=torch_generator(seed, "direction", *labels), dtype=torch.float64)
    return of.normalised(drawn.to(weights.device, weights.dtype), weights, vectors)


def vector_of(module: nn.Module) -> Float[Tensor, " n"]:
    """All parameters of a module, flat, in double precision."""
    return torch.cat([p.detach().double().reshape(-1) for p in module.parameters()])


@torch.no_grad()
def put_vector(module: nn.Module, vector: Float[Tensor, " n"]) -> None:
    """Overwrite all parameters of a module."""
    parameters = list(module.parameters())
    for p, new in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        p.copy_(new.view_as(p))


@dataclass(frozen=True)
class Place:
    """Where a point lies, seen from a plane; lengths in the plane's unit."""

    x: float
    y: float
    distance: float
    """From the plane."""
    outside: float
    """Share of its squared distance from the origin that the plane does not show; 0 at the origin."""


@dataclass(frozen=True)
class Plane:
    """A plane in the space of parameters: origin + unit (x a + y b)."""

    origin: Float[Tensor, " n"]
    axes: Float[Tensor, "2 n"]
    """Orthonormal."""
    unit: float = 1.0

    def point(self, x: float, y: float) -> Float[Tensor, " n"]:
        """The parameters at these coordinates."""
        return self.origin + self.unit * (x * self.axes[0] + y * self.axes[1])

    def place(self, vector: Float[Tensor, " n"]) -> Place:
        """The nearest point of the plane, and how far it is."""
        way = vector.to(self.origin.dtype) - self.origin
        inside = self.axes @ way
        rest, whole = float((way - inside @ self.axes).norm()), float(way.norm())
        x, y = (inside / self.unit).tolist()
        return Place(x, y, rest / self.unit, (rest / whole) ** 2 if whole > 0 else 0.0)


def spanned(
    origin: Float[Tensor, " n"], ways: Iterable[Float[Tensor, " n"]], unit: float = 1.0
) -> tuple[Plane, tuple[int, int]]:
    """The plane of the first two independent of these vectors from `origin`, and which these are.

    The first lies along x; y points to the side of the second.

    Raises:
        UserError: fewer than two of them are independent.
    """
    axes: list[Tensor] = []
    used: list[int] = []
    for index, way in enumerate(ways):
        left = way.to(origin.dtype)
        for axis in axes * 2:  # twice, for the first leaves rounding behind
            left = left - (axis @ left) * axis
        if float(left.norm()) > INDEPENDENT * float(way.norm()):
            axes.append(left / left.norm())
            used.append(index)
        if len(axes) == 2:
            return Plane(origin, torch.stack(axes), unit), (used[0], used[1])
    raise UserError(f"a plane needs two independent directions, and there are {len(axes)}; give another point.")


def principal(points: Sequence[Float[Tensor, " n"]], unit: float = 1.0) -> tuple[Plane, Float[np.ndarray, " k"]]:
    """The plane through the last point that lies nearest to all others, and the share of each component [Li+18 §7].

    Components are the singular vectors of the differences to the last point, not centred: of all planes that hold the last
    model, the one with the least squared distance to the path is drawn. Shares are of the sum of squared distances.
    The first point has x >= 0; the y of the largest size is positive.

    Args:
        points: in the order of training.
        unit: of the plane.

    Raises:
        UserError: the points lie on a line.
    """
    last = points[-1].double()
    gram = torch.zeros(len(points), len(points), dtype=torch.float64, device=last.device)
    for differences in _pieces(points, last):
        gram += differences @ differences.T
    values, vectors = (x.flip(-1) for x in torch.linalg.eigh(gram))
    values = values.clamp(min=0)
    if len(points) < 3 or float(values[1]) <= INDEPENDENT**2 * float(values[0]):
        raise UserError(f"the {len(points)} points of the path lie on one line, so that there is no plane of theirs.")
    mixed = vectors[:, :2].T / values[:2, None].sqrt()
    axes = torch.cat([mixed @ differences for differences in _pieces(points, last)], dim=1)
    seen = vectors[:, :2] * values[:2].sqrt()  # coordinates of the points
    turn = torch.stack([seen[0, 0], seen[seen[:, 1].abs().argmax(), 1]])
    axes = axes * torch.where(turn < 0, -1.0, 1.0)[:, None]
    plane, _ = spanned(last, axes, unit)  # orthonormal to rounding, whatever the second one's size
    return plane, (values / values.sum()).cpu().numpy()


def _pieces(points: Sequence[Tensor], last: Tensor) -> Generator[Float[Tensor, "k c"]]:
    for start in range(0, len(last), COLUMNS):
        some = slice(start, start + COLUMNS)
        yield torch.stack([point[some].double() for point in points]) - last[some]


def walk_shares(lengths: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " k"]:
    """Shares of the components of a random walk with steps of these lengths, in so many dimensions that all steps are orthogonal.

    The control of `principal`: even a walk that goes nowhere has most of its squared distance in two components
    [Antognini+18 1806.08805].
    """
    left = np.append(np.cumsum(np.square(lengths)[::-1])[::-1], 0.0)  # squared distance of each point to the last
    gram = np.minimum(left[:, None], left[None, :])  # two points share the steps after the later of them
    values = np.clip(np.linalg.eigvalsh(gram)[::-1], 0, None)
    return values / values.sum()


def along(
    at: Callable[[Tensor], T], centre: Float[Tensor, " n"], direction: Float[Tensor, " n"], alphas: Iterable[float]
) -> list[T]:
    """What `at` says of centre + alpha direction."""
    return [at(centre + alpha * direction) for alpha in alphas]


def over(at: Callable[[Tensor], T], plane: Plane, xs: Sequence[float], ys: Sequence[float]) -> list[list[T]]:
    """What `at` says of each point of a grid: rows are ys, columns xs."""
    return [[at(plane.point(x, y)) for x in xs] for y in ys]


@contextmanager
def losses(objective: Objective) -> Generator[Callable[[Float[Tensor, " n"]], float]]:
    """The objective's mean loss as a function of its parameters, which are put back in the end."""
    centre = objective.vector()

    def at(vector: Float[Tensor, " n"]) -> float:
        objective.put(vector)
        return objective.loss()

    try:
        yield at
    finally:
        objective.put(centre)


def answers(model: PreTrainedModel, sets: Mapping[str, Examples]) -> Callable[[Float[Tensor, " n"]], dict[str, Outcomes]]:
    """Loss (nats) and right answers on each of several sets as a function of all parameters; done on a copy of the model."""
    work = copy.deepcopy(model)
    there = {name: examples.to(model.device) for name, examples in sets.items()}

    def at(vector: Float[Tensor, " n"]) -> dict[str, Outcomes]:
        put_vector(work, vector)
        return {name: outcomes(work, examples) for name, examples in there.items()}

    return at
