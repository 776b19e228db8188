"""Where attention looks before and after fine-tuning: patterns of a few texts, and attention mass from the read position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from pydantic import Field
from transformers import PreTrainedModel

from workbench.analyses._lenses import means
from workbench.analyses._prompts import nothing_lost
from workbench.analysis import Settings, analysis
from workbench.errors import UserError
from workbench.examples import Examples
from workbench.measures import UNRELATED, correct_answers, draw, mean_metric, proportion, shares, unrelated
from workbench.models.anatomy import head_shape
from workbench.models.inside import attention_patterns
from workbench.results import Direction, Evidence, Metric, Result
from workbench.subjects import Pair, Question

BATCH = 64
PATTERN_BYTES = 128 * 2**20
"""What the patterns of one batch may take; they are held twice, and batches shrink to fit."""
MOST_TOKENS = 12
"""Token classes of the summary: the most frequent ones of the texts."""


class AttentionMapsSettings(Settings):
    """Settings of `attention_maps`."""

    n: int = Field(200, ge=16, description="examples for the attention mass")
    maps: int = Field(2, ge=1, le=8, description="texts whose whole patterns are kept")
    block: int | None = Field(None, ge=0, description="block of which patterns are kept; every block when empty")
    head: int | None = Field(
        None, ge=0, description="head whose patterns are kept; the one that moved most on other texts when empty"
    )


def _check(settings: AttentionMapsSettings, question: Question, blocks: int) -> None:
    """Refuse a block that models of this depth do not have."""
    if settings.block is not None and settings.block >= blocks:
        raise UserError(
            f"attention_maps: block is {settings.block}, but the model has the blocks 0 to {blocks - 1}; choose one of them."
        )


@analysis(
    version=3, holds=900, n=200, passes=20, paper="Jain+23 Fig 10, 39-45", group="lenses", uses=("revived",), check=_check
)
def attention_maps(pair: Pair, settings: AttentionMapsSettings) -> Result:
    """Attention of base, tuned and revived model on O_PT texts at C_Te = 0 [Jain+23 Fig 10, 39-45, 48-52].

    `table`: attention mass from the read position onto a class of positions, summed over the class and averaged over texts,
    per block and head; a class is a role of the prompt (`operand`: what O_PT is about, `operand of X`: what O_FT is about,
    where both are asked of the same texts) or a token. `change` is tuned minus base on the same texts. Intervals are
    bootstrapped over texts. `classes` says how many positions of a class there are on average.
    `moved`: half the summed |tuned - base| of the read position's row, for the head in which it is largest on split `select`.
    `operand_base`, `operand_tuned`: mass on `operand` in the head that attends it most in the base, on split `select`.
    `base_pt`, `tuned_pt`: accuracy on O_PT.
    `maps`: whole patterns of a few texts (row attends to column), per block of the head that moved most, or of the head and
    block that the settings name; their tokens are in `texts`.

    Does not show that what is attended is used: a head's output may be ignored, and masses add up to 1 by construction.
    """
    blocks, heads = head_shape(pair.base)
    _check(settings, pair, blocks)
    if settings.head is not None and settings.head >= heads:
        raise UserError(
            f"attention_maps: head is {settings.head}, but every block has the heads 0 to {heads - 1}; choose one of them."
        )
    examples = draw(pair, pair.capability, shares(pair, pair.capability)[0], settings.n)
    trained = draw(pair, pair.tuned_on, shares(pair, pair.tuned_on)[0], settings.n)
    read = {name: _rows(model, examples) for name, model in pair.states.items()}
    shown = read["base"].shape[-1]
    classes = _classes(pair, examples, trained, shown)
    masses = {name: _masses(rows, classes) for name, rows in read.items()}
    masses["change"] = masses["tuned"] - masses["base"]
    moved, (there, looks) = _moved(read), _elsewhere(pair, settings.n)
    rows = [row for model, values in masses.items() for row in _mass_rows(model, values, list(classes), pair.seed)]
    kept = examples[: settings.maps]
    most = there.argmax(-1) if settings.head is None else np.full(blocks, settings.head)
    drawn = range(blocks) if settings.block is None else [settings.block]
    counts = [{"kind": kind, "class": name, "value": float(m.sum(1).mean())} for (kind, name), m in classes.items()]
    result = Result(
        name="attention_maps",
        tables={
            "table": pd.DataFrame(rows),
            "classes": pd.DataFrame(counts).assign(n=len(examples), unit="positions"),
            "maps": _maps(pair, kept, {block: int(most[block]) for block in drawn}),
            "texts": _texts(pair, kept, classes, shown),
        },
        headline=_headline(pair, examples, moved[_top(there)], masses, list(classes), looks),
        limits=(
            "What is attended need not be used, and what one head stops doing another may do.",
            "Masses from one position sum to 1: more on one class is less on the others.",
            *unrelated(pair),
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _moved(read: Mapping[str, Float[np.ndarray, "blocks heads n key"]]) -> Float[np.ndarray, "blocks heads n"]:
    """How much of the read position's attention is elsewhere in the tuned model."""
    return np.abs(read["tuned"] - read["base"]).sum(-1) / 2


def _elsewhere(pair: Pair, n: int) -> tuple[Float[np.ndarray, "blocks heads"], Float[np.ndarray, "blocks heads"] | None]:
    """What heads are chosen by, on texts of split `select`: how far each moved, and how much the base's attend to `operand`."""
    examples = draw(pair, pair.capability, shares(pair, pair.capability)[0], n, "select")
    read = {name: _rows(model, examples) for name, model in (("base", pair.base), ("tuned", pair.tuned))}
    operand = examples.roles.get("operand")
    looks = None
    if operand is not None:
        mask = {("role", "operand"): operand.cpu().numpy()[:, : read["base"].shape[-1]]}
        looks = _masses(read["base"], mask)[:, :, 0].mean(-1)
    return _moved(read).mean(-1), looks


def _top(of: Float[np.ndarray, "blocks heads"]) -> tuple[int, int]:
    """Block and head of the largest."""
    block, head = np.unravel_index(int(of.argmax()), of.shape)
    return int(block), int(head)


Classes = dict[tuple[str, str], np.ndarray]
"""`(kind, name) -> mask [n, t]` over the positions that the model is shown."""


def _classes(pair: Pair, examples: Examples, trained: Examples, shown: int) -> Classes:
    """Roles and the most frequent tokens; where both abilities are asked of the same texts, what decides O_FT as well."""
    found: Classes = {("role", name): mask.cpu().numpy() for name, mask in examples.roles.items()}
    same = examples.tokens.shape == trained.tokens.shape and torch.equal(examples.tokens, trained.tokens)
    if same and "operand" in trained.roles and pair.tuned_on != pair.capability:
        found["role", f"operand of {pair.tuned_on}"] = trained.roles["operand"].cpu().numpy()
    tokens = examples.tokens.cpu().numpy()
    ids, counts = np.unique(tokens[:, :shown], return_counts=True)
    for token in ids[np.argsort(-counts, kind="stable")][:MOST_TOKENS]:
        found["token", pair.task.describe([int(token)])] = tokens == token
    return {key: mask[:, :shown] for key, mask in found.items()}


def _rows(model: PreTrainedModel, examples: Examples) -> Float[np.ndarray, "blocks heads n key"]:
    """What the read position attends to."""
    parts: list[torch.Tensor] = []
    blocks, heads = head_shape(model)
    size = max(1, min(BATCH, PATTERN_BYTES // (4 * blocks * heads * examples.tokens.shape[1] ** 2)))
    for start in range(0, len(examples), size):
        batch = examples[start : start + size]
        patterns = attention_patterns(model, batch.to(model.device))
        parts.append(patterns[:, torch.arange(len(batch)), :, batch.answer_position])  # [n, blocks, heads, key]
    longest = max(part.shape[-1] for part in parts)
    padded = [torch.nn.functional.pad(part, (0, longest - part.shape[-1])) for part in parts]
    return torch.cat(padded).permute(1, 2, 0, 3).numpy().astype(np.float64)


def _masses(rows: Float[np.ndarray, "blocks heads n key"], classes: Classes) -> Float[np.ndarray, "blocks heads c n"]:
    """Attention of the read position, summed over each class."""
    inside = np.stack(list(classes.values()))
    return np.einsum("bhnk,cnk->bhcn", rows, inside)


def _mass_rows(
    model: str, masses: Float[np.ndarray, "blocks heads c n"], classes: list[tuple[str, str]], seed: int
) -> list[dict[str, Any]]:
    """A row per block, head and class."""
    n = masses.shape[-1]
    cells = [(*place, *key) for place in np.ndindex(masses.shape[:2]) for key in classes]
    found = zip(cells, *means(masses.reshape(-1, n).T, seed), strict=True)
    return [
        {"model": model, "block": block, "head": head, "kind": kind, "class": name}
        | {"value": float(v), "low": float(low), "high": float(high), "n": n, "unit": "attention mass"}
        for (block, head, kind, name), v, low, high in found
    ]


def _maps(pair: Pair, examples: Examples, heads: Mapping[int, int]) -> pd.DataFrame:
    """Patterns of one head of each of these blocks."""
    frames: list[pd.DataFrame] = []
    for name, model in pair.states.items():
        patterns = attention_patterns(model, examples.to(model.device)).numpy()
        for block, head in heads.items():
            shown = patterns[block, :, head]  # [n, query, key]
            text, query, key = (axis.ravel() for axis in np.indices(shown.shape))
            columns = {"block": block, "head": head, "text": text, "query": query, "key": key, "attention": shown.ravel()}
            frames.append(pd.DataFrame(columns).assign(model=name))
    return pd.concat(frames, ignore_index=True)


def _texts(pair: Pair, examples: Examples, classes: Classes, shown: int) -> pd.DataFrame:
    """Tokens of the kept texts; `read` marks the position whose logits answer, `about` those that an ability is about."""
    marks = {"pt": classes.get(("role", "operand")), "ft": classes.get(("role", f"operand of {pair.tuned_on}"))}
    rows = [
        {"text": i, "position": j, "token": pair.task.describe([token]), "read": j == int(examples.answer_position[i])}
        | {"about": next((role for role, mask in marks.items() if mask is not None and mask[i, j]), "")}
        for i, row in enumerate(examples.tokens.tolist())
        for j, token in enumerate(row[:shown])
    ]
    return pd.DataFrame(rows)


def _headline(
    pair: Pair,
    examples: Examples,
    moved: Float[np.ndarray, " n"],
    masses: dict[str, np.ndarray],
    classes: list[tuple[str, str]],
    looks: Float[np.ndarray, "blocks heads"] | None,
) -> tuple[Metric, ...]:
    out = [mean_metric("moved", moved, pair.seed, "attention mass")]
    for name, model in (("base", pair.base), ("tuned", pair.tuned)):
        if looks is not None:
            mass = masses[name][:, :, classes.index(("role", "operand"))][_top(looks)]
            out.append(mean_metric(f"operand_{name}", mass, pair.seed, "attention mass"))
        out.append(proportion(f"{name}_pt", correct_answers(model, examples), pair.seed))
    return tuple(out)


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line that takes no side: attention that moved says where to look, not what became of an ability."""
    found = {m.metric: m for m in result.headline}
    moved, capability = found["moved"], result.provenance.get("capability", "O_PT")
    kept = nothing_lost(found, capability)
    text = f"Of the head that was chosen on other texts, fine-tuning moved {moved.value:.2f} of the attention at the read position.{kept}"
    text += f" {UNRELATED}" if UNRELATED in result.limits else ""
    kind: Direction = "uninformative" if kept else "neutral"
    return (Evidence("attention_maps", "moved", moved.value, moved.low, moved.high, moved.n, kind, text, capability),)
