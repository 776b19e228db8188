"""What there is to run: analyses, curvature instruments and labs, found by looking at files; listing them imports nothing.

A registered module `<package>/<name>.py` defines a function of its own name, decorated with `@analysis(...)` or `@lab(...)`;
beside it may lie modules that define none. The first line of the docstring is its summary; the arguments of the decorator are its
facts, literals all but `check`.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from workbench.errors import UserError, did_you_mean

_ROOT = Path(__file__).parent
GROUPS = {
    "evidence": "Evidence: behaviour, pruning, probing, revival",
    "lenses": "Lenses: what each part of a model says, before and after",
    "patching": "Patching: which components carry the change",
    "directions": "Directions: is the change one offset of the residual stream?",
    "weights": "Weights: how much changed, where, and of what rank",
    "representations": "Representations: how far the models' activations moved apart",
    "curvature": "Curvature: the loss around the models, its sharp and its flat directions",
}
"""Groups of analyses in the order of their pages, and what each is about."""


@dataclass(frozen=True)
class Entry:
    """One registered function, described without importing it."""

    name: str
    module: str
    summary: str
    version: int
    paper: str
    needs: tuple[str, ...]
    """Parts of a pair that must be ready first: `arms` for the reverse fine-tunings, `trajectory` for checkpoints."""
    passes: int
    """About how many forward passes over a test set it costs."""
    group: str
    """The page of the dashboard that shows it, one of `GROUPS`."""
    holds: int
    """Megabytes that it holds at most beside the models, however many the examples: what its batches and tables take."""
    n: int | None
    """Examples that it takes by default, where that is not the study's own number."""
    uses: tuple[str, ...]
    """What it looks at where a pair has it: names of arms, or `siblings` for other fine-tunes; it runs without as well."""
    minutes: float
    """Of a lab: about how long it takes with its defaults on one core."""

    def load(self) -> Callable[..., Any]:
        """The function."""
        return getattr(importlib.import_module(self.module), self.name)


@dataclass(frozen=True)
class Registry:
    """The registered functions of some packages."""

    packages: tuple[str, ...]
    noun: str
    decorator: str = "analysis"
    """What declares such a function."""

    def entries(self) -> dict[str, Entry]:
        """All entries by name."""
        return _scan(self.packages, self.decorator)

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(self.entries())

    def __getitem__(self, name: str) -> Entry:
        """An entry by name.

        Raises:
            UserError: no such entry.
        """
        if name not in self.entries():
            raise UserError(f"there is no {self.noun} {name!r}{did_you_mean(name, self.names())}")
        return self.entries()[name]


analyses = Registry(("workbench.analyses", "workbench.curvature"), "analysis")
labs = Registry(("workbench.curvature", "workbench.dynamics"), "lab", "lab")


@cache
def _scan(packages: tuple[str, ...], decorator: str) -> dict[str, Entry]:
    files = [(path, p) for p in packages for path in _ROOT.joinpath(*p.split(".")[1:]).glob("*.py")]
    files.sort(key=lambda file: file[0].stem)
    found = (_describe(path, package, decorator) for path, package in files if not path.stem.startswith("_"))
    return {entry.name: entry for entry in found if entry}


def _describe(path: Path, package: str, decorator: str) -> Entry | None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == path.stem:
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == decorator:
                    facts = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg and k.arg != "check"}
                    return Entry(
                        name=path.stem,
                        module=f"{package}.{path.stem}",
                        summary=(ast.get_docstring(tree) or "").partition("\n")[0],
                        version=int(facts["version"]),
                        paper=str(facts.get("paper", "")),
                        needs=tuple(facts.get("needs", ())),
                        passes=int(facts.get("passes", 60)),
                        holds=int(facts.get("holds", 500)),
                        n=int(facts["n"]) if "n" in facts else None,
                        group=str(facts.get("group", "evidence")),
                        uses=tuple(facts.get("uses", ())),
                        minutes=float(facts.get("minutes", 0)),
                    )
    return None
