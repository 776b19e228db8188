"""Writing: how often each model's own texts show the ability, and what real texts with and without it cost it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from workbench.analyses._texts import SHARE, Desk, Share, TextSettings, check_room, interval_row, texture
from workbench.analysis import analysis
from workbench.measures import derived, mean_metric, other_texts, paired_change
from workbench.protocols import WritingTask
from workbench.results import Evidence, Metric, Result
from workbench.subjects import Pair, Question
from workbench.verdict import ROOM

NATS = "nats per token"
SHOWN = 12
"""Texts of each model that are kept to be read."""


class WritingSettings(TextSettings):
    """Settings of `writing`."""


def _check(settings: WritingSettings, question: Question, blocks: int) -> None:
    del blocks
    check_room(settings, question, "writing")


@analysis(
    version=3, paper="Jain+23 2311.12786 §F.2", uses=("revived",), passes=170, holds=500, n=200, group="evidence", check=_check
)
def writing(pair: Pair, settings: WritingSettings) -> Result:
    """Share of freely written texts that show O_PT, and nats per token on real texts with and without it [Jain+23 §F.2].

    All models go on from the same openings of test texts, none of which shows it yet, with the same random streams; where
    O_PT is asked for, from its instruction. `real` is how these texts go on themselves, within as many tokens. Loss:
    cross-entropy summed over all texts, over their tokens; on texts with it, without it, and, where an instruction asks, on
    texts without it though asked for. `heeds_...`: by how much the latter raises the loss of the same texts, which is 0 for a
    model that does not follow its instruction. `judges`: the same shares by every judge that there is, as counted and as they would
    be if it did not err. `texture`: length and repetition of the texts.

    Controls: the model that never had the ability, and the real texts.

    Does not show whether a model that stopped writing something could still do so if asked.
    """
    _check(settings, pair, 0)
    task = pair.task
    assert isinstance(task, WritingTask)
    pt = pair.capability
    desk = Desk(task, pt, settings, pair.seed)
    models = pair.states if pair.never_had_it is None else {**pair.states, "never_had_it": pair.never_had_it}
    texts = {"real": list(desk.openings.written)} | {name: desk.write(model) for name, model in models.items()}
    losses: dict[tuple[str, str], tuple[float, np.ndarray]] = {
        (name, kind): desk.loss(model, kind) for name, model in models.items() for kind in desk.kinds
    }
    shares = {name: desk.share(of) for name, of in texts.items()}
    heeds = {name: desk.heeds(model) for name, model in models.items()}
    rows = [{"model": name, **share.row} for name, share in shares.items()]
    judged = [
        {"model": name, "judge": s.judge, "value": s.rate, "low": s.low, "high": s.high, "corrected": s.corrected_rate}
        | {"corrected_low": s.corrected_low, "corrected_high": s.corrected_high, "n": s.n, "trust": s.trust}
        for name, share in shares.items()
        for s in share.scores
    ]
    cost = [
        {"model": name, "kind": kind, **interval_row(value, draws), "n": len(desk.kinds[kind]), "unit": NATS}
        for (name, kind), (value, draws) in losses.items()
    ]
    samples = [
        {"model": name, "text": i, "written": of[i], "shows": int(shares[name].shows[i])}
        for name, of in texts.items()
        for i in range(min(SHOWN, len(of)))
    ]
    result = Result(
        name="writing",
        tables={
            "table": pd.DataFrame(rows),
            "loss": pd.DataFrame(cost),
            "judges": pd.DataFrame(judged),
            "texture": pd.DataFrame([{"model": name, **row} for name, of in texts.items() for row in texture(of, pair.seed)]),
            "samples": pd.DataFrame(samples),
        },
        headline=(
            *(share.metric(f"writes_{name}") for name, share in shares.items()),
            _change(shares["tuned"], shares["base"], pair.seed),
            *(
                mean_metric(f"heeds_{name}", of, other_texts(pair.seed, "heeds"), NATS)
                for name, of in heeds.items()
                if of is not None
            ),
            *(
                derived(f"loss_{name}_{kind}", value, draws, len(desk.kinds[kind]), NATS)
                for (name, kind), (value, draws) in losses.items()
            ),
        ),
        limits=(
            *desk.limits,
            *_disagreement(judged),
            *_deaf(heeds["base"]),
            "What a model no longer writes of its own accord it may still write when asked: revival tells.",
        ),
        provenance={"capability": pt, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _change(after: Share, before: Share, seed: int) -> Metric:
    """Of the share, by what the texts from the same openings show."""
    if not after.scores[0].trust:
        return paired_change("change", after.shows, before.shows, seed)
    return mean_metric("change", after.values - before.values, seed, SHARE)


def _deaf(heeds: np.ndarray | None) -> list[str]:
    """A sentence where the base does not follow instructions for sure: what edits of them do then says nothing."""
    if heeds is None:
        return []
    mean, error = float(heeds.mean()), float(heeds.std(ddof=1)) / len(heeds) ** 0.5
    if mean - 1.96 * error > 0:
        return []
    return [
        f"Asked for what does not come, the base is no more surprised ({mean:+.4f} nats per token, standard error {error:.4f}): it does "
        "not follow that instruction for sure, so that protocols which edit instructions can do no more than filter."
    ]


def _disagreement(judged: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for every judge whose corrected share does not cover what the one that decides counts."""
    decides = {str(row["model"]): row for row in reversed(judged)}  # of each model the first row stays
    out: dict[str, list[str]] = {}
    for row in judged:
        first = decides[str(row["model"])]
        if row["judge"] != first["judge"] and not row["corrected_low"] <= first["value"] <= row["corrected_high"]:
            out.setdefault(str(row["judge"]), []).append(f"{row['model']} {first['value']:.2f}, by it {row['corrected']:.2f}")
    return [
        f"The other judge ({judge}) does not agree even corrected ({'; '.join(said)}): it was made of whole real texts, and errs "
        "otherwise on texts like these."
        for judge, said in out.items()
    ]


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line, which takes no side: a model that does not write something may have it or not."""
    found = {m.metric: m for m in result.headline}
    name = result.provenance.get("capability", "O_PT")
    base, tuned, real, never, revived = (found.get(f"writes_{m}") for m in ("base", "tuned", "real", "never_had_it", "revived"))
    assert base is not None
    assert tuned is not None
    assert real is not None

    def said(who: str, metric: Metric | None) -> str:
        return "" if metric is None else f", {who} {metric.value:.2f}"

    rest = said("real texts", real) + said("a model that never had it", never) + said("revived", revived)
    text = (
        f"Of its own accord the tuned model writes {name} in {tuned.value:.2f} [{tuned.low:.2f}, {tuned.high:.2f}] of its texts "
        f"(the base {base.value:.2f}{rest})."
    )
    no_room = base.value - (never.value if never else 0.0) < ROOM
    change: Any = found["change"]
    direction = "uninformative" if no_room else "neutral"
    line = Evidence("writing", "change", change.value, change.low, change.high, change.n, direction, text, name, change.bound)
    return (line,)
