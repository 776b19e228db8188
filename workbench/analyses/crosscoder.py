"""One sparse dictionary for base and tuned model: which features fine-tuning made, which it turned, and what they do."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from workbench.analyses._latent_effects import FEW, chosen_changes, effect_metrics, effect_table, effects_of, random_changes
from workbench.analyses._latent_labels import Samples, describe_latents
from workbench.analyses._paired_streams import PARTS, HeldOut, Source, prompt_parts
from workbench.analysis import Settings, analysis
from workbench.errors import UserError
from workbench.measures import DRAWS, certain, correct_answers, derived, draw, proportion, shares
from workbench.models.anatomy import blocks
from workbench.models.crosscoder import Crosscoder, Recipe, latent_scaling, train_crosscoder
from workbench.models.sites import Site
from workbench.results import Direction, Evidence, Metric, Result
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair, Question
from workbench.verdict import ROOM

ALONE = 0.9
"""From this relative decoder norm on a latent is a candidate for one of the tuned model alone (base: below 1 - this)."""
NU_ERROR, NU_RECONSTRUCTION = 0.2, 0.5
"""A candidate is one model's alone where both of its ratios lie below these [2504.02922]."""
EXPLAINED = 0.8
"""A dictionary that explains less of the variance does not stand for the streams."""
HERE, BEFORE, POSITION, ASKED = "token here", "token before", "position", "asked for"
"""What is known of a position and of a prompt besides the true labels of its text."""


class CrosscoderSettings(Settings):
    """Settings of `crosscoder`."""

    point: int | None = Field(None, ge=0, description="0: after the embedding, b: after block b; the middle when empty")
    expansion: int = Field(4, ge=1, le=64, description="latents per dimension of the stream")
    k: int = Field(8, ge=1, description="latents that are on at once, on average")
    steps: int = Field(1600, ge=50, description="training steps")
    batch: int = Field(256, ge=16, description="activations per step")
    lr: float = Field(4e-3, gt=0, description="learning rate (Adam)")
    held_out: int = Field(100, ge=16, description="texts per ability on which latents are judged and described")
    n: int | None = Field(None, ge=16, description="test texts for what latents do; the pair's own number when empty")
    random_draws: int = Field(10, ge=1, description="random choices of latents that serve as the control")
    control_examples: int = Field(100, ge=16, description="test texts (at most) for random latents")
    listed: int = Field(12, ge=1, description="latents that are described, those that changed most first")


def _check(settings: CrosscoderSettings, question: Question, blocks: int) -> None:
    """Refuse a point that models of this depth do not have."""
    if settings.point is not None and settings.point > blocks:
        raise UserError(
            f"crosscoder: point is {settings.point}, but the residual points of such a model go from 0 to {blocks}; choose one."
        )


@analysis(
    version=1,
    holds=900,
    paper="Lindsey+24; 2504.02922",
    group="representations",
    passes=120,
    check=_check,
)
def crosscoder(pair: Pair, settings: CrosscoderSettings) -> Result:
    """A BatchTopK crosscoder of base and tuned model at one residual point, with latent scaling and a causal check.

    One dictionary is trained on both models' streams at all prompt positions of O_PT, O_FT and the other families (texts of the
    split `score`, C_Te = 0). A latent has one code and a direction in each model. Judged on texts of the split `select`:

    `fit`: share of the variance explained, for each model and for the difference of their streams. `latents`: relative norm
    ||d1|| / (||d0|| + ||d1||), cosine(d0, d1), the ratios nu_eps and nu_r of latent scaling, and `moved`, the latent's part of
    sum_j f_j^2 ||d1_j - d0_j||^2 on O_PT prompts. A latent is the tuned model's alone (`tuned_only`) where its relative norm
    exceeds `ALONE`, nu_eps is below `NU_ERROR` and nu_r below `NU_RECONSTRUCTION`: without the ratios, latents that the dictionary
    merely writes weakly in the base count as new. `base_only` is the same with the models exchanged.
    Labels: the part of the prompt where a latent is on most, and of all labels (token here and before, position, what the task
    knows of tokens, ability asked, the true labels of the text) the one that tells most about it beyond the part; named only
    where it beats shuffled labels.

    `table`, on test texts asked for O_PT: the base with h0 + sum_{j in S} f_j (d1_j - d0_j) in the place of its stream; divergence
    KL(tuned || changed base) at the answer in nats, and accuracy on O_PT. S: `tuned_only`, the `FEW` latents that `moved` most
    (`most_changed`), `all`. Beside them: nothing (`base`), as many random latents that are on (`random`, `random_tuned_only`), the
    `FEW` turned by as much in random directions (`random_direction`), the difference of the means that no latent has (`offset`;
    with all latents, `all_offset`), and the tuned model's own stream (`stream`), which is all that any dictionary could do.
    `moved_S` = 1 - KL_S / KL_base.

    Does not show whether an ability survived: it says in which features the models differ at one point.
    """
    depth = len(blocks(pair.base))
    point = max(1, depth // 2) if settings.point is None else settings.point
    _check(settings.model_copy(update={"point": point}), pair, depth)
    source = Source(pair, Site("stream", point), settings.batch, settings.steps)
    recipe = Recipe(settings.expansion * source.width, settings.k, settings.steps, settings.lr)
    coder = train_crosscoder(source.batch, recipe, pair.seed)

    held = [source.held_out(capability, settings.held_out) for capability in source.asked]
    latents = _latents(coder, held)
    listed = latents.sort_values("moved", ascending=False, kind="stable").index[: settings.listed].tolist()
    latents = latents.join(_described(pair, coder, held, listed))
    examples = draw(pair, pair.capability, shares(pair, pair.capability)[0], settings.n or pair.n)
    chosen = chosen_changes(coder, latents)
    random = random_changes(coder, latents, chosen, settings.random_draws, pair.seed)
    effects = effects_of(source, coder, chosen, examples)
    effects |= effects_of(source, coder, random, examples[: settings.control_examples])
    fit, explained = _fit(coder, held, pair.seed)
    result = Result(
        name="crosscoder",
        tables={"table": effect_table(effects, pair.seed), "fit": fit, "latents": latents.reset_index(names="latent")},
        headline=(
            *explained,
            *_counts(latents, recipe.latents),
            *effect_metrics(effects, pair.seed),
            proportion("pt_tuned", correct_answers(pair.tuned, examples), pair.seed),
            certain("point", float(point), len(examples), "block"),
        ),
        limits=(
            "Another seed gives another dictionary: single latents are not facts of the models, shares and effects are less so.",
            f"A change at point {point} that few positions carry counts little in the training; `explained_difference` says how "
            "much of it the dictionary has.",
            "A feature of one model that always comes with a shared one may be part of that latent: none alone is not nothing new.",
            "A latent that is one model's alone was not in the other's stream on these prompts; it may be on others.",
        ),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _latents(coder: Crosscoder, held: Sequence[HeldOut]) -> pd.DataFrame:
    """One row per latent that is ever on, by its number."""
    streams = [part.streams for part in held]
    on, moved = (torch.zeros(len(coder.decoder)) for _ in range(2))
    for part in held:
        codes = coder.codes(part.streams)
        on += (codes > 0).sum(0)
        if part is held[0]:  # O_PT prompts
            moved = codes.pow(2).sum(0) * coder.turned.pow(2).sum(1)
    tuned, base = latent_scaling(coder, streams, model=1), latent_scaling(coder, streams, model=0)
    columns = {
        "on": on / sum(map(len, streams)),
        "relative_norm": coder.relative_norm,
        "cosine": coder.cosine,
        "nu_error": tuned.error,
        "nu_reconstruction": tuned.reconstruction,
        "moved": moved / moved.sum().clamp_min(1e-30),
        "tuned_only": (coder.relative_norm > ALONE) & (tuned.error < NU_ERROR) & (tuned.reconstruction < NU_RECONSTRUCTION),
        "base_only": (coder.relative_norm < 1 - ALONE) & (base.error < NU_ERROR) & (base.reconstruction < NU_RECONSTRUCTION),
    }
    whole = pd.DataFrame({name: value.numpy() for name, value in columns.items()})
    return whole.iloc[np.flatnonzero((on > 0).numpy())]


def _counts(latents: pd.DataFrame, size: int) -> list[Metric]:
    """How many latents there are of which kind."""
    norm = latents["relative_norm"].to_numpy()
    kinds = {
        "live": norm >= 0,
        "by_relative_norm": norm > ALONE,
        "tuned_only": latents["tuned_only"].to_numpy(),
        "base_by_relative_norm": norm < 1 - ALONE,
        "base_only": latents["base_only"].to_numpy(),
    }
    found = [certain(name, float(np.sum(which)), size, "latents") for name, which in kinds.items()]
    found.append(certain("dead", float(size - len(latents)), size, "latents"))
    return [*found, certain("cosine", float(np.median(latents["cosine"])), len(latents), "cosine")]


def _described(pair: Pair, coder: Crosscoder, held: Sequence[HeldOut], listed: Sequence[int]) -> pd.DataFrame:
    """Where the listed latents are on, and what else tells when."""
    common = set.intersection(*(set(part.examples.labels) for part in held))
    names = [name for name in held[0].examples.labels if name in common]
    of_prompt = {name: torch.cat([part.examples.labels[name].cpu() for part in held]).numpy() for name in names}
    of_prompt[ASKED] = np.repeat(np.arange(len(held)), [len(part.examples) for part in held])
    before = np.cumsum([0, *(len(part.examples) for part in held)])
    parts = [prompt_parts(part.examples)[part.prompt, part.position] for part in held]
    samples = Samples(
        place=torch.cat(parts).numpy(),
        prompt=np.concatenate([part.prompt.numpy() + start for part, start in zip(held, before[:-1], strict=True)]),
        of_position=_token_labels(held),
        of_prompt={name: values for name, values in of_prompt.items() if len(np.unique(values)) > 1},
    )
    codes = torch.cat([coder.codes(part.streams)[:, list(listed)] for part in held]).numpy()
    asked = list(dict.fromkeys((pair.capability, pair.tuned_on, *pair.others)))
    words: dict[str, Callable[[int], str]] = dict.fromkeys((HERE, BEFORE), lambda value: pair.task.describe([value]))
    words[ASKED] = lambda value: asked[value]
    known = set.intersection(*(set(part.examples.token_labels) for part in held))
    words |= {name: lambda value, name=name: pair.label_name(name, value) for name in known}
    rows = [
        {
            "place": PARTS[found.place],
            "at_place": found.at_place,
            "label": found.label,
            "label_value": words.get(found.label, str)(found.label_value) if found.label else "",
            "told": found.told,
            "null": found.null,
        }
        for found in describe_latents(codes, samples, pair.seed)
    ]
    return pd.DataFrame(rows, index=pd.Index(listed))


def _token_labels(held: Sequence[HeldOut]) -> dict[str, Int[np.ndarray, " s"]]:
    """The token, the one before (of the first: itself), the position, and what the task knows of every token."""
    common = set.intersection(*(set(part.examples.token_labels) for part in held))
    found: dict[str, list[Tensor]] = {name: [] for name in (HERE, BEFORE, POSITION, *sorted(common))}
    for part in held:
        at = part.prompt, part.position
        tokens = part.examples.tokens.cpu()
        found[HERE].append(tokens[at])
        found[BEFORE].append(tokens[part.prompt, (part.position - 1).clamp(min=0)])
        found[POSITION].append(part.position)
        for name in common:
            found[name].append(part.examples.token_labels[name].cpu()[at])
    return {name: torch.cat(values).numpy() for name, values in found.items()}


def _fit(coder: Crosscoder, held: Sequence[HeldOut], seed: int) -> tuple[pd.DataFrame, list[Metric]]:
    """How much of the variance of either stream, and of their difference, the dictionary explains on held-out prompts."""

    def three(x: Tensor) -> Float[Tensor, "s 3 d"]:
        return torch.cat([x, x[:, 1:] - x[:, :1]], dim=1)

    centre = sum(three(part.streams).sum(0) for part in held) / sum(len(part.streams) for part in held)
    sums: list[np.ndarray] = []
    for part in held:
        whole, back = three(part.streams), three(coder.reconstruct(part.streams))
        both = torch.stack([(whole - back).pow(2).sum(-1), (whole - centre).pow(2).sum(-1)], dim=-1).double()
        sums.append(torch.zeros(len(part.examples), 3, 2, dtype=both.dtype).index_add(0, part.prompt, both).numpy())
    left, spread = np.moveaxis(np.concatenate(sums), -1, 0)
    metrics: list[Metric] = []
    for column, name in enumerate(("base", "tuned", "difference")):
        a, b = left[:, column], spread[:, column]
        share = 1 - float(a.sum() / b.sum()) if b.sum() > 0 else math.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = 1 - bootstrap_mean(a, DRAWS, seed) / bootstrap_mean(b, DRAWS, seed)
        metrics.append(derived(f"explained_{name}", share, draws, len(a), "share of the variance"))
    rows = [{"model": m.metric.removeprefix("explained_"), "value": m.value, "low": m.low, "high": m.high} for m in metrics]
    return pd.DataFrame(rows).assign(n=len(left), unit="share of the variance"), metrics


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line that takes no side; uninformative where nothing was lost or the dictionary or the point has no hold on it."""
    found = {m.metric: m for m in result.headline}
    few, random, aside, stream = (found[f"moved_{name}"] for name in ("most_changed", "random", "random_direction", "stream"))
    base, tuned = found["pt_base"], found["pt_tuned"]
    capability = result.provenance.get("capability", "O_PT")
    told = (
        f"Of {found['live'].value:.0f} features of a joint dictionary, {found['tuned_only'].value:g} are the tuned model's alone "
        f"(by decoder norms {found['by_relative_norm'].value:g})"
    )
    direction: Direction = "uninformative"
    if base.value - tuned.value < ROOM:
        text = f"{told}; the tuned model is within {ROOM} of the base on {capability}: there is no loss to place in features."
    elif found["explained_tuned"].value < EXPLAINED:
        text = f"{told}, but the dictionary explains {found['explained_tuned'].value:.0%} of the variance and does not stand for it."
    elif not math.isfinite(stream.value):
        seeds = " in some seed" if stream.seeds > 1 else ""
        text = f"{told}; base and tuned model answer {capability} alike{seeds}, so that there is no way between them to go."
    elif found["moved_all"].value < ROOM <= stream.value:
        text = (
            f"{told}, but with the change of all of them the base is {found['moved_all'].value:.0%} of the way to the tuned model's "
            f"answers, with the tuned model's stream {stream.value:.0%}: the dictionary misses what matters."
        )
    elif stream.value < ROOM:
        text = (
            f"{told}; put in place of the base's, the tuned model's stream at this point does not give the tuned model's answers: "
            "the change comes later, or the base cannot read such a stream."
        )
    else:
        direction = "neutral"
        text = (
            f"{told}; the change of the {FEW} that changed most takes the base {few.value:.0%} of the way to the tuned model's "
            f"answers ({FEW} random ones {random.value:.0%}, the {FEW} turned elsewhere {aside.value:.0%}, all "
            f"{found['moved_all'].value:.0%}) and {capability} from {base.value:.2f} to "
            f"{found['pt_most_changed'].value:.2f}."
        )
    return (Evidence(result.name, few.metric, few.value, few.low, few.high, few.n, direction, text, capability, few.bound),)
