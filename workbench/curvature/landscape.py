"""How steep is the loss around the models, and on which plane does training move: slices of the loss of both abilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import Field
from transformers import PreTrainedModel

from workbench.analysis import Settings, analysis
from workbench.curvature._way import Kind, Stop, plane_of, stops_of
from workbench.curvature.slices import (
    Plane,
    Vectors,
    along,
    answers,
    filters,
    over,
    random_direction,
    vector_of,
)
from workbench.measures import DRAWS, certain, derived, draw, mean_metric, other_texts, proportion_row, shares
from workbench.models.matrices import alike, check_alike
from workbench.models.weight_paths import Outcomes
from workbench.results import Evidence, Metric, Result
from workbench.seeds import numpy_generator
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair

RISE_AT = 0.5
"""Multiple of a filter-normalised direction at which the rise of the loss is a headline number."""
MARGIN = 0.25
"""Room around the points of the plane, on each side, as a share of their extent."""
LIMITS = (
    "Two directions of many: what the loss does along all others is not seen, and a flat slice does not make a flat model.",
    "Filter normalisation takes out the scale of whole layers, not that of single units, queries against keys or norms' gains, "
    "so that models which compute the same can have different slices.",
    "A model that lacks an ability is at no minimum of that ability's loss: there a rise says little of sharpness.",
)


class LandscapeSettings(Settings):
    """Settings of `landscape`."""

    plane: Literal["auto", "path", "models"] = Field(
        "auto", description="path: principal plane of the checkpoints; models: through base, tuned, revived; auto: path if kept"
    )
    grid: int = Field(15, ge=5, le=61, description="points on each side of the plane's grid")
    directions: int = Field(5, ge=2, description="random directions through each model")
    side: int = Field(4, ge=2, le=20, multiple_of=2, description="points on each side of a model on a random line")
    n: int = Field(200, ge=16, description="test examples per set")
    checkpoints: int = Field(8, ge=3, description="checkpoints of each training, spread evenly over its evaluation grid")
    vectors: Vectors = Field("zero", description="biases and norms of random directions: zero, or whole: each one filter")


@analysis(
    version=1,
    holds=600,
    n=200,
    passes=950,
    paper="Li+18 1712.09913; Antognini+18 1806.08805",
    group="curvature",
    uses=("revived", "never_had_it"),
)
def landscape(pair: Pair, settings: LandscapeSettings) -> Result:
    """Loss (nats) and accuracy of O_PT at C_Te = 0 and of O_FT where it was trained, on lines and on one plane through the models.

    `table`: a grid on a plane. `plane` is `path`, the principal plane of the fine-tuning's and the revival's checkpoints through
    the last one [Li+18 §7], or `models`, through base, tuned and revived; what is missing is replaced by a random direction and a
    limit says so. `x`, `y` are in units of the distance from base to tuned. `path`: the loss and accuracy measured at each
    checkpoint, at its nearest point on the plane (`on_plane_nats`), its `distance` from the plane in the same units, and
    `outside`, the share of its squared distance from the plane's origin that the plane does not show.

    `line`: alpha times a filter-normalised random direction through each model, the same draws for all, with a model of random
    weights as control. `rise_MODEL_ROLE` = mean over directions and both signs of L(alpha = +-.5) - L(0); intervals resample
    directions and examples. `components`: shares of the path's principal components beside those of a random walk
    with steps of the same lengths.

    Says where the models lie, and does not tell masked from erased.

    Raises:
        UserError: the models differ in shape.
    """
    models = dict(pair.states)
    check_alike([*models.values(), pair.start], f"pair {pair.name!r}")
    lined: dict[str, PreTrainedModel] = dict(models)
    if pair.never_had_it is not None and alike((pair.base, pair.never_had_it)):
        lined["never_had_it"] = pair.never_had_it
    lined["untrained"] = pair.untrained
    land = _Land(pair, settings.n)
    line, rises, centres = _lines(land, lined, settings)
    stops, limits = stops_of(pair, settings.checkpoints)
    kind, plane, components, more = plane_of(pair, stops, settings.plane, settings.vectors)
    path = _path(land, plane, stops)
    result = Result(
        name="landscape",
        tables={
            "table": _grid(land, kind, plane, path, settings.grid),
            "line": line,
            "path": path,
            **({} if components is None else {"components": components}),
        },
        headline=(*_headline(land, rises, centres), *_shares(path, components)),
        limits=(*LIMITS, *limits, *more),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


class _Land:
    """The texts of both abilities, and what a vector of parameters makes of them."""

    def __init__(self, pair: Pair, n: int) -> None:
        plain = shares(pair, pair.tuned_on)[0]  # O_FT on the texts that taught it
        trained = pair.correlation.share if pair.correlation is not None and plain == 0.0 else plain
        self.texts = {"pt": (pair.capability, shares(pair, pair.capability)[0]), "ft": (pair.tuned_on, trained)}
        self.at = answers(pair.base, {role: draw(pair, *texts, n) for role, texts in self.texts.items()})
        self.resampled = {"pt": pair.seed, "ft": other_texts(pair.seed, "trained") if pair.correlation else pair.seed}
        self.seed = pair.seed

    def rows(self, places: Sequence[Mapping[str, Any]], seen: Sequence[Mapping[str, Outcomes]]) -> pd.DataFrame:
        """Rows of loss, with a bootstrap interval, and accuracy, with Wilson's, of both abilities at each place."""
        rows: list[dict[str, Any]] = []
        for role, (capability, share) in self.texts.items():
            loss = np.stack([outcome[role].loss for outcome in seen], axis=1)
            ends = np.percentile(bootstrap_mean(loss, DRAWS, self.resampled[role]), [2.5, 97.5], axis=0)
            for place, outcome, value, low, high in zip(places, seen, loss.mean(0).tolist(), *ends.tolist(), strict=True):
                at = {**place, "role": role, "capability": capability, "share": share}
                rows.append({**at, "measure": "loss", "value": value, "low": low, "high": high, "n": len(loss), "unit": "nats"})
                rows.append({**at, "measure": "accuracy", **proportion_row(outcome[role].right)})
        return pd.DataFrame(rows)


Rises = dict[tuple[str, str], Float[np.ndarray, "directions n"]]
"""By model and role: the rise of each example's loss at `RISE_AT`, the mean of both signs."""
Centres = dict[tuple[str, str], Float[np.ndarray, " n"]]
"""By model and role: the loss of each example."""


def _lines(
    land: _Land, models: Mapping[str, PreTrainedModel], settings: LandscapeSettings
) -> tuple[pd.DataFrame, Rises, Centres]:
    side = settings.side
    steps = [k for k in range(-side, side + 1) if k]
    alphas, half = [k / side for k in steps], round(RISE_AT * side)
    places: list[dict[str, Any]] = []
    seen: list[Mapping[str, Outcomes]] = []
    rises: Rises = {}
    centres: Centres = {}
    of = None
    for name, model in models.items():
        of = of or filters(model)
        centre = vector_of(model)
        middle = land.at(centre)  # all lines through a model share it
        per_direction: list[dict[str, Outcomes]] = []
        for direction in range(1, settings.directions + 1):
            way = random_direction(centre, of, land.seed, direction, vectors=settings.vectors)
            found = dict(zip(steps, along(land.at, centre, way, alphas), strict=True)) | {0: middle}
            for k in sorted(found):
                places.append({"model": name, "direction": direction, "alpha": k / side})
                seen.append(found[k])
            per_direction.append({f"{role}{sign}": found[sign * half][role] for role in land.texts for sign in (-1, 1)})
        for role in land.texts:
            centres[name, role] = middle[role].loss
            ends = [(found[f"{role}-1"].loss + found[f"{role}1"].loss) / 2 for found in per_direction]
            rises[name, role] = np.stack(ends) - middle[role].loss
    return land.rows(places, seen), rises, centres


def _path(land: _Land, plane: Plane, stops: Sequence[Stop]) -> pd.DataFrame:
    """What was measured at each model, and at its nearest point on the plane."""
    rows: list[dict[str, Any]] = []
    for stop in stops:
        place = plane.place(stop.vector)
        true, flat = land.at(stop.vector), land.at(plane.point(place.x, place.y))
        for role, (capability, share) in land.texts.items():
            rows.append(
                {
                    "training": stop.training,
                    "step": stop.step,
                    "model": stop.model,
                    "role": role,
                    "capability": capability,
                    "share": share,
                    "x": place.x,
                    "y": place.y,
                    "distance": place.distance,
                    "outside": place.outside,
                    "loss_nats": float(true[role].loss.mean()),
                    "on_plane_nats": float(flat[role].loss.mean()),
                    "accuracy": float(true[role].right.mean()),
                    "n": len(true[role].loss),
                }
            )
    return pd.DataFrame(rows)


def _grid(land: _Land, kind: Kind, plane: Plane, path: pd.DataFrame, count: int) -> pd.DataFrame:
    """A square that holds all points of the path, and room around them."""
    points = path[["x", "y"]].to_numpy(dtype=np.float64)
    low, high = points.min(0), points.max(0)
    half = (0.5 + MARGIN) * float((high - low).max()) or 1.0
    xs, ys = (np.linspace(middle - half, middle + half, count).tolist() for middle in ((low + high) / 2).tolist())
    seen = over(land.at, plane, xs, ys)
    places = [{"plane": kind, "x": x, "y": y} for y in ys for x in xs]
    return land.rows(places, [outcome for row in seen for outcome in row])


def _headline(land: _Land, rises: Rises, centres: Centres) -> list[Metric]:
    """Losses at the models, rises around them, and the change of the rise from base to tuned, on the same draws."""
    found: list[Metric] = []
    drawn: dict[tuple[str, str], np.ndarray] = {}
    for (model, role), values in rises.items():
        seed, n = land.resampled[role], values.shape[1]
        if model in ("base", "tuned", "revived"):
            found.append(mean_metric(f"loss_{model}_{role}", centres[model, role], seed, "nats"))
        drawn[model, role] = _rise_draws(values, seed, land.seed)
        found.append(derived(f"rise_{model}_{role}", float(values.mean()), drawn[model, role], n, "nats"))
    for role in land.texts:
        before, after = rises["base", role], rises["tuned", role]
        change = drawn["tuned", role] - drawn["base", role]
        found.append(derived(f"rise_change_{role}", float(after.mean() - before.mean()), change, before.shape[1], "nats"))
    return found


def _rise_draws(values: Float[np.ndarray, "directions n"], texts: int, seed: int) -> Float[np.ndarray, " draws"]:
    """Means of resampled directions and examples: both are samples. Equal seeds pick the same ones for all models."""
    per = np.stack([bootstrap_mean(row, DRAWS, texts) for row in values], axis=1)
    picked = numpy_generator(seed, "directions").integers(0, len(values), size=per.shape)
    return np.take_along_axis(per, picked, axis=1).mean(1)


def _shares(path: pd.DataFrame, components: pd.DataFrame | None) -> list[Metric]:
    """How much of the path its plane shows, and what it would show of a random walk."""
    count, named = len(path) // 2, path["model"].to_numpy() != ""
    found = [
        certain(
            "outside", float(path["outside"].to_numpy()[named].max()), count, "largest share of a model's squared distance"
        ),
        certain("off_plane", float(path["distance"].to_numpy().max()), count, "multiple of the distance base to tuned"),
    ]
    if components is None:
        return found
    for name, source in (("explained", "path"), ("explained_walk", "random walk")):
        rows = ((components["source"] == source) & (components["component"] <= 2)).to_numpy()
        value = float(components["value"].to_numpy()[rows].sum())
        found.append(certain(name, value, int(components["n"].to_numpy().max()), "share of squared distance"))
    return found


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line that takes no side: how steep the loss is around the models."""
    found = {m.metric: m for m in result.headline}
    change = found["rise_change_pt"]
    pt = str(result.provenance.get("capability", "O_PT"))
    names = (
        ("base", "base"),
        ("tuned", "tuned"),
        ("revived", "revived"),
        ("never_had_it", "never had it"),
        ("untrained", "random"),
    )
    said = ", ".join(
        f"{words} {m.value:.2f} [{m.low:.2f}, {m.high:.2f}]"
        for name, words in names
        if (m := found.get(f"rise_{name}_pt")) is not None
    )
    text = (
        f"At {RISE_AT:g} of a filter-normalised random direction the loss of {pt} rises by (nats) {said}; "
        f"tuned less base {change.value:.2f} [{change.low:.2f}, {change.high:.2f}]"
    )
    if "explained" in found:
        text += (
            f". Two components hold {found['explained'].value:.0%} of the path of training "
            f"(a random walk of such steps: {found['explained_walk'].value:.0%})"
        )
    numbers = (change.metric, change.value, change.low, change.high, change.n)
    return (Evidence(result.name, *numbers, "neutral", f"{text}.", pt, change.bound),)
