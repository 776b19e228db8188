"""Revival: what did fine-tuning change inside this model, and how cheaply does the old ability come back?

```python
import workbench as wb

study = wb.Study.load("quickstart").run()
pair = study.pair("wrapped", seed=0)
wb.analyses.pruning(pair)
study.verdicts()
```
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench import analyses, labs
    from workbench.curvature.spectrum import spectrum_of as spectrum
    from workbench.errors import UserError
    from workbench.examples import Capability, Correlation, Examples
    from workbench.models.checkpoints import load_model
    from workbench.protocols import load_task
    from workbench.results import Result
    from workbench.runs import Store
    from workbench.studies.handle import Study
    from workbench.subjects import Pair

__all__ = [
    "Capability",
    "Correlation",
    "Examples",
    "Pair",
    "Result",
    "Store",
    "Study",
    "UserError",
    "analyses",
    "labs",
    "load_model",
    "load_task",
    "spectrum",
]

_HOMES = {
    "Capability": "workbench.examples",
    "Correlation": "workbench.examples",
    "Examples": "workbench.examples",
    "Pair": "workbench.subjects",
    "Result": "workbench.results",
    "Store": "workbench.runs",
    "Study": "workbench.studies.handle",
    "UserError": "workbench.errors",
    "load_model": "workbench.models.checkpoints",
    "load_task": "workbench.protocols",
    "spectrum": "workbench.curvature.spectrum",
}
_CALLED = {"spectrum": "spectrum_of"}
"""Names that are another one at home."""


def __getattr__(name: str) -> Any:
    """Names are imported when first used, so that `import workbench` costs nothing."""
    if name in ("analyses", "labs"):
        return import_module(f"workbench.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), _CALLED.get(name, name))


def __dir__() -> list[str]:
    return __all__
