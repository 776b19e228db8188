"""Circuits before and after: which edges and nodes carry the answer in each model, what they share, and whether they suffice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from transformers import PreTrainedModel

from workbench.analyses._circuits import (
    Ranked,
    around,
    edges_between,
    index,
    node_scores,
    nodes_of,
    overlap,
    random_connected,
    random_jaccard,
    random_sets,
    top,
)
from workbench.analyses._prompts import FLOOR, Effects, Prompts, alike, draw_prompts, effect_columns, other_prompts, placed
from workbench.analyses.path_patching import coordinates_of, paths_of
from workbench.analysis import Settings, analysis
from workbench.measures import DRAWS, certain, correct_answers, derived, draw, mean_metric, proportion, shares
from workbench.models.circuits import run_circuits
from workbench.models.edges import Edge, edge_scores
from workbench.results import Evidence, Metric, Result
from workbench.statistics import bootstrap_mean
from workbench.subjects import Pair
from workbench.verdict import ROOM

TOP = {"edges": 0.2, "nodes": 0.3}
"""Shares of all edges and nodes at which the headline is read, declared beforehand; of the quickstart's models 11 and 3."""
COMPARED = (("base", "tuned"), ("base", "revived"), ("tuned", "revived"))
OTHER = "other ability"
RANDOM, CONNECTED = "random", "random, connected"
"""Random sets of edges, and such whose edges all lie on routes from the embedding to the logits within the set."""


class CircuitsSettings(Settings):
    """Settings of `circuits`."""

    capability: Literal["pt", "ft"] = Field("pt", description="whose prompts: the ability that may be lost, or the trained one")
    n: int = Field(100, ge=16, description="prompts that choose circuits, and as many others that run them")
    steps: int = Field(5, ge=1, le=64, description="embeddings between the two prompts at which slopes are taken; 1: plain EAP")
    sizes: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.1, 0.2, 0.3, 0.5, 0.7),
        min_length=1,
        max_length=12,
        description="shares of all edges, and of all nodes, that make a circuit",
    )
    random_draws: int = Field(10, ge=2, description="random circuits of each size, the control of faithfulness")
    control_examples: int = Field(64, ge=16, description="prompts (at most) that random circuits are run on")


@dataclass(frozen=True)
class Scored:
    """A model's edges on two draws of prompts, example by example, in logits."""

    select: Float[np.ndarray, "n edges"]
    test: Float[np.ndarray, "n edges"]

    def of(self, kind: str, edges: Sequence[Edge]) -> Scored:
        """Edges, or nodes."""
        return self if kind == "edges" else Scored(*(node_scores(scores, edges) for scores in (self.select, self.test)))


@analysis(
    version=2,
    holds=800,
    n=100,
    paper="2502.11812; EAP 2310.10348; EAP-IG 2403.17806",
    group="patching",
    uses=("revived",),
    passes=1500,
)
def circuits(pair: Pair, settings: CircuitsSettings) -> Result:
    """Top edges and nodes by attribution in base, tuned and revived model, what they share, and how faithful they are [2502.11812].

    An edge runs from what a component writes (the embedding, a head, an MLP) to what another reads (a head by query, key and
    value together, an MLP, the logits). Its score is (what is written on the counterfactual prompt - on the prompt) . d r / d
    (what is read), summed over positions: r is the logit of the counterfactual's answer less that of the right one, its
    slope the mean over `steps` embeddings between the two prompts [2310.10348; 2403.17806]. A node (head or MLP) scores the
    sum of the edges that leave it. A circuit is the share `size` of all with the largest |mean score|; a circuit of nodes
    keeps the edges between them, the embedding and the logits.

    `table`: Jaccard index |A & B| / |A | B| of two circuits, each found on prompts of its own (splits `select` and `test`, the mean
    of both ways): a model with itself is the ceiling that two equal models would reach. Floors: the base's circuit of another
    ability, and random sets of the same size (exact expectation; their interval is the range of 95 % of such sets). Intervals
    of others: bootstrap over prompts, around the value.

    `faithfulness`: circuits found on `select`, run on `test`: all other edges carry what they carry on the counterfactual. How far r
    then is from the counterfactual's, as a share of the way to the prompt's: all edges give 1, none gives 0; above 1, what is
    left out works against it. `circuit`: `own`, `base` (the base's edges in this model's weights), or as many random ones:
    `random`, of edges mostly no route from the embedding to the logits, so that they can hardly keep anything, and `random,
    connected`, edges that all lie on such routes within the set; nodes are always connected. `scores`: means on `test`.

    Headline numbers at the sizes `TOP`, as are the edges listed in `circuit`: `edges`, `nodes`: the index of base and tuned
    model; `_ceiling`: the mean of both with themselves; `_changed`: ceiling less index; `_other`, `_random`: floors;
    `_revived*`: of base and revived model. `faithful_*`, of random edges the connected ones. `told_apart_*`: r between the two
    prompts, in logits; all else is undefined of a model in which that is below `FLOOR`. `base_pt`, `tuned_pt`: accuracy on O_PT.
    """
    base = alike(pair)
    edges = paths_of(base, "all")
    select, test = (draw_prompts(pair, settings.capability, settings.n, split) for split in ("select", "test"))
    scored = {name: _scored(model, (select, test), edges, settings.steps) for name, model in pair.states.items()}
    gaps = {name: test.gap(model) for name, model in pair.states.items()}
    unclear = {name for name, gap in gaps.items() if not _effects(gap, gap[:1], pair.seed).told_apart}
    other = other_prompts(pair, settings.n)
    if other:
        scored[OTHER] = _scored(base, other, edges, settings.steps)
        gap = other[1].gap(base)
        unclear |= set() if _effects(gap, gap[:1], pair.seed).told_apart else {OTHER}
    compared = [each for kind in TOP for each in _compare(kind, scored, edges, unclear, settings, pair.seed)]
    told, faithful = _faithfulness(pair, test, scored, gaps, edges, settings)
    headline = _numbers(compared, settings.n) + faithful
    headline += [
        mean_metric(f"told_apart_{name}", after - before, pair.seed, "logits") for name, (before, after) in gaps.items()
    ]
    examples = draw(pair, pair.capability, shares(pair, pair.capability)[0], settings.n)
    for name, model in (("base", base), ("tuned", pair.tuned)):
        headline.append(proportion(f"{name}_pt", correct_answers(model, examples), pair.seed))
    result = Result(
        name="circuits",
        tables={
            "table": pd.DataFrame([each.row(settings.n) for each in compared]),
            "faithfulness": pd.DataFrame(told),
            "scores": _listed(scored, edges, pair.seed),
            "circuit": _circuit(scored, edges, unclear),
        },
        headline=tuple(headline),
        limits=(
            "Scores are of first order: what saturates, or acts only together with another, is missed.",
            f"The headline is read at {TOP['edges']:.0%} of the edges and {TOP['nodes']:.0%} of the nodes, declared beforehand.",
            "The same edges may compute something else: a shared circuit is no shared algorithm.",
            "Models that were not trained from one another need not use the same head for the same thing.",
            f"Below {FLOOR:g} logit between the two prompts a model has no circuit: it does not tell them apart.",
        ),
        settings=settings.model_dump(mode="json"),
        provenance={"capability": pair.capability, "tuned_on": pair.tuned_on},
    )
    return replace(result, evidence=evidence(result))


def _scored(model: PreTrainedModel, drawn: Sequence[Prompts], edges: Sequence[Edge], steps: int) -> Scored:
    return Scored(*(edge_scores(model, p.examples, edges, p.read, steps).double().numpy() for p in drawn))


def _effects(gap: Float[np.ndarray, "two n"], values: Float[np.ndarray, "circuits n"], seed: int) -> Effects:
    """How far from the counterfactual's read-out circuits are, against how far the prompt's is; of the first prompts."""
    before, after = gap[:, : values.shape[1]]
    return Effects(after - values, after - before, seed)


@dataclass(frozen=True)
class Compared:
    """The Jaccard index of two circuits of one size."""

    kind: str
    one: str
    other: str
    size: float
    k: int
    value: float
    draws: Float[np.ndarray, " draws"]

    def row(self, n: int) -> dict[str, Any]:
        """One row of the table."""
        at = {name: getattr(self, name) for name in ("kind", "one", "other", "size", "k")}
        number = index("", self.value, self.draws, n)
        return {**at, "value": self.value, "low": number.low, "high": number.high, "n": n, "unit": number.unit}


def _sizes(kind: str, units: int, settings: CircuitsSettings) -> dict[int, float]:
    """Numbers of units and the shares that they stand for; the headline's own where two come to the same number."""
    return {max(1, round(size * units)): size for size in (*sorted(set(settings.sizes) - {TOP[kind]}), TOP[kind])}


def _compare(
    kind: str, scored: Mapping[str, Scored], edges: Sequence[Edge], unclear: set[str], settings: CircuitsSettings, seed: int
) -> list[Compared]:
    """All pairs of models, each with itself, the base with itself on another ability, and random sets."""
    places = {name: Ranked.of(own.select, own.test, seed) for name, own in ((n, s.of(kind, edges)) for n, s in scored.items())}
    couples = [*COMPARED, *((name, name) for name in scored if name != OTHER), ("base", OTHER)]
    units = len(edges if kind == "edges" else nodes_of(edges))
    found: list[Compared] = []
    for k, size in sorted(_sizes(kind, units, settings).items()):
        for one, other in couples:
            if one in places and other in places:
                value, draws = overlap(places[one], places[other], k)
                if unclear & {one, other}:
                    value, draws = math.nan, np.full(DRAWS, np.nan)
                found.append(Compared(kind, one, other, size, k, value, draws))
        found.append(Compared(kind, "random", "random", size, k, *random_jaccard(units, k, seed)))
    return found


def _numbers(compared: Sequence[Compared], n: int) -> list[Metric]:
    """The headline at the declared sizes: index, ceiling, what is missing to it, and floors."""
    out: list[Metric] = []
    for kind, size in TOP.items():
        by = {(c.one, c.other): c for c in compared if (c.kind, c.size) == (kind, size)}
        for name, after in ((kind, "tuned"), (f"{kind}_revived", "revived")):
            if ("base", after) in by:
                both, a, b = by["base", after], by["base", "base"], by[after, after]
                value = (a.value + b.value) / 2
                draws = around(value, (a.draws + b.draws) / 2)
                change = value - both.value
                out += [index(name, both.value, both.draws, n), index(f"{name}_ceiling", value, draws, n)]
                out.append(derived(f"{name}_changed", change, around(change, draws - both.draws), n, "Jaccard index"))
        if ("base", OTHER) in by:
            out.append(index(f"{kind}_other", by["base", OTHER].value, by["base", OTHER].draws, n))
        out.append(certain(f"{kind}_random", by["random", "random"].value, n, "Jaccard index"))
    return out


def _faithfulness(
    pair: Pair,
    prompts: Prompts,
    scored: Mapping[str, Scored],
    gaps: Mapping[str, Float[np.ndarray, "two n"]],
    edges: Sequence[Edge],
    settings: CircuitsSettings,
) -> tuple[list[dict[str, Any]], list[Metric]]:
    """Rows and headline numbers: what circuits keep of the read-out of each model, and what random ones do."""
    few = min(settings.control_examples, settings.n)
    sizes: dict[str, list[tuple[int, float]]] = {}
    random: dict[tuple[str, str], Bool[np.ndarray, "sets edges"]] = {}
    for kind in TOP:
        units = len(edges if kind == "edges" else nodes_of(edges))
        sizes[kind] = sorted(_sizes(kind, units, settings).items())
        drawn = [random_sets(units, k, settings.random_draws, pair.seed) for k, _ in sizes[kind]]
        random[kind, RANDOM] = _edges_of(kind, np.concatenate(drawn), edges)
    drawn = [random_connected(edges, k, settings.random_draws, pair.seed) for k, _ in sizes["edges"]]
    random["edges", CONNECTED] = np.concatenate(drawn)
    rows: list[dict[str, Any]] = []
    headline: list[Metric] = []
    for name, model in pair.states.items():
        chosen: dict[tuple[str, str], Bool[np.ndarray, "sets edges"]] = {}
        for kind in TOP:
            for circuit, source in (("own", name), *((("base", "base"),) if name != "base" else ())):
                scores = scored[source].of(kind, edges).select
                chosen[kind, circuit] = _edges_of(kind, np.stack([top(scores, k) for k, _ in sizes[kind]]), edges)
        values = _run(model, prompts, edges, chosen, settings.n)
        control = _run(model, prompts, edges, random, few)
        values |= {(kind, which): v.reshape(len(sizes[kind]), -1, few).mean(1) for (kind, which), v in control.items()}
        for (kind, circuit), read in values.items():
            effects = _effects(gaps[name], read, pair.seed)
            value, drawn = effects.shares()
            at = {"kind": kind, "model": name, "circuit": circuit}
            columns = effect_columns(value, drawn, len(effects.gap))
            places = pd.DataFrame([at | {"size": size, "k": k} for k, size in sizes[kind]])
            rows += places.assign(**columns).to_dict("records")
            i = [size for _, size in sizes[kind]].index(TOP[kind])
            if (kind, circuit) == ("edges", RANDOM):
                continue  # the headline's control is one that could be otherwise
            label = f"faithful_{kind}_{name}" + {"own": "", CONNECTED: f"_{RANDOM}"}.get(circuit, f"_{circuit}")
            headline.append(derived(label, float(value[i]), drawn[:, i], len(effects.gap), "share of the effect"))
    return rows, headline


def _edges_of(kind: str, sets: Bool[np.ndarray, "sets units"], edges: Sequence[Edge]) -> Bool[np.ndarray, "sets edges"]:
    return sets if kind == "edges" else np.stack([edges_between(nodes, edges) for nodes in sets])


def _run(
    model: PreTrainedModel,
    prompts: Prompts,
    edges: Sequence[Edge],
    circuits: Mapping[tuple[str, str], Bool[np.ndarray, "sets edges"]],
    n: int,
) -> dict[tuple[str, str], Float[np.ndarray, "sets n"]]:
    """What is read when circuits run alone on the first n prompts."""
    sets = torch.from_numpy(np.concatenate(list(circuits.values())))
    found = run_circuits(model, prompts.examples[torch.arange(n)], edges, sets, prompts.read).double().numpy()
    ends = np.cumsum([len(each) for each in circuits.values()])[:-1]
    return dict(zip(circuits, np.split(found, ends), strict=True))


def _listed(scored: Mapping[str, Scored], edges: Sequence[Edge], seed: int) -> pd.DataFrame:
    """Mean scores of all edges and nodes, model by model."""
    frames: list[pd.DataFrame] = []
    for kind in TOP:
        named = pd.DataFrame([coordinates_of(*edge) for edge in edges])
        if kind == "nodes":
            named = pd.DataFrame([coordinates_of(node, node) | {"receiver": ""} for node in nodes_of(edges)])
        for name, own in scored.items():
            scores = own.of(kind, edges).test
            drawn = np.percentile(bootstrap_mean(scores, DRAWS, seed), [2.5, 97.5], axis=0)
            numbers = {"value": scores.mean(0), "low": drawn[0], "high": drawn[1], "n": len(scores), "unit": "logits"}
            frames.append(named.assign(kind=kind, model=name, **numbers))
    return pd.concat(frames, ignore_index=True)


def _circuit(scored: Mapping[str, Scored], edges: Sequence[Edge], unclear: set[str]) -> pd.DataFrame:
    """The edges that are run as base's and tuned model's circuit at the headline's size, strongest first, and what became of them."""
    k = max(1, round(TOP["edges"] * len(edges)))
    means = {name: scored[name].select.mean(0) for name in ("base", "tuned")}
    inside = {name: top(scored[name].select, k) & (name not in unclear) for name in means}
    here = np.flatnonzero(inside["base"] | inside["tuned"])
    here = here[np.argsort(-np.maximum(*(np.abs(m)[here] for m in means.values())), kind="stable")]
    change = np.select([inside["base"] & inside["tuned"], inside["base"]], ["stayed", "went"], "came")
    named = pd.DataFrame([coordinates_of(*edges[i]) for i in here], columns=["sender", "receiver"])
    return named.assign(change=change[here], **{f"{name}_logits": mean[here] for name, mean in means.items()})


def evidence(result: Result) -> tuple[Evidence, ...]:
    """One line that takes no side: a circuit that changed may compute the same, one that stayed something else."""
    (line,) = placed(result, "edges", _told)
    found = {m.metric: m for m in result.headline}
    if found["edges_ceiling"].value - found["edges_random"].value < ROOM:
        short = " Circuits of one model agree hardly better than random ones, so nothing could be shown."
        line = replace(line, direction="uninformative", text=line.text + short)
    return (line,)


def _told(found: Mapping[str, Metric], capability: str) -> str:
    own, foreign, random = (found[f"faithful_edges_{name}"].value for name in ("tuned", "tuned_base", "tuned_random"))
    other = f"the base's own for another ability {found['edges_other'].value:.2f}, " if "edges_other" in found else ""
    back = (
        f" In the revived model the base's keep {found[key].value:.2f}."
        if (key := "faithful_edges_revived_base") in found
        else ""
    )
    return (
        f"Of the strongest {TOP['edges']:.0%} of the edges that answer {capability}, base and tuned model share "
        f"{found['edges'].value:.2f} (Jaccard; one model on other prompts {found['edges_ceiling'].value:.2f}, {other}random edges "
        f"{found['edges_random'].value:.2f}); run alone in the tuned model, its own edges keep {own:.2f}, the base's {foreign:.2f} and "
        f"random routes of as many edges {random:.2f} of the difference that it makes between a prompt and its counterfactual.{back}"
    )
