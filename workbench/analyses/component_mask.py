"""Component masking: the fewest heads and neurons of one model that give the other its answers, learned as a sparse mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import Field, field_validator
from transformers import PreTrainedModel

from workbench.analyses.pruning import control_draws
from workbench.analysis import Settings, analysis
from workbench.examples import Examples
from workbench.measures import (
    DRAWS,
    certain,
    derived,
    draw,
    other_texts,
    paired_change,
    proportion,
    proportion_row,
    shares,
    unrelated,
)
from workbench.models.component_masks import Mask, answered, constant_mask, learn_mask, random_mask
from workbench.models.matrices import check_alike
from workbench.models.swaps import answers
from workbench.results import Direction, Evidence, Metric, Result
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair
from workbench.verdict import ROOM

ENOUGH = 0.9
"""The headline's mask has the highest penalty at which, on separate texts, it keeps this share of what all components do."""
Wanted = Literal["restores", "breaks", "installs"]
GOALS: tuple[Wanted, ...] = ("restores", "breaks", "installs")


class ComponentMaskSettings(Settings):
    """Settings of `component_mask`."""

    goals: tuple[Wanted, ...] = Field(
        GOALS, min_length=1, description="which answers are wanted: one mask is learned for each goal and penalty"
    )
    over: Literal["heads+neurons", "heads+mlps"] = Field(
        "heads+neurons", description="what has a share of its own: heads and hidden MLP neurons, or heads and whole MLPs"
    )
    penalties: tuple[float, ...] = Field(
        (1e-3, 3e-3, 0.01, 0.03, 0.1),
        min_length=1,
        max_length=12,
        description="nats for each component, one mask learned for each",
    )
    steps: int = Field(50, ge=1, le=10_000, description="training steps of each mask")
    rate: float = Field(0.1, gt=0, le=1, description="learning rate of Adam")
    batch_size: int = Field(32, ge=1, description="prompts in a training step")
    score_examples: int = Field(512, ge=16, description="prompts to train on, drawn independently of all others")
    random_draws: int = Field(10, ge=10, description="random choices of as many components that serve as the control")
    n: int | None = Field(None, ge=16, description="test examples per set; the pair's own number when empty")
    control_examples: int = Field(100, ge=16, description="examples (at most) for random components and for choosing the mask")

    @field_validator("penalties")
    @classmethod
    def _increasing(cls, given: tuple[float, ...]) -> tuple[float, ...]:
        if given[0] <= 0 or any(a >= b for a, b in pairwise(given)):
            raise ValueError("penalties must be above 0 and increase")
        return given


@dataclass(frozen=True)
class Goal:
    """Which answers are wanted of `receiver` with components of `donor`, and on which texts."""

    name: str
    receiver: PreTrainedModel
    donor: PreTrainedModel
    control: PreTrainedModel
    """A donor that cannot carry the change."""
    capability: str
    role: str
    share: float
    seed: int
    """Of the bootstrap of its texts."""

    def examples(self, pair: Pair, n: int, split: str) -> Examples:
        """Prompts with the wanted answers: the right ones, or the donor's own."""
        drawn = draw(pair, self.capability, self.share, n, split)
        return (
            drawn
            if self.name == "restores"
            else replace(drawn, answer=answers(self.donor, drawn).given.to(drawn.answer.device))
        )


@dataclass(frozen=True)
class Found:
    """Wanted answers of one goal, 1.0 where given."""

    masks: list[Mask]
    """By penalty."""
    none: Float[np.ndarray, " n"]
    whole: Float[np.ndarray, " n"]
    learned: Float[np.ndarray, "penalties n"]
    random: Float[np.ndarray, "penalties draws few"]
    best: int
    """Which penalty the headline takes."""
    enough: bool
    """Whether that mask keeps `ENOUGH`."""
    controls: list[Mask]
    """By penalty, over the control's components."""
    control: Float[np.ndarray, "penalties n"]
    held: int
    """Which penalty the control's mask of the headline has."""


@analysis(version=2, holds=900, group="patching", passes=120, paper="Davies+23 2307.03637; Prakash+24 2402.14811")
def component_mask(pair: Pair, settings: ComponentMaskSettings) -> Result:
    """A sparse mask m over heads and neurons: each writes (1 - m) of its own and m of the other model's [2307.03637: DCM].

    `restores`: the base's components in the tuned model, so that it answers O_PT at C_Te = 0 right. `breaks`: the tuned
    model's in the base, so that it gives the tuned model's own answers there. `installs`: the same on O_FT where it was trained.
    Each mask is learned on separate prompts by the loss of the wanted answers plus a penalty for each component, and rounded;
    all penalties are reported. The embedding, the last norm and the head stay the receiver's.

    `table`: share of wanted answers by mask, and how many components it takes, as rows of their own. Controls: as many random
    heads and neurons (`random`), none, and all of them (`all`). A mask is trained, so that it may make an ability that neither
    model has, and beat all components: `control` are masks trained alike, at every penalty, over the components of a model
    that never had the ability, else of random weights. `components` lists what each mask (but the control's) took.

    Headline: the mask of the highest penalty that keeps `ENOUGH` of what all components of the donor do, on separate texts;
    where none keeps it, the one with most wanted answers there. The control's mask is chosen by the same rule and mark.
    (mask - none) / (all - none) on the test texts, undefined where all do less than `ROOM`.

    Says where the change is carried, not whether the ability survived it; another set of components may do as well.
    """
    control = pair.never_had_it or pair.untrained
    check_alike((pair.base, pair.tuned, control), f"pair {pair.name!r}")
    n = settings.n or pair.n
    few = min(n, settings.control_examples)
    goals = [goal for goal in _goals(pair, control) if goal.name in settings.goals]
    rows: list[dict[str, Any]] = []
    taken: list[pd.DataFrame] = []
    headline: list[Metric] = []
    short: list[str] = []
    for goal in goals:
        found = _learn(pair, goal, settings, n, few)
        rows += _rows(goal, found, settings.penalties)
        for i, (mask, penalty) in enumerate(zip(found.masks, settings.penalties, strict=True)):
            taken.append(_components(goal, mask, penalty, i == found.best, settings.over))
        headline += _numbers(goal, found, few)
        short += [] if found.enough else [goal.name]
    result = Result(
        name="component_mask",
        tables={"table": pd.DataFrame(rows), "components": pd.concat(taken, ignore_index=True)},
        headline=tuple(headline),
        limits=(
            "What a mask restores is computed by the base's components: it tells where the change is carried, not whether it is lost.",
            "The penalty shrinks shares: a component that writes more than is needed may end below a half and count as not taken.",
            "Gradient descent finds one small set; other sets of components may do as well.",
            "A mask is trained with the wanted answers and may make what no component does alone: see the control.",
            *(f"No mask of {name!r} kept {ENOUGH:.0%} of what all components do: the best of them is shown." for name in short),
            *unrelated(pair),
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _goals(pair: Pair, control: PreTrainedModel) -> list[Goal]:
    pt, ft = (pair.capability, "pt", shares(pair, pair.capability)[0]), (pair.tuned_on, "ft", shares(pair, pair.tuned_on)[-1])
    elsewhere = other_texts(pair.seed, "correlated") if pair.correlation else pair.seed
    return [
        Goal("restores", pair.tuned, pair.base, control, *pt, pair.seed),
        Goal("breaks", pair.base, pair.tuned, control, *pt, pair.seed),
        Goal("installs", pair.base, pair.tuned, control, *ft, elsewhere),
    ]


def _learn(pair: Pair, goal: Goal, settings: ComponentMaskSettings, n: int, few: int) -> Found:
    whole_mlps = settings.over == "heads+mlps"
    train = goal.examples(pair, settings.score_examples, "score")

    def learn(donor: PreTrainedModel, penalty: float) -> Mask:
        return learn_mask(
            goal.receiver,
            donor,
            train,
            penalty,
            whole_mlps=whole_mlps,
            steps=settings.steps,
            rate=settings.rate,
            batch_size=settings.batch_size,
            seed=pair.seed,
        ).rounded

    masks, controls = ([learn(donor, penalty) for penalty in settings.penalties] for donor in (goal.donor, goal.control))
    none, whole = (constant_mask(goal.receiver, share, whole_mlps) for share in (0.0, 1.0))
    select, test = goal.examples(pair, few, "select"), goal.examples(pair, n, "test")
    low, high, *kept = (float(row.mean()) for row in _answered(goal, goal.donor, select, [none, whole, *masks]))
    mark = low + ENOUGH * (high - low) - 1e-9
    best = _choose(kept, mark)
    held = _choose([float(row.mean()) for row in _answered(goal, goal.control, select, controls)], mark)
    least, most, *learned = _answered(goal, goal.donor, test, [none, whole, *masks])
    control = np.stack(_answered(goal, goal.control, test, controls))
    random = [
        random_mask(mask, pair.seed, goal.name, i, draw)
        for i, mask in enumerate(masks)
        for draw in range(settings.random_draws)
    ]
    drawn = np.stack(_answered(goal, goal.donor, test[:few], random)).reshape(len(masks), settings.random_draws, few)
    return Found(masks, least, most, np.stack(learned), drawn, best, kept[best] >= mark, controls, control, held)


def _choose(kept: Sequence[float], mark: float) -> int:
    """The last that comes up to the mark; where none does, the best, of equally good ones the last."""
    enough = [i for i, value in enumerate(kept) if value >= mark]
    return enough[-1] if enough else max(range(len(kept)), key=lambda i: (kept[i], i))


def _answered(goal: Goal, donor: PreTrainedModel, examples: Examples, masks: list[Mask]) -> list[np.ndarray]:
    return list(answered(goal.receiver, donor, examples, masks).numpy().astype(np.float64))


def _rows(goal: Goal, found: Found, penalties: tuple[float, ...]) -> list[dict[str, Any]]:
    at = {"goal": goal.name, "capability": goal.capability, "role": goal.role, "share": goal.share}

    def row(mask: str, penalty: float, draw: int, values: np.ndarray) -> dict[str, Any]:
        return {**at, "mask": mask, "penalty": penalty, "draw": draw, "measure": "wanted answers", **proportion_row(values)}

    rows = [row("none", math.nan, 0, found.none), row("all", math.nan, 0, found.whole)]
    for i, penalty in enumerate(penalties):
        rows += [row("random", penalty, j + 1, values) for j, values in enumerate(found.random[i])]
        for name, masks, values in (("learned", found.masks, found.learned), ("control", found.controls, found.control)):
            rows.append(row(name, penalty, 0, values[i]))
            heads, units = masks[i].counts
            for measure, count in (("components", heads + units), ("heads", heads)):
                numbers = {**dict.fromkeys(("value", "low", "high"), float(count)), "n": len(found.none), "unit": "components"}
                rows.append({**at, "mask": name, "penalty": penalty, "draw": 0, "measure": measure, **numbers})
    return rows


def _components(goal: Goal, mask: Mask, penalty: float, best: bool, over: str) -> pd.DataFrame:
    """What a mask took: all heads (and whole MLPs) with whether, of single neurons those it took; all count from 0."""
    kinds = {"head": mask.heads, over.removeprefix("heads+").removesuffix("s"): mask.neurons}
    rows = [
        {"goal": goal.name, "penalty": penalty, "headline": best, "kind": kind}
        | {"block": block, "index": index, "of": of.shape[1], "taken": bool(of[block, index] > 0.5)}
        for kind, of in kinds.items()
        for block, index in np.ndindex(*of.shape)
        if kind != "neuron" or of[block, index] > 0.5
    ]
    return pd.DataFrame(rows)


def _numbers(goal: Goal, found: Found, few: int) -> list[Metric]:
    """What the chosen mask does, as a share of what all components do, against as many random ones."""
    name, n, mask = goal.name, len(found.none), found.masks[found.best]
    learned, random, held = found.learned[found.best], found.random[found.best], found.control[found.held]
    low, high, one = (bootstrap_mean(values, DRAWS, goal.seed) for values in (found.none, found.whole, learned))
    same = learned[:few]  # the random ones are measured on these texts
    control = control_draws(random, goal.seed, texts=goal.seed)
    whole = float(found.whole.mean() - found.none.mean())
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = (one - low) / (high - low)
    told = float(learned.mean() - found.none.mean()) / whole if whole >= ROOM else math.nan
    heads, units = mask.counts
    every = f"of {mask.heads.numel() + mask.neurons.numel():,} components"
    return [
        derived(name, told, drawn, n, "share of what all do"),
        proportion(f"{name}_learned", learned, goal.seed),
        derived(f"{name}_random", float(random.mean()), control, few, "accuracy"),
        derived(
            f"{name}_gain",
            float(same.mean() - random.mean()),
            bootstrap_mean(same, DRAWS, goal.seed) - control,
            few,
            "accuracy",
        ),
        proportion(f"{name}_control", held, goal.seed),
        paired_change(f"{name}_over_control", learned, held, goal.seed),
        certain(f"{name}_control_components", sum(found.controls[found.held].counts), n, every),
        proportion(f"{name}_none", found.none, goal.seed),
        proportion(f"{name}_all", found.whole, goal.seed),
        certain(f"{name}_components", heads + units, n, every),
        certain(f"{name}_heads", heads, n, f"of {mask.heads.numel()} heads"),
    ]


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line that takes no side: how few components restore the ability.

    Uninformative where all together restore none, and where training the mask does what its components do not.
    No line where restoring was not among the goals.
    """
    found = {m.metric: m for m in result.headline}
    if "restores" not in found:
        return ()
    back, learned, random, gain, control, ahead, none, whole, number = (
        found[f"restores{suffix}"]
        for suffix in ("", "_learned", "_random", "_gain", "_control", "_over_control", "_none", "_all", "_components")
    )
    others = found["restores_control_components"].value
    capability = str(result.provenance.get("capability", "O_PT"))
    shown, kind = back, "neutral"
    told = (
        f"{number.value:.0f} {number.unit} of the base take {capability} in the tuned model from {none.value:.2f} to "
        f"{learned.value:.2f} [{learned.low:.2f}, {learned.high:.2f}] (as many random ones: {random.value:.2f}, all: "
        f"{whole.value:.2f}, a mask of {others:.0f} trained on the control model: {control.value:.2f})"
    )
    if not math.isfinite(back.value):
        shown, kind = whole, "uninformative"
        seeds = "in some seed " if whole.value - none.value >= ROOM else ""
        text = (
            f"All components of the base together take {capability} in the tuned model from {none.value:.2f} to "
            f"{whole.value:.2f}: {seeds}there is no loss that they could restore."
        )
    elif ahead.value < ROOM:
        shown, kind = ahead, "uninformative"
        text = (
            f"{told}: a control's components do as much, so that not the base's bring it; taking the tuned model's away frees it, "
            "or training the mask made it."
        )
    elif learned.value - whole.value >= ROOM:
        shown, kind = learned, "uninformative"
        text = f"{told}: the mask does more than all components together, so that it was made in training and places nothing."
    elif gain.low <= 0:
        text = f"{told}: no better than random ones, so that the change is not in these."
    else:
        text = f"{told}: so few carry the change, which says where it is, not whether the ability survived it."
    direction: Direction = "uninformative" if kind == "uninformative" else "neutral"
    numbers = (shown.value, shown.low, shown.high, shown.n)
    return (Evidence(result.name, shown.metric, *numbers, direction, text, capability, shown.bound),)
