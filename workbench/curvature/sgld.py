"""The local learning coefficient: how fast the loss rises around a model, by localised stochastic gradient Langevin dynamics.

Chains start at the model w0 and sample exp(-n beta L_n(w) - gamma/2 ||w - w0||^2); the estimate is n beta times the mean rise of
the loss [Lau+23 2308.12108 §4]. Of a regular model with d parameters it is d/2, of a singular one less. A number is given only
where the chains pass declared checks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.curvature.objective import Objective
from workbench.errors import UserError
from workbench.seeds import torch_generator

R_HAT = 1.1
"""Split chains must agree to this potential scale reduction [Gelman+92]."""
ESS = 40
"""Effective draws that all chains together must have."""
FALL, LOOK = 3.0, 20
"""Sampling ends early once in every chain the mean of the last 20 draws lies 3 units of n beta L below the model itself."""
LOST = 1e9
"""Units of n beta L from which on a chain counts as having left the finite numbers."""
DRIFT = 0.2
"""A trace that rises or falls for sure by more than this share of its mean between burn-in and end has not settled."""
BELOW = 0.25
"""Share of draws with a loss below that of the model itself from which on the model is no local minimum; noise of minibatches
alone puts some there."""
STABLE = 1.5
"""Factor within which a neighbouring step size, itself sound, must give the same estimate."""
CONFIDENCE = 0.95


@runtime_checkable
class Potential(Protocol):
    """A mean loss over data in parts, for many points at once, as its rise over a centre w0."""

    parts: int

    def measure(self, w: Float[Tensor, "c d"], part: Sequence[int] | None) -> tuple[Float[Tensor, " c"], Float[Tensor, "c d"]]:
        """Unbiased estimates of L_n(w) - L_n(w0) and of the gradient from one part per chain; exact from all parts (None)."""
        ...


class Rise:
    """An objective as a potential around where it stands now; a minibatch is one of its parts.

    The rise is taken on the same part at both ends, so that its noise is that of a small difference.
    """

    def __init__(self, objective: Objective) -> None:
        """The objective is moved about from here on; `objective.put(rise.centre)` brings it back."""
        self.objective, self.parts, self.centre = objective, len(objective.parts), objective.vector()
        self._at_centre = [self._loss(i) for i in range(self.parts)]
        self.loss = sum(self._at_centre)

    @torch.no_grad()
    def _loss(self, i: int) -> float:
        part = self.objective.parts[i]
        return float(self.objective.total(self.objective.outputs(part), part))

    def measure(self, w: Float[Tensor, "c d"], part: Sequence[int] | None) -> tuple[Float[Tensor, " c"], Float[Tensor, "c d"]]:
        """As `Potential.measure`; one pass forward and back per chain and part."""
        rises, slopes = torch.zeros(len(w), dtype=torch.float64), torch.zeros_like(w)
        for chain, point in enumerate(w):
            self.objective.put(point)
            for i in range(self.parts) if part is None else (part[chain],):
                scale = 1 if part is None else self.parts
                with torch.enable_grad():  # first derivatives only: any attention kernel will do
                    loss = self.objective.total(self.objective.outputs(self.objective.parts[i]), self.objective.parts[i])
                    slopes[chain] += scale * self.objective.flat(self.objective.slopes(loss))
                rises[chain] += scale * (float(loss.detach()) - self._at_centre[i])
        return rises, slopes


@dataclass(frozen=True)
class Sampler:
    """How to sample."""

    n: int
    """Examples behind the loss: the posterior's temperature follows from them."""
    eps: float
    gamma: float
    chains: int = 4
    burn: int = 200
    """Draws of each chain that are thrown away."""
    draws: int = 400
    every: int = 1
    """Steps behind a draw, which is their mean."""
    beta: float | None = None
    """Inverse temperature per example; 1 / log n where None [Watanabe 2013]."""
    full: bool = False
    """Whether every step sees all data."""

    @property
    def heat(self) -> float:
        """The factor n beta before the loss."""
        return self.n * (1 / math.log(self.n) if self.beta is None else self.beta)


@dataclass(frozen=True)
class Chains:
    """What chains passed through; NaN from where one left the finite numbers, or all fell far below the model, on."""

    sampler: Sampler
    size: int
    """Parameters."""
    rise: Float[np.ndarray, "c t"]
    """Loss above that of the model (nats), by draw, burn-in included."""
    distance: Float[np.ndarray, "c t"]
    """||w - w0|| at each draw."""

    @property
    def trace(self) -> Float[np.ndarray, "c t"]:
        """The rise times n beta: what the estimate is the mean of after burn-in."""
        return self.sampler.heat * self.rise

    @property
    def kept(self) -> Float[np.ndarray, "c k"]:
        """The trace after burn-in."""
        return self.trace[:, self.sampler.burn :]

    @property
    def fell(self) -> bool:
        """Whether sampling ended because the loss had fallen below that of the model."""
        seen = self.trace[:, np.isfinite(self.trace).all(0)]
        return seen.shape[1] < self.trace.shape[1] and seen.shape[1] >= LOOK and bool((seen[:, -LOOK:].mean(1) < -FALL).all())

    @property
    def radius(self) -> float:
        """How far from w0 the localisation alone would let the chains go: sqrt(d / gamma)."""
        return math.sqrt(self.size / self.sampler.gamma) if self.sampler.gamma else math.inf


@torch.no_grad()
def sample(potential: Potential, start: Float[Tensor, " d"], sampler: Sampler, seed: int) -> Chains:
    """Chains of w <- w - (eps/2) (n beta grad L(w) + gamma (w - w0)) + sqrt(eps) N(0, 1), from w0 [Lau+23 §4.4, Welling+11].

    Args:
        potential: the loss.
        start: w0.
        sampler: step size, localisation, lengths.
        seed: each chain has its own streams of noise and of minibatches.

    Raises:
        UserError: a step size, localisation or temperature that is none.
    """
    _check(sampler)
    c, s = sampler.chains, sampler
    noise = [torch_generator(seed, "sgld", "noise", i) for i in range(c)]
    picks = [torch_generator(seed, "sgld", "parts", i) for i in range(c)]
    w, total = start.repeat(c, 1), s.burn + s.draws
    rise, distance = np.full((c, total), np.nan), np.full((c, total), np.nan)
    for t in range(total):
        seen = torch.zeros(c, dtype=torch.float64)
        for _ in range(s.every):
            part = None if s.full else [int(torch.randint(potential.parts, (), generator=g)) for g in picks]
            here, slope = potential.measure(w, part)
            seen += here.to(seen) / s.every
            kicks = torch.stack([torch.randn(w.shape[1], generator=g, dtype=w.dtype) for g in noise]).to(w.device)
            w = w - (s.eps / 2) * (s.heat * slope + s.gamma * (w - start)) + math.sqrt(s.eps) * kicks
        if not bool(torch.isfinite(w).all() and (s.heat * seen.abs() < LOST).all()):
            break  # the rest stays NaN: no estimate rests on such chains
        rise[:, t], distance[:, t] = seen.numpy(), (w - start).norm(dim=1).double().cpu().numpy()
        if t + 1 >= LOOK and (s.heat * rise[:, t + 1 - LOOK : t + 1].mean(1) < -FALL).all():
            break
    return Chains(s, w.shape[1], rise, distance)


def _check(s: Sampler) -> None:
    for name, value, least in (("eps", s.eps, 0.0), ("n beta", s.heat, 0.0), ("gamma", s.gamma, -1e-300)):
        if not (math.isfinite(value) and value > least):
            raise UserError(f"{name} of Langevin sampling must be a finite number above 0; got {value}.")
    if s.chains < 2 or s.draws < 4 or s.burn < 0 or s.every < 1:
        raise UserError(
            "Langevin sampling needs 2 chains, 4 draws, a burn-in of 0 and 1 step per draw at least; got "
            f"chains={s.chains}, draws={s.draws}, burn={s.burn}, every={s.every}."
        )


@dataclass(frozen=True)
class Estimate:
    """A local learning coefficient, what speaks for it, and why it is none."""

    value: float
    low: float
    high: float
    """The value's 95 % interval, by Student's t over the chains."""
    error: float
    """Its standard error over the chains."""
    r_hat: float
    ess: float
    drift: float
    """Rise of the trace's straight line from burn-in to end, as a share of the mean."""
    drift_low: float
    """Ends of its 95 % interval over the chains."""
    drift_high: float
    below: float
    """Share of draws with a loss below that of the model."""
    distance: float
    """Mean ||w - w0|| after burn-in."""
    radius: float
    """The distance that the localisation alone would lead to."""
    chains: int
    reasons: tuple[str, ...] = ()
    """Checks that failed, as sentences without their stop."""

    @property
    def sound(self) -> bool:
        """Whether it may be called a number."""
        return not self.reasons


def estimate(chains: Chains) -> Estimate:
    """The estimate n beta (mean L_n(w) - L_n(w0)) over the draws after burn-in [Lau+23 Definition 1], checked."""
    x, radius = chains.kept, chains.radius
    if not np.isfinite(x).all():
        reason = (
            "the loss falls below that of the model itself, which is no local minimum of it"
            if chains.fell
            else "a chain left the finite numbers; the step is too large"
        )
        return no_estimate(reason, radius)
    c, k = x.shape
    means, t = x.mean(1), student(c)
    value, error = float(means.mean()), float(means.std(ddof=1) / math.sqrt(c))
    time = np.linspace(-0.5, 0.5, k)
    climbs = x @ time / (time @ time)
    climb, unsure = float(climbs.mean()), t * float(climbs.std(ddof=1)) / math.sqrt(c)
    r_hat, ess = mixing(x)
    below = float((x < 0).mean())
    reasons: list[str] = []
    if value <= 0 or below > BELOW:
        reasons.append(f"{below:.0%} of the draws have a loss below that of the model itself, which is no local minimum of it")
    if not r_hat < R_HAT:
        reasons.append(f"the chains disagree (R-hat {r_hat:.2f}, at most {R_HAT})")
    if not ess >= ESS:
        reasons.append(f"too few effective draws ({ess:.0f} of {ESS})")
    if abs(climb) - unsure > DRIFT * abs(value):
        reasons.append(f"the trace still drifts (by {climb / value:+.0%} of its mean)")
    return Estimate(
        value,
        value - t * error,
        value + t * error,
        error,
        r_hat,
        ess,
        climb / value,
        (climb - unsure) / value,
        (climb + unsure) / value,
        below,
        float(chains.distance[:, chains.sampler.burn :].mean()),
        radius,
        c,
        tuple(reasons),
    )


def no_estimate(reason: str, radius: float = math.nan) -> Estimate:
    """What is said in place of a number."""
    nan = math.nan
    return Estimate(nan, nan, nan, nan, nan, nan, nan, nan, nan, nan, nan, radius, 0, (reason,))


def student(chains: int) -> float:
    """Half width of a two-sided interval in standard errors over so many chains."""
    from scipy.special import stdtrit

    return float(stdtrit(chains - 1, 0.5 + CONFIDENCE / 2))


def mixing(x: Float[np.ndarray, "c t"]) -> tuple[float, float]:
    """Split R-hat and effective sample size of draws by chain, by Geyer's initial monotone sequence [Vehtari+21 1903.08008 §3].

    Both NaN where nothing varies.
    """
    half = x.shape[1] // 2
    y = np.concatenate([x[:, :half], x[:, -half:]])
    m, k = y.shape
    within = float(y.var(axis=1, ddof=1).mean())
    if within <= 0:
        return math.nan, math.nan
    between = float(y.mean(1).var(ddof=1))
    pooled = (k - 1) / k * within + between
    centred = y - y.mean(1, keepdims=True)
    spectrum = np.fft.rfft(centred, n=2 * k, axis=1)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :k].mean(0) / (k - 1)
    rho = 1 - (within - covariance) / pooled
    rho[0] = 1.0
    pairs = rho[: k - k % 2].reshape(-1, 2).sum(1)
    ends = np.flatnonzero(pairs <= 0)
    pairs = np.minimum.accumulate(pairs[: ends[0] if len(ends) else None])
    tau = max(2 * float(pairs.sum()) - 1, 1 / math.log10(m * k))
    return math.sqrt(pooled / within), m * k / tau


@dataclass(frozen=True)
class Trial:
    """One setting of the sweep."""

    sampler: Sampler
    chains: Chains
    estimate: Estimate
    """Its reasons include that no sound neighbour agrees."""


@dataclass(frozen=True)
class Calibration:
    """The sweep, and the setting that it led to, if any."""

    trials: tuple[Trial, ...]

    @cached_property
    def chosen(self) -> Trial | None:
        """Of those that pass the smallest step: it distorts the least. The sweep ends at the weakest localisation that has one."""
        sound = [trial for trial in self.trials if trial.estimate.sound]
        return min(sound, key=lambda trial: trial.sampler.eps, default=None)

    @property
    def refusal(self) -> str:
        """Why there is no setting."""
        last = "; ".join(
            f"eps {t.sampler.eps:g}, gamma {t.sampler.gamma:g}: {', '.join(t.estimate.reasons)}" for t in self.trials
        )
        return f"None of {len(self.trials)} settings gives chains that pass the checks ({last})."


def calibrate(
    potential: Potential, start: Float[Tensor, " d"], sampler: Sampler, eps: Sequence[float], gamma: Sequence[float], seed: int
) -> Calibration:
    """Try all step sizes at each localisation, weakest first, until one passes: stronger ones would not be chosen.

    Args:
        potential: the loss around the model.
        start: the model.
        sampler: everything else.
        eps: step sizes, two at least: each needs a neighbour that agrees.
        gamma: localisations.
        seed: of the chains.

    Raises:
        UserError: fewer than two different step sizes or no localisation, or as `sample`.
    """
    if len(set(eps)) < 2 or not gamma:
        raise UserError(
            f"a calibration needs two step sizes and a localisation at least; got eps={list(eps)}, gamma={list(gamma)}."
        )
    trials: list[Trial] = []
    for weight in sorted(set(gamma)):
        row: list[Trial] = []
        for size in sorted(set(eps)):
            setting = replace(sampler, eps=size, gamma=weight)
            chains = sample(potential, start, setting, seed)
            row.append(Trial(setting, chains, estimate(chains)))
        trials += [_beside(trial, row[max(0, i - 1) : i] + row[i + 1 : i + 2]) for i, trial in enumerate(row)]
        if Calibration(tuple(trials)).chosen:
            break
    return Calibration(tuple(trials))


def _beside(trial: Trial, neighbours: Sequence[Trial]) -> Trial:
    """The trial, refused where no sound neighbour gives about the same."""
    here = trial.estimate
    near = [n for n in neighbours if n.estimate.sound and 1 / STABLE <= n.estimate.value / here.value <= STABLE]
    if not here.sound or near:
        return trial
    said = f"no neighbouring step size passes and agrees within a factor of {STABLE}"
    return replace(trial, estimate=replace(here, reasons=(*here.reasons, said)))
