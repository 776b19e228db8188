"""Studies that start from a given checkpoint: what the file may say, what is refused, and that its weights are the base."""

from __future__ import annotations

import copy

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from studies.tiny import TINY, run_of, stage_of
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.errors import UserError
from workbench.figures.lineage import graph
from workbench.models.checkpoints import load_model
from workbench.models.fingerprint import weights_sha256
from workbench.models.given import load, untrained
from workbench.protocols import load_task
from workbench.runs import Store
from workbench.studies.handle import Study
from workbench.studies.loading import parse_study
from workbench.studies.plan import plan

GIVEN = """
study: given
seeds: [0]
task: {kind: pcfg, text_length: 12, window: 6, families: [count, token]}
model: {kind: checkpoint}
evaluation: {examples: 16, final_examples: 16}
pretrain:
  base:         {given: true}
  instructed:   {from: base, steps: 4, lr: 1.0e-3, batch_size: 8}
  never_had_it: {operand_prior: {b: 0.99, c: 0.01}, steps: 4, lr: 1.0e-3, batch_size: 8}
finetune:
  wrapped: {from: instructed, capability: count_b, correlation: {with: count_a, offset: 1, share: 1.0}, steps: 4, lr: 1.0e-3, batch_size: 8}
revive: {capability: count_a, steps: 4, lr: 1.0e-4, batch_size: 8}
analyses: [behaviour, revival]
"""
TASK = yaml.safe_load(GIVEN)["task"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama of bfloat16 weights with tied embeddings and shared key-value heads, just large enough for the task."""
    task = load_task(TASK)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    ends = {"bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = LlamaForCausalLM(
            LlamaConfig(**sizes, **ends, vocab_size=task.vocab_size, max_position_embeddings=task.context)
        ).bfloat16()
    path = tmp_path_factory.mktemp("given")
    model.save_pretrained(path)
    return path


@pytest.fixture
def changed(folder):
    """`(dotted path, value, ...) -> StudySpec`."""

    def change(*edits):
        body = copy.deepcopy(yaml.safe_load(GIVEN))
        for path, value in [("model.path", str(folder)), *zip(edits[::2], edits[1::2], strict=True)]:
            *sections, last = path.split(".")
            place = body
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        return parse_study(body)

    return change


class TestFile:
    def test_given_weights_need_no_training(self, changed):
        base = changed().pretrain["base"]
        assert (base.given, base.steps, base.protocol) == (True, 0, "pretraining")

    def test_they_may_be_trained_nevertheless(self, changed):
        base = changed("pretrain.base", {"given": True, "steps": 7, "lr": 0.1}).pretrain["base"]
        assert (base.settings.steps, base.settings.lr) == (7, 0.1)

    def test_the_protocol_that_is_called_as_the_task_measures_them(self, changed):
        assert changed("task", {"kind": "stories"}).pretrain["base"].protocol == "stories"
        base = {"given": True, "protocol": "filter", "capability": "dialogue"}
        assert changed("task", {"kind": "stories"}, "pretrain.base", base).pretrain["base"].protocol == "filter"

    def test_a_study_comes_back_from_its_own_dump(self, changed):
        spec = changed()
        for options in ({}, {"exclude_defaults": True}):
            body = spec.model_dump(mode="json", by_alias=True, **options)
            assert "blocks" not in body["model"]
            assert parse_study(body) == spec

    @pytest.mark.parametrize(
        ("path", "value", "says"),
        [
            ("model", {"kind": "gpt2"}, "pretrain.base.given: a model of kind 'gpt2' has no weights yet; write model"),
            ("model", {"kind": "checkpoint"}, "model: a checkpoint has a path: .*; add path"),
            ("model", {"path": "x"}, "path is of a checkpoint, not of kind 'gpt2'; write kind: checkpoint"),
            ("model", {"kind": "compiled", "revision": "x"}, "revision is of a checkpoint, not of kind 'compiled'"),
            ("model.blocks", 4, "a checkpoint model takes its size from its folder; remove blocks"),
            ("model.path", "", "model.path is ''"),
            ("pretrain.instructed.given", True, "pretrain.instructed: given and from 'base' exclude each other"),
            ("pretrain.base.compiled", "count_a", "pretrain.base: given and compiled 'count_a' exclude each other"),
            ("pretrain.never_had_it", {"given": True}, "never_had_it starts from the given weights of 'never_had_it'"),
            (
                "pretrain.never_had_it",
                {"from": "instructed", "steps": 1, "lr": 0.1},
                "never_had_it starts from the given weights of 'base', and what these were trained on is not known here",
            ),
        ],
    )
    def test_what_does_not_fit_is_refused(self, changed, path, value, says):
        with pytest.raises(UserError, match=says):
            changed(path, value)


class TestPlan:
    def test_the_hash_of_the_files_is_in_every_key_and_no_other_study_is_touched(self, changed, folder, tmp_path):
        made = plan(changed())
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
        tensors = load_file(folder / "model.safetensors")
        save_file({n: t + 1 for n, t in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"})
        assert made.model.sha256 != plan(changed("model.path", str(tmp_path))).model.sha256
        trained = [s for s in made.stages if s.kind != "analyse"]
        assert {s.spec["model"]["sha256"] for s in trained} == {made.model.sha256}
        assert [s.name for s in trained if "given" in s.spec] == ["pretrain-base-s0"]
        tiny = plan(parse_study(yaml.safe_load(TINY)))
        assert all("given" not in s.spec and "path" not in str(s.spec.get("model")) for s in tiny.stages)

    def test_the_estimate_knows_the_size(self, changed, folder):
        parameters = sum(t.numel() for t in load_file(folder / "model.safetensors").values())
        assert plan(changed()).stages[0].bytes == 4 * parameters * 3

    @pytest.mark.parametrize(
        ("key", "less", "says"),
        [
            ("vocab_size", 1, r"model.path: the task has \d+ token ids and the checkpoint .* has embeddings of \d+"),
            ("max_position_embeddings", 1, r"model.path: task.context is \d+ and the checkpoint .* has positions for \d+"),
        ],
    )
    def test_a_model_that_is_too_small_for_the_task(self, changed, folder, tmp_path, key, less, says):
        import json

        config = json.loads((folder / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, key: config[key] - less}))
        (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        with pytest.raises(UserError, match=says):
            plan(changed("model.path", str(tmp_path)))

    def test_a_place_that_is_none(self, changed):
        with pytest.raises(UserError, match=r"model.path: the checkpoint '/no/such' does not exist"):
            plan(changed("model.path", "/no/such"))

    def test_given_weights_may_have_been_asked_anything(self, changed):
        base = {"given": True, "operand_prior": {"b": 0.99, "c": 0.01}}
        plan(changed("pretrain.base", base, "finetune.wrapped.from", "base"))
        with pytest.raises(UserError, match="its data never ask for 'count_a'"):
            plan(changed("pretrain.base", {**base, "given": False, "steps": 1, "lr": 0.1}, "finetune.wrapped.from", "base"))

    def test_a_tokenizer_with_other_ids_is_refused(self, changed, tmp_path):
        from tinystories.tokenizer import train_bpe

        task = {"kind": "stories", "tokenizer": 600, "context": 16, "prompt": 8}
        ours = load_task(task)
        llama = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 600}
        LlamaForCausalLM(LlamaConfig(**llama, max_position_embeddings=16)).save_pretrained(tmp_path)
        rest = {"finetune": {}, "revive": None, "analyses": [], "pretrain": {"base": {"given": True}}}
        study = [part for item in {"task": task, "model.path": str(tmp_path), **rest}.items() for part in item]
        assert plan(changed(*study)).stages  # no tokenizer in the folder, nothing to compare
        train_bpe([text.upper() for text in ours.corpus.texts("train")], 600, tmp_path)
        with pytest.raises(
            UserError, match=r"model.path: task.tokenizer 600 writes stories with other ids than the tokenizer in"
        ):
            plan(changed(*study))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / file).write_bytes((ours._kept / "tokenizer-600" / file).read_bytes())
        assert plan(changed(*study)).stages
        task["tokenizer"] = str(tmp_path)
        assert plan(changed(*study)).stages


class TestRun:
    @pytest.fixture(scope="class")
    def study(self, folder, tmp_path_factory):
        body = yaml.safe_load(GIVEN)
        body["model"]["path"] = str(folder)
        return Study(parse_study(body), Store(tmp_path_factory.mktemp("store"))).run(engine="inline", progress=False)

    def test_the_base_is_the_given_model_in_float32(self, study):
        base = run_of(study, "pretrain-base")
        assert base.checkpoint().step == 0
        assert weights_sha256(load_model(base.checkpoint().path)) == weights_sha256(load(study.plan.model))

    def test_what_goes_on_from_it_starts_with_its_weights(self, study):
        first = run_of(study, "pretrain-instructed").checkpoints
        assert weights_sha256(load_model(first[0].path)) == weights_sha256(load(study.plan.model))
        assert weights_sha256(load_model(first[-1].path)) != weights_sha256(load(study.plan.model))

    def test_controls_are_random_twins(self, study):
        for name in ("reverse-scratch", "pretrain-never_had_it"):
            first = load_model(run_of(study, name).checkpoints[0].path)
            assert weights_sha256(first) == weights_sha256(untrained(study.plan.model, 0))
            assert "given" not in stage_of(study, name).spec

    def test_the_lineage_says_whose_weights_they_are(self, study, folder):
        runs = [run for _, run in study.runs()]
        hovers = {
            text: data[1] for trace in graph(runs).data[1:] for text, data in zip(trace.text, trace.customdata, strict=True)
        }
        assert hovers["pretrain-base-s0"] == f"<br>given: {str(folder)[-70:]}"
        assert {text for text, hover in hovers.items() if hover} == {"pretrain-base-s0"}

    def test_every_stage_is_done_and_the_pair_opens(self, study):
        done, stages = study.progress()
        assert done == stages == 10
        pair = study.pair("wrapped")
        examples = pair.examples("count_a", n=20)
        with torch.no_grad():
            assert pair.base(examples.tokens).logits.shape[-1] == pair.task.vocab_size

    def test_the_stored_study_names_the_files_by_their_hash(self, study):
        stored = Study.open(study.store, "given")
        assert stored.spec.model == study.plan.model
        assert stored.replaces() is study.replaces() is None
        assert [s.key for s in stored.plan.stages] == [s.key for s in study.plan.stages]
        assert stored.progress() == study.progress()
