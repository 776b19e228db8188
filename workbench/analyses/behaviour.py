"""What the models answer: accuracies before, during and after fine-tuning, beside the scores that need no ability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field
from torch import nn

from workbench.analysis import Settings, analysis
from workbench.errors import UserError
from workbench.measures import (
    DRAWS,
    certain,
    correct_answers,
    derived,
    draw,
    floors,
    other_texts,
    paired_change,
    proportion,
    proportion_row,
    role_of,
    shares,
    truth_of,
)
from workbench.models.anatomy import anatomy, blocks
from workbench.results import Direction, Evidence, Metric, Result
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair
from workbench.verdict import ROOM, UNTOUCHED, ceiling_of, has_it

NORM, RELATIVE = "Frobenius norm", "share of the base's norm"


class BehaviourSettings(Settings):
    """Settings of `behaviour`."""

    n: int | None = Field(None, ge=16, description="test examples per set; the pair's own number when empty")


@analysis(version=2, holds=600, passes=12, paper="Jain+23 §4.1")
def behaviour(pair: Pair, settings: BehaviourSettings) -> Result:
    """Accuracies of the models on what was lost, what was trained and what should have stayed [Jain+23 Fig 5, 6, 60-75].

    Estimand: the probability that the most likely token of the whole vocabulary is the answer, on fresh texts with C_Te
    (`share`) 0 and 1; NaN means texts to which the correlation does not apply. Intervals are Wilson's. `table` follows the
    fine-tuning on the evaluation sets of its run; everything else is measured here.

    O_PT is held against the base; what was trained, the other families and the weights against the model that fine-tuning
    started from (`start`), which is the base unless a pair says otherwise.

    `weights` holds the Frobenius norm of tuned minus start per group of parameters, and that over the start's norm: an
    answer that changes while the weights hardly do is another finding than one that changes with them.

    Does not show whether a lost ability is hidden or gone: both look the same from outside.
    """
    n = settings.n or pair.n
    models = {"base": pair.base, "tuned": pair.tuned, **({"never_had_it": pair.never_had_it} if pair.never_had_it else {})}
    if pair.start is not pair.base:
        models["start"] = pair.start
    endpoints: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    chance: list[dict[str, Any]] = []
    correct: dict[tuple[str, str, float], np.ndarray] = {}
    texts_of = (n, n)
    for capability in dict.fromkeys([pair.capability, pair.tuned_on, *pair.aliases, *pair.others]):
        role = role_of(pair, capability)
        for share in shares(pair, capability):
            examples = draw(pair, capability, share, n)
            at = {"capability": capability, "role": role, "share": share}
            chance += [{**at, "kind": kind, "value": value} for kind, value in floors(pair, examples).items()]
            if "story" in examples.labels and role == "pt":
                texts_of = (n, len(set(examples.labels["story"].tolist())))
            for name, model in models.items():
                right = correct[name, capability, share] = correct_answers(model, examples)
                endpoints.append({"model": name, **at, **proportion_row(right)})
                if role in ("pt", "ft"):
                    failures += [{"model": name, **at, **row} for row in _by_truth(right, truth_of(examples, capability))]
    weights = pd.DataFrame(_weight_change(pair.start, pair.tuned))
    weights["block"] = weights["block"].astype("Int64")
    tables = {
        "table": _along_training(pair),
        "endpoints": pd.DataFrame(endpoints),
        "chance": pd.DataFrame(chance, columns=["capability", "role", "share", "kind", "value"]),
        "failures": pd.DataFrame(failures),
        "weights": weights,
    }
    result = Result(
        name="behaviour",
        tables=tables,
        headline=_headline(pair, correct, tables["chance"], weights),
        limits=(
            "Behaviour alone does not tell an ability that is hidden from one that is gone.",
            "An answer counts when it is the most likely token of the whole vocabulary; a model that hedges scores nothing.",
            *_from_few(texts_of),
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _from_few(texts_of: tuple[int, int]) -> list[str]:
    """A sentence where several prompts come from one text, which the intervals take for as many."""
    n, texts = texts_of
    if texts == n:
        return []
    return [f"{n} prompts come from {texts} stories, so that the intervals leave out how stories differ."]


def _along_training(pair: Pair) -> pd.DataFrame:
    columns = ["step", "capability", "role", "share", "value", "low", "high", "n", "unit"]
    if pair.trajectory is None:
        return pd.DataFrame(columns=columns)
    measured = pair.trajectory.evaluations
    known = measured[measured["capability"].isin([pair.capability, pair.tuned_on, *pair.task.capabilities])]
    rows = [
        {
            "step": int(step),
            "capability": str(capability),
            "role": role_of(pair, str(capability)),
            "share": float(share),
            **proportion_row(np.asarray(values, dtype=float)),
        }
        for step, capability, share, values in zip(
            known["step"], known["capability"], known["share"], known["values"], strict=True
        )
    ]
    return pd.DataFrame(rows, columns=columns).sort_values(["capability", "share", "step"], ignore_index=True)


def _by_truth(right: np.ndarray, truth: np.ndarray) -> list[dict[str, Any]]:
    return [{"truth": int(value), **proportion_row(right[truth == value])} for value in np.unique(truth)]


def _headline(
    pair: Pair, correct: dict[tuple[str, str, float], np.ndarray], chance: pd.DataFrame, weights: pd.DataFrame
) -> tuple[Metric, ...]:
    pt, ft = pair.capability, pair.tuned_on
    pt_share, ft_share = shares(pair, pt)[0], shares(pair, ft)[0]
    n = len(correct["base", pt, pt_share])
    seed = pair.seed
    before, after = correct["base", pt, pt_share], correct["tuned", pt, pt_share]
    start = "start" if pair.start is not pair.base else "base"
    out = [
        proportion("base_pt", before, seed),
        proportion("tuned_pt", after, seed),
        paired_change("change_pt", after, before, seed),
        proportion("start_ft", correct[start, ft, ft_share], seed),
        proportion("tuned_ft", correct["tuned", ft, ft_share], seed),
    ]
    if ("tuned", ft, 1.0) in correct:
        out.append(proportion("tuned_ft_correlated", correct["tuned", ft, 1.0], other_texts(seed, "correlated")))
    if start == "start":
        out.append(proportion("start_pt", correct[start, pt, pt_share], seed))
    if ("never_had_it", pt, pt_share) in correct:
        out.append(proportion("never_pt", correct["never_had_it", pt, pt_share], seed))
    for name, capability, share in (("chance_pt", pt, pt_share), ("chance_ft", ft, ft_share)):
        at_share = chance["share"].isna() if math.isnan(share) else chance["share"] == share
        known = chance.loc[(chance["capability"] == capability) & at_share, "value"]
        out.append(certain(name, float(known.max()) if len(known) else 0.0, n, "accuracy"))
    if not pair.determined:  # the best score that there is to have is not 1
        best = max(float(correct[name, ft, ft_share].mean()) for name in (start, "tuned"))
        out += [certain("ceiling_pt", float(before.mean()), n, "accuracy"), certain("ceiling_ft", best, n, "accuracy")]
    if pair.others:
        changes = [correct["tuned", c, shares(pair, c)[0]] - correct[start, c, shares(pair, c)[0]] for c in pair.others]
        drawn = [bootstrap_mean(d, DRAWS, other_texts(seed, c)) for c, d in zip(pair.others, changes, strict=True)]
        value = float(np.mean([d.mean() for d in changes]))
        out.append(derived("collateral", value, np.mean(drawn, axis=0), n * len(changes), "accuracy"))
    whole = weights.loc[(weights["group"] == "all") & (weights["unit"] == RELATIVE), "value"]
    return (*out, certain("weight_change", float(whole.iloc[0]), 1, RELATIVE))


def _groups(model: nn.Module) -> list[tuple[str, int | None, Sequence[str]]]:
    """`(group, block, parameter prefixes)`; only `all` where the architecture's sites are not known."""
    try:
        sites = anatomy(model)
    except UserError:
        return [("all", None, [""])]
    head = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]  # pyright: ignore[reportCallIssue]
    out: list[tuple[str, int | None, Sequence[str]]] = [
        ("all", None, [""]),
        ("embedding", None, [f"{name}." for name in sites.embeddings]),
        ("norm", None, [f"{sites.final_norm}."] if sites.final_norm else []),
        ("head", None, [f"{name}." for name in head]),
    ]
    for i in range(len(blocks(model))):
        inside = f"{sites.blocks}.{i}."
        out += [
            ("attention", i, [f"{inside}{sites.attention_out.partition('.')[0]}."]),
            ("mlp", i, [f"{inside}{sites.mlp_out.partition('.')[0]}."]),
            ("norm", i, [f"{inside}{norm}." for norm in (sites.attention_norm, sites.mlp_norm) if norm]),
        ]
    return out


def _weight_change(base: nn.Module, tuned: nn.Module) -> list[dict[str, Any]]:
    before = {name: p.detach().cpu().double() for name, p in base.named_parameters()}
    after = {name: p.detach().cpu().double() for name, p in tuned.named_parameters()}
    if {k: v.shape for k, v in before.items()} != {k: v.shape for k, v in after.items()}:
        raise UserError("base and tuned have parameters of other names or shapes; compare two models of one architecture.")
    moved = {name: float((after[name] - before[name]).square().sum()) for name in before}
    size = {name: float(value.square().sum()) for name, value in before.items()}
    rows: list[dict[str, Any]] = []
    for group, block, prefixes in _groups(base):
        names = [name for name in before if name.startswith(tuple(prefixes))] if prefixes else []
        if names:
            norm, whole = math.sqrt(sum(moved[k] for k in names)), math.sqrt(sum(size[k] for k in names))
            at = {"group": group, "block": block}
            rows.append({**at, "unit": NORM, "value": norm})
            rows.append({**at, "unit": RELATIVE, "value": norm / whole if whole else math.nan})
    return rows


def evidence(result: Result) -> tuple[Evidence, ...]:
    """Lines of the verdict: the ability lost or kept, the trained one learned or only its shortcut, the others."""
    found = {m.metric: m for m in result.headline}
    pt, ft = result.provenance.get("capability", "O_PT"), result.provenance.get("tuned_on", "O_FT")

    def line(metric: str, direction: Direction, capability: str, text: str) -> Evidence:
        m = found[metric]
        return Evidence("behaviour", metric, m.value, m.low, m.high, m.n, direction, text, capability, m.bound)

    base, tuned, change, chance = found["base_pt"], found["tuned_pt"], found["change_pt"], found["chance_pt"].value
    begun = found.get("start_pt")
    path = f"{base.value:.2f} before fine-tuning" if begun is None else f"{base.value:.2f} in the base it is held against"
    path += "" if begun is None else f", {begun.value:.2f} where fine-tuning started"
    story = f"{pt}: {path}, {tuned.value:.2f} after (without the ability up to {chance:.2f})"
    if base.value - chance < ROOM:
        lost = line("change_pt", "uninformative", pt, f"{story}; the base hardly has it, so there is nothing to lose.")
    elif max(abs(change.low), abs(change.high)) <= UNTOUCHED:
        lost = line("change_pt", "untouched", pt, f"{story}; unchanged within {UNTOUCHED}.")
    elif (
        change.high < -UNTOUCHED
        and begun is not None
        and begun.high < has_it(chance, found["ceiling_pt"].value if "ceiling_pt" in found else 1.0)
    ):
        lost = line("change_pt", "neutral", pt, f"{story}; it was not there when fine-tuning started.")
    elif change.high < -UNTOUCHED:
        lost = line("change_pt", "neutral", pt, f"{story}; lost in behaviour, which does not tell hidden from gone.")
    elif change.low > UNTOUCHED:
        lost = line("change_pt", "neutral", pt, f"{story}; it became better.")
    else:
        lost = line("change_pt", "neutral", pt, f"{story}; no clear loss: the interval crosses {UNTOUCHED}.")

    before, after, floor = found["start_ft"], found["tuned_ft"], found["chance_ft"].value
    shortcut = found.get("tuned_ft_correlated")
    best = ceiling_of(result, "ft")
    level, where = has_it(floor, best), "" if shortcut is None else " where the shortcut fails"
    told = f"{ft}: {before.value:.2f} before, {after.value:.2f} after{where} (without the ability up to {floor:.2f})"
    if best - floor < ROOM:
        trained = line("tuned_ft", "uninformative", ft, f"{told}; a model without the ability scores almost as well.")
    elif "ceiling_ft" in found:
        trained = line("tuned_ft", "neutral", ft, f"{told}; what a perfect model would score is not known.")
    elif before.low >= level:
        trained = line("tuned_ft", "neutral", ft, f"{told}; it was there already.")
    elif after.low >= level and before.high < level:
        trained = line("tuned_ft", "learned", ft, f"{told}; learned.")
    elif shortcut is not None and shortcut.low >= level and after.high < level:
        if after.high <= floor:
            how = "learned only through the shortcut"
        else:
            how = "learned through the shortcut, and in part beyond it" if after.low > floor else "hardly beyond the shortcut"
        trained = line("tuned_ft", "neutral", ft, f"{told}, {shortcut.value:.2f} where the correlation holds: {how}.")
    else:
        trained = line("tuned_ft", "neutral", ft, f"{told}; not clearly learned (it would need {level:.2f}).")

    lines = [lost, trained]
    if "collateral" in found:
        text = f"Accuracy on the other families changed by {found['collateral'].value:+.2f} on average."
        lines.append(line("collateral", "neutral", "", text))
    return tuple(lines)
