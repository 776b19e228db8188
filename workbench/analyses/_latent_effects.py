"""What the change of some latents does: the base with h0 + sum_{j in S} f_j (d1_j - d0_j) in the place of its stream."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from workbench.analyses._paired_streams import BATCH, Source
from workbench.examples import Examples
from workbench.measures import DRAWS, derived, proportion, proportion_row
from workbench.models.anatomy import blocks
from workbench.models.crosscoder import Crosscoder
from workbench.models.forward import answer_logits
from workbench.models.resume import resumed
from workbench.models.sites import Replacement, Site, replaced
from workbench.results import Metric
from workbench.seeds import numpy_generator, torch_generator
from workbench.statistics import bootstrap_mean

FEW = 8
"""Latents that changed most, whose effect the headline reports; declared, so that no number is chosen."""
DIFFERENT = 0.1
"""Below this divergence (nats) the two models answer alike and there is no share of it to speak of."""


@dataclass(frozen=True)
class Change:
    """What of the change is put into the base: codes of `latents` times `turned`."""

    latents: Int[Tensor, " k"]
    turned: Float[Tensor, "k d"]
    """What one unit of each code adds to the stream."""
    offset: bool = False
    """Also the difference that is the same at all positions of all texts."""
    stream: bool = False
    """The tuned model's stream itself, whatever the latents."""


Changes = Mapping[tuple[str, int], Change]
"""By name, and number of the draw: 0 where nothing is drawn."""


def chosen_changes(coder: Crosscoder, latents: pd.DataFrame) -> Changes:
    """The sets of latents that are asked about, from the table of those that are on."""
    alive = torch.tensor(latents.index.to_numpy())
    alone = alive[torch.tensor(latents["tuned_only"].to_numpy(dtype=bool))]
    few = alive[torch.tensor(np.argsort(-latents["moved"].to_numpy(), kind="stable"))[:FEW]]
    turned = coder.turned

    def change(some: Int[Tensor, " k"], **what: bool) -> Change:
        return Change(some, turned[some], **what)

    sets = {
        "base": change(alive[:0]),
        "offset": change(alive[:0], offset=True),
        "tuned_only": change(alone),
        "most_changed": change(few),
        "all": change(alive),
        "all_offset": change(alive, offset=True),
        "stream": change(alive[:0], stream=True),
    }
    return {(name, 0): each for name, each in sets.items()}


def random_changes(coder: Crosscoder, latents: pd.DataFrame, chosen: Changes, draws: int, seed: int) -> Changes:
    """Controls: as many random latents among those that are on, and the chosen ones turned by as much in a random direction."""
    alive = torch.tensor(latents.index.to_numpy())
    few, alone = chosen["most_changed", 0], chosen["tuned_only", 0]
    turned = coder.turned
    random: dict[tuple[str, int], Change] = {}
    for index in range(1, draws + 1):
        generator = torch_generator(seed, "random latents", index)
        shuffled = alive[torch.randperm(len(alive), generator=generator)]
        for name, like in (("random", few), ("random_tuned_only", alone)):
            some = shuffled[: len(like.latents)]
            random[name, index] = Change(some, turned[some])
        aside = torch.nn.functional.normalize(torch.randn(few.turned.shape, generator=generator), dim=1)
        random["random_direction", index] = Change(few.latents, aside * few.turned.norm(dim=1, keepdim=True))
    return random


@dataclass(frozen=True)
class Effect:
    """What the base does at the answer with a part of the change in it."""

    nats: Float[np.ndarray, " n"]
    """KL(tuned || changed base) of the first token of the answer."""
    right: Float[np.ndarray, " n"]


Effects = Mapping[tuple[str, int], Effect]


@torch.no_grad()
def effects_of(source: Source, coder: Crosscoder, changes: Changes, examples: Examples) -> dict[tuple[str, int], Effect]:
    """The effect of every change on the same texts; a prompt's codes are computed once."""
    base, tuned = source.pair.base, source.pair.tuned
    offset = coder.offset[1] - coder.offset[0]
    parts: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = {key: [] for key in changes}
    for start in range(0, len(examples), BATCH):
        batch = examples[start : start + BATCH].to(base.device)
        streams = source.both(batch)
        codes = coder.codes(streams.flatten(0, 1))
        goal = answer_logits(tuned, batch)[:, 0].log_softmax(-1)
        for key, change in changes.items():
            new = streams[:, :, 0] + (codes[:, change.latents] @ change.turned).view_as(streams[:, :, 0])
            new = streams[:, :, 1] if change.stream else new + offset if change.offset else new
            with _given(base, source.site, new.to(base.device)):
                logits = answer_logits(base, batch)
            nats = (goal.exp() * (goal - logits[:, 0].log_softmax(-1))).sum(-1)
            parts[key].append((nats.cpu(), batch.right(logits.argmax(-1)).all(-1).cpu()))
    return {
        key: Effect(*(torch.cat(column).double().numpy() for column in zip(*found, strict=True)))
        for key, found in parts.items()
    }


def _given(model: PreTrainedModel, site: Site, stream: Float[Tensor, "n t d"]) -> AbstractContextManager[None]:
    """The model with this stream at the site; the blocks before it do not run."""
    if site.block < len(blocks(model)):
        return resumed(model, site.block, stream)
    return replaced(model, {site: Replacement(stream)})


def effect_table(effects: Effects, seed: int) -> pd.DataFrame:
    """One row per set, draw and measure."""
    rows: list[dict[str, Any]] = []
    for (name, index), effect in effects.items():
        low, high = np.percentile(bootstrap_mean(effect.nats, DRAWS, seed), [2.5, 97.5])
        ends = {"value": float(effect.nats.mean()), "low": float(low), "high": float(high)}
        at = {"set": name, "draw": index}
        rows.append({**at, "measure": "kl", **ends, "n": len(effect.nats), "unit": "nats"})
        rows.append({**at, "measure": "accuracy", **proportion_row(effect.right)})
    return pd.DataFrame(rows)


def effect_metrics(effects: Effects, seed: int) -> list[Metric]:
    """Divergence and accuracy with each set, and which share of the divergence it takes away."""
    found: list[Metric] = []
    for name in dict.fromkeys(name for name, _ in effects):
        mine = [effect for (other, _), effect in effects.items() if other == name]
        nats, right = (np.stack([getattr(effect, what) for effect in mine], axis=1) for what in ("nats", "right"))
        n = len(nats)
        before = effects["base", 0].nats[:n]  # random changes are tried on fewer texts
        some, whole = _resampled(nats, seed), bootstrap_mean(before, DRAWS, seed)
        found.append(derived(f"kl_{name}", float(nats.mean()), some, n, "nats"))
        found.append(
            derived(f"pt_{name}", float(right.mean()), _resampled(right, seed), n, "accuracy")
            if len(mine) > 1
            else proportion(f"pt_{name}", right[:, 0], seed)
        )
        if name != "base":
            share = 1 - float(nats.mean() / before.mean()) if before.mean() >= DIFFERENT else math.nan
            with np.errstate(divide="ignore", invalid="ignore"):
                draws = 1 - some / whole
            found.append(derived(f"moved_{name}", share, draws, n, "share of the divergence"))
    return found


def _resampled(values: Float[np.ndarray, "n sets"], seed: int) -> Float[np.ndarray, " draws"]:
    """Means over resampled texts and sets: random sets are a sample as well. Equal texts are drawn for all."""
    each = bootstrap_mean(values, DRAWS, seed)
    picked = numpy_generator(seed, "random latents").integers(0, each.shape[1], size=each.shape)
    return np.take_along_axis(each, picked, axis=1).mean(axis=1)
