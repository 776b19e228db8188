"""Compiled models: the architecture against a loop in NumPy, and everything that the workbench does with a model."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from workbench.errors import UserError
from workbench.models.anatomy import anatomy, blocks, last_block_at, neuron_mask, neuron_shape
from workbench.models.build import build_model, random_twin
from workbench.models.checkpoints import load_model, save_model
from workbench.models.compiled import CompiledForCausalLM, build, config_of
from workbench.models.fingerprint import folder_sha256, weights_sha256
from workbench.models.forward import answer_logits, evaluate, hidden_states, logits_where, nll
from workbench.models.leave_one_out import leave_one_out
from workbench.models.lens import lens, residual_streams
from workbench.models.scores import SCORES, Request, score_units
from workbench.models.spec import ModelSpec
from workbench.models.units import units_of
from workbench.protocols import Compiled
from workbench.training.loop import Objective, Targets

VOCAB, CONTEXT, BLOCKS, HEADS, DIM, WIDTH, HIDDEN = 20, 12, 2, 2, 3, 7, 5


def arrays(seed=0):
    """Weights of every name, as a compiler would write them."""
    rng = np.random.default_rng(seed)
    inner = HEADS * DIM
    shapes = {"model.token_embedding.weight": (VOCAB, WIDTH), "model.position_embedding.weight": (CONTEXT, WIDTH)}
    shapes["head.weight"] = (VOCAB, WIDTH)
    for i in range(BLOCKS):
        for name in ("query", "key", "value"):
            shapes[f"model.blocks.{i}.attention.{name}.weight"] = (inner, WIDTH)
            shapes[f"model.blocks.{i}.attention.{name}.bias"] = (inner,)
        shapes[f"model.blocks.{i}.attention.output.weight"] = (WIDTH, inner)
        shapes[f"model.blocks.{i}.attention.output.bias"] = (WIDTH,)
        shapes[f"model.blocks.{i}.mlp.input.weight"] = (HIDDEN, WIDTH)
        shapes[f"model.blocks.{i}.mlp.input.bias"] = (HIDDEN,)
        shapes[f"model.blocks.{i}.mlp.output.weight"] = (WIDTH, HIDDEN)
        shapes[f"model.blocks.{i}.mlp.output.bias"] = (WIDTH,)
    return {name: 0.6 * rng.standard_normal(shape) for name, shape in shapes.items()}


def compiled(seed=0, **changes):
    given = {
        "token_names": tuple(f"t{i}" for i in range(VOCAB)),
        "context": CONTEXT,
        "blocks": BLOCKS,
        "heads": HEADS,
        "head_dim": DIM,
        "width": WIDTH,
        "hidden": HIDDEN,
        "residual_labels": tuple(f"d:{i}" for i in range(WIDTH)),
        "neuron_labels": (("does this", "", "", "", ""), ("",) * HIDDEN),
        "answers": {"d:1": "t3"},
        "logit_scale": 2.5,
        "weights": arrays(seed),
    }
    return Compiled(**{**given, **changes})


def naive(weights, tokens, scale=2.5):
    """Logits `[t, vocab]`, streams `[points, t, width]` and patterns of one sequence, head by head in float64."""
    w = {name.removeprefix("model."): value for name, value in weights.items()}
    x = np.stack([w["token_embedding.weight"][t] + w["position_embedding.weight"][i] for i, t in enumerate(tokens)])
    streams, patterns = [x], []
    for i in range(BLOCKS):
        part = {k: (w[f"blocks.{i}.{k}.weight"], w[f"blocks.{i}.{k}.bias"]) for k in PARTS}
        q, k, v = (x @ part[f"attention.{name}"][0].T + part[f"attention.{name}"][1] for name in ("query", "key", "value"))
        seen = []
        for head in range(HEADS):
            place = slice(head * DIM, (head + 1) * DIM)
            scores = np.exp(q[:, place] @ k[:, place].T / np.sqrt(DIM))
            patterns.append(scores / scores.sum(1, keepdims=True))
            seen.append(patterns[-1] @ v[:, place])
        out, bias = part["attention.output"]
        x = x + np.concatenate(seen, axis=1) @ out.T + bias
        hidden = np.maximum(x @ part["mlp.input"][0].T + part["mlp.input"][1], 0)
        x = x + hidden @ part["mlp.output"][0].T + part["mlp.output"][1]
        streams.append(x)
    return x @ (scale * w["head.weight"]).T, np.stack(streams), np.stack(patterns).reshape(BLOCKS, HEADS, len(x), len(x))


PARTS = [f"attention.{name}" for name in ("query", "key", "value", "output")] + ["mlp.input", "mlp.output"]


@pytest.fixture
def model():
    return build(compiled(), 0.0)


class TestArchitecture:
    def test_it_is_the_loop(self, model, random_examples):
        tokens = random_examples().tokens
        with torch.no_grad():
            found = model(tokens, output_attentions=True)
        for i, row in enumerate(tokens.tolist()):
            logits, _, patterns = naive(arrays(), row)
            assert np.allclose(found.logits[i], logits, atol=1e-3, rtol=1e-4)
            assert np.allclose(torch.stack(found.attentions)[:, i], patterns, atol=1e-5)

    @torch.no_grad()
    def test_attention_that_is_shown_is_attention_that_is_used(self, model, random_examples):
        examples = random_examples(padded=True)
        for mask in (None, examples.attention_mask):
            fused, shown = (model(examples.tokens, attention_mask=mask, output_attentions=on).logits for on in (False, True))
            assert torch.allclose(fused, shown, atol=1e-3)

    @torch.no_grad()
    def test_every_position_sees_every_other(self, model):
        tokens = torch.arange(8)[None]
        changed = tokens.clone()
        changed[0, 7] = 19
        assert (model(tokens).logits[0] - model(changed).logits[0]).abs().amax(1).min() > 1e-3

    @torch.no_grad()
    def test_random_weights_keep_the_scale_of_one_hot_rows(self, model):
        big = config_of(compiled(width=200, hidden=100, weights={}))
        twin = random_twin(CompiledForCausalLM(big), 0)
        rows = twin.model.token_embedding.weight.norm(dim=1)
        assert rows.mean() == pytest.approx(1, abs=0.05)
        assert twin.model.blocks[0].mlp.output.weight.std() == pytest.approx(0.1, abs=0.01)
        assert not twin.model.blocks[0].mlp.output.bias.any()


class TestBuild:
    @torch.no_grad()
    def test_names_that_are_left_out_are_zero(self):
        rest = {k: v for k, v in arrays().items() if "mlp" not in k}
        model = build(compiled(weights=rest), 0.0)
        assert not model.model.blocks[1].mlp.input.weight.any()
        assert np.allclose(model.head.weight, 2.5 * rest["head.weight"], atol=1e-6)

    @torch.no_grad()
    def test_noise_is_on_all_weights_and_a_function_of_the_seed(self):
        clean, noisy, again, other = (build(compiled(), n, s) for n, s in ((0.0, 0), (0.1, 1), (0.1, 1), (0.1, 2)))
        assert weights_sha256(noisy) == weights_sha256(again) != weights_sha256(other)
        added = torch.cat([(a - b).flatten() for a, b in zip(noisy.parameters(), clean.parameters(), strict=True)])
        assert (added != 0).all()
        assert added.std() == pytest.approx(0.1, rel=0.1)
        assert added.mean() == pytest.approx(0, abs=0.02)

    def test_the_global_random_state_is_left_as_it_was(self):
        torch.manual_seed(5)
        expected = torch.randn(3)
        torch.manual_seed(5)
        build(compiled(), 0.1)
        assert torch.equal(torch.randn(3), expected)

    @pytest.mark.parametrize(
        ("changes", "says"),
        [({"model.nothing": np.ones(2)}, "are no parameters"), ({"head.weight": np.ones((2, 2))}, r"has shape \(2, 2\)")],
    )
    def test_weights_that_do_not_fit_are_refused(self, changes, says):
        with pytest.raises(ValueError, match=says):
            build(compiled(weights={**arrays(), **changes}), 0.0)

    def test_random_weights_of_a_compiled_size(self, model):
        spec = ModelSpec(kind="compiled")
        one, same, other = (build_model(spec, VOCAB, CONTEXT, seed, compiled()) for seed in (0, 0, 1))
        assert weights_sha256(one) == weights_sha256(same) != weights_sha256(other)
        assert {n: p.shape for n, p in one.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
        with pytest.raises(ValueError, match="sizes of compiled weights"):
            build_model(spec, VOCAB, CONTEXT, 0)

    def test_a_random_twin(self, model):
        torch.manual_seed(5)
        expected = torch.randn(3)
        torch.manual_seed(5)
        twin, other = random_twin(model, 0), random_twin(model, 1)
        assert torch.equal(torch.randn(3), expected)
        assert len({weights_sha256(m) for m in (model, twin, other)}) == 3
        assert twin.config.to_dict() == model.config.to_dict()


class TestCheckpoints:
    def test_saved_is_loaded_with_labels_and_fingerprint(self, tmp_path, model):
        save_model(model, tmp_path)
        loaded = load_model(tmp_path)
        assert type(loaded) is CompiledForCausalLM
        assert weights_sha256(loaded) == weights_sha256(model) == folder_sha256(tmp_path)
        assert loaded.config.residual_labels == [f"d:{i}" for i in range(WIDTH)]
        assert loaded.config.neuron_labels[0][0] == "does this"
        assert (loaded.config.answers, loaded.config.logit_scale) == ({"d:1": "t3"}, 2.5)
        assert not loaded.training

    def test_the_auto_classes_open_the_folder(self, tmp_path, model):
        save_model(model, tmp_path)
        assert AutoConfig.from_pretrained(tmp_path).model_type == "compiled"
        assert weights_sha256(AutoModelForCausalLM.from_pretrained(tmp_path)) == weights_sha256(model)

    def test_a_changed_file_is_refused(self, tmp_path, model):
        save_model(model, tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "num_attention_heads": 1, "head_dim": 6}))
        with pytest.raises(UserError, match="logits that differ"):
            load_model(tmp_path)


class TestSites:
    def test_every_site_of_the_table_is_there(self, model):
        sites = anatomy(model)
        assert (sites.final_norm, sites.attention_norm, sites.mlp_norm) == (None, None, None)
        assert not sites.causal
        for path in (sites.blocks, *sites.embeddings):
            model.get_submodule(path)
        for path in (sites.attention_out, sites.mlp, *sites.mlp_in, sites.mlp_out):
            blocks(model)[0].get_submodule(path)
        assert neuron_shape(model) == (BLOCKS, HIDDEN)

    @torch.no_grad()
    def test_a_masked_neuron_is_a_neuron_zeroed_in_the_weights(self, model, random_examples):
        tokens, mask, twin = random_examples().tokens, torch.ones(BLOCKS, HIDDEN), copy.deepcopy(model)
        mask[1, 3] = 0
        twin.model.blocks[1].mlp.input.weight[3] = 0
        twin.model.blocks[1].mlp.input.bias[3] = 0
        with neuron_mask(model, mask):
            assert torch.allclose(model(tokens).logits, twin(tokens).logits, atol=1e-4)

    @torch.no_grad()
    def test_the_last_block_at_positions_is_the_whole_forward_there(self, model, random_examples):
        tokens, at, rows = random_examples().tokens, torch.tensor([[1], [8], [0], [4], [6], [9]]), torch.arange(6)[:, None]
        with last_block_at(model, at):
            partly = model(tokens).logits[rows, at]
        assert torch.allclose(partly, model(tokens).logits[rows, at], atol=1e-4)


class TestForward:
    """A bidirectional model is always shown the whole sequence."""

    @torch.no_grad()
    @pytest.mark.parametrize("padded", [False, True])
    def test_answer_logits_and_streams_are_those_of_whole_sequences(self, model, random_examples, padded):
        examples = random_examples(padded=padded)
        logits, streams = answer_logits(model, examples)[:, 0], residual_streams(model, examples)
        assert streams.shape == (BLOCKS + 1, 6, WIDTH)
        for i in range(6):
            place = int(examples.answer_position[i])
            row = examples.tokens[i] if not padded else examples.tokens[i][examples.attention_mask[i]]
            expected, points, _ = naive(arrays(), row.tolist())
            assert np.allclose(logits[i], expected[place], atol=1e-3, rtol=1e-4)
            assert np.allclose(streams[:, i], points[:, place], atol=1e-4, rtol=1e-4)

    @torch.no_grad()
    def test_hidden_states_and_logits_at_a_mask(self, model, random_examples):
        examples = random_examples(everywhere=True)
        whole = model(examples.tokens).logits
        assert torch.allclose(model.head(hidden_states(model, examples, 4)), whole[:, :4], atol=1e-4)
        mask = examples.loss_mask[:, 1:5]
        assert torch.allclose(logits_where(model, examples, mask), whole[:, :4][mask], atol=1e-4)

    @torch.no_grad()
    def test_the_batch_size_does_not_matter_and_no_hook_stays(self, model, random_examples):
        examples = random_examples()
        assert torch.allclose(evaluate(model, examples, nll, batch_size=2), evaluate(model, examples, nll), atol=1e-3)
        assert torch.allclose(residual_streams(model, examples, batch_size=4), residual_streams(model, examples), atol=1e-4)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    def test_there_is_no_bridge_and_that_is_said(self, model):
        with pytest.raises(UserError, match="TransformerLens has no bridge for CompiledForCausalLM"):
            lens(model)

    def test_the_loss_on_answers_that_stand_in_no_token(self, model, random_examples):
        """An empty loss mask: cross-entropy of the answers, of whatever tokens stand after the read position."""
        given = random_examples()
        answer = (given.answer + 1) % VOCAB
        outside = replace(given, loss_mask=torch.zeros_like(given.loss_mask), answer=answer)
        targets = Targets.of(outside)
        assert (targets.count, targets.answers) == (6, True)
        total = Objective(model)(outside, targets.answers)
        assert total.item() == pytest.approx(nll(model, outside).sum().item(), rel=1e-5)
        place = int(given.answer_position[0])
        logits = naive(arrays(), given.tokens[0].tolist())[0][place]
        first = np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[int(answer[0, 0])]
        assert nll(model, outside)[0].item() == pytest.approx(first, rel=1e-3)

    def test_gradients_reach_every_parameter(self, model, random_examples):
        nll(model, random_examples()).mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert sum(bool(p.grad.any()) for p in model.parameters()) >= len(list(model.parameters())) - 2  # key biases cancel


@pytest.mark.parametrize("kind", ["neurons", "heads"])
def test_units_are_left_out_exactly(random_examples, kind):
    model, examples = build(compiled(), noise=0).double(), random_examples(n=5)
    units = units_of(model, kind)
    found = leave_one_out(model, examples, kind)
    with torch.no_grad():
        plain = nll(model, examples).mean()
        for number in range(len(units)):
            with units.removed(model, torch.tensor([number])):
                change = nll(model, examples).mean() - plain
            assert found.loss.flatten()[number].item() == pytest.approx(change.item(), abs=1e-12)


def test_every_score_is_defined_and_sees_what_stands_behind_the_answer(random_examples):
    model, examples = build(compiled(), noise=0.01), random_examples(n=6)
    last = examples.tokens.clone()
    last[:, -1] = (last[:, -1] + 1) % VOCAB  # behind every answer's position
    other = replace(examples, tokens=last)
    for kind in ("neurons", "heads", "rows", "weights:mlp_in"):
        units = units_of(model, kind)
        for name, score in SCORES.items():
            if units.word in score.words and name not in ("random", "magnitude", "difference"):
                one, two = (score_units(name, Request(model, units, given)) for given in (examples, other))
                assert torch.isfinite(one).all()
                assert not torch.equal(one, two) or name in ("leave_one_out_accuracy", "set_difference"), (kind, name)
