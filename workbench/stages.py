"""Executing one stage: from its spec to a finished run directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from workbench.errors import UserError
from workbench.examples import Correlation, Examples, sha256
from workbench.files import remove_folder
from workbench.protocols import Task, compiled_weights, load_protocol, load_task
from workbench.registry import analyses
from workbench.run_writer import RunWriter
from workbench.runs import Run, Store
from workbench.seeds import stream
from workbench.studies.stage import Stage
from workbench.subjects import open_pair
from workbench.training.schedule import evaluation_grid
from workbench.training.settings import TrainSettings
from workbench.workplace import Workplace, working

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from workbench.training.loop import Step
    from workbench.training.state import TrainingState

HELD_OUT = 256
SAVE_EVERY_SECONDS = 120.0
"""The grid's steps grow apart, so a long training also saves by the clock; a killed one loses two minutes at the most."""


def execute(
    stage: Stage, store: Store, study: str, device: str = "auto", should_stop: Callable[[], bool] = lambda: False
) -> None:
    """Do a stage's work unless its run is done; continue one that was cut short.

    Raises:
        UserError: bad input, a parent that is not done, a diverged training, a full disk, or another process on the same run.
    """
    for key in stage.parents:
        _parent(store, key)  # half a parent would give a whole result under the right key
    extra = {"seed": stage.seed, "device": device, "dtype": "float32"}
    with store.write(study, stage.name, stage.kind, stage.key, stage.spec, stage.parents, extra) as writer:
        if writer.already_done:
            return
        if stage.kind == "analyse":
            _analyse(stage, store, writer, device)
        else:
            _train(stage, store, writer, device, should_stop)


def _analyse(stage: Stage, store: Store, writer: RunWriter, device: str) -> None:
    spec = stage.spec
    pair_name = stage.name.partition("-")[2].rsplit("-s", 1)[0]
    pair = open_pair(spec["pair"], store, pair_name, stage.seed, device)
    scratch = writer.path / "scratch"
    with working(
        Workplace(scratch, lambda done, total, what: writer.progress(done, total))
    ):  # what a killed one had so far, the next goes on from
        result = analyses[spec["analysis"]].load()(pair, **spec["settings"])
    writer.result(result)
    if scratch.exists():
        remove_folder(scratch)


def _train(stage: Stage, store: Store, writer: RunWriter, device: str, should_stop: Callable[[], bool]) -> None:
    from workbench.models.checkpoints import load_model, pick_device
    from workbench.training.loop import train
    from workbench.training.state import load_state

    spec = stage.spec
    task = load_task(spec["task"])
    settings = TrainSettings(**spec["training"])
    name, protocol_settings = spec["protocol"]["name"], spec["protocol"]["settings"]
    protocol = load_protocol(name, task, protocol_settings, settings.batch_size, stage.seed)
    recorder = _Recorder(stage, writer, settings, _evaluation_sets(stage, task))
    resume, where = _resume_point(writer)
    place, data = pick_device(device), sha256(protocol.batch(0))
    before = writer.run.provenance.get("data_hash")
    if resume is not None and before not in (None, data):
        raise UserError(
            f"{writer.run.name} was begun with other data ({before[:12]}, now {data[:12]}): the code that makes them changed; "
            "remove the run and run its study again."
        )
    writer.note(device=str(place), data_hash=data)
    if resume is not None:
        model = load_model(where)
        writer.truncate(resume)
        recorder.restore(resume)
    else:
        writer.truncate(-1)
        start = spec["start"]
        model = load_model(_parent(store, start).checkpoint().path) if start else _first_model(spec, task, stage.seed)
    train(
        model,
        protocol,
        settings,
        recorder,
        device=place,
        seed=stage.seed,
        resume=load_state(where) if resume is not None else None,
        should_stop=should_stop,
    )
    recorder.finish()


def _first_model(spec: Mapping[str, Any], task: Task, seed: int) -> PreTrainedModel:
    """The model of a stage that starts from no other: compiled or given weights, or random ones."""
    from workbench.models import compiled, given
    from workbench.models.build import build_model
    from workbench.models.spec import ModelSpec

    if "compiled" in spec:
        return compiled.build(compiled_weights(task, spec["compiled"]["capability"]), spec["compiled"]["noise"], seed)
    model = ModelSpec(**spec["model"])
    if model.kind == "checkpoint":
        return given.load(model) if spec.get("given") else given.untrained(model, seed)
    sizes = compiled_weights(task) if model.kind == "compiled" else None
    return build_model(model, task.vocab_size, task.context, seed, sizes)


def _parent(store: Store, key: str) -> Run:
    run = store.find(key)
    if run is not None and run.damaged:
        raise UserError(
            f"run {key}, which this stage starts from, is damaged ({run.damaged}); run the study again to remake it."
        )
    if run is None or not run.done:
        raise UserError(f"run {key}, which this stage starts from, is not done; run the study again.")
    return run


def _resume_point(writer: RunWriter) -> tuple[int | None, Any]:
    """The newest checkpoint that has a training state beside its weights."""
    from workbench.training.state import REST

    for checkpoint in reversed(writer.run.checkpoints):
        if (checkpoint.path / REST).exists():
            return checkpoint.step, checkpoint.path
    return None, None


def _evaluation_sets(stage: Stage, task: Task) -> list[tuple[str, str, float | None, Examples]]:
    """`(split, capability, share, examples)`; a stage without named sets is measured on its own protocol, other draws."""
    evaluation = stage.spec["evaluation"]
    sets: list[tuple[str, str, float | None, Examples]] = []
    for wanted in evaluation["sets"]:
        correlation = Correlation(**wanted["correlation"]) if wanted["correlation"] else None
        examples = task.capability(wanted["capability"], correlation).examples(evaluation["examples"], stage.seed)
        sets.append(("test", wanted["capability"], correlation.share if correlation else None, examples))
    if not sets:
        name, settings = stage.spec["protocol"]["name"], stage.spec["protocol"]["settings"]
        other = load_protocol(name, task, settings, HELD_OUT, stream(stage.seed, "held out"))
        # Of procedural texts other draws are new; a protocol of stored texts keeps some apart.
        find: Callable[[int], Examples] | None = getattr(other, "held_out", None)
        held_out = find(HELD_OUT) if find else other.batch(0)
        sets.append(("held out", "all", None, held_out))
    return sets


class _Recorder:
    """The listener of a training stage: measures, saves, and says when nothing more can be learned."""

    def __init__(
        self, stage: Stage, writer: RunWriter, settings: TrainSettings, sets: list[tuple[str, str, float | None, Examples]]
    ) -> None:
        self.stage, self.writer, self.settings, self.sets = stage, writer, settings, sets
        self.grid_steps = set(evaluation_grid(settings.steps))
        self.kept = self.grid_steps if stage.spec["evaluation"].get("keep", "all") == "all" else set[int]()
        self.saved: int | None = None
        self.saved_at = time.monotonic()
        self.streak = 0

    def step(self, step: Step) -> None:
        """Log an update."""
        rows = {"loss_nats": step.loss_nats, "learning_rate": step.lr, "gradient_norm": step.gradient_norm}
        self.writer.metrics((step.step, "train", name, value) for name, value in rows.items())
        self.writer.progress(step.step, self.settings.steps, loss=step.loss_nats, seconds_left=step.seconds_left)

    def due(self) -> bool:
        """Whether the last checkpoint is so old that much would be lost."""
        return time.monotonic() - self.saved_at > SAVE_EVERY_SECONDS

    def grid(self, step: int, model: PreTrainedModel, state: Callable[[], TrainingState], last: bool) -> bool:
        """Evaluate (on the grid) and save; True once the stop rule holds."""
        if step == self.saved:  # interrupted before any further step: all of this is done
            return False
        stop = False
        if step in self.grid_steps:
            self._evaluate(step, model)
            stop = self._enough()
        # Nothing follows a last grid point, so it needs no optimizer state; an interruption off the grid does.
        self._save(step, model, None if step == self.settings.steps or stop else state())
        return stop

    def _evaluate(self, step: int, model: PreTrainedModel) -> None:
        from workbench.models.forward import accuracy, evaluate

        for index, (split, capability, share, examples) in enumerate(self.sets):
            values = evaluate(model, examples, accuracy)
            self.writer.evaluation(step, split, capability, share, values.numpy())
            name = "accuracy" if share is None else f"accuracy at C={share:g}"
            self.writer.metrics([(step, f"{split}: {capability}", name, float(values.mean()))])
            if index == 0:
                right = float(values.mean())
                self.writer.progress(step, self.settings.steps, accuracy=right)
                rule = self.stage.spec["stop"]
                self.streak = self.streak + 1 if rule and right >= rule["accuracy"] else 0

    def _enough(self) -> bool:
        rule = self.stage.spec["stop"]
        return bool(rule) and self.streak >= rule["evaluations"]

    def _save(self, step: int, model: PreTrainedModel, state: TrainingState | None) -> None:
        from workbench.models.checkpoints import save_model
        from workbench.training.state import save_state

        with self.writer.checkpoint(step) as folder:
            save_model(model, folder)
            if state is not None:
                save_state(state, folder)
        if self.saved is not None:
            self._lighten(self.saved)
        self.saved, self.saved_at = step, time.monotonic()

    def _lighten(self, step: int) -> None:
        """Only the newest checkpoint needs an optimizer state, and one that is not kept was made only to resume from."""
        from workbench.training.state import REST, TENSORS

        if step in self.kept:
            for file in (REST, TENSORS):
                self.writer.drop_checkpoint(step, file)
        else:
            self.writer.drop_checkpoint(step)

    def restore(self, step: int) -> None:
        """Take up where a killed run was: the newest checkpoint and the stop rule's count."""
        self.saved = step
        for checkpoint in self.writer.run.checkpoints:  # a kill may have come between a save and what it makes needless
            if checkpoint.step != step:
                self._lighten(checkpoint.step)
        rule = self.stage.spec["stop"]
        if rule:
            _, capability, share, _ = self.sets[0]
            rows = self.writer.run.evaluations().to_dict("records")
            same = [r for r in rows if r["capability"] == capability and (r["share"] == share or share is None)]
            for row in sorted(same, key=lambda r: r["step"]):
                self.streak = self.streak + 1 if row["values"].mean() >= rule["accuracy"] else 0

    def finish(self) -> None:
        """Say the last step, so that a run that stopped early shows as whole."""
        if self.saved is not None:
            self.writer.progress(self.saved, self.settings.steps, seconds_left=0.0)
