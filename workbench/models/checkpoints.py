"""Model folders: `save_pretrained` layout with a fingerprint, loaded by safetensors only."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

import workbench.models.compiled  # noqa: F401  # pyright: ignore[reportUnusedImport]  (registers the architecture)
from workbench.errors import UserError
from workbench.models.fingerprint import check_fingerprint, write_fingerprint
from workbench.models.shrunk import register

register()  # what was saved by `shrink` opens as any other folder


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA when there, else the CPU; MPS only when asked by name.

    Raises:
        UserError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(0, device=name).device
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        return device
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} is not available here ({reason}); use 'auto' or 'cpu'.") from error


def on_device(model: PreTrainedModel, device: torch.device | str) -> PreTrainedModel:
    """The same model, moved in place."""
    torch.nn.Module.to(model, device)
    return model


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write config, weights and fingerprint into an existing folder that every Hugging Face tool opens."""
    with _quiet():
        model.save_pretrained(folder)
    write_fingerprint(model, folder)


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> PreTrainedModel:
    """A causal language model in evaluation mode, its fingerprint checked.

    Raises:
        UserError: no model folder, pickled or damaged weights, or a fingerprint that does not fit.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise UserError(f"{folder} is no model folder: it has no config.json; give a folder written by save_pretrained.")
    if not any(path.glob("model*.safetensors")):
        raise UserError(f"{folder} has no .safetensors weights; save them with safetensors (pickled weights are never read).")
    try:
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
            model, report = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    except (SafetensorError, StrictDataclassError, OSError, ValueError, RuntimeError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{folder} cannot be loaded ({reason}); remove this checkpoint and make it again.") from error
    if report["missing_keys"] or report["mismatched_keys"]:
        missing = sorted(report["missing_keys"])[:3] or report["mismatched_keys"]
        raise UserError(f"{folder}: weights are missing or of another shape ({missing}); the folder is incomplete.")
    model.eval()
    check_fingerprint(model, path)
    return on_device(model, device)


@contextmanager
def _quiet() -> Generator[None]:
    """No bars for files that take milliseconds, and no warnings that our own checks say better."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
