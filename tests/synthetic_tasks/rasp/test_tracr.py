"""Tracr's own weights, read and run, against what Tracr recorded; and our compiler against the same answers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from synthetic_tasks.rasp import programs
from synthetic_tasks.rasp.compiler import compile_program
from synthetic_tasks.rasp.tracr import NUMBER, load_tracr
from synthetic_tasks.rasp.vocabulary import Vocabulary
from workbench.errors import UserError
from workbench.models.compiled import build

FILE = Path(__file__).parent / "tracr" / "frac_prevs.npz"


@pytest.fixture(scope="module")
def recorded():
    with np.load(FILE, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def imported():
    return load_tracr(FILE)


def texts(recorded, count=None):
    rows = zip(recorded["inputs"], recorded["lengths"], strict=True)
    return [torch.tensor(row[:length][None], dtype=torch.long) for row, length in list(rows)[:count]]


@torch.no_grad()
def test_outputs_to_1e_5(recorded, imported):
    model, place = build(imported, 0.0), imported.token_names.index(NUMBER)
    for ids, outputs in zip(texts(recorded), recorded["outputs"], strict=True):
        found = model(ids).logits[0, 1:, place].numpy()
        assert found == pytest.approx(outputs[1 : ids.shape[1]], abs=1e-5)


@torch.no_grad()
def test_attention_to_1e_4_and_residual_streams_to_1e_5(recorded, imported):
    model = build(imported, 0.0)
    for i, ids in enumerate(texts(recorded, 5)):
        seen = []
        hooks = [
            block.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output)) for block in model.model.blocks
        ]
        patterns = model(ids, output_attentions=True).attentions
        t = ids.shape[1]
        for layer in range(2):
            wanted = recorded["attention_first5"][i, layer, :, :t, :t]
            assert np.abs(patterns[layer][0].numpy() - wanted).max() < 1e-4
            after = recorded["residuals_first5"][i, 2 * layer + 2, :t]
            assert np.abs(seen[layer][0].numpy() - after).max() < 1e-5
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def test_our_compiler_gives_the_same_fractions(recorded):
    weights = compile_program(programs.fraction("x"), Vocabulary(("w", "x", "y", "z"), (NUMBER,)), 10)
    model = build(weights, 0.0)
    for ids, exact in zip(texts(recorded), json.loads(str(recorded["meta"]))["answers"], strict=True):
        ours = torch.cat([ids[:, :1], ids[:, 1:] - 1], 1)  # Tracr has a padding token before the letters
        assert model(ours).logits[0, 1:, -1].numpy() == pytest.approx(exact, abs=1e-4)


def test_what_is_read(imported):
    assert imported.token_names == ("compiler_bos", "compiler_pad", "w", "x", "y", "z", NUMBER)
    assert (imported.blocks, imported.heads, imported.head_dim, imported.width, imported.hidden) == (2, 1, 12, 19, 1)
    assert imported.answers == {"frac_prevs_1": NUMBER}
    assert "tokens:x" in imported.residual_labels


def test_answers_that_are_letters_are_their_tokens(recorded, tmp_path):
    meta = {**json.loads(str(recorded["meta"])), "output_values": ["x", "y"], "output_residual_index": [16, 17]}
    np.savez(tmp_path / "other.npz", **{**recorded, "meta": np.array(json.dumps(meta))})
    weights = load_tracr(tmp_path / "other.npz")
    assert weights.token_names[-1] == "z"
    assert weights.answers == {"tokens:x": "x", "tokens:y": "y"}


def _without(name):
    def write(path, recorded):
        np.savez(path, **{k: v for k, v in recorded.items() if k != name})

    return write


def _with_meta(**changes):
    def write(path, recorded):
        meta = {**json.loads(str(recorded["meta"])), **changes}
        np.savez(path, **{**recorded, "meta": np.array(json.dumps(meta))})

    return write


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (_with_meta(output_residual_index=[19]), "output_residual_index 19 is none of the 19 residual directions"),
        (_with_meta(output_residual_index=[-1]), "output_residual_index -1 is none"),
        (_with_meta(output_residual_index=None), "NoneType"),
        (
            _with_meta(num_heads=5),
            "num_heads 5 times key_size 12 and residual_size 19 do not fit transformer/layer_0/attn/query",
        ),
        (_with_meta(mlp_hidden_size=7), "mlp_hidden_size 7 and residual_size 19 do not fit transformer/layer_0/mlp/linear_1"),
        (_with_meta(residual_size=20), "residual_size 20 is not the number of residual_labels, 19"),
        (_with_meta(num_layers=3), "layer_2"),
        (lambda path, recorded: None, "No such file"),
        (lambda path, recorded: path.write_text("no archive"), "ValueError|UnpicklingError|pickle"),
        (_without("meta"), "meta"),
        (_without("params/pos_embed/embeddings"), "pos_embed"),
        (lambda path, recorded: np.savez(path, meta=np.array({"a": 1}, dtype=object)), "Object arrays"),
    ],
)
def test_a_file_that_is_no_model_is_refused(recorded, tmp_path, write, says):
    path = tmp_path / "model.npz"
    write(path, recorded)
    with pytest.raises(UserError, match="holds no readable Tracr model") as caught:
        load_tracr(path)
    assert any(part in str(caught.value) for part in says.split("|"))
