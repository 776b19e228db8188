"""Figures: from a result's tables to one Plotly figure, the same in notebooks, the report and the dashboard.

A builder is a module of this package with the analysis' name that defines `figure(result)` and `alt(result)`; nothing
else has to be told about it. A result without one is shown by its headline numbers.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from workbench.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

_FOLDER = Path(__file__).parent
_PARTS = frozenset({"__init__", "theme", "marks", "maps", "places", "words", "tables", "headline", "curves", "lineage"})


def has_builder(name: str) -> bool:
    """Whether results of this name have a figure of their own."""
    return name.isidentifier() and name not in _PARTS and (_FOLDER / f"{name}.py").is_file()


def figure(result: Result) -> go.Figure:
    """The figure of a result, drawn from its tables and headline alone."""
    return _builder(result).figure(result)


def alt(result: Result) -> str:
    """What the figure shows, in one sentence with its numbers."""
    return " ".join(str(_builder(result).alt(result)).split())


def _builder(result: Result) -> ModuleType:
    return import_module(f"{__name__}.{result.name if has_builder(result.name) else 'headline'}")
