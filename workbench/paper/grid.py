"""A study of many pairs as tables: every pair with its place on the paper's axes, and results stacked over pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench.errors import UserError
from workbench.results import Metric, Result
from workbench.statistics import Interval, Pool, hierarchical
from workbench.studies.handle import Study
from workbench.verdict import REVIVED_AT

Scale = Literal["cpu", "paper"]
RATES = ("large", "medium", "small", "very small")
"""Fine-tuning rates of a study, from the largest on [Jain+23 §5]."""
ONLY = "the only"
"""Name of the rate of a study that has no other."""
PRIORS: Mapping[Scale, Mapping[str | float, float]] = {
    "cpu": {"low": 0.99, "medium": 0.9, "high": 0.5},
    "paper": {"low": 0.999, "medium": 0.9, "high": 0.5},
}
"""P_T(a) of the pretraining operand, named by the prior of the operand that is fine-tuned on."""
AXES = ("pair", "rate", "rate_name", "prior", "share", "pretrain_steps", "length", "pretraining_share", "protocol")


@dataclass(frozen=True)
class Contrasted:
    """A number over pairs and seeds, perhaps compared with that of other pairs."""

    interval: Interval
    n: int
    """Examples behind one value."""
    by_seed: tuple[float, ...]
    left_out: tuple[str, ...] = ()
    """Why seeds are left out, a sentence each."""


@dataclass(frozen=True)
class Grid:
    """A study whose pairs differ along the axes of the paper."""

    study: Study
    scale: Scale = "cpu"
    """Whether its models, texts and lengths of training are the paper's own."""
    read_results: dict[tuple[str, str, int | None], Result | None] = field(default_factory=dict[Any, Any], repr=False)
    """Results that were read already, of single seeds or (None) pooled: claims and views read the same ones over and over."""

    @cached_property
    def axes(self) -> pd.DataFrame:
        """One row per pair with the columns `AXES`; NaN where an axis does not apply.

        `prior` is the share of pretraining prompts of its family that ask for the ability that may be lost, `share` C_Tr,
        `rate` that of fine-tuning, `pretraining_share` that of pretraining data mixed in, `length` of pretraining is
        `standard` where most pairs of the same prior have it, the longest of several, else `shorter` or `longer`.
        """
        spec = self.study.spec
        plans = {plan.name: plan for plan in self.study.plan.pairs}
        rates = sorted({tuned.lr for tuned in spec.finetune.values()}, reverse=True)
        rows: list[dict[str, Any]] = []
        for name, tuned in spec.finetune.items():
            base = spec.pretrain[spec.reference(name)]
            prior = base.protocol_settings.get("operand_prior") or {}
            operand = plans[name].capability.rpartition("_")[2]
            place = rates.index(tuned.lr)
            rows.append(
                {
                    "pair": name,
                    "rate": tuned.lr,
                    "rate_name": ONLY if len(rates) == 1 else RATES[place] if place < len(RATES) else f"{tuned.lr:g}",
                    "prior": float(prior.get(operand, math.nan)),
                    "share": float(tuned.correlation.share) if tuned.correlation else math.nan,
                    "pretrain_steps": base.steps,
                    "pretraining_share": float(tuned.protocol_settings.get("pretraining_share", 0.0)),
                    "protocol": tuned.protocol,
                }
            )
        table = pd.DataFrame(rows, columns=list(AXES))
        standard = table.groupby("prior", dropna=False)["pretrain_steps"].transform(lambda steps: steps.mode().iloc[-1])
        table["length"] = np.select(
            [table["pretrain_steps"] < standard, table["pretrain_steps"] > standard], ["shorter", "longer"], "standard"
        )
        return table

    def rates(self, pairs: Iterable[str]) -> str:
        """The fine-tuning rates of these pairs in words: names are ranks within a study, numbers are not."""
        wanted = set(pairs)
        known = {row["rate"]: row["rate_name"] for row in self.axes.to_dict("records") if row["pair"] in wanted}
        said = [f"{rate:g}" if known[rate] == ONLY else f"{known[rate]} {rate:g}" for rate in sorted(known, reverse=True)]
        return f"fine-tuning rate{'' if len(said) == 1 else 's'} {', '.join(said)}"

    def where(self, **equal: Any) -> list[str]:
        """Names of the pairs whose axes have these values; any of a sequence of values; priors may be called as in `PRIORS`."""
        rows = np.ones(len(self.axes), dtype=bool)
        for axis, wanted in equal.items():
            values = wanted if isinstance(wanted, list | tuple) else [wanted]
            if axis == "prior":
                values = [PRIORS[self.scale].get(value, value) for value in values]
            rows &= self.axes[axis].isin(values).to_numpy()
        return [str(name) for name in self.axes["pair"][rows]]

    def stacked(self, analysis: str, table: str = "table", pairs: Iterable[str] | None = None) -> pd.DataFrame:
        """A table of an analysis pooled over seeds, of all pairs, with the pairs' axes as columns (`share` is called `c_tr`).

        Pairs whose analysis is not done are left out.
        """
        parts: list[pd.DataFrame] = []
        wanted = set(self.axes["pair"] if pairs is None else pairs)
        for row in self.axes.to_dict("records"):
            result = self._result(row["pair"], analysis) if row["pair"] in wanted else None
            if result is not None and table in result.tables:
                place = {("c_tr" if axis == "share" else axis): value for axis, value in row.items()}
                parts.append(result.tables[table].assign(**place))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def seeds(self, analysis: str, pairs: Iterable[str] | None = None) -> list[int]:
        """Seeds under which the analysis is done for at least one of the pairs, all pairs when None."""
        names = list(self.axes["pair"] if pairs is None else pairs)
        return sorted(seed for seed in self.study.spec.seeds if any(self._result(name, analysis, seed) for name in names))

    def contrast(
        self,
        analysis: str,
        read: Callable[[Result], Metric | None],
        plus: Sequence[str],
        minus: Sequence[str] | None = None,
        pool: Pool = "mean",
    ) -> Contrasted:
        """Mean of a headline number over the pairs `plus`, less that over `minus` where given, with its interval over seeds.

        Draws of one seed resample the same examples in all pairs, so that the difference is paired. With a geometric pool
        it is the ratio of geometric means. A seed is left out where a base does not have the ability that may be lost
        (`REVIVED_AT`): nothing can be lost there, or brought back.

        Raises:
            UserError: no seed has all of these pairs measured, or the study has no pair on one of the sides.
        """
        if not plus or (minus is not None and not minus):
            raise UserError(f"the study {self.study.name!r} has no pairs of the kind that is compared; compare others.")
        names = [*plus, *(minus or ())]
        values: list[float] = []
        draws: list[np.ndarray] = []
        left_out: list[str] = []
        n = 0
        for seed in self.study.spec.seeds:
            found = [[self._metric(name, analysis, read, seed) for name in side] for side in (plus, minus or ())]
            if any(metric is None for side in found for metric in side):
                continue
            lacking = self._lacking(names, seed)
            if lacking:
                left_out.append(lacking)
                continue
            sides = [_mean([m for m in side if m is not None], pool) for side in found]
            (value, sample), (other, others) = sides[0], sides[1] if minus else (0.0 if pool == "mean" else 1.0, None)
            joined = sample if others is None else (sample - others if pool == "mean" else sample / others)
            values.append(value - other if pool == "mean" else value / other)
            draws.append(joined)
            n = min(m.n for side in found for m in side if m is not None)
        if not values:
            if left_out:
                raise UserError(" ".join(left_out))
            more = f" and {len(names) - 3} more pairs" if len(names) > 3 else ""
            raise UserError(f"{analysis} of {'; '.join(names[:3])}{more} is not done for any seed; run the study first.")
        return Contrasted(hierarchical(draws, pool, values=values), n, tuple(values), tuple(left_out))

    def _lacking(self, names: Sequence[str], seed: int) -> str:
        """What to say of a seed under which the base of a pair lacks the ability; empty when all have it."""
        for name in names:
            behaviour = self._result(name, "behaviour", seed)
            base = named("base_pt")(behaviour) if behaviour else None
            if base is not None and base.value < REVIVED_AT:
                return (
                    f"seed {seed} is left out: the base of {name} has the ability in {base.value:.2f} of the texts, "
                    f"it would need {REVIVED_AT:.2f}; pretrain longer."
                )
        return ""

    def _metric(self, pair: str, analysis: str, read: Callable[[Result], Metric | None], seed: int) -> Metric | None:
        result = self._result(pair, analysis, seed)
        return None if result is None else read(result)

    def _result(self, pair: str, analysis: str, seed: int | None = None) -> Result | None:
        key = (pair, analysis, seed)
        if key not in self.read_results:
            self.read_results[key] = self.study.result(pair, analysis, seed)
        return self.read_results[key]


def _mean(metrics: Sequence[Metric], pool: Pool) -> tuple[float, np.ndarray]:
    """Mean of values and draws; numbers without draws are constants."""
    if not metrics:
        return math.nan, np.array([math.nan])
    length = max((len(m.draws) for m in metrics), default=0) or 1
    draws = np.stack([np.asarray(m.draws or (m.value,) * length, dtype=np.float64) for m in metrics])
    values = np.array([m.value for m in metrics])
    if pool == "mean":
        return float(values.mean()), draws.mean(0)
    return float(np.exp(np.log(values).mean())), np.exp(np.log(draws).mean(0))


def named(name: str) -> Callable[[Result], Metric | None]:
    """Reads a headline number by name; None where a result has none."""
    return lambda result: next((m for m in result.headline if m.metric == name), None)
