"""Given checkpoints: a folder of `save_pretrained` or a model of the hub, as the weights that a study starts from.

What planning asks (where the files are, their sizes, their hash) is read from `config.json` and the headers of the weights and
imports no torch. Only safetensors are read; code that comes with a model is never run.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from workbench.errors import UserError
from workbench.files import atomic_text
from workbench.hub import PATIENCE, Unreachable, asking, cache, home, offline, unreachable
from workbench.models.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FILES = ["*.json", "*.safetensors"]
_COMMIT = re.compile(r"[0-9a-f]{40}")
_INSTEAD = "a local folder written by save_pretrained"
_NAMES: Mapping[str, tuple[str, ...]] = {
    "blocks": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "width": ("hidden_size", "n_embd", "d_model"),
    "hidden": ("intermediate_size", "n_inner", "ffn_dim", "d_ff"),
    "vocab_size": ("vocab_size",),
    "context": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
}
"""What architectures call their sizes in `config.json`; what is not there is asked of transformers."""
_NO_PARAMETERS = (".attn.bias", ".attn.masked_bias", ".inv_freq")
"""Ends of the names of causal masks and rotary frequencies, which old files hold beside the weights."""
LARGE = 50_000_000
"""Bytes from which on the hash of a file is kept, since reading gigabytes takes seconds."""
_FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class Given:
    """What the folder of a checkpoint says about its model."""

    folder: Path
    commit: str | None
    """Of a model of the hub."""
    sha256: str
    """Of `config.json` and all weights."""
    parameters: int
    """Each tied matrix once."""
    blocks: int
    heads: int
    width: int
    hidden: int
    """Hidden MLP neurons per block."""
    vocab_size: int
    context: int | None
    """Longest sequence that it has positions for; None where the architecture sets no limit."""


def resolve(spec: ModelSpec) -> tuple[ModelSpec, Given]:
    """The spec with its place and hash pinned (absolute path or commit), and what the folder says.

    Raises:
        UserError: no such folder or model, one that is no causal language model in safetensors, or another one than the
            spec's `sha256` says.
        Unreachable: the hub cannot be reached and its cache lacks the model.
    """
    folder, commit = _locate(str(spec.path), spec.revision)
    found = _read(folder, commit, _signature(folder))
    _check_pin(spec, found.sha256)
    place = {"revision": commit} if commit else {"path": str(folder)}
    return spec.model_copy(update={**place, "sha256": found.sha256}), found


def load(spec: ModelSpec) -> PreTrainedModel:
    """The model with its given weights as float32 on the CPU, in evaluation mode; its files are hashed anew.

    Raises:
        UserError: as `resolve`, or weights that cannot be loaded.
    """
    from workbench.models.checkpoints import load_model

    folder, _ = _locate(str(spec.path), spec.revision)
    _check_pin(spec, _sha256(folder, fresh=True))
    return load_model(folder).float()


def untrained(spec: ModelSpec, seed: int) -> PreTrainedModel:
    """A model of the checkpoint's configuration with random float32 weights that depend on the seed alone.

    Raises:
        UserError: as `resolve`, or a configuration that cannot be built.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import workbench.models.checkpoints  # noqa: F401  # pyright: ignore[reportUnusedImport]  (registers our own architectures)
    from workbench.seeds import stream

    folder, _ = _locate(str(spec.path), spec.revision)
    _check_pin(spec, _sha256(folder, fresh=True))
    with torch.random.fork_rng(devices=[]), _building(folder):
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        torch.manual_seed(stream(seed, "weights"))
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def check_fits(given: Given, vocab_size: int, context: int) -> None:
    """Whether a task's tokens have rows in the embedding and its windows fit into the positions.

    Raises:
        UserError: they do not; the sentence names both numbers.
    """
    if vocab_size > given.vocab_size:
        raise UserError(
            f"the task has {vocab_size} token ids and the checkpoint {given.folder} has embeddings of {given.vocab_size}; "
            "give the task the tokenizer that the checkpoint was trained with."
        )
    if given.context is not None and context > given.context:
        raise UserError(
            f"task.context is {context} and the checkpoint {given.folder} has positions for {given.context} tokens; "
            f"use at most {given.context}."
        )


def _check_pin(spec: ModelSpec, sha256: str) -> None:
    if spec.sha256 not in (None, sha256):
        raise UserError(
            f"the checkpoint {spec.path!r} changed: its sha256 is {sha256[:12]}, it was {str(spec.sha256)[:12]}; "
            "give the study another name, or bring the old weights back."
        )


def _locate(path: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder and, of a model of the hub, its commit."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UserError(
                f"{path!r} is a local folder and has no revision {revision!r}; drop it, or name a model of the hub."
            )
        return folder.resolve(), None
    if folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"the checkpoint {path!r} {what}; give a folder written by save_pretrained, or owner/name of the hub.")
    return _from_hub(path, revision)


def _from_hub(name: str, revision: str | None) -> tuple[Path, str]:
    """A model in the hub's cache, downloaded where it is not there; a commit that is there asks the hub nothing."""
    from huggingface_hub import HfApi

    if revision is not None and _COMMIT.fullmatch(revision):
        with suppress(Unreachable):
            return _cached(name, revision)
    if not offline():
        with suppress(Unreachable), _asking(name, revision):
            commit = str(HfApi().model_info(name, revision=revision, timeout=PATIENCE).sha)
            return _snapshot(name, commit, local=False), commit
    return _cached(name, revision)


def _cached(name: str, revision: str | None) -> tuple[Path, str]:
    """What the hub's cache has, if it is the whole model and not its tokenizer alone."""
    folder = _snapshot(name, revision, local=True)
    if not (folder / "config.json").is_file() or not _weights(folder, missing_is_none=True):
        raise unreachable("model", name, revision, _INSTEAD)
    return folder, folder.name


def _snapshot(name: str, revision: str | None, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    with _asking(name, revision):
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=_FILES,
                ignore_patterns=["*/*"],  # other formats lie in folders of their own
                cache_dir=cache(),
                local_files_only=local,
            )
        )


def _asking(name: str, revision: str | None) -> AbstractContextManager[None]:
    return asking("model", name, revision, _INSTEAD)


def _weights(folder: Path, missing_is_none: bool = False) -> list[Path]:
    """The files of weights, all that an index names.

    Raises:
        UserError: there are none, or one is missing.
    """
    index = folder / "model.safetensors.index.json"
    whole = folder / "model.safetensors"
    named: set[str] = {whole.name} if whole.is_file() else set()
    if not named and index.is_file():
        named = {str(name) for name in cast(dict[str, Any], _json(index).get("weight_map", {})).values()}
    files = [folder / name for name in sorted(named)]
    if lacking := [file.name for file in files if not file.is_file()]:
        if missing_is_none:
            return []
        raise UserError(f"the checkpoint {folder} lacks {lacking[0]}, which its index names; fetch it again.")
    if not files and not missing_is_none:
        raise UserError(
            f"the checkpoint {folder} has no model.safetensors; save its weights with safetensors (pickled ones are never read)."
        )
    return files


def _json(file: Path) -> dict[str, Any]:
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"the checkpoint {file.parent} has no {file.name}; give a folder written by save_pretrained.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({type(error).__name__}); fetch or save the checkpoint again.") from error
    if not isinstance(body, dict):
        raise UserError(f"{file} holds no settings; fetch or save the checkpoint again.")
    return cast(dict[str, Any], body)


def _signature(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of change, so that what was read in this process is not read again."""
    files = [file for file in (folder / "config.json", *_weights(folder)) if file.is_file()]
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@lru_cache(maxsize=16)
def _read(folder: Path, commit: str | None, signature: tuple[tuple[str, int, int], ...]) -> Given:
    """What a folder says; `signature` is there for the cache."""
    config = _json(folder / "config.json")
    kinds = [str(kind) for kind in config.get("architectures") or ()]
    if config.get("is_encoder_decoder") or (kinds and not any(k.endswith(("ForCausalLM", "LMHeadModel")) for k in kinds)):
        raise UserError(
            f"the checkpoint {folder} is {', '.join(kinds) or 'an encoder and decoder'}, and only causal language models are "
            "studied here; give one whose architecture ends in ForCausalLM or LMHeadModel."
        )
    sizes = _sizes(folder, config)
    parameters = _parameters(folder, bool(config.get("tie_word_embeddings", False)))
    return Given(folder=folder, commit=commit, sha256=_sha256(folder), parameters=parameters, **sizes)


def _sizes(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        ours: next((config[name] for name in names if config.get(name) is not None), None) for ours, names in _NAMES.items()
    }
    if any(value is None for name, value in found.items() if name != "hidden"):
        full = _full_config(folder)
        for ours, names in _NAMES.items():
            if found[ours] is None:
                found[ours] = next((value for name in names if (value := getattr(full, name, None)) is not None), None)
    if found["hidden"] is None and isinstance(found["width"], int):
        found["hidden"] = 4 * found["width"]
    for name, value in found.items():
        if not (type(value) is int and value > 0) and not (name == "context" and value is None):
            raise UserError(
                f"{folder / 'config.json'} says {' or '.join(_NAMES[name])} is {value!r}; a positive whole number belongs there."
            )
    return found


def _full_config(folder: Path) -> Any:
    """The configuration with transformers' defaults, of the text model where there are several."""
    from transformers import AutoConfig

    import workbench.models.checkpoints  # noqa: F401  # pyright: ignore[reportUnusedImport]  (registers our own architectures)

    with _building(folder):
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        return config.get_text_config()


@contextmanager
def _building(folder: Path) -> Generator[None]:
    """What transformers cannot build, as a sentence."""
    try:
        yield
    except Exception as error:  # a configuration can be wrong in as many ways as there are architectures
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"the configuration of the checkpoint {folder} cannot be built ({reason}); "
            "give a model that this version of transformers knows without code of its own."
        ) from error


def _parameters(folder: Path, tied: bool) -> int:
    """Numbers in the weights, by the headers of their files.

    Raises:
        UserError: a damaged header, or weights that are quantised.
    """
    tensors: dict[str, Mapping[str, Any]] = {}
    for file in _weights(folder):
        try:
            with file.open("rb") as opened:
                (length,) = struct.unpack("<Q", opened.read(8))
                if length > file.stat().st_size:
                    raise ValueError("a header longer than the file")
                tensors.update(json.loads(opened.read(length)))
        except (OSError, ValueError, struct.error) as error:
            raise UserError(f"{file} is damaged ({error}); fetch or save the checkpoint again.") from error
    tensors.pop("__metadata__", None)
    count = 0
    for name, tensor in tensors.items():
        if name.endswith(_NO_PARAMETERS) or (tied and name == "lm_head.weight"):
            continue
        if tensor["dtype"] not in _FLOATS:
            raise UserError(
                f"the checkpoint {folder} holds {name} as {tensor['dtype']}: quantised weights cannot be trained; give the model "
                "in float32, float16 or bfloat16."
            )
        count += prod(tensor["shape"])
    return count


def _sha256(folder: Path, fresh: bool = False) -> str:
    digest = hashlib.sha256()
    for file in (folder / "config.json", *_weights(folder)):
        digest.update(f"{file.name} {_file_sha256(file, fresh)}\n".encode())
    return digest.hexdigest()


def _file_sha256(file: Path, fresh: bool) -> str:
    """Of a file's bytes; of a large one kept by place, size and time of change."""
    stat = file.stat()
    tag = hashlib.sha256(f"{file}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:24]
    memo = home() / "revival" / "hashes" / f"{tag}.txt"
    large = stat.st_size >= LARGE
    if large and not fresh and memo.is_file():
        return memo.read_text()
    try:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; mend the path or its permissions.") from error
    if large:
        with suppress(OSError):  # without it the file is read again
            memo.parent.mkdir(parents=True, exist_ok=True)
            atomic_text(memo, digest)
    return digest
