"""Every weight of a model by its role: queries, keys, values, MLP matrices, embeddings, norms and biases, in each block.

The parts of a model are disjoint and together all of its parameters, so that squared norms of parts sum to the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from workbench.errors import UserError
from workbench.models.anatomy import anatomy, blocks, head_shape, matrix

MATRICES = (
    "embedding",
    "positions",
    "query",
    "key",
    "value",
    "attention_out",
    "mlp_gate",
    "mlp_in",
    "mlp_out",
    "unembedding",
)
"""Kinds of matrices in the order of the computation."""
VECTORS = ("norm", "bias", "other")
"""Kinds of what is no matrix, and of what the table of sites has no name for."""
BEFORE = -1
"""The `block` of embeddings; what follows the last block has the number of blocks."""


@dataclass(frozen=True)
class Part:
    """One matrix of a model, the share of a fused one, or a vector."""

    kind: str
    """One of `MATRICES` or `VECTORS`."""
    block: int
    parameter: str
    """Its name in `named_parameters`."""
    module: str
    """The projection that holds it."""
    rows: tuple[int, int] | None = None
    """Outputs of a fused matrix that belong to it; None: all."""

    @property
    def is_matrix(self) -> bool:
        """Whether it has singular values."""
        return self.kind in MATRICES

    def of(self, model: nn.Module) -> Tensor:
        """A view of the weights, a matrix as `[out, in]`: writing into it changes the model.

        An embedding maps tokens or positions into the residual stream, which is its output like that of any other matrix.
        """
        holder = model.get_submodule(self.module)
        parameter = model.get_parameter(self.parameter)
        if not self.is_matrix:
            return parameter
        if isinstance(holder, nn.Embedding):
            return parameter.T
        whole = matrix(holder)
        return whole if self.rows is None else whole[self.rows[0] : self.rows[1]]


def parts(model: PreTrainedModel) -> list[Part]:
    """All parts in the order of the computation, matrices before vectors; tied weights come once.

    Raises:
        UserError: the architecture is unknown.
    """
    found = [part for name, _ in model.named_parameters() for part in _parts_of(model, name)]
    return sorted(found, key=lambda part: (part.kind in VECTORS, part.block, (*MATRICES, *VECTORS).index(part.kind)))


def _parts_of(model: PreTrainedModel, name: str) -> list[Part]:
    sites, count = anatomy(model), len(blocks(model))
    module, _, leaf = name.rpartition(".")
    within = module.removeprefix(f"{sites.blocks}.")
    number, _, path = within.partition(".") if within != module else ("", "", "")
    block = int(number) if number else BEFORE if module in sites.embeddings else count
    norms = (sites.attention_norm, sites.mlp_norm)
    if path in norms or module == sites.final_norm:
        return [Part("norm", block, name, module)]
    if leaf == "bias":
        return [Part("bias", block, name, module)]
    kinds = {
        **dict(zip(sites.embeddings, ("embedding", "positions"), strict=False)),
        **dict(zip(sites.mlp_in, ("mlp_gate", "mlp_in")[-len(sites.mlp_in) :], strict=True)),
        sites.attention_out: "attention_out",
        sites.mlp_out: "mlp_out",
    }
    if path in sites.attention_in:
        return _attention(model, block, name, module, sites.attention_in.index(path))
    if model.get_submodule(module) is model.get_output_embeddings():
        return [Part("unembedding", block, name, module)]
    return [Part(kinds.get(path or module, "other"), block, name, module)]


def _attention(model: PreTrainedModel, block: int, name: str, module: str, index: int) -> list[Part]:
    kinds = ("query", "key", "value")
    if len(anatomy(model).attention_in) > 1:
        return [Part(kinds[index], block, name, module)]
    heads = head_shape(model)[1]
    shared = int(getattr(model.config, "num_key_value_heads", None) or heads)
    width = matrix(model.get_submodule(module)).shape[0] // (heads + 2 * shared)
    ends = [0, heads * width, (heads + shared) * width, (heads + 2 * shared) * width]
    return [Part(kind, block, name, module, (ends[i], ends[i + 1])) for i, kind in enumerate(kinds)]


def alike(models: Sequence[PreTrainedModel]) -> bool:
    """Whether the weights of these models correspond one to one, by name and shape."""
    first, *others = [[(name, p.shape) for name, p in m.named_parameters()] for m in models]
    return all(other == first for other in others)


def check_alike(models: Sequence[PreTrainedModel], what: str) -> None:
    """Refuse models whose weights do not correspond one to one.

    Raises:
        UserError: names or shapes of parameters differ.
    """
    if not alike(models):
        raise UserError(f"the models of {what} differ in shape, so no weight of one is a weight of the other.")


@torch.no_grad()
def change(part: Part, before: nn.Module, after: nn.Module) -> Float[Tensor, ...]:
    """What was added to a part's weights, in double precision on the CPU."""
    return part.of(after).detach().cpu().double() - part.of(before).detach().cpu().double()
