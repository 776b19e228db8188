"""Where in a prompt and in the model labels can be read: accuracy of linear probes per residual point and position.

Besides both abilities: what the spurious relation of the fine-tuning says of a text, where occurrences stand, and which
family the prompt belongs to. Beside the models stands what the token at a position gives away by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from pydantic import Field

from workbench.analyses._reading import kept_line, models_of, rooms
from workbench.analyses._readings import FINISHED, MEASURES, Fit, Reading, read_labels
from workbench.analysis import Settings, analysis
from workbench.errors import UserError, did_you_mean
from workbench.examples import Examples
from workbench.measures import DRAWS, derived, draw, role_of, shares, truth_of
from workbench.probes import changed, scored
from workbench.results import Evidence, Metric, Result
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair, Question

SPECIAL = ("correlated", "family")
"""Targets that are read on texts of their own."""
TARGETS = ("pt", "ft", "indices", *SPECIAL)


class ProbingMapSettings(Settings):
    """Settings of `probing_map`."""

    targets: tuple[str, ...] = Field(
        TARGETS,
        min_length=1,
        description="what is read: pt, ft, indices (of the operands of both), correlated, family, or the name of a label",
    )
    prompt: str = Field("pt", pattern="^(pt|ft)$", description="what the prompt asks for meanwhile: pt or ft")
    train_examples: int = Field(800, ge=50, description="examples that the probes are fitted on")
    n: int | None = Field(None, ge=32, description="test examples; the pair's own number when empty")
    text_positions: int = Field(10, ge=1, description="positions of the text, evenly spaced, at most")
    penalty: float = Field(1e-3, gt=0, description="L2 penalty: loss = mean cross-entropy + penalty / 2 * |weights|^2")
    iterations: int = Field(30, ge=1, description="largest number of L-BFGS iterations")


def _check(settings: ProbingMapSettings, question: Question, blocks: int) -> None:
    """Refuse labels that the texts of such a pair do not carry."""
    _labels(question, settings)


@analysis(version=1, holds=900, passes=100, paper="Jain+23 §D", check=_check)
def probing_map(pair: Pair, settings: ProbingMapSettings) -> Result:
    """Accuracy of linear probes per residual point and position of the prompt, for base, tuned and untrained model.

    Estimand: as in `probing` (standardised activations, multinomial logistic regression with an L2 penalty, fresh texts), at
    every position up to the one that predicts the answer. O_PT, O_FT and indices are read on texts at C_Te = 0, where
    the other label does not give the target away; `correlated`, whether r(O_FT) = r(O_PT) + offset, on texts of which half are;
    `family` on prompts of all families about the same plain texts. The model that never had it is a control for O_PT alone.

    `measure`: accuracy, and the mean over classes of the share that is right (balanced accuracy). The second one counts where
    classes are uneven: the most frequent one more than twice as frequent as 1 / classes among the training labels.
    Classes that occur in the test texts count; one that the training texts lack is never read.

    Table `token`: the best guess from the token at the position alone. Where it is far above chance, a probe at that position
    shows no more than that the token is known. Places at which nothing varies in any model are left out.

    The headline is measured on one half of the test texts and chosen on the other: for O_PT the point and place where the
    base exceeds its best control most (the tuned model has no say), and for every target the place of the largest change from
    base to tuned model. `share_kept` and the rooms are those of `probing`.

    Does not show that the model uses what a probe reads.
    """
    n = settings.n or pair.n
    fit = Fit(settings.text_positions, settings.penalty, settings.iterations)
    asked = _asked(pair, settings)
    uncorrelated = shares(pair, asked)[0]
    wanted = _labels(pair, settings)
    models = models_of(pair)
    few = {name: model for name, model in models.items() if name != "never_had_it"}

    def sets(share: float) -> tuple[Examples, Examples]:
        return draw(pair, asked, share, settings.train_examples, "probe"), draw(pair, asked, share, n)

    readings: list[Reading] = []
    train, test = sets(uncorrelated)
    for names, own in ((models, True), (few, False)):
        plain = [x for x in wanted if x not in SPECIAL and (x == pair.capability) == own]
        labels = {x: (truth_of(train, x), truth_of(test, x)) for x in plain}
        readings += read_labels(pair, names, [train], [test], labels, fit) if labels else []
    if "correlated" in wanted:
        train, test = sets(0.5)
        readings += read_labels(pair, few, [train], [test], {"correlated": (_holds(pair, train), _holds(pair, test))}, fit)
    if "family" in wanted:
        trains, tests = _of_families(pair, settings.train_examples, "probe"), _of_families(pair, n, "test")
        numbers = [np.repeat(np.arange(len(parts)), [len(part) for part in parts]) for parts in (trains, tests)]
        readings += read_labels(pair, few, trains, tests, {"family": (numbers[0], numbers[1])}, fit)
    readings.sort(key=lambda reading: wanted.index(reading.target))
    return _result(pair, readings)


def _asked(pair: Question, settings: ProbingMapSettings) -> str:
    """The capability that the prompts ask for."""
    return pair.capability if settings.prompt == "pt" else pair.tuned_on


def _labels(pair: Question, settings: ProbingMapSettings) -> list[str]:
    """Names of the labels that the settings ask for; of the general words, what the pair does not have is left out.

    Raises:
        UserError: a name that is neither a label of the pair's texts nor a general word, or nothing is left.
    """
    targets, asked = settings.targets, _asked(pair, settings)
    examples = draw(pair, asked, shares(pair, asked)[0], 1)
    operands = (name.partition("_")[2] for name in (pair.capability, pair.tuned_on))
    general = {
        "pt": [pair.capability],
        "ft": [pair.tuned_on],
        "indices": [f"index_{operand}" for operand in operands],
        "correlated": ["correlated"] if pair.correlation is not None else [],
        "family": ["family"] if pair.others else [],
    }
    known = {asked, *examples.labels, *SPECIAL}
    found: list[str] = []
    for target in targets:
        if target not in general and target not in known:
            known_names = {*TARGETS, *examples.labels}
            raise UserError(f"probing_map: there is no label {target!r} to read{did_you_mean(target, known_names)}")
        found += [name for name in general.get(target, [target]) if name in known]
    if not found:
        raise UserError(f"probing_map: targets {list(targets)} leave nothing to read from pair {pair.name!r}; add 'pt'.")
    return list(dict.fromkeys(found))


def _holds(pair: Pair, examples: Examples) -> Int[np.ndarray, " n"]:
    """1 where the relation of the pair's correlation holds."""
    if "correlated" in examples.labels:
        return examples.labels["correlated"].cpu().numpy().astype(np.int64)
    relation = pair.correlation
    assert relation is not None
    target, partner = (examples.labels[name].cpu().numpy() for name in (relation.target, relation.partner))
    return (target == partner + relation.offset).astype(np.int64)


def _of_families(pair: Pair, n: int, split: str) -> list[Examples]:
    """Prompts of one capability of each family, together `n`: every plain text is shown under one of them."""
    members = [pair.capability, *pair.others]
    drawn = [pair.task.capability(name).examples(n, pair.seed, split) for name in members]
    return [examples[slice(i, None, len(members))] for i, examples in enumerate(drawn)]


def _result(pair: Pair, readings: Sequence[Reading]) -> Result:
    rows: list[dict[str, Any]] = []
    changes: list[dict[str, Any]] = []
    tokens: list[dict[str, Any]] = []
    for reading in readings:
        for measure in MEASURES:
            balanced = measure == MEASURES[1]
            what = {"target": reading.target, "role": role_of(pair, reading.target), "measure": measure}
            numbers = {"n": len(reading.truth), "unit": measure}
            for model, right in reading.right.items():
                rows += _rows({"model": model, **what}, reading, scored(right, reading.truth, balanced), numbers)
            change = changed(reading.right["base"], reading.right["tuned"], reading.truth, balanced)
            changes += _rows(what, reading, change, {**numbers, "unit": "change"})
            guessed = scored(reading.token[None], reading.truth, balanced)
            tokens += [{k: v for k, v in row.items() if k != "point"} for row in _rows(what, reading, guessed, numbers)]
    metrics, where = _headline(pair, readings)
    gradients = np.concatenate([reading.gradient for reading in readings])
    unfinished = int((gradients > FINISHED).sum())
    limits = ["A probe shows what can be read linearly, not what the model uses.", *where]
    if unfinished:
        limits.append(f"{unfinished} of {len(gradients)} probes stopped before their gradient fell below {FINISHED}.")
    result = Result(
        name="probing_map",
        tables={
            "table": pd.DataFrame(rows),
            "change": pd.DataFrame(changes),
            "token": pd.DataFrame(tokens),
            "targets": pd.DataFrame([_described(reading) for reading in readings]),
        },
        headline=metrics,
        limits=tuple(limits),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _rows(
    what: Mapping[str, Any], reading: Reading, found: tuple[np.ndarray, np.ndarray, np.ndarray], numbers: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One row per point and place of numbers `[points, k]`."""
    value, low, high = found
    return [
        {
            **what,
            "point": point,
            "place": place.name,
            "order": k,
            "part": place.role,
            "value": float(value[point, k]),
            "low": float(low[point, k]),
            "high": float(high[point, k]),
            **numbers,
        }
        for point in range(value.shape[0])
        for k, place in enumerate(reading.places)
    ]


def _described(reading: Reading) -> dict[str, Any]:
    counts = np.unique(reading.truth, return_counts=True)[1]
    majority = float(counts.max() / counts.sum())
    chance = 1 / len(counts) if reading.balanced else majority
    described = {"classes": len(counts), "majority": majority, "measure": reading.measure, "chance": chance}
    return {"target": reading.target, **described}


def _headline(pair: Pair, readings: Sequence[Reading]) -> tuple[tuple[Metric, ...], list[str]]:
    """Numbers on every second test text, at cells that the others chose, and sentences that say which cells."""
    metrics: list[Metric] = []
    said: list[str] = []
    for reading in readings:
        chosen, kept = (slice(start, None, 2) for start in (0, 1))
        truth = reading.truth[kept]
        weights = np.ones(len(truth)) if not reading.balanced else _weights(truth)

        def score(right: np.ndarray, reading: Reading = reading, part: slice = chosen) -> np.ndarray:
            return scored(right[..., part], reading.truth[part], reading.balanced)[0]

        right, suffix = reading.right, role_of(pair, reading.target)
        name = suffix if suffix != "other" else reading.target
        if reading.target == pair.capability:
            controls = np.max([score(right[model]) for model in right if model not in ("base", "tuned")], axis=0)
            point, k = _best(score(right["base"]) - controls)
            words = {"never_had_it": "never"}
            read = {words.get(model, model): cell[point, k, kept] * weights for model, cell in right.items()}
            zero = np.zeros(len(truth))
            metrics += [
                _difference(f"{model}_probe", zero, values, pair.seed, reading.measure) for model, values in read.items()
            ]
            metrics += rooms(read, pair.seed, reading.measure)
            said.append(f"{reading.target} is read at {_cell(reading, point, k)}, chosen by the base and its controls.")
        point, k = _best(np.abs(score(right["tuned"]) - score(right["base"])))
        before, after = (right[model][point, k, kept] * weights for model in ("base", "tuned"))
        metrics.append(_difference(f"largest_change_{name}", before, after, pair.seed, reading.measure))
        said.append(f"The largest change of {reading.target} is at {_cell(reading, point, k)}, chosen on other texts.")
    return tuple(metrics), said


def _weights(truth: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Weights of mean one with which the mean of right answers is the balanced accuracy."""
    _, index, counts = np.unique(truth, return_inverse=True, return_counts=True)
    return len(truth) / (len(counts) * counts[index])


def _difference(name: str, before: np.ndarray, after: np.ndarray, seed: int, unit: str) -> Metric:
    change = after - before
    return derived(name, float(change.mean()), bootstrap_mean(change, DRAWS, seed), len(change), unit)


def _best(values: Float[np.ndarray, "points k"]) -> tuple[int, int]:
    point, k = np.unravel_index(int(np.argmax(values)), values.shape)
    return int(point), int(k)


def _cell(reading: Reading, point: int, k: int) -> str:
    place = reading.places[k]
    where = f"distance {place.name} from the end of the text" if place.role in ("text", "window") else place.name
    return f"residual point {point}, {where}"


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line: what the tuned model keeps where O_PT is read best against the controls; none where O_PT was not read."""
    found = {m.metric: m for m in result.headline}
    if "base_probe" not in found:
        return ()
    base, tuned, untrained = (found[f"{model}_probe"].value for model in ("base", "tuned", "untrained"))
    never = found.get("never_probe")
    name = result.provenance.get("capability", "O_PT")
    told = (
        f"Where {name} is read best against the controls, a linear probe reads it from the base at {base:.2f}, from the "
        f"tuned model at {tuned:.2f}"
    )
    return kept_line(result, told, f"{untrained:.2f}", f"{never.value:.2f}" if never else None)
