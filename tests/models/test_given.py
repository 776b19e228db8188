"""Given checkpoints: what a folder says, that exactly its weights are taken, and what is refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from workbench.errors import UserError
from workbench.hub import Unreachable
from workbench.models.checkpoints import load_model, save_model
from workbench.models.fingerprint import folder_sha256, weights_sha256
from workbench.models.given import check_fits, load, resolve, untrained
from workbench.models.spec import ModelSpec

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ENDS = {"bos_token_id": None, "eos_token_id": None}


def llama():
    """As stories260K: grouped key-value heads, embeddings tied to the head."""
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 30}
    more = {"num_key_value_heads": 2, "max_position_embeddings": 12, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**sizes, **more, **ENDS))


def gpt2():
    """Dropout and tied embeddings are its defaults; `n_inner` is not said."""
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=3, n_head=4, vocab_size=30, n_positions=12, **ENDS))


def neox():
    """An architecture that no part of the workbench names."""
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 30}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, max_position_embeddings=12, **ENDS))


def bloom():
    """No limit of positions, and names of its own."""
    return BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=3, n_head=4, vocab_size=30, **ENDS))


MAKERS = {"llama": llama, "gpt2": gpt2, "neox": neox, "bloom": bloom}


def saved(folder, name="llama", dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = MAKERS[name]().to(dtype).eval()
    model.save_pretrained(folder)
    return model


def spec(folder, **more):
    return ModelSpec(kind="checkpoint", path=str(folder), **more)


@pytest.fixture
def folder(tmp_path):
    saved(tmp_path / "given")
    return tmp_path / "given"


class TestWhatAFolderSays:
    @pytest.mark.parametrize("name", MAKERS)
    def test_its_sizes_are_those_of_the_model(self, tmp_path, name):
        model = saved(tmp_path, name)
        _, found = resolve(spec(tmp_path))
        hidden = 20 if name in ("llama", "neox") else 64
        assert (found.blocks, found.heads, found.width, found.hidden, found.vocab_size) == (3, 4, 16, hidden, 30)
        assert found.context == (None if name == "bloom" else 12)
        assert found.parameters == sum(p.numel() for p in model.parameters())

    def test_weights_in_parts_and_old_masks_beside_them(self, tmp_path):
        model = saved(tmp_path / "whole", "gpt2")
        model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
        assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
        file = tmp_path / "whole" / "model.safetensors"
        mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 12, 12, dtype=torch.bool)}
        save_file({**load_file(file), **mask}, file, {"format": "pt"})
        for place in ("whole", "parts"):
            given = spec(tmp_path / place)
            assert resolve(given)[1].parameters == sum(p.numel() for p in model.parameters())
            assert weights_sha256(load(given)) == weights_sha256(model)

    def test_planning_imports_no_torch(self, folder):
        code = (
            "import sys; from workbench.models.given import resolve; from workbench.models.spec import ModelSpec; "
            f"print(resolve(ModelSpec(kind='checkpoint', path={str(folder)!r}))[1].blocks, 'torch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "3 False\n"

    def test_the_hash_is_of_weights_and_configuration(self, folder):
        first = resolve(spec(folder))[1].sha256
        (folder / "tokenizer.json").write_text("{}")
        shutil.copytree(folder, folder.with_name("copy"))
        assert resolve(spec(folder))[1].sha256 == resolve(spec(folder.with_name("copy")))[1].sha256 == first
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
        second = resolve(spec(folder))[1].sha256
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][0] += 1
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        assert len({first, second, resolve(spec(folder))[1].sha256}) == 3

    def test_a_pinned_spec_refuses_other_weights(self, folder):
        pinned, _ = resolve(spec(folder))
        assert resolve(pinned)[0] == pinned
        file = folder / "model.safetensors"
        before = file.stat()
        tensors = load_file(file)
        tensors["model.norm.weight"][0] += 1
        save_file(tensors, file, {"format": "pt"})
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # neither size nor time tells
        for take in (load, lambda one: untrained(one, 0)):
            with pytest.raises(UserError, match=r"changed: its sha256 is \w{12}, it was \w{12}; give the study another name"):
                take(pinned)
        os.utime(file)
        with pytest.raises(UserError, match="changed: its sha256"):
            resolve(pinned)

    def test_large_files_are_hashed_once(self, folder, monkeypatch):
        from workbench.models import given

        monkeypatch.setattr(given, "LARGE", 0)
        first = resolve(spec(folder))[1].sha256
        given._read.cache_clear()
        monkeypatch.setattr(given.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert resolve(spec(folder))[1].sha256 == first


class TestModels:
    @pytest.mark.parametrize("name", MAKERS)
    def test_the_weights_are_the_given_ones(self, tmp_path, name):
        model = saved(tmp_path, name)
        assert weights_sha256(load(spec(tmp_path))) == weights_sha256(model)

    @pytest.mark.parametrize("name", ["llama", "gpt2"])
    def test_bfloat16_is_trained_as_float32(self, tmp_path, name):
        half = saved(tmp_path / "half", name, torch.bfloat16)
        model = load(spec(tmp_path / "half"))
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert not model.training
        ours = dict(model.named_parameters())
        assert all(torch.equal(ours[n], p.float()) for n, p in half.named_parameters())
        (tmp_path / "saved").mkdir()
        save_model(model, tmp_path / "saved")
        again = load_model(tmp_path / "saved")
        assert again.dtype == torch.float32
        assert weights_sha256(again) == weights_sha256(model) == folder_sha256(tmp_path / "saved")

    def test_tied_embeddings_stay_one_matrix(self, folder):
        for model in (load(spec(folder)), untrained(spec(folder), 0)):
            assert model.lm_head.weight is model.model.embed_tokens.weight

    def test_an_untrained_one_has_the_configuration_and_the_weights_of_its_seed(self, folder):
        state = torch.get_rng_state()
        made = [untrained(spec(folder), seed) for seed in (0, 0, 1)]
        assert torch.equal(torch.get_rng_state(), state)
        hashes = [weights_sha256(model) for model in made]
        assert hashes[0] == hashes[1] != hashes[2]
        given = load(spec(folder))
        assert {n: p.shape for n, p in given.named_parameters()} == {n: p.shape for n, p in made[0].named_parameters()}
        embeddings = [model.model.embed_tokens.weight.flatten() for model in (given, made[0])]
        assert abs(torch.corrcoef(torch.stack(embeddings))[0, 1]) < 0.2

    def test_an_untrained_twin_of_bfloat16_is_float32(self, tmp_path):
        saved(tmp_path, "llama", torch.bfloat16)
        assert untrained(spec(tmp_path), 0).dtype == torch.float32


class TestFit:
    def test_what_fits_exactly_passes(self, folder):
        check_fits(resolve(spec(folder))[1], 30, 12)

    def test_both_numbers_are_named(self, folder):
        found = resolve(spec(folder))[1]
        with pytest.raises(
            UserError, match=r"the task has 31 token ids and the checkpoint .* has embeddings of 30; .*tokenizer"
        ):
            check_fits(found, 31, 12)
        with pytest.raises(UserError, match=r"task.context is 13 .* positions for 12 tokens; use at most 12"):
            check_fits(found, 30, 13)

    def test_no_limit_of_positions(self, tmp_path):
        saved(tmp_path, "bloom")
        check_fits(resolve(spec(tmp_path))[1], 30, 10**6)


def edit_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


class TestRefusals:
    @pytest.mark.parametrize(
        ("harm", "says"),
        [
            (lambda f: (f / "config.json").unlink(), "has no config.json; give a folder written by save_pretrained"),
            (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
            (lambda f: (f / "config.json").write_text("[]"), "config.json holds no settings"),
            (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "no model.safetensors; .* never read"),
            (lambda f: (f / "model.safetensors").write_bytes(b"x"), "is damaged"),
            (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 100), "is damaged"),
            (lambda f: edit_config(f, num_hidden_layers="many"), r"num_hidden_layers .* is 'many'; a positive whole number"),
            (lambda f: edit_config(f, architectures=["LlamaForSequenceClassification"]), "only causal language models"),
            (lambda f: edit_config(f, vocab_size=None, model_type="no_such_model"), "without code of its own"),
            (
                lambda f: save_file({"a.weight": torch.zeros(2, dtype=torch.int8)}, f / "model.safetensors"),
                "holds a.weight as I8: quantised weights cannot be trained",
            ),
        ],
    )
    def test_a_folder_that_is_none(self, folder, harm, says):
        harm(folder)
        with pytest.raises(UserError, match=says) as caught:
            resolve(spec(folder))
        assert "\n" not in str(caught.value)

    def test_an_encoder_and_decoder(self, tmp_path):
        T5ForConditionalGeneration(
            T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=9)
        ).save_pretrained(tmp_path)
        with pytest.raises(UserError, match="is T5ForConditionalGeneration, and only causal language models"):
            resolve(spec(tmp_path))

    def test_a_part_of_the_weights_is_missing(self, tmp_path):
        saved(tmp_path / "a").save_pretrained(tmp_path / "b", max_shard_size="5KB")
        (tmp_path / "b" / "model-00001-of-00004.safetensors").unlink(missing_ok=True)
        sorted((tmp_path / "b").glob("model-*.safetensors"))[0].unlink()
        with pytest.raises(UserError, match=r"lacks model-0000\d-of-\d+.safetensors, which its index names"):
            resolve(spec(tmp_path / "b"))

    @pytest.mark.parametrize(
        ("path", "says"),
        [
            ("/no/such", "'/no/such' does not exist"),
            ("./x", "does not exist"),
            ("a/b/c", "does not exist"),
            (__file__, "is a file"),
        ],
    )
    def test_a_place_that_is_none(self, path, says):
        with pytest.raises(UserError, match=says):
            resolve(spec(path))

    def test_a_revision_is_of_the_hub(self, folder):
        with pytest.raises(UserError, match="is a local folder and has no revision 'v1'"):
            resolve(spec(folder, revision="v1"))

    def test_weights_that_do_not_fit_the_configuration(self, folder):
        edit_config(folder, intermediate_size=24)
        with pytest.raises(UserError, match=r"cannot be loaded|another shape"):
            load(spec(folder))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty home of Hugging Face, offline, where every connection fails the test."""

    def refuse(*_):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "home" / "hub"


def fill(hub, name="some/model"):
    """The hub's cache with a model in it, as a download leaves it."""
    place = hub / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    saved(place / "snapshots" / COMMIT)
    return place / "snapshots" / COMMIT


class TestHub:
    def test_a_filled_cache_is_enough(self, hub):
        place = fill(hub)
        for revision in (None, "main", COMMIT):
            pinned, found = resolve(spec("some/model", revision=revision))
            assert (pinned.path, pinned.revision, found.commit, found.folder) == ("some/model", COMMIT, COMMIT, place)
        assert weights_sha256(load(pinned)) == weights_sha256(load_model(place))

    def test_offline_it_says_what_to_do(self, hub):
        says = (
            r"the model 'some/model' was not loaded because HF_HUB_OFFLINE is set .*; fill the cache .*, or give a local folder"
        )
        with pytest.raises(Unreachable, match=says):
            resolve(spec("some/model"))
        place = fill(hub)
        (place / "model.safetensors").unlink()  # as after a load of the tokenizer alone
        with pytest.raises(Unreachable, match=says):
            resolve(spec("some/model"))

    def test_a_hub_that_cannot_be_reached(self, hub, monkeypatch):
        def unreachable(*_, **__):
            raise socket.gaierror(-2, "Name or service not known")

        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr(socket, "getaddrinfo", unreachable)
        with pytest.raises(Unreachable, match="the hub cannot be reached and its cache lacks it"):
            resolve(spec("some/model"))
        fill(hub)
        assert resolve(spec("some/model"))[0].revision == COMMIT

    def test_the_hub_is_asked_for_no_more_than_configuration_and_safetensors(self, hub, monkeypatch):
        asked = []

        def download(name, *, revision, allow_patterns, ignore_patterns, local_files_only, **_):
            asked.append((name, revision, allow_patterns, ignore_patterns, local_files_only))
            return str(place)

        place = fill(hub)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha=COMMIT))
        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        pinned, _ = resolve(spec("some/model", revision="main"))
        resolve(pinned)  # a commit that is here asks nobody
        wanted = ("some/model", COMMIT, ["*.json", "*.safetensors"], ["*/*"])
        assert asked == [(*wanted, False), (*wanted, True)]

    def test_refusals_are_told_apart(self, hub, monkeypatch):
        kind = huggingface_hub.errors.GatedRepoError

        def refuse(*_, **__):
            raise kind.__new__(kind)

        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
        with pytest.raises(UserError, match="the model 'some/model' is gated") as caught:
            resolve(spec("some/model"))
        assert not isinstance(caught.value, Unreachable)

    def test_a_name_that_is_none(self, hub):
        with pytest.raises(UserError, match="'what is this' is no name of a hub model; write owner/name, a local folder"):
            resolve(spec("what is this"))
