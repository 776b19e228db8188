"""Where in a prompt fine-tuning changed the predictions: KL divergence from the base per position, and other ways to ask.

Other identifiers for the same question, and the first tokens of the answer given away, show whether a change is shallow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from workbench.analyses._lenses import means, ratio_metric
from workbench.analyses._places import Place, even, find_places
from workbench.analysis import Settings, analysis
from workbench.examples import Examples
from workbench.measures import (
    DRAWS,
    certain,
    correct_answers,
    derived,
    draw,
    floors,
    mean_metric,
    other_texts,
    paired_change,
    proportion,
    proportion_row,
    role_of,
    shares,
)
from workbench.models.divergence import BATCH, divergence_from, predicted
from workbench.models.forward import answer_logits, answer_tokens
from workbench.results import Direction, Evidence, Metric, Result
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair
from workbench.verdict import KEPT, ROOM

SHARE = "share of the divergence"


class DivergenceSettings(Settings):
    """Settings of `divergence`."""

    n: int | None = Field(None, ge=16, description="test examples per set; the pair's own number when empty")
    text_positions: int = Field(10, ge=1, description="positions of the text that are listed, evenly spaced, at most")


@analysis(version=1, holds=600, passes=26, paper="2406.05946; 2309.10105", group="lenses", uses=("revived",))
def divergence(pair: Pair, settings: DivergenceSettings) -> Result:
    """KL(model || base) of the next token's distribution, in nats, at every place of a prompt, with the right tokens given.

    Prompts ask for O_PT, O_FT (C_Te = 0) and one ability of every other family. Models: tuned, revived, and as control one
    that was pretrained alike and never had the ability: two models differ everywhere, a shallow change at few positions.

    `concentration`: the share of the divergence, summed over all positions of the prompt (thinned out nowhere) and over texts,
    that sits at the position that answers; `even` is that share if all positions diverged alike.

    `identifiers`: accuracy where the same is asked under another identifier (jailbreak) [Jain+23 §E.2], for tasks that
    have one. `room_alias` = base - control, `alias_kept` = (tuned - control) / room; the control is the larger of the model
    that never had it and the best guess that needs no ability. `prefilled`: accuracy on the rest of an answer when its first
    tokens are given, for answers of several tokens.

    Does not show what became of an ability: predictions can move far while it stays, and hardly while it goes.
    """
    n = settings.n or pair.n
    models = {**pair.states, **({"never_had_it": pair.never_had_it} if pair.never_had_it is not None else {})}
    later = {name: model for name, model in models.items() if name != "base"}
    rows: list[dict[str, Any]] = []
    sums: list[dict[str, Any]] = []
    kept: dict[str, _Divergence] = {}
    for capability in dict.fromkeys([pair.capability, pair.tuned_on, *pair.others]):
        share, role = shares(pair, capability)[0], role_of(pair, capability)
        examples = draw(pair, capability, share, n)
        places, at = _places(pair, examples, settings.text_positions)
        seed = other_texts(pair.seed, capability) if role == "other" else pair.seed
        found = kept[capability] = _measure(pair, later, examples)
        for name, nats in found.nats.items():
            what = {"model": name, "capability": capability, "role": role, "share": share}
            rows += _rows(what, places, nats.gather(1, at).numpy().astype(np.float64), seed)
            metric = ratio_metric("", found.at_answer(name), found.whole(name), seed, SHARE)
            sums.append({**what, "value": metric.value, "low": metric.low, "high": metric.high, "n": n, "unit": SHARE})
    plain = draw(pair, pair.capability, shares(pair, pair.capability)[0], n)
    asked = {c: draw(pair, c, shares(pair, c)[0], n) for c in (pair.capability, *pair.aliases)}
    right = {(m, c): correct_answers(model, shown) for c, shown in asked.items() for m, model in models.items()}
    prefilled = _prefilled(models, plain)
    result = Result(
        name="divergence",
        tables={
            "table": pd.DataFrame(rows),
            "concentration": pd.DataFrame(sums),
            "identifiers": pd.DataFrame(
                [{"model": m, "capability": c, "role": role_of(pair, c), **proportion_row(v)} for (m, c), v in right.items()]
            ),
            **({"prefilled": _prefilled_table(prefilled)} if prefilled else {}),
        },
        headline=(
            *_headline(pair, kept),
            *_asked_otherwise(pair, right, max(floors(pair, plain).values(), default=0.0)),
            *(proportion(f"{_short(m)}_prefilled", v[:, 1], pair.seed) for m, v in prefilled.items()),
        ),
        limits=(
            "Divergence says where predictions changed, not what became of an ability.",
            "Positions whose prediction fine-tuning was not trained on drift freely; their divergence is a side effect.",
            "At the prompt's first words it says what a model expects to be asked, which differs by what it was trained on.",
            *(() if pair.aliases else ("The task asks for the ability under one identifier alone: no other could be tried.",)),
            *(
                ()
                if prefilled
                else ("Answers have one token: to give it away leaves nothing to ask, so nothing is prefilled.",)
            ),
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


@dataclass(frozen=True)
class _Divergence:
    """Of several models from the base, on one set of prompts."""

    nats: Mapping[str, Float[Tensor, "n t"]]
    answer: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    """How many there are."""

    def at_answer(self, model: str) -> Float[np.ndarray, " n"]:
        return self.nats[model].gather(1, self.answer[:, None])[:, 0].numpy().astype(np.float64)

    def whole(self, model: str) -> Float[np.ndarray, " n"]:
        """Summed over all positions."""
        return self.nats[model].double().sum(1).numpy()


def _measure(pair: Pair, models: Mapping[str, PreTrainedModel], examples: Examples) -> _Divergence:
    nats = divergence_from(pair.base, models, examples)
    return _Divergence(nats, examples.answer_position.cpu(), predicted(examples).sum(1).cpu())


def _places(pair: Pair, examples: Examples, most: int) -> tuple[list[Place], Int[Tensor, "n k"]]:
    """Places of the prompt, and of an answer of several tokens those that predict the later ones."""
    places, at = find_places(pair.task, even(examples), most)
    later = (answer_tokens(examples) - 1)[:, 1:].cpu()
    names = [Place(f"answer token {i}", "answer") for i in range(2, later.shape[1] + 2)]
    return [*places, *names], torch.cat([at, later], dim=1)


def _rows(what: Mapping[str, Any], places: list[Place], nats: Float[np.ndarray, "n k"], seed: int) -> list[dict[str, Any]]:
    found = zip(places, *means(nats, seed), strict=True)
    return [
        {**what, "place": place.name, "order": k, "part": place.role}
        | {"value": float(v), "low": float(low), "high": float(high), "n": len(nats), "unit": "nats"}
        for k, (place, v, low, high) in enumerate(found)
    ]


@torch.no_grad()
def _prefilled(models: Mapping[str, PreTrainedModel], examples: Examples) -> dict[str, Float[np.ndarray, "n k"]]:
    """1.0 where all of the answer from token j on is right, the ones before being given; nothing for answers of one token."""
    if examples.answer.shape[1] == 1:
        return {}
    batches = [examples[start : start + BATCH] for start in range(0, len(examples), BATCH)]

    def rest(model: PreTrainedModel, batch: Examples) -> Tensor:
        right = batch.right(answer_logits(model, batch).argmax(-1))
        return right.flip(1).cumprod(1).flip(1).cpu()

    found = {name: [rest(model, batch.to(model.device)) for batch in batches] for name, model in models.items()}
    return {name: torch.cat(parts).numpy().astype(np.float64) for name, parts in found.items()}


def _prefilled_table(right: Mapping[str, Float[np.ndarray, "n k"]]) -> pd.DataFrame:
    return pd.DataFrame(
        [{"model": name, "given": j, **proportion_row(v[:, j])} for name, v in right.items() for j in range(v.shape[1])]
    )


def _short(model: str) -> str:
    return {"never_had_it": "never"}.get(model, model)


def _headline(pair: Pair, found: Mapping[str, _Divergence]) -> list[Metric]:
    pt = found[pair.capability]
    out: list[Metric] = []
    for name in pt.nats:
        at, whole, seed = pt.at_answer(name), pt.whole(name), pair.seed
        out.append(mean_metric(f"{_short(name)}_answer_pt", at, seed, "nats"))
        out.append(ratio_metric(f"{_short(name)}_concentration_pt", at, whole, seed, SHARE))
    out.append(certain("even", float((1 / pt.positions.double()).mean()), len(pt.answer), SHARE))
    if pair.tuned_on != pair.capability:
        out.append(mean_metric("tuned_answer_ft", found[pair.tuned_on].at_answer("tuned"), pair.seed, "nats"))
    if pair.others:
        each = [found[c].at_answer("tuned") for c in pair.others]
        draws = [bootstrap_mean(v, DRAWS, other_texts(pair.seed, c)) for c, v in zip(pair.others, each, strict=True)]
        value = float(np.mean([v.mean() for v in each]))
        out.append(derived("tuned_answer_other", value, np.mean(draws, axis=0), len(each[0]) * len(each), "nats"))
    return out


def _asked_otherwise(pair: Pair, right: Mapping[tuple[str, str], np.ndarray], chance: float) -> list[Metric]:
    """Accuracies as asked in pretraining, and, where there are other identifiers, the mean over these."""
    seed, models = pair.seed, dict.fromkeys(m for m, _ in right)
    out = [proportion(f"{_short(m)}_pt", right[m, pair.capability], seed) for m in models]
    out.append(paired_change("change_pt", right["tuned", pair.capability], right["base", pair.capability], seed))
    if not pair.aliases:
        return out
    by = {m: np.mean([right[m, alias] for alias in pair.aliases], axis=0) for m in models}
    out += [mean_metric(f"{_short(m)}_alias", values, seed, "accuracy") for m, values in by.items()]
    never, guess = by.get("never_had_it"), np.full(len(by["base"]), chance)
    control = never if never is not None and never.mean() > chance else guess
    room = by["base"] - control
    out.append(mean_metric("room_alias", room, seed, "accuracy"))
    out.append(ratio_metric("alias_kept", by["tuned"] - control, room, seed, "share of the room", ROOM))
    return out


def evidence(result: Result) -> tuple[Evidence, ...]:
    """Where the predictions changed, which takes no side; and whether another identifier still brings the ability out.

    Another identifier hands over nothing about the answer, so that what it brings out is there. That it brings nothing out
    takes no side: fine-tuning on one may have reached the others.
    """
    found = {m.metric: m for m in result.headline}
    name = str(result.provenance.get("capability", "O_PT"))

    def line(metric: str, direction: Direction, text: str) -> Evidence:
        m = found[metric]
        return Evidence(result.name, metric, m.value, m.low, m.high, m.n, direction, text, name, m.bound)

    lost, share = -found["change_pt"].value, found["tuned_concentration_pt"]
    if lost < ROOM or not math.isfinite(share.value):
        same = f"The tuned model is within {ROOM} of the base on {name}: there is no loss to place."
        return (line("tuned_answer_pt", "uninformative", same),)
    never = found.get("never_concentration_pt")
    against = "" if never is None else f"; between the base and a model that never had it: {never.value:.0%}"
    told = (
        f"On prompts for {name} the tuned model diverges from the base by {found['tuned_answer_pt'].value:.2f} nats at the answer, "
        f"{share.value:.0%} of the whole prompt's divergence (evenly spread: {found['even'].value:.0%}{against}): "
        "this tells where the change shows, not what became of the ability."
    )
    return (line("tuned_concentration_pt", "neutral", told), *_alias_line(found, line, name))


def _alias_line(found: Mapping[str, Metric], line: Any, name: str) -> tuple[Evidence, ...]:
    if "alias_kept" not in found:
        return ()
    kept, room = found["alias_kept"], found["room_alias"]
    base, tuned, plain = (found[k].value for k in ("base_alias", "tuned_alias", "tuned_pt"))
    told = (
        f"Asked for {name} under another identifier, the base is right in {base:.2f} and the tuned model in {tuned:.2f} "
        f"(under the plain one in {plain:.2f})"
    )
    if "never_alias" not in found:
        return (line("room_alias", "uninformative", f"{told}; there is no model that never had it to hold this against."),)
    if room.value < ROOM or not math.isfinite(kept.value):
        return (line("room_alias", "uninformative", f"{told}, but the base hardly exceeds its control: no room."),)
    if kept.low >= KEPT:
        return (line("alias_kept", "masked", f"{told}: {kept.value:.0%} of the room is kept, covered under one identifier."),)
    return (line("alias_kept", "neutral", f"{told}: {kept.value:.0%} of the room is kept, which takes no side."),)
