"""Model folders: any Hugging Face tool opens them, and a damaged one is refused with a sentence."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from workbench.errors import UserError
from workbench.models.checkpoints import load_model, on_device, pick_device, save_model
from workbench.models.fingerprint import fixed_batch, folder_sha256, weights_sha256


@pytest.fixture
def saved(tmp_path, make_model, kind):
    folder = tmp_path / "model"
    folder.mkdir()
    model = make_model(kind)
    save_model(model, folder)
    return model, folder


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, make_model):
    folder = tmp_path_factory.mktemp("pristine")
    save_model(make_model("gpt2"), folder)
    return folder


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "copy")


def test_what_was_saved_is_what_is_loaded(saved):
    model, folder = saved
    loaded = load_model(folder)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_any_hugging_face_tool_opens_the_folder_and_finds_the_stored_hash_and_logits(saved):
    _, folder = saved
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(input_ids=fixed_batch(20, 12)).logits
    assert torch.allclose(load_file(folder / "fingerprint.safetensors")["logits"], logits, atol=1e-5)
    said = json.loads((folder / "fingerprint.json").read_text())
    assert said == {"weights_sha256": weights_sha256(model), "dtype": "float32"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_come_back_as_they_were(tmp_path, make_model, dtype):
    model = make_model("gpt2", dtype=dtype)
    save_model(model, tmp_path)
    assert load_model(tmp_path).dtype == dtype
    assert folder_sha256(tmp_path) == weights_sha256(model)


def test_the_hash_of_a_folder_is_the_hash_of_its_model(saved):
    model, folder = saved
    assert folder_sha256(folder) == weights_sha256(model)


def test_a_folder_made_elsewhere_needs_no_fingerprint(saved):
    model, folder = saved
    (folder / "fingerprint.json").unlink()
    assert weights_sha256(load_model(str(folder))) == weights_sha256(model)


def _edit_config(**changes):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return edit


def _edit_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.ln_f.bias"][0] += 1e-6
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _drop_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _edit_hash(folder):
    (folder / "fingerprint.json").write_text(json.dumps({"weights_sha256": "0" * 64}))


def _edit_logits(folder):
    logits = load_file(folder / "fingerprint.safetensors")["logits"]
    logits[1, 3, 5] += 2e-4
    save_file({"logits": logits}, folder / "fingerprint.safetensors")


def _cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def _only_pickle(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.ones(1)}, folder / "pytorch_model.bin")


def _pickle_behind_another_name(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: shutil.rmtree(f), "is no model folder: it has no config.json"),
        (lambda f: (f / "config.json").unlink(), "is no model folder: it has no config.json"),
        (_only_pickle, "pickled weights are never read"),
        (_pickle_behind_another_name, "cannot be loaded.*model.safetensors"),
        (_cut("model.safetensors", 5000), "cannot be loaded"),
        (_cut("model.safetensors", 0), "cannot be loaded"),
        (_edit_weights, "the file was changed after it was saved"),
        (_drop_weight, "weights are missing or of another shape.*lm_head.weight"),
        (_edit_hash, "the fingerprint says 000000000000"),
        (_edit_logits, "logits that differ by 2.0e-04 from those saved"),
        (lambda f: save_file({"logits": torch.zeros(1)}, f / "fingerprint.safetensors"), "logits that differ by inf"),
        (_cut("fingerprint.json", 5), "a fingerprint that cannot be read"),
        (lambda f: (f / "fingerprint.json").write_text("{}"), "a fingerprint that cannot be read"),
        (lambda f: (f / "fingerprint.json").write_text("[]"), "a fingerprint that cannot be read"),
        (_cut("fingerprint.safetensors", 50), "a fingerprint that cannot be read"),
        (lambda f: (f / "fingerprint.safetensors").unlink(), "a fingerprint that cannot be read"),
        (_cut("config.json", 9), "cannot be loaded.*not a valid JSON file"),
        (lambda f: (f / "config.json").write_text("[]"), "cannot be loaded"),
        (_edit_config(model_type="nonsense"), "cannot be loaded.*nonsense"),
        (_edit_config(n_layer="two"), "cannot be loaded.*n_layer"),
        (_edit_config(activation_function="nonsense"), "cannot be loaded.*nonsense"),
        (_edit_config(activation_function="relu"), "logits that differ"),
        (_edit_config(n_head=3), "cannot be loaded.*divisible"),
        (_edit_config(n_head=4), "logits that differ"),
        (_edit_config(n_layer=3), "weights are missing or of another shape"),
        (_edit_config(n_layer=1), "the file was changed after it was saved"),
        (_edit_config(n_embd=32), "cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_refused_with_a_sentence(folder, damage, says):
    damage(folder)
    with pytest.raises(UserError, match=f"(?s){folder}.*{says}") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_differences_that_kernels_make_are_allowed(folder):
    logits = load_file(folder / "fingerprint.safetensors")["logits"]
    save_file({"logits": logits + 5e-5}, folder / "fingerprint.safetensors")
    load_model(folder)


def test_nothing_is_printed_and_the_users_own_settings_stay(folder, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        load_model(folder)
        assert capfd.readouterr() == ("", "")
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, True)
    finally:
        logging.set_verbosity(before)


def test_auto_is_a_device_that_exists():
    assert pick_device() == pick_device("auto") == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == torch.device("cpu")


def test_auto_is_cuda_when_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")


@pytest.mark.parametrize("name", ["banana", "", "cuda:99", "mps:7", "meta", "hpu", "xpu:9"])
def test_a_device_that_is_not_there_is_refused_by_name(name):
    with pytest.raises(UserError, match=rf"(?s)device '{name}' is not available here \(.+\); use 'auto' or 'cpu'"):
        pick_device(name)


def test_moving_a_model_moves_it_in_place(make_model):
    model = make_model()
    assert on_device(model, "cpu") is model
