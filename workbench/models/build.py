"""Models from a specification: Hugging Face causal language models with random weights that depend on the seed alone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from workbench.models.compiled import CompiledForCausalLM, config_of
from workbench.models.spec import ModelSpec
from workbench.protocols import Compiled
from workbench.seeds import stream


def build_model(spec: ModelSpec, vocab_size: int, context: int, seed: int, sizes: Compiled | None = None) -> PreTrainedModel:
    """A model of random weights in evaluation mode; the global random state is left as it was.

    Embedding and unembedding are untied: tied, a weight difference or a Hessian block would count one matrix twice.
    A spec of kind `compiled` is of the `sizes` of compiled weights, whose values are not used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "weights"))
        if spec.kind == "compiled":
            if sizes is None:
                raise ValueError("a compiled model has the sizes of compiled weights; give them")
            return CompiledForCausalLM(config_of(sizes)).eval()
        return _construct(spec, vocab_size, context).eval()


def random_twin(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model of the same configuration with fresh random weights, on the same device: the untrained control."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "untrained"))
        twin = type(model)(copy.deepcopy(model.config))
    torch.nn.Module.to(twin, model.device, model.dtype)
    return twin.eval()


def _construct(spec: ModelSpec, vocab_size: int, context: int) -> PreTrainedModel:
    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "tie_word_embeddings": False,
        "use_cache": False,
        # The defaults (50256) lie outside a small vocabulary and make loading warn.
        "bos_token_id": None,
        "eos_token_id": None,
        "attn_implementation": "sdpa",
    }
    if spec.kind == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=spec.width,
                intermediate_size=spec.hidden,
                num_hidden_layers=spec.blocks,
                num_attention_heads=spec.heads,
                max_position_embeddings=context,
                **shared,
            )
        )
    return GPT2LMHeadModel(
        GPT2Config(
            n_positions=context,
            n_embd=spec.width,
            n_layer=spec.blocks,
            n_head=spec.heads,
            n_inner=spec.hidden,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **shared,
        )
    )
