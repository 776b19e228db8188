"""One direction: is the loss a constant vector that fine-tuning adds to the residual stream where the answer is predicted?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import Field

from workbench.analyses._directions import (
    KINDS,
    Changes,
    Foreign,
    closeness,
    compare,
    foreign_changes,
    length,
    random_draws,
    random_units,
    rows_of,
    streams,
    unit,
)
from workbench.analyses._trials import INTERVENTIONS, OWN, RANDOM, Bench, Chosen, Trial, Vectors, choose
from workbench.analyses.pruning import recovered
from workbench.analysis import Settings, analysis
from workbench.errors import UserError
from workbench.examples import Examples
from workbench.measures import (
    DRAWS,
    UNRELATED,
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
    unrelated,
)
from workbench.models.steering import points
from workbench.results import Evidence, Metric, Result
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair
from workbench.verdict import RECOVERED, ROOM

SCALES = (0.5, 1.0, 2.0)
"""Multiples of the vector that are always tried."""


class DirectionSettings(Settings):
    """Settings of `direction`."""

    scale: float = Field(1.0, gt=0, description="multiple of the vector that is subtracted or added in the headline")
    score_examples: int = Field(
        256, ge=32, description="texts on which directions are estimated, drawn independently of all others"
    )
    random_draws: int = Field(10, ge=10, description="random directions that serve as the control")
    n: int | None = Field(None, ge=16, description="test examples per set; the pair's own number when empty")
    control_examples: int = Field(
        200, ge=16, description="examples (at most) for choosing the point, for random ablations and for other abilities"
    )


@analysis(
    version=2,
    holds=700,
    group="directions",
    paper="Arditi+24 2406.11717; Soligo+25 2506.11618",
    uses=("revived", "siblings"),
    passes=45,
)
def direction(pair: Pair, settings: DirectionSettings) -> Result:
    """What one constant vector explains of the loss: r_l = mean(tuned) - mean(base) of the residual stream [2406.11717].

    r_l is estimated at the position that predicts the answer, at every residual point l (0: the embedding, l: after block l), on
    O_PT prompts at C_Te = 0 of split `score`. Interventions, measured on split `test`:
    `subtract`: x <- x - scale r_l in the tuned model at point l, where the answer is predicted; `add`: x <- x + scale r_l there in
    the base. `ablate`: in the tuned model x <- x - u uᵀ x, u = r_l / |r_l|, at every position of the embedding and of the
    streams after each attention and MLP, which is the published projection; it sets what was read along u to zero, a value that
    neither model need have. `recentre` keeps a mean: x <- x - u uᵀ (x - m_j) at every point j where the answer is predicted, with m_j
    the mean of the base there. Of each the point is chosen on split `select` (largest accuracy, for `add` the smallest).

    Controls: random directions of equal norm (one draw has one direction at all points, so an ablation is the same at all);
    the tuned model's change on prompts of other families; and the same subtraction of its own difference to the base for
    a model that never had the ability. Foreign directions get the norm of r_l. Siblings: fine-tunes of the same base, and other
    seeds, whose directions are brought into our base's coordinates by orthogonal Procrustes on the two bases' centred
    streams (split `select`); `map fit` says on the texts of `score` how well that works.

    `explained` = (intervened - before) / (other model - before) on O_PT. `recovered` counts from the larger of the tuned accuracy
    and the best guess without the ability. `undone_by_revival` = -<r_revival, r> / |r|², r_revival = mean(revived) - mean(tuned).
    It shares mean(tuned) with r, so that its floor is not 0: unrelated means give 1/2, and a cosine of -1/2. `undone_by_never` and
    `undone_by_untrained` put a model without the ability in place of the revived one, as do `cosine_revival_*`, and
    `cosine_same_base_*` in place of the other fine-tune. `cosine_random`, the floor of all others: 95 % of random ones are smaller.

    Does not show that the ability is gone when nothing comes back: what changed may depend on the text.
    """
    _check_shapes(pair)
    n = settings.n or pair.n
    few = min(n, settings.control_examples)
    pt = (pair.capability, shares(pair, pair.capability)[0])
    learn = draw(pair, *pt, settings.score_examples, "score")
    base = streams(pair.base, learn)
    tuned = streams(pair.tuned, learn)
    foreign = foreign_changes(pair, learn, base)
    vectors = _vectors(pair, settings, tuned - base, foreign)
    models = {"base": pair.base, "tuned": pair.tuned}
    if pair.never_had_it is not None:
        models["never_had_it"] = pair.never_had_it
        vectors["never_had_it"] = [(streams(pair.never_had_it, learn) - base).mean(1)]
    bench = Bench(models, vectors, base.mean(1))

    every = range(len(base))
    plain = [Trial(model, kind, OWN, 0, p, settings.scale) for kind, model in INTERVENTIONS.items() for p in every]
    if "never_had_it" in models:
        plain += [Trial("never_had_it", "subtract", "never_had_it", 0, p, settings.scale) for p in every]
    chosen = choose(bench.right(plain, draw(pair, *pt, few, "select")))

    test = draw(pair, *pt, n)
    scaled = [t._replace(scale=s) for t in plain for s in SCALES if t.intervention in ("subtract", "add") and t.source == OWN]
    controls = _controls(plain, vectors)
    costly = [t for t in controls if t.intervention == "ablate"]  # each runs whole sequences
    cheap = [t for t in controls if t.intervention != "ablate"]
    right = bench.right(dict.fromkeys([*plain, *scaled, *cheap]), test)
    right |= bench.right(costly, test[:few])
    whole = {name: correct_answers(model, test) for name, model in models.items()}
    rows = [{**t._asdict(), "capability": pt[0], "role": "pt", "share": pt[1], **proportion_row(v)} for t, v in right.items()]
    damage = _damage(pair, bench, chosen, few)
    compared = compare(pair, learn, base, tuned, foreign)
    subtracted = chosen["tuned", "subtract"]
    tables = {
        "table": rows,
        "chosen": [{**t._asdict(), **proportion_row(right[t])} for t in chosen.values()],
        "transfer": _transfer(right, subtracted),
        "damage": [row for of_set, _ in damage.values() for row in of_set],
        "directions": rows_of(compared, len(learn)),
    }
    result = Result(
        name="direction",
        tables={name: pd.DataFrame(found) for name, found in tables.items() if found},
        headline=(
            *_explained(pair, right, chosen, whole, test),
            *_side_effects(pair, {key: values for key, (_, values) in damage.items()}),
            *closeness(compared, subtracted.point, len(learn)),
        ),
        limits=(
            "A change that depends on the text is no constant vector: what no direction brings back may be covered all the same.",
            "Projections set what was read along the direction to zero, or to one value, for all texts; they remove more than an offset.",
            "Directions of another seed are compared through a map that is fitted to one position of O_PT texts alone.",
            f"The residual point was chosen on separate examples (for `subtract` point {subtracted.point}); the table has all of them.",
            *unrelated(pair),
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _check_shapes(pair: Pair) -> None:
    sizes = {name: (points(m), int(m.config.hidden_size)) for name, m in (("base", pair.base), ("tuned", pair.tuned))}
    if sizes["base"] != sizes["tuned"]:
        raise UserError(
            f"direction: the models of pair {pair.name!r} have residual streams of different (points, width): "
            f"{sizes['base']} and {sizes['tuned']}; compare two models of one size."
        )


def _vectors(
    pair: Pair, settings: DirectionSettings, change: Changes, foreign: Mapping[str, Sequence[Foreign]]
) -> dict[str, list[np.ndarray]]:
    """Our own direction as it is, all others with its norm."""
    own = change.mean(1)
    norm = length(own)
    found = {OWN: [own]}
    for name, several in foreign.items():
        found[name] = [unit(each.change.mean(1)) * norm for each in several]
    found[RANDOM] = [norm * u for u in random_units(pair.seed, settings.random_draws, own.shape[-1])]
    return found


def _controls(plain: Sequence[Trial], vectors: Vectors) -> list[Trial]:
    """The same with other directions: random ones everywhere, those of other fine-tunes subtracted, of other prompts added too."""
    found: list[Trial] = []
    for trial in plain:
        for source, several in vectors.items():
            wanted = (
                source == RANDOM
                or trial.intervention == "subtract"
                or (trial.intervention == "add" and source.startswith("other"))
            )
            if trial.source == OWN and source not in (OWN, "never_had_it") and wanted:
                defined = [i for i, vector in enumerate(several) if np.isfinite(vector[trial.point]).all()]
                found += [trial._replace(source=source, draw=i + 1) for i in defined]
    return found


def _transfer(right: Mapping[Trial, np.ndarray], subtracted: Trial) -> list[dict[str, Any]]:
    """What the subtraction of each source's direction does to the tuned model at the chosen point."""
    mine = [t for t in right if t._replace(source=OWN, draw=0, scale=subtracted.scale) == subtracted]
    return [{"source": t.source, "draw": t.draw, "scale": t.scale, **proportion_row(right[t])} for t in mine]


def _damage(
    pair: Pair, bench: Bench, chosen: Chosen, n: int
) -> dict[tuple[str, str, float], tuple[list[dict[str, Any]], Float[np.ndarray, "2 n"]]]:
    """O_FT and other families before and after each intervention, by intervention, capability and C_Te: rows, right answers."""
    sets = [(pair.tuned_on, share) for share in reversed(shares(pair, pair.tuned_on)) if pair.tuned_on != pair.capability]
    sets += [(other, shares(pair, other)[0]) for other in pair.others]
    trials = [t for t in chosen.values() if t.source == OWN]
    found: dict[tuple[str, str, float], tuple[list[dict[str, Any]], np.ndarray]] = {}
    for capability, share in sets:
        examples = draw(pair, capability, share, n)
        before = {name: correct_answers(bench.models[name], examples) for name in ("base", "tuned")}
        for trial, after in bench.right(trials, examples).items():
            at = {"model": trial.model, "intervention": trial.intervention, "capability": capability}
            at |= {"role": role_of(pair, capability), "share": share}
            both = np.stack([before[trial.model], after])
            rows = [{**at, "when": when, **proportion_row(v)} for when, v in zip(("before", "after"), both, strict=True)]
            found[trial.intervention, capability, share] = rows, both
    return found


def _share(name: str, after: np.ndarray, before: np.ndarray, goal: np.ndarray, seed: int) -> Metric:
    """(after - before) / (goal - before) on the same examples; undefined where the two models are closer than `ROOM`."""
    whole = float(goal.mean() - before.mean())
    value = float(after.mean() - before.mean()) / whole if abs(whole) >= ROOM else math.nan
    now, then, there = (bootstrap_mean(v, DRAWS, seed) for v in (after, before, goal))
    with np.errstate(divide="ignore", invalid="ignore"):
        return derived(name, value, (now - then) / (there - then), len(after), "share of the difference")


WORDS = {"subtract": "subtracted", "recentre": "recentred", "ablate": "ablated", "add": "added"}


def _explained(
    pair: Pair, right: Mapping[Trial, np.ndarray], chosen: Chosen, whole: Mapping[str, np.ndarray], test: Examples
) -> list[Metric]:
    """Accuracies on O_PT, and shares of the loss, with each intervention at its chosen point."""
    seed, chance = pair.seed, max(floors(pair, test).values(), default=0.0)
    base, tuned = whole["base"], whole["tuned"]
    out = [proportion("base_pt", base, seed), proportion("tuned_pt", tuned, seed)]
    out.append(certain("chance_pt", chance, len(test), "accuracy"))
    for (model, kind), trial in chosen.items():
        if trial.source != OWN:
            continue
        after, before, goal = (right[trial], tuned, base) if model == "tuned" else (right[trial], base, tuned)
        random = np.stack([v for t, v in right.items() if t.source == RANDOM and t._replace(source=OWN, draw=0) == trial])
        few, drawn, sign = random.shape[1], random_draws(random, seed), 1 if model == "tuned" else -1
        beyond = sign * float(after[:few].mean() - random.mean())
        out += [
            proportion(f"{WORDS[kind]}_pt", after, seed),
            derived(f"random_{WORDS[kind]}_pt", float(random.mean()), drawn, few, "accuracy"),
            derived(
                f"beyond_random_{kind}", beyond, sign * (bootstrap_mean(after[:few], DRAWS, seed) - drawn), few, "accuracy"
            ),
            _share(f"explained_{kind}", after, before, goal, seed),
        ]
    subtracted = chosen["tuned", "subtract"]
    out.append(recovered("recovered", right[subtracted], tuned, base, chance, seed))
    mine = {t: v for t, v in right.items() if t._replace(source=OWN, draw=0) == subtracted}
    for metric, begins in KINDS.items():
        several = [v for t, v in mine.items() if t.source.startswith(begins)]
        if several:
            out.append(_share(f"explained_{metric}", np.mean(several, axis=0), tuned, base, seed))
    if ("never_had_it", "subtract") in chosen:
        after, before = right[chosen["never_had_it", "subtract"]], whole["never_had_it"]
        out += [proportion("never_pt", before, seed), proportion("never_subtracted_pt", after, seed)]
        out.append(recovered("recovered_never", after, before, base, chance, seed))
    return out


def _side_effects(pair: Pair, measured: Mapping[tuple[str, str, float], np.ndarray]) -> list[Metric]:
    """What `subtract` does to O_FT where it was trained and to other families, and whether `add` brings O_FT."""
    out: list[Metric] = []
    ft = (pair.tuned_on, shares(pair, pair.tuned_on)[-1])
    if pair.tuned_on != pair.capability:
        seed = other_texts(pair.seed, "correlated") if pair.correlation else pair.seed
        (tuned, subtracted), (base, added) = (measured[kind, *ft] for kind in ("subtract", "add"))
        named = {"tuned": tuned, "subtracted": subtracted, "base": base, "added": added}
        out += [proportion(f"{name}_ft_correlated", values, seed) for name, values in named.items()]
        out.append(_share("gained_ft", added, base, tuned, seed))
    others = {c: measured["subtract", c, shares(pair, c)[0]] for c in pair.others}
    if others:
        changes = {c: after - before for c, (before, after) in others.items()}
        drawn = [bootstrap_mean(change, DRAWS, other_texts(pair.seed, c)) for c, change in changes.items()]
        value = float(np.mean([change.mean() for change in changes.values()]))
        out.append(derived("damage_others", value, np.mean(drawn, axis=0), sum(map(len, changes.values())), "accuracy"))
    return out


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line: whether one constant vector brings the ability back, more than random ones and than it gives to a model without it."""
    found = {m.metric: m for m in result.headline}
    base, tuned, after, random, beyond, back = (
        found[k]
        for k in ("base_pt", "tuned_pt", "subtracted_pt", "random_subtracted_pt", "beyond_random_subtract", "recovered")
    )
    capability = result.provenance.get("capability", "O_PT")
    told = (
        f"Subtracting one constant vector where {capability} is answered takes it from {tuned.value:.2f} to {after.value:.2f} "
        f"(random ones of equal norm: {random.value:.2f}, base: {base.value:.2f})"
    )
    never, others = found.get("recovered_never"), found.get("explained_other_family")
    shown, kind = back, "neutral"
    if base.value - tuned.value < ROOM or not math.isfinite(back.value):
        shown, kind = beyond, "uninformative"
        seeds = " in some seed" if base.value - tuned.value >= ROOM else ""
        text = (
            f"The tuned model is within {ROOM} of the base on {capability}{seeds}, or the base does little better than a guess{seeds}: "
            "there is no loss for a vector to explain."
        )
    elif back.low < RECOVERED or beyond.low <= 0:
        share = f"{back.value:.0%} [{back.low:.0%}, {back.high:.0%}] of the loss above chance"
        text = f"{told}: {share}, no clear recovery, which does not show that the ability is gone."
    elif never is None or not math.isfinite(never.high):
        kind = "uninformative"
        text = (
            f"{told}, but no model that never had the ability shows whether a vector can hand it over: the control is missing."
        )
    elif never.high >= RECOVERED:
        kind = "uninformative"
        text = f"{told}, but a model that never had the ability gets {never.value:.0%} of it in this way too: the control leaves no room."
    else:
        kind = "masked"
        text = f"{told}: {back.value:.0%} of the loss above chance comes back, so an offset that is the same for all texts covered it."
        if others is not None and math.isfinite(others.value):
            text += (
                f" The vector of other families' prompts explains {others.value:.0%} of the difference, that of its own prompts "
                f"{found['explained_subtract'].value:.0%}."
            )
    text += f" {UNRELATED}" if UNRELATED in result.limits else ""
    return (
        Evidence(result.name, shown.metric, shown.value, shown.low, shown.high, shown.n, kind, text, capability, shown.bound),
    )
