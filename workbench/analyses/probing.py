"""Whether a linear probe still reads the old answer from the model: all probes of a pair fitted as one problem.

A probe that succeeds says little by itself; beside each stand one on an untrained model, one on a model that never had the
ability, and one on shuffled labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from workbench.analyses._reading import kept_line, models_of, questions, rooms
from workbench.analysis import Settings, analysis
from workbench.examples import Examples
from workbench.measures import DRAWS, derived, draw, floors, other_texts, proportion, proportion_row, role_of, shares, truth_of
from workbench.models.lens import residual_streams
from workbench.probes import CONVERGED, fit_probes, standardised
from workbench.results import Evidence, Metric, Result
from workbench.seeds import numpy_generator
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair


class ProbingSettings(Settings):
    """Settings of `probing`."""

    train_examples: int = Field(2000, ge=50, description="examples that the probes are fitted on")
    n: int | None = Field(None, ge=16, description="test examples; the pair's own number when empty")
    penalty: float = Field(1e-3, gt=0, description="L2 penalty: loss = mean cross-entropy + penalty / 2 * |weights|^2")
    iterations: int = Field(100, ge=1, description="largest number of L-BFGS iterations")


@dataclass(frozen=True)
class Cell:
    """The coordinates of one probe."""

    model: str
    point: int
    """Residual stream: 0 after the embedding, b after block b."""
    target: str
    prompt: str
    """`matching`: the prompt asks for the target; `tuned_on`: it asks for what the model was tuned on."""
    labels: str
    """`true` or `shuffled`."""


@analysis(version=2, holds=600, passes=45, paper="Jain+23 §D")
def probing(pair: Pair, settings: ProbingSettings) -> Result:
    """Accuracy of linear probes for O_PT and O_FT in every residual stream, with their controls [Jain+23 §D; Fig 8, 22-25, 90].

    Estimand: accuracy, on fresh texts at C_Te = 0, of a multinomial logistic regression with a bias on activations that are
    standardised by the training examples, at the position that PREDICTS the answer (at the answer itself the input would
    hold the label). Trained on texts at C_Te = 0 too, where the other label does not give the target away. Standardising and an
    L2 penalty replace the paper's 4,000 AdamW steps: the optimum is unique, and how near the fit is to it is in
    `convergence`.

    `prompt`: `matching` asks for the target, as the paper most naturally reads; `tuned_on` asks for O_FT with O_PT as target.
    The headline takes O_PT, the matching prompt, and the mean over the points after each block: no point is chosen, which
    would favour whatever it was chosen by.

    Probes of shuffled labels are measured on their own TRAINING texts: what is right there was memorised, and `selectivity`,
    the tuned model's accuracy less theirs, says how much of it memory could explain.

    `room` = base - untrained, `room_never` = base - never had it, `share_kept` = (tuned - untrained) / room.

    Does not show that the model uses what the probe reads.
    """
    n = settings.n or pair.n
    pt, ft = pair.capability, pair.tuned_on
    asked = list(dict.fromkeys([pt, ft]))
    train = {c: draw(pair, c, shares(pair, c)[0], settings.train_examples, "probe") for c in asked}
    test = {c: draw(pair, c, shares(pair, c)[0], n) for c in asked}
    wanted = questions(pair, train, test)

    cells: list[Cell] = []
    sources: list[int] = []
    labels: list[np.ndarray] = []
    truths: list[np.ndarray | None] = []
    train_x, test_x, where = _activations(models_of(pair), train, test)
    for target, prompt, kind in wanted:
        fitted, truth = truth_of(train[prompt], target), truth_of(test[prompt], target)
        shuffle = numpy_generator(pair.seed, "shuffled labels", target, prompt).permutation
        pairs = (("true", fitted, truth), ("shuffled", shuffle(fitted), None))
        for (name, of, point), source in where.items():
            if of == prompt:
                for word, values, right in pairs:
                    cells.append(Cell(name, point, target, kind, word))
                    sources.append(source)
                    labels.append(values)
                    truths.append(right)
    fit = fit_probes(train_x[sources], np.stack(labels), settings.penalty, settings.iterations)
    on_test, on_training = fit.predict(test_x[sources]), fit.predict(train_x[sources])
    correct = {
        cell: on_training[i] == labels[i] if truth is None else on_test[i] == truth
        for i, (cell, truth) in enumerate(zip(cells, truths, strict=True))
    }

    rows = [{**_coordinates(pair, cell), **proportion_row(right)} for cell, right in correct.items()]
    convergence = pd.DataFrame([_coordinates(pair, cell) for cell in cells])
    convergence["loss_nats"], convergence["largest_gradient"] = fit.loss, fit.gradient
    headline = _headline(pair, {cell: right.astype(np.float64) for cell, right in correct.items()})
    unfinished = int((fit.gradient > CONVERGED).sum())
    result = Result(
        name="probing",
        tables={"table": pd.DataFrame(rows), "chance": _chance(pair, wanted, test), "convergence": convergence},
        headline=headline,
        limits=(
            "A probe shows what can be read linearly, not what the model uses.",
            "The headline is the mean over the residual points after each block; single points are in the table.",
            *(
                [f"{unfinished} of {len(cells)} probes stopped before their gradient fell below {CONVERGED}."]
                if unfinished
                else []
            ),
        ),
        provenance={"capability": pt, "tuned_on": ft},
    )
    return replace(result, evidence=evidence(result))


def _coordinates(pair: Pair, cell: Cell) -> dict[str, Any]:
    return {
        "model": cell.model,
        "point": cell.point,
        "target": cell.target,
        "role": role_of(pair, cell.target),
        "prompt": cell.prompt,
        "labels": cell.labels,
    }


def _activations(
    models: Mapping[str, PreTrainedModel], train: Mapping[str, Examples], test: Mapping[str, Examples]
) -> tuple[Float[Tensor, "f n d"], Float[Tensor, "f m d"], dict[tuple[str, str, int], int]]:
    """Residual streams of all `(model, prompt, point)`, standardised by the training examples, and where each lies."""
    where: dict[tuple[str, str, int], int] = {}
    parts: tuple[list[Tensor], list[Tensor]] = [], []
    for (name, model), prompt in product(models.items(), train):
        for part, examples in zip(parts, (train[prompt], test[prompt]), strict=True):
            part.append(residual_streams(model, examples, batch_size=128))
        for point in range(len(parts[0][-1])):
            where[name, prompt, point] = len(where)
    return (*standardised(torch.cat(parts[0]), torch.cat(parts[1])), where)


def _chance(pair: Pair, wanted: list[tuple[str, str, str]], test: Mapping[str, Examples]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for target, prompt, kind in wanted:
        counts = np.unique(truth_of(test[prompt], target), return_counts=True)[1]
        known = {"majority": float(counts.max() / counts.sum()), **(floors(pair, test[prompt]) if target == prompt else {})}
        rows += [{"target": target, "prompt": kind, "kind": k, "value": value} for k, value in known.items()]
    return pd.DataFrame(rows)


def _headline(pair: Pair, correct: Mapping[Cell, np.ndarray]) -> tuple[Metric, ...]:
    """Means over the points after each block."""
    points = sorted({cell.point for cell in correct} - {0})

    def mean(model: str, labels: str = "true") -> np.ndarray:
        return np.mean([correct[Cell(model, p, pair.capability, "matching", labels)] for p in points], axis=0)

    read = {"base": mean("base"), "tuned": mean("tuned"), "untrained": mean("untrained")}
    if any(cell.model == "never_had_it" for cell in correct):
        read["never"] = mean("never_had_it")
    memory, texts = mean("tuned", "shuffled"), other_texts(pair.seed, "probe")
    draws = bootstrap_mean(read["tuned"], DRAWS, pair.seed) - bootstrap_mean(memory, DRAWS, texts)
    return (
        *(proportion(f"{name}_probe", values, pair.seed) for name, values in read.items()),
        proportion("shuffled_probe", memory, texts),
        *rooms(read, pair.seed),
        derived("selectivity", float(read["tuned"].mean() - memory.mean()), draws, len(read["tuned"]), "accuracy"),
    )


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line: how much of the base's readable answer the tuned model keeps, if the controls leave room to say."""
    found = {m.metric: m for m in result.headline}
    base, tuned, untrained = (found[k] for k in ("base_probe", "tuned_probe", "untrained_probe"))
    never = found.get("never_probe")
    name = result.provenance.get("capability", "O_PT")
    told = f"Linear probes after each block read {name} from the base at {base.value:.2f}, from the tuned model at {tuned.value:.2f}"
    return kept_line(result, told, f"{untrained.value:.2f}", f"{never.value:.2f}" if never else None)
