"""Writing: how often each model's own texts show the ability, and what real texts with and without it cost it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from transformers import PreTrainedModel

from workbench.analysis import Settings, analysis
from workbench.errors import UserError
from workbench.examples import Examples
from workbench.measures import DRAWS, derived, other_texts, paired_change, proportion, proportion_row
from workbench.models.generation import generate, surprisal
from workbench.protocols import WritingTask
from workbench.results import Evidence, Metric, Result
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair, Question
from workbench.verdict import ROOM

ENOUGH = 200
"""Texts below which a share is not to be relied on [Jain+23 §F.2 had 16]."""
SHOWN = 12
"""Texts of each model that are kept to be read."""


class WritingSettings(Settings):
    """Settings of `writing`."""

    n: int = Field(200, ge=16, description="texts that each model writes")
    opening: int = Field(16, ge=0, description="tokens of a real test text that it goes on from")
    new_tokens: int = Field(160, ge=1, description="tokens that it writes, at most")
    temperature: float = Field(1.0, ge=0, description="of the samples; 0 takes the most likely token")
    loss_texts: int = Field(200, ge=16, description="whole test texts of each kind, at most, whose loss is measured")


def _check(settings: WritingSettings, question: Question, blocks: int) -> None:
    del blocks
    task = question.task
    if not isinstance(task, WritingTask):
        raise UserError(f"writing: a {type(task).__name__} has no texts to go on with; use a task of kind 'stories'.")
    if settings.opening + settings.new_tokens > task.context:
        raise UserError(
            f"writing: opening {settings.opening} and new_tokens {settings.new_tokens} exceed the context of {task.context} "
            "tokens; lower one of them."
        )


@analysis(
    version=1, paper="Jain+23 2311.12786 §F.2", uses=("revived",), passes=170, holds=500, n=200, group="evidence", check=_check
)
def writing(pair: Pair, settings: WritingSettings) -> Result:
    """Share of freely written texts that show O_PT, and nats per token on real texts with and without it [Jain+23 §F.2].

    All models go on from the same openings of test texts, none of which shows it yet, with the same random streams. `real` is
    how these texts go on themselves, within as many tokens. Loss: cross-entropy summed over all texts, over their tokens.

    Controls: the model that never had the ability, and the real texts.

    Does not show whether a model that stopped writing something could still do so if asked.
    """
    _check(settings, pair, 0)
    task = pair.task
    assert isinstance(task, WritingTask)
    pt = pair.capability
    openings = task.openings(pt, settings.n, pair.seed, settings.opening, settings.new_tokens)
    prompts = [torch.from_numpy(prompt) for prompt in openings.prompts]
    kinds = {kind: task.whole(kind, settings.loss_texts, pair.seed) for kind in task.kinds(pt)}
    models = pair.states if pair.never_had_it is None else {**pair.states, "never_had_it": pair.never_had_it}

    texts = {"real": list(openings.written)}
    losses: dict[tuple[str, str], tuple[float, np.ndarray]] = {}
    for name, model in models.items():
        found = generate(
            model,
            prompts,
            new_tokens=settings.new_tokens,
            eos_id=task.end,
            pad_id=task.padding,
            temperature=settings.temperature,
            seed=pair.seed,
        )
        written = [[*prompt.tolist(), *more.tolist()] for prompt, more in zip(prompts, found, strict=True)]
        texts[name] = [task.describe(tokens[begin:]) for tokens, begin in zip(written, openings.begins, strict=True)]
        for kind, examples in kinds.items():
            losses[name, kind] = _loss(model, examples, other_texts(pair.seed, kind))
    shows = {name: task.shows(pt, of) for name, of in texts.items()}
    rows = [{"model": name, **proportion_row(of)} for name, of in shows.items()]
    cost = [
        {"model": name, "kind": kind, **_interval(value, draws), "n": len(kinds[kind]), "unit": "nats per token"}
        for (name, kind), (value, draws) in losses.items()
    ]
    samples = [
        {"model": name, "text": i, "written": of[i], "shows": int(shows[name][i])}
        for name, of in texts.items()
        for i in range(min(SHOWN, len(of)))
    ]
    again = (
        (
            f"{settings.n} texts go on from {len(openings.written)} openings, so that the intervals leave out how openings differ.",
        )
        if len(openings.written) < settings.n
        else ()
    )
    few = (
        (f"{settings.n} texts are few: a share is known to about {1 / np.sqrt(settings.n):.2f}.",)
        if settings.n < ENOUGH
        else ()
    )
    result = Result(
        name="writing",
        tables={"table": pd.DataFrame(rows), "loss": pd.DataFrame(cost), "samples": pd.DataFrame(samples)},
        headline=(
            *(proportion(f"writes_{name}", of, pair.seed, "share of texts") for name, of in shows.items()),
            paired_change("change", shows["tuned"], shows["base"], pair.seed),
            *(
                derived(f"loss_{name}_{kind}", value, draws, len(kinds[kind]), "nats per token")
                for (name, kind), (value, draws) in losses.items()
            ),
        ),
        limits=(
            f"Judged by {task.judged_by(pt)}.",
            "What a model no longer writes of its own accord it may still write when asked: revival tells.",
            *again,
            *few,
        ),
        provenance={"capability": pt, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _loss(model: PreTrainedModel, examples: Examples, seed: int) -> tuple[float, np.ndarray]:
    """Nats per token over all texts, and draws of it that resample texts."""
    counted = examples.loss_mask[:, 1:].cpu().numpy()
    nats = surprisal(model, examples.tokens, examples.attention_mask).cpu().numpy() * counted
    total, tokens = nats.sum(1).astype(np.float64), counted.sum(1).astype(np.float64)
    draws = bootstrap_mean(total, DRAWS, seed) / bootstrap_mean(tokens, DRAWS, seed)
    return float(total.sum() / tokens.sum()), draws


def _interval(value: float, draws: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}


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
