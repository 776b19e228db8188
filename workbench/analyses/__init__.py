"""Analyses: pure functions from a subject and settings to a result; each module is one, and defines the function of its name.

`workbench.analyses.pruning(pair, score="signed_taylor")`. A new file here is found by everything else.
"""

from importlib import import_module

from workbench.registry import analyses as _registry

# `import_module` binds the submodule; the function of the same name is what callers mean.
for _name, _entry in _registry.entries().items():
    globals()[_name] = getattr(import_module(_entry.module), _name)

__all__ = list(_registry.names())  # pyright: ignore[reportUnsupportedDunderAll]
