"""The spectrum at one checkpoint of a training run, kept in the store beside it: killed and started again, it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from workbench.curvature.spectrum import spectrum, spectrum_of
from workbench.errors import UserError, did_you_mean
from workbench.examples import Correlation
from workbench.files import remove_folder
from workbench.models.checkpoints import load_model, pick_device
from workbench.protocols import load_task
from workbench.run_records import Run, stage_key
from workbench.runs import Store
from workbench.workplace import Workplace, working

IGNORED = ("only", "points")
"""Settings that speak of pairs."""


def spectrum_of_run(
    store: Store,
    run: Run,
    settings: Mapping[str, Any],
    *,
    step: int | None = None,
    capability: str | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Run:
    """Measure the Hessian of a run's model on test examples, unless that was done before; the run that holds the result.

    Args:
        store: where the run lies, and where the result goes.
        run: a training.
        settings: of the analysis `spectrum`.
        step: of the checkpoint; the last when None.
        capability: what the examples ask for; the first one that the run was evaluated on when None.
        device: where to compute.
        progress: told `(done, total)` products.

    Raises:
        UserError: no training run, no such step or capability, or settings that do not fit.
    """
    for name in IGNORED:
        if name in settings:
            raise UserError(f"spectrum of one run has no setting {name!r}, which is of pairs; drop it, or name a pair.")
    read = spectrum.settings(settings)
    if "task" not in run.spec or "training" not in run.spec:
        raise UserError(
            f"{run.name} is no training, so it has no model to look at; name one that `workbench runs list` calls so."
        )
    checkpoint = run.checkpoint(step)
    sets: list[dict[str, Any]] = list(run.spec["evaluation"]["sets"])
    task = load_task(run.spec["task"])
    asked = capability or (str(sets[0]["capability"]) if sets else task.capabilities[0])
    if asked not in task.capabilities:
        raise UserError(f"the task of {run.name} has no capability {asked!r}{did_you_mean(asked, task.capabilities)}")
    known = next((entry["correlation"] for entry in sets if entry["capability"] == asked), None)
    spec = {
        "analysis": "spectrum",
        "of": run.key,
        "step": checkpoint.step,
        "capability": asked,
        "correlation": known,
        "settings": read.model_dump(mode="json", exclude_defaults=True),
    }
    key = stage_key(spec, spectrum.version, "float32", (run.key,))
    seed = int(run.seed or 0)
    stage = f"spectrum-{run.stage}"
    with store.write(run.study, stage, "analyse", key, spec, (run.key,), {"seed": seed, "device": device}) as writer:
        if not writer.already_done:

            def tell(done: int, total: int, what: str) -> None:
                writer.progress(done, total)
                progress(done, total)

            examples = task.capability(asked, Correlation(**known) if known else None).examples(read.n, seed)
            model = load_model(checkpoint.path, pick_device(device))
            scratch = writer.path / "scratch"
            with working(Workplace(scratch, tell)):
                result = spectrum_of(model, examples, seed=seed, capability=asked, **dict(settings))
            writer.result(result)
            if scratch.exists():
                remove_folder(scratch)
    found = store.find(key)
    assert found is not None
    return found
