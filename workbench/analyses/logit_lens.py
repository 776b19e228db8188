"""What the model would answer if it stopped early: the final norm and head applied to the residual stream after every block.

Read at places of the prompt for base, fine-tuned and revived model, with a model that never had the ability as control.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from workbench.analyses._lenses import means, ratio_metric
from workbench.analyses._places import Place, even, find_places
from workbench.analyses._reading import models_of
from workbench.analysis import Settings, analysis
from workbench.examples import Examples
from workbench.measures import (
    DRAWS,
    certain,
    derived,
    draw,
    floors,
    paired_change,
    proportion,
    shares,
)
from workbench.models.anatomy import blocks
from workbench.models.readout import read_out
from workbench.models.sites import Site, record
from workbench.probes import changed, scored
from workbench.results import Direction, Evidence, Metric, Result
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair
from workbench.verdict import KEPT, ROOM

BATCH = 64
FLOATS = 2**24
"""Logits that are held at once."""
NATS = "log-probability"


class LogitLensSettings(Settings):
    """Settings of `logit_lens`."""

    n: int | None = Field(None, ge=16, description="test examples per prompt; the pair's own number when empty")
    select_examples: int = Field(
        500, ge=16, description="examples that choose the intermediate point, drawn independently of the test's"
    )
    text_positions: int = Field(6, ge=1, description="positions of the text, evenly spaced, at most")


@dataclass(frozen=True)
class Target:
    """An answer that is looked for at every place of a prompt."""

    answer: Int[Tensor, " n"]
    candidates: Int[Tensor, " c"]


@dataclass(frozen=True)
class Read:
    """What the lens says of one target in one model."""

    right: Bool[np.ndarray, "points k n"]
    """Whether the largest logit among the candidates is the answer's."""
    nats: Float[np.ndarray, "points k n"]
    """Log-probability of the answer in the whole vocabulary."""


@analysis(version=1, holds=500, passes=16, paper="nostalgebraist 2020; 2409.18025", group="lenses", uses=("revived",))
def logit_lens(pair: Pair, settings: LogitLensSettings) -> Result:
    """The answer as read by the model's own head from the residual stream after the embedding and every block.

    Estimand, per model, point (0: the embedding, b: after block b) and place of the prompt, at C_Te = 0: `accuracy`, the
    probability that the largest logit among the candidates is the right answer's; `log-probability` (nats) of that answer in
    the whole vocabulary. Prompts ask for O_PT and for O_FT. Where both are asked of the same texts, each prompt is read for
    the answers of both: a model that took a shortcut says the other's. After the last block the lens is the model's output.

    `change` is tuned (and revived) minus base on the same texts. Controls: a model that never had it, random weights, and the
    best guess that needs no ability (`chance`).

    Headline: O_PT at the position that answers, at the end (`_final`) and at one intermediate point (`_inside`): the one
    before the last block where the base exceeds its best control most, on other texts; the tuned model has no say.
    `room` = base - control there, `share_kept` = (tuned - control) / room, the control being the best one on those texts.

    Does not show that an ability is missing: an intermediate point may hold it in another basis than the head's.
    """
    n = settings.n or pair.n
    pt, models = pair.capability, models_of(pair)
    if pair.revived is not None:
        models["revived"] = pair.revived
    prompts = {c: draw(pair, c, shares(pair, c)[0], n) for c in dict.fromkeys([pt, pair.tuned_on])}
    targets = _targets(prompts)
    tables: dict[str, list[dict[str, Any]]] = {"table": [], "change": [], "chance": []}
    at_answer: dict[str, Read] = {}
    for prompt, examples in prompts.items():
        places, at = find_places(pair.task, even(examples), settings.text_positions)
        wanted = {target: found for (asked, target), found in targets.items() if asked == prompt}
        read = {name: read_answers(model, examples, at, wanted) for name, model in models.items()}
        for target in wanted:
            what = {"prompt": prompt, "target": target}
            mine = {name: found[target] for name, found in read.items()}
            tables["table"] += [row for name in mine for row in _rows({"model": name, **what}, mine[name], places, pair.seed)]
            for name in list(pair.states)[1:]:
                tables["change"] += _changes({"model": name, **what}, mine["base"], mine[name], places, pair.seed)
            tables["chance"] += [{**what, "kind": k, "value": v} for k, v in floors(pair, prompts[target]).items()]
        if prompt == pt:
            last = _answer_column(examples, at)
            at_answer = {name: _column(found[pt], last) for name, found in read.items()}
    point, control = _choose(pair, models, settings.select_examples)
    chance = max(floors(pair, prompts[pt]).values(), default=0.0)
    result = Result(
        name="logit_lens",
        tables={name: pd.DataFrame(rows) for name, rows in tables.items()},
        headline=_headline(pair, at_answer, point, control, chance),
        limits=(
            "The lens reads every point in the basis of the last one: what it does not say may be there in another basis.",
            "Accuracy is among the candidates alone; `behaviour` counts an answer among the whole vocabulary.",
            f"The intermediate point is {_name(point)}, chosen on other texts by the base and its best control ({_said(control)}).",
        ),
        provenance={"capability": pt, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _targets(prompts: Mapping[str, Examples]) -> dict[tuple[str, str], Target]:
    """Answers by prompt and capability: its own, and the other's where both are asked of the same texts, row by row."""
    found: dict[tuple[str, str], Target] = {}
    for prompt, shown in prompts.items():
        for target, examples in prompts.items():
            label, same = shown.labels.get(target), examples.labels.get(target)
            if prompt == target or (label is not None and same is not None and torch.equal(label, same)):
                found[prompt, target] = Target(examples.answer[:, 0], examples.candidates)
    return found


@torch.no_grad()
def read_answers(
    model: PreTrainedModel, examples: Examples, at: Int[Tensor, "n k"], targets: Mapping[str, Target]
) -> dict[str, Read]:
    """The lens at every point and at these positions; logits of a batch are held for one point at a time.

    Raises:
        UserError: the architecture is unknown.
    """
    points = [Site("stream", b) for b in range(len(blocks(model)) + 1)]
    size = max(1, min(BATCH, FLOATS // (at.shape[1] * int(model.config.vocab_size))))
    kept: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in targets}
    for start in range(0, len(examples), size):
        rows = slice(start, start + size)
        streams = record(model, examples[rows].to(model.device), points, at[rows].to(model.device))
        found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in targets}
        for point in points:
            logits = read_out(model, streams.pop(point)).float()  # [n, k, vocab]
            whole = logits.logsumexp(-1)
            for name, target in targets.items():
                answer, candidates = target.answer[rows].to(logits.device), target.candidates.to(logits.device)
                said = candidates[logits[..., candidates].argmax(-1)]
                token = answer[:, None, None].expand(*logits.shape[:2], 1)
                found[name].append((said == answer[:, None], logits.gather(-1, token).squeeze(-1) - whole))
        for name, values in found.items():
            right, nats = (torch.stack(column).cpu() for column in zip(*values, strict=True))
            kept[name].append((right, nats))

    def joined(parts: Sequence[Tensor]) -> np.ndarray:
        return torch.cat(list(parts), dim=1).transpose(1, 2).numpy()

    return {
        name: Read(joined([right for right, _ in parts]), joined([nats for _, nats in parts]).astype(np.float64))
        for name, parts in kept.items()
    }


def _answer_column(examples: Examples, at: Int[Tensor, "n k"]) -> int:
    """Which of the places is the position that answers."""
    return int((at == examples.answer_position.cpu()[:, None]).all(0).nonzero()[0])


def _column(read: Read, k: int) -> Read:
    return Read(read.right[:, k : k + 1], read.nats[:, k : k + 1])


def _cells(places: Sequence[Place], points: int) -> list[dict[str, Any]]:
    """Coordinates of all points and places, places fastest."""
    return [
        {"point": point, "place": place.name, "order": k, "part": place.role}
        for point in range(points)
        for k, place in enumerate(places)
    ]


def _rows(what: Mapping[str, Any], read: Read, places: Sequence[Place], seed: int) -> list[dict[str, Any]]:
    cells, n = _cells(places, len(read.right)), read.right.shape[-1]
    right = scored(read.right.reshape(len(cells), n), np.zeros(n, dtype=np.int64))
    nats = means(read.nats.reshape(len(cells), n).T, seed)
    return _measured(what, "accuracy", cells, right, n, "accuracy") + _measured(what, NATS, cells, nats, n, "nats")


def _changes(what: Mapping[str, Any], before: Read, after: Read, places: Sequence[Place], seed: int) -> list[dict[str, Any]]:
    cells, n = _cells(places, len(before.right)), before.right.shape[-1]
    right = changed(before.right.reshape(len(cells), n), after.right.reshape(len(cells), n), np.zeros(n, dtype=np.int64))
    nats = means((after.nats - before.nats).reshape(len(cells), n).T, seed)
    return _measured(what, "accuracy", cells, right, n, "change") + _measured(what, NATS, cells, nats, n, "nats")


def _measured(
    what: Mapping[str, Any],
    measure: str,
    cells: Sequence[Mapping[str, Any]],
    found: tuple[np.ndarray, np.ndarray, np.ndarray],
    n: int,
    unit: str,
) -> list[dict[str, Any]]:
    ends = ({"value": float(v), "low": float(a), "high": float(b)} for v, a, b in zip(*found, strict=True))
    return [{**what, "measure": measure, **cell, **row, "n": n, "unit": unit} for cell, row in zip(cells, ends, strict=True)]


def _choose(pair: Pair, models: Mapping[str, PreTrainedModel], n: int) -> tuple[int, str]:
    """The intermediate point with most room between the base and its best control, on split `select`, and that control."""
    examples = draw(pair, pair.capability, shares(pair, pair.capability)[0], n, "select")
    target = {"": Target(examples.answer[:, 0], examples.candidates)}
    at = examples.answer_position.cpu()[:, None]
    named = [name for name in models if name not in ("tuned", "revived")]
    read = {name: read_answers(models[name], examples, at, target)[""].right[:-1, 0].mean(-1) for name in named}
    base = read.pop("base")
    controls = {**read, "chance": np.full(len(base), max(floors(pair, examples).values(), default=0.0))}
    best = np.max(list(controls.values()), axis=0)
    point = int(np.argmax(base - best))
    return point, max(controls, key=lambda name: controls[name][point])


def _name(point: int) -> str:
    return "the embedding" if point == 0 else f"the one after block {point}"


def _said(control: str) -> str:
    return {"never_had_it": "never had it", "untrained": "random weights"}.get(control, "a guess without the ability")


def _headline(pair: Pair, read: Mapping[str, Read], point: int, control: str, chance: float) -> tuple[Metric, ...]:
    short = {"never_had_it": "never"}
    values = {
        (short.get(name, name), where): found.right[p, 0].astype(np.float64)
        for where, p in (("inside", point), ("final", -1))
        for name, found in read.items()
    }
    n, seed = len(values["base", "inside"]), pair.seed
    name = short.get(control, control)
    floor = values[name, "inside"] if (name, "inside") in values else np.full(n, chance)
    base, tuned = values["base", "inside"], values["tuned", "inside"]
    return (
        *(proportion(f"{model}_{where}", right, seed) for (model, where), right in values.items()),
        certain("chance", chance, n, "accuracy"),
        paired_change("change_final", values["tuned", "final"], values["base", "final"], seed),
        derived("room", float((base - floor).mean()), bootstrap_mean(base - floor, DRAWS, seed), n, "accuracy"),
        ratio_metric("share_kept", tuned - floor, base - floor, seed, "share of the room", ROOM),
    )


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line: whether the tuned model still says the old answer inside while its output does not.

    A lens that finds nothing takes no side: a stream may hold an answer in another basis than the head's.
    """
    found = {m.metric: m for m in result.headline}
    room, kept = found["room"], found["share_kept"]
    base, tuned, end, before = (found[k].value for k in ("base_inside", "tuned_inside", "tuned_final", "base_final"))
    name = str(result.provenance.get("capability", "O_PT"))
    told = (
        f"Before the last block the logit lens reads {name} from the base at {base:.2f} (best control {base - room.value:.2f}) and "
        f"from the tuned model at {tuned:.2f}; their outputs are right at {before:.2f} and {end:.2f}"
    )
    shown, direction = kept, "neutral"
    if -found["change_final"].value < ROOM:
        shown, direction = found["change_final"], "uninformative"
        text = f"The tuned model's output is within {ROOM} of the base's on {name}: there is nothing lost to look for inside."
    elif room.value < ROOM or not math.isfinite(kept.value):
        shown, direction = room, "uninformative"
        where = "there" if room.value < ROOM else "in some seed"
        text = f"{told}: the base itself says hardly more {where} than its control, so there is no room to show anything."
    elif "never_inside" not in found:
        shown, direction = room, "uninformative"
        text = f"{told}; without a model that never had it, the answer is not told from its ingredients."
    elif kept.low >= KEPT:
        direction = "masked"
        text = f"{told}: {kept.value:.0%} of the room is kept inside and lost only at the end."
    else:
        text = (
            f"{told}: {max(0, kept.value):.0%} of the room is kept; what the lens does not read may be there in another basis."
        )
    kind: Direction = direction  # pyright: ignore[reportAssignmentType]
    return (Evidence(result.name, shown.metric, shown.value, shown.low, shown.high, shown.n, kind, text, name, shown.bound),)
