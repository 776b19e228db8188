"""How much fine-tuning changed the weights, where, of what rank, and how few ranks carry what it did."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
from pydantic import Field

from workbench.analyses._drive import drive
from workbench.analyses._ends import updates
from workbench.analyses._rank_test import RANDOM_AT, Correct, Ranks, rank_rows, rank_test
from workbench.analyses._weight_tables import tables
from workbench.analyses.pruning import control_draws
from workbench.analysis import Settings, analysis
from workbench.figures.tables import keep, select, values
from workbench.measures import DRAWS, certain, correct_answers, derived, draw, other_texts, proportion, shares, trained_share
from workbench.models.anatomy import blocks
from workbench.models.matrices import MATRICES, parts
from workbench.results import Evidence, Metric, Result
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair
from workbench.verdict import ROOM

RANK = 4
"""The rank of each matrix at which the headline is read; declared, so that none is chosen."""
CARRIES = 0.9
"""Share of the effect from which on the kept ranks carry it."""


class WeightsSettings(Settings):
    """Settings of `weights`."""

    top: int = Field(10, ge=1, description="leading singular vectors of a tuned matrix among which new ones are looked for")
    epsilon: float = Field(0.5, gt=0, lt=1, description="a singular vector is new if its cosine to all old ones is below this")
    random_draws: int = Field(10, ge=10, description="random matrices, and random parts of the change, that are the control")
    n: int | None = Field(None, ge=16, description="test examples per set; the pair's own number when empty")
    control_examples: int = Field(200, ge=16, description="examples (at most) for random parts and for inputs of matrices")


@analysis(
    version=2,
    holds=700,
    passes=60,
    paper="Jain+24 2407.10264; Shuttleworth+24 2410.21228; Wei+24 2402.05162",
    group="weights",
    uses=("revived", "never_had_it"),
)
def weights(pair: Pair, settings: WeightsSettings) -> Result:
    """Size, place and rank of an update D = W_after - W_before of every matrix, and the low-rank test on behaviour.

    Updates: `tuned`, what fine-tuning added to the model that it started from; `revived`, what reverse fine-tuning added to the
    tuned model; `never_had_it`, what the same training added to the control.

    `table`: per part of the model (`block` -1: embeddings; the number of blocks: what follows the last one), `measure` and
    `source` (`update`, or `random`: for a Gaussian change of equal norm the mean, with the central 95 % where there is a
    closed form and the range of the draws elsewhere).
    `norm`, `relative_norm` = ||D|| / ||W_before||, `cosine` of W_before and W_after, `share_of_change` = ||D||^2 / ||d||^2,
    `undo` = cosine of D and the fine-tuning's (-1 would take it back). Of matrices also `stable_rank` = ||D||_F^2 / ||D||_2^2,
    `entropy_rank` = exp of the entropy of the singular values, `rank_90` = ranks that hold 90 % of ||D||_F^2;
    `intruders` = leading left singular vectors of W_after that W_before has not [2410.21228]; `column_share` and `row_share` =
    share of ||D||_F^2 inside the span of the `start_rank` singular vectors that hold 90 % of ||W_before||_F^2, `column_sine` and
    `row_sine` = sine of the angle between D's first singular vector and that span [2407.10264]. `whole`: all weights as one
    vector; `undone` = -<d, D> / ||d||^2. `spectrum`: singular values of D as shares of its norm. `drive`: what reaches D at the
    read position: |cos(v_1, x)|, and ||D x|| / ||W x||.

    `behaviour`: accuracies when the start gets the tuned vectors and the first k ranks of every matrix's D (`keep`), and when the
    tuned model loses these ranks (`remove`). Control: D on k random directions, scaled to the norm of the first k ranks.
    The headline is read at k = 4: `kept` of the gain of O_FT where it was trained, `recovered` of the loss of O_PT at C_Te = 0.

    How thin a change is does not tell masked from erased.
    """
    n = settings.n or pair.n
    few = min(n, settings.control_examples)
    steps, places = updates(pair), parts(pair.start)
    table, whole, spectrum = tables(steps, places, settings.random_draws, settings.top, settings.epsilon, pair.seed)
    texts = {"pt": (pair.capability, shares(pair, pair.capability)[0]), "ft": (pair.tuned_on, trained_share(pair))}
    sets = {role: draw(pair, *which, n) for role, which in texts.items()}
    coordinates = {role: {"capability": name, "share": share} for role, (name, share) in texts.items()}
    ranks = Ranks(pair.start, pair.tuned, places, pair.seed)
    correct, tried = rank_test(ranks, sets, settings.random_draws, few)
    before = {role: correct_answers(pair.start, examples) for role, examples in sets.items()}
    result = Result(
        name="weights",
        tables={
            "table": table,
            "whole": whole,
            "spectrum": spectrum,
            "behaviour": rank_rows(correct, before, coordinates),
            "drive": drive(pair, places, {role: examples[:few] for role, examples in sets.items()}, coordinates),
        },
        headline=(
            *_sizes(table, whole, len(blocks(pair.start))),
            *_behaviour(pair, correct, before, tried, settings.random_draws),
        ),
        limits=(
            "Sizes and ranks of a change say where it sits and how thin it is, not whether an ability is covered or gone.",
            f"The low-rank test is read at rank {RANK} of every matrix, declared beforehand; norms and biases stay tuned in it.",
            "Random parts of the change are scaled up to the norm of its first ranks, which these hold by themselves.",
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _exact(name: str, value: float, unit: str) -> Metric:
    """A number that rests on weights alone, on no example."""
    return certain(name, value, 0, unit) if math.isfinite(value) else derived(name, math.nan, np.full(DRAWS, math.nan), 0, unit)


def _sizes(table: pd.DataFrame, whole: pd.DataFrame, count: int) -> list[Metric]:
    """Numbers of the updates as wholes, and of the fine-tuning's matrices in the blocks: means, and a sum of intruders."""
    tuned = select(table, update="tuned")
    inside = keep(tuned, tuned["kind"].isin(MATRICES) & tuned["block"].between(0, count - 1))

    def overall(update: str, measure: str) -> float:
        return float(values(select(whole, update=update, measure=measure, source="update"), "value")[0])

    def mean(measure: str, source: str = "update") -> float:
        found = values(select(inside, measure=measure, source=source), "value")
        return float(found.mean()) if len(found) else math.nan

    def late(source: str) -> float:
        rows = select(tuned, measure="share_of_change", source=source)
        rows = keep(rows, rows["block"].between(0, count - 1))
        held, inner = values(rows, "value"), float(values(rows, "value").sum())
        return float(held[values(rows, "block") >= count / 2].sum()) / inner if inner > 0 else math.nan

    norm, share, directions = "share of the weights' norm", "share of the squared change", "directions"
    found = [
        _exact("relative_norm", overall("tuned", "relative_norm"), norm),
        _exact("norm", overall("tuned", "norm"), "weight norm"),
    ]
    for update in ("revived", "never_had_it"):
        if update in set(whole["update"]):
            found += [
                _exact(f"relative_norm_{update}", overall(update, "relative_norm"), norm),
                _exact(f"undo_{update}", overall(update, "undo"), "cosine"),
                _exact(f"undone_{update}", overall(update, "undone"), "share of the change"),
            ]
    for measure, unit in (("stable_rank", directions), ("rank_90", directions), ("column_share", share), ("row_share", share)):
        found.append(_exact(measure, mean(measure), unit))
        found.append(_exact(f"random_{measure}", mean(measure, "random"), unit))
    for name, source in (("intruders", "update"), ("random_intruders", "random")):
        total = float(values(select(inside, measure="intruders", source=source), "value").sum())
        found.append(_exact(name, total, directions))
    return [*found, _exact("late_share", late("update"), share), _exact("random_late_share", late("random"), share)]


def _behaviour(pair: Pair, correct: Correct, before: dict[str, np.ndarray], tried: tuple[int, ...], draws: int) -> list[Metric]:
    """Both abilities in both models, and what the first `RANK` ranks carry, kept alone and removed."""
    full = tried[-1]
    at = max(k for k in tried if k <= RANK)
    resampled = {"pt": pair.seed, "ft": other_texts(pair.seed, "trained") if pair.correlation else pair.seed}
    found: list[Metric] = []
    for role, seed in resampled.items():
        found.append(proportion(f"start_{role}", before[role], seed))
        found.append(proportion(f"tuned_{role}", correct["keep", 0, role, full], seed))

    def share(role: str, some: np.ndarray, none: np.ndarray, whole: np.ndarray) -> tuple[float, np.ndarray]:
        """How far `some` goes from `none` to `whole`, and its draws; not defined without room."""
        low, middle, high = bootstrap_mean(np.column_stack([none, some, whole]), DRAWS, resampled[role]).T
        room = float(whole.mean() - none.mean())
        with np.errstate(divide="ignore", invalid="ignore"):
            return (float(some.mean() - none.mean()) / room if room >= ROOM else math.nan), (middle - low) / (high - low)

    def effect(direction: str, role: str, none: np.ndarray, whole: np.ndarray, verb: str, names: tuple[str, str, str]) -> None:
        some = correct[direction, 0, role, at]
        found.append(proportion(f"{verb}_{role}", some, resampled[role]))
        if at in RANDOM_AT and at < full:
            random = np.stack([correct[direction, i + 1, role, at] for i in range(draws)])
            same = some[: random.shape[1]]  # random parts are measured on these texts
            control = control_draws(random, pair.seed, texts=resampled[role])
            more = bootstrap_mean(same, DRAWS, resampled[role]) - control
            found.append(derived(names[0], float(random.mean()), control, len(same), "accuracy"))
            found.append(derived(names[1], float(same.mean() - random.mean()), more, len(same), "accuracy"))
        found.append(derived(names[2], *share(role, some, none, whole), len(some), "share of the difference"))

    keep = [correct["keep", 0, "ft", k] for k in tried]
    effect("keep", "ft", before["ft"], keep[-1], "kept", ("random_kept_ft", "gain_kept", "kept"))
    vectors = share("ft", keep[0], before["ft"], keep[-1])
    found.append(derived("kept_by_vectors", *vectors, len(keep[0]), "share of the difference"))
    found.append(_ranks_needed(tried, [share("ft", some, before["ft"], keep[-1]) for some in keep], len(keep[0])))
    removed = [correct["remove", 0, "pt", k] for k in tried]
    effect("remove", "pt", removed[0], before["pt"], "removed", ("random_removed_pt", "gain_removed", "recovered"))
    most = share("pt", removed[-1], removed[0], before["pt"])
    found.append(derived("recovered_by_all", *most, len(removed[-1]), "share of the difference"))
    return found


def _ranks_needed(tried: tuple[int, ...], kept: list[tuple[float, np.ndarray]], n: int) -> Metric:
    """The smallest rank of the grid from which on the kept share stays at `CARRIES`; the full rank always does."""
    if not all(math.isfinite(value) for value, _ in kept):
        return derived("ranks_needed", math.nan, np.full(DRAWS, math.nan), n, "ranks of each matrix")

    def needed(held: np.ndarray) -> np.ndarray:
        """`[k, draws]` -> `[draws]`: after the last rank that falls short."""
        short = ~(held[:-1] >= CARRIES)
        after = len(short) - np.argmax(short[::-1], axis=0)
        return np.asarray(tried)[np.where(short.any(axis=0), after, 0)].astype(float)

    values = needed(np.array([[value] for value, _ in kept]))
    return derived("ranks_needed", float(values[0]), needed(np.stack([draws for _, draws in kept])), n, "ranks of each matrix")


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line that takes no side: how far the weights moved, and how few ranks carry it. Uninformative where nothing changed."""
    found = {m.metric: m for m in result.headline}
    size, kept, recovered = (found[name] for name in ("relative_norm", "kept", "recovered"))
    pt, ft = (str(result.provenance.get(key, name)) for key, name in (("capability", "O_PT"), ("tuned_on", "O_FT")))
    text = f"Fine-tuning moved the weights by {size.value:.1%} of their norm"
    if not (math.isfinite(kept.value) or math.isfinite(recovered.value)):
        before, after, untaught, taught = (found[name].value for name in ("start_pt", "tuned_pt", "start_ft", "tuned_ft"))
        seeds = " in some seed" if before - after >= ROOM or taught - untaught >= ROOM else ""
        text += (
            f"; {pt} goes from {before:.2f} to {after:.2f} and {ft}, where it was trained, from {untaught:.2f} to {taught:.2f}"
            f"{':' if seeds else ','}{seeds} no loss and no gain of {ROOM} that its ranks could carry."
        )
        return (_line(result, size, "uninformative", text, pt),)
    told: list[str] = []
    if math.isfinite(kept.value):
        told.append(
            f"the first {RANK} ranks of each matrix carry {kept.value:.0%} of what {ft} gained "
            f"({found['kept_ft'].value:.2f}{_random(found, 'random_kept_ft')})"
        )
    if math.isfinite(recovered.value):
        told.append(
            f"without them {pt} goes from {found['tuned_pt'].value:.2f} to {found['removed_pt'].value:.2f}"
            f"{_random(found, 'random_removed_pt')}, it was {found['start_pt'].value:.2f}"
        )
    shown = recovered if math.isfinite(recovered.value) else kept
    return (_line(result, shown, "neutral", f"{text}; {'; '.join(told)}: how thin the change is, not what it covers.", pt),)


def _random(found: dict[str, Metric], name: str) -> str:
    return f", random parts {found[name].value:.2f}" if name in found else ""


def _line(result: Result, metric: Metric, direction: str, text: str, capability: str) -> Evidence:
    kind = "neutral" if direction == "neutral" else "uninformative"
    shown = (metric.metric, metric.value, metric.low, metric.high, metric.n)
    return Evidence(result.name, *shown, kind, text, capability, metric.bound)
