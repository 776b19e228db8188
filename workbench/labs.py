"""Labs: self-contained experiments with what they should show; `workbench.labs.hessian_width(seeds=3)`.

Each is one file of a package that `workbench.registry.labs` names, and is imported when it is first used.
"""

from __future__ import annotations

from typing import Any

from workbench.registry import labs as _registry

__all__ = list(_registry.names())  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _registry.names():
        raise AttributeError(f"module 'workbench.labs' has no attribute {name!r}")
    return _registry[name].load()


def __dir__() -> list[str]:
    return __all__
