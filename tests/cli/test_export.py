from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from workbench.models.anatomy import neuron_mask
from workbench.models.checkpoints import load_model


def test_the_folder_holds_a_smaller_model_of_the_same_logits(cli, whole, tmp_path):
    out = tmp_path / "small"
    body = cli("export", "tiny:wrapped", "--units", "12", "--out", out, "--json").json
    assert (body["pair"], body["seed"], body["kind"], body["of"], body["out"]) == ("tiny:wrapped", 0, "neurons", 64, str(out))
    assert body["before"]["parameters"] - body["after"]["parameters"] == 12 * (16 + 1 + 16)
    assert body["before"]["bytes"] == 4 * body["before"]["parameters"]
    assert body["largest_logit_gap"] < 1e-5
    assert json.loads((out / "export.json").read_text()) == body
    pair = whole.pair("wrapped", 0)
    mask = torch.ones(1, 64)
    for block, neuron in body["removed"]:
        mask[block, neuron] = 0
    assert mask.sum() == 64 - 12
    tokens = pair.examples("count_a", n=8).tokens
    with torch.no_grad():
        with neuron_mask(pair.tuned, mask):
            expected = pair.tuned(input_ids=tokens).logits
        for model in (load_model(out), AutoModelForCausalLM.from_pretrained(out)):
            assert (model(input_ids=tokens).logits - expected).abs().max() < 1e-5


def test_heads_and_the_printed_form(cli, tmp_path):
    said = cli("export", "tiny:wrapped", "--units", "1", "--kind", "heads", "--out", tmp_path / "small")
    assert said.code == 0
    assert "1 of 2 heads cut out (signed_taylor)" in said.out
    for word in ("parameters", "size", "forward pass of", "accuracy of count_a (n = 16)", "logits differ by at most"):
        assert word in said.out
    assert load_model(tmp_path / "small").config.block_heads == [1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny", "--units", "1"], "'tiny' names no pair; write study:pair"),
        (["tiny:wraped", "--units", "1"], "has no pair 'wraped'; did you mean 'wrapped'?"),
        (["tiny:wrapped", "--units", "1", "--kind", "rows"], "--kind 'rows' cannot be cut out; choose one of neurons, heads."),
        (["tiny:wrapped", "--units", "65"], "--units 65 is more than the 64 neurons of the model"),
        (["tiny:wrapped", "--units", "1", "--score", "magic"], "pruning: score is 'magic'"),
        (["tiny:wrapped", "--units", "1", "--kind", "heads", "--score", "input_taylor"], "is not defined for heads"),
        (["tiny:wrapped", "--units", "1", "--seed", "9"], "has no seed 9"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(cli, tmp_path, words, message):
    assert message in cli("export", *words, "--out", tmp_path / "small").sentence
    assert not (tmp_path / "small").exists()


def test_a_folder_with_something_in_it_is_left_alone(cli, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "thesis.txt").write_text("mine")
    message = cli("export", "tiny:wrapped", "--units", "1", "--out", tmp_path / "small").sentence
    assert "exists and is not an empty folder" in message
    assert [file.name for file in (tmp_path / "small").iterdir()] == ["thesis.txt"]
