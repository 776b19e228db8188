"""Results: what an analysis returns and what is written to disk, tables as parquet and the rest as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd

from workbench.errors import UserError
from workbench.statistics import Bound

SCHEMA = 1
Direction = Literal["masked", "erased", "learned", "untouched", "neutral", "uninformative"]
"""Which class of verdict an evidence line points to; `neutral` takes no side, `uninformative` had no room to show anything."""


@dataclass(frozen=True)
class Metric:
    """One headline number with its 95 % interval."""

    metric: str
    value: float
    low: float
    high: float
    n: int
    """Examples (within each seed) that the number rests on."""
    unit: str = ""
    bound: Bound = "exact"
    pool: Literal["mean", "geometric"] = "mean"
    """How seeds are averaged: ratios are averaged on the log scale."""
    seeds: int = 1
    draws: tuple[float, ...] = ()
    """Bootstrap draws over the examples of one seed; the pooling over seeds resamples from these."""


def _metric(body: dict[str, Any]) -> Metric:
    draws: list[float] = body.pop("draws")
    return Metric(**body, draws=tuple(draws))


@dataclass(frozen=True)
class Evidence:
    """One line of a verdict: a number, the way it points, and a sentence that says so."""

    analysis: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    direction: Direction
    text: str
    capability: str = ""
    bound: Bound = "exact"


class LazyTables(Mapping[str, pd.DataFrame]):
    """Tables that are made when they are first looked at, since a verdict or a claim needs few of them; copied whole."""

    def __init__(self, makers: Mapping[str, Callable[[], pd.DataFrame]]) -> None:
        self._makers, self._made = dict(makers), dict[str, pd.DataFrame]()

    def __getitem__(self, name: str) -> pd.DataFrame:
        """The table of this name."""
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        """Names, without making anything."""
        return iter(self._makers)

    def __len__(self) -> int:
        """Number of tables."""
        return len(self._makers)

    def __contains__(self, name: object) -> bool:
        """Whether there is a table of this name, without making it."""
        return name in self._makers

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle or copy holds the tables themselves."""
        return dict, (dict(self),)


@dataclass(frozen=True)
class Result:
    """Tidy tables, headline numbers, evidence and the limits of what they show.

    The main table is `tables["table"]`. A column `n` says how many examples stand behind a `value`; proportions
    have `unit == "accuracy"` where a table mixes units. Columns other than `value low high n seed` are coordinates.
    """

    name: str
    tables: Mapping[str, pd.DataFrame]
    headline: tuple[Metric, ...]
    evidence: tuple[Evidence, ...] = ()
    limits: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Subject, seeds, paper tag, weights' hashes, code version."""

    @property
    def table(self) -> pd.DataFrame:
        """The main table."""
        return self.tables["table"]

    def metric(self, name: str) -> Metric:
        """A headline number by name.

        Raises:
            KeyError: no headline number has this name.
        """
        for metric in self.headline:
            if metric.metric == name:
                return metric
        raise KeyError(f"{self.name} has no headline number {name!r}; it has {[m.metric for m in self.headline]}")

    def save(self, folder: Path) -> None:
        """Write `result.json` and one parquet file per table into an existing folder."""
        for name, table in self.tables.items():
            table.to_parquet(folder / f"{name}.parquet", index=False)
        body = {
            "schema": SCHEMA,
            "name": self.name,
            "tables": sorted(self.tables),
            "headline": [asdict(m) for m in self.headline],
            "evidence": [asdict(e) for e in self.evidence],
            "limits": list(self.limits),
            "settings": dict(self.settings),
            "provenance": dict(self.provenance),
        }
        (folder / "result.json").write_text(json.dumps(body, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Result:
        """Read what `save` wrote.

        Raises:
            UserError: the folder holds no readable result, or one of another schema.
        """
        try:
            body = cast(dict[str, Any], json.loads((folder / "result.json").read_text()))
            if body["schema"] != SCHEMA:
                raise UserError(
                    f"{folder}/result.json has schema {body['schema']}, this version reads {SCHEMA}; run the analysis again."
                )
            return cls(
                name=body["name"],
                tables={name: pd.read_parquet(folder / f"{name}.parquet") for name in body["tables"]},
                headline=tuple(_metric(m) for m in body["headline"]),
                evidence=tuple(Evidence(**e) for e in body["evidence"]),
                limits=tuple(body["limits"]),
                settings=body["settings"],
                provenance=body["provenance"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder} holds no readable result ({type(error).__name__}: {error}); run the analysis again."
            ) from error

    def to_json(self, folder: Path | None = None) -> dict[str, Any]:
        """The printed form: name, headline, and where the tables lie (their lengths when nothing is on disk)."""
        tables = {name: str(folder / f"{name}.parquet") if folder else f"{len(t)} rows" for name, t in self.tables.items()}
        keys = ("metric", "value", "low", "high", "n", "unit", "bound", "seeds")
        return {"name": self.name, "headline": [{k: getattr(m, k) for k in keys} for m in self.headline], "tables": tables}

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        from workbench.figures import figure
        from workbench.report import result_html

        html = result_html(self)
        chart = figure(self)._repr_mimebundle_(include, exclude)  # pyright: ignore[reportPrivateUsage]
        return {"text/html": html, **chart} if chart else {"text/html": html, "text/plain": repr(self.headline)}
