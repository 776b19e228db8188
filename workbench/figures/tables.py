"""Reading tidy tables: rows by their coordinates, groups in order, columns as arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd


def keep(table: pd.DataFrame, mask: Any) -> pd.DataFrame:
    """The rows in which the mask is true."""
    return cast(pd.DataFrame, table[mask])


def select(table: pd.DataFrame, **equal: Any) -> pd.DataFrame:
    """Rows in which the columns have these values; NaN means NaN."""
    rows = np.ones(len(table), dtype=bool)
    for name, value in equal.items():
        missing = isinstance(value, float) and math.isnan(value)
        column: Any = table[name]
        rows &= (column.isna() if missing else column == value).to_numpy(dtype=bool)
    return keep(table, rows)


def groups(table: pd.DataFrame, *names: str) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Rows by the values of these columns, in the order in which they come; NaN is a value."""
    found = table.groupby(list(names), sort=False, dropna=False)
    return [(cast(tuple[Any, ...], key), rows) for key, rows in found]


def values(table: pd.DataFrame, name: str) -> np.ndarray:
    """A column as floats."""
    return np.asarray(table[name], dtype=np.float64)


def first(table: pd.DataFrame, name: str) -> Any:
    """A column's value in the first row."""
    return cast(Any, table[name]).iloc[0]


def largest(table: pd.DataFrame, name: str, default: float = 0.0) -> float:
    """A column's largest number, `default` in an empty table."""
    return float(np.max(values(table, name))) if len(table) else default


def distinct(table: pd.DataFrame, name: str) -> list[Any]:
    """The values of a column in the order in which they come."""
    return list(dict.fromkeys(cast(Sequence[Any], table[name].tolist())))


def distinct_shares(table: pd.DataFrame) -> list[float]:
    """The values of the column `share`, in order, NaN last."""
    found = values(table, "share")
    known = sorted({float(share) for share in found if not math.isnan(share)})
    return [*known, math.nan] if bool(np.isnan(found).any()) else known
