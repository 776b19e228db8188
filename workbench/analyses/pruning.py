"""Whether removing a few units brings a lost ability back: pruning, by default of hidden neurons by a signed first-order score.

With neurons, the default, the search space is the MLPs alone and what attention has learned stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from workbench.analysis import Settings, analysis
from workbench.examples import Examples
from workbench.measures import (
    DRAWS,
    certain,
    correct_answers,
    derived,
    draw,
    floors,
    other_texts,
    proportion,
    proportion_row,
    role_of,
    shares,
)
from workbench.models.forward import accuracy, answer_logits, evaluate
from workbench.models.inside import with_names
from workbench.models.resume import block_inputs, resumed
from workbench.models.scores import SCORES, Request, ScoreName, order_of, random_order, score_units, undefined_for
from workbench.models.units import UnitKind, Units, units_of
from workbench.results import Evidence, Metric, Result
from workbench.seeds import numpy_generator
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair
from workbench.verdict import RECOVERED, ROOM

LISTED_UNITS = 100
WORDS = {"neurons": "hidden MLP neurons", "heads": "attention heads", "rows": "rows of matrices", "weights": "single weights"}
RANDOM_EVERY = 4
"""Random units are removed at every fourth point of the curve, and at the chosen one."""


class PruningSettings(Settings):
    """Settings of `pruning`."""

    score: ScoreName = Field("signed_taylor", description="how the units are ranked")
    max_units: int = Field(40, ge=1, description="largest number of removed units; the grid below it is geometric")
    score_examples: int = Field(1024, ge=16, description="examples for the gradient, drawn apart from all others")
    random_draws: int = Field(10, ge=10, description="random orders of the units that serve as the control")
    n: int | None = Field(None, ge=16, description="test examples per set; the pair's own number when empty")
    control_examples: int = Field(
        200, ge=16, description="examples (at most) for choosing K, for random units and for the sets beside the main two"
    )
    units: UnitKind = Field("neurons", description="what is removed")
    probes: int = Field(32, ge=1, description="random probes of the second derivatives, for the score obd alone")

    @model_validator(mode="after")
    def _score_is_defined_for_the_units(self) -> PruningSettings:
        if misfit := undefined_for(self.score, self.units):
            raise ValueError(misfit)
        return self


@analysis(version=2, holds=700, passes=35, paper="Jain+23 §D")
def pruning(pair: Pair, settings: PruningSettings) -> Result:
    """Accuracy of the tuned model with its K most harmful hidden neurons removed [Jain+23 §D, Alg. 3; Fig 7, 55-59, 79-89].

    Score of neuron i: dL/dm_i, L = mean cross-entropy (nats) of the O_PT answer at C_Te = 0, m_i = 1 a mask on its
    activation; it equals sum_k W2_ki dL/dW2_ki. Setting m_i = 0 changes L by -dL/dm_i to first order, so the LARGEST
    positive scores are the removals that most reduce the loss; the sign matters. One shot: no new ranking, no training
    afterwards. A removed neuron's activation is zero; the output bias of its MLP stays.

    Other units (`units`: attention heads, rows of matrices, single weights) and other scores are defined in
    `workbench.models.units` and `workbench.models.scores`, with the end that goes first and why.

    Four independent draws keep choosing apart from measuring: the gradient is taken on `score`, K is the one with the largest
    O_PT accuracy on `select` (the smallest on a tie, and nothing else is asked of it), and the headline is measured on
    `test`. The control removes as many random neurons; its interval carries the spread over random orders too.
    `recovered` is the share of the lost accuracy that came back, counted from where no ability is needed: (pruned - floor) /
    (base - floor), floor = the larger of the unpruned accuracy and the best guess without the ability, so that answering by a
    frequent number recovers nothing. `units` lists what goes first; of a compiled model with what it was compiled to read and
    write. In `table`, draw 0 is the ranking in question and the others are the control;
    `chosen` has the number of units that this seed's examples chose.

    Does not show that an ability is gone when nothing comes back: a wrapper may sit in attention, or be spread out.
    """
    n = settings.n or pair.n
    few = min(n, settings.control_examples)
    tuned, units = pair.tuned, units_of(pair.tuned, settings.units)
    pt_share, ft_shares = shares(pair, pair.capability)[0], shares(pair, pair.tuned_on)
    scores = score_units(settings.score, request(pair, units, settings.score_examples, settings.probes))
    order = order_of(settings.score, scores)
    grid = k_grid(min(settings.max_units, len(units)))

    selection = draw(pair, pair.capability, pt_share, few, "select")
    k_best = choose_k(grid, [correct.mean() for correct in curve(tuned, selection, order, grid, units)])

    test = draw(pair, pair.capability, pt_share, n)
    # The two curves of the headline get all examples; the sets beside them fewer.
    sets: list[tuple[str, float, Examples]] = [(pair.capability, pt_share, test)]
    sets += [(pair.tuned_on, s, draw(pair, pair.tuned_on, s, n if s == 1.0 else few)) for s in reversed(ft_shares)]
    sets += [(other, shares(pair, other)[0], draw(pair, other, shares(pair, other)[0], few)) for other in pair.others]
    rows: list[dict[str, Any]] = []
    correct: dict[tuple[str, float, int], np.ndarray] = {}
    for capability, share, examples in sets:
        for k, right in zip(grid, curve(tuned, examples, order, grid, units), strict=True):
            correct[capability, share, k] = right
            at = {"k": k, "capability": capability, "role": role_of(pair, capability), "share": share}
            rows.append({"ranking": settings.score, "draw": 0, **at, **proportion_row(right)})

    control_grid = sorted({*grid[RANDOM_EVERY::RANDOM_EVERY], k_best} - {0})
    at_best = np.zeros((settings.random_draws, few))
    at_best[:] = correct[pair.capability, pt_share, 0][:few]  # removing nothing is the same in any order
    for index in range(settings.random_draws):
        shuffled = random_order(len(units), pair.seed, index)
        for k, right in zip(control_grid, curve(tuned, test[:few], shuffled, control_grid, units), strict=True):
            at = {"k": k, "capability": pair.capability, "role": "pt", "share": pt_share}
            rows.append({"ranking": "random", "draw": index + 1, **at, **proportion_row(right)})
            if k == k_best:
                at_best[index] = right

    after, chance = correct[pair.capability, pt_share, k_best], max(floors(pair, test).values(), default=0.0)
    classes, shares_of_largest = classes_of(pair, test, units, order[:k_best])
    headline = (
        *headline_of(pair, correct, at_best, correct_answers(pair.base, test), k_best, chance, units.word),
        *(proportion(name, is_largest, pair.seed, "share of predictions") for name, is_largest in shares_of_largest.items()),
    )
    result = Result(
        name="pruning",
        tables={
            "table": pd.DataFrame(rows),
            "chosen": pd.DataFrame([{"k": k_best, "capability": pair.capability, **proportion_row(after)}]),
            "classes": classes,
            "units": _units(pair.base, units, scores, order, SCORES[settings.score].unit),
        },
        headline=headline,
        limits=(
            "Only hidden MLP neurons can be removed; a wrapper in attention or spread over many neurons is not found."
            if units.word == "neurons"
            else f"Only {WORDS[units.word]} can be removed ({units.kind}); a wrapper elsewhere or spread out is not found.",
            "No recovery is no sign that the ability is gone.",
            f"K = {k_best} was chosen for the largest accuracy on separate examples"
            + (
                f": removing no {units.word.removesuffix('s')} at all was best."
                if k_best == 0
                else "; how the curve goes on is in the table."
            ),
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def request(pair: Pair, units: Units, n: int, probes: int) -> Request:
    """What a score of a pair's units looks at: the loss of O_PT at C_Te = 0; O_FT where trained and the others are protected."""
    protected = [(pair.tuned_on, shares(pair, pair.tuned_on)[-1]), *((c, shares(pair, c)[0]) for c in pair.others)]
    return Request(
        pair.tuned,
        units,
        draw(pair, pair.capability, shares(pair, pair.capability)[0], n, "score"),
        base=pair.start,
        protect=[lambda c=c, share=share: draw(pair, c, share, n, "score") for c, share in protected],
        seed=pair.seed,
        probes=probes,
    )


def k_grid(largest: int) -> tuple[int, ...]:
    """Numbers of removed units: 0, 1, 2, 3, 5, then by a factor of sqrt 2, and the largest."""
    grid, point = {0, largest, *(k for k in (1, 2, 3) if k < largest)}, 5.0
    while round(point) < largest:
        grid.add(round(point))
        point *= math.sqrt(2)
    return tuple(sorted(grid))


def pruned(
    model: PreTrainedModel, order: Int[Tensor, " units"], k: int, units: Units | None = None
) -> AbstractContextManager[None]:
    """The model without the first `k` units of `order` (hidden neurons, where no kind is given) while the context is open."""
    return (units or units_of(model)).removed(model, order[:k])


@torch.no_grad()
def curve(
    model: PreTrainedModel,
    examples: Examples,
    order: Int[Tensor, " units"],
    grid: Iterable[int],
    units: Units | None = None,
    batch_size: int = 128,
) -> list[np.ndarray]:
    """Right answers `[n]` at every number of removed units; blocks before the first removed one run once for all numbers."""
    units = units or units_of(model)
    firsts = {k: units.first_block(order[:k]) for k in grid}
    right: dict[int, list[Tensor]] = {k: [] for k in firsts}
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size].to(model.device)
        inputs, plain = list[Tensor](), torch.empty(0)
        if any(firsts.values()):
            with block_inputs(model) as inputs:
                plain = accuracy(model, batch)
        for k, first in firsts.items():
            if k == 0:
                right[k].append(plain)
                continue
            with pruned(model, order, k, units), resumed(model, first, inputs[first]) if first else nullcontext():
                right[k].append(accuracy(model, batch))
    return [torch.cat(parts).float().cpu().numpy().astype(np.float64) for parts in right.values()]


def choose_k(grid: Sequence[int], accuracies: Sequence[float]) -> int:
    """The number of units with the largest accuracy; the smallest such number on a tie."""
    return grid[int(np.argmax(accuracies))]


def control_draws(correct: Float[np.ndarray, "orders n"], seed: int, texts: int | None = None) -> Float[np.ndarray, " draws"]:
    """Draws of the control's mean accuracy: both the random orders and the examples are resampled, for both are samples.

    `texts` resamples the examples as others are that were measured on the same ones; None: independently of all others.
    """
    resampled = other_texts(seed, "random") if texts is None else texts
    per_order = np.stack([bootstrap_mean(row, DRAWS, resampled) for row in correct], axis=1)
    picked = numpy_generator(seed, "random orders").integers(0, len(correct), size=per_order.shape)
    return np.take_along_axis(per_order, picked, axis=1).mean(axis=1)


def headline_of(
    pair: Pair,
    correct: Mapping[tuple[str, float, int], np.ndarray],
    random: np.ndarray,
    base: np.ndarray,
    k: int,
    chance: float,
    word: str = "neurons",
) -> list[Metric]:
    """Numbers of the choice K = `k`.

    Args:
        pair: of the models.
        correct: right answers `[n]` by capability, C_Te and number of removed units: O_PT and O_FT, at 0 and at `k`.
        random: right answers of the control's orders `[orders, few]`.
        base: right answers of the base on O_PT `[n]`.
        k: the chosen number.
        chance: accuracy on O_PT that needs no ability.
        word: what was removed.
    """
    pt, ft = (pair.capability, shares(pair, pair.capability)[0]), (pair.tuned_on, shares(pair, pair.tuned_on)[-1])
    before, after = correct[*pt, 0], correct[*pt, k]
    n, few = len(after), random.shape[1]
    random_draws = control_draws(random, pair.seed)
    texts = other_texts(pair.seed, "correlated") if ft[1] == 1.0 else pair.seed
    return [
        proportion("pruned_pt", after, pair.seed),
        proportion("unpruned_pt", before, pair.seed),
        proportion("base_pt", base, pair.seed),
        derived("random_pt", float(random.mean()), random_draws, few, "accuracy"),
        derived(
            "gain",
            float(after.mean() - random.mean()),
            bootstrap_mean(after, DRAWS, pair.seed) - random_draws,
            few,
            "accuracy",
        ),
        recovered("recovered", after, before, base, chance, pair.seed),
        certain("chance_pt", chance, n, "accuracy"),
        proportion("unpruned_ft_correlated", correct[*ft, 0], texts),
        proportion("pruned_ft_correlated", correct[*ft, k], texts),
        certain("units", float(k), n, word),
    ]


def recovered(name: str, after: np.ndarray, before: np.ndarray, base: np.ndarray, chance: float, seed: int) -> Metric:
    """(after - floor) / (base - floor), floor = the larger of `before` and chance; undefined without a loss to recover.

    Right answers `[n]` of the same examples, resampled together.
    """
    floor = max(float(before.mean()), chance)
    lost = float(base.mean()) - floor
    value = (float(after.mean()) - floor) / lost if lost >= ROOM else math.nan
    now, then, top = (bootstrap_mean(v, DRAWS, seed) for v in (after, before, base))
    then = np.maximum(then, chance)
    with np.errstate(divide="ignore", invalid="ignore"):
        return derived(name, value, (now - then) / (top - then), len(after), "share of the loss")


def classes_of(
    pair: Pair, test: Examples, units: Units, removed: Int[Tensor, " k"]
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """What the model answers before and after, and where the most frequent answer was given after and in truth."""

    def first_token(model: PreTrainedModel, examples: Examples) -> Tensor:
        return answer_logits(model, examples)[:, 0].argmax(-1).float()

    tokens: dict[str, np.ndarray] = {"truth": test.answer[:, 0].cpu().numpy()}
    for when, gone in (("before", removed[:0]), ("after", removed)):
        with units.removed(pair.tuned, gone):
            tokens[when] = evaluate(pair.tuned, test, first_token).numpy().astype(np.int64)
    rows = [
        {"when": when, "answer": pair.task.describe([int(token)]), "token": int(token), **proportion_row(values == token)}
        for when, values in tokens.items()
        for token in np.unique(np.concatenate([*tokens.values(), test.candidates.cpu().numpy()]))
    ]

    def is_largest(values: np.ndarray) -> np.ndarray:
        seen, counts = np.unique(values, return_counts=True)
        return (values == seen[counts.argmax()]).astype(np.float64)

    frame = pd.DataFrame(rows).assign(unit="share of predictions")
    return frame, {"largest_class": is_largest(tokens["after"]), "largest_class_truth": is_largest(tokens["truth"])}


def _units(
    base: PreTrainedModel, units: Units, scores: Float[Tensor, " units"], order: Int[Tensor, " units"], unit: str
) -> pd.DataFrame:
    listed = order[:LISTED_UNITS]
    table = with_names(base, units.table(listed).drop(columns="unit"))
    table.insert(0, "rank", np.arange(1, len(listed) + 1))
    return table.assign(score=scores[listed].double().numpy(), unit=unit)


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line: whether a few removed neurons bring the ability back, more than random ones do."""
    found = {m.metric: m for m in result.headline}
    gain, back, base, unpruned = (found[k] for k in ("gain", "recovered", "base_pt", "unpruned_pt"))
    capability = result.provenance.get("capability", "O_PT")
    lost = base.value - unpruned.value
    word = found["units"].unit or "units"
    count = f"{found['units'].value:g} {word}" + (" on average" if found["units"].seeds > 1 else "")
    told = (
        f"Removing {count} takes {capability} from {unpruned.value:.2f} to "
        f"{found['pruned_pt'].value:.2f} (random ones: {found['random_pt'].value:.2f}, base: {base.value:.2f})"
    )
    if lost < ROOM or not math.isfinite(back.value):
        seeds = " in some seed" if lost >= ROOM else ""
        text = (
            f"The tuned model is within {ROOM} of the base on {capability}{seeds}: there is nothing to bring back by pruning."
        )
        shown, direction = gain, "uninformative"
    elif back.low >= RECOVERED and gain.low > 0:
        text = (
            f"{told}: {back.value:.0%} of the loss above chance comes back, so the ability was covered by few {word}. "
            f"What was trained goes from {found['unpruned_ft_correlated'].value:.2f} to "
            f"{found['pruned_ft_correlated'].value:.2f}."
        )
        shown, direction = back, "masked"
    else:
        text = f"{told}: no clear recovery, which does not show that the ability is gone."
        shown, direction = back, "neutral"
    return (
        Evidence(
            result.name, shown.metric, shown.value, shown.low, shown.high, shown.n, direction, text, capability, shown.bound
        ),
    )
