"""From a mask to a smaller model: neurons and heads that were chosen for removal are cut out, and the logits stay."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from workbench.errors import UserError
from workbench.models.anatomy import Anatomy, anatomy, blocks, head_shape, is_known, neuron_shape
from workbench.models.fingerprint import fixed_batch
from workbench.models.shrunk import SHRUNK

_NONE = torch.empty(0, dtype=torch.long)


@torch.no_grad()
def shrink(
    model: PreTrainedModel, neurons_removed: Int[Tensor, " k"], heads_removed: Int[Tensor, " j"] = _NONE
) -> PreTrainedModel:
    """A new model without these units, whose logits are those of `model` with the units masked (to rounding).

    Torch-Pruning finds and cuts what depends on a neuron (input rows, biases, output columns) on a deep copy. Heads it
    cannot cut: their queries, keys, values and output columns are cut here. Where heads share keys and values and would no
    longer do so evenly, each remaining one gets its own copy of them. A block that would be left without any unit keeps one
    whose output weights are zero.

    Args:
        model: of a known architecture; it is left as it was.
        neurons_removed: numbers of hidden neurons, as `units_of(model, "neurons")` counts them.
        heads_removed: numbers of attention heads, as `units_of(model, "heads")` counts them.

    Raises:
        UserError: an unknown architecture or one that has no smaller form, or a number that no unit has.
    """
    if is_known(model) and type(model).__name__ not in SHRUNK:
        raise UserError(
            f"units cannot be cut out of a {type(model).__name__}, only out of {' and '.join(SHRUNK)}; to mask them use the "
            "analysis 'pruning'."
        )
    neurons = _kept(neurons_removed, neuron_shape(model), "neurons")
    heads = _kept(heads_removed, head_shape(model), "heads")
    cut: Any = copy.deepcopy(model).eval()
    for name, module in list(cut.named_modules()):
        if isinstance(module, Conv1D):  # which Torch-Pruning does not know
            parent, _, last = name.rpartition(".")
            setattr(cut.get_submodule(parent), last, _linear(module))
    _cut_neurons(cut, neurons)
    sizes = [
        _cut_heads(block, anatomy(cut), head_shape(model)[1], kept) for block, kept in zip(blocks(cut), heads, strict=True)
    ]
    config, small_class = SHRUNK[type(model).__name__]
    body = {k: v for k, v in model.config.to_dict().items() if k not in ("model_type", "architectures")}
    body |= {"block_neurons": [len(kept) or 1 for kept in neurons], "block_heads": [queries for queries, _ in sizes]}
    if len(anatomy(cut).attention_in) > 1:
        body["block_key_value_heads"] = [shared for _, shared in sizes]
    with torch.random.fork_rng(devices=[]):
        small = small_class(config(**body, attn_implementation="sdpa"))
    torch.nn.Module.to(small, model.device, model.dtype)
    values = dict(cut.named_parameters())
    turned = {f"{name}.weight" for name, module in small.named_modules() if isinstance(module, Conv1D)}
    for name, parameter in small.named_parameters():
        parameter.copy_(values[name].T if name in turned else values[name])
    return small.eval()


def _kept(removed: Int[Tensor, " k"], shape: tuple[int, int], word: str) -> list[list[int]]:
    """Numbers within their block of the units that stay."""
    total = shape[0] * shape[1]
    for number in removed.tolist():
        if not 0 <= number < total:
            raise UserError(f"there is no unit {number}: the model has {total} {word}, numbered from 0.")
    gone = set(removed.tolist())
    return [[i for i in range(shape[1]) if block * shape[1] + i not in gone] for block in range(shape[0])]


def _linear(module: Conv1D) -> nn.Linear:
    inputs, outputs = module.weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.weight, linear.bias = nn.Parameter(module.weight.T.contiguous()), module.bias
    return linear


def _cut_neurons(model: Any, kept: Sequence[Sequence[int]]) -> None:
    import torch_pruning as tp

    sites = anatomy(model)
    tokens = fixed_batch(model.config.vocab_size, 4).to(model.device)
    with torch.enable_grad(), warnings.catch_warnings():  # it follows gradients, and warns about norms it leaves alone
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(
            model, {"input_ids": tokens, "use_cache": False}, output_transform=lambda out: out.logits, verbose=False
        )
    for block, stay in zip(blocks(model), kept, strict=True):
        first: Any = block.get_submodule(sites.mlp_in[0])
        if not stay:
            block.get_submodule(sites.mlp_out).get_parameter("weight").zero_()
        gone = sorted(set(range(first.out_features)) - set(stay or [0]))
        if gone:
            graph.get_pruning_group(first, tp.prune_linear_out_channels, idxs=gone).prune()


def _cut_heads(block: nn.Module, sites: Anatomy, heads: int, kept: Sequence[int]) -> tuple[int, int]:
    """Cut the heads that do not stay; how many heads of queries, and of keys and values, there are then."""
    out: Any = block.get_submodule(sites.attention_out)
    if not kept:
        out.weight.zero_()
    stay, width = list(kept) or [0], out.in_features // heads
    out.weight = nn.Parameter(_pick(out.weight.T, stay, width).T.contiguous())
    projections: list[Any] = [block.get_submodule(path) for path in sites.attention_in]
    if len(projections) == 1:  # fused
        (fused,) = projections
        three = [*stay, *(heads + h for h in stay), *(2 * heads + h for h in stay)]
        _pick_outputs(fused, three, width)
        return len(stay), len(stay)
    queries, *shared = projections
    each = heads * width // shared[0].out_features
    used = [head // each for head in stay]
    counts = {used.count(group) for group in used}
    groups = list(dict.fromkeys(used)) if len(counts) == 1 else used
    _pick_outputs(queries, stay, width)
    for projection in shared:
        _pick_outputs(projection, groups, width)
    return len(stay), len(groups)


def _pick(rows: Tensor, heads: Sequence[int], width: int) -> Tensor:
    """The rows of some heads, each `width` long."""
    split = rearrange(rows, "(head width) ... -> head width ...", width=width)
    return split[list(heads)].flatten(0, 1)


def _pick_outputs(projection: Any, heads: Sequence[int], width: int) -> None:
    projection.weight = nn.Parameter(_pick(projection.weight, heads, width))
    if projection.bias is not None:
        projection.bias = nn.Parameter(_pick(projection.bias, heads, width))


@dataclass(frozen=True)
class Cost:
    """What a model weighs and takes."""

    parameters: int
    bytes: int
    """Of the parameters, as they are stored."""
    milliseconds: float
    """Wall time of the fastest forward pass over `tokens` tokens: what a busy machine adds is no property of the model."""
    tokens: int


@torch.no_grad()
def costs(models: Sequence[PreTrainedModel], tokens: Int[Tensor, "n t"], turns: int = 15) -> list[Cost]:
    """What several models cost on the same tokens, timed in turns."""
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(turns + 1):
        for model, taken in zip(models, seconds, strict=True):
            start = time.perf_counter()
            model(input_ids=tokens.to(model.device), use_cache=False).logits.sum().item()
            if turn:  # the first one warms up
                taken.append(time.perf_counter() - start)
    return [
        Cost(
            sum(p.numel() for p in model.parameters()),
            sum(p.numel() * p.element_size() for p in model.parameters()),
            1e3 * min(taken),
            tokens.numel(),
        )
        for model, taken in zip(models, seconds, strict=True)
    ]
