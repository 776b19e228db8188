"""Figures of the paper as small multiples: one table, one variable along x, one by line, one by column, one by row.

A view turns a grid study into a tidy table with the columns `TIDY`; the figure draws what stands there and knows nothing of
the paper. `n` counts the examples of all `seeds` together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import pandas as pd

from workbench.figures import words
from workbench.figures.tables import distinct, keep, select
from workbench.paper.grid import ONLY, RATES, Grid
from workbench.verdict import REVIVED_AT

TIDY = ("column", "row", "line", "look", "x", "value", "low", "high", "n", "seeds")
LEVELS = ("column", "row", "value", "text")


@dataclass(frozen=True)
class View:
    """What one figure shows of a grid study."""

    reads: str
    """`accuracy`, `pruning`, `probing`, `revival` or `ends`."""
    where: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Axes of the pairs that are shown."""
    role: str = "ft"
    """`accuracy`: which ability, `pt` or `ft`."""
    lines: str = "c_tr"
    columns: str | tuple[str, ...] = "prior"
    rows: str | tuple[str, ...] = "rate_name"
    entry: str = ""
    """Name of its analysis in the study, where that is not the analysis' own."""

    @property
    def panels(self) -> list[str]:
        """The axes that make panels."""
        return list(dict.fromkeys((*_names(self.columns), *_names(self.rows))))

    @property
    def analysis(self) -> str:
        """The analysis that it is drawn from, by its name in the study."""
        return self.entry or ("behaviour" if self.reads in ("accuracy", "ends") else self.reads)

    def pairs(self, grid: Grid) -> list[str]:
        """Names of the pairs that are shown: of standard pretraining, where its length is neither an axis nor chosen."""
        where = dict(self.where)
        if not {"pretrain_steps", "length"} & {*where, *self.panels, self.lines}:
            where["length"] = "standard"
        return grid.where(**where)


def _names(axes: str | tuple[str, ...]) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes


class Tidy(NamedTuple):
    """What a figure draws."""

    table: pd.DataFrame
    """Points, columns `TIDY`."""
    levels: pd.DataFrame
    """Reference levels, columns `LEVELS`."""
    panels: dict[str, list[str]]
    """`columns` and `rows` of the panels in the order of their axes."""


def tidy(grid: Grid, view: View) -> Tidy:
    """The table of a view and its reference levels, both empty where nothing is done.

    Raises:
        ValueError: the pairs differ in something that is no axis of the view.
    """
    table, levels = _READERS[view.reads](grid, view, view.pairs(grid))
    panels: dict[str, list[str]] = {"columns": [], "rows": []}
    if len(table):
        if table.duplicated(["column", "row", "line", "x"]).any():
            raise ValueError(f"{view} joins several pairs in one line; make what they differ in an axis")
        # Within a panel lines stay as they came, controls first.
        for name, axes in (("column", _names(view.columns)), ("row", _names(view.rows))):
            panels[f"{name}s"] = distinct(_sorted(table, axes), name)
        table = _sorted(_sorted(table, _names(view.columns)), _names(view.rows))
    table = table.reindex(columns=list(TIDY)).reset_index(drop=True)
    return Tidy(table, levels.reindex(columns=list(LEVELS)), panels)


def _sorted(table: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    return table.sort_values(list(axes), key=_in_order, kind="stable") if axes else table


def _in_order(axis: pd.Series) -> pd.Series:
    """Sort keys of an axis: rates and priors from the largest down as in the paper, all other numbers upwards."""
    if axis.name == "rate_name":
        return axis.map(lambda name: RATES.index(name) if name in RATES else len(RATES))
    if axis.name in ("prior", "rate"):
        return -axis
    return axis.astype(float) if axis.name == "reverse_rate" else axis


def placed(rows: pd.DataFrame, view: View) -> pd.DataFrame:
    """Rows of the axes of a view with the columns `column row line`."""
    return _place(rows, view, line=[_said(view.lines, value) for value in rows[view.lines]])


def _place(rows: pd.DataFrame, view: View, **more: Any) -> pd.DataFrame:
    """Rows with their panel and line in words."""
    return rows.assign(column=_label(rows, view.columns), row=_label(rows, view.rows), **more)


def _label(rows: pd.DataFrame, axes: str | tuple[str, ...]) -> list[str]:
    parts = [[_said(axis, value) for value in rows[axis]] for axis in _names(axes)]
    return [", ".join(filter(None, words_)) for words_ in zip(*parts, strict=True)] if parts else [""] * len(rows)


def _said(axis: str, value: Any) -> str:
    """A value of an axis as a person reads it."""
    if axis == "share":
        return words.texts(float(value))
    if isinstance(value, float) and math.isnan(value):
        return "no correlation in training" if axis == "c_tr" else ""
    formats: dict[str, Callable[[Any], str]] = {
        "prior": lambda v: f"pretraining prior {v:g}",
        "rate_name": lambda v: "" if v == ONLY else f"{v} rate",
        "rate": lambda v: f"rate {v:g}",
        "c_tr": lambda v: f"{100 * v:g} % of texts correlated",
        "pretrain_steps": lambda v: f"{v:,} pretraining steps",
        "pretraining_share": lambda v: f"{100 * v:g} % pretraining data",
        "reverse_rate": lambda v: f"reverse rate {v}",
        "pair": str,
        "protocol": lambda v: str(v).replace("_", " "),
    }
    return formats.get(axis, str)(value)


def _by_line(rows: pd.DataFrame, view: View) -> dict[str, Any]:
    """Lines coloured by rank of their axis: `rank 0 of 2`, `rank 1 of 2`; NaN is the last."""
    known = cast(pd.Series, rows[view.lines]).drop_duplicates().sort_values(key=_in_order)
    ordered = [_said(view.lines, value) for value in known]
    lines = [_said(view.lines, value) for value in rows[view.lines]]
    return {"line": lines, "look": [f"rank {ordered.index(line)} of {len(ordered)}" for line in lines]}


def _accuracy(grid: Grid, view: View, pairs: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracy over fine-tuning steps; test texts are an axis too (`share`)."""
    rows = grid.stacked(view.analysis, pairs=pairs)
    if rows.empty:
        return pd.DataFrame(), pd.DataFrame()
    rows = keep(rows, (rows["role"] == view.role) & rows["share"].notna())
    rows = _place(rows, view, **_by_line(rows, view)).rename(columns={"step": "x"})
    chance = grid.stacked(view.analysis, "chance", pairs)
    chance = keep(chance, (chance["role"] == view.role) & chance["share"].notna())
    best = chance.sort_values("value", ascending=False).drop_duplicates(view.panels)
    levels = _place(best, view).assign(text="best guess without the ability")
    return rows, levels


def _pruning(grid: Grid, view: View, pairs: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracy over the number of removed units, for both abilities; random units behind."""
    rows = grid.stacked(view.analysis, pairs=pairs)
    if rows.empty:
        return pd.DataFrame(), pd.DataFrame()
    rows = rows.rename(columns={"k": "x"})
    parts: list[pd.DataFrame] = []
    random = keep(rows, rows["draw"] > 0)
    if len(random):  # each seed draws them at sizes of its own; a line through sizes of other seeds would show the seeds
        most = random.groupby(view.panels, dropna=False)["seeds"].transform("max") if view.panels else random["seeds"].max()
        random = keep(random, random["seeds"] == most)
        spread = random.groupby([*view.panels, "x"], as_index=False, dropna=False).agg(
            value=("value", "mean"), low=("value", "min"), high=("value", "max"), n=("n", "min"), seeds=("seeds", "min")
        )
        parts.append(_place(spread, view, line="as many random units (range over orders)", look="random"))
    asked = select(rows, draw=0)
    for role, share in (("ft", 0.0), ("ft", 1.0), ("pt", 0.0)):
        some = select(asked, role=role, share=share)
        if len(some):
            name = words.ability(str(some["capability"].iloc[0]), role, share)
            parts.append(_place(some, view, line=name, look=role if (role, share) != ("ft", 0.0) else "ft thin"))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(), pd.DataFrame()


def _probing(grid: Grid, view: View, pairs: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Probe accuracy for the ability that may be lost over residual points, models as lines."""
    rows = grid.stacked(view.analysis, pairs=pairs)
    if rows.empty:
        return pd.DataFrame(), pd.DataFrame()
    rows = keep(rows, (rows["role"] == view.role) & (rows["prompt"] == "matching") & (rows["labels"] == "true"))
    order = [model for model in ("never_had_it", "untrained", "base", "tuned") if model in set(rows["model"])]
    parts = [
        _place(select(rows, model=model).rename(columns={"point": "x"}), view, line=words.MODELS[model], look=model)
        for model in order
    ]
    return pd.concat(parts, ignore_index=True), pd.DataFrame()


def _revival(grid: Grid, view: View, pairs: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracy over reverse fine-tuning steps, tuned models as lines; `reverse_rate` is an axis too; controls behind."""
    rows = grid.stacked(view.analysis, pairs=pairs)
    if rows.empty:
        return pd.DataFrame(), pd.DataFrame()
    main = f"{grid.study.spec.revive.lr:g}" if grid.study.spec.revive else ""
    split = rows["arm"].str.partition("@")
    rows = rows.assign(which=split[0], reverse_rate=[rate or main for rate in split[2]]).rename(columns={"step": "x"})
    parts: list[pd.DataFrame] = []
    for arm in ("scratch", "never_had_it"):
        control = select(rows, which=arm)
        if len(control):
            once = control.drop_duplicates([*view.panels, "x"])
            parts.append(_place(once, view, line=words.ARMS[arm], look=arm))
    revived = select(rows, which="revived")
    parts.append(_place(revived, view, **_by_line(revived, view)))
    table = pd.concat(parts, ignore_index=True)
    goal = (
        table[["column", "row"]].drop_duplicates().assign(value=REVIVED_AT, text=f"{100 * REVIVED_AT:g} %: counts as revived")
    )
    return table, cast(pd.DataFrame, goal)


def _ends(grid: Grid, view: View, pairs: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracy before (x = 0) and after (x = 1) fine-tuning where the shortcut fails, every ability a line."""
    rows = grid.stacked(view.analysis, "endpoints", pairs)
    if rows.empty:
        return pd.DataFrame(), pd.DataFrame()
    rows = keep(rows, rows["model"].isin(["base", "tuned"]) & (rows["share"] != 1.0))
    rows = rows.assign(x=(rows["model"] == "tuned").astype(float))
    looks = {"pt": "pt", "ft": "ft"}
    known = [str(name) for name in rows["capability"].drop_duplicates()]
    look = [
        looks.get(str(role), f"other {known.index(str(name))}")
        for role, name in zip(rows["role"], rows["capability"], strict=True)
    ]
    return _place(rows, view, line=[words.capability(str(name)) for name in rows["capability"]], look=look), pd.DataFrame()


_READERS: Mapping[str, Callable[[Grid, View, Sequence[str]], tuple[pd.DataFrame, pd.DataFrame]]] = {
    "accuracy": _accuracy,
    "pruning": _pruning,
    "probing": _probing,
    "revival": _revival,
    "ends": _ends,
}
X_AXES = {"accuracy": "steps", "pruning": "units", "probing": "points", "revival": "reverse steps", "ends": "ends"}
"""What runs along x, by what a view reads."""
