"""Circuits as sets: a model's top edges or nodes by mean |score|, what two such sets share, and which edges a set of nodes keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import hypergeom

from workbench.measures import DRAWS, derived, other_texts
from workbench.models.edges import Edge
from workbench.models.sites import EMBEDDING, Site
from workbench.results import Metric
from workbench.seeds import numpy_generator
from workbench.statistics import resampling

ATTEMPTS = 1000
"""How often a random connected set is begun anew before its size is taken for impossible."""


def nodes_of(edges: Sequence[Edge]) -> list[Site]:
    """Heads and MLPs; the embedding and the logits are the ends of every circuit."""
    return [u for u in dict.fromkeys(u for u, _ in edges) if u != EMBEDDING]


def node_scores(scores: Float[np.ndarray, "n edges"], edges: Sequence[Edge]) -> Float[np.ndarray, "n nodes"]:
    """The estimate for a node: the sum over the edges that leave it."""
    leaves = np.array([[u == node for node in nodes_of(edges)] for u, _ in edges], dtype=np.float64)
    return scores @ leaves


def edges_between(nodes: Bool[np.ndarray, " nodes"], edges: Sequence[Edge]) -> Bool[np.ndarray, " edges"]:
    """The edges that a set of nodes keeps: those between two of them, or one of them and an end."""
    outside = {site for site, inside in zip(nodes_of(edges), nodes, strict=True) if not inside}
    return np.array([u not in outside and v not in outside for u, v in edges])


def top(scores: Float[np.ndarray, "n units"], k: int) -> Bool[np.ndarray, " units"]:
    """The k units of the largest |mean score|."""
    return _ranks(scores, np.full((1, len(scores)), 1 / len(scores)))[0] < k


@dataclass(frozen=True)
class Ranked:
    """Places of all units on two draws of prompts, 0 for the largest: of the draws themselves, then of resampled ones."""

    select: Int[np.ndarray, "draws units"]
    test: Int[np.ndarray, "draws units"]

    @classmethod
    def of(cls, select: Float[np.ndarray, "n units"], test: Float[np.ndarray, "m units"], seed: int) -> Ranked:
        """From scores; models that read the same prompts are resampled alike, the two draws independently."""
        found: list[np.ndarray] = []
        for name, scores in (("select", select), ("test", test)):
            n = len(scores)
            weights = resampling(n, DRAWS, other_texts(seed, f"circuits {name}"))
            found.append(_ranks(scores, np.concatenate([np.full((1, n), 1 / n), weights])))
        return cls(*found)


def _ranks(scores: Float[np.ndarray, "n units"], weights: Float[np.ndarray, "draws n"]) -> Int[np.ndarray, "draws units"]:
    """Places by |weighted mean|; what has no effect at all comes after everything, so that it is in no circuit."""
    size = np.abs(weights @ scores)
    ranks = np.argsort(np.argsort(-size, axis=1, kind="stable"), axis=1, kind="stable")
    return np.where(size > 0, ranks, size.shape[1])


def jaccard(one: Int[np.ndarray, "draws units"], other: Int[np.ndarray, "draws units"], k: int) -> Float[np.ndarray, " draws"]:
    """|A & B| / |A | B| of the first k of both, draw by draw; of two empty sets undefined."""
    a, b = one < k, other < k
    with np.errstate(invalid="ignore"):
        return (a & b).sum(1) / (a | b).sum(1)


def overlap(one: Ranked, other: Ranked, k: int) -> tuple[float, Float[np.ndarray, " draws"]]:
    """Jaccard index of the top k of one model on one draw of prompts and of the other on the other, the mean of both ways.

    So a model with itself is what two equal models would reach. Resampled prompts make rankings noisier than they are and
    the index too low, so its draws are put `around` the value.
    """
    both = (jaccard(one.select, other.test, k) + jaccard(one.test, other.select, k)) / 2
    value, draws = both[0], both[1:]
    return float(value), around(float(value), draws)


def index(name: str, value: float, draws: Float[np.ndarray, " draws"], n: int) -> Metric:
    """A Jaccard index as a headline number; its draws are cut off at 0 and 1."""
    return derived(name, value, np.clip(draws, 0, 1), n, "Jaccard index")


def around(value: float, draws: Float[np.ndarray, " draws"]) -> Float[np.ndarray, " draws"]:
    """Draws shifted so that the value is their median."""
    return draws - np.nanmedian(draws) + value if np.isfinite(value) else np.full_like(draws, np.nan)


def random_jaccard(units: int, k: int, seed: int) -> tuple[float, Float[np.ndarray, " draws"]]:
    """Two random sets of k units: the exact expectation, and draws; what they share is hypergeometric."""
    common = np.arange(k + 1)
    expected = float((hypergeom.pmf(common, units, k, k) * common / (2 * k - common)).sum())
    drawn = numpy_generator(seed, "random circuits", units, k).hypergeometric(k, units - k, k, size=DRAWS)
    return expected, drawn / (2 * k - drawn)


def random_sets(units: int, k: int, count: int, seed: int) -> Bool[np.ndarray, "count units"]:
    """Random sets of k units."""
    return numpy_generator(seed, "random sets", units, k).random((count, units)).argsort(1) < k


def random_connected(edges: Sequence[Edge], k: int, count: int, seed: int) -> Bool[np.ndarray, "count edges"]:
    """Random sets of k edges, each of which lies on a route from the embedding to the logits within its set.

    Grown from one random route by random detours between components that it reaches already; a set that no detour of the size
    that is left completes is begun anew. Not all such sets are equally likely.

    Raises:
        ValueError: no set of this size was found.
    """
    rng = numpy_generator(seed, "random connected sets", len(edges), k)
    arrives, leaves = ({site: [i for i, e in enumerate(edges) if e[end] == site] for site in _ends(edges)} for end in (1, 0))
    found = np.zeros((count, len(edges)), dtype=bool)
    for inside in found:
        inside[_grown(edges, k, arrives, leaves, rng)] = True
    return found


def _ends(edges: Sequence[Edge]) -> dict[Site, None]:
    return dict.fromkeys(site for edge in edges for site in edge)


def _grown(
    edges: Sequence[Edge],
    k: int,
    arrives: Mapping[Site, list[int]],
    leaves: Mapping[Site, list[int]],
    rng: np.random.Generator,
) -> list[int]:
    """Places of k edges; `arrives` and `leaves` are those of the edges at every component."""
    for _ in range(ATTEMPTS):
        inside: set[int] = set()
        reached = {site for site in arrives if not arrives[site] or not leaves[site]}  # the embedding and the logits
        grew = True
        while grew and len(inside) < k:
            grew = False
            for start in rng.permutation(len(edges)).tolist():
                if start in inside:
                    continue
                detour = [start]
                while (site := edges[detour[0]][0]) not in reached:
                    detour.insert(0, arrives[site][rng.integers(len(arrives[site]))])
                while (site := edges[detour[-1]][1]) not in reached:
                    detour.append(leaves[site][rng.integers(len(leaves[site]))])
                if len(inside) + len(detour) <= k:
                    inside.update(detour)
                    reached.update(site for i in detour for site in edges[i])
                    grew = True
        if len(inside) == k:
            return list(inside)
    raise ValueError(f"found no set of {k} edges that are all on routes from the embedding to the logits")
