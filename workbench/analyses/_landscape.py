"""What loss and accuracy are at points of the weight space between and beyond the models of a pair."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from transformers import PreTrainedModel

from workbench.examples import Examples
from workbench.measures import DRAWS, draw, other_texts, proportion_row, shares, trained_share
from workbench.models.matrices import alike, check_alike
from workbench.models.weight_paths import Outcomes, Weights, between, bezier, distance, outcomes, put, random_step, weights_of
from workbench.seeds import torch_generator
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair

Line = tuple[str, str]
"""Names of the models at its ends."""
Path = Literal["straight", "bezier", "random"]


def name_of(line: Line) -> str:
    """`base to tuned`."""
    return f"{line[0]} to {line[1]}"


@dataclass(frozen=True)
class Point:
    """A place on a path, and the ability that was measured there."""

    line: Line
    path: Path
    alpha: float
    """0 at the first end, 1 at the second."""
    role: str
    draw: int = 0


class Landscape:
    """Models by name, texts by role, and what was measured so far; one copy of a model is overwritten again and again."""

    def __init__(self, pair: Pair, n: int, few: int) -> None:
        """`n` texts per ability, `few` for what is a control or a choice.

        Raises:
            UserError: start, tuned and revived model differ in shape; a control that does is left out.
        """
        what = f"pair {pair.name!r}"
        self.pair, self.few = pair, min(n, few)
        self.models: dict[str, PreTrainedModel] = dict(pair.states)
        if pair.start_path is not None:
            self.models["start"] = pair.start
        check_alike(list(self.models.values()), what)
        if pair.never_had_it is not None and alike((pair.base, pair.never_had_it)):
            self.models["never_had_it"] = pair.never_had_it
        self.texts = {"pt": (pair.capability, shares(pair, pair.capability)[0]), "ft": (pair.tuned_on, trained_share(pair))}
        self.sets = {role: draw(pair, *texts, n) for role, texts in self.texts.items()}
        self.resampled = {"pt": pair.seed, "ft": other_texts(pair.seed, "trained") if pair.correlation else pair.seed}
        self.found: dict[Point, Outcomes] = {}
        self._ends: dict[tuple[str, str], Outcomes] = {}
        self._work = copy.deepcopy(pair.base)

    def has(self, line: Line) -> bool:
        """Whether both of its ends are there."""
        return set(line) <= set(self.models)

    def _weights(self, line: Line) -> tuple[Weights, Weights]:
        return weights_of(self.models[line[0]]), weights_of(self.models[line[1]])

    def _at(self, weights: Weights, examples: Examples) -> Outcomes:
        put(self._work, weights)
        return outcomes(self._work, examples)

    def _end(self, model: str, role: str) -> Outcomes:
        """A model itself; the lines that share it measure it once."""
        if (model, role) not in self._ends:
            self._ends[model, role] = outcomes(self.models[model], self.sets[role])
        return self._ends[model, role]

    def straight(self, line: Line, alphas: Iterable[float]) -> None:
        """Both abilities along a straight line."""
        for alpha in alphas:
            weights = between(*self._weights(line), alpha)
            for role, examples in self.sets.items():
                end = self._end(line[int(alpha)], role) if alpha in (0, 1) else self._at(weights, examples)
                self.found[Point(line, "straight", alpha, role)] = end

    def curve(self, line: Line, middle: Weights, alphas: Iterable[float]) -> None:
        """Both abilities along a Bezier curve."""
        for alpha in alphas:
            weights = bezier(self._weights(line)[0], middle, self._weights(line)[1], alpha)
            for role, examples in self.sets.items():
                end = self._end(line[int(alpha)], role) if alpha in (0, 1) else self._at(weights, examples)
                self.found[Point(line, "bezier", alpha, role)] = end

    def random(self, line: Line, alphas: Iterable[float], draws: int) -> None:
        """O_PT after random steps that are in every parameter as long as that of a line."""
        for index in range(1, draws + 1):
            a, b = self._weights(line)
            end = random_step(a, b, torch_generator(self.pair.seed, "random step", index))
            for alpha in alphas:
                point = Point(line, "random", alpha, "pt", index)
                self.found[point] = self._at(between(a, end, alpha), self.sets["pt"][: self.few])

    def best_of_both(self, line: Line) -> float:
        """The measured alpha at which the worse of both accuracies is best on texts of split `select`; the first of equals."""
        some = {role: draw(self.pair, *texts, self.few, "select") for role, texts in self.texts.items()}
        tried = sorted({point.alpha for point in self.found if point.line == line and point.path == "straight"})
        worse: list[float] = []
        for alpha in tried:
            put(self._work, between(*self._weights(line), alpha))
            worse.append(min(float(outcomes(self._work, examples).right.mean()) for examples in some.values()))
        return tried[int(np.argmax(worse))]

    def along(self, line: Line, path: Path, role: str) -> tuple[Float[np.ndarray, " points"], list[Outcomes]]:
        """What was measured from end to end of a path, and at which alphas."""
        points = [p for p in self.found if (p.line, p.path, p.role) == (line, path, role) and 0 <= p.alpha <= 1]
        points.sort(key=lambda point: point.alpha)
        return np.array([point.alpha for point in points]), [self.found[point] for point in points]

    def table(self) -> pd.DataFrame:
        """Two rows per point: the loss with a bootstrap interval, the accuracy with Wilson's."""
        rows: list[dict[str, Any]] = []
        for points in self._resampled_alike():
            role, n = points[0].role, len(self.found[points[0]].loss)
            capability, share = self.texts[role]
            losses = np.stack([self.found[point].loss for point in points], axis=1)
            ends = np.percentile(bootstrap_mean(losses, DRAWS, self.resampled[role]), [2.5, 97.5], axis=0)
            for point, value, low, high in zip(points, losses.mean(0).tolist(), *ends.tolist(), strict=True):
                at = {"line": name_of(point.line), "path": point.path, "alpha": point.alpha, "draw": point.draw}
                at |= {"role": role, "capability": capability, "share": share}
                rows.append({**at, "measure": "loss", "value": value, "low": low, "high": high, "n": n, "unit": "nats"})
                rows.append({**at, "measure": "accuracy", **proportion_row(self.found[point].right)})
        return pd.DataFrame(rows)

    def _resampled_alike(self) -> list[list[Point]]:
        """Points on the same texts, whose draws are paired."""
        groups: dict[tuple[str, int], list[Point]] = {}
        for point, seen in self.found.items():
            groups.setdefault((point.role, len(seen.loss)), []).append(point)
        return list(groups.values())

    def distances(self, lines: Iterable[Line]) -> pd.DataFrame:
        """||A - B|| of each line, and as a share of ||A||."""
        rows: list[dict[str, Any]] = []
        for line in lines:
            a, b = self._weights(line)
            far, size = distance(a, b), math.sqrt(sum(float(x.double().square().sum()) for x in a))
            for measure, value, unit in (
                ("distance", far, "weight norm"),
                ("relative_distance", far / size, "share of the weights' norm"),
            ):
                same = {"value": value, "low": value, "high": value, "n": 0, "unit": unit}
                rows.append({"line": name_of(line), "measure": measure, **same})
        return pd.DataFrame(rows)
