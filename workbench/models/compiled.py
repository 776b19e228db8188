"""Compiled models: the architecture of RASP's compilers as a Hugging Face causal language model, and weights put into it.

ReLU MLPs, no norms, learned token and position tables, an untied head. Attention is bidirectional: what would be a causal
mask is part of a compiled program. Importing this module registers the architecture with the auto classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, initialization
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from workbench.protocols import Compiled
from workbench.seeds import torch_generator

NOISE = 1e-4
"""Standard deviation of the noise that makes compiled weights dense before training [Jain+23 §C.1].

It must not cost accuracy, and the paper's .001 does in these weights: a width d is read from the share 1 / (d + 1) that BOS
is attended, so that an error e of the attention logits, which are about 10 and inherit the noise of every weight before
them, is an error d e of the width. At .001 counts from 7 on are missed; at .0001 no
label of the five programs' default tasks is (five seeds of the noise)."""


class CompiledConfig(PreTrainedConfig):
    """Sizes of a compiled model, and what its directions and neurons mean; see `workbench.protocols.Compiled`."""

    model_type = "compiled"

    def __init__(
        self,
        vocab_size: int = 2,
        max_position_embeddings: int = 2,
        hidden_size: int = 1,
        num_hidden_layers: int = 1,
        num_attention_heads: int = 1,
        head_dim: int = 1,
        intermediate_size: int = 1,
        token_names: Sequence[str] = (),
        residual_labels: Sequence[str] = (),
        neuron_labels: Sequence[Sequence[str]] = (),
        answers: Mapping[str, str] | None = None,
        logit_scale: float = 1.0,
        **rest: Any,
    ) -> None:
        """`logit_scale` is already in the head's weights; `rest` is what every configuration has."""
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.head_dim = head_dim
        self.intermediate_size = intermediate_size
        self.token_names = list(token_names)
        self.residual_labels = list(residual_labels)
        self.neuron_labels = [list(names) for names in neuron_labels]
        self.answers = dict(answers or {})
        self.logit_scale = logit_scale
        rest.setdefault("tie_word_embeddings", False)
        super().__init__(**rest)


class CompiledAttention(nn.Module):
    """Heads that see every position."""

    def __init__(self, config: CompiledConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        inner = config.num_attention_heads * config.head_dim
        self.query, self.key, self.value = (nn.Linear(config.hidden_size, inner) for _ in range(3))
        self.output = nn.Linear(inner, config.hidden_size)

    def forward(
        self, x: Float[Tensor, "n t d"], mask: Bool[Tensor, "n 1 1 t"] | None, patterns: list[Tensor] | None
    ) -> Float[Tensor, "n t d"]:
        """What the heads write; their patterns `[n, head, query, key]` are added to `patterns` if they are asked for."""
        q, k, v = (rearrange(linear(x), "n t (h d) -> n h t d", h=self.heads) for linear in (self.query, self.key, self.value))
        if patterns is None:
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = q @ k.mT / q.shape[-1] ** 0.5
            patterns.append((scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1))
            seen = patterns[-1] @ v
        return self.output(rearrange(seen, "n h t d -> n t (h d)"))


class CompiledMLP(nn.Module):
    """Two layers with a ReLU between them."""

    def __init__(self, config: CompiledConfig) -> None:
        super().__init__()
        self.input = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        """What the neurons write."""
        return self.output(F.relu(self.input(x)))


class CompiledBlock(nn.Module):
    """Attention, then the MLP, each added to the residual stream."""

    def __init__(self, config: CompiledConfig) -> None:
        super().__init__()
        self.attention = CompiledAttention(config)
        self.mlp = CompiledMLP(config)

    def forward(
        self, x: Float[Tensor, "n t d"], mask: Bool[Tensor, "n 1 1 t"] | None, patterns: list[Tensor] | None
    ) -> Float[Tensor, "n t d"]:
        """The residual stream after the block."""
        x = x + self.attention(x, mask, patterns)
        return x + self.mlp(x)


class CompiledPreTrainedModel(PreTrainedModel):
    """What both models share: how random weights are drawn."""

    config_class = CompiledConfig
    base_model_prefix = "model"
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Standard deviation 1 / sqrt(inputs): rows of about unit norm, as one-hot rows have; biases zero."""
        if isinstance(module, nn.Linear | nn.Embedding):
            initialization.normal_(module.weight, std=module.weight.shape[1] ** -0.5)
        if isinstance(module, nn.Linear) and module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            initialization.zeros_(module.bias)


class CompiledModel(CompiledPreTrainedModel):
    """The residual stream of a compiled model, without the head."""

    def __init__(self, config: CompiledConfig) -> None:
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(CompiledBlock(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token table."""
        return self.token_embedding

    def forward(
        self,
        input_ids: Int[Tensor, "n t"],
        attention_mask: Int[Tensor, "n t"] | Bool[Tensor, "n t"] | None = None,
        position_ids: Int[Tensor, "n t"] | None = None,
        output_attentions: bool = False,
        **_: Any,
    ) -> BaseModelOutput:
        """Residual streams `[n, t, width]` after the last block, with `output_attentions` the patterns of every block too.

        False in `attention_mask` hides a position from all others.
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device) if position_ids is None else position_ids
        x = self.token_embedding(input_ids) + self.position_embedding(positions)
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        patterns: list[Tensor] | None = [] if output_attentions else None
        for block in self.blocks:
            x = block(x, mask, patterns)
        return BaseModelOutput(last_hidden_state=x, attentions=None if patterns is None else tuple(patterns))


class CompiledForCausalLM(CompiledPreTrainedModel):
    """A compiled model with its head. The logits at a position answer for that position."""

    def __init__(self, config: CompiledConfig) -> None:
        super().__init__(config)
        self.model = CompiledModel(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token table."""
        return self.model.token_embedding

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.head

    def forward(self, input_ids: Int[Tensor, "n t"], **options: Any) -> CausalLMOutput:
        """Logits `[n, t, vocab]`."""
        found = self.model(input_ids, **options)
        return CausalLMOutput(logits=self.head(found.last_hidden_state), attentions=found.attentions)


AutoConfig.register(CompiledConfig.model_type, CompiledConfig)
AutoModelForCausalLM.register(CompiledConfig, CompiledForCausalLM)


def config_of(compiled: Compiled) -> CompiledConfig:
    """Sizes and labels of compiled weights."""
    return CompiledConfig(
        vocab_size=len(compiled.token_names),
        max_position_embeddings=compiled.context,
        hidden_size=compiled.width,
        num_hidden_layers=compiled.blocks,
        num_attention_heads=compiled.heads,
        head_dim=compiled.head_dim,
        intermediate_size=compiled.hidden,
        token_names=compiled.token_names,
        residual_labels=compiled.residual_labels,
        neuron_labels=compiled.neuron_labels,
        answers=compiled.answers,
        logit_scale=compiled.logit_scale,
    )


def build(compiled: Compiled, noise: float = NOISE, seed: int = 0) -> CompiledForCausalLM:
    """The model of compiled weights in evaluation mode, `logit_scale` put into its head.

    Args:
        compiled: the weights.
        noise: standard deviation of the Gaussian noise added to ALL parameters, zeros and biases included: sparse weights
            give gradient spikes in training [Jain+23 §C.1]. At 0 the model is the program.
        seed: of the noise.

    Raises:
        ValueError: a weight that the architecture does not have, or one of another shape.
    """
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are overwritten here
        model = CompiledForCausalLM(config_of(compiled))
    parameters = dict(model.named_parameters())
    unknown = set(compiled.weights) - set(parameters)
    if unknown:
        raise ValueError(f"compiled weights {sorted(unknown)} are no parameters of {type(model).__name__}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.zero_()
            if name in compiled.weights:
                given = torch.as_tensor(compiled.weights[name], dtype=torch.float32)
                if given.shape != parameter.shape:
                    raise ValueError(f"{name} has shape {tuple(given.shape)}, the model {tuple(parameter.shape)}")
                parameter.copy_(given * compiled.logit_scale if name == "head.weight" else given)
            if noise:
                drawn = torch.randn(parameter.shape, generator=torch_generator(seed, "compiled noise", name))
                parameter.add_(noise * drawn)
    return model.eval()
