"""Reading models that Tracr itself compiled [Lindner+23], from arrays under Haiku's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np

from workbench.errors import UserError
from workbench.protocols import Compiled

NUMBER = "number"
"""The token whose logit is a numerical output."""


def load_tracr(path: str | Path) -> Compiled:
    """The weights of a Tracr model, unchanged.

    Args:
        path: of an `.npz` file with `meta` (JSON text: sizes, `input_id_to_token`, `output_values` or None for a numerical
            output, `output_residual_index`), `residual_labels`, and the weights as `params/MODULE/NAME`. Answers that are no
            input tokens follow these in the vocabulary.

    Raises:
        UserError: no such file, one that lacks an array or holds pickled objects, or sizes or an index that the arrays belie.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
        meta = cast(dict[str, Any], json.loads(str(arrays["meta"])))
        return _compiled(meta, arrays)
    except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise UserError(f"{path} holds no readable Tracr model ({type(error).__name__}: {error}); export it again.") from error


def _compiled(meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> Compiled:
    labels = tuple(str(name) for name in arrays["residual_labels"])
    names = [str(name) for name in meta["input_id_to_token"]]
    said = [NUMBER] if meta["output_values"] is None else [str(value) for value in meta["output_values"]]
    names += [name for name in said if name not in names]
    if beyond := [i for i in meta["output_residual_index"] if not 0 <= int(i) < len(labels)]:
        raise ValueError(f"output_residual_index {beyond[0]} is none of the {len(labels)} residual directions")
    outputs = {labels[int(i)]: name for i, name in zip(meta["output_residual_index"], said, strict=True)}
    width, blocks, hidden = int(meta["residual_size"]), int(meta["num_layers"]), int(meta["mlp_hidden_size"])
    heads, head_dim = int(meta["num_heads"]), int(meta["key_size"])
    said_sizes = {
        "attention": (f"num_heads {heads} times key_size {head_dim}", heads * head_dim),
        "mlp": (f"mlp_hidden_size {hidden}", hidden),
    }
    if width != len(labels):
        raise ValueError(f"residual_size {width} is not the number of residual_labels, {len(labels)}")

    def given(module: str, name: str) -> np.ndarray:
        return arrays[f"params/{module}/{name}"]

    tokens, head = np.zeros((len(names), width)), np.zeros((len(names), width))
    table = given("token_embed", "embeddings")
    tokens[: len(table)] = table
    for direction, name in outputs.items():
        head[names.index(name), labels.index(direction)] = 1.0
    weights: dict[str, np.ndarray] = {
        "model.token_embedding.weight": tokens,
        "model.position_embedding.weight": given("pos_embed", "embeddings"),
        "head.weight": head,
    }
    ours = {
        "attn/query": "attention.query",
        "attn/key": "attention.key",
        "attn/value": "attention.value",
        "attn/linear": "attention.output",
        "mlp/linear_1": "mlp.input",
        "mlp/linear_2": "mlp.output",
    }
    for block in range(blocks):
        for theirs, name in ours.items():
            module = f"transformer/layer_{block}/{theirs}"
            weight, bias = given(module, "w").T, given(module, "b")
            words, inner = said_sizes[name.partition(".")[0]]
            shape = (width, inner) if name.endswith("output") else (inner, width)
            if weight.shape != shape or bias.shape != shape[:1]:
                raise ValueError(f"{words} and residual_size {width} do not fit {module}, which is {weight.T.shape}")
            weights[f"model.blocks.{block}.{name}.weight"], weights[f"model.blocks.{block}.{name}.bias"] = weight, bias
    return Compiled(
        token_names=tuple(names),
        context=len(weights["model.position_embedding.weight"]),
        blocks=blocks,
        heads=heads,
        head_dim=head_dim,
        width=width,
        hidden=hidden,
        residual_labels=labels,
        neuron_labels=(("",) * hidden,) * blocks,
        answers=outputs,
        logit_scale=1.0,
        weights=weights,
    )
