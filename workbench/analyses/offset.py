"""Offset or not: how far fine-tuning moves the residual stream, and how much of that is one constant for all texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from workbench.analyses._places import REQUEST, Place, even, find_places
from workbench.analyses._prompts import nothing_lost
from workbench.analyses._shifts import separation, shift
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
    mean_metric,
    proportion,
    role_of,
    shares,
    unrelated,
)
from workbench.models.anatomy import anatomy, blocks, matrix
from workbench.models.forward import answer_logits
from workbench.models.sensitivity import slopes_at_once
from workbench.models.sites import EMBEDDING, Replacement, record, replaced
from workbench.models.steering import points, streams_at
from workbench.results import Direction, Evidence, Metric, Result
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair

BATCH = 64
LOW = 5
"""Percentile of the cosines that stands for the vectors that moved most."""


class OffsetSettings(Settings):
    """Settings of `offset`."""

    n: int | None = Field(None, ge=16, description="texts; the pair's own number when empty")
    text_positions: int = Field(8, ge=1, description="positions of the text, evenly spaced, at most")
    gradient_examples: int = Field(200, ge=16, description="texts (at most) for the sensitivity to the input")


@analysis(
    version=2,
    holds=900,
    group="directions",
    paper="Lee+24 2401.01967; Jain+24 2407.10264; Yang+24 2411.06424",
    uses=("revived",),
    passes=20,
)
def offset(pair: Pair, settings: OffsetSettings) -> Result:
    """How the residual stream differs from the base's, per residual point (0: the embedding, l: after block l) and place of the prompt.

    With d = x - x(base) on an O_PT text at C_Te = 0, for the tuned model, the revived one and the one that never had the ability:
    `relative norm` = |E d| / E|x(base)|, and `constant share` = |E d|² / E|d|², 1 where all texts are moved alike and 0 where
    nothing is common to them. |E d|² is estimated without bias and can come out below 0 (the norm is then 0). Two models that
    were trained apart differ by a constant too: the model that never had the ability says by how much.

    `separation`: over texts, the mean of (b - a) / max(a, b), where a is the distance of an activation to the mean of its own class
    and b to that of the other, O_PT against O_FT prompts at C_Te = 0, both means without the text in question. 1: each class is
    a point of its own, 0: they are not apart. [2407.10264] reports b - a, which is on the scale of each model.
    `lipschitz`: the mean over texts of the Euclidean norm of the gradient of the right answer's logit, less the mean logit (softmax
    does not see a common shift), with respect to the embeddings of all positions; logits per unit of the embedding.
    `mlp`: cosine between base and other model of a hidden neuron's key (all that it reads) and of its value (what it writes), averaged
    over the neurons of a block [2401.01967 finds them nearly unmoved while the stream gets an offset].

    Headline: after the last block, where the answer is predicted; `base_pt`, `tuned_pt`: accuracy on O_PT.

    Does not show that what moved matters for the answer; `direction` asks that.
    """
    n = settings.n or pair.n
    asked = {"pt": draw(pair, pair.capability, shares(pair, pair.capability)[0], n)}
    if pair.tuned_on != pair.capability:
        asked["ft"] = draw(pair, pair.tuned_on, shares(pair, pair.tuned_on)[0], n)
    every = {"base": pair.base, "tuned": pair.tuned, "revived": pair.revived, "never_had_it": pair.never_had_it}
    models = {name: model for name, model in every.items() if model is not None}
    _check_shapes(pair, models)

    found = dict(_measured(pair, models, asked, settings.text_positions))
    rows = [
        {
            "model": model,
            "measure": measure,
            "point": point,
            "order": i,
            "place": place.name,
            "role": place.role,
            **_row(metric),
        }
        for (model, measure, point, i, place), metric in found.items()
    ]
    gradients = {
        (name, role): input_gradients(model, examples[: settings.gradient_examples]).double().numpy()
        for role, examples in asked.items()
        for name, model in models.items()
    }
    names = {"pt": pair.capability, "ft": pair.tuned_on}
    sensitivity = [
        {"model": name, "capability": names[role], "role": role_of(pair, names[role])}
        | _row(mean_metric("lipschitz", norms, pair.seed, "logits per unit of the embedding"))
        for (name, role), norms in gradients.items()
    ]
    vectors = [row for name, model in models.items() if name != "base" for row in cosines(name, pair.base, model)]
    last = [
        replace(metric, metric=f"{measure} {model}".replace(" ", "_"))
        for (model, measure, point, _, place), metric in found.items()
        if place.role == REQUEST and point == points(pair.base) - 1
    ]
    right = [proportion(f"{name}_pt", correct_answers(models[name], asked["pt"]), pair.seed) for name in ("base", "tuned")]
    result = Result(
        name="offset",
        tables={"table": pd.DataFrame(rows), "lipschitz": pd.DataFrame(sensitivity), "mlp": pd.DataFrame(vectors)},
        headline=(*last, *_ratios(gradients, pair.seed), *_mean_cosines(vectors), *right),
        limits=(
            "Activations that moved need not matter for the answer.",
            "A large offset may be undone by a later block, and a small one may decide.",
            "Cosines of MLP vectors see neither their lengths nor what attention changed.",
            *unrelated(pair),
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _check_shapes(pair: Pair, models: Mapping[str, PreTrainedModel]) -> None:
    sizes = {name: (points(model), int(model.config.hidden_size)) for name, model in models.items()}
    for name, size in sizes.items():
        if size != sizes["base"]:
            raise UserError(
                f"offset: the base of pair {pair.name!r} has a residual stream of (points, width) {sizes['base']}, its model "
                f"{name!r} one of {size}; compare models of one size."
            )


def _measured(
    pair: Pair, models: Mapping[str, PreTrainedModel], asked: Mapping[str, Examples], most: int
) -> Iterator[tuple[tuple[str, str, int, int, Place], Metric]]:
    """`(model, measure, residual point, index of the place, place)` with its number; the streams of one model at a time."""
    laid = {role: find_places(pair.task, even(examples), most) for role, examples in asked.items()}
    places, at = laid["pt"]
    # Prompts for both abilities have the same layout, or else only the position that predicts the answer in common.
    alike = "ft" in laid and len(laid["ft"][0]) == len(places)
    request = [place.role for place in places].index(REQUEST)
    base: Float[np.ndarray, "points n k d"] | None = None
    for name, model in models.items():
        here = streams_at(model, asked["pt"], at).numpy()
        there = (
            streams_at(model, asked["ft"], laid["ft"][1] if alike else _request(asked["ft"])).numpy() if "ft" in laid else None
        )
        base = here if base is None else base
        for point, i in np.ndindex(here.shape[0], here.shape[2]):
            mine = here[point, :, i]
            if name != "base":
                for measure, metric in shift(base[point, :, i], mine, pair.seed).items():
                    yield (name, measure, point, i, places[i]), metric
            if there is not None and (alike or i == request):
                apart = separation(mine, there[point, :, i if alike else 0])
                yield (name, "separation", point, i, places[i]), mean_metric("separation", apart, pair.seed, "silhouette")


def _request(examples: Examples) -> Int[Tensor, "n 1"]:
    return examples.answer_position.cpu()[:, None]


def input_gradients(model: PreTrainedModel, examples: Examples) -> Float[Tensor, " n"]:
    """Norm of the gradient of the right answer's logit less the mean logit with respect to all embeddings, per example.

    Of an answer of several tokens its first counts. No parameter receives a gradient.
    """
    parts: list[Tensor] = []
    size = slopes_at_once(model, examples, BATCH)
    for start in range(0, len(examples), size):
        batch = examples[start : start + size].to(model.device)
        embedded = record(model, batch, [EMBEDDING])[EMBEDDING].requires_grad_()
        with torch.enable_grad(), replaced(model, {EMBEDDING: Replacement(embedded)}):
            logits = answer_logits(model, batch)[:, 0]
            target = logits.gather(1, batch.answer[:, :1])[:, 0] - logits.mean(-1)
            (gradient,) = torch.autograd.grad(target.sum(), embedded)
        parts.append(gradient.flatten(1).norm(dim=1).cpu())
    return torch.cat(parts)


def cosines(name: str, base: PreTrainedModel, model: PreTrainedModel) -> list[dict[str, Any]]:
    """Rows for each block's keys and values: mean cosine and a low percentile over the neurons whose vectors are not zero."""
    sites, rows = anatomy(base), list[dict[str, Any]]()
    for block, both in enumerate(zip(blocks(base), blocks(model), strict=True)):
        keys = [torch.cat([matrix(b.get_submodule(path)) for path in sites.mlp_in], 1).detach() for b in both]
        written = [matrix(b.get_submodule(sites.mlp_out)).detach().T for b in both]
        for vector, (before, after) in (("key", keys), ("value", written)):
            if before.shape != after.shape:
                continue  # neurons were removed: none of one model is a neuron of the other
            lengths = before.norm(dim=1) * after.norm(dim=1)
            there = lengths > 0
            found = ((before * after).sum(1)[there] / lengths[there]).double().cpu().numpy()
            numbers = {"mean": found.mean(), f"{LOW}th percentile": np.percentile(found, LOW)} if len(found) else {}
            at = {"model": name, "block": block, "vector": vector}
            rows += [{**at, "measure": k, **_row(certain("", float(v), len(found), "cosine"))} for k, v in numbers.items()]
    return rows


def _row(metric: Metric) -> dict[str, Any]:
    return {"value": metric.value, "low": metric.low, "high": metric.high, "n": metric.n, "unit": metric.unit}


def _ratios(gradients: Mapping[tuple[str, str], np.ndarray], seed: int) -> Iterator[Metric]:
    """Sensitivity of the tuned model over that of the base, for prompts of O_PT and of O_FT."""
    for role in dict.fromkeys(role for _, role in gradients):
        base, tuned = (gradients[name, role] for name in ("base", "tuned"))
        drawn = bootstrap_mean(tuned, DRAWS, seed) / bootstrap_mean(base, DRAWS, seed)
        found = derived(f"lipschitz_ratio_{role}", float(tuned.mean() / base.mean()), drawn, len(base), "ratio")
        yield replace(found, pool="geometric")


def _mean_cosines(rows: list[dict[str, Any]]) -> Iterator[Metric]:
    """Mean cosine of the tuned model's keys and values, over blocks."""
    for vector in ("key", "value"):
        mine = [row for row in rows if (row["model"], row["vector"], row["measure"]) == ("tuned", vector, "mean")]
        if mine:
            value = float(np.mean([row["value"] for row in mine]))
            yield certain(f"{vector}_cosine", value, sum(row["n"] for row in mine), "cosine")


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line that takes no side: how much of the change at the answer is one constant, which says what it is and not what it hides."""
    found = {m.metric: m for m in result.headline}
    capability = result.provenance.get("capability", "O_PT")
    shown, norm, never = found["constant_share_tuned"], found["relative_norm_tuned"], found.get("constant_share_never_had_it")
    if math.isfinite(shown.value):
        text = (
            f"Where {capability} is answered, one constant makes up {shown.value:.0%} of the mean squared change of the last residual "
            f"stream and is {norm.value:.2f} of its length"
        )
        text += f" (between the base and a model that never had it: {never.value:.0%})" if never else ""
        if "value_cosine" in found:
            key, value = (found[f"{vector}_cosine"].value for vector in ("key", "value"))
            text += f"; keys and values of MLP neurons keep cosines of {key:.3f} and {value:.3f}"
        text += "."
    else:
        text = f"Where {capability} is answered, the last residual stream is the base's: there is no change to describe."
    kept = nothing_lost(found, capability)
    text += kept + (f" {UNRELATED}" if UNRELATED in result.limits else "")
    kind: Direction = "neutral" if math.isfinite(shown.value) and not kept else "uninformative"
    numbers = (shown.value, shown.low, shown.high, shown.n)
    return (Evidence(result.name, shown.metric, *numbers, kind, text, capability, shown.bound),)
