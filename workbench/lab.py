"""What makes a function a lab: a self-contained experiment, settings in and a result out, beside what it is expected to show."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_type_hints

import pandas as pd
from pydantic import Field

from workbench.analysis import Settings, read
from workbench.errors import UserError
from workbench.results import Metric, Result
from workbench.statistics import hierarchical
from workbench.workplace import workplace

if TYPE_CHECKING:
    from workbench.runs import Store

KEY_DIGITS = 12
"""Of the hash in a folder's name: another number than a run's, so that the store does not take a lab for a stage."""


class LabSettings(Settings):
    """Settings that every lab has; its own add to them."""

    seed: int = Field(0, ge=0, description="first seed: of data, starting weights and batches")
    seeds: int = Field(3, ge=1, le=100, description="seeds, one after the other, over which intervals are taken")

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds themselves."""
        return tuple(range(self.seed, self.seed + self.seeds))


L = TypeVar("L", bound=LabSettings)
T = TypeVar("T")


class Lab(Generic[L]):
    """A decorated lab: call it with settings by name."""

    def __init__(self, function: Callable[[L], Result], schema: type[L], version: int, paper: str) -> None:
        self.function, self.schema, self.version, self.paper = function, schema, version, paper
        self.__name__, self.__doc__, self.__module__ = function.__name__, function.__doc__, function.__module__

    def settings(self, values: Mapping[str, Any]) -> L:
        """Settings from plain data.

        Raises:
            UserError: an unknown name or a value out of range.
        """
        return read(self.__name__, self.schema, values)

    def __call__(self, **values: Any) -> Result:
        """Run it.

        Raises:
            UserError: settings that do not fit.
        """
        from workbench.run_writer import versions

        settings = self.settings(values)
        started = time.monotonic()
        result = self.function(settings)
        provenance = {
            **result.provenance,
            "seeds": list(settings.all_seeds),
            "paper": self.paper,
            "version": self.version,
            "versions": versions(),
            "seconds": round(time.monotonic() - started, 2),
        }
        return replace(result, name=self.__name__, settings=settings.model_dump(mode="json"), provenance=provenance)

    def key(self, values: Mapping[str, Any]) -> str:
        """What equal settings of one version share: the hash in the name of the folder that keeps the result."""
        from workbench.files import canonical_json

        settings = self.settings(values).model_dump(mode="json")
        text = canonical_json({"lab": self.__name__, "version": self.version, "settings": settings})
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def lab(
    *, version: int, paper: str = "", minutes: float = 1, group: str = "curvature"
) -> Callable[[Callable[[L], Result]], Lab[L]]:
    """Declare a lab; all arguments are literals, since the registry reads them without importing the module.

    `version` is raised when the same settings would give other numbers; `minutes` says about how long it takes with its
    defaults on one core; `group` names its page.
    """
    del minutes, group  # read by the registry, from the source

    def declare(function: Callable[[L], Result]) -> Lab[L]:
        return Lab(function, get_type_hints(function)["settings"], version, paper)

    return declare


def progress(parts: Iterable[T], what: Callable[[T], str] = str) -> Iterator[T]:
    """The parts of a lab, one after the other, with word of them to the workplace."""
    every, tell = list(parts), workplace().progress
    for done, part in enumerate(every):
        tell(done, len(every), what(part))
        yield part
    tell(len(every), len(every), "done")


def over_seeds(name: str, by_seed: Sequence[float], n: int, unit: str = "") -> Metric:
    """The mean of one number per seed, with the bootstrap interval over seeds; a single seed has none.

    Seeds that have no such number (NaN) are left out; without any it is undefined.
    """
    known = [float(value) for value in by_seed if math.isfinite(value)]
    if not known:
        return Metric(name, math.nan, math.nan, math.nan, n, unit, "undefined", seeds=0)
    found = hierarchical([[value] for value in known])
    low, high = (found.low, found.high) if len(known) > 1 else (math.nan, math.nan)
    return Metric(name, found.value, low, high, n, unit, seeds=len(known), draws=tuple(known))


@dataclass(frozen=True)
class Expectation:
    """What a lab should show: a number and the range that it should lie in, both declared before looking."""

    says: str
    metric: Metric
    low: float = -math.inf
    high: float = math.inf

    @property
    def held(self) -> str:
        """`yes` or `no` where the whole interval says so, `open` where it crosses an end of the range."""
        ends = [x for x in (self.metric.low, self.metric.high) if math.isfinite(x)] or [self.metric.value]
        if not math.isfinite(self.metric.value):
            return "open"
        if all(self.low <= x <= self.high for x in ends):
            return "yes"
        return "no" if max(ends) < self.low or min(ends) > self.high else "open"


def expectations(lines: Iterable[Expectation]) -> pd.DataFrame:
    """The table `expectations` of a result: `says metric expected_low expected_high value low high n seeds held`."""
    rows = [
        {
            "says": e.says,
            "metric": e.metric.metric,
            "expected_low": e.low,
            "expected_high": e.high,
            "value": e.metric.value,
            "low": e.metric.low,
            "high": e.metric.high,
            "n": e.metric.n,
            "seeds": e.metric.seeds,
            "held": e.held,
        }
        for e in lines
    ]
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Kept:
    """A result in the store."""

    result: Result
    folder: Path
    was_there: bool
    """Whether it was read back rather than made."""


def kept(experiment: Lab[Any], values: Mapping[str, Any], store: Store) -> Kept:
    """The result of a lab from `<store>/labs/NAME-KEY/`, where it is first made when it is not there or cannot be read.

    The folder holds what `Result.save` writes and `figure.html`, which needs nothing from outside; it appears whole or not at all.

    Raises:
        UserError: settings that do not fit, or a folder that is a link.
    """
    from workbench.figures import figure
    from workbench.files import atomic_folder

    folder = store.root / "labs" / f"{experiment.__name__}-{experiment.key(values)}"
    if folder.is_symlink() or folder.parent.is_symlink():
        raise UserError(f"{folder} is a link, which could lead out of the store; remove the link")
    if folder.is_dir():
        try:
            return Kept(Result.load(folder), folder, True)
        except UserError:
            pass  # damaged: made anew below, in its place
    result = experiment(**values)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as temporary:
        result.save(temporary)
        figure(result).write_html(temporary / "figure.html", include_plotlyjs=True)
    return Kept(result, folder, False)


def kept_results(store: Store, name: str) -> dict[Path, Result]:
    """Results of a lab in the store by folder, the newest first; what cannot be read is left out."""
    folders = sorted((store.root / "labs").glob(f"{name}-*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    found: dict[Path, Result] = {}
    for folder in folders:
        if not folder.is_symlink():
            with suppress(UserError):
                found[folder] = Result.load(folder)
    return found
