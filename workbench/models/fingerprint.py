"""Fingerprints: a checkpoint says which weights it holds and what logits they give, so that silent wrongness is caught."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.errors import UserError
from workbench.seeds import torch_generator

TOLERANCE = 1e-4
"""Largest difference of logits on load: kernels and devices differ by about 1e-6."""


def _hash(items: Iterator[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in items:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_sha256(model: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of all parameters in order of their names."""
    return _hash((name, tensor) for name, tensor in sorted(model.named_parameters()))


def folder_sha256(folder: Path) -> str:
    """The hash of a saved folder's weights, read without building the model.

    Equal to `weights_sha256` of the loaded model wherever the file holds exactly the parameters (untied models).
    """
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return _hash((name, file.get_tensor(name)) for name in sorted(file.keys()))


def fixed_batch(vocab_size: int, context: int) -> Int[Tensor, "2 t"]:
    """The token ids on which every fingerprint is taken; they depend on the vocabulary and context alone."""
    return torch.randint(0, vocab_size, (2, min(16, context)), generator=torch_generator(0, "fingerprint", vocab_size))


@torch.no_grad()
def fixed_logits(model: PreTrainedModel) -> Float[Tensor, "2 t vocab"]:
    """Logits on the fixed batch, on the CPU."""
    context = getattr(model.config, "max_position_embeddings", None) or 16
    tokens = fixed_batch(model.config.vocab_size, context).to(model.device)
    training = model.training
    logits = model.eval()(input_ids=tokens, use_cache=False).logits.float().cpu()
    model.train(training)
    return logits


def write_fingerprint(model: PreTrainedModel, folder: Path) -> None:
    """`fingerprint.json` (hash of the weights) and `fingerprint.safetensors` (logits on the fixed batch)."""
    body = {"weights_sha256": weights_sha256(model), "dtype": str(model.dtype).removeprefix("torch.")}
    save_file({"logits": fixed_logits(model).contiguous()}, folder / "fingerprint.safetensors")
    (folder / "fingerprint.json").write_text(json.dumps(body, indent=1))


def check_fingerprint(model: PreTrainedModel, folder: Path) -> None:
    """Compare a loaded model with the fingerprint in its folder; a folder without one (not made here) passes.

    Raises:
        UserError: the weights' hash or the logits differ from what was saved, or the fingerprint is damaged.
    """
    if not (folder / "fingerprint.json").exists():
        return
    try:
        said = str(json.loads((folder / "fingerprint.json").read_text())["weights_sha256"])
        logits = load_file(folder / "fingerprint.safetensors")["logits"]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} has a fingerprint that cannot be read ({type(error).__name__}: {error}); "
            "files were lost or changed after they were saved: remove the run and make it again."
        ) from error
    found = weights_sha256(model)
    if said != found:
        raise UserError(
            f"{folder}: the weights have hash {found[:12]}, the fingerprint says {said[:12]}; "
            "the file was changed after it was saved: remove the run and make it again."
        )
    now = fixed_logits(model)
    gap = (logits - now).abs().max().item() if logits.shape == now.shape else float("inf")
    if not gap <= TOLERANCE:
        raise UserError(
            f"{folder}: the right weights give logits that differ by {gap:.1e} from those saved (allowed {TOLERANCE}); "
            "this version of transformers or this device computes the model differently."
        )


@contextmanager
def check_unchanged(*models: PreTrainedModel) -> Generator[None]:
    """Fail if the weights or hooks of a model differ after the block: an analysis must leave its subject alone."""
    before = [(weights_sha256(m), _hooks(m), m.training) for m in models]
    yield
    for model, was in zip(models, before, strict=True):
        if (weights_sha256(model), _hooks(model), model.training) != was:
            raise RuntimeError(f"an analysis changed the weights, hooks or mode of a {type(model).__name__} that it was given")


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())  # pyright: ignore[reportPrivateUsage]
