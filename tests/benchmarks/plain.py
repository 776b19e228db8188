"""Language models as one writes them by hand, with fused attention and an untied head.

`PlainModel` is GPT-2's (pre-LayerNorm, tanh-GELU, learned positions), `PlainLlama` is LLaMA's (RMSNorm, SwiGLU, rotary positions).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Attention and MLP, each on a normalised residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(width, dim=2)
        q, k, v = (part.view(n, t, self.heads, width // self.heads).transpose(1, 2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(n, t, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class PlainModel(nn.Module):
    """The yardstick; weights as in GPT-2."""

    def __init__(self, vocab: int, context: int, blocks: int, heads: int, width: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)
        self.apply(self._start)

    def _start(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Final hidden states, after the last norm."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class LlamaBlock(nn.Module):
    """Attention with rotary positions and a gated MLP, each on a normalised residual stream."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n, t, width = x.shape
        normed = self.norm1(x)
        q, k, v = (part(normed).view(n, t, self.heads, -1).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = (part * cos + _half_turned(part) * sin for part in (q, k))
        attended = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(n, t, width))
        normed = self.norm2(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


def _half_turned(x: Tensor) -> Tensor:
    one, other = x.chunk(2, dim=-1)
    return torch.cat([-other, one], dim=-1)


class PlainLlama(nn.Module):
    """The yardstick of llamas; takes the weights of Hugging Face's, so that both can be seen to be the same function."""

    def __init__(self, vocab: int, context: int, blocks: int, heads: int, width: int, hidden: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(LlamaBlock(width, heads, hidden) for _ in range(blocks))
        self.norm, self.head = nn.RMSNorm(width, eps=1e-6), nn.Linear(width, vocab, bias=False)
        size = width // heads
        rates = 10_000.0 ** (-torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(context), rates).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Final hidden states, after the last norm."""
        x, t = self.tokens(tokens), tokens.shape[1]
        cos, sin = self.get_buffer("cos")[:t], self.get_buffer("sin")[:t]
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.norm(x)

    def take(self, weights: dict[str, Tensor]) -> None:
        """Weights of a `LlamaForCausalLM`, which stand there in the same order."""
        own = self.state_dict()
        ours = {"self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.o_proj": "out"}
        ours |= {"mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down", "model.layers": "blocks"}
        ours |= {"input_layernorm": "norm1", "post_attention_layernorm": "norm2", "model.embed_tokens": "tokens"}
        ours |= {"model.norm": "norm", "lm_head": "head"}
        for name, value in weights.items():
            for theirs, mine in ours.items():
                name = name.replace(theirs, mine)
            own[name].copy_(value)
