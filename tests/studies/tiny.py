"""A study of seconds: every kind of stage, run once in a test session and read by many tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.runs import Run, Store
from workbench.studies.handle import Study
from workbench.studies.stage import Stage

TINY = """
study: tiny
seeds: [0]
task: {kind: pcfg, text_length: 12, window: 6, families: [count, token]}
model: {blocks: 1, heads: 2, width: 16}
evaluation: {examples: 16, final_examples: 16}
pretrain:
  base:         {operand_prior: {a: 0.99, b: 0.01}, steps: 20, lr: 3.0e-3, batch_size: 8}
  never_had_it: {operand_prior: {b: 0.99, c: 0.01}, steps: 20, lr: 3.0e-3, batch_size: 8}
finetune:
  wrapped: {from: base, capability: count_b, correlation: {with: count_a, offset: 1, share: 1.0}, steps: 8, lr: 1.0e-3, batch_size: 8}
revive: {capability: count_a, steps: 8, lr: 1.0e-4, batch_size: 8}
analyses: [behaviour, pruning, probing, revival]
"""

TRAININGS = """
study: trainings
seeds: [0]
task: {kind: pcfg, text_length: 12, window: 6, families: [count, token]}
model: {blocks: 1, heads: 2, width: 16}
evaluation: {examples: 16, final_examples: 16}
pretrain:
  base:  {steps: 400, lr: 3.0e-3, batch_size: 8}
  other: {steps: 5, lr: 3.0e-3, batch_size: 8}
finetune:
  tuned: {from: base, capability: count_b, steps: 5, lr: 1.0e-3, batch_size: 8}
"""
"""Long enough to be killed in the middle, with a branch that does not need what is killed, and a stage that does."""

TALES = """
study: tales
seeds: [0]
task: {kind: stories, tokenizer: 600, context: 96, prompt: 16}
model: {kind: gpt2, blocks: 1, heads: 2, width: 16}
evaluation: {examples: 16, final_examples: 16, keep: last}
pretrain:
  base:         {protocol: stories, steps: 12, lr: 1.0e-2, batch_size: 4}
  never_had_it: {protocol: stories, without: dialogue, steps: 4, lr: 1.0e-2, batch_size: 4}
finetune:
  filtered: {from: base, protocol: filter, capability: no_dialogue, steps: 4, lr: 1.0e-2, batch_size: 4}
revive: {capability: dialogue, protocol: specialise, steps: 3, lr: 1.0e-3, batch_size: 4, arms: [revived, never_had_it]}
analyses: []
"""
"""Stories of the bundled sample: four models that write."""


def write_study(folder: Path, text: str = TINY, name: str = "study") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


_DONE: dict[str, Study] = {}


def run_once(factory: pytest.TempPathFactory, text: str) -> Study:
    """A study with all its stages done, once for all folders of tests in a process."""
    if text not in _DONE:
        folder = factory.mktemp("study")
        _DONE[text] = Study.load(write_study(folder, text), Store(folder / "runs")).run(engine="inline", progress=False)
    return _DONE[text]


def stage_of(study: Study, start: str) -> Stage:
    """The only stage whose name begins so."""
    (found,) = [stage for stage in study.plan.stages if stage.name.startswith(start)]
    return found


def run_of(study: Study, start: str) -> Run:
    run = study.store.find(stage_of(study, start).key)
    assert run is not None
    return run


def weights(run: Run) -> dict[int, str]:
    """Hash of the weights by step of the checkpoint."""
    from workbench.models.fingerprint import folder_sha256

    return {checkpoint.step: folder_sha256(checkpoint.path) for checkpoint in run.checkpoints}


def resumable(run: Run) -> list[int]:
    """Steps of the checkpoints that hold any part of a training state."""
    return [c.step for c in run.checkpoints if list(c.path.glob("training_state*"))]
