"""Studies that start from compiled weights: what the file may say, what is refused, and the whole picture (slow)."""

from __future__ import annotations

import copy

import pytest
import torch
import yaml
from studies.tiny import TINY, run_of, run_once, stage_of

from workbench.errors import UserError
from workbench.models.checkpoints import load_model
from workbench.models.compiled import NOISE, build
from workbench.models.fingerprint import weights_sha256
from workbench.protocols import compiled_weights, load_task
from workbench.studies.loading import load_study, parse_study, preset_names
from workbench.studies.plan import plan

COMPILED = """
study: compiled
seeds: [0]
task: {kind: rasp, program: counter, length: 8, letters: 3}
model: {kind: compiled}
evaluation: {examples: 32, final_examples: 32}
pretrain:
  base:         {compiled: count_a}
  never_had_it: {compiled: count_c}
finetune:
  wrapped: {from: base, capability: count_b, correlation: {with: count_a}, steps: 10, lr: 1.0e-3, batch_size: 32, optimizer: {kind: sgd}}
revive:
  {capability: count_a, steps: 10, lr: 3.0e-4, batch_size: 32, optimizer: {kind: sgd}, schedule: {kind: constant},
   arms: [revived, never_had_it, scratch], stop: {accuracy: 0.95, evaluations: 2}}
analyses: [behaviour, pruning, revival]
"""
WHOLE = {
    "evaluation": {"examples": 300, "final_examples": 300},
    "finetune.wrapped.steps": 160,
    "revive.steps": 160,
    "study": "whole",
}
"""What makes a picture of it rather than a test of the plumbing."""


def edited(**values):
    """The study as plain data, with some values changed."""
    body = copy.deepcopy(yaml.safe_load(COMPILED))
    for path, value in values.items():
        *sections, last = path.split(".")
        place = body
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return body


def changed(path, value):
    return parse_study(edited(**{path: value}))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return run_once(tmp_path_factory, COMPILED)


class TestFile:
    def test_compiled_weights_need_no_training(self):
        base = parse_study(yaml.safe_load(COMPILED)).pretrain["base"]
        assert (base.compiled, base.noise, base.steps, base.protocol) == ("count_a", NOISE, 0, "single_operand")
        assert base.protocol_settings == {"capability": "count_a"}

    def test_they_may_be_trained_nevertheless(self):
        base = changed("pretrain.base", {"compiled": "count_a", "noise": 0.0, "steps": 7, "lr": 0.1}).pretrain["base"]
        assert (base.noise, base.settings.steps, base.settings.lr) == (0.0, 7, 0.1)

    def test_a_study_comes_back_from_its_own_dump(self):
        spec = parse_study(yaml.safe_load(COMPILED))
        assert parse_study(spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)) == spec

    @pytest.mark.parametrize(
        ("path", "value", "says"),
        [
            ("model.kind", "gpt2", "pretrain.base.compiled: compiled weights do not fit a model of kind 'gpt2'"),
            ("model.blocks", 4, "a compiled model takes its size from the task; remove blocks"),
            ("pretrain.base.noise", -1, "pretrain.base.noise is -1"),
            ("pretrain.base", {"steps": 1, "lr": 0.1, "noise": 0.1}, "noise 0.1 is for compiled weights"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, path, value, says):
        with pytest.raises(UserError, match=says):
            changed(path, value)


class TestPlan:
    @pytest.mark.parametrize(
        ("path", "value", "says"),
        [
            ("pretrain.base.compiled", "count_z", "pretrain.base.compiled: the task has no capability 'count_z'; did you mean"),
            ("task", {"kind": "pcfg"}, "model.kind: a PcfgTask compiles no models"),
            ("pretrain.other", {"steps": 1, "lr": 0.1}, "pretrain-other|pretrain.other: protocol 'pretraining' needs a task"),
            ("finetune.wrapped.correlation", {"with": "count_a", "offset": 30}, "cannot be written into texts"),
        ],
    )
    def test_what_cannot_be_done_is_refused_by_name_before_anything_runs(self, path, value, says):
        with pytest.raises(UserError, match=says):
            plan(changed(path, value))

    def test_capability_and_noise_are_in_the_key_and_no_other_study_is_touched(self):
        made = [
            changed("pretrain.more", {"compiled": name, "noise": noise})
            for name, noise in (("count_a", 0.0), ("count_a", 0.1), ("count_b", 0.1))
        ]
        keys = {next(s.key for s in plan(spec).stages if s.name == "pretrain-more-s0") for spec in made}
        assert len(keys) == 3
        assert all("compiled" not in stage.spec for stage in plan(parse_study(yaml.safe_load(TINY))).stages)

    def test_the_estimate_knows_the_size(self):
        made = plan(parse_study(yaml.safe_load(COMPILED)))
        parameters = compiled_weights(load_task(made.spec.task)).parameters()
        assert made.stages[0].bytes == 4 * parameters * 3


class TestPresets:
    @pytest.mark.parametrize("name", [n for n in preset_names() if n.startswith("compiled_")])
    def test_all_start_from_the_noise_that_costs_no_accuracy(self, name):
        assert {base.noise for base in load_study(name).pretrain.values()} == {NOISE}

    def test_the_counter_has_the_shares_of_fig_48_and_the_reverse_rates_of_tab_4(self):
        made = plan(load_study("compiled_counter"))
        medium = {p.correlation.share: p for p in made.pairs if made.spec.finetune[p.name].lr == 1e-2}
        assert sorted(medium) == [0, 0.5, 0.8, 0.9, 1]
        for pair in medium.values():
            rates = {arm: stage.spec["training"]["lr"] for arm, stage in pair.arms.items()}
            assert {rates["revived"], rates["revived@0.001"]} == {1e-4, 1e-3}
        assert {made.spec.finetune[p.name].lr for p in made.pairs if not p.arms} == {1e-4}
        assert sum(stage.seconds for stage in made.stages) / 2 < 30 * 60


class TestRun:
    def test_the_first_model_is_the_compiled_one_with_noise(self, study):
        expected = build(compiled_weights(load_task(study.spec.task), "count_a"), NOISE, 0)
        assert weights_sha256(load_model(run_of(study, "pretrain-base").checkpoint().path)) == weights_sha256(expected)

    def test_scratch_starts_from_random_weights_of_that_architecture(self, study):
        run = run_of(study, "reverse-scratch")
        first = load_model(run.checkpoints[0].path)
        base = load_model(run_of(study, "pretrain-base").checkpoint().path)
        shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (first, base)]
        assert shapes[0] == shapes[1]
        assert first.model.token_embedding.weight.detach().std() == pytest.approx(base.config.hidden_size**-0.5, rel=0.1)
        assert "compiled" not in stage_of(study, "reverse-scratch").spec

    def test_every_stage_is_done(self, study):
        assert study.progress() == (9, 9)
        assert run_of(study, "pretrain-base").checkpoint().step == 0

    def test_pruning_runs_on_its_neurons(self, study):
        pruning = study.result("wrapped", "pruning")
        assert pruning.metric("base_pt").value > 0.95
        assert set(pruning.tables["units"]["block"]) <= {0, 1, 2}

    def test_the_pair_opens(self, study):
        pair = study.pair("wrapped")
        with torch.no_grad():
            examples = pair.examples("count_a", n=20)
            assert pair.base(examples.tokens).logits.shape == (20, 9, pair.task.vocab_size)
        assert pair.others == ()


@pytest.mark.slow
def test_the_whole_picture(tmp_path_factory):
    """A shortcut learned in 160 steps hides the compiled ability, few steps bring it back, and the controls do not learn it."""
    study = run_once(tmp_path_factory, yaml.safe_dump(edited(**WHOLE), sort_keys=False))
    behaviour, revival = (study.result("wrapped", name) for name in ("behaviour", "revival"))
    assert behaviour.metric("base_pt").value > 0.95
    assert behaviour.metric("tuned_pt").value < 0.4
    assert behaviour.metric("tuned_ft_correlated").value > 0.9
    assert behaviour.metric("tuned_ft").value < 0.1
    steps = {arm: revival.metric(f"steps_{arm}") for arm in ("revived", "never_had_it", "scratch")}
    assert steps["revived"].value < 80
    assert {steps["never_had_it"].bound, steps["scratch"].bound} == {"lower"}
    ends = revival.table.sort_values("step").groupby("arm")["value"].last()
    assert ends["revived"] > 0.95
    assert max(ends["never_had_it"], ends["scratch"]) < 0.5
    assert revival.metric("ratio").value < 0.5
