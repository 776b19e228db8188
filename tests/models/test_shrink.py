"""Smaller models that say the same: held against the masks, through the disk and both ways of loading."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from workbench.errors import UserError
from workbench.models.checkpoints import load_model, save_model
from workbench.models.compiled import build
from workbench.models.fingerprint import check_unchanged
from workbench.models.shrink import costs, shrink
from workbench.models.units import units_of
from workbench.protocols import load_task

TOKENS = torch.randint(0, 20, (5, 9), generator=torch.Generator().manual_seed(0))
NONE = torch.empty(0, dtype=torch.long)


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def masked(model, neurons, heads):
    with units_of(model, "neurons").removed(model, neurons), units_of(model, "heads").removed(model, heads):
        return logits(model)


@pytest.fixture(params=["gpt2", "llama", "grouped"])
def model(request, make_model, make_grouped):
    return make_grouped() if request.param == "grouped" else make_model(request.param, heads=4)


CASES = {
    "neurons alone": (torch.arange(0, 48, 5), NONE),
    "heads alone": (NONE, torch.tensor([0, 1, 5])),
    "both, unevenly": (torch.tensor([3, 4, 30]), torch.tensor([2, 4, 5, 6])),
    "a block without neurons": (torch.arange(24), torch.tensor([7])),
    "a block without heads": (torch.tensor([40]), torch.arange(4, 8)),
    "nothing": (NONE, NONE),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_masks(model, case):
    neurons, heads = CASES[case]
    with check_unchanged(model):
        small = shrink(model, neurons, heads)
    assert (logits(small) - masked(model, neurons, heads)).abs().max() < 1e-5
    assert small.config.block_neurons == [
        max(1, 24 - int(((neurons >= 24 * b) & (neurons < 24 * b + 24)).sum())) for b in (0, 1)
    ]
    assert small.config.block_heads == [max(1, 4 - int(((heads >= 4 * b) & (heads < 4 * b + 4)).sum())) for b in (0, 1)]
    if len(neurons) + len(heads):
        assert (logits(small) - logits(model)).abs().max() > 1e-3
        assert small.num_parameters() < model.num_parameters()
    else:
        assert small.num_parameters() == model.num_parameters()


def test_in_double_precision_they_are_equal(make_model, kind):
    model = make_model(kind, heads=4, dtype=torch.float64)
    neurons, heads = CASES["both, unevenly"]
    assert torch.allclose(logits(shrink(model, neurons, heads)), masked(model, neurons, heads), atol=1e-12)


@pytest.mark.parametrize(("heads", "shared"), [([0, 1], 1), ([0, 2], 2), ([0], 3)])
def test_shared_keys_stay_shared_where_they_can(make_grouped, heads, shared):
    """Four heads, keys and values for every two: a whole group goes; one of each stays; one and two do not share evenly."""
    model = make_grouped()
    small = shrink(model, NONE, torch.tensor(heads))
    assert small.config.block_key_value_heads == [shared, 2]
    assert (logits(small) - masked(model, NONE, torch.tensor(heads))).abs().max() < 1e-5


def test_it_is_saved_and_loaded_by_us_and_by_transformers(model, tmp_path):
    neurons, heads = CASES["both, unevenly"]
    small = shrink(model, neurons, heads)
    save_model(small, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"].startswith("shrunk_")
    ours, theirs = load_model(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    for loaded in (ours, theirs):
        assert type(loaded) is type(small)
        assert torch.equal(logits(loaded), logits(small))
    assert load_model(tmp_path).generate(TOKENS[:, :3], max_new_tokens=2, do_sample=False, pad_token_id=0).shape == (5, 5)


def test_a_changed_file_is_noticed(model, tmp_path):
    save_model(shrink(model, torch.tensor([0])), tmp_path)
    body = json.loads((tmp_path / "config.json").read_text())
    body["block_neurons"][0] += 1
    (tmp_path / "config.json").write_text(json.dumps(body))
    with pytest.raises(UserError, match=r"cannot be loaded|of another shape"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("neurons", "heads", "word"), [([48], [], "48 neurons"), ([], [8], "8 heads"), ([-1], [], "48 neurons")]
)
def test_units_that_are_not_there_are_refused(model, neurons, heads, word):
    with pytest.raises(UserError, match=f"the model has {word}, numbered from 0"):
        shrink(model, torch.tensor(neurons, dtype=torch.long), torch.tensor(heads, dtype=torch.long))


def test_compiled_models_have_no_smaller_form_and_that_is_said():
    model = build(load_task({"kind": "rasp", "length": 4, "letters": 3}).compiled("count_a"))
    with pytest.raises(UserError, match="cannot be cut out of a CompiledForCausalLM, only out of GPT2LMHeadModel and Llama"):
        shrink(model, torch.tensor([0]))


def test_costs_are_counted_and_timed(make_model):
    model = make_model(width=32, mlp_width=512)
    small = shrink(model, torch.arange(2 * 512)[8:-8])
    before, after = costs([model, small], TOKENS.repeat(20, 1), turns=5)
    assert before.parameters - after.parameters == (2 * 512 - 16) * (32 + 1 + 32)
    assert before.bytes == 4 * before.parameters
    assert before.tokens == after.tokens == 900
    assert after.milliseconds < before.milliseconds
