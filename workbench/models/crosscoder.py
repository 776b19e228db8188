"""Crosscoders: one sparse dictionary for the residual streams of two models, with shared codes [Lindsey+24].

BatchTopK chooses the codes, so that no penalty shrinks any, and latent scaling tells a latent that one model lacks from one
that the dictionary merely writes weakly there [Minder+25 2504.02922].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from workbench.seeds import torch_generator

AUXILIARY = 1 / 4
"""Weight of the loss that dead latents take part in. At 1/32, as for large models [Gao+24], half of them stay dead here."""
SETTLED = 0.7
"""Share of the training after which the rate falls to zero and thresholds are averaged."""
Batches = Callable[[int], Tensor]
"""`step -> activations [n, m, d]`: streams of m models at the same positions of the same texts."""


@dataclass(frozen=True)
class Recipe:
    """How a crosscoder is trained."""

    latents: int
    k: int
    """Mean number of latents that are on at once, at the end."""
    steps: int
    lr: float
    start: float = 2
    """The training begins with this many times k ..."""
    anneal: float = 0.2
    """... and reaches k after this share of its steps."""
    warmup: int = 20
    dead_after: int = 20
    """Batches without a single code after which a latent counts as dead."""

    def k_at(self, step: int) -> int:
        """How many latents an activation may use on average at a step."""
        left = max(0.0, 1 - step / (self.anneal * self.steps))
        return min(self.latents, round(self.k * (1 + (self.start - 1) * left)))

    def lr_at(self, step: int) -> float:
        """The rate: linear warm-up, constant, linear fall to zero."""
        return self.lr * min(1.0, (step + 1) / self.warmup, (self.steps - step) / ((1 - SETTLED) * self.steps))


@dataclass(frozen=True)
class Crosscoder:
    """A trained dictionary of J latents for m models of width d.

    Activations are centred and divided by one number per model, so that both streams weigh the same; `encoder`, `decoder` and
    `bias` speak of these, `directions` of the streams themselves.
    """

    encoder: Float[Tensor, "m d j"]
    encoder_bias: Float[Tensor, " j"]
    decoder: Float[Tensor, "j m d"]
    bias: Float[Tensor, "m d"]
    centre: Float[Tensor, "m d"]
    scale: Float[Tensor, " m"]
    """Root mean square of a centred stream's entries."""
    threshold: float = 0.0
    """A latent is on where its code times its decoder norms exceeds this: what BatchTopK let through on average."""

    def normalised(self, x: Float[Tensor, "n m d"]) -> Float[Tensor, "n m d"]:
        """Streams as the dictionary sees them."""
        return (x - self.centre) / self.scale[:, None]

    def weighed(self, x: Float[Tensor, "n m d"]) -> tuple[Float[Tensor, "n j"], Float[Tensor, "n j"]]:
        """Codes of normalised streams before any is dropped, and the same times the latents' decoder norms, which ranks them."""
        codes = torch.relu(x.flatten(1) @ self.encoder.flatten(0, 1) + self.encoder_bias)
        return codes, codes * self.norms.sum(1)

    def codes(self, x: Float[Tensor, "n m d"]) -> Float[Tensor, "n j"]:
        """Shared codes of streams; an example's do not depend on the others, as they do in training."""
        codes, ranks = self.weighed(self.normalised(x))
        return codes * (ranks > self.threshold)

    def decode(self, codes: Float[Tensor, "n j"]) -> Float[Tensor, "n m d"]:
        """Normalised streams from codes."""
        return (codes @ self.decoder.flatten(1)).view(len(codes), *self.bias.shape) + self.bias

    def reconstruct(self, x: Float[Tensor, "n m d"]) -> Float[Tensor, "n m d"]:
        """Streams as the dictionary gives them back."""
        return self.decode(self.codes(x)) * self.scale[:, None] + self.centre

    @cached_property
    def norms(self) -> Float[Tensor, "j m"]:
        """Decoder norms."""
        return self.decoder.norm(dim=-1)

    @property
    def directions(self) -> Float[Tensor, "j m d"]:
        """What one unit of each code adds to each model's stream."""
        return self.decoder * self.scale[:, None]

    @property
    def turned(self) -> Float[Tensor, "j d"]:
        """The direction in the second of two models less that in the first, in units of the streams."""
        return self.directions[:, 1] - self.directions[:, 0]

    @property
    def offset(self) -> Float[Tensor, "m d"]:
        """What is added to each model's stream whatever the codes are."""
        return self.bias * self.scale[:, None] + self.centre

    @property
    def relative_norm(self) -> Float[Tensor, " j"]:
        """||d1|| / (||d0|| + ||d1||) of two models: 0 in the first alone, .5 shared, 1 in the second alone."""
        return self.norms[:, 1] / self.norms.sum(1)

    @property
    def cosine(self) -> Float[Tensor, " j"]:
        """Between a latent's directions in two models."""
        return torch.nn.functional.cosine_similarity(self.decoder[:, 0], self.decoder[:, 1], dim=-1)


@torch.enable_grad()
def train_crosscoder(batches: Batches, recipe: Recipe, seed: int) -> Crosscoder:
    """A crosscoder by Adam on the squared error of both models, codes chosen by BatchTopK.

    Every latent begins with one random direction for all models, drawn by `seed`, and its encoder along it, so that nothing
    but the data makes a latent one model's own. Latents that die are offered what the others leave unexplained (auxiliary
    loss). Equal arguments give equal dictionaries on one machine.
    """
    first = batches(0)
    centre = first.mean(0)
    scale = (first - centre).pow(2).mean((0, 2)).sqrt().clamp_min(1e-12)
    atoms = torch.randn(recipe.latents, 1, first.shape[2], generator=torch_generator(seed, "crosscoder"))
    atoms = (atoms / atoms.norm(dim=-1, keepdim=True)).expand(-1, first.shape[1], -1).to(first)
    start = (atoms.permute(1, 2, 0) / first.shape[1], first.new_zeros(recipe.latents), atoms, torch.zeros_like(centre))
    encoder, encoder_bias, decoder, bias = learned = [value.clone().requires_grad_(True) for value in start]
    optimizer = torch.optim.Adam(learned)
    quiet = torch.zeros(recipe.latents, device=first.device)
    passed: list[float] = []
    for step in tqdm(range(recipe.steps), desc="crosscoder", delay=5, disable=None, leave=False):
        coder = Crosscoder(encoder, encoder_bias, decoder, bias, centre, scale)
        x = coder.normalised(batches(step))
        codes, ranks = coder.weighed(x)
        kept, least = _batch_top_k(ranks.detach(), recipe.k_at(step))
        error = x - coder.decode(codes * kept)
        loss = error.pow(2).sum((1, 2)).mean()
        quiet = torch.where(kept.any(0), 0.0, quiet + 1)
        if bool((dead := quiet >= recipe.dead_after).any()):
            loss = loss + AUXILIARY * _auxiliary(coder, codes, dead, error.detach())
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= SETTLED * recipe.steps:
            passed.append(least)
    encoder, encoder_bias, decoder, bias = (value.detach() for value in learned)
    return Crosscoder(encoder, encoder_bias, decoder, bias, centre, scale, float(np.mean(passed)))


def _batch_top_k(ranks: Float[Tensor, "n j"], k: int) -> tuple[Bool[Tensor, "n j"], float]:
    """The n * k largest positive ranks of a batch, and the least of them: some examples use more than k latents, others fewer."""
    least = ranks.flatten().topk(k * len(ranks), sorted=False).values.min()
    kept = (ranks >= least) & (ranks > 0)
    return kept, float(ranks[kept].min()) if kept.any() else 0.0


def _auxiliary(coder: Crosscoder, codes: Tensor, dead: Tensor, error: Tensor) -> Tensor:
    """Squared error of the error itself, reconstructed from the strongest d / 2 dead latents of each example."""
    among = torch.where(dead, codes, 0.0)
    most = among.topk(min(int(dead.sum()), error.shape[-1] // 2 or 1), dim=1)
    used = torch.zeros_like(codes).scatter(1, most.indices, most.values)
    found = (used @ coder.decoder.flatten(1)).view_as(error)
    return (error - found).pow(2).sum((1, 2)).mean()


@dataclass(frozen=True)
class Scaling:
    """How much of one model's direction of each latent there is in the other model [2504.02922 §2.2]; NaN: never on."""

    error: Float[Tensor, " j"]
    """nu_eps: in what the others leave unexplained. Near 1 where the other model has the latent, but its decoder was shrunk."""
    reconstruction: Float[Tensor, " j"]
    """nu_r: in what the dictionary explains. Near 1 where other latents write the direction in the other model."""


@torch.no_grad()
def latent_scaling(coder: Crosscoder, parts: Sequence[Tensor], model: int = 1) -> Scaling:
    """Ratios beta^other / beta^model of least-squares scales of f_j d_j, with d_j the direction in `model`, for all latents at once.

    beta_eps^m minimises sum_x |beta f_j(x) d_j - (a^m - a_hat^m + f_j d_j^m)|^2 (the error with the latent taken out of the
    reconstruction), beta_r^m the same against the reconstruction a_hat^m without its bias. `parts` are streams
    `[n, 2, d]`, summed over.
    """
    own = coder.decoder[:, model].double()
    size, codes_squared = own.pow(2).sum(1), torch.zeros(len(own), dtype=torch.float64)
    left, given = (torch.zeros(2, len(own), dtype=torch.float64) for _ in range(2))
    for part in parts:
        codes = coder.codes(part).double()
        back = (coder.decode(codes.to(part.dtype)) - coder.bias).double()
        rest = (coder.normalised(part) - coder.bias).double() - back
        codes_squared += codes.pow(2).sum(0)
        for sums, what in ((left, rest), (given, back)):
            sums += torch.stack([((codes.T @ what[:, m]) * own).sum(1) for m in (0, 1)])
    mine = torch.einsum("jmd,jd->mj", coder.decoder.double(), own) / size
    error, reconstruction = left / (codes_squared * size) + mine, given / (codes_squared * size)
    return Scaling(error[1 - model] / error[model], reconstruction[1 - model] / reconstruction[model])
