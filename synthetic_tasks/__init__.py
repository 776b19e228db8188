"""Procedural tasks with exactly known answers: grammar texts, their labels, prompts and training protocols [Jain+23]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synthetic_tasks.grammar import Grammar as Grammar
    from synthetic_tasks.pcfg import PcfgTask as PcfgTask
    from synthetic_tasks.prompts import Vocabulary as Vocabulary

_HOMES = {"Grammar": "grammar", "PcfgTask": "pcfg", "Vocabulary": "prompts"}
__all__ = ["Grammar", "PcfgTask", "Vocabulary"]


def __getattr__(name: str) -> Any:
    """The public names, imported on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
